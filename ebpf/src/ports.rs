//! Source ports for connections whose own may be another's: those that share an address of the router's, and those that would
//! be answered as another connection of the same client is.
//!
//! A connection keeps its own port where nothing else with that source and destination has it (RFC 4787, section 4.2.1):
//! so a port is used again for every other destination. Where it is taken, the next one of that destination's turn comes
//! (RFC 6056, section 3.3.4, "double-hash port selection"): a counter, shared by the destinations of one hash, beyond an
//! offset that a secret hides. It goes round all ports, so every free one is found in the end, the first that is tried is
//! the one that was given longest ago, and what a packet costs is bounded, however few are left. A system port becomes another
//! system port before any other (RFC 4787, REQ-3).

use aya_ebpf::btf_maps::lpm_trie::Key;
use vipgate_abi::{
    Be32,
    flow::State,
    hash,
    service::{Kind, ServiceKey},
    snat::{CURSORS, FIRST_PORT, OWN_PORTS, PORTS, SYSTEM_PORTS},
};

use crate::{
    atomic,
    icmp::ICMP,
    maps::{BACKENDS, CONFIG, PORT_CURSORS, SERVICES},
    parse::has_ports,
    table,
    verifier::{bounded, counted},
};

/// True for protocols whose packets have a port, or an identifier that is as good.
#[inline(always)]
pub fn has_any(protocol: u8) -> bool {
    has_ports(protocol) || protocol == ICMP
}

/// Ports of each kind that are tried for one packet.
const TRIES: usize = 32;
/// The answer where none of them will do.
pub const NONE: u32 = u32::MAX;
/// In an answer: a closed or half-open connection has the port, and must give way.
pub const HELD: u32 = 1 << 16;
/// Where the words of a reply's key have the port in question: its destination's.
const SHIFT: u32 = 16;

/// The key words of a reply to another port.
#[inline(always)]
pub fn answered_at(rest: u64, port: u16) -> u64 {
    rest & !(0xffff << SHIFT) | (port as u64) << SHIFT
}

/// The port in a reply's key words.
#[inline(always)]
pub fn port_of(rest: u64) -> u16 {
    (rest >> SHIFT) as u16
}

/// A range of ports: its first one, and above 16 bits its last one.
pub type Range = u32;

const fn range(first: u16, last: u16) -> Range {
    first as u32 | (last as u32) << 16
}

/// What may be the own port of a connection that gets an address of the router's, but for a system port.
pub const OF_ROUTER: Range = range(FIRST_PORT, OWN_PORTS - 1);
/// The same where the client's address is kept.
pub const OF_CLIENT: Range = range(FIRST_PORT, u16::MAX);
const SYSTEM: Range = range(1, FIRST_PORT - 1);

/// A port for the connection whose reply has these key words, its own port in them: that, if it is of the range or a system port
/// and no flow is answered there, or else [another one](other_port).
#[inline(always)]
pub fn port([addresses, rest]: [u64; 2], range: Range, guest: Be32) -> u32 {
    let own = port_of(rest) as u32;
    let answer = ask(addresses, rest, if is_system(rest) { SYSTEM } else { range }, guest, 1);
    if answer == FREE {
        return own;
    }
    let other = other_port(addresses, rest, guest);
    if other == NONE && answer == YIELDING { HELD | own } else { other }
}

/// The same, but never its own port: one on which no flow is answered, or else one that is [`HELD`]. `guest`, if not 0: whose
/// connection it is, and its source is a VIP that has services: their ports are given to nobody else than whom they are
/// forwarded to.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn other_port(addresses: u64, rest: u64, guest: Be32) -> u32 {
    // As few numbers as can be: the stack has no room for more. What `guest` means here is above the tries.
    let (mut rest, mut yielding) = (rest, NONE);
    let begin = if is_system(rest) { 0 } else { TRIES };
    let mut tries = counted(if guest != 0 { SHARED | begin } else { begin });
    while tries & !SHARED < 2 * TRIES {
        rest = answered_at(rest, bounded(next_port(addresses, answered_at(rest, 0), range_of(tries)) as u16));
        let at = counted(tries);
        match ask(addresses, rest, range_of(at), (at & SHARED) as Be32, 0) {
            FREE => return port_of(rest) as u32,
            YIELDING => yielding = HELD | port_of(rest) as u32,
            _ => {}
        }
        tries += 1;
    }
    yielding
}

