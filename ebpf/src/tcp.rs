//! Connection states, for TCP and all other protocols: what packets that are not plain data change in their connection's
//! two slots.

use vipgate_abi::{
    config::Config,
    flow::{Mark, State, TOUCH_PERIOD},
    load::Load,
};

use crate::{
    clock::jiffies,
    count,
    load::{self, Counter},
    maps::{BACKENDS, CONFIG},
    parse::{ACK, FIN, Headers, RST, SYN},
    sample,
    service::{self, Limit},
    table::{self, Slot},
    verifier::opaque,
};

/// True if the packet changes no state: data on an established connection, or a datagram that is no first answer. So unanswered
/// clients cost no lookup of the other direction's flow.
#[inline(always)]
pub fn is_plain(headers: &Headers, state: State, reply: bool) -> bool {
    if headers.is_datagram() {
        !reply || state as u8 != State::Opening as u8
    } else {
        state as u8 == State::Established as u8 && headers.tcp_flags & (SYN | FIN | RST) == 0
    }
}

/// The packet goes where its flow says.
pub const FOLLOWED: u32 = 0;
/// The listener is full: the packet that would complete the handshake must not arrive.
pub const REFUSED: u32 = 1;
/// The packet opens a new connection with the 5-tuple of one that is over and silent.
pub const NEW_CONNECTION: u32 = 2;
/// The listener is full, but this first answer to a datagram may take the place of another connection.
pub const CROWDED: u32 = 3;
/// The backend has no connection any more, and may not have a new one.
pub const OVER: u32 = 4;

/// Follows the connection's state. The packet hit the slot `own`, of `backend`, whose other direction is at `peer`.
#[inline(always)]
pub fn follow(headers: &Headers, own: &Slot, peer: u32, backend: u32, reply: bool) -> u32 {
    let what = headers.tcp_flags as u32 | (headers.is_datagram() as u32 * IS_DATAGRAM) | (reply as u32 * IS_REPLY);
    opaque(follow_at(own.index, own.mark.0, peer, backend, what))
}

/// [`follow`] after [`CROWDED`]: evicts another connection for its place.
#[inline(always)]
pub fn follow_crowded(own: &Slot, peer: u32, backend: u32) -> u32 {
    let place = sample::evict_idlest(own.index, jiffies());
    if place == sample::NOWHERE {
        return REFUSED;
    }
    let what = IS_DATAGRAM | IS_REPLY | IS_FREED | place << PLACE;
    opaque(follow_at(own.index, own.mark.0, peer, backend, what))
}

/// In [`follow_at`]'s `what`, above the TCP flags.
const IS_DATAGRAM: u32 = 0x100;
const IS_REPLY: u32 = 0x200;
/// Another connection was evicted; its place is in the bits from [`PLACE`] on.
const IS_FREED: u32 = 0x400;
const PLACE: u32 = 16;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow_at(own: u32, mark: u32, peer: u32, backend: u32, what: u32) -> u32 {
    let Some(slot) = table::slot(own) else {
        return opaque(FOLLOWED);
    };
    let own = Slot { mark: Mark(mark), ..slot };
    let reply = what & IS_REPLY != 0;
    // If the other direction was evicted, its slot may belong to another connection by now.
    let peer = table::peer(own.index, peer, reply).unwrap_or(Slot::NOWHERE);
    // SAFETY: `flow` points into FLOWS.
    let counter = Counter { backend, generation: unsafe { (*own.flow).generation } };
    // What the caller read of the flow may belong to a flow that has just claimed the slot (rule 2).
    if !own.holds() {
        return opaque(FOLLOWED);
    }
    opaque(if what & IS_DATAGRAM != 0 {
        follow_datagram(&own, &peer, counter, (what & IS_FREED != 0).then_some(what >> PLACE))
    } else if own.mark.state().is_over() {
        follow_closed(what as u8, &own, &peer, counter, reply)
    } else {
        follow_tcp(what as u8, &own, &peer, counter, reply)
    })
}

