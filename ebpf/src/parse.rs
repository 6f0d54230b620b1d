//! Stage 1: from bytes to a flow key. Packets that cannot be parsed go up the stack unchanged.

use vipgate_abi::{counters::Reason, flow::FlowKey};

use crate::{
    fragment,
    icmp::ICMP,
    odd_headers,
    packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address, load_length},
    types::Arrival,
    vlan,
};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// TCP header flags (RFC 9293, section 3.1).
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

pub const TCP_LEN: usize = 20;
pub const UDP_LEN: usize = 8;
/// EtherType of IPv4, as read from the frame.
pub const IPV4: u16 = 0x0800u16.to_be();
/// Version 4, header of 5 words: no options.
pub const VERSION_IHL: u8 = 0x45;
/// The fragment field's "don't fragment" bit, as read from the header.
pub const DONT_FRAGMENT: u16 = 0x4000u16.to_be();
/// The fragment field's "more fragments" bit and its offset, as read from the header.
pub const MORE_FRAGMENTS: u16 = 0x2000u16.to_be();
pub const FRAGMENT_OFFSET: u16 = 0x1fffu16.to_be();

/// A parsed packet. The Ethernet header and the IPv4 header's fixed part are directly readable from `data`; if `l4_len` is
/// not 0, so is the transport header.
#[derive(Clone, Copy)]
pub struct Headers {
    /// Address that the Ethernet header would have without a priority tag ([`vlan`]).
    pub data: usize,
    pub key: FlowKey,
    /// 0 for other protocols. ACK for later fragments, and for ICMP messages that are no requests.
    pub tcp_flags: u8,
    /// Length of the transport header, in bytes. 0 in later fragments, which have none, if it is at another offset than
    /// [`L4_OFFSET`], and for protocols without ports (`portless`).
    pub l4_len: u8,
    /// Length of the IPv4 header and of TCP's or UDP's, in bytes: the headers of each segment of a super-packet.
    pub header_len: u8,
    /// 1 for the first one of several fragments. Not a `bool`: a `Result` would use the spare values of that in a way that
    /// the kernel's BTF rejects.
    pub is_first: u8,
    /// Length of the IP packet, in bytes.
    pub ip_len: u16,
}

/// True for packets that open a flow: for TCP only a SYN, for ICMP only a request. The flags are as in [`Headers`].
#[inline(always)]
pub fn opens(protocol: u8, tcp_flags: u8) -> bool {
    let flags = tcp_flags & (SYN | ACK | RST | FIN);
    match protocol {
        TCP => flags == SYN,
        ICMP => flags == 0,
        _ => true,
    }
}

impl Arrival {
    /// True for packets that open a flow.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        opens(self.key.protocol, self.tcp_flags as u8)
    }

    /// True for a segment of an established connection, and for answers.
    #[inline(always)]
    pub fn resumes(&self) -> bool {
        self.tcp_flags as u8 & (SYN | ACK | RST) == ACK
    }
}

impl Headers {
    /// True for protocols without connections: all but TCP.
    #[inline(always)]
    pub fn is_datagram(&self) -> bool {
        self.key.protocol != TCP
    }

    /// Bytes on the wire, Ethernet headers included, of the packet that goes out as this many frames.
    #[inline(always)]
    pub fn wire_bytes(&self, frames: u32) -> u32 {
        ETH_LEN as u32 + self.ip_len as u32 + (frames - 1) * (ETH_LEN as u32 + self.header_len as u32)
    }

    /// True for UDP, if the transport header is at the usual offset. Decided by the header's length, which the verifier
    /// knows on each path, unlike the protocol.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.l4_len == UDP_LEN as u8
    }

    /// Offset of the transport checksum in the frame, if the transport header is at the usual offset.
    #[inline(always)]
    pub fn checksum_offset(&self) -> usize {
        if self.is_udp() { L4_OFFSET + 6 } else { L4_OFFSET + 16 }
    }
}

/// Parses an IPv4 packet.
///
/// Inlined with constants for the usual place of its headers.
#[inline(always)]
pub fn parse<P: Packet>(packet: &mut P) -> Result<Headers, Reason> {
    if packet.is_in_vlan() {
        return Err(Reason::Tagged);
    }
    packet.pull(L4_OFFSET + TCP_LEN);
    let data = packet.data();
    let end = packet.data_end();
    if data + L4_OFFSET > end {
        return Err(if data + ETH_LEN <= end && ethertype(data) != IPV4 { Reason::NotIpv4 } else { Reason::Malformed });
    }
    if ethertype(data) != IPV4 {
        return if vlan::is_tag(ethertype(data)) { odd_headers::parse(packet) } else { Err(Reason::NotIpv4) };
    }
    // SAFETY: within the first L4_OFFSET bytes, checked above.
    if !unsafe { packet.may_be_for_device(data) } {
        return Err(Reason::OtherHost);
    }
    // SAFETY: as above.
    let version_ihl: u8 = unsafe { load(data + ETH_LEN) };
    if version_ihl != VERSION_IHL {
        return if has_options(version_ihl) { odd_headers::parse(packet) } else { Err(Reason::Malformed) };
    }
    // SAFETY: as above.
    if !has_ports(unsafe { load(data + ETH_LEN + 9) }) {
        return odd_headers::parse(packet);
    }
    parse_at(packet, Layout { data, end, shift: 0, header_len: 20 })
}

