//! What the protocol's records become as bytes, and back: nothing is lost, nothing is read that is
//! not there, and no bytes at all make a decoder panic.

use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{BufferObject, FdArrayObject, FlatObject, Object};
use fakebinder::protocol::record::IntoBytes;
use fakebinder::protocol::record::Record;
use fakebinder::protocol::record::{
    HandleCookie, PtrCookie, Put, TransactionData, WriteRead, align8,
};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::*;
use proptest::prelude::*;

fn transaction_data() -> impl Strategy<Value = TransactionData> {
    (any::<[u64; 6]>(), any::<[u32; 3]>(), any::<i32>()).prop_map(|(long, short, sender_pid)| {
        TransactionData {
            target: long[0],
            cookie: long[1],
            code: short[0],
            flags: short[1],
            sender_pid,
            sender_euid: short[2],
            data_size: long[2],
            offsets_size: long[3],
            buffer: long[4],
            offsets: long[5],
        }
    })
}

fn ptr_cookie() -> impl Strategy<Value = PtrCookie> {
    any::<(u64, u64)>().prop_map(|(ptr, cookie)| PtrCookie { ptr, cookie })
}

fn handle_cookie() -> impl Strategy<Value = HandleCookie> {
    any::<(u32, u64)>().prop_map(|(handle, cookie)| HandleCookie { handle, cookie })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        transaction_data().prop_map(Command::Transaction),
        transaction_data().prop_map(Command::Reply),
        (transaction_data(), any::<u64>())
            .prop_map(|(data, size)| { Command::TransactionSg(data, size) }),
        (transaction_data(), any::<u64>()).prop_map(|(data, size)| Command::ReplySg(data, size)),
        any::<i32>().prop_map(Command::AcquireResult),
        any::<u64>().prop_map(Command::FreeBuffer),
        any::<u32>().prop_map(Command::Increfs),
        any::<u32>().prop_map(Command::Acquire),
        any::<u32>().prop_map(Command::Release),
        any::<u32>().prop_map(Command::Decrefs),
        ptr_cookie().prop_map(Command::IncrefsDone),
        ptr_cookie().prop_map(Command::AcquireDone),
        any::<(i32, u32)>()
            .prop_map(|(priority, handle)| Command::AttemptAcquire { priority, handle }),
        Just(Command::RegisterLooper),
        Just(Command::EnterLooper),
        Just(Command::ExitLooper),
        handle_cookie().prop_map(Command::RequestDeathNotification),
        handle_cookie().prop_map(Command::ClearDeathNotification),
        any::<u64>().prop_map(Command::DeadBinderDone),
        handle_cookie().prop_map(Command::RequestFreezeNotification),
        handle_cookie().prop_map(Command::ClearFreezeNotification),
        any::<u64>().prop_map(Command::FreezeNotificationDone),
    ]
}

/// Every command there is, by its number.
const COMMANDS: [u32; 22] = [
    BC_TRANSACTION,
    BC_REPLY,
    BC_ACQUIRE_RESULT,
    BC_FREE_BUFFER,
    BC_INCREFS,
    BC_ACQUIRE,
    BC_RELEASE,
    BC_DECREFS,
    BC_INCREFS_DONE,
    BC_ACQUIRE_DONE,
    BC_ATTEMPT_ACQUIRE,
    BC_REGISTER_LOOPER,
    BC_ENTER_LOOPER,
    BC_EXIT_LOOPER,
    BC_REQUEST_DEATH_NOTIFICATION,
    BC_CLEAR_DEATH_NOTIFICATION,
    BC_DEAD_BINDER_DONE,
    BC_TRANSACTION_SG,
    BC_REPLY_SG,
    BC_REQUEST_FREEZE_NOTIFICATION,
    BC_CLEAR_FREEZE_NOTIFICATION,
    BC_FREEZE_NOTIFICATION_DONE,
];

