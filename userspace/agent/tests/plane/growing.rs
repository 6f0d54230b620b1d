//! The flow table gets other sizes while the reconciler works: it goes on with what it has open, and nothing is lost.

use std::{ops::Range, sync::Arc, time::Duration};

use aya::maps::Array;
use vipgate_abi::{config::Config, counters::Reason, flow::State, load::Load, maps};
use vipgate_agent::{
    health::HealthChecks,
    loader::{Hook, Options, PacketRecords, Plane, Sizes},
    reconcile::{Pace, Reconciler},
};
use vipgate_state::Protocol;

use crate::{
    resizing::{connect, connections, map, pins},
    room::{Far, Room, SIZES},
    source::{Desired, vip},
};

const LEAST: u32 = 512;
const LOOK: Duration = Duration::from_millis(20);
/// It never comes.
const LONG: Duration = Duration::from_secs(3600);
/// The backend of what connections there are.
const BACKEND: u32 = 51;

struct Bench {
    room: Room,
    plane: Arc<Plane>,
    desired: Desired,
    reconciler: Reconciler,
}

impl Bench {
    /// A router with one VIP whose flow table may have from 512 to 4,096 entries.
    fn start(hook: Hook, quiet: Duration) -> Self {
        let room = Room::enter();
        room.veth("r0", "c0", "10.0.0.1/24");
        room.veth("r1", "b0", "10.0.1.254/24");
        let sizes = Sizes { flows: LEAST * 8, ..SIZES };
        let plane = Plane::open(&Options { sizes, least_flows: LEAST, ..room.options(hook) }).expect("opens");
        let desired = Desired::with_devices(&["r0", "r1"]);
        desired.put(vip(5, "r0", [1]));
        let pace = Pace { look: LOOK, glance: LOOK, quiet, pause: LOOK };
        let started = Reconciler::start_at(pace, Arc::clone(&plane), desired.clone(), HealthChecks::default());
        let reconciler = room.run(started).expect("starts");
        Self { room, plane, desired, reconciler }
    }

    /// Makes connections of these numbers; how many entries they have.
    fn connect(&self, numbers: Range<u32>, state: State) -> u32 {
        let (plane, table) = (&self.plane, self.plane.flow_table().expect("opens"));
        let backend = plane.tables().expect("opens").backends().read(BACKEND).expect("inside");
        let made = numbers.filter(|number| connect(plane, &table, *number, (BACKEND, backend.generation), state));
        let made = 2 * u32::try_from(made.count()).expect("few");
        let connections = i64::from(made / 2);
        let admitted = if state.is_admitted() { connections } else { 0 };
        assert!(table.backend_loads().add(BACKEND, backend.generation, Load::by(connections, admitted)));
        made
    }

    fn wait_for(&self, flows: u32) {
        self.room.wait("another size", || (self.plane.sizes().flows == flows).then_some(()));
    }

    fn apply(&self, uuid: &str) {
        let (reconciler, vips) = (self.reconciler.clone(), [uuid.to_owned()].into());
        self.room.run(async move { reconciler.apply(vips).await }).expect("applied");
    }
}

