//! An echo through dbus-daemon, told and timed as benches/ping.c is.
//!
//! `ADDRESS serve`: answers on that bus, and says "ready" when it can be called.
//!
//! `ADDRESS call COUNT`: says "ready" after some calls that are not counted, and then for each line
//! of its input makes COUNT calls and says how many nanoseconds each took: the median, the 99th and
//! the 99.9th percentile, and all together.

use std::error::Error;
use std::io::stdin;
use std::time::Instant;
use zbus::blocking::{Connection, Proxy, connection};

const NAME: &str = "org.fakebinder.Echo";
const PATH: &str = "/org/fakebinder/Echo";

struct Echo;

#[zbus::interface(name = "org.fakebinder.Echo")]
impl Echo {
    fn echo(&self) {}
}

fn bus(address: &str) -> zbus::Result<connection::Builder<'static>> {
    connection::Builder::address(address)
}

fn serve(address: &str) -> Result<(), Box<dyn Error>> {
    let _connection: Connection = bus(address)?.name(NAME)?.serve_at(PATH, Echo)?.build()?;
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn call(address: &str, count: usize) -> Result<(), Box<dyn Error>> {
    let connection = bus(address)?.build()?;
    let proxy = Proxy::new(&connection, NAME, PATH, NAME)?;
    let echo = || proxy.call::<_, _, ()>("Echo", &());
    (0..200).try_for_each(|_| echo())?;
    println!("ready");
    while stdin().read_line(&mut String::new())? > 0 {
        let mut took = Vec::with_capacity(count);
        let began = Instant::now();
        let mut last = began;
        for _ in 0..count {
            echo()?;
            let now = Instant::now();
            took.push(now.duration_since(last).as_nanos());
            last = now;
        }
        took.sort_unstable();
        let at = |permille| took[count * permille / 1000];
        let all = last.duration_since(began).as_nanos();
        println!("{} {} {} {all}", at(500), at(990), at(999));
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [address, "serve"] => serve(address),
        [address, "call", count] => call(address, count.parse::<usize>()?.max(1)),
        _ => Err("ADDRESS serve, or ADDRESS call COUNT".into()),
    }
}
