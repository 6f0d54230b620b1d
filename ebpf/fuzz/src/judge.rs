//! What must hold when a packet passes the pipeline, whatever the packet.

mod opened;
mod translation;

use vipgate_abi::{
    counters::Reason,
    flow::FlowKey,
    interface::Interface,
    meter::{Binding, Metered, OUTBOUND},
    service::{Service, ServiceKey},
    snat::SnatRule,
};
use vipgate_host_kernel::{
    bindings::{BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS},
    btf_maps::lpm_trie::Key,
    kernel::{self, Route},
};
use vipgate_pipeline::maps;

use self::{
    opened::opened,
    translation::{quote, translation},
};
use crate::{
    errors,
    hook::{Arriving, Departure, Hook, Outcome, Verdict},
    refusals::{claims_a_guests_source, is_elsewhere, is_forged, is_forwardable, is_off_path, refused},
    states,
    table::{Slot, Table},
    wire::{ETH_LEN, ICMP, Ipv4, TCP, UDP, is_in_vlan, untagged, word},
    world,
};

const FIN_SYN_RST_ACK: u8 = 0x17;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Jiffies for which a first fragment's ports are remembered.
const FRAGMENTS_LIFETIME: u32 = 4096;

/// A packet's first fragment, by whose ports later fragments are translated.
#[derive(Debug)]
struct FirstFragment {
    id: u16,
    key: FlowKey,
    seen: u32,
}

/// Checks packets; remembers what later packets depend on.
#[derive(Debug)]
pub(crate) struct Judge {
    hook: Hook,
    first_fragments: Vec<FirstFragment>,
    /// Number of first fragments that the packet path remembers.
    remembered: usize,
}

impl Judge {
    pub(crate) fn new(hook: Hook) -> Self {
        Self { hook, first_fragments: Vec::new(), remembered: 0 }
    }

    /// Checks one packet that arrived at this time, by the flow table before and after it.
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

    /// Checks what the packet path remembers of a packet that the stack was about to send.
    pub(crate) fn departed(&mut self, packet: &Arriving, departure: &Departure) {
        self.remembers(packet, departure.leaves);
    }

    fn remembers(&mut self, packet: &Arriving, goes_on: bool) {
        let remembered = maps::FRAGMENTS.count();
        assert!(
            goes_on || remembered == self.remembered,
            "a first fragment of no connection is remembered: {packet:?}"
        );
        self.remembered = remembered;
    }

    /// A translated packet was addressed to the device that it came by. XDP checks the device's address once per
    /// connection, and the group bit for every packet.
    fn addressee(&self, came: &Arriving, before: &Table) {
        assert_eq!(came.bytes[0] & 1, 0, "addressed to a group");
        let packet = Ipv4::of_frame(&came.bytes).expect("a translated packet is a whole IPv4 packet");
        let ports = packet.ports(&came.bytes);
        let is_known = ports.is_none_or(|ports| before.find(&key(&packet, ports)).is_some());
        if self.hook == Hook::Tc || !is_known && world::is_interface(came.ifindex) {
            assert_eq!(came.bytes[..6], world::mac(came.ifindex), "addressed to another host");
        }
    }

    /// A later fragment goes where a recent first fragment went. There may have been several, some of them malformed.
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

/// A packet counts against at most one limit, with its size on the wire. It is dropped as over a limit if, and only if, a limit
/// counted it as dropped. Returns true if the packet was counted.
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
    assert_eq!([packets, bytes], on_wire(came, &packet, &frame), "counted with another size than on the wire");
    // A known flow shows in which direction the packet counts.
    let ports = packet.ports(&frame).filter(|_| packet.offset == 0);
    if let Some(flow) = ports.and_then(|ports| table.find(&key(&packet, ports))) {
        assert_eq!(at % 2 == OUTBOUND, flow.flow.mark.is_outward(), "counted the other way: {flow:?}");
        assert_ne!(world::backend(flow.flow.backend()).meter, Binding::default(), "not limited: {flow:?}");
    }
    true
}

/// Number of frames that a packet leaves as, and their bytes.
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

/// Checks one packet by itself. Returns true if it was translated.
fn judge(came: &Arriving, outcome: &Outcome, now: u32, before: &Table, after: &Table) -> bool {
    let (old, new) = (&came.bytes, &outcome.bytes);
    let is_translated = match outcome.verdict {
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
            passed(came, outcome, reason);
            false
        }
    };
    assert!(!is_in_vlan(old) || matches!(outcome.verdict, Verdict::Pass(_)), "a VLAN's frame did not go to the stack");
    if is_translated {
        translated(came, outcome, now, before, after);
    }
    is_translated
}

