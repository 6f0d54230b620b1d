//! Tables get other sizes: everything in them stays, wherever an earlier attempt ended.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use vipgate_abi::{
    backend::Backend,
    config::Config,
    counters::Traffic,
    flow::{self, Bucket, FLAG_REPLY, Flow, FlowKey, Mark, State, Target, Volume, WAYS, Word},
    hash,
    load::Load,
    maps,
    service::{Algorithm, Kind, Service, ServiceKey},
    snat::{SnatKey, SnatKind, SnatRule},
};
use vipgate_agent::loader::{Connection, FlowTable, Hook, Options, Plane, Sizes, read_connections};

use crate::{
    loading::target,
    room::{Room, SIZES},
};

const LARGER: Sizes = Sizes { flows: 16_384, services: 512, backends: 2048, ring_elements: 131_072 };
const SMALLER: Sizes = Sizes { flows: 2048, services: 64, backends: 256, ring_elements: 4096 };
const CONNECTIONS: u32 = 64;
const BACKEND: u32 = 200;
const SERVICE: u32 = 40;

fn open(room: &Room, sizes: Sizes) -> Arc<Plane> {
    Plane::open(&Options { sizes, ..room.options(Hook::Tc) }).expect("opens")
}

pub(crate) fn map<M: TryFrom<Map, Error = MapError>>(plane: &Plane, name: &str) -> M {
    let data = MapData::from_pin(plane.pins().join(name)).expect("pinned");
    Map::from_map_data(data).and_then(M::try_from).expect("of that kind")
}

fn key() -> ServiceKey {
    ServiceKey::new(1, 6, 80)
}

fn service() -> Service {
    Service {
        kind: Kind::Balance as u8,
        algorithm: Algorithm::RoundRobin as u8,
        number: SERVICE,
        ring_base: 4000,
        ring_len: 3,
        ..Service::default()
    }
}

/// A network with source NAT.
fn source() -> (SnatKey, u32, SnatRule) {
    let value = SnatRule { vip: 1, backend: BACKEND, kind: SnatKind::Masquerade as u8, ..SnatRule::default() };
    (SnatKey::new(3, u32::from_ne_bytes([10, 2, 0, 0])), 56, value)
}

fn backend() -> Backend {
    Backend { addr: 7, port: 80, generation: 9, service: SERVICE, idle_timeout: 60, ..Backend::default() }
}

/// One service, one backend, and connections to it, with what was counted of them.
fn fill(plane: &Plane) {
    // The same in every run, and in both tables of a change.
    let mut config: Array<MapData, Config> = map(plane, maps::CONFIG);
    let held = config.get(&0, 0).expect("readable");
    config.set(0, Config { flow_seed: 0x5eed, ..held }, 0).expect("written");
    let mut tables = plane.tables().expect("opens");
    tables.begin().expect("begins");
    for element in 4000..4003 {
        tables.rings().write(element, BACKEND);
    }
    tables.set_backend(BACKEND, backend());
    tables.set_service(key(), ServiceKey::EXACT, service()).expect("written");
    let (network, prefix_len, value) = source();
    tables.set_snat_rule(network, prefix_len, value).expect("written");
    map::<Array<MapData, u64>>(plane, maps::CURSORS).set(SERVICE, 77, 0).expect("written");
    let counted = Traffic { packets_in: 3, bytes_in: 300, connections: 1, ..Traffic::default() };
    let cpus = aya::util::nr_cpus().expect("a number");
    let counted = PerCpuValues::try_from(vec![counted; cpus]).expect("values");
    map::<PerCpuArray<MapData, Traffic>>(plane, maps::BACKEND_TRAFFIC).set(BACKEND, counted, 0).expect("written");
    let table = plane.flow_table().expect("opens");
    let of = (BACKEND, backend().generation);
    (0..CONNECTIONS).for_each(|number| assert!(connect(plane, &table, number, of, State::Established), "a free slot"));
    let all = i64::from(CONNECTIONS);
    assert!(table.backend_loads().add(BACKEND, backend().generation, Load::by(all, all)));
    table.service_loads().add(SERVICE, CONNECTIONS);
}

