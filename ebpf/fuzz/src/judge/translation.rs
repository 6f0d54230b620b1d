//! What a translation may change in a packet, and in a packet that an ICMP error quotes.

use std::ops::Range;

use vipgate_abi::flow::FlowKey;
use vipgate_pipeline::maps;

use super::{key, reversed};
use crate::{
    table::Table,
    wire::{ICMP, Ipv4, UDP, UDP_LITE, add, same_sum, sum, word},
};

/// Checks that the packet was translated, and nothing else changed. A damaged packet must stay recognisable: every checksum
/// that covers a change is wrong by as much as before.
pub(super) fn translation(old: &[u8], new: &[u8], moved: bool, partial: bool) -> (Ipv4, Ipv4) {
    let before = Ipv4::of_frame(old).expect("a translated packet is a whole IPv4 packet");
    let after = Ipv4::of_frame(new).expect("a translation leaves a whole IPv4 packet");
    let mut allowed = vec![before.checksum_and_addresses()];
    if moved {
        allowed.extend([0..12, before.at + 8..before.at + 9]);
        assert!(before.ttl > 1 && after.ttl == before.ttl - 1, "time to live {} after {}", after.ttl, before.ttl);
    }
    assert!(same_sum(sum(&old[before.header()]), sum(&new[after.header()])), "the header's checksum is another");
    let (old_l4, new_l4) = (&old[before.l4..before.end], &new[after.l4..after.end]);
    if before.is_error(old) {
        allowed.push(before.l4_checksum());
        allowed.extend(allowed_in_quote(old, before.l4 + 8));
    } else {
        allowed.extend(before.ports_and_checksum(old));
    }
    // The ICMP checksum covers no addresses.
    if before.protocol == ICMP {
        assert!(same_sum(sum(old_l4), sum(new_l4)), "the ICMP checksum is another");
    }
    if before.covers_addresses() {
        let (old_sum, new_sum) = (field(old, &before), field(new, &after));
        let may_lack = matches!(before.protocol, UDP | UDP_LITE);
        if may_lack && old_sum == 0 {
            assert_eq!(new_sum, 0, "a datagram without checksum has got one");
        } else if partial {
            // The field holds the pseudo-header's sum, and may be off by as much as before.
            let expected = add(add(old_sum, !before.addresses_sum()), after.addresses_sum());
            assert!(same_sum(new_sum, expected), "the partial checksum is {new_sum:04x} instead of {expected:04x}");
        } else {
            let with_pseudo_header = |packet: &Ipv4, l4: &[u8]| add(packet.addresses_sum(), sum(l4));
            assert!(
                same_sum(with_pseudo_header(&before, old_l4), with_pseudo_header(&after, new_l4)),
                "the transport checksum is another"
            );
            assert!(!may_lack || new_sum != 0, "a datagram has lost its checksum");
        }
    }
    let mut expected = old.to_vec();
    for range in allowed {
        if range.end <= old.len() {
            expected[range.clone()].copy_from_slice(&new[range]);
        }
    }
    assert_eq!(expected, new, "something else changed");
    (before, after)
}

fn field(bytes: &[u8], packet: &Ipv4) -> u16 {
    word(bytes, packet.l4_checksum().start).expect("a translated packet has its transport header")
}

/// The fields in which a translated quote may differ: checksums, addresses, ports.
fn allowed_in_quote(bytes: &[u8], at: usize) -> Vec<Range<usize>> {
    let quoted = Ipv4::at(bytes, at).expect("a translated error quotes a packet");
    [vec![quoted.checksum_and_addresses()], quoted.ports_and_checksum(bytes)].concat()
}

/// An error's quote is the packet as its sender sent it: the reverse of what the answering flow's packets become. `is_own`
/// if the router's stack sent the error.
pub(super) fn quote(old: &[u8], new: &[u8], packet: &Ipv4, is_own: bool, table: &Table) {
    let at = packet.l4 + 8;
    let (translated, original) = (Ipv4::at(old, at), Ipv4::at(new, at));
    let (translated, original) = translated.zip(original).expect("a translated error quotes a packet");
    assert!(
        same_sum(sum(&old[translated.header()]), sum(&new[original.header()])),
        "the quoted header's checksum is another"
    );
    let ports = translated.ports(old).zip(original.ports(new));
    let (old_ports, new_ports) = ports.expect("a translated error quotes ports");
    let (shown, quoted) = (key(&translated, old_ports), key(&original, new_ports));
    // The quote of a packet that the stack has just refused gets the original destination, even if its flow is gone.
    let refused = is_own.then(|| maps::REFUSED.peek(shown)).flatten();
    let was_sent = refused.map(|sent| FlowKey { dst: sent.dst, dport: sent.dport, ..shown });
    if was_sent != Some(quoted) {
        quotes_its_flow(&shown, &quoted, table);
    }
    let outer = Ipv4::of_frame(new).expect("an error is a whole packet");
    assert_eq!(outer.dst, original.src, "the error does not go to the sender of the quoted packet");
    // Hosts behind the translation are not known outside; the router itself is.
    let is_hidden = original.dst != translated.dst && (!is_own || packet.src == translated.dst);
    let sender = if is_hidden { original.dst } else { packet.src };
    assert_eq!(outer.src, sender, "the error does not come from the address that is known outside");
}

/// A quote is the reverse of what the packets of the answering flow become.
fn quotes_its_flow(shown: &FlowKey, quoted: &FlowKey, table: &Table) {
    let answers = reversed(shown);
    let flow = table.find(&answers).expect("a translated error is about a flow");
    assert!(flow.is_current(), "translated though its backend's flows were ended");
    let [mut from, to] = flow.rewritten();
    if *quoted == answers {
        // As in `flow`.
        from.1 = quoted.dport;
    }
    assert_eq!(
        [(quoted.dst, quoted.dport), (quoted.src, quoted.sport)],
        [from, to],
        "quoted otherwise than it was sent"
    );
}