/// Checks a packet that goes up the stack as it came.
fn passed(came: &Arriving, outcome: &Outcome, reason: Reason) {
    let (old, new) = (&came.bytes, &outcome.bytes);
    assert_eq!(old, new, "passed up as {reason:?}, yet changed");
    // A packet for another host, of a VLAN, or unparsed: the stack refuses it, or another program gets it.
    let is_unread = reason == Reason::Malformed && came.first_buffer.is_some();
    let is_others = is_unread || matches!(reason, Reason::OtherHost | Reason::Tagged | Reason::HandedOver);
    let source = Ipv4::source_of_frame(&untagged(old)).filter(|_| !is_others);
    assert!(source.is_none_or(|source| !world::OWN.contains(&source)), "passed up as from the router: {came:?}");
    // The stack itself drops packets from sources without a route, and from 0.0.0.0/8.
    let is_stacks = |source: &u32| device_towards(*source).is_none() || source.to_ne_bytes()[0] == 0;
    let source = source.map(u32::from_ne_bytes).filter(|source| !is_stacks(source));
    let is_known = matches!(reason, Reason::NoNeighbour | Reason::OverMtu | Reason::TtlExpired);
    assert!(
        is_known || source.is_none_or(|source| !is_off_path(came.ifindex, source)),
        "passed up by another way than back: {came:?}"
    );
}

/// Checks a translated packet.
fn translated(came: &Arriving, outcome: &Outcome, now: u32, before: &Table, after: &Table) {
    let (old, new) = (&came.bytes, &outcome.bytes);
    let moved = outcome.verdict.leaves_by().is_some();
    // A packet that leaves has no tag any more, as `sent` checked.
    let (old, new) = &if moved { (untagged(old), untagged(new)) } else { (old.clone(), new.clone()) };
    let partial = came.buffer.is_some_and(|buffer| buffer.partial_checksum);
    let (old_packet, new_packet) = translation(old, new, moved, partial);
    assert_eq!(old_packet.names_its_way(old), Some(false), "it has a source route: {came:?}");
    if old_packet.is_error(old) {
        quote(old, new, &old_packet, false, before);
        assert!(!is_forged(came, old, &old_packet), "a forged error was translated: {came:?}");
    } else if let (Some(sent), Some(received)) = (old_packet.ports(old), new_packet.ports(new)) {
        let mut ends = [key(&old_packet, sent), key(&new_packet, received)];
        // A packet that the stack refuses keeps its sender's address.
        if let Verdict::Pass(reason @ (Reason::OverMtu | Reason::TtlExpired)) = outcome.verdict
            && errors::is_refused(reason, &new_packet, new)
        {
            assert_eq!(
                (ends[1].src, ends[1].sport),
                (ends[0].src, ends[0].sport),
                "the stack's error would go to another host"
            );
            let flow = after.find(&ends[0]).expect("a translated packet has a flow");
            (ends[1].src, ends[1].sport) = flow.rewritten()[0];
        }
        let known = flow(old, &old_packet, &ends, now, before, after);
        by_its_side(came, &ends[0], known.as_ref(), after);
    }
}

/// Checks a packet that the stack sends: its quote is translated back or it is unchanged, and it is dropped if its source
/// must not be seen outside.
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

/// True if this may be a guest's answer to a client of its own address, or an error to that client. A later fragment may be
/// either.
fn answers_direct(packet: &Ipv4, bytes: &[u8]) -> bool {
    if packet.is_error(bytes) {
        let quoted = Ipv4::at(bytes, packet.l4 + 8).filter(|quoted| quoted.src == packet.dst);
        let ports = quoted.as_ref().and_then(|quoted| quoted.ports(bytes));
        let asked = quoted.zip(ports).map(|(quoted, ports)| key(&quoted, ports));
        return asked.is_some_and(|asked| maps::DIRECT.get_ptr(reversed(&asked)).is_some());
    }
    packet.offset != 0 || packet.ports(bytes).is_some_and(|ports| maps::DIRECT.get_ptr(key(packet, ports)).is_some())
}

/// True if the packet path has noted that this packet's sender talks to its destination's own address.
pub(crate) fn is_direct(came: &Arriving) -> bool {
    let packet = Ipv4::of_frame(&came.bytes);
    let ports = packet.as_ref().and_then(|packet| packet.ports(&came.bytes));
    let known = packet.zip(ports).map(|(packet, ports)| reversed(&key(&packet, ports)));
    known.is_some_and(|known| maps::DIRECT.get_ptr(known).is_some())
}

