//! Programs that once found something, as the fuzzer printed them but for names.

use fakebinder_fuzz::grammar::Acquaintance::*;
use fakebinder_fuzz::grammar::Command::*;
use fakebinder_fuzz::grammar::Install::*;
use fakebinder_fuzz::grammar::Ioctl::*;
use fakebinder_fuzz::grammar::Manager::*;
use fakebinder_fuzz::grammar::Read::*;
use fakebinder_fuzz::grammar::Size::*;
use fakebinder_fuzz::grammar::Step::*;
use fakebinder_fuzz::grammar::Trouble::*;
use fakebinder_fuzz::grammar::Twist::*;
use fakebinder_fuzz::grammar::*;
use fakebinder_fuzz::interpret::play;
use fakebinder_fuzz::list;

/// A freeze that waits is overtaken by one that does not, fails and thaws: then the last
/// transaction ends while nobody is frozen, and the first freeze heard of nothing until its timeout.
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
