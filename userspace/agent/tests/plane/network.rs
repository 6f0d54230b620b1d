//! The reconciler follows the router's network: devices, addresses and neighbours that come, change and go.

use std::net::IpAddr;

use vipgate_agent::{
    loader::Hook,
    net::{Changes, Netlink, Reach, Watcher},
};

use crate::{reconciling::Bench, room::Room, source::vip};

#[test]
fn a_device_made_anew_gets_everything_back() {
    let bench = Bench::new();
    bench.desired.put(vip(5, "r0", [1]));
    let _reconciler = bench.start();
    let before = bench.plane.interfaces().and_then(|ports| Ok(ports.list()?)).expect("readable");
    bench.room.ip("link del r0");
    bench.room.wait("the port to go", || {
        let ports = bench.plane.interfaces().and_then(|ports| Ok(ports.list()?)).expect("readable");
        (ports.len() < before.len()).then_some(())
    });
    bench.room.veth("r0", "c0", "10.0.0.1/24");
    bench.room.wait("the address and the program", || {
        let attached = bench.plane.attached().expect("a list").iter().any(|(_, name)| name == "r0");
        (attached && bench.has_address("r0", 5)).then_some(())
    });
}

#[test]
fn an_address_that_somebody_removes_comes_back() {
    let bench = Bench::new();
    bench.desired.put(vip(5, "r0", [1]));
    let _reconciler = bench.start();
    bench.room.ip("address del 10.0.0.5/32 dev r0");
    bench.room.wait("the address", || bench.has_address("r0", 5).then_some(()));
}

#[test]
fn devices_that_nothing_wants_lose_their_programs() {
    let bench = Bench::new();
    let reconciler = bench.start();
    assert_eq!(bench.plane.attached().expect("a list").len(), 2);
    bench.desired.set_devices(&["r1"]);
    bench.room.run(async move { reconciler.devices_changed().await }).expect("applied");
    assert_eq!(bench.plane.attached().expect("a list"), [(Hook::Tc, "r1".to_owned())]);
    assert_eq!(bench.plane.interfaces().and_then(|ports| Ok(ports.list()?)).expect("readable").len(), 1);
}

#[test]
fn a_change_of_mtu_reaches_the_ports() {
    let bench = Bench::new();
    let _reconciler = bench.start();
    bench.room.ip("link set dev r0 mtu 1400");
    bench.room.wait("the port's MTU", || {
        let ports = bench.plane.interfaces().and_then(|ports| Ok(ports.list()?)).expect("readable");
        ports.values().any(|port| port.mtu == 1400).then_some(())
    });
}

#[test]
fn a_neighbour_that_moves_makes_flows_look_again() {
    let bench = Bench::new();
    let _reconciler = bench.start();
    let epoch = || bench.plane.epoch().and_then(|epoch| Ok(epoch.get()?)).expect("readable").epoch;
    bench.room.ip("neighbour replace 10.0.1.1 lladdr 02:00:00:00:00:01 dev r1 nud reachable");
    let before = epoch();
    bench.room.ip("neighbour replace 10.0.1.1 lladdr 02:00:00:00:00:02 dev r1 nud reachable");
    bench.room.wait("a new epoch", || (epoch() != before).then_some(()));
}

#[test]
fn of_ipv6_only_neighbours_that_change_are_news() {
    let room = Room::enter();
    let mut watcher = room.run(Watcher::open()).expect("a subscription");
    let mut changed = |words: &[&str]| {
        words.iter().for_each(|words| room.ip(words));
        room.run(watcher.changed())
    };
    let next_hops = Changes { next_hops: true, ..Changes::default() };
    let addresses = Changes { devices: true, own_addresses: true, ..Changes::default() };
    // What comes last wakes the watcher in any case, and tells what else has come before.
    let neighbours = [
        "address add 2001:db8::1/64 dev lo",
        "address del 2001:db8::1/64 dev lo",
        "neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:01 dev lo nud reachable",
        "neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev lo nud reachable",
    ];
    assert_eq!(changed(&neighbours), next_hops);
    let routes = [
        "route add 2001:db8::/48 dev lo",
        "-6 rule add to 2001:db8::/32 table 7",
        "neighbour replace fe80::2 lladdr 02:00:00:00:00:01 dev lo nud reachable",
        "neighbour replace fe80::2 lladdr 02:00:00:00:00:01 dev lo nud stale",
        "address add 10.0.0.1/32 dev lo",
    ];
    assert_eq!(changed(&routes), addresses);
    // An IPv4 route may lead by it.
    assert_eq!(changed(&["neighbour replace fe80::2 lladdr 02:00:00:00:00:02 dev lo nud reachable"]), next_hops);
    assert_eq!(changed(&["neighbour del fe80::2 dev lo"]), next_hops);
}

