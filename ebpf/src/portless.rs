//! Packets of protocols without ports, off the hit's path. They run through the same stages. An ICMP query's identifier
//! serves as its port (RFC 5508, section 3.1): the source port of a request, the destination port of an answer. Other ICMP
//! messages have ports that no query has. Every other protocol has port 0 on both sides, and only its addresses are
//! translated. The checksums of DCCP and UDP-Lite cover the addresses (RFC 4340, section 9.1; RFC 3828, section 3.1), and are
//! updated. AH (RFC 4302) also covers them, and cannot be translated.

use vipgate_abi::{checksum::delta16, counters::Reason, flow::FlowKey};

use crate::{
    fragment,
    icmp::{self, ICMP},
    packet::{ETH_LEN, Packet, load, load_address, load_length, store},
    parse::{ACK, FRAGMENT_OFFSET, Headers, Layout, MORE_FRAGMENTS, UDP_LEN},
};

pub const DCCP: u8 = 33;
pub const UDP_LITE: u8 = 136;

/// True for protocols whose checksum has UDP's offset and covers the addresses.
#[inline(always)]
pub fn covers_addresses(protocol: u8) -> bool {
    protocol == DCCP || protocol == UDP_LITE
}

/// Parses such a packet behind its Ethernet header. ICMP errors are handled elsewhere: `Reason::OtherProtocol`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, layout: &Layout) -> Result<Headers, Reason> {
    let ip = layout.data + ETH_LEN;
    // SAFETY: all within the IPv4 header's fixed part, which is readable.
    let (ip_len, id, fragment, protocol, src, dst) = unsafe {
        let ip_len = load_length(ip + 2);
        (ip_len, load(ip + 4), load::<u16>(ip + 6), load(ip + 9), load_address(ip + 12), load_address(ip + 16))
    };
    if (ip_len as usize) < layout.header_len || !packet.holds(layout.data, layout.shift, ip_len as usize) {
        return Err(Reason::Malformed);
    }
    let key = FlowKey { src, dst, sport: 0, dport: 0, protocol, reserved: 0, domain: 0 };
    let header_len = layout.header_len as u8;
    let mut headers = Headers { data: layout.data, key, tcp_flags: 0, l4_len: 0, header_len, is_first: 0, ip_len };
    let l4 = layout.data + ETH_LEN + layout.header_len;
    if protocol != ICMP {
        // The checksum has to be readable.
        let has_checksum = covers_addresses(protocol) && fragment & FRAGMENT_OFFSET == 0;
        if has_checksum && ip_len as usize >= layout.header_len + UDP_LEN && l4 + UDP_LEN > layout.end {
            return Err(Reason::Malformed);
        }
        return Ok(headers);
    }
    headers.tcp_flags = ACK;
    let packet = fragment::packet(id, ICMP);
    if fragment & FRAGMENT_OFFSET != 0 {
        let ports = fragment::recall_ports(src, dst, packet);
        if ports == fragment::UNKNOWN {
            return Err(Reason::Fragment);
        }
        (headers.key.sport, headers.key.dport) = ((ports >> 16) as u16, ports as u16);
        return Ok(headers);
    }
    if l4 + icmp::HEADER_LEN > layout.end || (ip_len as usize) < layout.header_len + icmp::HEADER_LEN {
        return Err(Reason::Malformed);
    }
    // SAFETY: within the ICMP header, checked just above.
    let (kind, id) = unsafe { (load::<u8>(l4), load::<u16>(l4 + icmp::IDENTIFIER)) };
    if icmp::is_error(kind) {
        return Err(Reason::OtherProtocol);
    }
    (headers.key.sport, headers.key.dport) = icmp::ports(kind, id);
    if icmp::is_request(kind) {
        headers.tcp_flags = 0;
    }
    headers.is_first = (fragment & MORE_FRAGMENTS != 0) as u8;
    Ok(headers)
}

/// Rewrites an ICMP query's identifier and the checksum, which covers no addresses. `l4` is the address of the ICMP header,
/// `ports` are as in `odd_headers::rewrite`.
#[inline(always)]
pub fn rewrite(l4: usize, end: usize, ports: u32) {
    if l4 + icmp::HEADER_LEN > end {
        return;
    }
    // SAFETY: checked just above.
    unsafe {
        let (kind, old) = (load::<u8>(l4), load::<u16>(l4 + icmp::IDENTIFIER));
        let Some(new) = icmp::identifier(kind, ports as u16, (ports >> 16) as u16) else {
            return;
        };
        store(l4 + icmp::IDENTIFIER, new);
        icmp::update_checksum(l4 + icmp::CHECKSUM, delta16(old, new));
    }
}