fn a_return() -> impl Strategy<Value = Return> {
    prop_oneof![
        Just(Return::Error),
        Just(Return::Ok),
        transaction_data().prop_map(Return::Transaction),
        (transaction_data(), any::<u64>())
            .prop_map(|(data, context)| Return::TransactionSecCtx(data, context)),
        transaction_data().prop_map(Return::Reply),
        any::<i32>().prop_map(Return::AcquireResult),
        Just(Return::DeadReply),
        Just(Return::TransactionComplete),
        ptr_cookie().prop_map(Return::Increfs),
        ptr_cookie().prop_map(Return::Acquire),
        ptr_cookie().prop_map(Return::Release),
        ptr_cookie().prop_map(Return::Decrefs),
        Just(Return::Noop),
        Just(Return::SpawnLooper),
        Just(Return::Finished),
        any::<u64>().prop_map(Return::DeadBinder),
        any::<u64>().prop_map(Return::ClearDeathNotificationDone),
        Just(Return::FailedReply),
        Just(Return::FrozenReply),
        Just(Return::OnewaySpamSuspect),
        Just(Return::TransactionPendingFrozen),
        any::<(u64, bool)>()
            .prop_map(|(cookie, is_frozen)| Return::FrozenBinder { cookie, is_frozen }),
        any::<u64>().prop_map(Return::ClearFreezeNotificationDone),
    ]
}

/// Every return there is, by its number.
const RETURNS: [u32; 23] = [
    BR_ERROR,
    BR_OK,
    BR_TRANSACTION,
    BR_TRANSACTION_SEC_CTX,
    BR_REPLY,
    BR_ACQUIRE_RESULT,
    BR_DEAD_REPLY,
    BR_TRANSACTION_COMPLETE,
    BR_INCREFS,
    BR_ACQUIRE,
    BR_RELEASE,
    BR_DECREFS,
    BR_NOOP,
    BR_SPAWN_LOOPER,
    BR_FINISHED,
    BR_DEAD_BINDER,
    BR_CLEAR_DEATH_NOTIFICATION_DONE,
    BR_FAILED_REPLY,
    BR_FROZEN_REPLY,
    BR_ONEWAY_SPAM_SUSPECT,
    BR_TRANSACTION_PENDING_FROZEN,
    BR_FROZEN_BINDER,
    BR_CLEAR_FREEZE_NOTIFICATION_DONE,
];

fn flat() -> impl Strategy<Value = FlatObject> {
    any::<(u32, u64, u64)>().prop_map(|(flags, binder, cookie)| FlatObject {
        flags,
        binder,
        cookie,
    })
}

fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        (any::<bool>(), flat()).prop_map(|(strong, flat)| Object::Binder { strong, flat }),
        (any::<bool>(), flat()).prop_map(|(strong, flat)| Object::Handle { strong, flat }),
        any::<(u32, u32, u64)>().prop_map(|(pad_flags, fd, cookie)| Object::Fd {
            pad_flags,
            fd,
            cookie
        }),
        any::<(u32, u64, u64, u64)>().prop_map(|(pad, num_fds, parent, parent_offset)| {
            Object::FdArray(FdArrayObject { pad, num_fds, parent, parent_offset })
        }),
        any::<(u32, [u64; 4])>().prop_map(|(flags, [buffer, length, parent, parent_offset])| {
            Object::Buffer(BufferObject { flags, buffer, length, parent, parent_offset })
        }),
    ]
}

/// Every kind of object, by its number.
const OBJECTS: [u32; 7] = [
    BINDER_TYPE_BINDER,
    BINDER_TYPE_WEAK_BINDER,
    BINDER_TYPE_HANDLE,
    BINDER_TYPE_WEAK_HANDLE,
    BINDER_TYPE_FD,
    BINDER_TYPE_FDA,
    BINDER_TYPE_PTR,
];

fn write_read() -> impl Strategy<Value = WriteRead> {
    any::<[u64; 6]>().prop_map(|fields| WriteRead {
        write_size: fields[0],
        write_consumed: fields[1],
        write_buffer: fields[2],
        read_size: fields[3],
        read_consumed: fields[4],
        read_buffer: fields[5],
    })
}

