//! Packets whose headers are not at the usual offsets: behind a priority tag (`vlan`), or with IPv4 options (RFC 791,
//! section 3.1). They are rare, and handled off the hit's path, as are packets without ports ([`portless`]).
//!
//! Such a packet runs through the same stages as any other: `Headers::data` is the address that the Ethernet header would have
//! without the tag. So the IPv4 header is where the stages expect it, and the new Ethernet header is
//! written over the tag. Only the transport header is elsewhere: `Headers::l4_len` is 0, and [`rewrite`] finds it
//! again. A packet that the router does not send keeps its tag, and goes up the stack as it came.

use core::ptr;

use vipgate_abi::{checksum::delta16, counters::Reason};

use crate::{
    icmp::ICMP,
    options,
    packet::{ETH_LEN, Packet, load, load_length, store},
    parse::{
        FRAGMENT_OFFSET, Headers, IPV4, Layout, TCP, TCP_LEN, UDP, UDP_LEN, ethertype, has_options, has_ports, parse_at,
    },
    portless,
    verifier::opaque,
    vlan::{TAG_LEN, behind_tag, is_tag},
};

/// Parses a packet with a tag, with options, or without ports.
#[inline(always)]
pub fn parse<P: Packet>(packet: &mut P) -> Result<Headers, Reason> {
    // Set here, so that the verifier sees that the following stages do not access the transport header.
    Ok(Headers { l4_len: 0, ..find(packet)? })
}

#[inline(never)]
fn find<P: Packet>(packet: &mut P) -> Result<Headers, Reason> {
    packet.pull(ETH_LEN + TAG_LEN + 60 + TCP_LEN);
    let end = packet.data_end();
    let (data, shift) = behind_tag(packet.data(), end);
    if data + ETH_LEN + 20 > end {
        return Err(Reason::Malformed);
    }
    if ethertype(data) != IPV4 {
        return Err(if is_tag(ethertype(data)) { Reason::Tagged } else { Reason::NotIpv4 });
    }
    // SAFETY: behind a tag or not, a frame begins with an Ethernet header.
    if !unsafe { packet.may_be_for_device(packet.data()) } {
        return Err(Reason::OtherHost);
    }
    // SAFETY: checked just above.
    let version_ihl: u8 = unsafe { load(data + ETH_LEN) };
    let header_len = (version_ihl & 15) as usize * 4;
    if version_ihl >> 4 != 4 || header_len < 20 {
        return Err(Reason::Malformed);
    }
    // Read again: if the verifier knew that this value determines the header's length, it would follow both paths to the end.
    // SAFETY: as above.
    if has_options(unsafe { ptr::read_volatile((data + ETH_LEN) as *const u8) }) {
        let refused = packet.examine_options((shift + ETH_LEN + 20) as u32, header_len as u32 - 20);
        if refused != options::KEPT {
            return Err(if refused == Reason::SourceRoute as u32 { Reason::SourceRoute } else { Reason::Malformed });
        }
    }
    let layout = Layout { data, end, shift, header_len };
    // SAFETY: as above.
    if !has_ports(unsafe { load(data + ETH_LEN + 9) }) {
        return portless::parse(packet, &layout);
    }
    parse_at(packet, layout)
}

/// The rest of a packet's rewriting: the transport header, if there is one to change, and the tag, if the packet leaves.
///
/// `data` is `Headers::data`, `ports` are the new ports as in the header's first word, `addresses` is the change of the IPv4
/// addresses' sum (`vipgate_abi::checksum`).
#[inline(never)]
pub fn rewrite<P: Packet>(packet: &mut P, data: usize, ports: u32, addresses: u64, leaves: bool) -> u32 {
    let start = packet.data();
    let end = packet.data_end();
    let shift = data - start;
    // SAFETY: parse checked the bounds of the IPv4 header's fixed part.
    let (version_ihl, ip_len, fragment, protocol) = unsafe {
        (
            load::<u8>(data + ETH_LEN),
            load_length(data + ETH_LEN + 2),
            load::<u16>(data + ETH_LEN + 6),
            load::<u8>(data + ETH_LEN + 9),
        )
    };
    let offset = ETH_LEN + (version_ihl & 15) as usize * 4;
    let l4 = data + offset;
    let is_udp = protocol == UDP;
    if fragment & FRAGMENT_OFFSET != 0 {
        // The first fragment had the transport header.
    } else if protocol == ICMP {
        portless::rewrite(l4, end, ports);
    } else if (is_udp || protocol == TCP) && l4 + UDP_LEN <= end {
        let (sport, dport) = (ports as u16, (ports >> 16) as u16);
        // SAFETY: checked just above, and for TCP by what follows.
        unsafe {
            let changed = delta16(load(l4), sport) + delta16(load(l4 + 2), dport);
            store(l4, sport);
            store(l4 + 2, dport);
            if is_udp {
                packet.update_l4_checksum(l4 + 6, shift + offset + 6, true, addresses, changed);
            } else if l4 + TCP_LEN <= end {
                packet.update_l4_checksum(l4 + 16, shift + offset + 16, false, addresses, changed);
            }
        }
    } else if portless::covers_addresses(protocol)
        && ip_len as usize >= offset - ETH_LEN + UDP_LEN
        && l4 + UDP_LEN <= end
    {
        // SAFETY: checked just above.
        unsafe {
            packet.update_l4_checksum(l4 + 6, shift + offset + 6, protocol == portless::UDP_LITE, addresses, 0);
        }
    }
    if leaves && shift != 0 {
        packet.untag();
    }
    opaque(0)
}