/// In [`other_port`]'s count of tries: the source has services.
const SHARED: usize = 1 << 7;

/// Where the port of so many tries is from: system ports first, where one is looked for.
#[inline(always)]
fn range_of(tries: usize) -> Range {
    if tries & !SHARED < TRIES { SYSTEM } else { OF_ROUTER }
}

/// True for a system port (RFC 6335, section 6) in a reply's key words.
#[inline(always)]
fn is_system(rest: u64) -> bool {
    u16::from_be(port_of(rest)) < FIRST_PORT && (rest >> 32) as u8 != ICMP
}

/// The next port in the turn of the destination that these key words name, without a port in them. A function of its own: what
/// it needs would make [`other_port`]'s stack too deep.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next_port(addresses: u64, others: u64, range: Range) -> u32 {
    let place = hash::words([addresses, others], seed());
    // SAFETY: aligned element of PORT_CURSORS, whose index is below their number.
    let turn =
        PORT_CURSORS.get_ptr_mut(place as u32 % CURSORS).map_or(0, |cursor| unsafe { atomic::fetch_add32(cursor, 1) });
    let number = if range == SYSTEM { SYSTEM_PORTS } else { PORTS };
    let port = (range as u16 as u32) + ((place >> 32) as u32).wrapping_add(turn).wrapping_rem(number);
    (port as u16).to_be() as u32
}

/// [`probe`]'s answers.
const TAKEN: u32 = 0;
const FREE: u32 = 1;
const YIELDING: u32 = 2;
/// [`probe_on`] knows.
const UNKNOWN: u32 = 3;

/// Whether the port of these key words can be given, if it is in the range. `keeps`, 1: it is the guest's own.
#[inline(always)]
fn ask(addresses: u64, rest: u64, range: Range, guest: Be32, keeps: u32) -> u32 {
    match probe(addresses, rest, range, guest, keeps) {
        UNKNOWN => probe_on(addresses, rest),
        answer => answer,
    }
}

/// [`ask`] by what is known of the port in its home.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn probe(addresses: u64, rest: u64, range: Range, guest: Be32, keeps: u32) -> u32 {
    let port = u16::from_be(port_of(rest)) as u32;
    if port < range & 0xffff
        || port > range >> 16
        || (guest != 0 && is_served(addresses, rest, if keeps != 0 { guest } else { 0 }))
    {
        return TAKEN;
    }
    let Some(config) = CONFIG.get(0) else {
        return TAKEN;
    };
    let hash = hash::words([addresses, rest], config.flow_seed);
    match table::search(addresses, rest, hash, config.bucket_mask) {
        table::ELSEWHERE => UNKNOWN,
        index => of_flow(index),
    }
}

/// The same for a port that can be given but for what is elsewhere: a function beside [`probe`], not within it, whose stack
/// would be too deep.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn probe_on(addresses: u64, rest: u64) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return TAKEN;
    };
    let hash = hash::words([addresses, rest], config.flow_seed);
    of_flow(table::search_elsewhere([addresses, rest], hash, config.bucket_mask))
}

/// The answer for a port by the slot of the flow that has it, or no slot.
#[inline(always)]
fn of_flow(index: u32) -> u32 {
    match table::slot(index).map(|slot| slot.mark.state()) {
        None => FREE,
        Some(state) if state as u8 <= State::Answered as u8 => YIELDING,
        Some(_) => TAKEN,
    }
}

#[inline(always)]
fn seed() -> u64 {
    CONFIG.get(0).map_or(0, |config| config.flow_seed)
}

/// True when the reply's destination serves the port that its key words have, and does not forward it to the same port of this
/// guest: what answers, and what the same peer begins, then is one connection (RFC 4787, section 4.1).
#[inline(always)]
fn is_served(addresses: u64, rest: u64, guest: Be32) -> bool {
    let key = ServiceKey::new((addresses >> 32) as u32, (rest >> 32) as u8, port_of(rest));
    let Some(service) = SERVICES.get(&Key::new(ServiceKey::EXACT, key)) else {
        return false;
    };
    let is_guests = guest != 0
        && service.kind == Kind::Forward as u8
        && service.port_shift == 0
        && BACKENDS.get(service.backend).is_some_and(|backend| backend.addr == guest);
    !is_guests
}