fn command_bytes(command: &Command) -> Vec<u8> {
    let mut bytes = Vec::new();
    command.encode(&mut bytes);
    bytes
}

fn return_bytes(value: &Return) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn a_command_survives_its_bytes(command in command()) {
        let bytes = command_bytes(&command);
        let (number, payload) = bytes.split_at(4);
        let number = u32::from_ne_bytes(number.try_into().unwrap());
        prop_assert_eq!(number, command.number());
        prop_assert_eq!(Command::payload_size(number), Some(payload.len()));
        prop_assert_eq!(Command::decode(number, payload), Some(command));
    }

    /// Any payload of the right length is that command; the bytes come back as they were.
    #[test]
    fn the_bytes_of_a_command_survive_it(
        number in proptest::sample::select(&COMMANDS[..]),
        mut payload in proptest::collection::vec(any::<u8>(), 72),
    ) {
        payload.truncate(Command::payload_size(number).unwrap());
        let command = Command::decode(number, &payload).unwrap();
        prop_assert_eq!(&command_bytes(&command)[4..], payload);
    }

    #[test]
    fn a_payload_of_another_length_is_no_command(
        number in proptest::sample::select(&COMMANDS[..]),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let fits = Command::payload_size(number) == Some(payload.len());
        prop_assert_eq!(Command::decode(number, &payload).is_some(), fits);
    }

    #[test]
    fn arbitrary_bytes_are_no_harm_to_the_command_decoder(
        number in any::<u32>(),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        if let Some(command) = Command::decode(number, &payload) {
            prop_assert_eq!(command.number(), number);
        }
    }

    #[test]
    fn a_return_survives_its_bytes(value in a_return(), tail in any::<[u8; 16]>()) {
        let mut bytes = return_bytes(&value);
        let size = bytes.len();
        prop_assert_eq!(Return::decode(&bytes), Some((value, size)));
        // What follows it in the buffer is not its own.
        bytes.extend_from_slice(&tail);
        prop_assert_eq!(Return::decode(&bytes), Some((value, size)));
        prop_assert_eq!(Return::decode(&bytes[..size - 1]), None);
    }

    #[test]
    fn the_bytes_of_a_return_survive_it(
        number in proptest::sample::select(&RETURNS[..]),
        payload in any::<[[u8; 8]; 9]>(),
    ) {
        let bytes = [&number.to_ne_bytes()[..], &payload.concat()].concat();
        let (value, size) = Return::decode(&bytes).unwrap();
        prop_assert_eq!(value.number(), number);
        let again = return_bytes(&value);
        prop_assert_eq!(again.len(), size);
        match value {
            // Any number but 0 says "frozen", and the reserved field is dropped.
            Return::FrozenBinder { .. } => prop_assert_eq!(&again[..12], &bytes[..12]),
            _ => prop_assert_eq!(&again[..], &bytes[..size]),
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_harm_to_the_return_decoder(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        if let Some((_, size)) = Return::decode(&bytes) {
            prop_assert!(size <= bytes.len());
        }
    }

    #[test]
    fn an_object_survives_its_bytes(object in object(), before in 0..10_usize, after in 0..9_usize) {
        let mut bytes = vec![0xee; before * 4];
        object.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), before * 4 + object.size());
        prop_assert!(object.size() <= Object::MAX_SIZE);
        bytes.resize(bytes.len() + after, 0xee);
        let offset = before as u64 * 4;
        prop_assert_eq!(Object::read(&bytes, offset), Some(object));
        prop_assert_eq!(Object::decode(&bytes[before * 4..]), Some(object));
        let cut = bytes.len() - after - 1;
        prop_assert_eq!(Object::read(&bytes[..cut], offset), None);
    }

    #[test]
    fn the_bytes_of_an_object_survive_it(
        kind in proptest::sample::select(&OBJECTS[..]),
        fields in any::<[[u8; 4]; 9]>(),
    ) {
        let bytes = [&kind.to_ne_bytes()[..], &fields.concat()].concat();
        let object = Object::decode(&bytes).unwrap();
        let mut again = Vec::new();
        object.encode(&mut again);
        match object {
            // The upper half of the union with the node's pointer is nobody's.
            Object::Fd { .. } => {
                prop_assert_eq!((&again[..12], &again[16..]), (&bytes[..12], &bytes[16..24]));
                prop_assert_eq!(&again[12..16], &[0; 4]);
            }
            _ => prop_assert_eq!(&again[..], &bytes[..again.len()]),
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_harm_to_the_object_decoder(
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        offset in any::<u64>(),
        near in 0..70_u64,
    ) {
        for offset in [offset, near] {
            let object = Object::read(&bytes, offset);
            prop_assert!(object.is_none() || Object::may_begin_at(offset, bytes.len() as u64));
        }
        Object::decode(&bytes);
        FlatObject::decode_any(&bytes);
    }

    #[test]
    fn a_write_read_survives_its_bytes(call in write_read()) {
        let bytes = call.as_bytes().to_vec();
        prop_assert_eq!(bytes.len(), WriteRead::SIZE);
        prop_assert_eq!(WriteRead::at(&bytes).unwrap_or_default(), call);
    }

    #[test]
    fn the_bytes_of_a_write_read_survive_it(bytes in any::<[[u8; 8]; 6]>()) {
        let bytes = bytes.concat();
        let again = WriteRead::at(&bytes).unwrap_or_default();
        prop_assert_eq!(again.as_bytes(), &bytes[..]);
    }

    /// What is cut short is nothing.
    #[test]
    fn arbitrary_bytes_are_no_harm_to_the_record_decoders(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        prop_assert_eq!(WriteRead::at(&bytes).is_some(), bytes.len() >= WriteRead::SIZE);
        let transaction = TransactionData::at(&bytes);
        prop_assert_eq!(transaction.is_some(), bytes.len() >= TransactionData::SIZE);
    }

    #[test]
    fn a_transaction_record_survives_its_bytes(data in transaction_data()) {
        let mut bytes = Vec::new();
        bytes.put(data);
        prop_assert_eq!(bytes.len(), TransactionData::SIZE);
        let pid = bytes[TransactionData::SENDER_PID..].first_chunk().unwrap();
        prop_assert_eq!(i32::from_ne_bytes(*pid), data.sender_pid);
        prop_assert_eq!(data.handle(), data.target as u32);
        prop_assert_eq!(TransactionData::at(&bytes), Some(data));
    }

    #[test]
    fn sizes_are_rounded_up_to_8_and_do_not_overflow(size in any::<u64>()) {
        let rounded = align8(size);
        prop_assert!(rounded.is_multiple_of(8));
        prop_assert!(rounded >= size || size > u64::MAX - 7);
        prop_assert!(rounded.abs_diff(size) < 8);
    }
}

#[test]
fn commands_returns_and_objects_have_the_numbers_of_the_kernels_headers() {
    // Numbers that a captured stream of a running driver shows; the rest is tied to the generated
    // bindings.
    for (number, expected) in [
        (BC_TRANSACTION, 0x4040_6300),
        (BC_FREE_BUFFER, 0x4008_6303),
        (BC_ENTER_LOOPER, 0x0000_630c),
        (BC_REQUEST_DEATH_NOTIFICATION, 0x400c_630e),
        (BC_TRANSACTION_SG, 0x4048_6311),
        (BC_REQUEST_FREEZE_NOTIFICATION, 0x400c_6313),
        (BR_TRANSACTION_SEC_CTX, 0x8048_7202),
        (BR_TRANSACTION, 0x8040_7202),
        (BR_NOOP, 0x0000_720c),
        (BR_FROZEN_BINDER, 0x8010_7215),
        (BINDER_TYPE_BINDER, 0x7362_2a85),
        (BINDER_TYPE_FDA, 0x6664_6185),
    ] {
        assert_eq!(number, expected);
    }
    for number in COMMANDS {
        assert!(Command::payload_size(number).is_some(), "{number:#x}");
    }
}
