//! Ethernet frames with IPv4, TCP and UDP, built byte by byte.

use std::net::{Ipv4Addr, SocketAddrV4};

/// TCP flags (RFC 9293, section 3.1).
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

/// The content of the IPv4 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
        options: Vec<u8>,
    },
    Udp {
        sport: u16,
        dport: u16,
        /// If false, the checksum field is 0, "none" (RFC 768).
        checksum: bool,
    },
    /// Another protocol, by number; the payload follows the IPv4 header.
    Other(u8),
}

/// A frame to build. Fields that are `None` get their correct value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// VLAN tags as TPID and TCI, the outer one first.
    pub tags: Vec<[u16; 2]>,
    pub ethertype: u16,
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub tos: u8,
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    pub ttl: u8,
    pub ip_options: Vec<u8>,
    pub version_ihl: Option<u8>,
    pub total_len: Option<u16>,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Default destination MAC: the router's device on the source's side.
    pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 0x01];
    pub const INSIDE_MAC: [u8; 6] = [0x02, 0, 0, 0, 2, 0x01];

    fn new(src: Ipv4Addr, dst: Ipv4Addr, transport: Transport) -> Self {
        let is_inside = src.octets()[..2] == [10, 2];
        Self {
            dst_mac: if is_inside { Self::INSIDE_MAC } else { Self::ROUTER_MAC },
            src_mac: [0x02, 0, 0, 0, 0, 0xfe],
            tags: Vec::new(),
            ethertype: 0x0800,
            src,
            dst,
            tos: 0,
            id: 0x1234,
            fragment: 0x4000,
            ttl: 64,
            ip_options: Vec::new(),
            version_ihl: None,
            total_len: None,
            transport,
            payload: Vec::new(),
        }
    }

    #[must_use]
    pub fn tcp(src: SocketAddrV4, dst: SocketAddrV4, flags: u8) -> Self {
        let (sport, dport) = (src.port(), dst.port());
        Self::new(*src.ip(), *dst.ip(), Transport::Tcp { sport, dport, flags, options: Vec::new() })
    }

    #[must_use]
    pub fn udp(src: SocketAddrV4, dst: SocketAddrV4) -> Self {
        let (sport, dport) = (src.port(), dst.port());
        Self::new(*src.ip(), *dst.ip(), Transport::Udp { sport, dport, checksum: true })
    }

    #[must_use]
    pub fn other(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8) -> Self {
        Self::new(src, dst, Transport::Other(protocol))
    }

    /// An ICMP error (RFC 792) that quotes the first `length` bytes of a packet, starting at its IPv4 header. `rest` is the
    /// second word of the ICMP header: the MTU in a "fragmentation needed".
    #[must_use]
    pub fn icmp_error(src: Ipv4Addr, dst: Ipv4Addr, kind: [u8; 2], rest: u32, quoted: &Self, length: usize) -> Self {
        let mut message = [&kind[..], &[0, 0], &rest.to_be_bytes()].concat();
        message.extend(quoted.bytes()[14..].iter().take(length));
        let checksum = internet_checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        Self::other(src, dst, 1).payload(&message)
    }

    /// An ICMP query or its answer (RFC 792): kind 8 is an echo request, 0 its reply.
    #[must_use]
    pub fn icmp_query(src: Ipv4Addr, dst: Ipv4Addr, kind: u8, id: u16, data: &[u8]) -> Self {
        let mut message = [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1], data].concat();
        let checksum = internet_checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        Self::other(src, dst, 1).payload(&message)
    }

    /// A protocol whose checksum, bytes 6 and 7 as in UDP, covers the addresses and the whole packet: UDP-Lite (136), DCCP (33).
    #[must_use]
    pub fn covering_addresses(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, data: &[u8]) -> Self {
        let frame = Self::other(src, dst, protocol);
        let mut message = [&[0x9c, 0x40, 0, 80, 0, 0, 0, 0], data].concat();
        let checksum = match frame.pseudo_checksum(&message) {
            // A sum of 0 is sent as 0xffff (RFC 3828).
            0 if protocol == 136 => 0xffff,
            sum => sum,
        };
        message[6..8].copy_from_slice(&checksum.to_be_bytes());
        frame.payload(&message)
    }

    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The frame with these VLAN tags.
    #[must_use]
    pub fn tagged(mut self, tags: &[[u16; 2]]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// The packet with these IPv4 options; their length is a multiple of 4 bytes.
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip_options = options.to_vec();
        self
    }

    /// The frame with another TCP or UDP source and destination.
    #[must_use]
    pub fn between(mut self, src: SocketAddrV4, dst: SocketAddrV4) -> Self {
        self.src = *src.ip();
        self.dst = *dst.ip();
        match &mut self.transport {
            Transport::Tcp { sport, dport, .. } | Transport::Udp { sport, dport, .. } => {
                *sport = src.port();
                *dport = dst.port();
            }
            Transport::Other(_) => {}
        }
        self
    }

    /// The frame as the router forwards it: with its own and the next hop's MAC, and the TTL one lower.
    #[must_use]
    pub fn forwarded(mut self, from: [u8; 6], to: [u8; 6]) -> Self {
        self.src_mac = from;
        self.dst_mac = to;
        self.ttl -= 1;
        self
    }

    /// The packet's fragments. `offsets` are where it is cut, in bytes after its IPv4 header, multiples of 8.
    #[must_use]
    pub fn fragments(&self, offsets: &[u16]) -> Vec<Self> {
        let whole = self.transport_bytes();
        let ends = offsets.iter().skip(1).copied().map(usize::from).chain([whole.len()]);
        let cut = |(&offset, end): (&u16, usize)| {
            let more = if end < whole.len() { 0x2000 } else { 0 };
            let mut fragment = self.clone();
            fragment.fragment = (offset / 8) | more;
            fragment.payload = whole[usize::from(offset)..end].to_vec();
            fragment.transport = Transport::Other(self.protocol());
            fragment
        };
        offsets.iter().zip(ends).map(cut).collect()
    }

    /// The bytes on the wire, without the frame check sequence.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let header_len = 20 + self.ip_options.len();
        let mut ip = vec![self.version_ihl.unwrap_or(0x40 | u8::try_from(header_len / 4).unwrap_or(15)), self.tos];
        let total_len = u16::try_from(header_len + transport.len()).unwrap_or(u16::MAX);
        ip.extend(self.total_len.unwrap_or(total_len).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.protocol(), 0, 0]);
        ip.extend(self.src.octets());
        ip.extend(self.dst.octets());
        ip.extend(&self.ip_options);
        let checksum = internet_checksum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let tags: Vec<u8> = self.tags.iter().flatten().flat_map(|word| word.to_be_bytes()).collect();
        [&self.dst_mac[..], &self.src_mac, &tags, &self.ethertype.to_be_bytes(), &ip, &transport].concat()
    }

    /// Its headers in the form that the benchmark's programs take: 16-bit words in network order, padded with 0.
    #[must_use]
    pub fn header_words(&self) -> [u16; 32] {
        let mut words = [0; 32];
        for (word, pair) in words.iter_mut().zip(self.bytes().chunks_exact(2).take(27)) {
            *word = u16::from_ne_bytes([pair[0], pair[1]]);
        }
        words
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Other(protocol) => protocol,
        }
    }

    fn transport_bytes(&self) -> Vec<u8> {
        match &self.transport {
            Transport::Tcp { sport, dport, flags, options } => {
                let mut bytes = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
                bytes.extend(1u32.to_be_bytes());
                bytes.extend(2u32.to_be_bytes());
                bytes.extend([u8::try_from((20 + options.len()) / 4).unwrap_or(15) << 4, *flags]);
                bytes.extend(0xfaf0u16.to_be_bytes());
                bytes.extend([0, 0, 0, 0]);
                bytes.extend(options);
                bytes.extend(&self.payload);
                let checksum = self.pseudo_checksum(&bytes);
                bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
                bytes
            }
            Transport::Udp { sport, dport, checksum } => {
                let len = u16::try_from(8 + self.payload.len()).unwrap_or(u16::MAX);
                let mut bytes = [sport.to_be_bytes(), dport.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
                bytes.extend(&self.payload);
                if *checksum {
                    // A sum of 0 is sent as 0xffff (RFC 768).
                    let sum = match self.pseudo_checksum(&bytes) {
                        0 => 0xffff,
                        sum => sum,
                    };
                    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
                }
                bytes
            }
            Transport::Other(_) => self.payload.clone(),
        }
    }

    fn pseudo_checksum(&self, transport: &[u8]) -> u16 {
        let len = u16::try_from(transport.len()).unwrap_or(u16::MAX).to_be_bytes();
        let pseudo = [&self.src.octets()[..], &self.dst.octets(), &[0, self.protocol()], &len, transport].concat();
        internet_checksum(&pseudo)
    }
}

/// The checksum of RFC 1071, computed over all bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |&low| low.into())).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
