//! Rules of the driver that can be broken on purpose, to see that the tests notice.
//!
//! Only where the crate is built with the feature `wrong-rules`, and then only one at a time, as
//! `fakebinderd --wrong RULE` says. Elsewhere [`wrong`] is a constant.

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "wrong-rules", derive(clap::ValueEnum))]
#[repr(u8)]
pub enum Rule {
    /// One-way calls to one node do not wait for each other.
    OnewayDoesNotWait = 1,
    /// One-way calls may fill the whole mapping, not half of it.
    OnewayHasAllTheSpace,
    /// A frozen process takes no one-way calls either.
    FrozenRefusesOneway,
    /// TF_UPDATE_TXN replaces calls of any code.
    UpdateReplacesAnyCode,
    /// A weak reference is as good as a strong one.
    WeakIsStrongEnough,
    /// Any node may become handle 0.
    HandleZeroIsForAnyone,
    /// BC_CLEAR_DEATH_NOTIFICATION takes any cookie.
    DeathIsClearedByAnyCookie,
    /// A read goes on after BR_DEAD_BINDER.
    DeathDoesNotEndTheRead,
    /// A freeze that changes before it is acknowledged is not told again.
    FreezeIsNotToldAgain,
    /// BR_TRANSACTION_COMPLETE of a synchronous call is not kept for the read of its reply.
    CallCompletesAtOnce,
}

/// Whether this rule is to be broken.
#[cfg(not(feature = "wrong-rules"))]
#[inline(always)]
pub const fn wrong(_: Rule) -> bool {
    false
}

/// Whether this rule is to be broken.
#[cfg(feature = "wrong-rules")]
pub fn wrong(rule: Rule) -> bool {
    BROKEN.load(std::sync::atomic::Ordering::Relaxed) == rule as u8
}

#[cfg(feature = "wrong-rules")]
static BROKEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// From now on the rule is broken, in the whole process.
#[cfg(feature = "wrong-rules")]
pub fn set_wrong(rule: Rule) {
    BROKEN.store(rule as u8, std::sync::atomic::Ordering::Relaxed);
}
