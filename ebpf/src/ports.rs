//! Source ports for connections that get a source of the router's which others share.
//!
//! A connection keeps its own port where nothing else with that source and destination has it (RFC 4787, section 4.2.1):
//! so a port is used again for every other destination. Where it is taken, the next one of that destination's turn comes
//! (RFC 6056, section 3.3.4, "double-hash port selection"): a counter, shared by the destinations of one hash, beyond an
//! offset that a secret hides. It goes round all ports, so every free one is found in the end, the first that is tried is
//! the one that was given longest ago, and what a packet costs is bounded, however few are left.

use aya_ebpf::btf_maps::lpm_trie::Key;
use vipgate_abi::{
    flow::State,
    hash,
    service::ServiceKey,
    source::{CURSORS, FIRST_PORT, OWN_PORTS, PORTS},
};

use crate::{
    atomic,
    maps::{CONFIG, PORT_CURSORS, SERVICES},
    table,
};

/// Ports that are tried for one packet.
const TRIES: u32 = 32;
/// [`free_port`]'s answer where none of them will do.
pub const NONE: u32 = u32::MAX;
/// In [`free_port`]'s answer: a closed or half-open connection has the port, and must give way.
pub const HELD: u32 = 1 << 16;
/// Where the words of a reply's key have the port in question: its destination's.
pub const SHIFT: u32 = 16;

/// A port for the connection whose reply has these key words, its own port in them: one on which no flow is answered, or
/// else one that is [`HELD`]. `shared`, 1: the source is a VIP whose services' ports are not given away.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn free_port(addresses: u64, rest: u64, shared: u32) -> u32 {
    let others = rest & !(0xffff << SHIFT);
    let mut port = (rest >> SHIFT) as u16;
    let mut yielding = NONE;
    let mut tries = 0;
    while tries < TRIES {
        match probe(addresses, others | (port as u64) << SHIFT, shared) {
            FREE => return port as u32,
            YIELDING => yielding = HELD | port as u32,
            _ => {}
        }
        port = next_port(addresses, others) as u16;
        tries += 1;
    }
    yielding
}

/// The next port in the turn of the destination that these key words name, without a port in them. A function of its own: what
/// it needs would make [`free_port`]'s stack too deep, and most connections keep the port that they have.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next_port(addresses: u64, others: u64) -> u32 {
    let place = hash::words([addresses, others], seed());
    // SAFETY: aligned element of PORT_CURSORS, whose index is below their number.
    let turn =
        PORT_CURSORS.get_ptr_mut(place as u32 % CURSORS).map_or(0, |cursor| unsafe { atomic::fetch_add32(cursor, 1) });
    (FIRST_PORT + ((place >> 32) as u32).wrapping_add(turn).wrapping_rem(PORTS) as u16).to_be() as u32
}

/// [`probe`]'s answers.
const TAKEN: u32 = 0;
const FREE: u32 = 1;
const YIELDING: u32 = 2;

/// Whether the port of these key words can be given.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn probe(addresses: u64, rest: u64, shared: u32) -> u32 {
    let port = u16::from_be((rest >> SHIFT) as u16);
    if !(FIRST_PORT..OWN_PORTS).contains(&port) || (shared != 0 && is_served(addresses, rest)) {
        return TAKEN;
    }
    let words = [addresses, rest];
    let Some(config) = CONFIG.get(0) else {
        return TAKEN;
    };
    match table::state_of(words, hash::words(words, config.flow_seed), config.bucket_mask) {
        None => FREE,
        Some(state) if state as u8 <= State::Answered as u8 => YIELDING,
        Some(_) => TAKEN,
    }
}

#[inline(always)]
fn seed() -> u64 {
    CONFIG.get(0).map_or(0, |config| config.flow_seed)
}

/// True when the reply's destination serves the port that its key words have.
#[inline(always)]
fn is_served(addresses: u64, rest: u64) -> bool {
    let key = ServiceKey::new((addresses >> 32) as u32, (rest >> 32) as u8, (rest >> SHIFT) as u16);
    SERVICES.get(&Key::new(ServiceKey::EXACT, key)).is_some()
}
