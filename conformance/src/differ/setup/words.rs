//! The outcome of a step, in words that mean the same on every device.

use super::super::program::Write;
use fakebinder_client::{Errno, uapi};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The command's name, and for transactions their kind.
pub(super) fn kind(command: &Write) -> String {
    match command {
        Write::Send(send) => {
            let parts: BTreeSet<_> = send
                .parts
                .iter()
                .map(|part| {
                    let name = format!("{part:?}");
                    name.split(['(', ' ']).next().unwrap_or("").to_owned()
                })
                .collect();
            format!(
                "{}{parts:?}{}",
                match (send.reply, send.flags & uapi::TF_ONE_WAY != 0) {
                    (true, _) => "reply",
                    (false, true) => "oneway",
                    (false, false) => "call",
                },
                if send.twist.is_some() { " twisted" } else { "" }
            )
        }
        other => {
            let name = format!("{other:?}");
            name.split(['(', ' ']).next().unwrap_or("").to_owned()
        }
    }
}

pub(super) fn words(result: Result<i64, Errno>, words: &[u32]) -> String {
    match result {
        Ok(value) => format!("{value} {words:?}"),
        Err(errno) => format!("{errno:?}"),
    }
}

/// The kernel's name of an open file, which tells pipes apart.
pub(super) fn file_name(pid: i32, fd: i32) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// The fix-up of a buffer may write an address to any multiple of 4: here that becomes an offset.
fn without_unaligned_addresses(bytes: &[u8], start: u64, mapping: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 4;
    while let Some(word) = bytes.get(at..at + 8).and_then(|eight| eight.first_chunk()) {
        let address = u64::from_ne_bytes(*word);
        if address >= start && address < start + mapping {
            bytes[at..at + 8].copy_from_slice(&(address - start).to_ne_bytes());
        }
        at += 8;
    }
    bytes
}

/// Bytes in words: addresses in the mapping as offsets, long data as a checksum.
pub(super) fn contents(bytes: &[u8], start: u64, mapping: u64) -> String {
    let bytes = &without_unaligned_addresses(bytes, start, mapping);
    let mut text = String::new();
    for (index, eight) in bytes.chunks(8).enumerate() {
        let word = <[u8; 8]>::try_from(eight).map(u64::from_ne_bytes).unwrap_or_default();
        if word >= start && word < start + mapping {
            let _ = write!(text, "[+{}]", word - start);
        } else if index < 4 {
            for byte in eight {
                let _ = write!(text, "{byte:02x}");
            }
        }
    }
    if bytes.len() > 32 {
        let sum = bytes.iter().enumerate().filter(|(index, _)| {
            let word = index / 8 * 8;
            let address = bytes
                .get(word..word + 8)
                .and_then(|eight| <[u8; 8]>::try_from(eight).ok())
                .map_or(0, u64::from_ne_bytes);
            !(address >= start && address < start + mapping)
        });
        let sum = sum.fold(0u64, |sum, (_, &byte)| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let _ = write!(text, "...{} bytes, sum {sum:x}", bytes.len());
    }
    text
}
