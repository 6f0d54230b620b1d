//! What must hold of a packet's way through the pipeline, whatever the packet.

use vipgate_abi::{
    backend::Backend,
    counters::Reason,
    flow::{FlowKey, State},
    interface::Interface,
    meter::{Binding, Metered, OUTBOUND},
    service::{Kind, Service, ServiceKey},
    snat::{FIRST_PORT, OWN_PORTS, SnatKind, SnatRule},
};
use vipgate_host_kernel::{
    bindings::{BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS},
    btf_maps::lpm_trie::Key,
    kernel::{self, Route, Socket},
};
use vipgate_pipeline::maps;

use crate::{
    errors,
    hook::{Arriving, Departure, Hook, Outcome, Verdict},
    refusals::{claims_a_guests_source, is_elsewhere, is_forged, is_forwardable, is_martian, is_off_path, refused},
    states,
    table::{Slot, Table},
    wire::{ETH_LEN, ICMP, Ipv4, TCP, UDP, UDP_LITE, add, is_in_vlan, same_sum, sum, untagged, word},
    world,
};

const FIN_SYN_RST_ACK: u8 = 0x17;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Jiffies for which a first fragment's ports are believed.
const FRAGMENTS_LIFETIME: u32 = 4096;

/// A packet's first fragment, which later ones depend on.
#[derive(Debug)]
struct FirstFragment {
    id: u16,
    key: FlowKey,
    seen: u32,
}

/// What is remembered from packet to packet.
#[derive(Debug)]
pub(crate) struct Judge {
    hook: Hook,
    first_fragments: Vec<FirstFragment>,
    /// How many of them the packet path remembers.
    remembered: usize,
}

impl Judge {
    pub(crate) fn new(hook: Hook) -> Self {
        Self { hook, first_fragments: Vec::new(), remembered: 0 }
    }

    /// Checks one packet that came at this time, between the table before it and the one after.
    pub(crate) fn packet(&mut self, came: &Arriving, outcome: &Outcome, now: u32, before: &Table, after: &Table) {
        let translated = judge(came, outcome, now, before, after);
        if translated {
            self.addressee(came, before);
        }
        let goes_on = translated
            || matches!(
                outcome.verdict,
                Verdict::Pass(Reason::NoNeighbour | Reason::OverMtu | Reason::TtlExpired)
                    | Verdict::Drop(Reason::OverLimit | Reason::Unroutable)
            );
        self.remembers(came, goes_on);
        let Some(packet) = Ipv4::of_frame(&came.bytes) else { return };
        let id = word(&came.bytes, packet.at + 4).unwrap_or_default();
        let ports = packet.ports(&came.bytes);
        if let Some(ports) = ports.filter(|_| packet.more_fragments) {
            self.first_fragments.push(FirstFragment { id, key: key(&packet, ports), seen: now });
        }
        if translated && packet.offset != 0 && ports.is_none() {
            self.later_fragment(&packet, id, &outcome.bytes, now, after);
        }
    }

    /// Checks what is remembered of a packet that the stack was about to send.
    pub(crate) fn departed(&mut self, packet: &Arriving, departure: &Departure) {
        self.remembers(packet, departure.leaves);
    }

    fn remembers(&mut self, packet: &Arriving, goes_on: bool) {
        let remembered = maps::FRAGMENTS.count();
        assert!(goes_on || remembered == self.remembered, "nobody's first fragment is remembered: {packet:?}");
        self.remembered = remembered;
    }

    /// What is translated was addressed to the device that it came by. XDP asks that of each connection once, and only
    /// whether it is for a group of each packet.
    fn addressee(&self, came: &Arriving, before: &Table) {
        assert_eq!(came.bytes[0] & 1, 0, "addressed to a group");
        let packet = Ipv4::of_frame(&came.bytes).expect("what is translated is a whole IPv4 packet");
        let ports = packet.ports(&came.bytes);
        let is_known = ports.is_none_or(|ports| before.find(&key(&packet, ports)).is_some());
        if self.hook == Hook::Tc || !is_known && world::is_interface(came.ifindex) {
            assert_eq!(came.bytes[..6], world::mac(came.ifindex), "addressed to another host");
        }
    }

