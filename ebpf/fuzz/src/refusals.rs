//! Checks that a dropped packet matches its reason.

use vipgate_abi::{
    backend::Backend,
    counters::{Reason, Severity},
    flow::FlowKey,
    service::{Kind, Service, ServiceKey},
    snat::SnatKind,
};
use vipgate_host_kernel::{btf_maps::lpm_trie::Key, kernel};
use vipgate_pipeline::maps;

use crate::{
    hook::Arriving,
    judge::{device_towards, is_known, key, service, snat_rule_of},
    table::Table,
    wire::{ETH_LEN, Ipv4, TCP, UDP, untagged},
    world,
};

/// Checks that the reason for which a packet was dropped applies to it.
pub(crate) fn refused(came: &Arriving, reason: Reason, before: &Table) {
    let bytes = &came.bytes;
    match reason {
        Reason::TooManyConnections => full(bytes, before),
        Reason::Disabled => disabled(bytes),
        Reason::NoFreePort => exhausted(bytes),
        Reason::Martian => martian(bytes),
        Reason::ReversePath => off_path(came),
        Reason::WrongSide => astray(came, before),
        Reason::Spoofed => spoofed(came),
        Reason::Elsewhere => elsewhere(bytes, before),
        Reason::Unreadable => unreadable(bytes),
        Reason::SourceRoute => source_route(bytes),
        _ => {}
    }
}

/// The packet is for a service that has its maximum of connections.
fn full(bytes: &[u8], before: &Table) {
    let packet = Ipv4::of_frame(bytes).expect("a connection's packet is a whole IPv4 packet");
    // A later fragment has no ports.
    let Some(ports) = packet.ports(bytes) else { return };
    let key = key(&packet, ports);
    // A datagram's answer is refused if no other connection could be evicted.
    let answers = before.find(&key).filter(|flow| flow.flow.mark.is_reply()).map(|flow| flow.flow);
    let asked = answers.map_or(key, |flow| FlowKey { dst: flow.new_src, dport: flow.new_sport, ..key });
    let service = service(&asked).expect("only a service has a limit of connections");
    let load = maps::SERVICE_LOAD.get(service.number).copied().unwrap_or_default();
    let is_reached = load >= service.max_connections && load as i32 >= 0;
    assert!(service.max_connections != 0 && is_reached, "refused with {load} connections: {service:?}");
}

/// The packet is for a VIP that is Disabled, or from hosts whose VIP is.
fn disabled(bytes: &[u8]) {
    // A truncated packet or a later fragment cannot be checked.
    let Some(packet) = Ipv4::of_frame(bytes) else { return };
    let Some(ports) = packet.ports(bytes) else { return };
    let key = key(&packet, ports);
    let vip = Key::new(ServiceKey::WHOLE_VIP, ServiceKey::new(key.dst, 0, 0));
    let is_disabled = |service: &Service| service.kind == Kind::Disabled as u8;
    let source = snat_rule_of(&key).is_some_and(|source| source.kind == SnatKind::Disabled as u8);
    assert!(
        source || service(&key).as_ref().is_some_and(is_disabled) || maps::SERVICES.get(&vip).is_some_and(is_disabled),
        "nothing is Disabled: {key:?}"
    );
}

/// Only connections with source NAT can find no free port.
fn exhausted(bytes: &[u8]) {
    let packet = Ipv4::of_frame(bytes).expect("a connection's packet is a whole IPv4 packet");
    let source = snat_rule_of(&key(&packet, (0, 0))).expect("a connection that needs a port has an SNAT rule");
    assert_eq!(source.kind, SnatKind::Masquerade as u8, "no port, though it keeps its own");
}

/// No host can have sent the packet.
fn martian(bytes: &[u8]) {
    let bytes = untagged(bytes);
    let source = Ipv4::source_of_frame(&bytes).map(u32::from_ne_bytes).expect("a packet with a source has a header");
    let is_routers = device_towards(source).is_none();
    let packet = Ipv4::of_frame(&bytes);
    assert!(
        is_routers || packet.is_some_and(|packet| is_martian(&key(&packet, (0, 0)))),
        "its source is a host's: {source:x}"
    );
}

