//! What the reconciler cannot do: it fails alone, is reported, and is tried again.

use std::{net::IpAddr, time::Duration};

use vipgate_abi::maps;
use vipgate_agent::{
    health::HealthChecks,
    loader::Hook,
    reconcile::{ApplyError, Reconciler},
};
use vipgate_state::VipState;

use crate::{reconciling::Bench, source::vip};

#[test]
fn a_sweeper_that_fails_ends_the_reconciler() {
    let bench = Bench::new();
    // Which tells it the time.
    bench.plane.refuse(&[maps::PROGRAM_CLOCK]);
    let reconciler = bench.start();
    let ended = async move { tokio::time::timeout(Duration::from_secs(10), reconciler.ended()).await };
    bench.room.run(ended).expect("it has ended");
}

#[test]
fn what_fails_is_told_and_tried_again() {
    let bench = Bench::new();
    let reconciler = bench.start();
    let mut too_many = vip(5, "r0", [1]);
    too_many.listeners[0].backends[0].number = u32::MAX;
    bench.desired.put(too_many);
    let error = bench.apply(&reconciler, &["vip-5"]).expect_err("no such number");
    assert!(error.to_string().contains("10.0.0.5") && error.to_string().contains("4294967295"), "{error}");
    // Nobody asks again, but what is stored is possible now.
    bench.desired.put(vip(5, "r0", [1]));
    bench.room.wait("the VIP", || (!bench.services().is_empty() && bench.has_address("r0", 5)).then_some(()));
}

#[test]
fn a_vip_of_ipv6_fails_alone_and_says_why() {
    let bench = Bench::new();
    let ipv6: IpAddr = "2001:db8::6".parse().expect("an address");
    bench.desired.put(vip(5, "r0", [1]));
    bench.desired.put(VipState { address: ipv6, ..vip(6, "r0", [1]) });
    let reconciler = bench.start();
    assert!(bench.has_address("r0", 5));
    let error = bench.apply(&reconciler, &["vip-5", "vip-6"]).expect_err("the packet path has no IPv6");
    assert!(error.to_string().contains("VIP vip-6 has the address 2001:db8::6"), "{error}");
    // A VIP that was there keeps what the kernel holds.
    let before = bench.services();
    let mut mixed = vip(5, "r0", [1]);
    mixed.listeners[0].backends[0].address = ipv6;
    bench.desired.put(mixed);
    let error = bench.apply(&reconciler, &["vip-5"]).expect_err("the packet path has no IPv6");
    assert!(error.to_string().contains("a backend of listener listener-5"), "{error}");
    assert_eq!(bench.services(), before);
}

#[test]
fn a_vip_whose_device_cannot_be_set_up_says_why() {
    let bench = Bench::new();
    bench.room.ip("link add br0 type bridge");
    bench.room.ip("link set br0 up");
    bench.desired.set_devices(&["r0", "r1", "br0"]);
    let plane = bench.room.open(Hook::Xdp).expect("opens");
    let reconciler = bench.room.run(Reconciler::start(plane, bench.desired.clone(), HealthChecks::default()));
    let reconciler = reconciler.expect("starts");
    for (host, device, words) in
        [(5, "br0", "the driver of br0 cannot run XDP programs"), (6, "gone0", "no such device on this router")]
    {
        bench.desired.put(vip(host, device, [1]));
        bench.desired.set_devices(&["r0", "r1", "br0", device]);
        let error = bench.apply(&reconciler, &[&format!("vip-{host}")]).expect_err("its device cannot have XDP");
        assert!(error.to_string().contains(&format!("its device {device} is not set up: ")), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_stopped_reconciler_says_so() {
    let bench = Bench::new();
    let reconciler = bench.start();
    let stopped = reconciler.clone();
    bench.room.run(async move { stopped.shutdown().await });
    assert_eq!(bench.apply(&reconciler, &["vip-5"]), Err(ApplyError::Stopped));
}

#[test]
fn a_store_that_cannot_be_read_changes_nothing_and_is_read_again() {
    let bench = Bench::new();
    bench.desired.put(vip(5, "r0", [1]));
    let reconciler = bench.start();
    let before = bench.services();
    bench.desired.remove("vip-5");
    bench.desired.put(vip(6, "r0", [1]));
    bench.desired.set_broken(true);
    let error = bench.apply(&reconciler, &["vip-5", "vip-6"]).expect_err("no answer from the store");
    assert!(matches!(&error, ApplyError::Source { reason } if reason.contains("on fire")), "{error}");
    assert_eq!(bench.services(), before);
    bench.desired.set_broken(false);
    bench.room.wait("both changes", || {
        (!bench.has_address("r0", 5) && bench.has_address("r0", 6) && bench.services().len() == 1).then_some(())
    });
}

#[test]
fn a_vip_that_cannot_be_read_fails_alone() {
    let bench = Bench::new();
    let reconciler = bench.start();
    (5..8).for_each(|host| bench.desired.put(vip(host, "r0", [1])));
    bench.desired.spoil(Some("vip-6"));
    assert!(matches!(bench.apply(&reconciler, &["vip-5", "vip-6", "vip-7"]), Err(ApplyError::Source { .. })));
    assert_eq!([5, 6, 7].map(|host| bench.has_address("r0", host)), [true, false, true]);
    bench.desired.spoil(None);
    bench.room.wait("the third", || bench.has_address("r0", 6).then_some(()));
}