    /// A later fragment goes where a first one went that came not long ago. Several may have come, not all of them whole.
    fn later_fragment(&self, packet: &Ipv4, id: u16, new: &[u8], now: u32, table: &Table) {
        let sent = Ipv4::of_frame(new).expect("a translated fragment is a packet");
        let portless = key(packet, (0, 0));
        let fits = |first: &FirstFragment| {
            let same_packet = first.id == id && FlowKey { sport: 0, dport: 0, ..first.key } == portless;
            let ends = table.find(&first.key).map(|flow| flow.rewritten().map(|(address, _)| address.to_ne_bytes()));
            same_packet && now.wrapping_sub(first.seen) <= FRAGMENTS_LIFETIME && ends == Some([sent.src, sent.dst])
        };
        assert!(self.first_fragments.iter().any(fits), "no first fragment went there: {:?}", self.first_fragments);
    }
}

/// A packet counts against one limit at most, with what it is on the wire: true when it did. What is over a limit is what a
/// limit counted as dropped, and nothing else is.
pub(crate) fn metered(
    came: &Arriving,
    outcome: &Outcome,
    before: &[[Metered; 2]],
    after: &[[Metered; 2]],
    table: &Table,
) -> bool {
    let directions = before.iter().flatten().zip(after.iter().flatten());
    let counted: Vec<(usize, Metered)> = directions
        .map(|(before, after)| Metered {
            passed_packets: after.passed_packets - before.passed_packets,
            passed_bytes: after.passed_bytes - before.passed_bytes,
            dropped_packets: after.dropped_packets - before.dropped_packets,
            dropped_bytes: after.dropped_bytes - before.dropped_bytes,
        })
        .enumerate()
        .filter(|(_, counted)| *counted != Metered::default())
        .collect();
    assert!(counted.len() <= 1, "one packet counted against several limits: {counted:?}");
    let is_over = outcome.verdict == Verdict::Drop(Reason::OverLimit);
    let Some((at, counted)) = counted.first() else {
        assert!(!is_over, "over a limit that did not count it");
        return false;
    };
    assert_eq!(is_over, counted.dropped_packets != 0, "dropped for a limit that counted {counted:?}");
    let [packets, bytes] = if is_over {
        [counted.dropped_packets, counted.dropped_bytes]
    } else {
        [counted.passed_packets, counted.passed_bytes]
    };
    let frame = untagged(&came.bytes);
    let packet = Ipv4::of_frame(&frame).expect("only IPv4 has a limit");
    assert_eq!([packets, bytes], on_wire(came, &packet, &frame), "counted as it is not on the wire");
    // Whom a limit is about may be told from what it came as, unless it opens its flow.
    let ports = packet.ports(&frame).filter(|_| packet.offset == 0);
    if let Some(flow) = ports.and_then(|ports| table.find(&key(&packet, ports))) {
        assert_eq!(at % 2 == OUTBOUND, flow.flow.mark.is_outward(), "counted the other way: {flow:?}");
        assert_ne!(world::backend(flow.flow.backend()).meter, Binding::default(), "not limited: {flow:?}");
    }
    true
}

/// The frames that a packet goes out as, and their bytes.
fn on_wire(came: &Arriving, packet: &Ipv4, frame: &[u8]) -> [u64; 2] {
    let length = packet.end - packet.at;
    let headers = packet.header_len(frame);
    let frames = match came.buffer {
        Some(buffer) if buffer.segments != 0 => usize::from(buffer.segments),
        Some(buffer) if buffer.segment_size != 0 => (length - headers).div_ceil(buffer.segment_size.into()).max(1),
        _ => 1,
    };
    [frames as u64, (ETH_LEN + length + (frames - 1) * (ETH_LEN + headers)) as u64]
}