/// The packet came by a strict device that does not lead to its source.
fn off_path(came: &Arriving) {
    let source = Ipv4::source_of_frame(&untagged(&came.bytes)).map(u32::from_ne_bytes);
    let source = source.expect("a packet with a source has a header");
    assert!(is_off_path(came.ifindex, source), "it may come by its device: {came:?}");
}

/// True for a packet that comes by a strict device that does not lead to its source.
pub(crate) fn is_off_path(ifindex: u32, source: u32) -> bool {
    world::is_strict(ifindex) && device_towards(source) != Some(ifindex)
}

/// True for a source that no host can have, or that is the router's.
pub(crate) fn is_martian(key: &FlowKey) -> bool {
    let src = key.src.to_ne_bytes();
    matches!(src[0], 0 | 127 | 224..) || key.src == key.dst || world::OWN.contains(&src)
}

/// The packet has a guest's source, and came by another device than the guest's.
fn spoofed(came: &Arriving) {
    let bytes = &untagged(&came.bytes);
    let packet = Ipv4::of_frame(bytes).expect("a guest's packet is a whole IPv4 packet");
    // A later fragment has no ports.
    let Some(ports) = packet.ports(bytes) else { return };
    let key = key(&packet, ports);
    assert!(claims_a_guests_source(&key, came.ifindex), "a guest's own packet: {came:?}");
}

/// True if the packet would get a VIP as its source, but came by another device than the guest's.
pub(crate) fn claims_a_guests_source(key: &FlowKey, ifindex: u32) -> bool {
    let source = match service(key) {
        Some(service) if service.kind == Kind::Elastic as u8 => {
            world::snat_rule(service.device(), key.src).filter(|source| source.kind == SnatKind::Elastic as u8)
        }
        Some(_) => None,
        None => snat_rule_of(key),
    };
    source.is_some_and(|source| !source.comes_by(ifindex))
}

/// The packet is for an elastic IP, and does not show which connection it belongs to.
fn unreadable(bytes: &[u8]) {
    let bytes = untagged(bytes);
    let dst: [u8; 4] =
        bytes.get(30..34).and_then(|dst| dst.try_into().ok()).expect("an IPv4 header tells for whom it is");
    let vip = Key::new(ServiceKey::WHOLE_VIP, ServiceKey::new(u32::from_ne_bytes(dst), 0, 0));
    let is_elastic = maps::SERVICES.get(&vip).is_some_and(|service| service.kind == Kind::Elastic as u8);
    assert!(is_elastic, "{dst:?} is no elastic IP");
}

/// Only what names its own way is refused for that.
fn source_route(bytes: &[u8]) {
    let bytes = untagged(bytes);
    let packet = Ipv4::at(&bytes, ETH_LEN).expect("options are a header's");
    assert_eq!(packet.names_its_way(&bytes), Some(true), "it goes where it is sent: {bytes:?}");
}

/// For a backend that the kernel has elsewhere than where its network is.
fn elsewhere(bytes: &[u8], before: &Table) {
    let bytes = &untagged(bytes);
    let packet = Ipv4::of_frame(bytes).expect("a connection's packet is a whole IPv4 packet");
    let Some(ports) = packet.ports(bytes) else { return };
    let key = key(&packet, ports);
    // One that is over may have left its place to a new one.
    if before.find(&key).is_some_and(|known| !is_towards(&world::backend(known.flow.backend()), known.flow.new_dst)) {
        return;
    }
    let numbers: Vec<u32> = match service(&key) {
        Some(service) if service.kind == Kind::Balance as u8 => {
            let ring = service.ring_base..service.ring_base + service.ring_len;
            ring.filter_map(|index| maps::RINGS.get(index).copied()).collect()
        }
        Some(service) => vec![service.backend],
        None => panic!("nobody's backend is elsewhere: {key:?}"),
    };
    assert!(numbers.into_iter().any(is_elsewhere), "every backend is where its network is: {key:?}");
}

/// True for a backend whose address the kernel does not send to by its network's device.
pub(crate) fn is_elsewhere(number: u32) -> bool {
    let backend = world::backend(number);
    !is_towards(&backend, backend.addr)
}

/// Whether the kernel sends to this address by the device of the backend's network.
fn is_towards(backend: &Backend, addr: u32) -> bool {
    backend.device == 0 || device_towards(addr) == Some(backend.device)
}

