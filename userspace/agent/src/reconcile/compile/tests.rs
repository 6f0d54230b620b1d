//! What VIPs compile to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use vipgate_abi::{
    service::{Kind, Member, ServiceKey},
    snat::SnatKey,
};
use vipgate_state::{Capacity, ElasticState, HealthCheck, LimitState, MasqueradeState};

use super::*;
use crate::reconcile::maglev;

/// Interface indices of the VIPs' device, and of the guests'.
fn devices(name: &str) -> Option<u32> {
    [("eth0", 3), ("eth1", 4)].into_iter().find(|(known, _)| *known == name).map(|(_, index)| index)
}

fn backend(number: u32, host: u8) -> BackendState<Ipv4Addr> {
    BackendState {
        number,
        address: Ipv4Addr::new(192, 168, 1, host),
        port: 8080,
        device: "eth1".into(),
        active: true,
        weight: 100,
        healthy: true,
    }
}

fn listener(algorithm: Algorithm, backends: Vec<BackendState<Ipv4Addr>>) -> ListenerState<Ipv4Addr> {
    ListenerState {
        uuid: "a".into(),
        account: "account".into(),
        number: 3,
        protocol: Protocol::Udp,
        port: 53,
        algorithm,
        max_connections: 5000,
        idle_timeout: 60,
        check: HealthCheck::default(),
        backends,
    }
}

fn vip(listeners: Vec<ListenerState<Ipv4Addr>>) -> VipState<Ipv4Addr> {
    VipState {
        uuid: "v".into(),
        address: Ipv4Addr::new(10, 0, 0, 5),
        prefix_len: 24,
        device: "eth0".into(),
        own: false,
        enabled: true,
        listeners,
        forwards: vec![],
        elastic: None,
        masquerades: vec![],
        limits: vec![],
    }
}

fn forward(ports: (u16, u16), guest_port: u16) -> ForwardState<Ipv4Addr> {
    ForwardState {
        uuid: "f".into(),
        number: 9,
        backend: 90,
        protocol: Protocol::Tcp,
        ports,
        guest: Ipv4Addr::new(192, 168, 1, 9),
        device: "eth1".into(),
        guest_port,
        allowed: "10.1.2.77/28".parse().expect("a network"),
    }
}

fn forwarding(forwards: Vec<ForwardState<Ipv4Addr>>) -> VipState<Ipv4Addr> {
    VipState { forwards, ..vip(vec![]) }
}

/// The selection table of the one listener that [`vip`] has.
fn table(tables: &Tables) -> &[u32] {
    match tables.services.values().find(|entry| **entry != ServiceEntry::Closed) {
        Some(ServiceEntry::Balance { selection_table, .. }) => selection_table,
        other => panic!("no listener but {other:?}"),
    }
}

#[test]
fn a_listener_is_a_key_of_its_address_protocol_and_port_in_network_order() {
    let tables =
        compile(&vip(vec![listener(Algorithm::LeastConnections, vec![backend(8, 2), backend(7, 1)])]), &devices);
    let key = ServicePrefix {
        data: ServiceKey { vip: [10, 0, 0, 5], protocol: 17, reserved: 0, port: [0, 53] },
        prefix_len: ServiceKey::EXACT,
    };
    let service = tables.services[&key].value(900);
    assert_eq!((service.kind, service.algorithm), (Kind::Balance as u8, service::Algorithm::LeastConnections as u8));
    assert_eq!((service.number, service.max_connections), (3, 5000));
    assert_eq!((service.ring_base, service.ring_len), (900, 2));
    let members = [7, 8].map(|number| Member::new(number, 100).0);
    assert_eq!(table(&tables), members, "in the order of their numbers");
    let expected = Backend {
        addr: u32::from_ne_bytes([192, 168, 1, 2]),
        port: u16::from_ne_bytes([0x1f, 0x90]),
        generation: 0,
        service: 3,
        idle_timeout: 60,
        device: 4,
        ..Backend::default()
    };
    assert_eq!(tables.backends[&8], expected);
}

#[test]
fn selection_tables_of_both_hashing_algorithms_are_maglev_tables_of_backend_numbers() {
    let pool = vec![backend(70, 1), backend(80, 2), backend(90, 3)];
    for algorithm in [Algorithm::Source, Algorithm::Maglev] {
        let tables = compile(&vip(vec![listener(algorithm, pool.clone())]), &devices);
        assert_eq!(table(&tables).len() as u32, maglev::table_size(3));
        assert_eq!(table(&tables).iter().collect::<BTreeSet<_>>(), BTreeSet::from([&70, &80, &90]));
    }
}

