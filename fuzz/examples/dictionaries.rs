//! Writes the dictionaries of the targets into a directory: what libFuzzer would have to guess.

use fakebinder::uapi::*;
use fakebinder_fuzz::wire::SHARED;
use fakebinder_fuzz::write_buffer::WRITE_BUFFER;
use fakebinder_sim::MAPPING;

fn entry(name: &str, bytes: &[u8]) -> String {
    let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    format!("{}=\"{escaped}\"\n", name.to_lowercase())
}

macro_rules! words {
    ($($name:ident)*) => { [$((stringify!($name), $name)),*] };
}

fn main() {
    let directory = std::env::args().nth(1).expect("dictionaries DIRECTORY");
    let commands = words![
        BC_TRANSACTION BC_REPLY BC_TRANSACTION_SG BC_REPLY_SG BC_ACQUIRE_RESULT BC_FREE_BUFFER
        BC_INCREFS BC_ACQUIRE BC_RELEASE BC_DECREFS BC_INCREFS_DONE BC_ACQUIRE_DONE
        BC_ATTEMPT_ACQUIRE BC_REGISTER_LOOPER BC_ENTER_LOOPER BC_EXIT_LOOPER
        BC_REQUEST_DEATH_NOTIFICATION BC_CLEAR_DEATH_NOTIFICATION BC_DEAD_BINDER_DONE
        BC_REQUEST_FREEZE_NOTIFICATION BC_CLEAR_FREEZE_NOTIFICATION BC_FREEZE_NOTIFICATION_DONE
        BINDER_TYPE_BINDER BINDER_TYPE_WEAK_BINDER BINDER_TYPE_HANDLE BINDER_TYPE_WEAK_HANDLE
        BINDER_TYPE_FD BINDER_TYPE_FDA BINDER_TYPE_PTR
    ];
    let ioctls = words![
        BINDER_WRITE_READ BINDER_SET_IDLE_TIMEOUT BINDER_SET_MAX_THREADS BINDER_SET_IDLE_PRIORITY
        BINDER_SET_CONTEXT_MGR BINDER_THREAD_EXIT BINDER_VERSION BINDER_GET_NODE_DEBUG_INFO
        BINDER_GET_NODE_INFO_FOR_REF BINDER_SET_CONTEXT_MGR_EXT BINDER_FREEZE
        BINDER_GET_FROZEN_INFO BINDER_ENABLE_ONEWAY_SPAM_DETECTION BINDER_GET_EXTENDED_ERROR
        FAKEBINDER_ATTACH FAKEBINDER_MAPPED
    ];
    let opcodes = words![
        FUSE_LOOKUP FUSE_FORGET FUSE_GETATTR FUSE_SETATTR FUSE_READLINK FUSE_OPEN FUSE_READ
        FUSE_WRITE FUSE_STATFS FUSE_RELEASE FUSE_FSYNC FUSE_FLUSH FUSE_INIT FUSE_OPENDIR
        FUSE_READDIR FUSE_RELEASEDIR FUSE_INTERRUPT FUSE_DESTROY FUSE_IOCTL FUSE_POLL
        FUSE_BATCH_FORGET CUSE_INIT
    ];
    let words = |words: &[(&str, u32)]| -> String {
        words.iter().map(|(name, word)| entry(name, &word.to_ne_bytes())).collect()
    };
    let address = |name, address: u64| entry(name, &address.to_ne_bytes());
    let about = "# Written by `cargo run --example dictionaries -- dict`.\n";

    let mut write_buffer = about.to_owned() + &words(&commands);
    write_buffer += &address("its_own_bytes", WRITE_BUFFER);
    write_buffer += &address("further_on", WRITE_BUFFER + 64);
    write_buffer += &address("its_mapping", MAPPING);
    write_buffer += &address("its_first_node", 2 << 16);
    write_buffer += &address("its_first_cookie", 2 << 16 ^ 0x5eed_0000_0000);

    let mut wire = about.to_owned() + &words(&commands) + &words(&ioctls) + &words(&opcodes);
    wire += &address("shared", SHARED as u64);
    wire += &address("shared_further_on", SHARED as u64 + 256);
    wire += &address("first_file", 1 << 40 | 1);
    wire += &entry("device", b"binder\0");
    wire += &entry("opens", b".open\0");

    for (target, dictionary) in [("write_buffer", write_buffer), ("wire", wire)] {
        std::fs::write(format!("{directory}/{target}.dict"), dictionary).expect("a directory");
    }
}