/// Of a known connection, or an error about one, and from where the kernel does not have that side of it.
fn astray(came: &Arriving, before: &Table) {
    let bytes = &untagged(&came.bytes);
    let packet = Ipv4::of_frame(bytes).expect("a connection's packet is a whole IPv4 packet");
    if packet.is_error(bytes) {
        // To whom no way leads may be the router itself.
        let is_routers = device_towards(u32::from_ne_bytes(packet.src)).is_none();
        assert!(is_routers || is_forged(came, bytes, &packet), "an error from where its connection is: {came:?}");
        return;
    }
    // A later fragment has no ports.
    let Some(ports) = packet.ports(bytes) else { return };
    let key = key(&packet, ports);
    let flow = before.find(&key).expect("what is of no connection has no side").flow;
    assert!(flow.mark.is_reply() || flow.mark.is_outward(), "clients come by any device: {flow:?}");
    assert!(u32::from(flow.from) != came.ifindex && device_towards(key.src) != Some(came.ifindex), "{flow:?} {came:?}");
}

/// True for an ICMP error that comes by another device than the one by which the kernel sends the quoted packet, or from
/// another host on its receiver's link.
pub(crate) fn is_forged(came: &Arriving, bytes: &[u8], packet: &Ipv4) -> bool {
    let quoted = Ipv4::at(bytes, packet.l4 + 8).expect("an error about a connection quotes a header");
    let Some(route) = kernel::route(quoted.dst).filter(is_known) else { return true };
    let is_invalid_source = matches!(packet.src[0], 0 | 127 | 224..);
    let is_off_path = is_off_path(came.ifindex, u32::from_ne_bytes(packet.src));
    is_invalid_source
        || is_off_path
        || route.ifindex != came.ifindex
        || (route.gateway.is_none() && packet.src != quoted.dst)
}

/// True if the kernel routes packets there.
pub(crate) fn is_forwardable(dst: u32) -> bool {
    kernel::route(dst.to_ne_bytes()).is_some_and(|route| is_known(&route))
}

/// Checks the record that was logged for a packet: every reason whose severity is not `Silent` is logged, at most once a
/// second. `left` is the packet as the pipeline left it.
pub(crate) fn record(records: &[Vec<u64>], counted: Option<Reason>, last: &[u64], left: &[u8], ifindex: u32) {
    const SECOND: u64 = 1_000_000_000;
    let is_due = |reason: &Reason| {
        let jiffies = kernel::jiffies().saturating_sub(last[*reason as usize]);
        reason.severity() != Severity::Silent && jiffies * u64::from(world::TICK) >= SECOND
    };
    let Some(reason) = counted.filter(is_due) else {
        assert!(records.is_empty(), "recorded for {counted:?}: {records:?}");
        return;
    };
    let [record] = records else { panic!("{reason:?} is recorded {} times", records.len()) };
    let [number, protocol, src, sport, dst, dport, device, _] = record[..] else { panic!("{record:?}") };
    assert_eq!((number, device), (u64::from(reason as u32), u64::from(ifindex)), "the record is about another packet");
    // If the kernel could not make the headers readable, the packet is malformed, and the record has no addresses.
    if reason == Reason::Malformed && [protocol, src, dst] == [0; 3] {
        return;
    }
    let Some(packet) = Ipv4::of_frame(left) else { return };
    let numbers = [packet.src, packet.dst].map(|address| u64::from(u32::from_be_bytes(address)));
    assert_eq!(
        [protocol, src, dst],
        [u64::from(packet.protocol), numbers[0], numbers[1]],
        "recorded with other addresses: {reason:?}"
    );
    // The ports of a packet that was not parsed may be out of reach. A truncated packet has none.
    let is_unparsed = matches!(
        reason,
        Reason::Unreadable | Reason::SourceRoute | Reason::Disabled | Reason::Martian | Reason::ReversePath
    );
    let tells_ports = reason != Reason::Malformed && !(is_unparsed && [sport, dport] == [0; 2]);
    if matches!(packet.protocol, TCP | UDP) && tells_ports {
        let (from, to) = packet.ports(left).unwrap_or_default();
        assert_eq!([sport, dport], [u64::from(from), u64::from(to)], "recorded with other ports");
    }
}