#[test]
fn a_stopped_backend_gets_no_new_flows_and_keeps_its_entry() {
    let stopped = BackendState { active: false, ..backend(8, 2) };
    let tables = compile(&vip(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1), stopped])]), &devices);
    assert_eq!(table(&tables), [7]);
    assert_eq!([7, 8].map(|number| tables.backends[&number].drains), [0, 1]);
}

#[test]
fn weights_are_turns_evenly_spread_and_none_for_weight_zero() {
    let pool: Vec<_> =
        [(1, 50), (2, 20), (3, 10), (4, 0)].map(|(n, weight)| BackendState { weight, ..backend(n, n as u8) }).into();
    let of = |algorithm| table(&compile(&vip(vec![listener(algorithm, pool.clone())]), &devices)).to_vec();
    assert_eq!(of(Algorithm::RoundRobin), [1, 2, 1, 1, 3, 1, 2, 1]);
    let members = [(1, 50), (2, 20), (3, 10)].map(|(number, weight)| Member::new(number, weight).0);
    assert_eq!(of(Algorithm::LeastConnections), members);
    let table = of(Algorithm::Source);
    let share = |n| table.iter().filter(|number| **number == n).count() * 8 * 100 / table.len();
    assert_eq!([1, 2, 3, 4].map(share).map(|percents| (percents + 50) / 100), [5, 2, 1, 0]);
    let tables = compile(&vip(vec![listener(Algorithm::RoundRobin, pool)]), &devices);
    assert_eq!([1, 2, 3, 4].map(|number| tables.backends[&number].drains), [0, 0, 0, 1], "what it has may drain");
}

#[test]
fn an_unhealthy_backend_gets_no_new_flows_and_its_entry_says_that_it_is_down() {
    let unhealthy = BackendState { healthy: false, ..backend(8, 2) };
    let tables = compile(&vip(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1), unhealthy])]), &devices);
    assert_eq!(table(&tables), [7]);
    assert!(tables.backends[&8].is_down() && !tables.backends[&7].is_down());
}

#[test]
fn an_empty_pool_keeps_its_key_and_drops() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::Source, Algorithm::Maglev] {
        assert!(table(&compile(&vip(vec![listener(algorithm, vec![])]), &devices)).is_empty());
    }
}

#[test]
fn a_rule_is_the_prefixes_of_its_range_and_one_backend() {
    let tables = compile(&forwarding(vec![forward((1, 6), 1001)]), &devices);
    let keys: Vec<_> = tables.services.keys().map(|key| (key.data.port, key.prefix_len)).collect();
    assert_eq!(keys, [([0, 0], 32), ([0, 1], 64), ([0, 2], 63), ([0, 4], 63), ([0, 6], 64)]);
    let values: Vec<_> = tables.services.values().skip(1).map(|entry| entry.value(0)).collect();
    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "one value for the whole range");
    assert_eq!((values[0].kind, values[0].number, values[0].backend), (Kind::Forward as u8, 9, 90));
    assert_eq!(values[0].port_shift, 1000);
    let of = |octets| u32::from_ne_bytes(octets);
    assert_eq!([values[0].source, values[0].source_mask], [of([10, 1, 2, 64]), of([255, 255, 255, 240])]);
    let expected = Backend {
        addr: of([192, 168, 1, 9]),
        port: 1001_u16.to_be(),
        generation: 0,
        service: 9,
        idle_timeout: 7440,
        device: 4,
        ..Backend::default()
    };
    assert_eq!(tables.backends, BTreeMap::from([(90, expected)]));
    let down = compile(&forwarding(vec![forward((2222, 2222), 22)]), &devices);
    assert_eq!(down.services.values().nth(1).map(|entry| entry.value(0).port_shift), Some(22_u16.wrapping_sub(2222)));
}

#[test]
fn any_width_of_range_is_a_handful_of_keys() {
    for (ports, count) in [((1, 65535), 16), ((1, 65534), 30), ((8000, 8015), 1), ((1024, 65535), 6)] {
        assert_eq!(compile(&forwarding(vec![forward(ports, 1)]), &devices).services.len(), 1 + count, "{ports:?}");
    }
    // The rest is for the VIP's own.
    const { assert!(1 + 30 < vipgate_abi::maps::KEYS_PER_SERVICE) };
}

