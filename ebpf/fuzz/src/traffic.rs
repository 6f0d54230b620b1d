//! The packets that steps name.
//!
//! In a step's `what`, 0x03 is the protocol (TCP, UDP, ICMP or another one), 0x1c is the ICMP type or the other protocol's
//! number, and 0x20 is the device that the packet comes or leaves by.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::{
    frame::{Frame, Transport},
    hook::Arriving,
    input::{Shape, Step},
    wire::{DCCP, ETH_LEN, ICMP, Ipv4, TCP, UDP, UDP_LITE, add, sum, word},
    world::{self, PRIVATE, PUBLIC},
};

/// Offset of the VLAN tags in a frame.
const TAGS: usize = 12;
/// Length of a frame's first field, its destination.
const MAC_LEN: usize = 6;

/// A packet that was forwarded: as it came, as it left, and by which interfaces.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) came: Vec<u8>,
    pub(crate) came_by: u32,
    pub(crate) left: Vec<u8>,
    pub(crate) ifindex: u32,
}

/// A packet's protocol and endpoints. An ICMP query's identifier is the port that is not 0.
#[derive(Clone, Copy, Debug)]
struct Ends {
    protocol: u8,
    /// The ICMP type.
    kind: u8,
    src: SocketAddrV4,
    dst: SocketAddrV4,
}

impl Ends {
    /// The endpoints that small numbers name.
    fn named(from: u8, to: u8, ports: u8, what: u8) -> Self {
        const KINDS: [u8; 8] = [8, 13, 15, 17, 0, 14, 9, 42];
        const PROTOCOLS: [u8; 8] = [47, 50, 4, 132, UDP_LITE, DCCP, 253, 0];
        const DESTINATIONS: [u16; 4] = [53, 443, 80, 81];
        let choice = usize::from(what >> 2 & 7);
        let (protocol, kind) = match what & 3 {
            0 => (TCP, 0),
            1 => (UDP, 0),
            2 => (ICMP, KINDS[choice]),
            _ => (PROTOCOLS[choice], 0),
        };
        let dport = if protocol == ICMP { 0 } else { DESTINATIONS[usize::from(ports >> 3 & 3)] };
        let src = socket(world::address(from), port(ports));
        Self { protocol, kind, src, dst: socket(world::destination(to), dport) }
    }

    /// The endpoints of a frame's packet.
    fn of_frame(bytes: &[u8]) -> Option<Self> {
        let packet = Ipv4::of_frame(bytes)?;
        let (sport, dport) = packet.ports(bytes)?;
        let kind = if packet.protocol == ICMP { bytes[packet.l4] } else { 0 };
        let (src, dst) = (socket(packet.src, sport), socket(packet.dst, dport));
        Some(Self { protocol: packet.protocol, kind, src, dst })
    }

    /// The endpoints of the answer.
    fn answered(self) -> Self {
        let kind = match self.kind {
            8 => 0,
            0 => 8,
            13 | 15 | 17 => self.kind + 1,
            14 | 16 | 18 => self.kind - 1,
            other => other,
        };
        Self { kind, src: self.dst, dst: self.src, ..self }
    }
}

/// State that earlier steps leave for later ones.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) sent: Vec<Sent>,
    mangles: Vec<(u8, u8)>,
    cut: usize,
    tags: Vec<u8>,
    first_buffer: Option<usize>,
    /// Set by [`Step::Astray`].
    source: Option<[u8; 4]>,
    device: Option<u32>,
}

impl Traffic {
    /// The packet of a step; `None` if the step is no packet, or refers to one that does not exist.
    pub(crate) fn packet(&mut self, step: &Step) -> Option<Arriving> {
        let mut packet = match step {
            Step::Mangle { offset, bits } => {
                self.mangles.push((*offset, *bits));
                return None;
            }
            Step::Tag { tags } => {
                self.tags = tags.words().as_flattened().iter().flat_map(|word| word.to_be_bytes()).collect();
                return None;
            }
            Step::Astray { what } => {
                (self.source, self.device) = (world::forged(*what), world::device_astray(*what));
                return None;
            }
            Step::Buffers { first } => {
                self.first_buffer = Some(usize::from(*first));
                return None;
            }
            Step::Cut { bytes } => {
                self.cut += usize::from(*bytes);
                return None;
            }
            Step::Ask { client, port, service, shape } => {
                let (vip, protocol, vip_port) = world::service(*service);
                let client = socket(world::address(*client), 40_000 + u16::from(port & 7));
                shaped(Ends { protocol, kind: 0, src: client, dst: socket(vip, vip_port) }, shape, PUBLIC)
            }
            Step::Answer { to, shape } => {
                let sent = self.sent(*to)?;
                shaped(Ends::of_frame(&sent.left)?.answered(), shape, sent.ifindex)
            }
            Step::Again { after, shape } => {
                let sent = self.sent(*after)?;
                shaped(Ends::of_frame(&sent.came)?, shape, sent.came_by)
            }
            Step::Begin { from, to, ports, what, shape } | Step::Leave { from, to, ports, what, shape } => {
                shaped(Ends::named(*from, *to, *ports, *what), shape, world::device(what >> 4))
            }
            Step::Error { about, from, kind, quoted } => {
                let sent = self.sent(*about)?;
                // The packet's receiver, or a host on the path.
                let from = if *from == 0 { Ipv4::of_frame(&sent.left)?.dst } else { world::address(*from) };
                error(from, &sent.left, *kind, *quoted, sent.ifindex)?
            }
            Step::OwnError { about, kind, quoted } => {
                error([10, 1, 0, 1], &self.sent(*about)?.left, *kind, *quoted, PRIVATE)?
            }
            Step::Own { about } => {
                let sent = self.sent(*about)?;
                shaped(Ends::of_frame(&sent.left)?, &Shape::default(), sent.ifindex)
            }
            // Raw bytes have their own tags.
            Step::Raw { bytes } => {
                self.tags.clear();
                Arriving { bytes: bytes.clone(), ifindex: PUBLIC, buffer: None, first_buffer: None }
            }
            _ => return None,
        };
        if matches!(step, Step::Own { .. }) {
            // A packet that the stack has just created is not damaged.
            return Some(packet);
        }
        if let Some(source) = self.source.take() {
            set_source(&mut packet.bytes, source);
        }
        if let Some(device) = self.device.take() {
            packet.ifindex = device;
            packet.bytes.splice(..MAC_LEN.min(packet.bytes.len()), world::mac(device));
        }
        if !self.tags.is_empty() {
            packet.bytes.splice(TAGS..TAGS, self.tags.drain(..));
        }
        let length = packet.bytes.len().saturating_sub(std::mem::take(&mut self.cut));
        packet.bytes.truncate(length);
        packet.first_buffer = self.first_buffer.take();
        for (offset, bits) in self.mangles.drain(..) {
            if let Some(byte) = packet.bytes.get_mut(usize::from(offset)) {
                *byte ^= bits;
            }
        }
        Some(packet)
    }

