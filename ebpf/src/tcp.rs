//! Connection states, TCP's and all others': what a packet that is not plain data changes in its connection's two slots.

use vipgate_abi::{
    config::Config,
    flow::{Mark, State, TOUCH_PERIOD},
    load::Load,
};

use crate::{
    clock::jiffies,
    count,
    load::{self, Counter},
    maps::CONFIG,
    parse::{ACK, FIN, Headers, RST, SYN},
    sample,
    service::{self, Limit},
    table::{self, Slot},
    verifier::opaque,
};

/// True when the packet changes nothing: data on an established connection, or a datagram that is no first answer. So
/// clients whom nobody answers cost no look at the other direction's flow.
#[inline(always)]
pub fn is_plain(headers: &Headers, state: State, reply: bool) -> bool {
    if headers.is_datagram() {
        !reply || state as u8 != State::Opening as u8
    } else {
        state as u8 == State::Established as u8 && headers.tcp_flags & (SYN | FIN | RST) == 0
    }
}

/// What becomes of the packet: it goes where its flow says.
pub const FOLLOWED: u32 = 0;
/// The listener is full: what would complete the handshake must not arrive.
pub const REFUSED: u32 = 1;
/// It opens a new connection where one has ended and is silent: a 5-tuple that is used again.
pub const NEW_CONNECTION: u32 = 2;
/// The listener is full, but what answers a datagram may have the place of another connection.
pub const CROWDED: u32 = 3;

/// Follows the connection: the packet hit the slot `own`, of `backend`, whose other direction is at `peer`.
#[inline(always)]
pub fn follow(headers: &Headers, own: &Slot, peer: u32, backend: u32, reply: bool) -> u32 {
    let what = headers.tcp_flags as u32 | (headers.is_datagram() as u32 * IS_DATAGRAM) | (reply as u32 * IS_REPLY);
    opaque(follow_at(own.index, own.mark.0, peer, backend, what))
}

/// [`follow`] where the listener was [`CROWDED`]: another connection's place may be free by now.
#[inline(always)]
pub fn follow_crowded(own: &Slot, peer: u32, backend: u32) -> u32 {
    let place = sample::evict_idlest(own.index, jiffies());
    if place == sample::NOWHERE {
        return REFUSED;
    }
    let what = IS_DATAGRAM | IS_REPLY | IS_FREED | place << PLACE;
    opaque(follow_at(own.index, own.mark.0, peer, backend, what))
}

/// Above the TCP flags.
const IS_DATAGRAM: u32 = 0x100;
const IS_REPLY: u32 = 0x200;
/// Another connection gave way: from bit [`PLACE`] on its place.
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
    // Where the other direction was evicted, its slot may be another connection's by now.
    let peer = table::peer(own.index, peer, reply).unwrap_or(Slot::NOWHERE);
    // SAFETY: `flow` points into FLOWS.
    let counter = Counter { backend, generation: unsafe { (*own.flow).generation } };
    // What the caller read of the flow, and whom that named as its peer, may be of who has just claimed the slot (rule 2).
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

/// The first answer makes a datagram flow more than an embryo. It is stored as seen as long ago as any that talks on may be, so
/// that who has asked once, and no more, gives way before those; the next packet of either side stores its own time.
#[inline(always)]
fn follow_datagram(own: &Slot, peer: &Slot, counter: Counter, freed: Option<u32>) -> u32 {
    // SAFETY: `flow` points into FLOWS; of a flow that left its slot meanwhile, `move_to` finds out.
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

/// A connection's states after RFC 9293, section 3.3.2, as far as a middle box can see them.
#[inline(always)]
fn follow_tcp(flags: u8, own: &Slot, peer: &Slot, counter: Counter, reply: bool) -> u32 {
    let state = own.mark.state() as u8;
    if flags & RST != 0 {
        // A refusal ends nothing that a guess could have ended: the client may try elsewhere at once.
        let to = if own.mark.state().is_admitted() { State::Reset } else { State::Closed };
        close(own, peer, counter, reply, to, reply && state == State::Opening as u8);
    } else if flags & SYN != 0 {
        if reply && flags & ACK != 0 && state == State::Opening as u8 {
            own.move_to(State::Answered);
            peer.move_to(State::Answered);
        }
    } else if flags & FIN != 0 {
        // An embryo stays one: a closing connection is never evicted, and a flood could make any number of those.
        if own.mark.state().is_admitted() {
            if is_in(peer, State::Closing) {
                close(own, peer, counter, reply, State::Closed, false);
            } else {
                own.move_to(State::Closing);
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

/// Both directions are over, from now on: that is stored first, so that none seems to be over since long ago. Unless
/// `is_past`: then a moment has passed already.
#[inline(always)]
fn close(own: &Slot, peer: &Slot, counter: Counter, reply: bool, to: State, is_past: bool) {
    let now = jiffies();
    let at = if is_past { now.wrapping_sub(grace_period()).wrapping_sub(1) } else { now };
    table::touch_over(own.index, at);
    table::touch_over(peer.index, at);
    let (own_left, peer_left) = (own.move_to(to), peer.move_to(to));
    load::account(counter, if reply { peer_left } else { own_left }, to);
}

/// Jiffies after which what two sides send is no more what was on its way when their connection was closed.
#[inline(always)]
fn grace_period() -> u32 {
    CONFIG.get(0).map_or(0, Config::second)
}

/// A segment of a connection that is [over](State::is_over), which whoever said so may have guessed (RFC 5961, section 1.2; RFC
/// 7857, section 2.2).
///
/// A SYN goes to the old connection's backend after a reset, and while that spoke a moment ago: one that still has the connection
/// knows that it is forged (RFC 5961, section 4), one that hasn't answers it.
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

/// The backend has answered a new SYN of the client's.
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

/// One side sends what is no more on its way since the close. Where the other one does, too, the connection lives, and counts
/// again: it was let in before.
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

/// The client completes the handshake, and so becomes one of its listener's connections. Where the listener is full, the
/// packet is lost, as it is when a listening socket's queue is full: the backend repeats its SYN-ACK, the client its
/// answer, and there may be room then.
#[inline(always)]
fn establish(own: &Slot, peer: &Slot, counter: Counter) -> bool {
    // SAFETY: `flow` points into FLOWS; of a flow that left its slot meanwhile, `move_to` finds out.
    let (vip, protocol, port) = unsafe { ((*own.flow).key.dst, (*own.flow).key.protocol, (*own.flow).key.dport) };
    let limit = service::limit(vip, protocol, port, counter.backend);
    admit(own, peer, State::Established, counter, limit)
}

/// Both directions of a connection get to a state that counts against its service's limit (`None`: it has no service any more).
/// False: that is full.
#[inline(always)]
fn admit(first: &Slot, answers: &Slot, state: State, counter: Counter, limit: Option<Limit>) -> bool {
    if let Some(limit) = limit
        && !service::admit(limit)
    {
        return false;
    }
    let left = first.move_to(state).filter(|left| !left.is_admitted());
    // Another packet did it, or all of its generation has been taken off.
    if !left.is_some_and(|left| load::add(counter, Load::change(left, state)))
        && let Some(limit) = limit
    {
        service::leave(limit.service);
    }
    answers.move_to(state);
    true
}
