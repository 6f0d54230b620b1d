//! The engine against tables that look, after every single write, at what a packet could meet at that moment.

use std::{collections::BTreeSet, time::Duration};

use ipnet::Ipv4Net;
use proptest::{collection::vec, prelude::*, sample::subsequence};
use vipgate_abi::service::Algorithm;
use vipgate_state::{
    self as state, BackendState, ElasticState, ForwardState, HealthCheck, LimitState, ListenerState, MasqueradeState,
    Protocol, VipState,
};

use super::*;
use crate::reconcile::{arena::QUARANTINE, compile::compile};

const ELEMENTS: u32 = 8192;
const BACKENDS: u32 = 64;
/// Interface index of the VIPs' device.
const DEVICE: u32 = 3;

/// Tables in memory.
#[derive(Debug)]
struct Fake {
    services: BTreeMap<Key, Service>,
    sources: BTreeMap<Origin, SnatRule>,
    backends: Vec<Backend>,
    rings: Vec<u32>,
    meters: BTreeMap<u32, Meter>,
    port_meters: BTreeMap<MeterPort, u32>,
    /// Number of keys that fit.
    capacity: usize,
    writes: usize,
    /// Tables that something else wrote show nonsense until they are written anew.
    foreign: bool,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            sources: BTreeMap::new(),
            backends: vec![Backend::default(); BACKENDS as usize],
            rings: vec![u32::MAX; ELEMENTS as usize],
            meters: BTreeMap::new(),
            port_meters: BTreeMap::new(),
            capacity: 1000,
            writes: 0,
            foreign: false,
        }
    }
}

impl Fake {
    fn ring_of(&self, service: &Service) -> &[u32] {
        &self.rings[service.ring_base as usize..][..service.ring_len as usize]
    }

    /// Whatever key a packet meets, its ring names backends that are there and are that listener's.
    fn look(&mut self) {
        self.writes += 1;
        for (key, service) in self.services.iter().filter(|_| !self.foreign) {
            let ring = self.ring_of(service).iter().map(|member| Member(*member).number());
            let guest = [Kind::Forward, Kind::Elastic].map(|kind| kind as u8).contains(&service.kind);
            let guest = guest.then_some(service.backend);
            for number in ring.chain(guest) {
                let backend = self.backends[number as usize];
                assert_ne!(backend.addr, 0, "{key:?} leads to the free number {number}");
                assert!(!backend.is_down(), "{key:?} leads to {number}, which is down");
                assert_eq!(backend.service, service.number, "{key:?} leads to {number}, another listener's");
            }
        }
        let bound =
            self.backends.iter().map(|backend| backend.meter.number()).chain(self.port_meters.values().copied());
        for number in bound.filter(|number| *number != 0 && !self.foreign) {
            assert!(self.meters.contains_key(&number), "packets count against the limit {number}, which is gone");
        }
        for (origin, source) in self.sources.iter().filter(|(_, source)| source.kind != SnatKind::Disabled as u8) {
            let backend = self.backends[source.backend as usize];
            assert!(backend.takes_all(), "{origin:?} leads to {backend:?}");
            let address = match source.kind == SnatKind::Elastic as u8 {
                true => u32::from_ne_bytes(origin.data.addr),
                false => source.vip,
            };
            assert_eq!(backend.addr, address, "{origin:?} leads to another's number");
        }
    }
}

impl KernelTables for Fake {
    fn services(&self) -> Result<Vec<(Key, Service)>, TableError> {
        Ok(self.services.iter().map(|(key, service)| (*key, *service)).collect())
    }

    fn set_service(&mut self, key: Key, service: Service) -> Result<(), TableError> {
        if self.services.len() == self.capacity && !self.services.contains_key(&key) {
            return Err(TableError::Full { map: "SERVICES" });
        }
        self.services.insert(key, service);
        self.look();
        Ok(())
    }

    fn remove_service(&mut self, key: Key) -> Result<(), TableError> {
        self.services.remove(&key);
        self.look();
        Ok(())
    }

    fn sources(&self) -> Result<Vec<(Origin, SnatRule)>, TableError> {
        Ok(self.sources.iter().map(|(origin, source)| (*origin, *source)).collect())
    }

