//! How long connections live without a packet, by their state.

use vipgate_abi::flow::State;

use crate::loader;

/// [`loader::ENDED`] in seconds.
pub(super) const ENDED: u32 = loader::ENDED.as_secs() as u32;

/// Seconds without a packet after which a connection that nobody has answered is over.
pub(super) const HALF_OPEN: u32 = 30;
/// The same of one that both sides have closed.
pub(super) const CLOSED: u32 = 5;
/// After a reset, which an attacker may have guessed: the transitory timeout of RFC 5382, section 5, unless the service's own is
/// shorter. New flows take the slots of reset connections first all the same.
pub(super) const RESET: u32 = 240;

/// Seconds without a packet in either direction after which a connection is over. The states of its two slots may differ for the
/// moment in which a program moves one after the other, and while one side has closed: the other side may be silent for as long
/// as before, until it answers.
pub(super) fn timeout(one: State, other: Option<State>, idle: u32) -> u32 {
    let either = |is: fn(State) -> bool| is(one) || other.is_some_and(is);
    if either(|state| state == State::Reset) {
        RESET.min(idle)
    } else if either(State::is_over) {
        CLOSED
    } else if either(State::is_admitted) {
        idle
    } else {
        HALF_OPEN
    }
}
