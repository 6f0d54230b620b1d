//! Connection states, TCP's and all others': what a packet that is not plain data changes in its connection's two slots.

use vipgate_abi::{
    flow::{Mark, State},
    load::Load,
};

use crate::{
    load::{self, Counter},
    parse::{ACK, FIN, Headers, RST, SYN},
    service,
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

/// True when the packet opens a new connection where a closed one still lies: a reused 5-tuple starts anew.
#[inline(always)]
pub fn starts_anew(headers: &Headers, state: State, reply: bool) -> bool {
    !reply && state as u8 == State::Closed as u8 && headers.tcp_flags & (SYN | ACK) == SYN
}

/// Follows the connection: the packet hit the slot `own`, of `backend`, whose other direction is at `peer`. False: the
/// listener is full, and the packet that would complete the handshake must not arrive.
#[inline(always)]
pub fn follow(headers: &Headers, own: &Slot, peer: u32, backend: u32, reply: bool) -> bool {
    let what = headers.tcp_flags as u32 | (headers.is_datagram() as u32 * IS_DATAGRAM) | (reply as u32 * IS_REPLY);
    opaque(follow_at(own.index, own.mark.0, peer, backend, what)) != REFUSED
}

/// [`follow_at`]'s answers.
const FOLLOWED: u32 = 0;
const REFUSED: u32 = 1;

/// Above the TCP flags.
const IS_DATAGRAM: u32 = 0x100;
const IS_REPLY: u32 = 0x200;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow_at(own: u32, mark: u32, peer: u32, backend: u32, what: u32) -> u32 {
    if let Some(slot) = table::slot(own) {
        let own = Slot { mark: Mark(mark), ..slot };
        let reply = what & IS_REPLY != 0;
        let peer = Peer(table::peer(own.index, peer, reply));
        // SAFETY: `flow` points into FLOWS.
        let counter = Counter { backend, generation: unsafe { (*own.flow).generation } };
        // What the caller read of the flow, and whom that named as its peer, may be of who has just claimed the slot (rule 2).
        if !own.holds() {
            return opaque(FOLLOWED);
        }
        if what & IS_DATAGRAM != 0 {
            follow_datagram(&own, &peer, counter);
        } else if !follow_tcp(what as u8, &own, &peer, counter, reply) {
            return opaque(REFUSED);
        }
    }
    opaque(FOLLOWED)
}

/// A connection's other direction; none where that was evicted: its slot may be another connection's by now.
struct Peer(Option<Slot>);

impl Peer {
    /// [`Slot::move_to`].
    #[inline(always)]
    fn move_to(&self, state: State) -> Option<State> {
        self.0.as_ref()?.move_to(state)
    }

    #[inline(always)]
    fn is_closing(&self) -> bool {
        self.0.as_ref().is_some_and(|slot| slot.mark.state() as u8 == State::Closing as u8)
    }
}

/// The first answer makes a datagram flow more than an embryo.
#[inline(always)]
fn follow_datagram(own: &Slot, peer: &Peer, counter: Counter) {
    own.move_to(State::Datagrams);
    load::account(counter, peer.move_to(State::Datagrams), State::Datagrams);
}

/// A connection's states after RFC 9293, section 3.3.2, as far as a middle box can see them. False: see [`follow`].
#[inline(always)]
fn follow_tcp(flags: u8, own: &Slot, peer: &Peer, counter: Counter, reply: bool) -> bool {
    let state = own.mark.state() as u8;
    let both = if flags & RST != 0 {
        State::Closed
    } else if flags & SYN != 0 {
        if !(reply && flags & ACK != 0 && state == State::Opening as u8) {
            return true;
        }
        State::Answered
    } else if flags & FIN != 0 {
        // An embryo stays one: a closing connection is never evicted, and a flood could make any number of those.
        if !own.mark.state().is_admitted() {
            return true;
        }
        if !peer.is_closing() {
            let left = own.move_to(State::Closing);
            if !reply {
                load::account(counter, left, State::Closing);
            }
            return true;
        }
        State::Closed
    } else if !reply && state == State::Answered as u8 && flags & ACK != 0 {
        return establish(own, peer, counter);
    } else {
        return true;
    };
    let (own_left, peer_left) = (own.move_to(both), peer.move_to(both));
    load::account(counter, if reply { peer_left } else { own_left }, both);
    true
}

/// The client completes the handshake, and so becomes one of its listener's connections. Where the listener is full, the
/// packet is lost, as it is when a listening socket's queue is full: the backend repeats its SYN-ACK, the client its
/// answer, and there may be room then.
#[inline(always)]
fn establish(own: &Slot, peer: &Peer, counter: Counter) -> bool {
    // SAFETY: `flow` points into FLOWS; of a flow that left its slot meanwhile, `move_to` finds out.
    let Ok(service) = service::admit(unsafe { &(*own.flow).key }, counter.backend) else {
        return false;
    };
    let left = own.move_to(State::Established).filter(|left| !left.is_admitted());
    // Another packet did it, or all of its generation has been taken off.
    if !left.is_some_and(|left| load::add(counter, Load::change(left, State::Established))) {
        service::leave(service);
    }
    peer.move_to(State::Established);
    true
}