#[test]
fn a_disabled_vip_is_one_key_that_drops_everything() {
    let enabled = vip(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1)])]);
    let tables = compile(&VipState { enabled: false, ..enabled }, &devices);
    let whole = ServicePrefix::whole(Ipv4Addr::new(10, 0, 0, 5));
    assert_eq!(tables.services, BTreeMap::from([(whole, ServiceEntry::Disabled)]));
    assert!(tables.backends.is_empty());
    assert_eq!((whole.prefix_len, whole.vip()), (32, Ipv4Addr::new(10, 0, 0, 5)));
    assert_eq!(ServiceEntry::Disabled.value(0).kind, Kind::Disabled as u8);
}

#[test]
fn an_enabled_vip_keeps_the_routers_sockets_away_and_the_routers_own_address_does_not() {
    let whole = ServicePrefix::whole(Ipv4Addr::new(10, 0, 0, 5));
    assert_eq!(compile(&vip(vec![]), &devices).services, BTreeMap::from([(whole, ServiceEntry::Closed)]));
    assert_eq!(ServiceEntry::Closed.value(0).kind, Kind::Closed as u8);
    assert!(!compile(&own(vec![listener(Algorithm::Source, vec![])]), &devices).services.contains_key(&whole));
    // While an elastic IP's device is not there, too.
    assert_eq!(compile(&elastic(true), &|_| None).services, BTreeMap::from([(whole, ServiceEntry::Closed)]));
}

#[test]
fn what_serves_one_port_is_bound_to_its_limit_and_what_serves_several_asks() {
    let limit = |number, port| LimitState {
        uuid: "limit".into(),
        number,
        port,
        inbound: Some(1 << 20),
        outbound: (port.is_none()).then_some(1 << 30),
    };
    let mut state = own(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1)])]);
    state.forwards =
        vec![forward((100, 200), 1000), ForwardState { number: 10, backend: 91, ..forward((300, 310), 1) }];
    let bound = |limits: &[LimitState]| {
        let tables = compile(&VipState { limits: limits.to_vec(), ..state.clone() }, &devices);
        let bindings = [7, 90, 91, 80].map(|number| tables.backends[&number].meter);
        (bindings, tables)
    };
    assert_eq!(bound(&[]).0, [Binding::default(); 4]);
    assert_eq!(bound(&[limit(1, None)]).0, [Binding::new(1, false); 4]);
    let (bindings, tables) = bound(&[limit(1, None), limit(2, Some(53)), limit(3, Some(200))]);
    let [of_port, asks, whole] = [Binding::new(2, false), Binding::new(1, true), Binding::new(1, false)];
    assert_eq!(bindings, [of_port, asks, whole, asks]);
    assert_eq!(tables.port_limits, BTreeMap::from([(53, 2), (200, 3)]));
    assert_eq!(tables.limits[&1], Rates([Some(1 << 20), Some(1 << 30)]));
    assert_eq!(
        bound(&[limit(3, Some(200))]).0,
        [Binding::default(), Binding::new(0, true), Binding::default(), Binding::new(0, true)]
    );
    // Without traffic there is nothing to limit.
    assert!(
        compile(&VipState { enabled: false, limits: vec![limit(1, None)], ..state.clone() }, &devices)
            .limits
            .is_empty()
    );
    for number in [0, 16_384] {
        let state = VipState { limits: vec![limit(number, None)], ..state.clone() };
        let error = check(&state, &Capacity::default()).expect_err("refused").to_string();
        assert!(error.contains(&number.to_string()), "{error}");
    }
}

fn elastic(leads: bool) -> VipState<Ipv4Addr> {
    let guest = Ipv4Addr::new(192, 168, 1, 9);
    let elastic = ElasticState { uuid: "e".into(), number: 6, backend: 60, guest, device: "eth1".into(), leads };
    VipState { elastic: Some(elastic), ..vip(vec![]) }
}

/// The router's own address, by which 192.168.0.0/16 goes out.
fn own(listeners: Vec<ListenerState<Ipv4Addr>>) -> VipState<Ipv4Addr> {
    let network = "192.168.0.0/16".parse().expect("a network");
    let masquerade = MasqueradeState { uuid: "n".into(), number: 8, backend: 80, network, device: "eth1".into() };
    VipState { own: true, masquerades: vec![masquerade], ..vip(listeners) }
}

