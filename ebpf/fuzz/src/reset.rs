//! Checks packets that were answered with a reset, and packets of ended connections that were not.

use vipgate_abi::{counters::Reason, snat::SnatKind};

use crate::{
    hook::{Arriving, Outcome, Verdict},
    judge::{key, snat_rule_of},
    table::Table,
    wire::{Ipv4, TCP, add, sum},
};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Checks one packet.
pub(crate) fn check(came: &Arriving, outcome: &Outcome, before: &Table, after: &Table) {
    let key = Ipv4::of_frame(&came.bytes).and_then(|packet| Some(key(&packet, packet.ports(&came.bytes)?)));
    let ended = key.and_then(|key| before.find(&key)).filter(|flow| !flow.is_current());
    if outcome.verdict == Verdict::Reset {
        let is_unknown = key.is_some_and(|key| before.find(&key).is_none());
        let is_sharing = |key| snat_rule_of(&key).is_some_and(|source| source.kind == SnatKind::Masquerade as u8);
        let is_guests = is_unknown && key.is_some_and(is_sharing);
        assert!(ended.is_some() || is_guests, "reset, though its connection was not ended");
        assert_eq!(before, after, "a reset changes no flow");
        let partial = came.buffer.is_some_and(|buffer| buffer.partial_checksum);
        assert_eq!(outcome.bytes, answer(&came.bytes, partial), "answered to {:02x?}", came.bytes);
    } else if let (Some(flow), Verdict::Drop(Reason::FlowEnded)) = (ended, outcome.verdict)
        && flow.flow.key.protocol == TCP
    {
        let packet = Ipv4::of_frame(&came.bytes).expect("a flow's packet is a whole IPv4 packet");
        let flags = came.bytes[packet.l4 + 13];
        assert!(flags & RST != 0, "its sender got no reset: flags {flags:#x}, {flow:?}");
    }
}

/// The reset that answers a segment (RFC 9293, section 3.10.7.1).
fn answer(frame: &[u8], partial: bool) -> Vec<u8> {
    let sent = Ipv4::of_frame(frame).expect("a packet that is answered is a whole IPv4 packet");
    let tcp = &frame[sent.l4..];
    let field = |at: usize| [tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]];
    let flags = tcp[13];
    assert_eq!(flags & RST, 0, "a reset is answered");
    let (number, acknowledgment, own) = if flags & ACK != 0 {
        (field(8), [0; 4], RST)
    } else {
        let data = sent.end - sent.l4 - usize::from(tcp[12] >> 4) * 4;
        let beside = usize::from(flags & SYN != 0) + usize::from(flags & FIN != 0);
        let next = u32::from_be_bytes(field(4)).wrapping_add((data + beside) as u32);
        ([0; 4], next.to_be_bytes(), RST | ACK)
    };
    let addresses = [sent.dst, sent.src].concat();
    let mut ipv4 = [&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0], &addresses[..]].concat();
    let checksum = !sum(&ipv4);
    ipv4[10..12].copy_from_slice(&checksum.to_be_bytes());
    let ports = [&tcp[2..4], &tcp[..2]].concat();
    let mut segment = [&ports[..], &number, &acknowledgment, &[0x50, own, 0, 0, 0, 0, 0, 0]].concat();
    let pseudo_header = sum(&[&addresses[..], &[0, TCP, 0, 20]].concat());
    let checksum = if partial { pseudo_header } else { !add(pseudo_header, sum(&segment)) };
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    // The reset keeps the packet's VLAN tags.
    [&frame[6..12], &frame[..6], &frame[12..sent.at], &ipv4, &segment].concat()
}
