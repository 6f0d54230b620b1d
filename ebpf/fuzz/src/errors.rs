//! ICMP errors reach the sender of the packet that they quote, whatever the packet.

use vipgate_abi::counters::Reason;

use crate::{
    hook::{Arriving, Outcome, Verdict},
    judge,
    table::Table,
    traffic,
    wire::{ETH_LEN, Ipv4, same_sum, untagged, word},
    world,
};

/// Bytes of transport header that every error quotes.
const QUOTED: usize = 8;

/// Number of bytes that the shortest error about a packet quotes. `None` for a later fragment or a shorter packet, about
/// which there is no error.
fn quoted(bytes: &[u8]) -> Option<(Ipv4, u8)> {
    let packet = Ipv4::of_frame(bytes).filter(|packet| packet.offset == 0 && packet.l4 + QUOTED <= packet.end)?;
    let length = packet.l4 + QUOTED - ETH_LEN;
    Some((packet, u8::try_from(length).expect("at most 60 bytes of header")))
}

/// A guest's error about a packet to its own address keeps its source. If the error may also be about a packet of a
/// connection, it is taken for that: the address was a VIP when the connection began, and belongs to another host now.
pub(crate) fn about_direct(came: &Arriving, before: &Table) {
    let bytes = untagged(&came.bytes);
    let Some((packet, length)) = quoted(&bytes) else { return };
    let key = judge::key(&packet, packet.ports(&bytes).expect("a noted packet has ports"));
    if before.find(&judge::reversed(&key)).is_some_and(|answers| answers.is_current()) {
        return;
    }
    let error = traffic::error(packet.dst, &bytes, 0, length, came.ifindex).expect("about a whole packet");
    let departure = error.run_at_egress();
    assert!(departure.leaves, "the error to a client of a guest's own address is lost: {came:?}");
}

/// True if the stack refuses a packet that it gets for this reason, with an ICMP error to the sender.
pub(crate) fn is_refused(reason: Reason, packet: &Ipv4, bytes: &[u8]) -> bool {
    const DONT_FRAGMENT: u16 = 0x4000;
    match reason {
        Reason::TtlExpired => true,
        Reason::OverMtu => word(bytes, packet.at + 6).is_some_and(|fragment| fragment & DONT_FRAGMENT != 0),
        // Depends on the route's MTU.
        Reason::NoNeighbour => packet.ttl <= 1,
        _ => false,
    }
}

/// The stack's error about a refused packet quotes the packet as its sender sent it. Returns true if there was such a packet.
pub(crate) fn about_refused(came: &Arriving, outcome: &Outcome, after: &Table) -> bool {
    let Verdict::Pass(reason) = outcome.verdict else { return false };
    let (sent, shown) = (untagged(&came.bytes), untagged(&outcome.bytes));
    let Some((packet, length)) = quoted(&shown) else { return false };
    let Some((was, ports)) = Ipv4::of_frame(&sent).and_then(|was| was.ports(&sent).map(|ports| (was, ports))) else {
        return false;
    };
    // No host accepts packets from itself, and the direction of such a packet is unknown.
    if !is_refused(reason, &packet, &shown) || was.src == was.dst {
        return false;
    }
    assert_eq!(packet.src, was.src, "the stack's error would go to another host than the sender");
    let flow = after.find(&judge::key(&was, ports)).expect("what the stack refuses has a flow");
    assert_eq!(packet.dst, flow.rewritten()[1].0.to_ne_bytes(), "routed by another destination than the packet's");
    let error = traffic::error(world::OWN[0], &shown, 1, length, came.ifindex).expect("about a whole packet");
    let told = error.run_at_egress().bytes;
    let quote = Ipv4::of_frame(&told).expect("an error is a whole packet").l4 + 8 - ETH_LEN;
    let mut expected = sent[ETH_LEN..][..usize::from(length)].to_vec();
    let partial = came.buffer.is_some_and(|buffer| buffer.partial_checksum);
    // A checksum of 0 can also be written as 0xffff.
    for at in [was.checksum_and_addresses().start, was.l4_checksum().start].map(|at| at - ETH_LEN) {
        let (Some(old), Some(new)) = (word(&expected, at), word(&told, ETH_LEN + quote + at)) else { continue };
        assert!(same_sum(old, new) || (partial && at > was.l4 - ETH_LEN), "quoted with another checksum");
        expected[at..at + 2].copy_from_slice(&new.to_be_bytes());
    }
    assert_eq!(told[ETH_LEN + quote..], expected, "quoted otherwise than it came: {came:?}, shown {shown:02x?}");
    true
}