#[test]
fn an_elastic_ip_is_the_whole_vip_and_its_guest_leaves_by_the_one_that_leads() {
    let (vip, guest) = (u32::from_ne_bytes([10, 0, 0, 5]), u32::from_ne_bytes([192, 168, 1, 9]));
    let tables = compile(&elastic(true), &devices);
    let service = tables.services[&ServicePrefix::whole(Ipv4Addr::new(10, 0, 0, 5))].value(0);
    assert_eq!((service.kind, service.number, service.backend), (Kind::Elastic as u8, 6, 60));
    assert_eq!(service.device(), 3);
    let expected = Backend { addr: guest, service: 6, idle_timeout: 7440, device: 4, ..Backend::default() };
    assert_eq!(tables.backends, BTreeMap::from([(60, expected)]));
    assert!(expected.takes_all());
    let key = SnatPrefix { data: SnatKey::new(3, guest), prefix_len: 64 };
    let kind = SnatKind::Elastic as u8;
    let value = snat::SnatRule { vip, backend: 60, device: 4, kind, ..snat::SnatRule::default() };
    assert_eq!(tables.snat_rules, BTreeMap::from([(key, SnatEntry { number: Some(6), value })]));

    let follower = compile(&elastic(false), &devices);
    assert!(follower.snat_rules.is_empty());
    assert_eq!((follower.services, follower.backends), (tables.services, tables.backends));
}

#[test]
fn a_masqueraded_network_leaves_by_the_vip_and_spares_the_ports_of_its_services() {
    let vip = u32::from_ne_bytes([10, 0, 0, 5]);
    for (state, shared) in [
        (own(vec![]), 0),
        (own(vec![listener(Algorithm::RoundRobin, vec![])]), 1),
        (VipState { forwards: vec![forward((1, 2), 1)], ..own(vec![]) }, 1),
    ] {
        let tables = compile(&state, &devices);
        let key = SnatPrefix { data: SnatKey { device: 3_u32.to_ne_bytes(), addr: [192, 168, 0, 0] }, prefix_len: 48 };
        let kind = SnatKind::Masquerade as u8;
        let value = snat::SnatRule { vip, backend: 80, device: 4, kind, shared, ..snat::SnatRule::default() };
        assert_eq!(tables.snat_rules, BTreeMap::from([(key, SnatEntry { number: Some(8), value })]));
        let expected = Backend { addr: vip, service: 8, idle_timeout: 7440, ..Backend::default() };
        assert_eq!(tables.backends[&80], expected);
    }
    let mut twice = own(vec![]);
    let second = MasqueradeState { number: 9, backend: 90, ..twice.masquerades[0].clone() };
    twice.masquerades.push(second);
    assert_eq!(compile(&twice, &devices), compile(&own(vec![]), &devices), "one of two with the same addresses");
}

#[test]
fn what_would_leave_by_a_disabled_vip_is_dropped_and_the_routers_own_address_goes_on() {
    let disabled = |state| compile(&VipState { enabled: false, ..state }, &devices);
    let whole = ServicePrefix::whole(Ipv4Addr::new(10, 0, 0, 5));
    for (state, services) in [
        (elastic(true), BTreeMap::from([(whole, ServiceEntry::Disabled)])),
        (own(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1)])]), BTreeMap::new()),
    ] {
        let (on, off) = (compile(&state, &devices), disabled(state));
        assert_eq!(off.services, services);
        assert!(off.backends.is_empty());
        assert!(off.snat_rules.keys().eq(on.snat_rules.keys()));
        let (vip, kind) = (u32::from_ne_bytes([10, 0, 0, 5]), SnatKind::Disabled as u8);
        let value = snat::SnatRule { vip, device: 4, kind, ..snat::SnatRule::default() };
        assert!(off.snat_rules.values().all(|entry| *entry == SnatEntry { number: None, value }));
    }
}

#[test]
fn without_its_device_a_vip_has_only_what_needs_none() {
    let state = VipState { elastic: elastic(true).elastic, ..own(vec![listener(Algorithm::RoundRobin, vec![])]) };
    let tables = compile(&state, &|_| None);
    assert!(tables.snat_rules.is_empty() && tables.backends.is_empty());
    assert_eq!(
        tables.services.into_keys().collect::<Vec<_>>(),
        [ServicePrefix::listener(state.address, Protocol::Udp, 53)]
    );
}

