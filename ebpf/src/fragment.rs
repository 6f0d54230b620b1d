//! Fragments: the first one's ports are remembered for those that follow it (RFC 791, section 3.2).
//!
//! A fragment that overtakes its packet's first one cannot be assigned to a flow: it goes up the stack, and its packet is
//! lost. Fragments are never held back, so a flood of them has no buffer to fill.

use vipgate_abi::{
    Be32,
    fragment::{FragmentKey, FragmentPorts},
};

use crate::{
    clock::jiffies,
    maps::FRAGMENTS,
    packet::{ETH_LEN, load},
    parse::Headers,
    verifier::opaque,
};

/// Jiffies for which a first fragment's ports are valid: 16 seconds at 250 a second.
const LIFETIME: u32 = 4096;

/// What [`recall_ports`] returns if the packet's first fragment has not come.
pub const UNKNOWN: u64 = u64::MAX;

/// Names a fragment's packet: identification in the upper 16 bits, protocol in the lower 8.
#[inline(always)]
pub fn packet(id: u16, protocol: u8) -> u32 {
    (id as u32) << 16 | protocol as u32
}

#[inline(always)]
fn key(src: Be32, dst: Be32, packet: u32) -> FragmentKey {
    FragmentKey { src, dst, id: (packet >> 16) as u16, domain: 0, protocol: packet as u8, reserved: [0; 3] }
}

/// Remembers the ports of a first fragment. Only for fragments of a flow, and for answers to clients of a guest's own
/// address: others must not fill the table.
#[inline(always)]
pub fn remember(headers: &Headers) {
    let key = &headers.key;
    // SAFETY: within the IPv4 header's fixed part, whose bounds parse has checked.
    let packet = packet(unsafe { load(headers.data + ETH_LEN + 4) }, key.protocol);
    opaque(remember_ports(key.src, key.dst, packet, (key.sport as u32) << 16 | key.dport as u32));
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_ports(src: u32, dst: u32, packet: u32, ports: u32) -> u32 {
    let ports = FragmentPorts { sport: (ports >> 16) as u16, dport: ports as u16, seen: jiffies() };
    opaque(FRAGMENTS.insert(&key(src, dst, packet), &ports, 0).is_ok() as u32)
}

/// The ports of a later fragment's packet, the source port in the upper 16 bits, or [`UNKNOWN`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn recall_ports(src: u32, dst: u32, packet: u32) -> u64 {
    let Some(ports) = FRAGMENTS.get_ptr(&key(src, dst, packet)) else {
        return UNKNOWN;
    };
    // SAFETY: a value of FRAGMENTS; one that is being evicted still reads as some packet's ports, and its age is checked.
    let ports = unsafe { *ports };
    if jiffies().wrapping_sub(ports.seen) > LIFETIME {
        return UNKNOWN;
    }
    (ports.sport as u64) << 16 | ports.dport as u64
}
