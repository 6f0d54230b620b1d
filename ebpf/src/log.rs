//! Log records of packets that the programs drop or leave to the stack, for reasons that an operator may want to know.
//!
//! A record goes through aya-log's ring buffer to the controller, which logs it with the names of the resources concerned.
//! The configuration selects the reasons ([`Config::log`]). Each reason is logged at most once a second, over all CPUs: in
//! a flood, a dropped packet costs one comparison. Forwarded packets never come here.
//!
//! [`Config::log`]: vipgate_abi::config::Config::log

use core::ptr;

use aya_log_ebpf::info;
use vipgate_abi::{
    Be16, Be32,
    counters::{Reason, Severity},
};

use crate::{
    atomic, clock,
    maps::{CONFIG, LAST_TOLD},
    packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address},
    parse::{FRAGMENT_OFFSET, IPV4, ethertype, has_ports},
    verifier::opaque,
    vlan::behind_tag,
};

/// Nanoseconds between two records with one reason.
const PERIOD: u64 = 1_000_000_000;

/// Logs a packet with this reason, if the configuration selects it.
#[inline(always)]
pub fn record<P: Packet>(packet: &P, reason: Reason) {
    // Most packets that are not ours need no lookup of the configuration.
    if Reason::at_least(Severity::Debug) & reason.bit() == 0 {
        return;
    }
    if CONFIG.get(0).is_some_and(|config| config.log & reason.bit() != 0) {
        opaque(record_packet(packet, reason));
    }
}

/// Reads the packet's addresses and ports as far as possible. It may be malformed, and may have been translated.
#[inline(never)]
fn record_packet<P: Packet>(packet: &P, reason: Reason) -> u32 {
    let end = packet.data_end();
    let (data, _) = behind_tag(packet.data(), end);
    if data + L4_OFFSET > end || ethertype(data) != IPV4 {
        return opaque(write_record(reason as u32, 0, 0, 0, packet.ifindex()));
    }
    // SAFETY: within the IPv4 header's fixed part, checked just above.
    let (version_ihl, fragment, protocol, src, dst) = unsafe {
        let ip = data + ETH_LEN;
        (load::<u8>(ip), load::<u16>(ip + 6), load::<u8>(ip + 9), load_address(ip + 12), load_address(ip + 16))
    };
    let l4 = data + ETH_LEN + (version_ihl & 15) as usize * 4;
    let mut ports = 0;
    if has_ports(protocol) && fragment & FRAGMENT_OFFSET == 0 && l4 + 4 <= end {
        // SAFETY: checked just above.
        let (sport, dport) = unsafe { (load::<Be16>(l4), load::<Be16>(l4 + 2)) };
        ports = (u16::from_be(sport) as u32) << 16 | u16::from_be(dport) as u32;
    }
    opaque(write_record((protocol as u32) << 8 | reason as u32, src, dst, ports, packet.ifindex()))
}

/// Writes a record, unless there was one with this reason within the period. Returns 1 if it did. `what` is the reason, and
/// above 8 bits the protocol; `ports` is the source port, and in the lower 16 bits the destination port.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_record(what: u32, src: Be32, dst: Be32, ports: u32, device: u32) -> u32 {
    let (reason, protocol) = (what & 0xff, what >> 8);
    let (Some(last), Some(config)) = (LAST_TOLD.get_ptr_mut(reason), CONFIG.get(0)) else {
        return opaque(0);
    };
    let now = clock::jiffies64();
    // SAFETY: aligned word of LAST_TOLD.
    let held = unsafe { ptr::read_volatile(last) };
    if now.saturating_sub(held) * (config.tick as u64) < PERIOD {
        return opaque(0);
    }
    // SAFETY: as above.
    if !unsafe { atomic::compare_and_swap(last, held, now) } {
        return opaque(0);
    }
    let (sport, dport) = (ports >> 16, ports & 0xffff);
    let (src, dst) = (u32::from_be(src), u32::from_be(dst));
    // The format that the agent's `loader::told` parses.
    info!(
        &(),
        target: "vipgate",
        "reason {} protocol {} from {:i} {} to {:i} {} by {} at {}",
        reason, protocol, src, sport, dst, dport, device, clock::nanoseconds()
    );
    opaque(1)
}