/// The first answer ends a datagram flow's half-open state. Its stored time is as old as that of any active flow may be, so
/// that a client which asked only once is evicted before active ones. The next packet of either side stores its own time.
#[inline(always)]
fn follow_datagram(own: &Slot, peer: &Slot, counter: Counter, freed: Option<u32>) -> u32 {
    // SAFETY: `flow` points into FLOWS; if it left its slot meanwhile, `move_to` finds out.
    let (vip, protocol, port) = unsafe { ((*own.flow).new_src, (*own.flow).key.protocol, (*own.flow).new_sport) };
    let limit = service::limit(vip, protocol, port, counter.backend);
    if !admit(peer, own, State::Datagrams, counter, limit) {
        return CROWDED;
    }
    let at = jiffies().wrapping_sub(1 << TOUCH_PERIOD);
    table::touch(own.index, at);
    table::touch(peer.index, at);
    if let Some(limit) = limit
        && limit.most != 0
    {
        sample::record(own, limit, freed);
    }
    FOLLOWED
}

/// A connection's states after RFC 9293, section 3.3.2, as far as a middlebox can see them.
#[inline(always)]
fn follow_tcp(flags: u8, own: &Slot, peer: &Slot, counter: Counter, reply: bool) -> u32 {
    let state = own.mark.state() as u8;
    if flags & RST != 0 {
        // A reset that answers a SYN refuses the connection: nothing was established that a forged reset could end, and the
        // client may retry at once.
        let to = if own.mark.state().is_admitted() { State::Reset } else { State::Closed };
        close(own, peer, counter, reply, to, reply && state == State::Opening as u8);
    } else if flags & SYN != 0 {
        if reply && flags & ACK != 0 && state == State::Opening as u8 {
            own.move_to(State::Answered);
            peer.move_to(State::Answered);
        }
    } else if flags & FIN != 0 {
        // A half-open connection stays half-open: a closing one is never evicted, and a flood could create any number of those.
        if own.mark.state().is_admitted() {
            let has_ended = is_in(peer, State::Closing) || {
                own.move_to(State::Closing);
                // Of two FINs that two CPUs see at once, at least one finds the other's change.
                peer.state() as u8 == State::Closing as u8
            };
            if has_ended {
                close(own, peer, counter, reply, State::Closed, false);
            }
        }
    } else if !reply && state == State::Answered as u8 && flags & ACK != 0 && !establish(own, peer, counter) {
        return REFUSED;
    }
    FOLLOWED
}

#[inline(always)]
fn is_in(slot: &Slot, state: State) -> bool {
    slot.mark.state() as u8 == state as u8
}

/// Both directions are over from now on. The time is stored first, so that neither seems to have been over for long. If
/// `is_past`, the grace period counts as passed.
#[inline(always)]
fn close(own: &Slot, peer: &Slot, counter: Counter, reply: bool, to: State, is_past: bool) {
    let now = jiffies();
    let at = if is_past { now.wrapping_sub(grace_period()).wrapping_sub(1) } else { now };
    table::touch_over(own.index, at);
    table::touch_over(peer.index, at);
    let (own_left, peer_left) = (own.move_to(to), peer.move_to(to));
    load::account(counter, if reply { peer_left } else { own_left }, to);
}

/// Jiffies after which packets of a closed connection cannot have been in flight when it was closed.
#[inline(always)]
fn grace_period() -> u32 {
    CONFIG.get(0).map_or(0, Config::second)
}

