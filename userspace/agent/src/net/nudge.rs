//! Makes both ends of TCP connections that are over send a segment. The packet path answers it with a reset; a silent end would
//! never learn that the connection is over.
//!
//! A reset that nobody has asked for would be ignored: it had to have the receiver's very numbers (RFC 5961, section 3), which
//! nobody here follows. But whoever has the connection answers an acknowledgement outside of its window, as a keep-alive is,
//! with one of its own (RFC 9293, section 3.10.7.4), and so with the numbers that the reset needs. Of two sequence numbers that
//! are half of all apart one at least is outside of a window, which is a quarter at most (RFC 7323, section 2.3). They have a
//! timestamp, for without it who has agreed on those may drop them unseen (section 3.2 there); whether it looks old or new
//! does not matter.

use std::{
    net::SocketAddrV4,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket,
    sockopt::SndBufForce,
};
use tracing::{debug, warn};
use vipgate_abi::checksum::fold;

/// Of the IPv4 header and the whole segment.
const IPV4_LEN: usize = 20;
const LENGTH: usize = IPV4_LEN + 32;
/// IANA protocol number.
const TCP: u8 = 6;
const SEQUENCES: [u32; 2] = [0, 1 << 31];
/// Bytes that the socket may hold: what waits for neighbours that are gone, 200 kB each, keeps none from the others.
const ROOM: usize = 16 << 20;

/// Sends such segments; it receives nothing.
#[derive(Debug)]
pub struct Nudger {
    socket: Option<OwnedFd>,
    has_failed: bool,
}

impl Nudger {
    /// In the calling thread's network namespace, with CAP_NET_RAW. Without a socket no end is nudged; that is logged.
    pub fn open() -> Self {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        match &raw {
            // Without that privilege the socket keeps the default size.
            Ok(socket) => drop(setsockopt(socket, SndBufForce, &ROOM)),
            Err(error) => warn!(%error, "no raw socket: only who sends learns that its connection was ended"),
        }
        Self { socket: raw.ok(), has_failed: false }
    }

    /// Nudges ends of connections, each given after its peer. What cannot be sent is left out: a full queue, no
    /// route, a filter. Never blocks.
    pub fn nudge(&mut self, ends: impl Iterator<Item = (SocketAddrV4, SocketAddrV4)>) {
        let Some(socket) = &self.socket else {
            return;
        };
        let (mut failures, mut last) = (0_u32, None);
        for (from, to) in ends {
            for sequence in SEQUENCES {
                let segment = segment(from, to, sequence);
                if let Err(error) = sendto(socket.as_raw_fd(), &segment, &SockaddrIn::from(to), MsgFlags::MSG_DONTWAIT)
                {
                    failures += 1;
                    last = Some((error, to));
                }
            }
        }
        let Some((error, to)) = last else {
            return;
        };
        if self.has_failed {
            debug!(%error, %to, failures, "segments to silent ends of connections could not be sent");
        } else {
            warn!(%error, %to, failures, "cannot have a silent end of an ended connection speak; more of this at level debug");
            self.has_failed = true;
        }
    }
}

/// An acknowledgement without data. The kernel fills in the IPv4 header's checksum and identification.
fn segment(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> [u8; LENGTH] {
    const DONT_FRAGMENT: u8 = 0x40;
    const TIME_TO_LIVE: u8 = 64;
    /// Of 32 bytes.
    const DATA_OFFSET: u8 = 8 << 4;
    const ACK: u8 = 0x10;
    /// Twice no operation, then the timestamps option (RFC 7323, appendix A), all of whose values are 0.
    const TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];
    let mut segment = [0; LENGTH];
    let (ipv4, tcp) = segment.split_at_mut(IPV4_LEN);
    ipv4[0] = 0x45;
    ipv4[2..4].copy_from_slice(&(LENGTH as u16).to_be_bytes());
    ipv4[6] = DONT_FRAGMENT;
    ipv4[8..10].copy_from_slice(&[TIME_TO_LIVE, TCP]);
    ipv4[12..16].copy_from_slice(&from.ip().octets());
    ipv4[16..20].copy_from_slice(&to.ip().octets());
    tcp[..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[12..14].copy_from_slice(&[DATA_OFFSET, ACK]);
    tcp[20..24].copy_from_slice(&TIMESTAMPS);
    let sum = |bytes: &[u8]| bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum::<u64>();
    let pseudo_header = sum(&ipv4[12..]) + u64::from(u16::from(TCP).to_be()) + u64::from((tcp.len() as u16).to_be());
    let checksum = !fold(pseudo_header + sum(tcp));
    tcp[16..18].copy_from_slice(&checksum.to_ne_bytes());
    segment
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_segment_is_a_bare_acknowledgement_with_timestamps_and_a_right_checksum() {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 10), 80);
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 40_000);
        let sent = segment(from, to, 1 << 31);
        let ipv4 = [0x45, 0, 0, 52, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 10, 10, 1, 0, 101];
        assert_eq!(sent[..20], ipv4);
        let tcp = [0, 80, 0x9c, 0x40, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x10, 0, 0];
        assert_eq!(sent[20..36], tcp);
        assert_eq!(sent[38..], [0, 0, 1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
        // RFC 1071: with its checksum a segment and its pseudo-header sum up to all ones.
        let whole = [&sent[12..20], &[0, 6, 0, 32], &sent[20..]].concat();
        let sum: u32 = whole.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!(sum % 0xffff, 0);
    }
}