/// Makes a connection to a backend of this number and generation as programs do, each flow in a slot of its bucket that is free.
/// False: there is none.
pub(crate) fn connect(plane: &Plane, table: &FlowTable, number: u32, backend: (u32, u16), state: State) -> bool {
    let seed = plane.epoch().and_then(|epoch| Ok(epoch.get()?)).expect("readable").flow_seed;
    let first = FlowKey { src: 1000 + number, dst: 1, protocol: 6, ..FlowKey::default() };
    let keys = [first, FlowKey { src: 7, dst: 1000 + number, ..first }];
    let now = plane.jiffies().expect("a time");
    let word = |key: &FlowKey| Word::new(state, 1, flow::tag(hash::flow(key, seed)), now);
    let mut buckets = map::<Array<MapData, Bucket>>(plane, maps::FLOW_BUCKETS);
    let bucket = |key: &FlowKey| flow::preferred(hash::flow(key, seed), table.buckets() - 1) / WAYS as u32;
    let numbers = [bucket(&keys[0]), bucket(&keys[1])];
    let free = |bucket: u32, nth: usize| {
        let words = buckets.get(&bucket, 0).expect("readable").words;
        words.into_iter().enumerate().filter(|(_, word)| *word == 0).nth(nth).map(|(way, _)| way)
    };
    let ways = [free(numbers[0], 0), free(numbers[1], usize::from(numbers[0] == numbers[1]))];
    let [Some(way), Some(reply_way)] = ways else { return false };
    let slots = [(numbers[0], way), (numbers[1], reply_way)];
    let mut flows = map::<Array<MapData, Flow>>(plane, maps::FLOWS);
    for (at, (key, flags)) in keys.into_iter().zip([0, FLAG_REPLY]).enumerate() {
        let index = |(bucket, way): (u32, usize)| bucket * WAYS as u32 + u32::try_from(way).expect("small");
        let (bucket, way) = slots[at];
        let mut words = buckets.get(&bucket, 0).expect("readable").words;
        words[way] = word(&key).0;
        buckets.set(bucket, Bucket { words }, 0).expect("written");
        let flow = Flow {
            key,
            mark: Mark::of(word(&key), flags),
            peer: index(slots[1 - at]),
            target: Target::of(backend.0),
            generation: backend.1,
            packets: number,
            volume: Volume::new(u64::from(number) << 33),
            ..Flow::default()
        };
        flows.set(index(slots[at]), flow, 0).expect("written");
    }
    true
}

pub(crate) fn connections(room: &Room) -> BTreeSet<(String, u32, u64, u32, State)> {
    let mut found = BTreeSet::new();
    let take = |Connection { client, packets_in, bytes_in, packets_out, state, .. }| {
        assert!(
            found.insert((client.to_string(), packets_in, bytes_in, packets_out, state)),
            "{client} is there twice"
        );
    };
    read_connections(&room.bpffs(), take).expect("readable").expect("there");
    found
}

/// All is there that [`fill`] made.
fn check(room: &Room, plane: &Plane, sizes: Sizes) {
    assert_eq!(plane.sizes(), sizes);
    let tables = plane.tables().expect("opens");
    assert_eq!(tables.services().expect("readable"), [(key(), ServiceKey::EXACT, service())]);
    assert_eq!(tables.snat_rules().expect("readable"), [source()]);
    assert_eq!(tables.backends().read(BACKEND), Some(backend()));
    assert!((4000..4003).all(|element| tables.rings().read(element) == Some(BACKEND)));
    assert_eq!(map::<Array<MapData, u64>>(plane, maps::CURSORS).get(&SERVICE, 0).expect("readable"), 77);
    let traffic = tables.traffic(BACKEND).expect("readable");
    let cpus = aya::util::nr_cpus().expect("a number") as u64;
    assert_eq!((traffic.packets_in, traffic.bytes_in, traffic.connections), (3 * cpus, 300 * cpus, cpus));
    let table = plane.flow_table().expect("opens");
    let load = table.backend_loads().get(BACKEND);
    assert_eq!((load.live(), load.admitted()), (CONNECTIONS, CONNECTIONS));
    assert_eq!(table.service_loads().get(SERVICE), CONNECTIONS);
    let config = plane.epoch().and_then(|epoch| Ok(epoch.get()?)).expect("readable");
    assert_eq!(config.bucket_mask, sizes.flows / WAYS as u32 - 1);
    let found = connections(room);
    assert_eq!(found.len(), CONNECTIONS as usize);
    assert!(found.iter().all(|(_, packets, bytes, out, state)| {
        (u64::from(*packets) << 33, *packets, State::Established) == (*bytes, *out, *state)
    }));
    assert_eq!(pins(&room.bpffs()), [plane.pins().file_name().and_then(|name| name.to_str()).expect("a name")]);
}

/// The directories of tables.
pub(crate) fn pins(bpffs: &Path) -> Vec<String> {
    let entries = fs::read_dir(bpffs).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    names.filter(|name| name.starts_with("abi-")).collect()
}