/// True for TCP and UDP; other protocols are handled by `portless`.
#[inline(always)]
pub fn has_ports(protocol: u8) -> bool {
    protocol == TCP || protocol == UDP
}

/// A packet's place in its frame.
pub struct Layout {
    /// Address that the Ethernet header would have without a tag. The IPv4 header's fixed part is readable.
    pub data: usize,
    /// Address past the last readable byte.
    pub end: usize,
    /// Length of the tag.
    pub shift: usize,
    /// Length of the IPv4 header.
    pub header_len: usize,
}

/// Parses what follows the Ethernet header of a packet with ports.
#[inline(always)]
pub fn parse_at<P: Packet>(packet: &P, layout: Layout) -> Result<Headers, Reason> {
    let Layout { data, end, shift, header_len } = layout;
    // SAFETY: all within the IPv4 header's fixed part.
    let (ip_len, fragment, protocol, src, dst) = unsafe {
        (
            load_length(data + ETH_LEN + 2) as usize,
            load::<u16>(data + ETH_LEN + 6),
            load::<u8>(data + ETH_LEN + 9),
            load_address(data + ETH_LEN + 12),
            load_address(data + ETH_LEN + 16),
        )
    };
    let holds = |length| ip_len >= header_len + length && packet.holds(data, shift, ip_len);
    let mut key = FlowKey { src, dst, sport: 0, dport: 0, protocol, reserved: 0, domain: 0 };
    // SAFETY: as above.
    let packet_id = || fragment::packet(unsafe { load(data + ETH_LEN + 4) }, protocol);
    if fragment & FRAGMENT_OFFSET != 0 {
        let ports = fragment::recall_ports(src, dst, packet_id());
        if ports == fragment::UNKNOWN {
            return Err(Reason::Fragment);
        }
        if !holds(0) {
            return Err(Reason::Malformed);
        }
        key.sport = (ports >> 16) as u16;
        key.dport = ports as u16;
        return Ok(Headers {
            data,
            key,
            tcp_flags: ACK,
            l4_len: 0,
            header_len: header_len as u8,
            is_first: 0,
            ip_len: ip_len as u16,
        });
    }
    let l4 = data + ETH_LEN + header_len;
    if l4 + UDP_LEN > end {
        return Err(Reason::Malformed);
    }
    let is_first = fragment & MORE_FRAGMENTS != 0;
    // SAFETY: checked just above.
    (key.sport, key.dport) = unsafe { (load(l4), load(l4 + 2)) };
    Ok(if protocol == TCP {
        if l4 + TCP_LEN > end {
            return Err(Reason::Malformed);
        }
        // SAFETY: within the TCP header, checked just above.
        let (offset, tcp_flags) = unsafe { (load::<u8>(l4 + 12), load::<u8>(l4 + 13)) };
        let l4_len = (offset >> 4) as usize * 4;
        if l4_len < TCP_LEN || !holds(l4_len) {
            return Err(Reason::Malformed);
        }
        let header_len = (header_len + l4_len) as u8;
        Headers {
            data,
            key,
            tcp_flags,
            l4_len: l4_len as u8,
            header_len,
            is_first: is_first as u8,
            ip_len: ip_len as u16,
        }
    } else {
        // SAFETY: within the UDP header, checked above.
        let udp_len = unsafe { load_length(l4 + 4) } as usize;
        // A first fragment holds less than its packet.
        let held = if is_first { UDP_LEN } else { udp_len };
        if udp_len < UDP_LEN || !holds(held) {
            return Err(Reason::Malformed);
        }
        let header_len = (header_len + UDP_LEN) as u8;
        Headers {
            data,
            key,
            tcp_flags: 0,
            l4_len: UDP_LEN as u8,
            header_len,
            is_first: is_first as u8,
            ip_len: ip_len as u16,
        }
    })
}

/// True for an IPv4 header with options (RFC 791, section 3.1).
#[inline(always)]
pub fn has_options(version_ihl: u8) -> bool {
    version_ihl >> 4 == 4 && version_ihl & 15 > 5
}

/// The EtherType of a frame of at least ETH_LEN readable bytes, as read.
#[inline(always)]
pub fn ethertype(data: usize) -> u16 {
    // SAFETY: every caller has checked ETH_LEN bytes.
    unsafe { load::<u16>(data + 12) }
}
