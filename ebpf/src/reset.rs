//! Resets for TCP connections that the router has ended: a segment of either side is answered with a reset, as a host
//! without such a connection answers (RFC 9293, section 3.10.7.1).
//!
//! Both flows of such a connection stay for a while, with a generation that is over: so each segment of either side is
//! answered. The packet itself is turned into the reset: addresses and ports are swapped, and it leaves by the device that
//! it came by, with its tag. That needs no route and no neighbour, and works whatever has become of the other side, the
//! VIP, or the SNAT rule. The TC stage does it: XDP hands such packets over, because they are rare and XDP cannot send by
//! every device.

use core::mem::size_of;

use vipgate_abi::{Be16, Be32, checksum::fold, counters::Reason};

use crate::{
    packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address, load_length, store, store_address},
    parse::{ACK, DONT_FRAGMENT, FIN, FRAGMENT_OFFSET, Headers, RST, SYN, TCP, TCP_LEN, VERSION_IHL, opens},
    tc::TcPacket,
    vlan::{TAG_LEN, behind_tag},
};

/// A reset's frame: no data, no options, no tags.
const LENGTH: usize = L4_OFFSET + TCP_LEN;
/// Linux's default for new packets.
const TIME_TO_LIVE: u8 = 64;

/// True if a packet of a flow that is over is answered: a TCP segment that is no reset. A client's SYN begins another
/// connection.
#[inline(always)]
pub fn answers(headers: &Headers, reply: bool) -> bool {
    let is_first = !reply && opens(TCP, headers.tcp_flags);
    headers.key.protocol == TCP && headers.tcp_flags & RST == 0 && !is_first
}

/// Turns the packet, a TCP segment or a fragment of one, into the reset that answers it. Returns `FlowReset`, or why there
/// is no answer.
#[inline(always)]
pub fn answer_with_reset(packet: &mut TcPacket) -> Reason {
    // A flooded frame may belong to a connection of another router.
    if !packet.is_for_device() {
        return Reason::OtherHost;
    }
    packet.pull(ETH_LEN + TAG_LEN + 60 + TCP_LEN);
    let Some((segment, shift)) = Segment::read(packet) else {
        return Reason::FlowEnded;
    };
    if !packet.trim(shift + LENGTH) {
        return Reason::FlowEnded;
    }
    let start = packet.data();
    let data = start + shift;
    if data + LENGTH > packet.data_end() {
        return Reason::FlowEnded;
    }
    let answer = Answer::to(&segment);
    // SAFETY: checked just above; the Ethernet addresses are before the tag.
    unsafe {
        swap_ethernet(start);
        write_ipv4(data, &segment);
        answer.write(data + L4_OFFSET, &segment);
        let pseudo_header = segment.addresses() + (TCP as u16).to_be() as u64 + (TCP_LEN as u16).to_be() as u64;
        let rest = segment.sport as u64 + segment.dport as u64 + answer.sum();
        packet.write_l4_checksum(data + L4_OFFSET + 16, shift + L4_OFFSET + 16, pseudo_header, rest);
    }
    Reason::FlowReset
}

/// The segment that is answered.
struct Segment {
    src: Be32,
    dst: Be32,
    sport: Be16,
    dport: Be16,
    sequence: Be32,
    acknowledgment: Be32,
    flags: u8,
    /// Length of the data, in bytes.
    length: u32,
}

impl Segment {
    /// Returns the segment and the length of its tag. `None` for a later fragment.
    #[inline(always)]
    fn read(packet: &TcPacket) -> Option<(Self, usize)> {
        let (start, end) = (packet.data(), packet.data_end());
        let (data, shift) = behind_tag(start, end);
        if data + L4_OFFSET > end {
            return None;
        }
        // SAFETY: within the IPv4 header's fixed part, checked just above.
        let (version_ihl, ip_len, fragment, src, dst) = unsafe {
            (
                load::<u8>(data + ETH_LEN),
                load_length(data + ETH_LEN + 2),
                load::<u16>(data + ETH_LEN + 6),
                load_address(data + ETH_LEN + 12),
                load_address(data + ETH_LEN + 16),
            )
        };
        let header_len = (version_ihl & 15) as usize * 4;
        let l4 = data + ETH_LEN + header_len;
        if fragment & FRAGMENT_OFFSET != 0 || l4 + TCP_LEN > end {
            return None;
        }
        // SAFETY: within the TCP header, checked just above.
        let (sport, dport, sequence, acknowledgment, offset, flags) = unsafe {
            (
                load(l4),
                load(l4 + 2),
                load_address(l4 + 4),
                load_address(l4 + 8),
                load::<u8>(l4 + 12),
                load::<u8>(l4 + 13),
            )
        };
        let headers = header_len as u32 + (offset >> 4) as u32 * 4;
        let length = (ip_len as u32).wrapping_sub(headers);
        Some((Self { src, dst, sport, dport, sequence, acknowledgment, flags, length }, shift))
    }

