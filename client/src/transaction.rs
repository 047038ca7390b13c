//! A received transaction or reply.

use crate::object::Object;
use fakebinder::protocol::record::TransactionData;

/// The payload of `BR_TRANSACTION`, `BR_TRANSACTION_SEC_CTX` and `BR_REPLY`: where the data lies in
/// this process's mapping, and who sent it. The buffer is occupied until
/// [`Command::FreeBuffer`](crate::Command::FreeBuffer) with `buffer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// Identity of the called node, 0 in a reply.
    pub target: u64,
    /// The called node's cookie, 0 in a reply.
    pub cookie: u64,
    /// What is asked for.
    pub code: u32,
    /// `TF_*`.
    pub flags: u32,
    /// The sender's pid, as this process sees it; 0 for one-way transactions and in replies.
    pub sender_pid: i32,
    /// The sender's effective uid.
    pub sender_euid: u32,
    /// Length of the data in bytes.
    pub data_size: u64,
    /// Length of the offsets array in bytes.
    pub offsets_size: u64,
    /// Address of the data.
    pub buffer: u64,
    /// Address of the offsets array.
    pub offsets: u64,
    /// Address of the sender's security context, a NUL-terminated string
    /// (`BR_TRANSACTION_SEC_CTX`), else 0.
    pub secctx: u64,
}

impl Transaction {
    /// Whether no reply is expected.
    pub fn is_oneway(&self) -> bool {
        self.flags & crate::uapi::TF_ONE_WAY != 0
    }

    /// The transaction with that record, and the address of a security context or 0.
    pub(crate) fn new(data: TransactionData, secctx: u64) -> Transaction {
        Transaction {
            target: data.target,
            cookie: data.cookie,
            code: data.code,
            flags: data.flags,
            sender_pid: data.sender_pid,
            sender_euid: data.sender_euid,
            data_size: data.data_size,
            offsets_size: data.offsets_size,
            buffer: data.buffer,
            offsets: data.offsets,
            secctx,
        }
    }
}

/// A copy of a received transaction's content, made by
/// [`Device::contents`](crate::Device::contents).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// The code of the transaction (0 in most replies).
    pub code: u32,
    /// `TF_*`.
    pub flags: u32,
    /// The data, objects included, as the receiver sees them.
    pub data: Vec<u8>,
    /// Offsets in the data at which its objects begin.
    pub offsets: Vec<u64>,
}

impl Contents {
    /// The objects, in the order of the offsets; `None` for one that cannot be decoded.
    pub fn objects(&self) -> impl Iterator<Item = Option<Object>> + '_ {
        self.offsets.iter().map(|&offset| Object::decode(self.data.get(offset as usize..)?))
    }
}