/// Checks one packet by itself: true when it was translated.
fn judge(came: &Arriving, outcome: &Outcome, now: u32, before: &Table, after: &Table) -> bool {
    let (old, new) = (&came.bytes, &outcome.bytes);
    let translated = match outcome.verdict {
        Verdict::Drop(reason) => {
            refused(came, reason, before);
            false
        }
        Verdict::Reset => false,
        Verdict::Redirect(ifindex) => {
            let next_hop = sent(came, new, ifindex, &[BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_FRAG_NEEDED]);
            assert_eq!(new[0..6], next_hop, "the destination is the next hop's");
            true
        }
        Verdict::ByNeighbour(ifindex) => {
            let all = [BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH];
            sent(came, new, ifindex, &all);
            true
        }
        Verdict::Pass(Reason::NoNeighbour | Reason::OverMtu | Reason::TtlExpired) if old != new => true,
        Verdict::Pass(reason) => {
            assert_eq!(old, new, "passed up as {reason:?}, yet changed");
            // For another host, of a VLAN, or unread: the stack refuses it, or another program sees it.
            let is_unread = reason == Reason::Malformed && came.first_buffer.is_some();
            let is_others = is_unread || matches!(reason, Reason::OtherHost | Reason::Tagged | Reason::HandedOver);
            let source = Ipv4::source_of_frame(&untagged(old)).filter(|_| !is_others);
            assert!(
                source.is_none_or(|source| !world::OWN.contains(&source)),
                "passed up as from the router: {came:?}"
            );
            // To whom no way leads the stack drops, and whom no network has.
            let is_stacks = |source: &u32| device_towards(*source).is_none() || source.to_ne_bytes()[0] == 0;
            let source = source.map(u32::from_ne_bytes).filter(|source| !is_stacks(source));
            let is_known = matches!(reason, Reason::NoNeighbour | Reason::OverMtu | Reason::TtlExpired);
            assert!(
                is_known || source.is_none_or(|source| !is_off_path(came.ifindex, source)),
                "passed up by another way than back: {came:?}"
            );
            false
        }
    };
    assert!(!is_in_vlan(old) || matches!(outcome.verdict, Verdict::Pass(_)), "of a VLAN: the stack's");
    if translated {
        let moved = outcome.verdict.leaves_by().is_some();
        // What leaves has left its tag here, which `sent` saw.
        let (old, new) = &if moved { (untagged(old), untagged(new)) } else { (old.clone(), new.clone()) };
        let partial = came.buffer.is_some_and(|buffer| buffer.partial_checksum);
        let (old_packet, new_packet) = translation(old, new, moved, partial);
        assert_eq!(old_packet.names_its_way(old), Some(false), "it names its own way: {came:?}");
        if old_packet.is_error(old) {
            quote(old, new, &old_packet, false, before);
            assert!(!is_forged(came, old, &old_packet), "an error from where its connection is not: {came:?}");
        } else if let (Some(sent), Some(received)) = (old_packet.ports(old), new_packet.ports(new)) {
            let mut ends = [key(&old_packet, sent), key(&new_packet, received)];
            // What the stack refuses it gets from who sent it.
            if let Verdict::Pass(reason @ (Reason::OverMtu | Reason::TtlExpired)) = outcome.verdict
                && errors::is_refused(reason, &new_packet, new)
            {
                assert_eq!((ends[1].src, ends[1].sport), (ends[0].src, ends[0].sport), "the stack tells another");
                let flow = after.find(&ends[0]).expect("a translated packet has a flow");
                (ends[1].src, ends[1].sport) = flow.rewritten()[0];
            }
            let known = flow(old, &old_packet, &ends, now, before, after);
            by_its_side(came, &ends[0], known.as_ref(), after);
        }
    }
    translated
}

