//! Fragments: the first one's ports are remembered for those that follow it (RFC 791, section 3.2).
//!
//! A fragment that overtakes its packet's first one cannot be told whose it is: it goes up the stack, and the packet is
//! lost as if the fragment were. Nothing is held back, so that a flood of fragments has nothing to fill.

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

/// Jiffies after which a first fragment's ports are not believed any more: 16 seconds at 250 a second.
const LIFETIME: u32 = 4096;

/// The ports of a later fragment's packet, source in the upper 16 bits; `UNKNOWN`: its first fragment has not come.
pub const UNKNOWN: u64 = u64::MAX;

/// The packet that a fragment is of: identification in the upper 16 bits, protocol in the lower 8.
#[inline(always)]
pub fn packet(id: u16, protocol: u8) -> u32 {
    (id as u32) << 16 | protocol as u32
}

#[inline(always)]
fn key(src: Be32, dst: Be32, packet: u32) -> FragmentKey {
    FragmentKey { src, dst, id: (packet >> 16) as u16, domain: 0, protocol: packet as u8, reserved: [0; 3] }
}

/// Remembers the ports of a first fragment that belongs to a flow, or answers who came to a guest's own address: nobody else's
/// fill the table.
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