    /// Sum of the addresses.
    #[inline(always)]
    fn addresses(&self) -> u64 {
        self.src as u64 + self.dst as u64
    }
}

/// A reset's numbers and flags, as in its header.
struct Answer {
    sequence: Be32,
    acknowledgment: Be32,
    /// Length of the header, and flags.
    flags: u16,
}

impl Answer {
    /// Has the sequence number that the segment's sender expects; if the segment has no ACK, acknowledges everything in it.
    #[inline(always)]
    fn to(segment: &Segment) -> Self {
        const LENGTH: u8 = ((TCP_LEN / size_of::<u32>()) as u8) << 4;
        if segment.flags & ACK != 0 {
            let flags = u16::from_ne_bytes([LENGTH, RST]);
            return Self { sequence: segment.acknowledgment, acknowledgment: 0, flags };
        }
        let beside_data = (segment.flags & SYN != 0) as u32 + (segment.flags & FIN != 0) as u32;
        let next = u32::from_be(segment.sequence).wrapping_add(segment.length).wrapping_add(beside_data);
        Self { sequence: 0, acknowledgment: next.to_be(), flags: u16::from_ne_bytes([LENGTH, RST | ACK]) }
    }

    #[inline(always)]
    fn sum(&self) -> u64 {
        self.sequence as u64 + self.acknowledgment as u64 + self.flags as u64
    }

    /// Writes the TCP header but for its checksum.
    ///
    /// # Safety
    /// TCP_LEN bytes are directly readable from `l4`.
    #[inline(always)]
    unsafe fn write(&self, l4: usize, segment: &Segment) {
        // SAFETY: as the caller promises.
        unsafe {
            store(l4, segment.dport);
            store(l4 + 2, segment.sport);
            store_address(l4 + 4, self.sequence);
            store_address(l4 + 8, self.acknowledgment);
            store(l4 + 12, self.flags);
            // Window and urgent pointer.
            store(l4 + 14, 0u16);
            store(l4 + 18, 0u16);
        }
    }
}

/// Swaps the Ethernet addresses.
///
/// # Safety
/// ETH_LEN bytes are directly readable from `start`.
#[inline(always)]
unsafe fn swap_ethernet(start: usize) {
    let mut at = start;
    while at < start + 6 {
        // SAFETY: as the caller promises.
        unsafe {
            let (to, from): (u16, u16) = (load(at), load(at + 6));
            store(at, from);
            store(at + 6, to);
        }
        at += 2;
    }
}

/// Writes the reset's IPv4 header.
///
/// # Safety
/// L4_OFFSET bytes are directly readable from `data`.
#[inline(always)]
unsafe fn write_ipv4(data: usize, segment: &Segment) {
    let version = u16::from_ne_bytes([VERSION_IHL, 0]);
    let length = ((LENGTH - ETH_LEN) as u16).to_be();
    let life = u16::from_ne_bytes([TIME_TO_LIVE, TCP]);
    let sum = segment.addresses() + version as u64 + length as u64 + DONT_FRAGMENT as u64 + life as u64;
    // SAFETY: as the caller promises.
    unsafe {
        store(data + ETH_LEN, version);
        store(data + ETH_LEN + 2, length);
        store(data + ETH_LEN + 4, 0u16);
        store(data + ETH_LEN + 6, DONT_FRAGMENT);
        store(data + ETH_LEN + 8, life);
        store(data + ETH_LEN + 10, !fold(sum));
        store_address(data + ETH_LEN + 12, segment.dst);
        store_address(data + ETH_LEN + 16, segment.src);
    }
}
