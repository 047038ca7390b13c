//! A client that has very much, and the manager that it needs: this program again, as another
//! process.

use fakebinder_client::{Call, Command as Write, Device, Object, Parcel, Reply, Return, Thread};
use std::error::Error;
use std::path::Path;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the manager is asked, but for nothing: to keep a node, and to give it away.
const REGISTER: u32 = 1;
const LOOK_UP: u32 = 2;

/// Nodes in one message.
const BATCH: u64 = 1000;
/// Nodes of one open file: the daemon's limit is 262,144.
const PER_FILE: u64 = 250_000;
const MAPPING: usize = 1 << 20;
/// A read buffer in one page, which is filled at once.
#[repr(align(4096))]
struct Page([u8; 4096]);

pub fn open(path: &str) -> Outcome<Device> {
    let mut device = Device::open(path)?;
    device.mmap(MAPPING)?;
    Ok(device)
}

/// What a program does that was started for one of them: `manage DEVICE`, `have DEVICE NODES`, or
/// `churn DEVICE NODES`. Each says "ready".
pub fn be_client(arguments: &[&str]) -> Option<Outcome<()>> {
    let nodes = |number: &str| number.parse::<u64>();
    match arguments {
        ["manage", path] => Some(manage(path)),
        ["have", path, number] => nodes(number).ok().map(|nodes| have(path, nodes)),
        ["churn", path, number] => nodes(number).ok().map(|nodes| churn(path, nodes)),
        _ => None,
    }
}

/// Answers calls, and gives away the last node that it was given.
fn manage(path: &str) -> Outcome<()> {
    let device = open(path)?;
    device.set_context_manager()?;
    let mut thread = Thread::new(&device);
    thread.queue(Write::EnterLooper);
    println!("ready");
    let mut known = None;
    loop {
        let mut given = None;
        thread.serve(&mut |_, _, contents, reply| match contents.code {
            REGISTER => given = contents.objects().flatten().next(),
            LOOK_UP => {
                if let Some(handle) = known {
                    reply.handle(handle);
                }
            }
            _ => {}
        })?;
        if let Some(Object::Handle { handle, .. }) = given {
            device.write(&[Write::Acquire(handle)])?;
            if let Some(before) = known.replace(handle) {
                device.write(&[Write::Release(before)])?;
            }
        }
    }
}

/// Reads until it is told that what it sent is on its way, and confirms what it is told of its
/// nodes.
fn confirm(device: &Device, page: &mut Page) -> Outcome<()> {
    let mut sent = false;
    while !sent {
        let mut done = Vec::new();
        for told in device.read(&mut page.0)? {
            match told {
                Return::Increfs { ptr, cookie } => done.push(Write::IncrefsDone { ptr, cookie }),
                Return::Acquire { ptr, cookie } => done.push(Write::AcquireDone { ptr, cookie }),
                Return::TransactionComplete => sent = true,
                Return::Noop => {}
                other => return Err(format!("{other:?}").into()),
            }
        }
        device.write(&done)?;
    }
    Ok(())
}

/// Open files that own nodes, and one that has a reference and a death link to each.
struct Hog {
    _owners: Vec<Device>,
    _holder: Device,
}

impl Hog {
    fn make(path: &str, nodes: u64) -> Outcome<Hog> {
        let mut page = Page([0; 4096]);
        let holder = open(path)?;
        let mut own = Parcel::new();
        own.binder(0x10, 0, 0);
        Thread::new(&holder).call(&Call::to(0).code(REGISTER).parcel(&own))?;
        let mut owners = Vec::new();
        let mut held = 0;
        while held < nodes {
            let owner = open(path)?;
            let mut thread = Thread::new(&owner);
            let Reply::Data(found) = thread.call(&Call::to(0).code(LOOK_UP))? else {
                return Err("the manager does not know the holder".into());
            };
            let Some(Object::Handle { handle, .. }) = found.objects().flatten().next() else {
                return Err("the manager gives no handle".into());
            };
            // Before the buffer is freed that it came in.
            owner.write(&[Write::Acquire(handle)])?;
            thread.flush()?;
            let last = nodes.min(held + PER_FILE);
            while held < last {
                let end = last.min(held + BATCH);
                let mut parcel = Parcel::new();
                (held..end).for_each(|index| {
                    parcel.binder(0x10 + index * 0x10, index, 0);
                });
                owner.write(&[Write::transaction(&Call::to(handle).oneway().parcel(&parcel))])?;
                confirm(&owner, &mut page)?;
                hold(&holder, &mut page)?;
                held = end;
            }
            owners.push(owner);
        }
        Ok(Hog { _owners: owners, _holder: holder })
    }
}

/// Reads a message, and keeps the handles in it, with a death link to each.
fn hold(holder: &Device, page: &mut Page) -> Outcome<()> {
    loop {
        let told: Vec<_> = holder.read(&mut page.0)?.collect();
        let mut kept = Vec::new();
        for told in told {
            match told {
                Return::Transaction(transaction) => {
                    let contents = holder.contents(&transaction)?;
                    for object in contents.objects() {
                        let Some(Object::Handle { handle, .. }) = object else { continue };
                        kept.push(Write::Acquire(handle));
                        let cookie = handle.into();
                        kept.push(Write::RequestDeathNotification { handle, cookie });
                    }
                    kept.push(Write::FreeBuffer(transaction.buffer));
                }
                // Of the node that it was registered by.
                Return::Increfs { ptr, cookie } => kept.push(Write::IncrefsDone { ptr, cookie }),
                Return::Acquire { ptr, cookie } => kept.push(Write::AcquireDone { ptr, cookie }),
                _ => {}
            }
        }
        let got_it = kept.iter().any(|command| matches!(command, Write::FreeBuffer(_)));
        holder.write(&kept)?;
        if got_it {
            return Ok(());
        }
    }
}

/// Has so many nodes and keeps them until it is killed.
fn have(path: &str, nodes: u64) -> Outcome<()> {
    let hog = Hog::make(path, nodes)?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    drop(hog);
    Ok(())
}

/// Makes, lists, freezes, thaws and releases so many, again and again.
fn churn(path: &str, nodes: u64) -> Outcome<()> {
    let state = Path::new(path).parent().ok_or("a device lies in a mount")?;
    let state = state.join("binder_logs/state");
    println!("ready");
    loop {
        let hog = Hog::make(path, nodes)?;
        std::fs::read(&state)?;
        // It need not be idle enough to be frozen: that is not what this is about.
        let caller = open(path)?;
        let _ = caller.freeze(std::process::id(), true, 0);
        caller.freeze(std::process::id(), false, 0)?;
        drop(hog);
    }
}