/// Checks what the stack sends: turned back or as it was, and stopped where its source may not be seen.
pub(crate) fn departure(came: &Arriving, departure: &Departure, table: &Table) {
    let new = &departure.bytes;
    if departure.translated {
        let (packet, _) = translation(&came.bytes, new, false, false);
        quote(&came.bytes, new, &packet, true, table);
    } else {
        assert_eq!(&came.bytes, new, "no error to turn back, yet changed");
    }
    let src = Ipv4::source_of_frame(new);
    let source = src.and_then(|src| world::snat_rule(came.ifindex, u32::from_ne_bytes(src)));
    // The router's own addresses are no guest's.
    let is_own = src.is_some_and(|src| !is_forwardable(u32::from_ne_bytes(src)));
    let may_leave = source.is_none() || is_own;
    let answers = departure.leaves && Ipv4::of_frame(new).is_some_and(|packet| answers_direct(&packet, new));
    assert!(departure.leaves == may_leave || answers, "by interface {}: {source:?}", came.ifindex);
}

/// Whether somebody came to the guest's own address to whom this may be an answer, or an error about what he sent. A later
/// fragment does not tell.
fn answers_direct(packet: &Ipv4, bytes: &[u8]) -> bool {
    if packet.is_error(bytes) {
        let quoted = Ipv4::at(bytes, packet.l4 + 8).filter(|quoted| quoted.src == packet.dst);
        let ports = quoted.as_ref().and_then(|quoted| quoted.ports(bytes));
        let asked = quoted.zip(ports).map(|(quoted, ports)| key(&quoted, ports));
        return asked.is_some_and(|asked| maps::DIRECT.get_ptr(reversed(&asked)).is_some());
    }
    packet.offset != 0 || packet.ports(bytes).is_some_and(|ports| maps::DIRECT.get_ptr(key(packet, ports)).is_some())
}

/// Whether it is known that this packet's sender came to its destination's own address.
pub(crate) fn is_direct(came: &Arriving) -> bool {
    let packet = Ipv4::of_frame(&came.bytes);
    let ports = packet.as_ref().and_then(|packet| packet.ports(&came.bytes));
    let known = packet.zip(ports).map(|(packet, ports)| reversed(&key(&packet, ports)));
    known.is_some_and(|known| maps::DIRECT.get_ptr(known).is_some())
}

/// What has become known so came by the device by which its destination's packets get another source, and is the stack's.
pub(crate) fn direct(came: &Arriving, outcome: &Outcome) {
    let packet = Ipv4::of_frame(&came.bytes).expect("what is known of was read");
    let source = world::snat_rule(came.ifindex, u32::from_ne_bytes(packet.dst));
    assert!(source.is_some(), "nothing is translated back to {:?}", packet.dst);
    let is_forged = device_towards(u32::from_ne_bytes(packet.src)).is_none();
    let expected = match outcome.verdict {
        Verdict::Pass(_) => true,
        Verdict::Drop(Reason::ReversePath) => true,
        verdict => is_forged && verdict == Verdict::Drop(Reason::Martian),
    };
    assert!(expected, "{:?} of what is to a guest's own address", outcome.verdict);
}

/// Checks what the router's own packet did to the flows: it ends a guest's whose port it has, and none else.
pub(crate) fn own(came: &Arriving, before: &Table, after: &Table) {
    let packet = Ipv4::of_frame(&came.bytes).expect("the stack makes whole packets");
    let ports = packet.ports(&came.bytes).expect("what was sent on tells its ports");
    let key = key(&packet, ports);
    let has_its_port = |held: &Slot| {
        let mark = held.flow.mark;
        mark.is_reply() && !mark.is_outward() && world::backend(held.flow.backend()).addr == key.src
    };
    match before.find(&reversed(&key)).filter(has_its_port) {
        Some(held) => assert_eq!(&before.without(&held), after, "more or less than the guest's connection ended"),
        None => assert_eq!(before, after, "a flow that is no guest's ended"),
    }
}

pub(crate) fn interface_of(ifindex: u32) -> Interface {
    (0..4).map(world::interface).find(|interface| interface.ifindex == ifindex).expect("sent out of an interface")
}