    fn set_source(&mut self, origin: Origin, source: SnatRule) -> Result<(), TableError> {
        self.sources.insert(origin, source);
        self.look();
        Ok(())
    }

    fn remove_source(&mut self, origin: Origin) -> Result<(), TableError> {
        self.sources.remove(&origin);
        self.look();
        Ok(())
    }

    fn backend_count(&self) -> u32 {
        BACKENDS
    }

    fn backend(&self, number: u32) -> Backend {
        self.backends.get(number as usize).copied().unwrap_or_default()
    }

    fn set_backend(&mut self, number: u32, backend: Backend) {
        let held = &mut self.backends[number as usize];
        let same = (held.addr, held.port, held.service) == (backend.addr, backend.port, backend.service);
        let stays = same && (held.is_down() || !backend.is_down());
        assert_eq!(stays, held.generation == backend.generation, "flows of {held:?} would go to {backend:?}");
        *held = backend;
        self.look();
    }

    fn reset_traffic(&mut self, _number: u32) -> Result<(), TableError> {
        Ok(())
    }

    fn meters(&self) -> Vec<(u32, Meter)> {
        self.meters.iter().map(|(number, meter)| (*number, *meter)).collect()
    }

    fn set_meter(&mut self, number: u32, meter: Meter) {
        if meter == Meter::default() {
            self.meters.remove(&number)
        } else {
            self.meters.insert(number, meter)
        };
        self.look();
    }

    fn reset_metered(&mut self, _number: u32) -> Result<(), TableError> {
        Ok(())
    }

    fn port_meters(&self) -> Result<Vec<(MeterPort, u32)>, TableError> {
        Ok(self.port_meters.iter().map(|(port, number)| (*port, *number)).collect())
    }

    fn set_port_meter(&mut self, port: MeterPort, number: u32) -> Result<(), TableError> {
        self.port_meters.insert(port, number);
        self.look();
        Ok(())
    }

    fn remove_port_meter(&mut self, port: MeterPort) -> Result<(), TableError> {
        self.port_meters.remove(&port);
        self.look();
        Ok(())
    }

    fn ring_elements(&self) -> u32 {
        self.rings.len() as u32
    }

    fn ring(&self, base: u32, len: u32) -> Vec<u32> {
        self.rings.iter().skip(base as usize).take(len as usize).copied().collect()
    }

    fn write_ring(&mut self, base: u32, ring: &[u32]) {
        let (base, end) = (base as usize, base as usize + ring.len());
        for service in self.services.values().filter(|service| service.ring_len > 0) {
            let (start, len) = (service.ring_base as usize, service.ring_len as usize);
            assert!(end <= start || start + len <= base, "a ring in use is written");
        }
        self.rings[base..end].copy_from_slice(ring);
        self.look();
    }
}

