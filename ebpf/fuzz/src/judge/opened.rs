//! What must hold of a new flow: it belongs to a service or to a guest, and has the source and port that it should have.

use vipgate_abi::{
    backend::Backend,
    flow::{FlowKey, State},
    service::{Kind, Service},
    snat::{FIRST_PORT, OWN_PORTS, SnatKind, SnatRule},
};
use vipgate_host_kernel::kernel::{self, Socket};
use vipgate_pipeline::maps;

use super::{ACK, RST, SYN, has_ports, reversed, service, snat_rule_of};
use crate::{
    refusals::is_martian,
    table::{Slot, Table},
    wire::ICMP,
    world,
};

/// Checks a new flow. `flags` are the first packet's TCP flags; for other protocols, SYN.
pub(super) fn opened(flow: &Slot, [came, left]: [&FlowKey; 2], flags: u8, before: &Table) {
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
    // A connection of an elastic IP has only one place to go, so it goes on even after it was evicted.
    assert!(flags == SYN || takes_all && flags & (SYN | RST | ACK) == ACK, "flags {flags:#x} open no connection");
    let is_live = |held: &Slot| held.is_current() && held.word.state() > State::Answered;
    if let Some(held) = before.find(&reversed(left)).filter(is_live) {
        let is_own = held.rewritten() == [(came.dst, came.dport), (came.src, came.sport)];
        assert!(is_own, "a live connection's port was given away: {held:?}, {came:?} left as {left:?}");
    }
}

/// A service's new flow goes to one of its backends, with the client's address. The port differs only if the answers' key
/// belonged to another connection.
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
        assert_eq!((left.dst, left.dport), (backend.addr, port.to_be()), "not sent to its target");
        assert_eq!(came.src & service.source_mask, source, "the service takes nothing from there");
    } else {
        assert_eq!(service.kind, Kind::Balance as u8, "a service that is Disabled takes nothing");
        let ring = service.ring_base..service.ring_base + service.ring_len;
        let mut backends = ring.filter_map(|index| maps::RINGS.get(index).copied());
        assert!(backends.any(|member| member == number), "no backend of the service");
        assert_eq!((left.dst, left.dport), (backend.addr, backend.port), "not sent to its backend");
    }
    assert_eq!(left.src, came.src, "the client's address changed");
    if service.kind == Kind::Forward as u8 || left.sport == came.sport {
        keeps_port(came, left, before);
    } else {
        // Another backend of the service may have been the first choice.
        let ring = service.ring_base..service.ring_base + service.ring_len;
        let mut backends = ring.filter_map(|index| maps::RINGS.get(index).copied()).map(world::backend);
        let is_taken = |backend: Backend| {
            let to = FlowKey { sport: came.sport, dst: backend.addr, dport: backend.port, ..*left };
            before.find(&reversed(&to)).is_some()
        };
        assert!(backends.any(is_taken), "another port though its own is free: {came:?} left as {left:?}");
        of_a_kind(came, left);
    }
}

/// A connection keeps its own port if no flow is answered there.
fn keeps_port(came: &FlowKey, left: &FlowKey, before: &Table) {
    if left.sport != came.sport {
        let own = FlowKey { sport: came.sport, ..*left };
        assert!(before.find(&reversed(&own)).is_some(), "its own port is free: {came:?} left as {left:?}");
        of_a_kind(came, left);
    }
}

/// Only a connection from a system port gets one.
fn of_a_kind(came: &FlowKey, left: &FlowKey) {
    let is_system = |port: u16| (1..FIRST_PORT).contains(&u16::from_be(port));
    assert_ne!(left.sport, 0, "{came:?} got no port");
    let may_be = came.protocol != ICMP && u16::from_be(came.sport) < FIRST_PORT;
    assert!(may_be || !is_system(left.sport), "a system port was given away: {came:?} left as {left:?}");
}

/// A guest's connection leaves with its VIP as source, to the destination that the guest named. It keeps its port if the
/// VIP is an elastic IP, or if no other connection to the same destination uses that port.
fn begun(flow: &Slot, source: &SnatRule, [came, left]: [&FlowKey; 2], before: &Table) {
    assert!(flow.flow.mark.is_outward(), "a guest's packet is for outside: {flow:?}");
    assert_eq!(flow.flow.backend(), source.backend, "another's traffic");
    assert_eq!(
        (left.src, left.dst, left.dport),
        (source.vip, came.dst, came.dport),
        "another source than its VIP, or another destination"
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
        // A VIP's port that is forwarded to this guest's port is this guest's outside, too.
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
