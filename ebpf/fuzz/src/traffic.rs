//! The packets that steps name.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::{
    frame::{Frame, Transport},
    hook::Arriving,
    input::{Shape, Step},
    wire::{ETH_LEN, Ipv4, UDP, sum},
    world::{self, PRIVATE, PUBLIC},
};

/// Where VLAN tags are in a frame.
const TAGS: usize = 12;

/// A packet that was sent on: as it came, as it left, and through which interface.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) came: Vec<u8>,
    pub(crate) left: Vec<u8>,
    pub(crate) ifindex: u32,
}

/// What earlier steps leave for later ones.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) sent: Vec<Sent>,
    mangles: Vec<(u8, u8)>,
    cut: usize,
    tags: Vec<u8>,
    first_buffer: Option<usize>,
}

impl Traffic {
    /// The packet of a step; None: the step is none, or names a packet that there was not.
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
                shaped(client, socket(vip, vip_port), protocol, shape, PUBLIC)
            }
            Step::Answer { to, shape } => {
                let sent = self.sent(*to)?;
                let (packet, src, dst) = ends(&sent.left)?;
                shaped(dst, src, packet.protocol, shape, sent.ifindex)
            }
            Step::Again { after, shape } => {
                let sent = self.sent(*after)?;
                let (packet, src, dst) = ends(&sent.came)?;
                shaped(src, dst, packet.protocol, shape, PUBLIC)
            }
            Step::Error { about, from, kind, quoted } => {
                let sent = self.sent(*about)?;
                // Its receiver, or a host on its way.
                let from = if *from == 0 { Ipv4::of_frame(&sent.left)?.dst } else { world::address(*from) };
                error(from, &sent.left, *kind, *quoted, sent.ifindex)?
            }
            Step::OwnError { about, kind, quoted } => {
                error([10, 1, 0, 1], &self.sent(*about)?.left, *kind, *quoted, PRIVATE)?
            }
            // Its tags are its own.
            Step::Raw { bytes } => {
                self.tags.clear();
                Arriving { bytes: bytes.clone(), ifindex: PUBLIC, buffer: None, first_buffer: None }
            }
            _ => return None,
        };
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

    /// The packet sent on so many before the last.
    fn sent(&self, back: u8) -> Option<&Sent> {
        self.sent.iter().nth_back(usize::from(back) % self.sent.len().max(1))
    }
}

fn socket(address: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(address), port)
}

/// The two ends of a frame's packet.
fn ends(bytes: &[u8]) -> Option<(Ipv4, SocketAddrV4, SocketAddrV4)> {
    let packet = Ipv4::of_frame(bytes)?;
    let (sport, dport) = packet.ports(bytes)?;
    let (src, dst) = (socket(packet.src, sport), socket(packet.dst, dport));
    Some((packet, src, dst))
}

fn shaped(src: SocketAddrV4, dst: SocketAddrV4, protocol: u8, shape: &Shape, ifindex: u32) -> Arriving {
    let mut frame = if protocol == UDP { Frame::udp(src, dst) } else { Frame::tcp(src, dst, shape.tcp_flags) };
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
    }
    let length = shape.payload.unwrap_or(0) % 2048;
    frame.payload = (0..length).map(|byte| byte.to_le_bytes()[0]).collect();
    Arriving { buffer: shape.buffer, ..Arriving::by(ifindex, frame) }
}

/// An ICMP error that quotes a frame's packet, to that packet's sender.
fn error(from: [u8; 4], about: &[u8], kind: u8, quoted: u8, ifindex: u32) -> Option<Arriving> {
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
