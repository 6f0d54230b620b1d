//! Stage 1: from bytes to a flow key. What cannot be parsed goes up the stack unchanged.

use vipgate_abi::{counters::Reason, flow::FlowKey};

use crate::packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address};

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
/// The fragment field's "more fragments" bit and offset, as read from the header.
const FRAGMENT: u16 = 0x3fffu16.to_be();

/// A parsed packet. Its headers up to the transport header's fixed part are directly readable from `data`.
pub struct Headers {
    /// Address of the Ethernet header.
    pub data: usize,
    pub key: FlowKey,
    /// 0 for UDP.
    pub tcp_flags: u8,
    /// Length of the transport header, in bytes.
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
    if data + L4_OFFSET + UDP_LEN > end {
        return Err(if data + ETH_LEN <= end && ethertype(data) != IPV4 { Reason::NotIpv4 } else { Reason::Malformed });
    }
    if ethertype(data) != IPV4 {
        return Err(Reason::NotIpv4);
    }
    // SAFETY: all within the first L4_OFFSET + UDP_LEN bytes, checked above.
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
    if fragment & FRAGMENT != 0 {
        return Err(Reason::Fragment);
    }
    // SAFETY: as above.
    let (src, dst, sport, dport) = unsafe {
        (
            load_address(data + ETH_LEN + 12),
            load_address(data + ETH_LEN + 16),
            load::<u16>(data + L4_OFFSET),
            load::<u16>(data + L4_OFFSET + 2),
        )
    };
    let key = FlowKey { src, dst, sport, dport, protocol, zone: 0, vlan: 0 };
    match protocol {
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
            Ok(Headers { data, key, tcp_flags, l4_len: l4_len as u8, ip_len: ip_len as u16 })
        }
        UDP => {
            // SAFETY: within the UDP header, checked at the top.
            let udp_len = u16::from_be(unsafe { load::<u16>(data + L4_OFFSET + 4) }) as usize;
            if udp_len < UDP_LEN || ip_len < 20 + udp_len || !packet.holds(data, ip_len) {
                return Err(Reason::Malformed);
            }
            Ok(Headers { data, key, tcp_flags: 0, l4_len: UDP_LEN as u8, ip_len: ip_len as u16 })
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// The EtherType of a frame of at least ETH_LEN readable bytes, as read.
#[inline(always)]
fn ethertype(data: usize) -> u16 {
    // SAFETY: every caller has checked ETH_LEN bytes.
    unsafe { load::<u16>(data + 12) }
}
