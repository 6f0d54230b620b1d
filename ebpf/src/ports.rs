//! Source ports for connections that cannot always keep their own: those that share an address of the router, and those
//! whose answers would have the same key as another connection's.
//!
//! A connection keeps its own port if no other connection with that source and destination has it (RFC 4787, section
//! 4.2.1): ports are reused for every other destination. If it is taken, the destination's next port is tried (RFC 6056,
//! section 3.3.4, "double-hash port selection"): a counter, shared by the destinations with the same hash, plus a secret
//! offset. The counter cycles through all ports. So every free port is found in the end, the one that was given longest ago
//! is tried first, and the cost of a packet is bounded, however few ports are free. A system port becomes another system
//! port before any other (RFC 4787, REQ-3).

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

/// True for protocols with ports, or with an identifier that serves as one.
#[inline(always)]
pub fn has_any(protocol: u8) -> bool {
    has_ports(protocol) || protocol == ICMP
}

/// Number of ports of each kind that are tried for one packet.
const TRIES: usize = 32;
/// Returned if no port was found.
pub const NONE: u32 = u32::MAX;
/// In what [`port`] returns: a closed or half-open connection has the port, and must be replaced.
pub const HELD: u32 = 1 << 16;
/// Shift of the port in the words of a reply's key: its destination port.
const SHIFT: u32 = 16;

/// The key words of the reply with another destination port.
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

/// The ports, besides system ports, that a connection with the router's address may keep.
pub const OF_ROUTER: Range = range(FIRST_PORT, OWN_PORTS - 1);
/// The same for a connection that keeps the client's address.
pub const OF_CLIENT: Range = range(FIRST_PORT, u16::MAX);
const SYSTEM: Range = range(1, FIRST_PORT - 1);

/// A port for the connection whose reply has these key words, with its own port. It keeps that if it is in the range or a
/// system port and no flow has that key; else it gets [another one](other_port).
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

/// The same, but never its own port: a free one, or else one that is [`HELD`]. `guest` is 0 unless the source is a VIP that
/// has services; then it is the guest whose connection this is. A service's port is only given to the guest to which it is
/// forwarded.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn other_port(addresses: u64, rest: u64, guest: Be32) -> u32 {
    // As few variables as possible, for want of stack. Whether `guest` is set is in a bit of `tries`.
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

/// In [`other_port`]'s `tries`: the source has services.
const SHARED: usize = 1 << 7;

/// The range for the next try: system ports come first, if one is wanted.
#[inline(always)]
fn range_of(tries: usize) -> Range {
    if tries & !SHARED < TRIES { SYSTEM } else { OF_ROUTER }
}

/// True for a system port (RFC 6335, section 6) in a reply's key words.
#[inline(always)]
fn is_system(rest: u64) -> bool {
    u16::from_be(port_of(rest)) < FIRST_PORT && (rest >> 32) as u8 != ICMP
}

/// The next port for the destination that these key words, without a port, name. A function of its own, because its
/// variables would make [`other_port`]'s stack too deep.
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

/// What [`probe`] returns.
const TAKEN: u32 = 0;
const FREE: u32 = 1;
const YIELDING: u32 = 2;
/// [`probe_on`] has to decide.
const UNKNOWN: u32 = 3;

/// Whether the port in these key words can be assigned. `keeps` is 1 for the guest's own port.
#[inline(always)]
fn ask(addresses: u64, rest: u64, range: Range, guest: Be32, keeps: u32) -> u32 {
    match probe(addresses, rest, range, guest, keeps) {
        UNKNOWN => probe_on(addresses, rest),
        answer => answer,
    }
}

/// [`ask`] by the flows in the key's home bucket.
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

/// [`ask`] by the flows outside the home bucket. Not called by [`probe`], whose stack would be too deep.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn probe_on(addresses: u64, rest: u64) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return TAKEN;
    };
    let hash = hash::words([addresses, rest], config.flow_seed);
    of_flow(table::search_elsewhere([addresses, rest], hash, config.bucket_mask))
}

/// The answer by the slot of the flow that has the port, if any.
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

/// True if a service has the port in the reply's key words, unless it forwards that to the same port of this guest: then
/// answers to the guest, and connections of the same peer to it, have the same mapping (RFC 4787, section 4.1).
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
