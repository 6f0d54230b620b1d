//! The reconciler: what is stored comes to be in the kernel, what is not goes, whatever happened before.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use aya::maps::{Array, Map, MapData, MapError};
use futures::future::join_all;
use vipgate_abi::{
    address_filter::BITS,
    backend::Backend,
    flow::{Bucket, FLAG_REPLY, Flow, Mark, State, Target, Word},
    load::Load,
    maps,
    service::{Kind, ServiceKey},
    snat::SnatKind,
};
use vipgate_agent::{
    health::HealthChecks,
    loader::{Hook, Options, Plane, Sizes},
    reconcile::{ApplyError, Reconciler},
};
use vipgate_state::{Algorithm, BackendState, HealthCheck, ListenerState, Protocol, VipState};

use crate::{
    loading::target,
    room::Room,
    source::{Desired, elastic, own, vip},
};

/// A room with a device r0 and what a test looks at.
pub(crate) struct Bench {
    pub(crate) room: Room,
    pub(crate) plane: Arc<Plane>,
    pub(crate) desired: Desired,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let room = Room::enter();
        room.veth("r0", "c0", "10.0.0.1/24");
        room.veth("r1", "b0", "10.0.1.254/24");
        let plane = room.open(Hook::Auto).expect("opens");
        Self { room, plane, desired: Desired::with_devices(&["r0", "r1"]) }
    }

    pub(crate) fn start(&self) -> Reconciler {
        let started =
            self.room.run(Reconciler::start(Arc::clone(&self.plane), self.desired.clone(), HealthChecks::default()));
        started.expect("starts")
    }

    pub(crate) fn apply(&self, reconciler: &Reconciler, vips: &[&str]) -> Result<(), ApplyError> {
        let vips: BTreeSet<String> = vips.iter().map(ToString::to_string).collect();
        let reconciler = reconciler.clone();
        self.room.run(async move { reconciler.apply(vips).await })
    }

    /// A pinned map.
    pub(crate) fn map<M: TryFrom<Map, Error = MapError>>(&self, name: &str) -> M {
        let data = MapData::from_pin(self.plane.pins().join(name)).expect("pinned");
        Map::from_map_data(data).and_then(M::try_from).expect("of that kind")
    }

    /// The ring of each service by VIP and port; `None` for a Disabled VIP. Without what keeps sockets from VIPs.
    pub(crate) fn services(&self) -> Vec<(Ipv4Addr, u16, Option<Vec<u32>>)> {
        let tables = self.plane.tables().expect("opens");
        let mut services: Vec<_> = tables
            .services()
            .expect("readable")
            .into_iter()
            .filter(|(_, _, service)| service.kind != Kind::Closed as u8)
            .map(|(key, _, service)| {
                let ring = service.ring_base..service.ring_base + service.ring_len;
                let ring = ring.map(|at| tables.rings().read(at).expect("inside")).collect();
                let disabled = service.kind == Kind::Disabled as u8;
                (key.vip.into(), u16::from_be_bytes(key.port), (!disabled).then_some(ring))
            })
            .collect();
        services.sort();
        services
    }

    /// The sources by device, first address and prefix length: VIP and kind.
    pub(crate) fn snat_rules(&self) -> Vec<(u32, Ipv4Addr, u32, Ipv4Addr, u8)> {
        let sources = self.plane.tables().and_then(|tables| Ok(tables.snat_rules()?)).expect("readable");
        let mut sources: Vec<_> = sources
            .into_iter()
            .map(|(key, prefix_len, source)| {
                let device = u32::from_ne_bytes(key.device);
                (device, key.addr.into(), prefix_len, u32::from_be(source.vip).into(), source.kind)
            })
            .collect();
        sources.sort();
        sources
    }

    /// The numbers of bits of interest that are set: to, from, out.
    pub(crate) fn address_filter(&self) -> [u32; 3] {
        let words: Array<MapData, u64> = self.map(maps::INTEREST);
        let words: Vec<u64> = (0..words.len()).map(|at| words.get(&at, 0).expect("inside")).collect();
        // Beside each other are an address's bits: to, from, out and own.
        [0, 1, 2].map(|kind| words.iter().map(|word| (word & 0x1111_1111_1111_1111 << kind).count_ones()).sum())
    }

    pub(crate) fn has_address(&self, device: &str, host: u8) -> bool {
        self.room.show(&format!("-4 -o address show dev {device}")).contains(&format!(" 10.0.0.{host}/32 "))
    }
}

pub(crate) fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