/// Such a packet came by the device whose SNAT rule applies to its destination, and the stack gets it.
pub(crate) fn direct(came: &Arriving, outcome: &Outcome) {
    let packet = Ipv4::of_frame(&came.bytes).expect("a noted packet was parsed");
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

/// The router's own packet ends the guest's connection that uses the same port, and no other.
pub(crate) fn own(came: &Arriving, before: &Table, after: &Table) {
    let packet = Ipv4::of_frame(&came.bytes).expect("the stack makes whole packets");
    let ports = packet.ports(&came.bytes).expect("what was sent on tells its ports");
    let key = key(&packet, ports);
    let has_its_port = |held: &Slot| {
        let mark = held.flow.mark;
        mark.is_reply() && !mark.is_outward() && world::backend(held.flow.backend()).addr == key.src
    };
    match before.find(&reversed(&key)).filter(has_its_port) {
        Some(held) => assert_eq!(&before.without(&held), after, "not exactly the guest's connection ended"),
        None => assert_eq!(before, after, "a flow that does not belong to a guest ended"),
    }
}

pub(crate) fn interface_of(ifindex: u32) -> Interface {
    (0..4).map(world::interface).find(|interface| interface.ifindex == ifindex).expect("sent out of an interface")
}

/// Checks a packet that was sent: the kernel's lookup gave one of these results and this interface, and the packet fits its
/// MTU. Returns the next hop's MAC address.
fn sent(came: &Arriving, new: &[u8], ifindex: u32, answers: &[u32]) -> [u8; 6] {
    let packet = Ipv4::of_frame(new).expect("a packet that is sent is a whole IPv4 packet");
    let route = kernel::route(packet.dst).expect("a packet that is sent has a route");
    assert!(
        answers.contains(&route.answer) && route.ifindex == ifindex,
        "sent to interface {ifindex} against {route:?}"
    );
    let interface = interface_of(ifindex);
    assert_eq!(new[6..12], interface.mac, "the source is the interface's");
    assert_eq!(packet.at, 14, "it leaves without tags");
    let largest = match came.buffer {
        // GSO_BY_FRAGS: each segment has a size of its own, which only the sender knows.
        Some(buffer) if buffer.segment_size == u16::MAX => 0,
        Some(buffer) if buffer.segment_size != 0 => packet.header_len(new) + usize::from(buffer.segment_size),
        _ => packet.end - packet.at,
    };
    assert!(largest as u32 <= interface.mtu, "larger than the interface's MTU of {}", interface.mtu);
    route.gateway.unwrap_or_else(|| kernel::neighbour(packet.dst))
}

/// A translated packet is rewritten as its flow says. A known flow goes where it went before, a new one belongs to a
/// service or a guest. Returns the flow as it was before; `None` if it is new.
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
    // A request and an answer with identifier 0 have the same key; the flow changes the request's identifier only.
    let is_answer = came.protocol == ICMP && came.sport == 0 && !packet.is_request(old);
    if is_answer || !has_ports(came.protocol) && reversed(left) == *came {
        // If both directions have the same key, only the table has a port that tells them apart.
        rewritten[0].1 = left.sport;
    }
    assert_eq!(
        rewritten,
        [(left.src, left.sport), (left.dst, left.dport)],
        "translated otherwise than its flow says: {flow:?}"
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

/// A packet comes by the device that its flow names, and the kernel routed to the sender by that device when the flow got it.
fn by_its_side(came: &Arriving, key: &FlowKey, known: Option<&Slot>, after: &Table) {
    let flow = after.find(key).expect("a translated packet has a flow");
    let mark = flow.flow.mark;
    if known.is_none() {
        assert!(!claims_a_guests_source(key, came.ifindex), "another network's guest began it: {flow:?}");
        assert!(!is_off_path(came.ifindex, key.src), "begun by another way than back: {flow:?}");
        assert!(mark.is_outward() || !is_elsewhere(flow.flow.backend()), "sent to another network: {flow:?}");
    }
    if !mark.is_reply() && !mark.is_outward() {
        assert_eq!(flow.flow.from, 0, "a client's flow names a device: {flow:?}");
        return;
    }
    assert_eq!(u32::from(flow.flow.from), came.ifindex, "by another device than its flow's: {flow:?}");
    match known {
        Some(known) if known.flow.from == flow.flow.from => {}
        None => assert!(!mark.is_reply(), "an answer opened a flow: {flow:?}"),
        Some(_) => assert_eq!(
            device_towards(key.src),
            Some(came.ifindex),
            "moved to a device that does not lead to it: {flow:?}"
        ),
    }
}

/// The device by which the kernel sends to a host.
pub(crate) fn device_towards(host: u32) -> Option<u32> {
    kernel::route(host.to_ne_bytes()).filter(is_known).map(|route| route.ifindex)
}

/// The service that takes such packets.
pub(crate) fn service(key: &FlowKey) -> Option<Service> {
    maps::SERVICES.get(&Key::new(ServiceKey::EXACT, ServiceKey::new(key.dst, key.protocol, key.dport))).copied()
}

/// The SNAT rule for such packets at the device that the kernel sends them by, whichever device they come by.
pub(crate) fn snat_rule_of(key: &FlowKey) -> Option<SnatRule> {
    let route = kernel::route(key.dst.to_ne_bytes()).filter(is_known)?;
    world::snat_rule(route.ifindex, key.src)
}

/// True if the route leads out by a device.
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