    /// The forwarded packet so many before the last one.
    fn sent(&self, back: u8) -> Option<&Sent> {
        self.sent.iter().nth_back(usize::from(back) % self.sent.len().max(1))
    }
}

/// The source port that a number names.
pub(crate) fn port(number: u8) -> u16 {
    const PORTS: [u16; 8] = [40_000, 40_001, 1023, 1024, 80, 81, 0, u16::MAX];
    PORTS[usize::from(number & 7)]
}

fn socket(address: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(address), port)
}

fn shaped(ends: Ends, shape: &Shape, ifindex: u32) -> Arriving {
    let Ends { protocol, kind, src, dst } = ends;
    let length = shape.payload.unwrap_or(0) % 2048;
    let payload: Vec<u8> = (0..length).map(|byte| byte.to_le_bytes()[0]).collect();
    let mut frame = match protocol {
        TCP => Frame::tcp(src, dst, shape.tcp_flags).payload(&payload),
        UDP => Frame::udp(src, dst).payload(&payload),
        ICMP => Frame::icmp_query(*src.ip(), *dst.ip(), kind, src.port() | dst.port(), &payload),
        UDP_LITE | DCCP => Frame::covering_addresses(*src.ip(), *dst.ip(), protocol, &payload),
        _ => Frame::other(*src.ip(), *dst.ip(), protocol).payload(&payload),
    };
    match &mut frame.transport {
        Transport::Tcp { options, .. } => {
            let words = shape.tcp_options.unwrap_or(0) % 11;
            options.resize(usize::from(words) * 4, 1);
        }
        Transport::Udp { checksum, .. } => *checksum = !shape.without_checksum,
        Transport::Other(_) => {}
    }
    if let Some(ttl) = shape.ttl {
        frame.ttl = ttl;
    }
    if let Some((id, cut)) = shape.fragment {
        frame.id = id.into();
        let flags = u16::from(cut & 0x80) << 6 | u16::from(cut & 0x40) << 8;
        frame.fragment = flags | u16::from(cut & 0x3f);
    }
    if let Some(words) = shape.ip_options {
        frame.ip_options.resize(usize::from(words % 11) * 4, 1);
        // The largest numbers add a source route behind so many other options, truncated if there is no room.
        if let Some(behind) = words.checked_sub(220) {
            let route = [if behind & 1 == 0 { 131 } else { 137 }, 7, 4, 10, 1, 0, 1];
            for (option, byte) in frame.ip_options.iter_mut().skip(behind.into()).zip(route) {
                *option = byte;
            }
        }
    }
    Arriving { buffer: shape.buffer, ..Arriving::by(ifindex, frame) }
}

/// Changes an IPv4 packet's source, and keeps its checksums correct.
fn set_source(bytes: &mut [u8], source: [u8; 4]) {
    let Some(packet) = Ipv4::of_frame(bytes) else { return };
    let of = |bytes: &[u8]| sum(&bytes[packet.at + 12..packet.at + 16]);
    let before = of(bytes);
    bytes[packet.at + 12..packet.at + 16].copy_from_slice(&source);
    let change = add(of(bytes), !before);
    let l4 = match packet.protocol {
        TCP if packet.offset == 0 => Some(packet.l4 + 16),
        UDP | UDP_LITE if packet.offset == 0 => Some(packet.l4 + 6).filter(|at| word(bytes, *at) != Some(0)),
        DCCP if packet.offset == 0 => Some(packet.l4 + 6),
        _ => None,
    };
    for at in [Some(packet.at + 10), l4].into_iter().flatten() {
        if let Some(held) = word(bytes, at) {
            bytes[at..at + 2].copy_from_slice(&(!add(!held, change)).to_be_bytes());
        }
    }
}

/// An ICMP error that quotes a frame's packet, to that packet's sender.
pub(crate) fn error(from: [u8; 4], about: &[u8], kind: u8, quoted: u8, ifindex: u32) -> Option<Arriving> {
    let to = Ipv4::of_frame(about)?.src;
    let kind = match kind % 4 {
        0 => 3,
        1 => 11,
        2 => 12,
        _ => 8,
    };
    let mut message = vec![kind, 4, 0, 0, 0, 0, 5, 0];
    message.extend(about[ETH_LEN..].iter().take(quoted.into()));
    let checksum = !sum(&message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let frame = Frame::other(Ipv4Addr::from(from), Ipv4Addr::from(to), 1).payload(&message);
    Some(Arriving::by(ifindex, frame))
}