fn vip(host: u8, listeners: Vec<ListenerState>) -> VipState {
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

fn listener(number: u32, port: u16, algorithm: state::Algorithm, backends: &[(u32, u8)]) -> ListenerState {
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

fn round_robin(number: u32, port: u16, backends: &[(u32, u8)]) -> ListenerState {
    listener(number, port, state::Algorithm::RoundRobin, backends)
}

fn forward(number: u32, ports: (u16, u16), backend: u32, host: u8) -> ForwardState {
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

fn forwarding(host: u8, forwards: Vec<ForwardState>) -> VipState {
    VipState { forwards, ..vip(host, vec![]) }
}

/// A VIP that is a guest's.
fn elastic(host: u8, number: u32, guest: u8, leads: bool) -> VipState {
    let guest = Ipv4Addr::new(10, 0, 1, guest);
    let elastic = ElasticState { uuid: "eip".into(), number, backend: number, guest, device: "eth1".into(), leads };
    VipState { elastic: Some(elastic), ..vip(host, vec![]) }
}

fn masquerade(number: u32, network: u8) -> MasqueradeState {
    let network = Ipv4Net::new_assert(Ipv4Addr::new(10, network, 0, 0), 16);
    MasqueradeState { uuid: format!("l3-{network}"), number, backend: number, network, device: "eth1".into() }
}

fn masquerading(host: u8, masquerades: Vec<MasqueradeState>) -> VipState {
    VipState { own: true, masquerades, ..vip(host, vec![]) }
}

/// A limit of a whole VIP or of a port, inbound and outbound alike.
fn limit(number: u32, port: Option<u16>, rate: u64) -> LimitState {
    LimitState { uuid: format!("limit-{number}"), number, port, inbound: Some(rate), outbound: Some(rate) }
}

fn engine() -> Engine<Fake> {
    Engine::new(Fake::default()).expect("new tables")
}

fn apply(engine: &mut Engine<Fake>, vip: &VipState) {
    apply_by(engine, vip, DEVICE);
}

/// The devices of VIPs and of guests.
fn devices(of_vips: u32) -> impl Fn(&str) -> Option<u32> {
    move |name| Some(if name == "eth0" { of_vips } else { 2 })
}

fn apply_by(engine: &mut Engine<Fake>, vip: &VipState, device: u32) {
    engine.apply(&compile(vip, &devices(device)), Instant::now()).expect("applies");
}

/// What the tables hold is what these VIPs need, and nothing else.
fn assert_holds(engine: &Engine<Fake>, vips: &[VipState]) {
    assert_holds_by(engine, vips, DEVICE);
}

fn assert_holds_by(engine: &Engine<Fake>, vips: &[VipState], device: u32) {
    let kernel = &engine.kernel;
    let (mut keys, mut sources) = (BTreeSet::new(), BTreeMap::new());
    for tables in vips.iter().map(|vip| compile(vip, &devices(device))) {
        for (key, entry) in &tables.services {
            keys.insert(*key);
            let held = kernel.services.get(key).unwrap_or_else(|| panic!("{key:?} is missing"));
            assert_eq!(*held, entry.value(held.ring_base));
            if let ServiceEntry::Balance { ring, .. } = entry {
                assert_eq!(kernel.ring_of(held), ring);
            }
        }
        for (number, wanted) in &tables.backends {
            let held = kernel.backends[*number as usize];
            assert_eq!(held, Backend { generation: held.generation, ..*wanted });
        }
        sources.extend(tables.sources.into_iter().map(|(origin, entry)| (origin, entry.value)));
    }
    let limits: Vec<Tables> = vips.iter().map(|vip| compile(vip, &devices(device))).collect();
    let meters = limits.iter().flat_map(|tables| tables.limits.iter().map(|(number, rates)| (*number, *rates)));
    assert_eq!(kernel.meters, meters.map(|(number, rates)| (number, rates.meter(engine.queue_of(number)))).collect());
    let ports = limits
        .iter()
        .flat_map(|tables| tables.port_limits.iter().map(|(port, number)| (port_of(tables.vip, *port), *number)));
    assert_eq!(kernel.port_meters, ports.collect());
    assert_eq!(sources, kernel.sources);
    assert_eq!(keys, kernel.services.keys().copied().collect());
}

#[test]
fn applying_what_is_held_writes_nothing() {
    let mut engine = engine();
    let vips = [
        vip(1, vec![listener(0, 80, state::Algorithm::Maglev, &[(0, 1), (1, 2)])]),
        VipState { enabled: false, ..vip(2, vec![]) },
        elastic(3, 2, 1, true),
        masquerading(4, vec![masquerade(3, 0)]),
        VipState { enabled: false, ..masquerading(5, vec![masquerade(4, 1)]) },
    ];
    vips.iter().for_each(|vip| apply(&mut engine, vip));
    let writes = engine.kernel.writes;
    vips.iter().for_each(|vip| apply(&mut engine, vip));
    // After a restart as well.
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    vips.iter().for_each(|vip| apply(&mut engine, vip));
    assert_eq!(engine.kernel.writes, writes);
    assert_holds(&engine, &vips);
}

#[test]
fn a_backend_that_leaves_drains_and_a_listener_that_goes_ends_its_flows() {
    let mut engine = engine();
    apply(&mut engine, &vip(1, vec![round_robin(0, 80, &[(0, 1), (1, 2)])]));
    let leaving = engine.kernel.backend(1);
    apply(&mut engine, &vip(1, vec![round_robin(0, 80, &[(0, 1)])]));
    assert_eq!(engine.kernel.backend(1), leaving, "still there for its flows");
    assert!(!engine.take_ended());

    apply(&mut engine, &vip(1, vec![]));
    for number in [0, 1] {
        let backend = engine.kernel.backend(number);
        assert_eq!(backend.addr, 0, "free");
        assert_ne!(backend.generation, leaving.generation, "flows ended");
    }
    assert!(engine.take_ended() && !engine.take_ended());
}

#[test]
fn flows_of_a_backend_that_is_down_end_once() {
    let mut engine = engine();
    let up = vip(1, vec![round_robin(0, 80, &[(0, 1), (1, 2)])]);
    let mut down = up.clone();
    down.listeners[0].backends[1].healthy = false;
    apply(&mut engine, &up);
    let healthy = engine.kernel.backend(1);
    engine.take_ended();
    apply(&mut engine, &down);
    let unhealthy = engine.kernel.backend(1);
    assert!(unhealthy.is_down() && unhealthy.generation != healthy.generation && engine.take_ended());
    // Again, also after a restart: nothing more ends.
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    apply(&mut engine, &down);
    assert_eq!(engine.kernel.backend(1), unhealthy);
    apply(&mut engine, &up);
    assert!(!engine.kernel.backend(1).is_down() && !engine.take_ended());
    assert_holds(&engine, &[up]);
    // Left while it is down: nothing of it can drain.
    apply(&mut engine, &down);
    let left = vip(1, vec![round_robin(0, 80, &[(0, 1)])]);
    apply(&mut engine, &left);
    assert_eq!(engine.kernel.backend(1).addr, 0);
    assert_holds(&engine, &[left]);
}

#[test]
fn a_rule_is_its_ranges_keys_and_its_flows_end_with_it() {
    let mut engine = engine();
    let both = forwarding(1, vec![forward(0, (100, 300), 0, 1), forward(1, (301, 301), 1, 2)]);
    apply(&mut engine, &both);
    assert_holds(&engine, std::slice::from_ref(&both));
    let other = engine.kernel.backend(1);
    let writes = engine.kernel.writes;
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    apply(&mut engine, &both);
    assert_eq!(engine.kernel.writes, writes, "held already");

    let generation = engine.kernel.backend(0).generation;
    let one = forwarding(1, vec![forward(1, (301, 301), 1, 2)]);
    apply(&mut engine, &one);
    assert_holds(&engine, &[one]);
    assert!(engine.kernel.backend(0).addr == 0 && engine.kernel.backend(0).generation != generation);
    assert_eq!(engine.kernel.backend(1), other, "the other rule's flows go on");
    assert!(engine.take_ended());
}

#[test]
fn flows_of_a_rule_that_leads_elsewhere_end() {
    let mut engine = engine();
    apply(&mut engine, &forwarding(1, vec![forward(0, (80, 90), 0, 1)]));
    let before = engine.kernel.backend(0);
    let moved = forwarding(1, vec![forward(0, (80, 90), 0, 2)]);
    apply(&mut engine, &moved);
    assert_holds(&engine, &[moved]);
    assert_ne!(engine.kernel.backend(0).generation, before.generation);
    // Its number given to a rule of other ports, some of which are the same, and of another backend.
    let reused = forwarding(1, vec![forward(0, (85, 200), 5, 2)]);
    engine.take_ended();
    apply(&mut engine, &reused);
    assert_holds(&engine, &[reused]);
    assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
}

#[test]
fn an_elastic_ip_that_comes_to_lead_takes_the_guests_way_out_over() {
    for order in [[0, 1], [1, 0]] {
        let mut engine = engine();
        let before = [elastic(1, 0, 7, true), elastic(2, 1, 7, false)];
        before.iter().for_each(|vip| apply(&mut engine, vip));
        assert_holds(&engine, &before);
        let backends = [0, 1].map(|number| engine.kernel.backend(number));
        let after = [elastic(1, 0, 7, false), elastic(2, 1, 7, true)];
        order.iter().for_each(|at| apply(&mut engine, &after[*at]));
        assert_holds(&engine, &after);
        assert_eq!([0, 1].map(|number| engine.kernel.backend(number)), backends, "what was open goes on");
        // It goes, and does not take the other's with it.
        engine.remove(before[0].address, Instant::now()).expect("removes");
        assert_holds(&engine, &after[1..]);
        assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
    }
}

#[test]
fn flows_of_an_elastic_ip_end_when_it_goes_or_gets_another_guest() {
    let mut engine = engine();
    apply(&mut engine, &elastic(1, 0, 7, true));
    let first = engine.kernel.backend(0);
    let moved = elastic(1, 0, 8, true);
    apply(&mut engine, &moved);
    assert_holds(&engine, &[moved]);
    assert!(engine.kernel.backend(0).generation != first.generation && engine.take_ended());
    let off = VipState { enabled: false, ..elastic(1, 0, 8, true) };
    apply(&mut engine, &off);
    assert_holds(&engine, &[off]);
    assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
    let detached = vip(1, vec![]);
    apply(&mut engine, &detached);
    assert_holds(&engine, &[detached]);
}

#[test]
fn flows_of_a_masqueraded_network_end_with_it_and_only_those() {
    let mut engine = engine();
    let own = masquerading(1, vec![masquerade(0, 0), masquerade(1, 1)]);
    apply(&mut engine, &own);
    assert_holds(&engine, std::slice::from_ref(&own));
    let held = [0, 1].map(|number| engine.kernel.backend(number));
    // A listener comes to the same VIP: ports are spared from now on, and nothing ends.
    let shared = VipState { listeners: vec![round_robin(5, 80, &[])], ..own.clone() };
    apply(&mut engine, &shared);
    assert_holds(&engine, &[shared]);
    let other = masquerading(1, vec![masquerade(1, 1)]);
    apply(&mut engine, &other);
    assert_holds(&engine, &[other]);
    assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
    assert_eq!(engine.kernel.backend(1), held[1], "the other network's go on");
    // Its numbers given to another network before it was known that it left.
    let reused = masquerading(1, vec![masquerade(1, 2)]);
    apply(&mut engine, &reused);
    assert_holds(&engine, &[reused]);
    assert!(engine.kernel.backend(1).generation != held[1].generation && engine.take_ended());
    // The VIP goes while no controller runs: its entries tell that it was there.
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    assert_eq!(engine.vips(), BTreeSet::from([own.address]));
    engine.remove(own.address, Instant::now()).expect("removes");
    assert_holds(&engine, &[]);
    assert!(engine.kernel.backend(1).addr == 0 && engine.take_ended());
}

#[test]
fn flows_go_on_when_a_device_comes_back_under_another_index() {
    let mut engine = engine();
    let vips = [elastic(1, 0, 7, true), masquerading(2, vec![masquerade(1, 0)])];
    vips.iter().for_each(|vip| apply_by(&mut engine, vip, 3));
    let held = [0, 1].map(|number| engine.kernel.backend(number));
    vips.iter().for_each(|vip| apply_by(&mut engine, vip, 4));
    assert_holds_by(&engine, &vips, 4);
    assert_eq!([0, 1].map(|number| engine.kernel.backend(number)), held);
    assert!(!engine.take_ended());
}

#[test]
fn numbers_of_a_network_that_the_store_gave_away_are_the_new_owners() {
    let mut engine = engine();
    apply(&mut engine, &masquerading(1, vec![masquerade(0, 0), masquerade(1, 1)]));
    // Both numbers are a rule's of another VIP, whose apply comes first. `Fake::look` guards each step.
    let rule = forwarding(2, vec![forward(0, (80, 80), 1, 9)]);
    apply(&mut engine, &rule);
    assert_holds(&engine, std::slice::from_ref(&rule));
    let own = masquerading(1, vec![masquerade(2, 1)]);
    apply(&mut engine, &own);
    assert_holds(&engine, &[rule, own]);
}

#[test]
fn a_listener_in_anothers_place_ends_that_ones_flows() {
    let mut engine = engine();
    apply(&mut engine, &vip(1, vec![round_robin(0, 80, &[(0, 1)])]));
    apply(&mut engine, &vip(1, vec![round_robin(1, 80, &[(1, 1)])]));
    assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
    let rule = forwarding(1, vec![forward(2, (80, 80), 2, 1)]);
    apply(&mut engine, &rule);
    assert_holds(&engine, &[rule]);
    assert!(engine.kernel.backend(1).addr == 0 && engine.take_ended());
}

#[test]
fn disabling_drops_before_the_listeners_go_and_enabling_the_other_way() {
    let mut engine = engine();
    let on = vip(1, vec![round_robin(0, 80, &[(0, 1)])]);
    apply(&mut engine, &on);
    let generation = engine.kernel.backend(0).generation;
    let off = VipState { enabled: false, ..on.clone() };
    apply(&mut engine, &off);
    assert_holds(&engine, &[off]);
    assert_ne!(engine.kernel.backend(0).generation, generation);
    apply(&mut engine, &on);
    assert_holds(&engine, &[on]);
}

#[test]
fn a_number_that_the_store_gave_away_leaves_its_old_place_first() {
    let mut engine = engine();
    apply(&mut engine, &vip(1, vec![round_robin(0, 80, &[(0, 1), (1, 2)])]));
    // The store moved backend 1 to another VIP's listener, whose apply comes first. `Fake::look` guards each step.
    let other = vip(2, vec![round_robin(1, 80, &[(1, 9)])]);
    apply(&mut engine, &other);
    let service = engine.kernel.services[&Key::listener(Ipv4Addr::new(10, 0, 0, 1), Protocol::Tcp, 80)];
    assert_eq!(engine.kernel.ring_of(&service), [0]);
    // The same for a listener's number.
    let third = vip(3, vec![round_robin(0, 81, &[(2, 3)])]);
    apply(&mut engine, &third);
    assert_holds(&engine, &[vip(1, vec![]), other, third]);
    assert_eq!(engine.kernel.backend(0).addr, 0);
}

#[test]
fn what_does_not_fit_is_an_error_and_keeps_what_was() {
    let mut engine = engine();
    let pool: Vec<_> = (0..17).map(|n| (n, n as u8 + 1)).collect();
    let small = vip(1, vec![listener(0, 80, state::Algorithm::Maglev, &pool[..2])]);
    apply(&mut engine, &small);
    let first = listener(1, 80, state::Algorithm::Maglev, &[(20, 1)]);
    let now = Instant::now();
    engine.apply(&compile(&vip(2, vec![first]), &devices(DEVICE)), now).expect("1601 elements more");
    let large = vip(1, vec![listener(0, 80, state::Algorithm::Maglev, &pool)]);
    let error = engine.apply(&compile(&large, &devices(DEVICE)), now).expect_err("6421 elements do not fit");
    assert!(matches!(error, EngineError::ArenaFull { wanted: 6421, .. }), "{error}");
    assert_eq!(engine.kernel.services.len(), 4, "both listeners go on, and the keys of their VIPs");

    let error = engine.apply(&compile(&vip(3, vec![round_robin(2, 80, &[(BACKENDS, 1)])]), &devices(DEVICE)), now);
    assert!(matches!(error, Err(EngineError::BackendNumber { number: BACKENDS, .. })));

    engine.kernel.capacity = 4;
    let error = engine.apply(&compile(&vip(4, vec![round_robin(3, 80, &[(30, 1)])]), &devices(DEVICE)), now);
    assert!(matches!(error, Err(EngineError::Table(TableError::Full { .. }))));
    engine.kernel.capacity = 6;
    apply(&mut engine, &vip(4, vec![round_robin(3, 80, &[(30, 1)])]));
}

#[test]
fn rings_that_overlap_in_the_tables_are_written_anew() {
    let mut kernel = Fake { foreign: true, ..Fake::default() };
    let service = |ring_base| Service {
        kind: Kind::Balance as u8,
        algorithm: Algorithm::RoundRobin as u8,
        ring_base,
        ring_len: 2,
        ..Service::default()
    };
    for (host, ring_base) in [(1, 0), (2, 1)] {
        let key = Key::listener(Ipv4Addr::new(10, 0, 0, host), Protocol::Tcp, 80);
        kernel.services.insert(key, service(ring_base));
    }
    kernel.rings[..3].fill(0);
    kernel.backends[0] = Backend { addr: 1, ..Backend::default() };
    let mut engine = Engine::new(kernel).expect("opens");
    let vips = [vip(1, vec![round_robin(0, 80, &[(3, 1), (4, 2)])]), vip(2, vec![round_robin(2, 80, &[(5, 1)])])];
    vips.iter().for_each(|vip| apply(&mut engine, vip));
    assert_holds(&engine, &vips);
}

/// A store: numbers are unique in it, as SQL keeps them.
fn stores() -> impl Strategy<Value = Vec<VipState>> {
    let algorithms = prop_oneof![Just(state::Algorithm::RoundRobin), Just(state::Algorithm::Maglev)];
    // By listener number: its VIP, and by backend number: its listener, host and health.
    let listeners = vec(prop::option::of((0..3_u8, algorithms)), 4);
    let backends = vec(prop::option::of((0..4_u32, 1..6_u8, prop::bool::weighted(0.7))), 6);
    // Rules have numbers after those of listeners, or a listener's that is not there, and each its own thousand of ports.
    let rules = vec(prop::option::of((0..3_u8, 0..3_u32, 0..1000_u16, 0..1000_u16, 1..6_u8)), 6);
    // By VIP: an elastic IP's number, which may be a rule's or a network's elsewhere, and guest. By number: a network's VIP.
    let elastics = vec(prop::option::of((subsequence(vec![4_u32, 5, 28, 29], 1), 1..4_u8)), 3);
    let networks = vec(prop::option::of((0..3_u8, 0..3_u8)), 4);
    let enabled = vec(prop::bool::weighted(0.8), 3);
    (listeners, backends, enabled, rules, elastics, networks).prop_map(|store| {
        let (listeners, backends, enabled, rules, elastics, networks) = store;
        let mut vips: Vec<VipState> = (0..3).map(|host| vip(host + 1, vec![])).collect();
        for (number, (host, algorithm)) in (0..).zip(&listeners).filter_map(|(n, l)| Some((n, (*l)?))) {
            let of_it = |(n, backend): (u32, &Option<_>)| {
                backend.and_then(|(of, host, healthy)| (of == number).then_some(((n, host), healthy)))
            };
            let (members, health): (Vec<(u32, u8)>, Vec<bool>) = (0..).zip(&backends).filter_map(of_it).unzip();
            let mut listener = listener(number, 80 + number as u16, algorithm, &members);
            listener.backends.iter_mut().zip(health).for_each(|(backend, healthy)| backend.healthy = healthy);
            vips[host as usize].listeners.push(listener);
        }
        for (number, (host, backend, one, other, guest)) in (0..).zip(rules).filter_map(|(n, rule)| Some((n, rule?))) {
            if listeners.get(number as usize).is_some_and(Option::is_some) {
                continue;
            }
            let first = 1000 * (number as u16 + 1);
            let ports = (first + one.min(other), first + one.max(other));
            vips[host as usize].forwards.push(forward(number, ports, 10 + 3 * number + backend, guest));
        }
        let mut used: BTreeSet<u32> = vips.iter().flat_map(|vip| &vip.forwards).map(|rule| rule.number).collect();
        let mut led = BTreeSet::new();
        for (vip, (numbers, guest)) in vips.iter_mut().zip(elastics).filter_map(|(vip, elastic)| Some((vip, elastic?)))
        {
            let number = numbers[0];
            if used.insert(number) {
                let leads = led.insert(guest);
                let guest = Ipv4Addr::new(10, 0, 1, guest);
                let backend = if number < 28 { 10 + 3 * number } else { number + 7 };
                vip.elastic =
                    Some(ElasticState { uuid: "eip".into(), number, backend, guest, device: "eth1".into(), leads });
            }
        }
        let mut seen = BTreeSet::new();
        for (number, (host, network)) in (28..).zip(networks).filter_map(|(n, network)| Some((n, network?))) {
            if used.insert(number) && seen.insert(network) {
                let backend = number + 7;
                vips[host as usize].masquerades.push(MasqueradeState { backend, ..masquerade(number, network) });
            }
        }
        vips.iter_mut().zip(enabled).for_each(|(vip, enabled)| vip.enabled = enabled);
        vips
    })
}

proptest! {
    #[test]
    fn whatever_is_stored_and_in_whatever_order_it_is_applied_no_half_state_shows(
        steps in vec((stores(), subsequence(vec![0_usize, 1, 2], 0..=3).prop_shuffle(), any::<bool>(), 3..5_u32), 1..8),
    ) {
        // Room enough for rings that rest.
        let rings = vec![u32::MAX; 1 << 16];
        let mut engine = Engine::new(Fake { rings, ..Fake::default() }).expect("new tables");
        let mut now = Instant::now();
        for (store, order, restart, device) in &steps {
            now += QUARANTINE + Duration::from_secs(1);
            if *restart {
                engine = Engine::new(engine.kernel).expect("opens");
            }
            for at in order {
                engine.apply(&compile(&store[*at], &devices(*device)), now).expect("applies");
            }
        }
        let Some((store, .., device)) = steps.last() else { return Ok(()) };
        for vip in store {
            engine.apply(&compile(vip, &devices(*device)), now).expect("applies");
        }
        assert_holds_by(&engine, store, *device);
        for vip in store {
            engine.remove(vip.address, now).expect("removes");
        }
        prop_assert!(engine.kernel.services.is_empty() && engine.kernel.sources.is_empty());
        prop_assert_eq!(engine.arena.available(), 1 << 16);
        prop_assert!(engine.kernel.backends.iter().all(|backend| backend.addr == 0));
    }
}

#[test]
fn limits_come_change_and_go_and_end_no_flow() {
    let mut engine = engine();
    let free = vip(1, vec![round_robin(0, 80, &[(0, 1)]), round_robin(1, 81, &[(1, 1)])]);
    let limited = |rate| VipState { limits: vec![limit(1, None, rate), limit(2, Some(80), rate)], ..free.clone() };
    apply(&mut engine, &free);
    for vip in [limited(1 << 20), limited(1 << 30), VipState { limits: vec![limit(1, None, 1 << 30)], ..free.clone() }]
    {
        apply(&mut engine, &vip);
        assert_holds(&engine, std::slice::from_ref(&vip));
        // After a restart as well, without a write.
        let writes = engine.kernel.writes;
        engine = Engine::new(engine.kernel).expect("the same tables");
        apply(&mut engine, &vip);
        assert_eq!(engine.kernel.writes, writes);
    }
    apply(&mut engine, &free);
    assert_holds(&engine, &[free]);
    assert!(engine.kernel.meters.is_empty() && !engine.take_ended());
}

#[test]
fn a_backend_that_drains_counts_against_what_its_listener_does() {
    let mut engine = engine();
    let limits = vec![limit(1, None, 1 << 20)];
    apply(&mut engine, &VipState { limits, ..vip(1, vec![round_robin(0, 80, &[(0, 1), (1, 2)])]) });
    let left = vip(1, vec![round_robin(0, 80, &[(0, 1)])]);
    for limits in [vec![limit(1, None, 1 << 20)], vec![limit(2, Some(80), 1 << 20)], vec![]] {
        let number = limits.first().map_or(0, |limit| limit.number);
        apply(&mut engine, &VipState { limits, ..left.clone() });
        let draining = engine.kernel.backend(1);
        assert!(draining.addr != 0 && draining.meter.number() == number);
    }
}

#[test]
fn meters_follow_the_queues_device_and_those_of_nobody_go() {
    let mut engine = engine();
    let one = VipState { own: true, limits: vec![limit(1, None, 1 << 20)], ..vip(1, vec![]) };
    let other = VipState { own: true, limits: vec![limit(2, None, 1 << 20)], ..vip(2, vec![]) };
    for vip in [&one, &other] {
        apply(&mut engine, vip);
    }
    for device in [Some(7), Some(8), None] {
        engine.set_queue(queue::pair_of(1), device);
        assert_holds(&engine, &[one.clone(), other.clone()]);
    }
    assert!(engine.take_freed().is_empty());
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    apply(&mut engine, &one);
    engine.remove_unclaimed_meters();
    assert_holds(&engine, std::slice::from_ref(&one));
    assert_eq!(engine.take_freed(), [2]);
    engine.remove(one.address, Instant::now()).expect("removed");
    assert_eq!((engine.kernel.meters.len(), engine.take_freed()), (0, vec![1]));
}

#[test]
fn a_limits_number_that_another_vip_gets_stays_with_that() {
    let mut engine = engine();
    let with = |host: u8, number: u32| VipState {
        limits: vec![limit(number, None, 1 << 20)],
        ..vip(host, vec![round_robin(u32::from(host), 80, &[(u32::from(host), 1)])])
    };
    apply(&mut engine, &with(1, 1));
    apply(&mut engine, &with(2, 1));
    apply(&mut engine, &with(1, 2));
    assert_holds(&engine, &[with(1, 2), with(2, 1)]);
}