#[test]
fn a_vip_comes_changes_and_goes() {
    let bench = Bench::new();
    let reconciler = bench.start();
    assert!(bench.services().is_empty());

    bench.desired.put(vip(5, "r0", [1, 2]));
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    assert_eq!(bench.services(), [(address(5), 80, Some(vec![51, 52]))]);
    assert!(bench.has_address("r0", 5));
    let backend = bench.plane.tables().expect("opens").backends().read(52).expect("inside");
    assert_eq!((u32::from_be(backend.addr), u16::from_be(backend.port)), (0x0a00_0102, 8080));

    bench.desired.put(vip(5, "r0", []));
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    assert_eq!(bench.services(), [(address(5), 80, Some(vec![]))], "an empty pool keeps its key");
    let drained = bench.plane.tables().expect("opens").backends().read(52).expect("inside");
    assert_eq!(drained, Backend { drains: 1, ..backend }, "its flows drain");

    let disabled = VipState { enabled: false, ..vip(5, "r0", [1]) };
    bench.desired.put(disabled);
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    assert_eq!(bench.services(), [(address(5), 0, None)]);
    let ended = bench.plane.tables().expect("opens").backends().read(52).expect("inside");
    assert_ne!(ended.generation, backend.generation, "its flows end");

    bench.desired.remove("vip-5");
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    assert!(bench.services().is_empty());
    assert!(!bench.has_address("r0", 5));
}

#[test]
fn a_start_brings_everything_in_line_and_removes_what_nothing_wants() {
    let bench = Bench::new();
    for host in [5, 6, 7] {
        bench.desired.put(vip(host, "r0", [1]));
    }
    let first = bench.start();
    assert_eq!(bench.services().len(), 3);
    bench.room.run(async move { first.shutdown().await });

    // While no controller runs: one goes, one changes, one comes.
    bench.desired.remove("vip-5");
    bench.desired.put(vip(6, "r0", [1, 2]));
    bench.desired.put(vip(8, "r0", []));
    let untouched = bench.plane.tables().expect("opens").services().expect("readable");
    let seven = |services: &[(ServiceKey, u32, _)]| services.iter().find(|s| s.0.vip[3] == 7).copied();
    let _second = bench.start();
    let expected =
        [(address(6), 80, Some(vec![61, 62])), (address(7), 80, Some(vec![71])), (address(8), 80, Some(vec![]))];
    assert_eq!(bench.services(), expected);
    assert!(!bench.has_address("r0", 5) && bench.has_address("r0", 6) && bench.has_address("r0", 8));
    let after = bench.plane.tables().expect("opens").services().expect("readable");
    assert_eq!(seven(&after), seven(&untouched), "what is right is not written");
}

#[test]
fn a_vip_that_moved_to_another_device_or_address_leaves_nothing_behind() {
    let bench = Bench::new();
    bench.desired.put(vip(5, "r0", [1]));
    let reconciler = bench.start();
    let moved = VipState { device: "r1".into(), ..vip(5, "r0", [1]) };
    bench.desired.put(moved.clone());
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    assert!(bench.has_address("r1", 5) && !bench.has_address("r0", 5));
    bench.desired.put(VipState { address: address(9).into(), ..moved });
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    assert!(bench.has_address("r1", 9) && !bench.has_address("r1", 5));
    assert_eq!(bench.services(), [(address(9), 80, Some(vec![51]))]);

    // The same while no controller runs.
    bench.room.run(async move { reconciler.shutdown().await });
    bench.desired.put(VipState { address: address(9).into(), ..vip(5, "r0", [1]) });
    let _reconciler = bench.start();
    assert!(bench.has_address("r0", 9) && !bench.has_address("r1", 9));
}

#[test]
fn a_vip_on_a_device_that_is_missing_fails_and_heals_when_it_appears() {
    let bench = Bench::new();
    bench.desired.set_devices(&["r0", "r1", "late0"]);
    let reconciler = bench.start();
    bench.desired.put(vip(5, "late0", [1]));
    let error = bench.apply(&reconciler, &["vip-5"]).expect_err("no device");
    assert!(error.to_string().contains("late0"), "{error}");

    bench.room.veth("late0", "late1", "10.0.0.2/24");
    bench.room.wait("the address on the late device", || bench.has_address("late0", 5).then_some(()));
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
}