#[test]
fn tables_of_other_sizes_hold_what_the_old_ones_held() {
    let room = Room::enter();
    fill(&open(&room, SIZES));
    let flows_only = Sizes { flows: 8192, ..SMALLER };
    let all_but_flows = Sizes { flows: 8192, ..LARGER };
    for sizes in [SIZES, LARGER, SIZES, SMALLER, flows_only, all_but_flows, SIZES] {
        let sizes = Sizes { ring_elements: sizes.ring_elements.max(4003), ..sizes };
        check(&room, &open(&room, sizes), sizes);
    }
}

#[test]
fn the_devices_keep_their_links() {
    for hook in [Hook::Tc, Hook::Xdp, Hook::XdpGeneric] {
        let room = Room::enter();
        room.veth("r0.7", "c0", "10.0.0.1/24");
        room.veth("r1", "c1", "10.0.1.1/24");
        let devices = [target(&room, "r0.7"), target(&room, "r1")];
        let with = |sizes| Plane::open(&Options { sizes, ..room.options(hook) }).expect("opens");
        let plane = with(SIZES);
        devices.iter().for_each(|device| assert_eq!(plane.attach(device).expect("attaches"), hook));
        // What holds a link whose device is gone is nothing to wait for.
        room.ip("link del r1");
        drop(plane);
        for sizes in [LARGER, SMALLER] {
            let plane = with(sizes);
            assert_eq!(plane.sizes(), sizes);
            let attached = plane.attached().expect("a list");
            assert_eq!(attached, [(hook, "r0.7".to_owned()), (hook, "r1".to_owned())]);
            assert_eq!(plane.attach(&devices[0]).expect("replaces"), hook);
        }
        let plane = with(SIZES);
        devices.iter().for_each(|device| plane.detach_device(&device.name).expect("detaches"));
        assert!(!room.show("link show dev r0.7").contains("xdp"));
    }
}

#[test]
fn a_size_that_does_not_hold_what_is_there_is_not_taken() {
    let room = Room::enter();
    fill(&open(&room, SIZES));
    let too_small = Sizes { flows: 128, services: SERVICE, backends: BACKEND, ring_elements: 4002 };
    check(&room, &open(&room, too_small), SIZES);
    let just = Sizes { services: SERVICE + 1, backends: BACKEND + 1, ring_elements: 4003, ..too_small };
    check(&room, &open(&room, just), Sizes { flows: SIZES.flows, ..just });
}

#[test]
fn a_change_that_ended_before_the_first_flow_was_in_the_new_table_is_begun_again() {
    let room = Room::enter();
    let plane = open(&room, SIZES);
    fill(&plane);
    let pins = plane.pins().to_owned();
    drop(plane);
    let new = pins.with_file_name(format!("{}-new", pins.file_name().and_then(|name| name.to_str()).expect("a name")));
    fs::create_dir(&new).expect("made");
    MapData::from_pin(pins.join(maps::PORTS)).expect("a map").pin(new.join(maps::PORTS)).expect("pinned");
    check(&room, &open(&room, LARGER), LARGER);
}

#[test]
fn a_change_that_ended_while_flows_were_carried_goes_on() {
    let room = Room::enter();
    let plane = open(&room, SIZES);
    fill(&plane);
    let pins = plane.pins().to_owned();
    drop(plane);
    // The same tables in another size, with what is copied before flows are carried, and some of the latter.
    let elsewhere = room.mount_point().join("elsewhere");
    let other = Plane::open(&Options { sizes: LARGER, bpffs: elsewhere, ..room.options(Hook::Tc) }).expect("opens");
    fill(&other);
    let taken = other.pins().to_owned();
    drop(other);
    let name = pins.file_name().and_then(|name| name.to_str()).expect("a name");
    fs::remove_dir_all(taken.join("links")).expect("removed");
    // What is counted comes last.
    fs::remove_file(taken.join(maps::BACKEND_TRAFFIC)).expect("removed");
    fs::rename(&taken, pins.with_file_name(format!("{name}-carried"))).expect("renamed");
    check(&room, &open(&room, SIZES), SIZES);
}

#[test]
fn a_change_that_ended_after_flows_were_carried_is_finished() {
    for ended in ["before the new tables took their place", "after it"] {
        let room = Room::enter();
        let plane = open(&room, SIZES);
        fill(&plane);
        let pins = plane.pins().to_owned();
        drop(plane);
        let name = pins.file_name().and_then(|name| name.to_str()).expect("a name");
        let old = pins.with_file_name(format!("{name}-old"));
        fs::create_dir_all(old.join("links")).expect("made");
        MapData::from_pin(pins.join(maps::PORTS)).expect("a map").pin(old.join(maps::PORTS)).expect("pinned");
        if ended != "after it" {
            fs::rename(&pins, pins.with_file_name(format!("{name}-carried"))).expect("renamed");
        }
        check(&room, &open(&room, SIZES), SIZES);
    }
}
