//! Parses packets independently of the pipeline, to check what the pipeline did with them.

use std::ops::Range;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const DCCP: u8 = 33;
pub(crate) const UDP_LITE: u8 = 136;

pub(crate) const ETH_LEN: usize = 14;
const IPV4: u16 = 0x0800;

/// An IPv4 packet within a frame: the offsets of its parts, and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ipv4 {
    /// Offset of its header.
    pub(crate) at: usize,
    /// Offset of the transport header.
    pub(crate) l4: usize,
    /// Offset of its end.
    pub(crate) end: usize,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
    pub(crate) offset: u16,
    pub(crate) more_fragments: bool,
}

impl Ipv4 {
    /// The packet of a frame; `None` if the frame holds no complete one.
    pub(crate) fn of_frame(bytes: &[u8]) -> Option<Self> {
        let tag = tag_len(bytes);
        let packet = if word(bytes, 12 + tag)? == IPV4 { Self::at(bytes, ETH_LEN + tag)? } else { return None };
        (packet.l4..=bytes.len()).contains(&packet.end).then_some(packet)
    }

    /// The source, if the frame has room for an IPv4 header.
    pub(crate) fn source_of_frame(bytes: &[u8]) -> Option<[u8; 4]> {
        let tag = tag_len(bytes);
        let header = bytes.get(ETH_LEN + tag..ETH_LEN + tag + 20)?;
        (word(bytes, 12 + tag)? == IPV4).then_some([header[12], header[13], header[14], header[15]])
    }