/// A segment of a connection that is [over](State::is_over), perhaps because of a forged segment (RFC 5961, section 1.2;
/// RFC 7857, section 2.2).
///
/// After a reset, or if the backend sent something within the grace period, a SYN goes to the old connection's backend: if
/// that still has the connection, it recognises the SYN as forged (RFC 5961, section 4); if not, it answers. The answer of a
/// backend that takes no new connections is dropped: it proves that the old connection is gone, and the client's next SYN
/// goes elsewhere.
#[inline(always)]
fn follow_closed(flags: u8, own: &Slot, peer: &Slot, counter: Counter, reply: bool) -> u32 {
    let control = flags & (SYN | RST | FIN);
    let (first, answers) = if reply { (peer, own) } else { (own, peer) };
    let now = jiffies();
    let is_reset = is_in(own, State::Reset) || is_in(peer, State::Reset);
    if control == SYN {
        if !reply && flags & ACK == 0 && !is_reset && answers.age(now) > grace_period() {
            return NEW_CONNECTION;
        }
        if reply && flags & ACK != 0 {
            if BACKENDS.get(counter.backend).is_some_and(|backend| backend.drains != 0) {
                end(own, peer, now);
                return OVER;
            }
            reopen(first, answers, counter, now);
        }
    } else if control & RST != 0 {
        if is_in(own, State::Resumed) || is_in(peer, State::Resumed) {
            close(own, peer, counter, reply, if is_reset { State::Reset } else { State::Closed }, false);
        }
    } else if control == 0 {
        if first.age(now) <= grace_period() {
            table::touch_over(answers.index, now);
        } else {
            resume(own, peer, [first, answers], counter, now);
        }
    }
    FOLLOWED
}

/// The backend has answered the client's new SYN.
#[inline(always)]
fn reopen(first: &Slot, answers: &Slot, counter: Counter, now: u32) {
    answers.revive(State::Closed, State::Answered);
    if let Some(left) = first.revive(State::Closed, State::Answered) {
        load::account(counter, Some(left), State::Answered);
        count::connection(counter.backend);
    }
    table::touch(first.index, now);
    table::touch(answers.index, now);
}

/// The old connection is gone: the next SYN opens a new one.
#[inline(always)]
fn end(own: &Slot, peer: &Slot, now: u32) {
    let past = now.wrapping_sub(grace_period()).wrapping_sub(1);
    for slot in [own, peer] {
        slot.revive(State::Reset, State::Closed);
        table::touch_over(slot.index, past);
    }
}

/// One side sends after the grace period. If the other side does, too, the connection is alive, and is counted again
/// without asking the limit: it was admitted before.
#[inline(always)]
fn resume(own: &Slot, peer: &Slot, [first, answers]: [&Slot; 2], counter: Counter, now: u32) {
    if own.revive(State::Closed, State::Resumed).is_some() {
        table::touch_over(answers.index, now);
    }
    if is_in(peer, State::Resumed) || peer.mark.state().is_admitted() {
        load::account(counter, first.revive(State::Resumed, State::Established), State::Established);
        answers.revive(State::Resumed, State::Established);
        table::touch(first.index, now);
        table::touch(answers.index, now);
    }
}

/// The client completes the handshake, and the connection counts for its listener. If the listener is full, the
/// packet is dropped, as when a listening socket's queue is full: the backend retransmits its SYN-ACK, the client its
/// answer, and there may be room then.
#[inline(always)]
fn establish(own: &Slot, peer: &Slot, counter: Counter) -> bool {
    // SAFETY: `flow` points into FLOWS; if it left its slot meanwhile, `move_to` finds out.
    let (vip, protocol, port) = unsafe { ((*own.flow).key.dst, (*own.flow).key.protocol, (*own.flow).key.dport) };
    let limit = service::limit(vip, protocol, port, counter.backend);
    admit(own, peer, State::Established, counter, limit)
}

/// Changes both directions of a connection to a state that counts against its service's limit. `limit` is `None` if the
/// service is gone. False if the service is full.
#[inline(always)]
fn admit(first: &Slot, answers: &Slot, state: State, counter: Counter, limit: Option<Limit>) -> bool {
    if let Some(limit) = limit
        && !service::admit(limit)
    {
        return false;
    }
    let left = first.move_to(state).filter(|left| !left.is_admitted());
    // Another packet did it, or the controller has uncounted the whole generation.
    if !left.is_some_and(|left| load::add(counter, Load::change(left, state)))
        && let Some(limit) = limit
    {
        service::leave(limit.service);
    }
    answers.move_to(state);
    true
}
