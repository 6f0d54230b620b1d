//! VIPs for tests, and what the tables hold when they are applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Instant,
};

use ipnet::Ipv4Net;
use vipgate_abi::backend::Backend;
use vipgate_state::{
    self as state, BackendState, ElasticState, ForwardState, HealthCheck, LimitState, ListenerState, MasqueradeState,
    Protocol, VipState,
};

use super::fake::Fake;
use crate::reconcile::{
    compile::{ServiceEntry, Tables, compile},
    engine::{Engine, meters::port_of},
};

/// Interface index of the VIPs' device.
pub(super) const DEVICE: u32 = 3;

pub(super) fn vip(host: u8, listeners: Vec<ListenerState<Ipv4Addr>>) -> VipState<Ipv4Addr> {
    VipState {
        uuid: format!("vip-{host}"),
        address: Ipv4Addr::new(10, 0, 0, host),
        prefix_len: 24,
        device: "eth0".into(),
        enabled: true,
        listeners,
        forwards: vec![],
        own: false,
        elastic: None,
        masquerades: vec![],
        limits: vec![],
    }
}

pub(super) fn listener(
    number: u32,
    port: u16,
    algorithm: state::Algorithm,
    backends: &[(u32, u8)],
) -> ListenerState<Ipv4Addr> {
    let backend = |(number, host): &(u32, u8)| BackendState {
        number: *number,
        address: Ipv4Addr::new(10, 0, 1, *host),
        port: 80,
        device: "eth1".into(),
        active: true,
        weight: 100,
        healthy: true,
    };
    ListenerState {
        uuid: format!("listener-{number}"),
        account: "account".into(),
        number,
        protocol: Protocol::Tcp,
        port,
        algorithm,
        max_connections: 0,
        idle_timeout: 60,
        check: HealthCheck::default(),
        backends: backends.iter().map(backend).collect(),
    }
}

pub(super) fn round_robin(number: u32, port: u16, backends: &[(u32, u8)]) -> ListenerState<Ipv4Addr> {
    listener(number, port, state::Algorithm::RoundRobin, backends)
}

pub(super) fn forward(number: u32, ports: (u16, u16), backend: u32, host: u8) -> ForwardState<Ipv4Addr> {
    ForwardState {
        uuid: format!("rule-{number}"),
        number,
        backend,
        protocol: Protocol::Tcp,
        ports,
        guest: Ipv4Addr::new(10, 0, 1, host),
        device: "eth1".into(),
        guest_port: 1000,
        allowed: "0.0.0.0/0".parse().expect("a network"),
    }
}

pub(super) fn forwarding(host: u8, forwards: Vec<ForwardState<Ipv4Addr>>) -> VipState<Ipv4Addr> {
    VipState { forwards, ..vip(host, vec![]) }
}

/// A VIP that is a guest's.
pub(super) fn elastic(host: u8, number: u32, guest: u8, leads: bool) -> VipState<Ipv4Addr> {
    let guest = Ipv4Addr::new(10, 0, 1, guest);
    let elastic = ElasticState { uuid: "eip".into(), number, backend: number, guest, device: "eth1".into(), leads };
    VipState { elastic: Some(elastic), ..vip(host, vec![]) }
}

pub(super) fn masquerade(number: u32, network: u8) -> MasqueradeState<Ipv4Addr> {
    let network = Ipv4Net::new_assert(Ipv4Addr::new(10, network, 0, 0), 16);
    MasqueradeState { uuid: format!("l3-{network}"), number, backend: number, network, device: "eth1".into() }
}

pub(super) fn masquerading(host: u8, masquerades: Vec<MasqueradeState<Ipv4Addr>>) -> VipState<Ipv4Addr> {
    VipState { own: true, masquerades, ..vip(host, vec![]) }
}

/// A limit of a whole VIP or of a port, inbound and outbound alike.
pub(super) fn limit(number: u32, port: Option<u16>, rate: u64) -> LimitState {
    LimitState { uuid: format!("limit-{number}"), number, port, inbound: Some(rate), outbound: Some(rate) }
}

pub(super) fn engine() -> Engine<Fake> {
    Engine::new(Fake::default()).expect("new tables")
}

pub(super) fn apply(engine: &mut Engine<Fake>, vip: &VipState<Ipv4Addr>) {
    apply_by(engine, vip, DEVICE);
}

/// The devices of VIPs and of guests.
pub(super) fn devices(of_vips: u32) -> impl Fn(&str) -> Option<u32> {
    move |name| Some(if name == "eth0" { of_vips } else { 2 })
}

pub(super) fn apply_by(engine: &mut Engine<Fake>, vip: &VipState<Ipv4Addr>, device: u32) {
    engine.apply(&compile(vip, &devices(device)), Instant::now()).expect("applies");
}

/// What the tables hold is what these VIPs need, and nothing else.
pub(super) fn assert_holds(engine: &Engine<Fake>, vips: &[VipState<Ipv4Addr>]) {
    assert_holds_by(engine, vips, DEVICE);
}

pub(super) fn assert_holds_by(engine: &Engine<Fake>, vips: &[VipState<Ipv4Addr>], device: u32) {
    let kernel = &engine.kernel;
    let (mut keys, mut sources) = (BTreeSet::new(), BTreeMap::new());
    for tables in vips.iter().map(|vip| compile(vip, &devices(device))) {
        for (key, entry) in &tables.services {
            keys.insert(*key);
            let held = kernel.services.get(key).unwrap_or_else(|| panic!("{key:?} is missing"));
            assert_eq!(*held, entry.value(held.ring_base));
            if let ServiceEntry::Balance { selection_table, .. } = entry {
                assert_eq!(kernel.table_of(held), selection_table);
            }
        }
        for (number, wanted) in &tables.backends {
            let held = kernel.backends[*number as usize];
            assert_eq!(held, Backend { generation: held.generation, ..*wanted });
        }
        sources.extend(tables.snat_rules.into_iter().map(|(prefix, entry)| (prefix, entry.value)));
    }
    let limits: Vec<Tables> = vips.iter().map(|vip| compile(vip, &devices(device))).collect();
    let meters = limits.iter().flat_map(|tables| tables.limits.iter().map(|(number, rates)| (*number, *rates)));
    assert_eq!(
        kernel.meters,
        meters.map(|(number, rates)| (number, rates.meter(engine.meters.queue_of(number)))).collect()
    );
    let ports = limits
        .iter()
        .flat_map(|tables| tables.port_limits.iter().map(|(port, number)| (port_of(tables.vip, *port), *number)));
    assert_eq!(kernel.port_meters, ports.collect());
    assert_eq!(sources, kernel.snat_rules);
    assert_eq!(keys, kernel.services.keys().copied().collect());
}
