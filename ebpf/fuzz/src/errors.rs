//! Whom ICMP errors reach, whatever the packet that they are about.

use crate::{
    hook::Arriving,
    traffic,
    wire::{ETH_LEN, Ipv4, untagged},
};

/// Bytes of transport header that every error quotes.
const QUOTED: usize = 8;

/// Bytes of a packet that the shortest error about it quotes; None: there is none, as it is a later fragment, or shorter.
fn quoted(bytes: &[u8]) -> Option<(Ipv4, u8)> {
    let packet = Ipv4::of_frame(bytes).filter(|packet| packet.offset == 0 && packet.l4 + QUOTED <= packet.end)?;
    let length = packet.l4 + QUOTED - ETH_LEN;
    Some((packet, u8::try_from(length).expect("at most 60 bytes of header")))
}

/// A guest's error about what came to its own address keeps its source.
pub(crate) fn about_direct(came: &Arriving) {
    let bytes = untagged(&came.bytes);
    let Some((packet, length)) = quoted(&bytes) else { return };
    let error = traffic::error(packet.dst, &bytes, 0, length, came.ifindex).expect("about a whole packet");
    let departure = error.run_at_egress();
    assert!(departure.leaves, "who came to a guest's own address is not told: {came:?}");
}
