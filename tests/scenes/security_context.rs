//! Nodes that ask for the security context of whoever calls them.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{FlatObject, Object};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::{self, FLAT_BINDER_FLAG_TXN_SECURITY_CTX};
use fakebinder_sim::{Pending, Sim, World};

const LABEL: &[u8] = b"u:r:scene:s0\0";

/// A manager that asks for contexts, by BINDER_SET_CONTEXT_MGR_EXT.
fn curious() -> Pair {
    let world = World::default();
    let manager = world.open(100);
    let mut object = Vec::new();
    let flat = FlatObject { flags: FLAT_BINDER_FLAG_TXN_SECURITY_CTX, binder: 0x77, cookie: 0x78 };
    Object::Binder { strong: true, flat }.encode(&mut object);
    manager.main().call(uapi::BINDER_SET_CONTEXT_MGR_EXT, &object).unwrap();
    let client = open(&world, 200);
    Pair { world, manager, client }
}

/// What was read: the transaction's data, and the context at the address that came with it.
fn with_context(sim: &Sim, read: &Pending, length: usize) -> (Vec<u8>, Vec<u8>) {
    match news(read)[..] {
        [Return::TransactionSecCtx(data, address)] => (sim.data(&data), sim.peek(address, length)),
        ref other => panic!("expected a context, read {other:?}"),
    }
}

#[test]
fn a_node_that_asks_gets_the_callers_security_context() {
    let Pair { world, manager, client } = curious();
    client.set_security_context(LABEL);
    let calling = call(client.main(), 0, 1, b"whose?");
    let read = manager.main().read();
    assert_eq!(with_context(&manager, &read, LABEL.len()), (b"whose?".to_vec(), LABEL.to_vec()));
    let received = transaction(&read);
    assert_eq!((received.target, received.cookie), (0x77, 0x78), "the node of the EXT form");
    answer(manager.main().nonblock(), b"");
    assert!(matches!(news(&calling)[..], [Return::TransactionComplete, Return::Reply(_)]));
    end(&world, [client, manager]);
}

#[test]
fn a_one_way_call_brings_its_security_context_too() {
    let Pair { world, manager, client } = curious();
    client.set_security_context(LABEL);
    assert_eq!(post(client.main(), 0, 1, b"whose?"), [Return::TransactionComplete]);
    let read = manager.main().read();
    assert_eq!(with_context(&manager, &read, LABEL.len()).1, LABEL);
    end(&world, [client, manager]);
}

/// It lies behind data, offsets and scatter-gather buffers, each rounded up to 8 bytes.
#[test]
fn a_security_context_lies_at_the_end_of_the_buffer() {
    let Pair { world, manager, client } = curious();
    client.set_security_context(LABEL);
    let data = one_way(client.message(0, 1, b"12345", &[binder(0x10)]));
    client.main().write(&[Command::TransactionSg(data, 24)]);
    let [Return::TransactionSecCtx(got, address)] = news(&manager.main().read())[..] else {
        panic!("expected a context");
    };
    assert_eq!(address - got.buffer, 32 + 8 + 24);
    assert_eq!(manager.peek(address, LABEL.len()), LABEL);
    end(&world, [client, manager]);
}

/// What the driver's caller gets on a kernel without a security module.
#[test]
fn without_a_security_module_a_call_to_a_node_that_asks_fails() {
    let Pair { world, manager, client } = curious();
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EOPNOTSUPP));
    end(&world, [client, manager]);
}

#[test]
fn scatter_gather_sizes_that_overflow_with_the_security_context_are_einval() {
    let Pair { world, manager, client } = curious();
    client.set_security_context(LABEL);
    let data = client.message(0, 1, b"", &[]);
    let sent = client.main().write_and_read(&[Command::TransactionSg(data, u64::MAX - 7)]);
    assert_eq!(news(&sent), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

#[test]
fn a_node_that_does_not_ask_gets_no_security_context() {
    let Pair { world, manager, client } = pair();
    client.set_security_context(LABEL);
    call(client.main(), 0, 1, b"");
    assert!(matches!(news(&manager.main().read())[..], [Return::Transaction(_)]));
    end(&world, [client, manager]);
}