#[test]
fn flows_of_a_vip_that_goes_are_swept_at_once() {
    let bench = Bench::new();
    let reconciler = bench.start();
    bench.desired.put(vip(5, "r0", [1]));
    bench.apply(&reconciler, &["vip-5"]).expect("applied");

    // A connection as the programs would have made it, in the slots 3 and 11.
    let backend = bench.plane.tables().expect("opens").backends().read(51).expect("inside");
    let word = Word::new(State::Established, 1, 7, bench.plane.jiffies().expect("a time"));
    let flow = Flow {
        target: Target::of(51),
        generation: backend.generation,
        peer: 11,
        mark: Mark::of(word, 0),
        ..Flow::default()
    };
    let mut flows = bench.map::<Array<MapData, Flow>>(maps::FLOWS);
    flows.set(3, flow, 0).expect("written");
    flows.set(11, Flow { peer: 3, mark: Mark::of(word, FLAG_REPLY), ..flow }, 0).expect("written");
    let mut buckets = bench.map::<Array<MapData, Bucket>>(maps::FLOW_BUCKETS);
    for bucket in [0, 1] {
        buckets.set(bucket, Bucket { words: [0, 0, 0, word.0, 0, 0, 0, 0] }, 0).expect("written");
    }
    let counted = Load::of(backend.generation).0 + Load::by(1, 1);
    bench.map::<Array<MapData, u64>>(maps::BACKEND_LOAD).set(51, counted, 0).expect("written");
    bench.map::<Array<MapData, u32>>(maps::SERVICE_LOAD).set(5, 1, 0).expect("written");

    bench.desired.remove("vip-5");
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    let table = bench.plane.flow_table().expect("opens");
    assert_eq!((table.backend_loads().get(51).live(), table.service_loads().get(5)), (0, 0), "counted no more at once");
    bench.room.wait("both directions to go", || {
        let gone = |slot| table.word(slot).is_some_and(|word| word.state() == State::Empty);
        (gone(3) && gone(11)).then_some(())
    });
    assert_eq!((table.backend_loads().get(51).live(), table.service_loads().get(5)), (0, 0), "and once only");
}

#[test]
fn changes_that_come_together_are_all_made() {
    let bench = Bench::new();
    let reconciler = bench.start();
    let hosts = 10..100_u8;
    for host in hosts.clone() {
        bench.desired.put(vip(host, "r0", [1]));
    }
    let all = hosts.clone().map(|host| {
        let reconciler = reconciler.clone();
        async move { reconciler.apply(BTreeSet::from([format!("vip-{host}")])).await }
    });
    let results = bench.room.run(join_all(all));
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(bench.services().len(), hosts.len());
    assert!(hosts.clone().all(|host| bench.has_address("r0", host)));

    hosts.clone().for_each(|host| bench.desired.remove(&format!("vip-{host}")));
    let all = hosts.clone().map(|host| format!("vip-{host}")).collect();
    bench.room.run(async move { reconciler.apply(all).await }).expect("applied");
    assert!(bench.services().is_empty());
    assert!(!hosts.clone().any(|host| bench.has_address("r0", host)));
}

#[test]
fn an_elastic_ip_comes_goes_and_follows_its_device() {
    let bench = Bench::new();
    let reconciler = bench.start();
    bench.desired.put(elastic(5, "r0", 7));
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    let guest = Ipv4Addr::new(10, 0, 1, 7);
    let source = |device| (device, guest, 64, address(5), SnatKind::Elastic as u8);
    let first = target(&bench.room, "r0").ifindex;
    assert_eq!(bench.snat_rules(), [source(first)]);
    let service = bench.plane.tables().and_then(|tables| Ok(tables.services()?)).expect("readable")[0].2;
    assert_eq!((service.kind, service.device()), (Kind::Elastic as u8, first));
    assert!(bench.has_address("r0", 5));
    assert_eq!(bench.address_filter(), [1, 1, 1]);

    // Under another index: addresses and entries come again, and flows go on.
    let backend = || bench.plane.tables().expect("opens").backends().read(5).expect("inside");
    let held = backend();
    bench.room.ip("link del r0");
    bench.room.veth("d0", "d1", "10.9.0.1/24");
    bench.room.veth("r0", "c0", "10.0.0.1/24");
    let second = target(&bench.room, "r0").ifindex;
    assert_ne!(first, second);
    bench.room.wait("the entries by the new device", || (bench.snat_rules() == [source(second)]).then_some(()));
    bench.room.wait("the address", || bench.has_address("r0", 5).then_some(()));
    assert_eq!(backend(), held);

    bench.desired.put(VipState { enabled: false, ..elastic(5, "r0", 7) });
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    assert_eq!(bench.snat_rules(), [(second, guest, 64, address(5), SnatKind::Disabled as u8)]);
    bench.desired.remove("vip-5");
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    assert!(bench.snat_rules().is_empty() && bench.services().is_empty());
    assert_eq!(bench.address_filter(), [1, 1, 0], "whoever sends on what has ended is to be told");
}