#[test]
fn a_new_vip_is_announced_to_its_neighbours() {
    let bench = Bench::new();
    let far = bench.room.far("c0", "10.0.0.2/24");
    let reconciler = bench.start();
    bench.desired.put(vip(5, "r0", []));
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    // The far end takes gratuitous ARP for news, and nobody there asked.
    let known = bench.room.wait("the VIP among the neighbours", || {
        Some(far.run("ip neighbour show 10.0.0.5")).filter(|shown| shown.contains("lladdr"))
    });
    let own = bench.room.show("-br link show dev r0");
    let mac = own.split_whitespace().nth(2).expect("a MAC address");
    assert!(known.contains(mac), "{known} should name {mac}");
}

#[test]
fn the_neighbours_of_backends_are_resolved_before_the_first_packet() {
    let bench = Bench::new();
    let _far = bench.room.far("b0", "10.0.1.1/24");
    let reconciler = bench.start();
    bench.desired.put(vip(5, "r0", [1]));
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    bench.room.wait("the backend's neighbour entry", || {
        bench.room.show("neighbour show 10.0.1.1 dev r1").contains("REACHABLE").then_some(())
    });
}

#[test]
fn a_gateway_with_an_ipv6_address_is_resolved() {
    let room = Room::enter();
    room.veth("r1", "b0", "10.0.1.254/24");
    room.ip("address add fd00::1/64 dev r1 nodad");
    let far = room.far("b0", "10.0.1.1/24");
    far.run("ip address add fd00::2/64 dev b0 nodad");
    room.ip("route add 10.9.0.9 via inet6 fd00::2 dev r1");
    let net = room.run(async { Netlink::open() }).expect("a socket");
    let backend = IpAddr::from([10, 9, 0, 9]);
    let confirming = net.clone();
    room.run(async move { confirming.confirm_neighbour(backend).await }).expect("asked for");
    room.wait("the gateway's neighbour entry", || {
        room.show("neighbour show fd00::2 dev r1").contains("REACHABLE").then_some(())
    });
    assert_eq!(room.run(async move { net.reach(backend, "r1").await }), Reach::Open);
}

#[test]
fn a_neighbour_that_the_operator_set_for_good_stays_so() {
    let bench = Bench::new();
    let _far = bench.room.far("b0", "10.0.1.2/24");
    bench.room.ip("neighbour add 10.0.1.1 lladdr 02:00:00:00:00:01 dev r1 nud permanent");
    let reconciler = bench.start();
    bench.desired.put(vip(5, "r0", [1, 2]));
    bench.apply(&reconciler, &["vip-5"]).expect("applied");
    // Neighbours are confirmed in the order of their addresses.
    bench.room.wait("the second backend's neighbour entry", || {
        bench.room.show("neighbour show 10.0.1.2 dev r1").contains("REACHABLE").then_some(())
    });
    assert!(bench.room.show("neighbour show 10.0.1.1 dev r1").contains("PERMANENT"));
}

#[test]
fn managed_devices_get_the_settings_that_the_packet_path_needs() {
    let bench = Bench::new();
    let _reconciler = bench.start();
    // A process of the room's namespace reads its /proc/sys/net.
    let read = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/r0/{name}");
        std::fs::read_to_string(path).expect("readable").trim().to_owned()
    };
    assert_eq!(read("forwarding"), "1");
    assert_eq!(read("accept_local"), "1");
    assert_ne!(read("rp_filter"), "1");
}