    /// The packet whose header starts at `at`. It may end beyond `bytes`, as a quote does.
    pub(crate) fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let header = bytes.get(at..at + 20)?;
        let l4 = at + usize::from(header[0] & 15) * 4;
        let end = at + usize::from(word(header, 2)?);
        let fragment = word(header, 6)?;
        let whole = header[0] >> 4 == 4 && l4 >= at + 20 && l4 <= bytes.len();
        whole.then_some(Self {
            at,
            l4,
            end,
            protocol: header[9],
            ttl: header[8],
            src: [header[12], header[13], header[14], header[15]],
            dst: [header[16], header[17], header[18], header[19]],
            offset: fragment & 0x1fff,
            more_fragments: fragment & 0x2000 != 0,
        })
    }

    /// Source and destination port. An ICMP request's identifier is its source port, an answer's its destination port;
    /// other protocols have port 0. `None` for an ICMP error or a later fragment.
    pub(crate) fn ports(&self, bytes: &[u8]) -> Option<(u16, u16)> {
        match self.protocol {
            TCP | UDP | ICMP if self.offset != 0 => None,
            TCP | UDP => Some((word(bytes, self.l4)?, word(bytes, self.l4 + 2)?)),
            ICMP => match (*bytes.get(self.l4)?, word(bytes, self.l4 + 4)?) {
                (3 | 4 | 5 | 11 | 12, _) => None,
                (8 | 13 | 15 | 17, identifier) => Some((identifier, 0)),
                (0 | 14 | 16 | 18, identifier) => Some((0, identifier)),
                // Not the ports of a query, one of which is 0.
                _ => Some((1, 1)),
            },
            _ => Some((0, 0)),
        }
    }

    /// Length of the IPv4 header and a TCP or UDP header behind it, in bytes.
    pub(crate) fn header_len(&self, bytes: &[u8]) -> usize {
        let transport = match self.protocol {
            TCP if self.offset == 0 => usize::from(bytes[self.l4 + 12] >> 4) * 4,
            UDP if self.offset == 0 => 8,
            _ => 0,
        };
        self.l4 - self.at + transport
    }

    /// True if the options hold a source route; `None` if they cannot be parsed.
    pub(crate) fn names_its_way(&self, bytes: &[u8]) -> Option<bool> {
        let mut options = &bytes[self.at + 20..self.l4];
        loop {
            options = match options {
                [] | [0, ..] => return Some(false),
                [131 | 137, ..] => return Some(true),
                [1, rest @ ..] => rest,
                [_, length, ..] if *length >= 2 => options.get(usize::from(*length)..)?,
                _ => return None,
            };
        }
    }

    /// True for an ICMP error, which quotes a packet.
    pub(crate) fn is_error(&self, bytes: &[u8]) -> bool {
        self.protocol == ICMP && self.offset == 0 && self.ports(bytes).is_none()
    }

    /// True for an ICMP request.
    pub(crate) fn is_request(&self, bytes: &[u8]) -> bool {
        self.protocol == ICMP && self.offset == 0 && matches!(bytes.get(self.l4), Some(8 | 13 | 15 | 17))
    }

    /// Where the ports that [`Self::ports`] returns are, and the checksum that covers them.
    pub(crate) fn ports_and_checksum(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let l4 = self.l4;
        match self.protocol {
            TCP | UDP if self.offset == 0 => vec![l4..l4 + 4, self.l4_checksum()],
            ICMP if self.offset == 0 && matches!(bytes.get(l4), Some(0 | 8 | 13..=18)) => {
                vec![l4 + 4..l4 + 6, self.l4_checksum()]
            }
            _ if self.covers_addresses() => vec![self.l4_checksum()],
            _ => Vec::new(),
        }
    }

    /// True for a packet that holds a transport checksum which covers the addresses.
    pub(crate) fn covers_addresses(&self) -> bool {
        let ends = match self.protocol {
            TCP => 18,
            UDP | UDP_LITE | DCCP => 8,
            _ => return false,
        };
        self.offset == 0 && self.l4 + ends <= self.end
    }

    pub(crate) fn header(&self) -> Range<usize> {
        self.at..self.l4
    }

    /// Where the header's checksum and addresses are.
    pub(crate) fn checksum_and_addresses(&self) -> Range<usize> {
        self.at + 10..self.at + 20
    }

    /// Where the transport checksum is.
    pub(crate) fn l4_checksum(&self) -> Range<usize> {
        let at = self.l4
            + match self.protocol {
                TCP => 16,
                UDP | UDP_LITE | DCCP => 6,
                _ => 2,
            };
        at..at + 2
    }

    /// Sum of the addresses, the only part of the pseudo-header that a translation changes (RFC 9293, section 3.1).
    pub(crate) fn addresses_sum(&self) -> u16 {
        sum(&[self.src, self.dst].concat())
    }
}

/// Length of a frame's priority tag, if that is its only tag (IEEE 802.1Q, 802.1ad).
fn tag_len(bytes: &[u8]) -> usize {
    let is_vlan = word(bytes, 14).is_none_or(|tci| tci & 0xfff != 0);
    if !is_tag(bytes, 12) || is_vlan || is_tag(bytes, 16) { 0 } else { 4 }
}

fn is_tag(bytes: &[u8], at: usize) -> bool {
    matches!(word(bytes, at), Some(0x8100 | 0x88a8))
}

/// True for a frame with a VLAN's tag, or with several tags.
pub(crate) fn is_in_vlan(bytes: &[u8]) -> bool {
    is_tag(bytes, 12) && tag_len(bytes) == 0
}

/// The frame without its priority tag.
pub(crate) fn untagged(bytes: &[u8]) -> Vec<u8> {
    let (addresses, rest) = bytes.split_at(12.min(bytes.len()));
    [addresses, &rest[tag_len(bytes)..]].concat()
}

/// A 16-bit field.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// One's complement sum of big-endian words (RFC 1071); an odd byte is followed by 0.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| low.into()));
    folded(words.sum())
}

/// One's complement sum of two sums.
pub(crate) fn add(one: u16, other: u16) -> u16 {
    folded(u32::from(one) + u32::from(other))
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// True for equal sums: 0 has two representations.
pub(crate) fn same_sum(one: u16, other: u16) -> bool {
    one % 0xffff == other % 0xffff
}