#[test]
fn the_routers_own_address_stays_whatever_becomes_of_its_vip() {
    let bench = Bench::new();
    let has_own = || bench.room.show("-4 -o address show dev r0").contains(" 10.0.0.1/24 ");
    bench.desired.put(own("r0", "10.64.0.0/16"));
    let reconciler = bench.start();
    let device = target(&bench.room, "r0").ifindex;
    let source = |kind: SnatKind| (device, Ipv4Addr::new(10, 64, 0, 0), 48, address(1), kind as u8);
    assert_eq!(bench.snat_rules(), [source(SnatKind::Masquerade)]);
    assert!(bench.services().is_empty() && has_own() && !bench.has_address("r0", 1));
    let [to, from, out] = bench.address_filter();
    assert_eq!(to, 1, "answers come to the router's own address");
    assert!(out > 55_000 && from >= out, "every guest's bit: {from}, {out}");

    bench.desired.put(VipState { enabled: false, ..own("r0", "10.64.0.0/16") });
    bench.apply(&reconciler, &["vip-1"]).expect("applied");
    assert_eq!(bench.snat_rules(), [source(SnatKind::Disabled)]);
    assert!(bench.services().is_empty() && has_own(), "the router itself goes on");

    bench.desired.put(own("r0", "10.0.0.0/8"));
    bench.apply(&reconciler, &["vip-1"]).expect("applied");
    assert_eq!(bench.address_filter(), [1, BITS, BITS], "more addresses than bits");
    // It goes while no controller runs: the entries do, the address does not.
    bench.room.run(async move { reconciler.shutdown().await });
    bench.desired.remove("vip-1");
    let _reconciler = bench.start();
    assert!(bench.snat_rules().is_empty() && has_own());
    assert_eq!(bench.address_filter(), [1, BITS, 0], "whoever sends on what has ended is to be told");
}

#[test]
fn sources_outlive_the_controller_and_are_not_written_anew() {
    let bench = Bench::new();
    bench.desired.put(elastic(5, "r0", 7));
    bench.desired.put(own("r0", "10.64.0.0/16"));
    let first = bench.start();
    let held = |number| bench.plane.tables().expect("opens").backends().read(number).expect("inside");
    let (sources, address_filter, backends) = (bench.snat_rules(), bench.address_filter(), [5, 200].map(held));
    assert_eq!(sources.len(), 2);
    bench.room.run(async move { first.shutdown().await });
    let _second = bench.start();
    assert_eq!((bench.snat_rules(), bench.address_filter(), [5, 200].map(held)), (sources, address_filter, backends));
}

#[test]
fn ten_thousand_listeners_of_ten_backends_fit_the_default_tables() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/8");
    let options = Options { sizes: Sizes::default(), ..room.options(Hook::Auto) };
    let plane = Plane::open(&options).expect("opens");
    let desired = Desired::with_devices(&["r0"]);
    const VIPS: u32 = 1000;
    for vip in 0..VIPS {
        desired.put(maglev_vip(vip, 10));
    }
    let reconciler =
        room.run(Reconciler::start(Arc::clone(&plane), desired.clone(), HealthChecks::default())).expect("starts");
    assert_eq!(plane.tables().expect("opens").services().expect("readable").len(), 11_000, "and a key of each VIP");

    desired.put(maglev_vip(7, 9));
    room.run(async move { reconciler.apply(BTreeSet::from(["vip-7".to_owned()])).await }).expect("applied");
}

/// A VIP of ten Maglev listeners.
fn maglev_vip(vip: u32, backends: u32) -> VipState {
    let listener = |n: u32| {
        let number = vip * 10 + n;
        let backends = (0..backends).map(|backend| BackendState {
            number: number * 10 + backend,
            address: Ipv4Addr::from(0x0a01_0000 + backend).into(),
            port: 8000 + n as u16,
            device: "r1".to_owned(),
            active: true,
            weight: 100,
            healthy: true,
        });
        ListenerState {
            uuid: format!("listener-{number}"),
            account: "account".into(),
            number,
            protocol: Protocol::Tcp,
            port: 80 + n as u16,
            algorithm: Algorithm::Maglev,
            max_connections: 0,
            idle_timeout: 60,
            check: HealthCheck::default(),
            backends: backends.collect(),
        }
    };
    VipState {
        uuid: format!("vip-{vip}"),
        address: Ipv4Addr::from(0x0a02_0000 + vip).into(),
        prefix_len: 8,
        device: "r0".to_owned(),
        enabled: true,
        listeners: (0..10).map(listener).collect(),
        forwards: vec![],
        own: false,
        elastic: None,
        masquerades: vec![],
        limits: vec![],
    }
}