#[test]
fn backends_and_guests_are_by_their_networks_device_and_by_any_while_that_is_not_there() {
    let mut state = vip(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1)])]);
    (state.elastic, state.masquerades) = (elastic(true).elastic, own(vec![]).masquerades);
    state.forwards = vec![ForwardState { device: "eth2".into(), ..forward((1, 2), 1) }];
    assert_eq!(state.devices(), BTreeSet::from(["eth0", "eth1", "eth2"]));
    let of = |backend: u32, devices: &Devices<'_>| compile(&state, devices).backends[&backend].device;
    assert_eq!([7, 60, 80, 90].map(|backend| of(backend, &devices)), [4, 4, 0, 0]);
    let later = |name: &str| devices(name).or((name == "eth2").then_some(5));
    assert_eq!(of(90, &later), 5);
}

#[test]
fn keys_of_one_vip_are_one_range() {
    let one = Ipv4Addr::new(10, 0, 0, 5);
    let next = Ipv4Addr::new(10, 0, 0, 6);
    let last = ServicePrefix::listener(one, Protocol::Udp, u16::MAX);
    assert!(
        ServicePrefix::whole(one) < ServicePrefix::listener(one, Protocol::Tcp, 1) && last < ServicePrefix::whole(next)
    );
}

#[test]
fn what_the_tables_cannot_hold_is_refused_with_the_value_named() {
    let capacity = Capacity { services: 10, backends: 100, backends_per_listener: 2, ..Capacity::default() };
    let of = |listener: ListenerState<Ipv4Addr>| vip(vec![listener]);
    let plain = listener(Algorithm::RoundRobin, vec![backend(7, 1)]);
    check(&of(plain.clone()), &capacity).expect("fits");
    let pool = |backends| ListenerState { backends, ..plain.clone() };
    let nowhere = BackendState { address: Ipv4Addr::UNSPECIFIED, ..backend(7, 1) };
    for (vip, named) in [
        (of(ListenerState { number: 10, ..plain.clone() }), "number 10"),
        (of(pool(vec![backend(100, 1)])), "number 100"),
        (of(pool((1..4).map(|n| backend(n, n as u8)).collect())), "has 3 backends"),
        (of(pool(vec![nowhere])), "0.0.0.0"),
        (vip(vec![plain.clone(), ListenerState { number: 4, ..plain.clone() }]), "udp port 53"),
        (VipState { address: Ipv4Addr::new(224, 0, 0, 1), ..of(plain.clone()) }, "224.0.0.1"),
    ] {
        let error = check(&vip, &capacity).expect_err(named).to_string();
        assert!(error.contains(named), "{error} should name {named}");
    }
    for (rule, named) in [
        (ForwardState { number: 10, ..forward((1, 2), 1) }, "number 10"),
        (ForwardState { backend: 100, ..forward((1, 2), 1) }, "number 100"),
        (ForwardState { guest: Ipv4Addr::BROADCAST, ..forward((1, 2), 1) }, "255.255.255.255"),
        (ForwardState { protocol: Protocol::Udp, ..forward((50, 53), 50) }, "udp port 53"),
    ] {
        let vip = VipState { forwards: vec![rule], ..of(plain.clone()) };
        let error = check(&vip, &capacity).expect_err(named).to_string();
        assert!(error.contains(named), "{error} should name {named}");
    }
    check(&VipState { forwards: vec![forward((50, 53), 50)], ..of(plain.clone()) }, &capacity).expect("fits");
    let (mut guest, mut network) = (elastic(true), own(vec![]));
    [&guest, &network].into_iter().for_each(|vip| check(vip, &capacity).expect("fits"));
    guest.elastic.iter_mut().for_each(|elastic| elastic.backend = 100);
    network.masquerades[0].number = 10;
    for (vip, named) in [(guest, "elastic IP e would have backend number 100"), (network, "number 10")] {
        let error = check(&vip, &capacity).expect_err(named).to_string();
        assert!(error.contains(named), "{error} should name {named}");
    }
    // The same port of another protocol is another listener's.
    let tcp = ListenerState { protocol: Protocol::Tcp, number: 4, ..plain.clone() };
    check(&vip(vec![plain, tcp]), &capacity).expect("fits");
}
