//! Stage 1: from bytes to a flow key. What cannot be parsed goes up the stack unchanged.

use vipgate_abi::{counters::Reason, flow::FlowKey};

use crate::{
    fragment,
    packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address},
};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// TCP header flags (RFC 9293, section 3.1).
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// EtherType of IPv4, as read from the frame.
pub const IPV4: u16 = 0x0800u16.to_be();
/// Version 4, header of 5 words: no options.
pub const VERSION_IHL: u8 = 0x45;
/// The fragment field's "don't fragment" bit, as read from the header.
pub const DONT_FRAGMENT: u16 = 0x4000u16.to_be();
/// The fragment field's "more fragments" bit and its offset, as read from the header.
const MORE_FRAGMENTS: u16 = 0x2000u16.to_be();
pub const FRAGMENT_OFFSET: u16 = 0x1fffu16.to_be();

/// A parsed packet. Its headers up to the transport header's fixed part are directly readable from `data`.
#[derive(Clone, Copy)]
pub struct Headers {
    /// Address of the Ethernet header.
    pub data: usize,
    pub key: FlowKey,
    /// 0 for UDP; of a later fragment, those of plain data.
    pub tcp_flags: u8,
    /// Length of the transport header, in bytes; 0 in a later fragment, which has none.
    pub l4_len: u8,
    /// Length of the IP packet, in bytes.
    pub ip_len: u16,
}

impl Headers {
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.key.protocol == UDP
    }

    /// Bytes on the wire, Ethernet headers included, of the packet that goes out as this many frames.
    #[inline(always)]
    pub fn wire_bytes(&self, frames: u32) -> u32 {
        ETH_LEN as u32 + self.ip_len as u32 + (frames - 1) * (L4_OFFSET as u32 + self.l4_len as u32)
    }

    /// Offset of the transport checksum in the frame.
    #[inline(always)]
    pub fn checksum_offset(&self) -> usize {
        if self.is_udp() { L4_OFFSET + 6 } else { L4_OFFSET + 16 }
    }
}

/// Parses an IPv4 TCP or UDP packet.
#[inline(always)]
pub fn parse<P: Packet>(packet: &mut P) -> Result<Headers, Reason> {
    packet.pull(L4_OFFSET + TCP_LEN);
    let data = packet.data();
    let end = packet.data_end();
    if data + L4_OFFSET > end {
        return Err(if data + ETH_LEN <= end && ethertype(data) != IPV4 { Reason::NotIpv4 } else { Reason::Malformed });
    }
    if ethertype(data) != IPV4 {
        return Err(Reason::NotIpv4);
    }
    // SAFETY: all within the first L4_OFFSET bytes, checked above.
    let (version_ihl, ip_len, fragment, protocol) = unsafe {
        (
            load::<u8>(data + ETH_LEN),
            u16::from_be(load::<u16>(data + ETH_LEN + 2)) as usize,
            load::<u16>(data + ETH_LEN + 6),
            load::<u8>(data + ETH_LEN + 9),
        )
    };
    if version_ihl != VERSION_IHL {
        return Err(if version_ihl >> 4 == 4 && version_ihl & 15 > 5 { Reason::IpOptions } else { Reason::Malformed });
    }
    // SAFETY: as above.
    let (src, dst) = unsafe { (load_address(data + ETH_LEN + 12), load_address(data + ETH_LEN + 16)) };
    let mut key = FlowKey { src, dst, sport: 0, dport: 0, protocol, zone: 0, vlan: 0 };
    // SAFETY: as above.
    let packet_id = || fragment::packet(unsafe { load(data + ETH_LEN + 4) }, protocol);
    if fragment & FRAGMENT_OFFSET != 0 {
        let ports = fragment::recall_ports(src, dst, packet_id());
        if ports == fragment::UNKNOWN {
            return Err(Reason::Fragment);
        }
        if ip_len < 20 || !packet.holds(data, ip_len) {
            return Err(Reason::Malformed);
        }
        key.sport = (ports >> 16) as u16;
        key.dport = ports as u16;
        return Ok(Headers { data, key, tcp_flags: ACK, l4_len: 0, ip_len: ip_len as u16 });
    }
    if data + L4_OFFSET + UDP_LEN > end {
        return Err(Reason::Malformed);
    }
    let is_first = fragment & MORE_FRAGMENTS != 0;
    // SAFETY: checked just above.
    (key.sport, key.dport) = unsafe { (load(data + L4_OFFSET), load(data + L4_OFFSET + 2)) };
    let headers = match protocol {
        TCP => {
            if data + L4_OFFSET + TCP_LEN > end {
                return Err(Reason::Malformed);
            }
            // SAFETY: within the TCP header, checked just above.
            let (offset, tcp_flags) = unsafe { (load::<u8>(data + L4_OFFSET + 12), load::<u8>(data + L4_OFFSET + 13)) };
            let l4_len = (offset >> 4) as usize * 4;
            if l4_len < TCP_LEN || ip_len < 20 + l4_len || !packet.holds(data, ip_len) {
                return Err(Reason::Malformed);
            }
            Headers { data, key, tcp_flags, l4_len: l4_len as u8, ip_len: ip_len as u16 }
        }
        UDP => {
            // SAFETY: within the UDP header, checked above.
            let udp_len = u16::from_be(unsafe { load::<u16>(data + L4_OFFSET + 4) }) as usize;
            // A first fragment holds less than its packet.
            let held = if is_first { UDP_LEN } else { udp_len };
            if udp_len < UDP_LEN || ip_len < 20 + held || !packet.holds(data, ip_len) {
                return Err(Reason::Malformed);
            }
            Headers { data, key, tcp_flags: 0, l4_len: UDP_LEN as u8, ip_len: ip_len as u16 }
        }
        _ => return Err(Reason::OtherProtocol),
    };
    if is_first {
        fragment::remember(src, dst, packet_id(), key.sport, key.dport);
    }
    Ok(headers)
}

/// The EtherType of a frame of at least ETH_LEN readable bytes, as read.
#[inline(always)]
fn ethertype(data: usize) -> u16 {
    // SAFETY: every caller has checked ETH_LEN bytes.
    unsafe { load::<u16>(data + 12) }
}
