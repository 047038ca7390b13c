//! Programs that once found something, as the fuzzer printed them but for names.

use fakebinder_fuzz::grammar::Acquaintance::*;
use fakebinder_fuzz::grammar::Aside::*;
use fakebinder_fuzz::grammar::Command::*;
use fakebinder_fuzz::grammar::Install::*;
use fakebinder_fuzz::grammar::Ioctl::*;
use fakebinder_fuzz::grammar::Manager::*;
use fakebinder_fuzz::grammar::Object::*;
use fakebinder_fuzz::grammar::Read::*;
use fakebinder_fuzz::grammar::Size::*;
use fakebinder_fuzz::grammar::Step::*;
use fakebinder_fuzz::grammar::Strength::*;
use fakebinder_fuzz::grammar::Trouble::*;
use fakebinder_fuzz::grammar::Twist::*;
use fakebinder_fuzz::grammar::*;
use fakebinder_fuzz::interpret::play;
use fakebinder_fuzz::list;

/// A freeze that waits is overtaken by one that does not, fails and thaws: then the last
/// transaction ends while nobody is frozen, and the first freeze heard of nothing until its
/// timeout.
#[test]
fn a_freeze_that_waits_ends_with_a_later_one_that_succeeds() {
    play(&Program {
        setting: Setting {
            budget: 255,
            pages: 0,
            install: Shared,
            manager: Plain,
            acquaintance: Strangers,
            faults: list![],
        },
        steps: list![
            WriteRead {
                by: Actor(1),
                commands: list![Transaction {
                    to: Pick(0),
                    message: Message {
                        flags: Flags(0),
                        code: 0,
                        size: Bytes { count: 8 },
                        objects: list![],
                        twist: Honest
                    }
                }],
                read: Waits,
                trouble: NoTrouble
            },
            Call { by: Actor(0x11), ioctl: Freeze { process: Pick(0), timeout: true } },
            Call { by: Actor(2), ioctl: Freeze { process: Pick(0), timeout: false } },
            Behave { by: Actor(0), trouble: NoTrouble },
            Behave { by: Actor(1), trouble: NoTrouble },
            Call { by: Actor(2), ioctl: Freeze { process: Pick(0), timeout: false } },
        ],
    });
}

/// The driver drops it, too (`BINDER_WORK_NODE` in `binder_release_work`): until the node's next
/// count its owner is not told that nobody has a reference any more. The rule did not know.
#[test]
fn a_node_s_notice_goes_with_the_thread_that_was_to_hear_it() {
    play(&Program {
        setting: Setting {
            budget: 0,
            pages: 0,
            install: Shared,
            manager: TakesFiles,
            acquaintance: Strangers,
            faults: list![],
        },
        steps: list![
            WriteRead {
                by: Actor(1),
                commands: list![
                    Acquire { handle: Pick(0) },
                    Transaction {
                        to: Pick(0),
                        message: Message {
                            flags: Flags(0),
                            code: 0,
                            size: Bytes { count: 0 },
                            objects: list![
                                File { fd: Pick(0) },
                                Node { index: 154, strong: Weak, flags: NodeFlags(0) }
                            ],
                            twist: Honest
                        }
                    },
                    Transaction {
                        to: Pick(0),
                        message: Message {
                            flags: Flags(0),
                            code: 0,
                            size: Bytes { count: 0 },
                            objects: list![],
                            twist: Honest
                        }
                    }
                ],
                read: Waits,
                trouble: NoTrouble
            },
            Behave { by: Actor(1), trouble: NoTrouble },
            WriteRead {
                by: Actor(113),
                commands: list![
                    Increfs { handle: Pick(0) },
                    FreeBuffer { buffer: Pick(0) },
                    Transaction {
                        to: Pick(0),
                        message: Message {
                            flags: Flags(0),
                            code: 0,
                            size: Bytes { count: 0 },
                            objects: list![Node {
                                index: 170,
                                strong: Strong,
                                flags: NodeFlags(0)
                            }],
                            twist: Honest
                        }
                    }
                ],
                read: Nothing,
                trouble: NoTrouble
            },
            WriteRead {
                by: Actor(0),
                commands: list![Increfs { handle: Pick(0) }, FreeBuffer { buffer: Pick(0) }],
                read: Nothing,
                trouble: Meanwhile { after: 0, aside: ReleaseProcess { process: Pick(0) } }
            },
            WriteRead {
                by: Actor(0),
                commands: list![Increfs { handle: Pick(0) }, FreeBuffer { buffer: Pick(0) }],
                read: Nothing,
                trouble: Meanwhile { after: 0, aside: ExitThread { thread: Actor(76) } }
            },
        ],
    });
}