#[test]
fn a_table_grows_under_a_working_reconciler_and_keeps_every_connection() {
    for hook in [Hook::Tc, Hook::Xdp] {
        let bench = Bench::start(hook, LONG);
        assert_eq!(bench.plane.sizes().flows, LEAST);
        let links = bench.plane.attached().expect("a list");
        let entries = bench.connect(0..200, State::Established);
        assert!(entries > LEAST / 2, "{entries} entries");
        let before = connections(&bench.room);
        bench.wait_for(LEAST * 4);
        assert_eq!(connections(&bench.room), before);
        assert_eq!(before.len(), entries as usize / 2);
        assert_eq!(pins(&bench.room.bpffs()).len(), 1, "no stage is left");
        assert_eq!(bench.plane.attached().expect("a list"), links);

        // What the reconciler has open is what there is: its tables, the epoch, the sweeper's flows, the devices.
        let config = || map::<Array<_, Config>>(&bench.plane, maps::CONFIG).get(&0, 0).expect("readable");
        let (epoch, mask) = (config().epoch, config().bucket_mask);
        assert_eq!(mask, LEAST * 4 / 8 - 1);
        bench.room.ip("route add 10.9.0.0/16 via 10.0.1.9");
        bench.room.wait("another epoch", || (config().epoch != epoch).then_some(()));
        bench.room.veth("r2", "c2", "10.0.2.1/24");
        bench.desired.set_devices(&["r0", "r1", "r2"]);
        bench.desired.put(vip(6, "r2", [1]));
        bench.apply("vip-6");
        assert!(bench.plane.attached().expect("a list").contains(&(hook, "r2".to_owned())));
        bench.desired.remove("vip-5");
        bench.apply("vip-5");
        let is_over = |found: &(String, u32, u64, u32, State)| found.4.is_over();
        bench.room.wait("the VIP's connections to end", || connections(&bench.room).iter().all(is_over).then_some(()));
    }
}

#[test]
fn a_table_grows_up_to_its_largest_size_and_shrinks_when_it_was_quiet() {
    let bench = Bench::start(Hook::Tc, LOOK);
    let mut made = 0;
    for (numbers, flows) in [(0..200, LEAST * 4), (200..900, LEAST * 8)] {
        made += bench.connect(numbers, State::Established);
        bench.wait_for(flows);
        assert_eq!(connections(&bench.room).len(), made as usize / 2);
    }
    bench.desired.remove("vip-5");
    bench.apply("vip-5");
    bench.wait_for(LEAST);
    assert_eq!(pins(&bench.room.bpffs()).len(), 1, "no stage is left");
}

#[test]
fn a_flood_of_first_packets_makes_no_table_grow() {
    let bench = Bench::start(Hook::Tc, LONG);
    let half_open = bench.connect(0..200, State::Opening);
    assert!(half_open > LEAST / 2, "{half_open} entries");
    let looks = std::time::Instant::now() + 20 * LOOK;
    while std::time::Instant::now() < looks {
        assert_eq!(bench.plane.sizes().flows, LEAST);
        std::thread::sleep(LOOK);
    }
}

/// Waits until the programs tell of a datagram that is sent to VIP 6 from now on.
fn hear(room: &Room, client: &Far, tidings: &mut PacketRecords) {
    tidings.take();
    room.wait("what the programs tell", || {
        client.run("bash -c echo>/dev/udp/10.0.0.6/80");
        tidings.take().iter().any(|told| told.reason == Reason::NoBackend).then_some(())
    });
}

#[test]
fn what_the_programs_tell_is_heard_after_the_table_has_grown_and_by_the_next_controller() {
    let bench = Bench::start(Hook::Tc, LONG);
    let client = bench.room.far("c0", "10.0.0.2/24");
    let mut unserved = vip(6, "r0", []);
    unserved.listeners[0].protocol = Protocol::Udp;
    bench.desired.put(unserved);
    bench.apply("vip-6");
    let reconciler = bench.reconciler.clone();
    bench.room.run(async move { reconciler.log_reasons(Reason::NoBackend.bit()).await }).expect("tells");
    let mut tidings = bench.plane.packet_records().expect("opens");
    hear(&bench.room, &client, &mut tidings);
    bench.connect(0..200, State::Established);
    bench.wait_for(LEAST * 4);
    hear(&bench.room, &client, &mut tidings);

    let Bench { room, plane, reconciler, .. } = bench;
    drop((reconciler, tidings));
    room.wait("the reconciler to end", || (Arc::strong_count(&plane) == 1).then_some(()));
    drop(plane);
    let sizes = Sizes { flows: LEAST * 16, ..SIZES };
    let plane = Plane::open(&Options { sizes, ..room.options(Hook::Tc) }).expect("opens");
    assert_eq!(plane.sizes().flows, LEAST * 16);
    hear(&room, &client, &mut plane.packet_records().expect("opens"));
}