/// A packet that was sent out of a device: to where the kernel routes it with one of these answers, fitting, with its hop
/// counted. Gives the next hop's address.
fn sent(came: &Arriving, new: &[u8], ifindex: u32, answers: &[u32]) -> [u8; 6] {
    let packet = Ipv4::of_frame(new).expect("what is sent on is a whole IPv4 packet");
    let route = kernel::route(packet.dst).expect("what is sent on has a route");
    assert!(
        answers.contains(&route.answer) && route.ifindex == ifindex,
        "sent to interface {ifindex} against {route:?}"
    );
    let interface = interface_of(ifindex);
    assert_eq!(new[6..12], interface.mac, "the source is the interface's");
    assert_eq!(packet.at, 14, "it leaves without tags");
    let largest = match came.buffer {
        // Each segment has a size of its own, which only its sender knows.
        Some(buffer) if buffer.segment_size == u16::MAX => 0,
        Some(buffer) if buffer.segment_size != 0 => packet.header_len(new) + usize::from(buffer.segment_size),
        _ => packet.end - packet.at,
    };
    assert!(largest as u32 <= interface.mtu, "larger than the way out's {}", interface.mtu);
    route.gateway.unwrap_or_else(|| kernel::neighbour(packet.dst))
}

/// Checks that nothing but a translation happened, and that whoever could tell a damaged packet from a good one still can:
/// every checksum that covers what changed is wrong by as much as before.
fn translation(old: &[u8], new: &[u8], moved: bool, partial: bool) -> (Ipv4, Ipv4) {
    let before = Ipv4::of_frame(old).expect("what is translated is a whole IPv4 packet");
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
    // It covers no addresses.
    if before.protocol == ICMP {
        assert!(same_sum(sum(old_l4), sum(new_l4)), "the ICMP checksum is another");
    }
    if before.covers_addresses() {
        let (old_sum, new_sum) = (field(old, &before), field(new, &after));
        let may_lack = matches!(before.protocol, UDP | UDP_LITE);
        if may_lack && old_sum == 0 {
            assert_eq!(new_sum, 0, "a datagram without checksum has got one");
        } else if partial {
            // The field is the pseudo-header's sum: it differs from it by what it did before.
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

/// What a turned-back quote may differ in: checksums, addresses, ports.
fn allowed_in_quote(bytes: &[u8], at: usize) -> Vec<std::ops::Range<usize>> {
    let quoted = Ipv4::at(bytes, at).expect("what is turned back quotes a packet");
    [vec![quoted.checksum_and_addresses()], quoted.ports_and_checksum(bytes)].concat()
}

/// An error's quote is the packet as its receiver sent it: what the answering flow's packets become, the other way round.
/// `is_own`: the router's stack says so.
fn quote(old: &[u8], new: &[u8], packet: &Ipv4, is_own: bool, table: &Table) {
    let at = packet.l4 + 8;
    let (translated, original) = (Ipv4::at(old, at), Ipv4::at(new, at));
    let (translated, original) = translated.zip(original).expect("what is turned back quotes a packet");
    assert!(
        same_sum(sum(&old[translated.header()]), sum(&new[original.header()])),
        "the quoted header's checksum is another"
    );
    let ports = translated.ports(old).zip(original.ports(new));
    let (old_ports, new_ports) = ports.expect("what is turned back quotes ports");
    let (shown, quoted) = (key(&translated, old_ports), key(&original, new_ports));
    // What the stack has just refused is turned back by where it was sent, whatever has become of its flow.
    let refused = is_own.then(|| maps::REFUSED.peek(shown)).flatten();
    let was_sent = refused.map(|sent| FlowKey { dst: sent.dst, dport: sent.dport, ..shown });
    if was_sent != Some(quoted) {
        quotes_its_flow(&shown, &quoted, table);
    }
    let outer = Ipv4::of_frame(new).expect("an error is a whole packet");
    assert_eq!(outer.dst, original.src, "an error for another than who sent what it quotes");
    // Where the quoted packet went inside, nobody but the router itself is known outside.
    let is_hidden = original.dst != translated.dst && (!is_own || packet.src == translated.dst);
    let sender = if is_hidden { original.dst } else { packet.src };
    assert_eq!(outer.src, sender, "an error from another than who sent it is known as");
}

/// A quote is what the packets of the answering flow become, the other way round.
fn quotes_its_flow(shown: &FlowKey, quoted: &FlowKey, table: &Table) {
    let answers = reversed(shown);
    let flow = table.find(&answers).expect("what is turned back is about a flow");
    assert!(flow.is_current(), "turned back though its backend's flows were ended");
    let [mut from, to] = flow.rewritten();
    if *quoted == answers {
        // As in `flow`.
        from.1 = quoted.dport;
    }
    assert_eq!([(quoted.dst, quoted.dport), (quoted.src, quoted.sport)], [from, to], "quoted as nobody sent it");
}

/// A translated packet is what its flow says; a flow stays where it goes, a new one is a service's or a guest's. The flow as it
/// was before; none: it is a new one.
fn flow(
    old: &[u8],
    packet: &Ipv4,
    [came, left]: &[FlowKey; 2],
    now: u32,
    before: &Table,
    after: &Table,
) -> Option<Slot> {
    let flow = after.find(came).expect("a translated packet has a flow");
    let mut rewritten = flow.rewritten();
    // A request and an answer of identifier 0 have the same key; only a request's is the flow's to change.
    let is_answer = came.protocol == ICMP && came.sport == 0 && !packet.is_request(old);
    if is_answer || !has_ports(came.protocol) && reversed(left) == *came {
        // What looks like its own answers has a port in the table alone, to tell the two directions apart.
        rewritten[0].1 = left.sport;
    }
    assert_eq!(
        rewritten,
        [(left.src, left.sport), (left.dst, left.dport)],
        "translated as its flow does not say: {flow:?}"
    );
    let flags = if packet.protocol == TCP { old[packet.l4 + 13] & FIN_SYN_RST_ACK } else { SYN };
    let known = before.find(came).filter(Slot::is_current);
    let starts_anew = |known: &Slot| {
        let answers = before.answers(known);
        packet.protocol == TCP && states::starts_anew(known, answers.as_ref(), now, flags)
    };
    let known = known.filter(|known| !starts_anew(known));
    match &known {
        Some(known) => assert_eq!(known.rewritten(), flow.rewritten(), "a connection went elsewhere"),
        None => opened(&flow, [came, left], flags, before),
    }
    known
}

/// A packet comes from where its flow says that its side of the connection is, and that is where the kernel had it when it
/// said so.
fn by_its_side(came: &Arriving, key: &FlowKey, known: Option<&Slot>, after: &Table) {
    let flow = after.find(key).expect("a translated packet has a flow");
    let mark = flow.flow.mark;
    if known.is_none() {
        assert!(!claims_a_guests_source(key, came.ifindex), "another network's guest began it: {flow:?}");
        assert!(!is_off_path(came.ifindex, key.src), "begun by another way than back: {flow:?}");
        assert!(mark.is_outward() || !is_elsewhere(flow.flow.backend()), "sent to another network: {flow:?}");
    }
    if !mark.is_reply() && !mark.is_outward() {
        assert_eq!(flow.flow.from, 0, "clients come by any device: {flow:?}");
        return;
    }
    assert_eq!(u32::from(flow.flow.from), came.ifindex, "by another device than its flow's: {flow:?}");
    match known {
        Some(known) if known.flow.from == flow.flow.from => {}
        // A guest begins where it is.
        None => assert!(!mark.is_reply(), "an answer to nothing: {flow:?}"),
        Some(_) => assert_eq!(device_towards(key.src), Some(came.ifindex), "moved to where it is not: {flow:?}"),
    }
}

/// The device by which the kernel sends to a host.
pub(crate) fn device_towards(host: u32) -> Option<u32> {
    kernel::route(host.to_ne_bytes()).filter(is_known).map(|route| route.ifindex)
}

/// A new flow: its first packet came with these TCP flags, those of a SYN for all that is not TCP.
fn opened(flow: &Slot, [came, left]: [&FlowKey; 2], flags: u8, before: &Table) {
    assert!(!is_martian(came), "no host has this source: {came:?}");
    let takes_all = match service(came) {
        Some(service) => {
            served(flow, &service, [came, left], before);
            service.kind == Kind::Elastic as u8
        }
        None => {
            let source = snat_rule_of(came).expect("a new flow is a service's or a guest's");
            begun(flow, &source, [came, left], before);
            source.kind == SnatKind::Elastic as u8
        }
    };
    // What has one place to go goes on though it was forgotten.
    assert!(flags == SYN || takes_all && flags & (SYN | RST | ACK) == ACK, "flags {flags:#x} open no connection");
    let is_live = |held: &Slot| held.is_current() && held.word.state() > State::Answered;
    if let Some(held) = before.find(&reversed(left)).filter(is_live) {
        let is_own = held.rewritten() == [(came.dst, came.dport), (came.src, came.sport)];
        assert!(is_own, "a live connection's port was given away: {held:?}, {came:?} left as {left:?}");
    }
}

/// A service's new flow has a backend of its, and the client's own source: another port only where its answers would have been
/// another connection's.
fn served(flow: &Slot, service: &Service, [came, left]: [&FlowKey; 2], before: &Table) {
    let number = flow.flow.backend();
    let backend = world::backend(number);
    assert!(!flow.flow.mark.is_outward(), "a client's packet is for inside: {flow:?}");
    if service.kind == Kind::Elastic as u8 {
        assert_eq!(number, service.backend, "another guest than the one whose elastic IP it is");
        assert_eq!((left.dst, left.dport), (backend.addr, came.dport), "sent to another port than was asked");
        let identity = world::snat_rule(service.device(), came.src)
            .filter(|source| source.kind == SnatKind::Elastic as u8)
            .map_or(came.src, |source| source.vip);
        assert_eq!(left.src, identity, "a guest meets others as its elastic IP");
        let would_meet_itself = FlowKey { sport: came.sport, ..*left };
        if reversed(&would_meet_itself) != *came {
            keeps_port(came, left, before);
        }
        return;
    }
    if service.kind == Kind::Forward as u8 {
        let (source, port) = (service.source, u16::from_be(came.dport).wrapping_add(service.port_shift));
        assert_eq!(number, service.backend, "another backend than the service's one");
        assert_eq!((left.dst, left.dport), (backend.addr, port.to_be()), "sent to where its target is not");
        assert_eq!(came.src & service.source_mask, source, "the service takes nothing from there");
    } else {
        assert_eq!(service.kind, Kind::Balance as u8, "a service that is Disabled takes nothing");
        let ring = service.ring_base..service.ring_base + service.ring_len;
        let mut backends = ring.filter_map(|index| maps::RINGS.get(index).copied());
        assert!(backends.any(|member| member == number), "no backend of the service");
        assert_eq!((left.dst, left.dport), (backend.addr, backend.port), "sent to where its backend is not");
    }
    assert_eq!(left.src, came.src, "the client is another");
    if service.kind == Kind::Forward as u8 || left.sport == came.sport {
        keeps_port(came, left, before);
    } else {
        // Another of its backends may have been the first choice.
        let ring = service.ring_base..service.ring_base + service.ring_len;
        let mut backends = ring.filter_map(|index| maps::RINGS.get(index).copied()).map(world::backend);
        let is_taken = |backend: Backend| {
            let to = FlowKey { sport: came.sport, dst: backend.addr, dport: backend.port, ..*left };
            before.find(&reversed(&to)).is_some()
        };
        assert!(backends.any(is_taken), "another port though nobody has its own: {came:?} left as {left:?}");
        of_a_kind(came, left);
    }
}

/// A connection has its own port, if no flow is answered there.
fn keeps_port(came: &FlowKey, left: &FlowKey, before: &Table) {
    if left.sport != came.sport {
        let own = FlowKey { sport: came.sport, ..*left };
        assert!(before.find(&reversed(&own)).is_some(), "its own port is free: {came:?} left as {left:?}");
        of_a_kind(came, left);
    }
}

/// Only who comes from a system port gets one.
fn of_a_kind(came: &FlowKey, left: &FlowKey) {
    let is_system = |port: u16| (1..FIRST_PORT).contains(&u16::from_be(port));
    assert_ne!(left.sport, 0, "{came:?} got no port");
    let may_be = came.protocol != ICMP && u16::from_be(came.sport) < FIRST_PORT;
    assert!(may_be || !is_system(left.sport), "a system port was given away: {came:?} left as {left:?}");
}

/// What a guest begins leaves as its VIP for where it was sent: from its own port where the VIP is its alone, or nobody else
/// has that port for the same destination.
fn begun(flow: &Slot, source: &SnatRule, [came, left]: [&FlowKey; 2], before: &Table) {
    assert!(flow.flow.mark.is_outward(), "a guest's packet is for outside: {flow:?}");
    assert_eq!(flow.flow.backend(), source.backend, "another's traffic");
    assert_eq!(
        (left.src, left.dst, left.dport),
        (source.vip, came.dst, came.dport),
        "not its VIP, or not where it went"
    );
    if source.kind == SnatKind::Elastic as u8 {
        assert_eq!(left.sport, came.sport, "an elastic IP keeps ports");
        return;
    }
    assert_eq!(source.kind, SnatKind::Masquerade as u8, "a VIP that is Disabled sends nothing");
    if !has_ports(came.protocol) && came.protocol != ICMP {
        return;
    }
    let may_be_given = |port: u16| {
        let service = service(&FlowKey { dport: port, ..reversed(left) });
        // What is forwarded to the guest's own port is its own outside, too.
        let is_forwarded = |service: &Service| {
            let to = world::backend(service.backend).addr;
            service.kind == Kind::Forward as u8 && service.port_shift == 0 && to == came.src && port == came.sport
        };
        let is_served = source.shared != 0 && service.is_some_and(|service| !is_forwarded(&service));
        let port = u16::from_be(port);
        let is_own = kernel::has_socket(Socket { protocol: came.protocol, port });
        let first = if came.protocol != ICMP && u16::from_be(came.sport) < FIRST_PORT { 1 } else { FIRST_PORT };
        (first..OWN_PORTS).contains(&port) && !is_served && !is_own
    };
    assert!(may_be_given(left.sport), "port {} is not to be given", u16::from_be(left.sport));
    let own_reply = FlowKey { dport: came.sport, ..reversed(left) };
    if left.sport != came.sport && may_be_given(came.sport) {
        assert!(before.find(&own_reply).is_some(), "its own port is free");
    }
}

/// What the VIP offers for such packets.
pub(crate) fn service(key: &FlowKey) -> Option<Service> {
    maps::SERVICES.get(&Key::new(ServiceKey::EXACT, ServiceKey::new(key.dst, key.protocol, key.dport))).copied()
}

/// What such packets' source becomes by the device that the kernel sends them by, whether or not this one fits.
pub(crate) fn snat_rule_of(key: &FlowKey) -> Option<SnatRule> {
    let route = kernel::route(key.dst.to_ne_bytes()).filter(is_known)?;
    world::snat_rule(route.ifindex, key.src)
}

/// Whether a route leads out by a device.
pub(crate) fn is_known(route: &Route) -> bool {
    matches!(route.answer, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_NO_NEIGH)
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP)
}

pub(crate) fn key(packet: &Ipv4, (sport, dport): (u16, u16)) -> FlowKey {
    let (src, dst) = (u32::from_ne_bytes(packet.src), u32::from_ne_bytes(packet.dst));
    FlowKey { src, dst, sport: sport.to_be(), dport: dport.to_be(), protocol: packet.protocol, reserved: 0, domain: 0 }
}

pub(crate) fn reversed(key: &FlowKey) -> FlowKey {
    FlowKey { src: key.dst, dst: key.src, sport: key.dport, dport: key.sport, ..*key }
}
