//! Telling a side of a TCP connection that the router has ended it: whoever sends next is answered with a reset, as a host
//! that has no such connection answers (RFC 9293, section 3.10.7.1).
//!
//! Of such a connection both flows stay for a while, under a generation that is over: so each side is told, as often as it
//! sends. The reset is what becomes of the packet: its addresses and ports the other way round, out of the device that it came
//! by, with the tag that it has. So nothing is asked of routes or neighbours, and a side is told whatever has become of the
//! other one, of the VIP, or of a guest's way out. That is the TC stage's work: XDP hands over what is to be answered, for it is
//! rare, and XDP cannot send by every device.

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
/// A fresh packet's, as Linux sends them.
const TIME_TO_LIVE: u8 = 64;

/// Whether a packet of a flow that is over is answered: what is of TCP, and no reset itself. A client's first segment is none
/// of that connection.
#[inline(always)]
pub fn answers(headers: &Headers, reply: bool) -> bool {
    let is_first = !reply && opens(TCP, headers.tcp_flags);
    headers.key.protocol == TCP && headers.tcp_flags & RST == 0 && !is_first
}

/// Makes the packet, a TCP segment or a fragment of one, its own answer: `FlowReset`, or why it is not answered.
#[inline(always)]
pub fn answer_with_reset(packet: &mut TcPacket) -> Reason {
    // What a bridge floods may be of a connection that another router has by now.
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

/// What is answered.
struct Segment {
    src: Be32,
    dst: Be32,
    sport: Be16,
    dport: Be16,
    sequence: Be32,
    acknowledgment: Be32,
    flags: u8,
    /// Of its data, in bytes.
    length: u32,
}

impl Segment {
    /// None: it is a later fragment, which does not tell. Bytes of its tag come with it.
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

    /// Their sum.
    #[inline(always)]
    fn addresses(&self) -> u64 {
        self.src as u64 + self.dst as u64
    }
}

/// A reset's numbers and flags, as its header has them.
struct Answer {
    sequence: Be32,
    acknowledgment: Be32,
    /// Length of the header, and flags.
    flags: u16,
}

impl Answer {
    /// Has the number that the segment's sender expects, or, where it tells of none, acknowledges all that it sent.
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
