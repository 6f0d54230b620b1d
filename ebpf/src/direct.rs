//! Connections to guests' own addresses, past any VIP, which the router forwards like any other. A guest's answers on such
//! a connection keep their source, while connections that the guest begins get another one (`outward`), as with connection
//! tracking.
//!
//! The stack forwards both directions, through its filters. Only the connection's key is kept (`vipgate_abi::maps::DIRECT`).

use vipgate_abi::{backend, flow::FlowKey};

use crate::{
    clock::jiffies,
    icmp::ICMP,
    maps::{CONFIG, DIRECT},
    outward,
    parse::TCP,
    types::Arrival,
    verifier::opaque,
};

/// Jiffies after which a connection's time is stored again.
const NOTED: u32 = 1024;

/// Notes a packet to a guest's own address, if it came by the device at which that guest's packets get another source.
/// Returns true if it did.
#[inline(always)]
pub fn note(device: u32, key: &FlowKey) -> bool {
    let [addresses, rest] = FlowKey { src: key.dst, dst: key.src, sport: key.dport, dport: key.sport, ..*key }.words();
    opaque(note_direct(device, addresses, rest)) != 0
}

/// Takes the key of the answers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_direct(device: u32, addresses: u64, rest: u64) -> u32 {
    let key = FlowKey::of_words([addresses, rest]);
    if outward::snat_rule(device, key.src).is_none() {
        return opaque(0);
    }
    let now = jiffies();
    // SAFETY: a value of DIRECT; one that is being evicted still reads as some time.
    let is_noted = DIRECT.get_ptr(&key).is_some_and(|seen| now.wrapping_sub(unsafe { *seen }) < NOTED);
    // An entry that does not fit counts as forgotten.
    opaque(1 | (!is_noted && DIRECT.insert(&key, &now, 0).is_ok()) as u32)
}

/// True for a guest's answer to a client of its own address, by whichever device.
#[inline(always)]
pub fn is_answer(key: &FlowKey, tcp_flags: u16) -> bool {
    // A SYN or an ICMP request begins a connection.
    let arrival = Arrival { key: *key, hash: 0, now: 0, tcp_flags, attempt: 0 };
    if matches!(key.protocol, TCP | ICMP) && arrival.opens() {
        return false;
    }
    is_known(key)
}

/// True if packets with this key answer a client of a guest's own address.
#[inline(always)]
pub fn is_known(key: &FlowKey) -> bool {
    let [addresses, rest] = key.words();
    opaque(is_direct(addresses, rest)) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_direct(addresses: u64, rest: u64) -> u32 {
    let key = FlowKey::of_words([addresses, rest]);
    let (Some(seen), Some(config)) = (DIRECT.get_ptr(&key), CONFIG.get(0)) else {
        return opaque(0);
    };
    // SAFETY: as above.
    let age = jiffies().wrapping_sub(unsafe { *seen });
    let lifetime = backend::idle_timeout_of(key.protocol) as u64 * 1_000_000_000;
    opaque((age as u64 * config.tick as u64 <= lifetime) as u32)
}
