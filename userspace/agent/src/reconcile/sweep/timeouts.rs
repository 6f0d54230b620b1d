//! How long connections live without a packet, by their state.

use vipgate_abi::flow::State;

use crate::loader;

/// [`loader::ENDED`] in seconds.
pub(super) const ENDED: u32 = loader::ENDED.as_secs() as u32;

/// Seconds without a packet after which a connection that nobody has answered is over.
pub(super) const HALF_OPEN: u32 = 30;
/// The same of one that was reset, or closed by both sides, unless the service's own timeout is shorter: the transitory timeout
/// of RFC 5382, section 5. An attacker may have guessed the RST, or one of the FINs. New flows take the slots of such
/// connections first all the same.
pub(super) const TRANSITORY: u32 = 240;
/// The same of closed connections while they have one of [`MANY`] entries of the table or more: what is dense costs packets
/// fewer cache misses.
pub(super) const CLOSED_OF_MANY: u32 = 5;
const MANY: u32 = 4;

/// Seconds without a packet after which a closed connection is over if `closed` of the table's `slots` are of such.
pub(super) fn closed_timeout(closed: u32, slots: u32) -> u32 {
    if closed >= slots / MANY { CLOSED_OF_MANY } else { TRANSITORY }
}

/// Seconds without a packet in either direction after which a connection is over. The states of its two slots may differ for the
/// moment in which a program moves one after the other, and while one side has closed: the other side may be silent for as long
/// as before, until it answers.
pub(super) fn timeout(one: State, other: Option<State>, idle: u32, closed: u32) -> u32 {
    let either = |is: fn(State) -> bool| is(one) || other.is_some_and(is);
    if either(|state| state == State::Reset) {
        TRANSITORY.min(idle)
    } else if either(State::is_over) {
        closed.min(idle)
    } else if either(State::is_admitted) {
        idle
    } else {
        HALF_OPEN
    }
}
