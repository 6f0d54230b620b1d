//! The pinned tables, the programs on devices, and what is told when something is in the way.

use std::fs;

use vipgate_abi::maps;
use vipgate_agent::loader::{self, AttachError, Hook, LoadError, Options, Target};

use crate::room::{Room, SIZES};

pub(crate) fn target(room: &Room, name: &str) -> Target {
    let text = room.show(&format!("-o link show dev {name}"));
    let ifindex = text.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
    Target::find(name, ifindex)
}

#[test]
fn a_second_open_finds_the_tables_of_the_first() {
    let room = Room::enter();
    let first = room.open(Hook::Tc).expect("opens");
    let config = first.epoch().and_then(|epoch| Ok(epoch.get()?)).expect("readable");
    assert_ne!(config.flow_seed, 0);
    assert_eq!(config.bucket_mask, 511);
    for map in maps::PINNED {
        assert!(first.pins().join(map).exists(), "{map} is pinned");
    }
    drop(first);

    let second = room.open(Hook::Tc).expect("opens");
    let again = second.epoch().and_then(|epoch| Ok(epoch.get()?)).expect("readable");
    assert_eq!((again.flow_seed, again.bucket_mask), (config.flow_seed, config.bucket_mask));
    assert_ne!(again.epoch, config.epoch, "what flows remembered may be old");
}

#[test]
fn the_clock_runs() {
    let room = Room::enter();
    let plane = room.open(Hook::Tc).expect("opens");
    let start = plane.jiffies().expect("a time");
    room.wait("jiffies to move on", || (plane.jiffies().expect("a time") != start).then_some(()));
}

#[test]
fn a_directory_that_is_no_bpffs_is_refused() {
    let room = Room::enter();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let options = Options { bpffs: elsewhere.path().join("vipgate"), ..room.options(Hook::Tc) };
    let error = loader::Plane::open(&options).expect_err("refused");
    assert!(matches!(error, LoadError::NotBpffs { .. }) && error.to_string().contains("mount -t bpf"), "{error}");
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_by_name() {
    let room = Room::enter();
    let plane = room.open(Hook::Tc).expect("opens");
    let pins = plane.pins().to_owned();
    drop(plane);
    // Something else lies where the ports should be.
    fs::remove_file(pins.join(maps::PORTS)).expect("removed");
    let reasons = aya::maps::MapData::from_pin(pins.join(maps::REASONS)).expect("a map");
    reasons.pin(pins.join(maps::PORTS)).expect("pinned");
    let error = room.open(Hook::Tc).expect_err("refused");
    assert!(matches!(&error, LoadError::ForeignPin { path, .. } if path.ends_with("PORTS")), "{error}");
}

#[test]
fn programs_stay_on_their_devices_and_are_replaced_in_place() {
    for hook in [Hook::Tc, Hook::Xdp, Hook::XdpGeneric] {
        let room = Room::enter();
        room.veth("r0", "c0", "10.0.0.1/24");
        let device = target(&room, "r0");
        let plane = room.open(hook).expect("opens");
        assert_eq!(plane.attach(&device).expect("attaches"), hook);
        drop(plane);

        let plane = room.open(hook).expect("opens again");
        assert_eq!(plane.attached().expect("a list"), [(hook, "r0".to_owned())]);
        assert_eq!(plane.attach(&device).expect("replaces"), hook);
        assert_eq!(room.show("link show dev r0").contains("xdp"), hook != Hook::Tc, "{hook}");

        plane.detach_device("r0").expect("detaches");
        plane.detach_device("r0").expect("again is no error");
        assert!(plane.attached().expect("a list").is_empty());
    }
}

#[test]
fn the_hook_of_a_device_can_change() {
    let room = Room::enter();
    room.veth("r0.100", "c0", "10.0.0.1/24");
    let device = target(&room, "r0.100@c0".split('@').next().expect("a name"));
    for hook in [Hook::Xdp, Hook::XdpGeneric, Hook::Tc, Hook::Xdp] {
        let plane = room.open(hook).expect("opens");
        assert_eq!(plane.attach(&device).expect("attaches"), hook);
        assert_eq!(plane.attached().expect("a list"), [(hook, "r0.100".to_owned())]);
    }
}

#[test]
fn the_links_of_another_versions_tables_are_taken_over() {
    for hook in [Hook::Tc, Hook::Xdp] {
        let room = Room::enter();
        room.veth("r0", "c0", "10.0.0.1/24");
        let device = target(&room, "r0");
        let pins = {
            let plane = room.open(hook).expect("opens");
            plane.attach(&device).expect("attaches");
            plane.pins().to_owned()
        };
        fs::rename(&pins, pins.with_file_name("abi-0")).expect("renamed");
        let plane = room.open(hook).expect("opens");
        assert_eq!(plane.attached().expect("a list"), [(hook, "r0".to_owned())]);
        assert_eq!(plane.attach(&device).expect("replaces the other version's"), hook);
        assert!(!pins.with_file_name("abi-0").exists());
    }
}

/// The same device, taken for one of a driver that loses nothing under native XDP.
fn lossless(device: Target) -> Target {
    Target { drivers: vec!["mlx5_core".to_owned()], ..device }
}

#[test]
fn auto_takes_tc_where_native_xdp_costs_offloads_and_native_xdp_elsewhere() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    room.ip("tuntap add dev t0 mode tap");
    let plane = room.open(Hook::Auto).expect("opens");
    for (name, driver) in [("r0", "veth"), ("t0", "tun")] {
        let device = target(&room, name);
        assert_eq!(device.drivers, [driver]);
        assert_eq!(plane.attach(&device).expect("attaches"), Hook::Tc);
    }
    assert_eq!(plane.attach(&lossless(target(&room, "r0"))).expect("attaches"), Hook::Xdp);
}

#[test]
fn a_driver_without_xdp_is_told_and_auto_takes_tc() {
    let room = Room::enter();
    room.ip("link add d0 type bridge");
    room.ip("link set d0 up");
    let device = target(&room, "d0");
    let xdp = room.open(Hook::Xdp).expect("opens");
    let error = xdp.attach(&device).expect_err("bridges have no XDP");
    assert!(matches!(error, AttachError::NoXdp { .. }) && error.to_string().contains("d0"), "{error}");
    assert!(xdp.attached().expect("a list").is_empty());
    let auto = room.open(Hook::Auto).expect("opens");
    assert_eq!(auto.attach(&device).expect("attaches"), Hook::Tc);
    // Where the driver is not known to have none, it is tried.
    assert_eq!(auto.attach(&lossless(device)).expect("attaches"), Hook::Tc);
}

#[test]
fn auto_takes_tc_where_the_kernel_refuses_the_xdp_program() {
    for refused in [&[maps::PROGRAM_XDP], &[maps::PROGRAM_BEHIND]] {
        let room = Room::enter();
        room.veth("r0", "c0", "10.0.0.1/24");
        let open = |hook| loader::Plane::open(&Options { refused, ..room.options(hook) });
        let plane = open(Hook::Auto).expect("opens");
        for _ in 0..2 {
            assert_eq!(plane.attach(&lossless(target(&room, "r0"))).expect("attaches"), Hook::Tc);
        }
        let error = open(Hook::Xdp).expect_err("who insists on it is told");
        assert!(matches!(&error, LoadError::Unsupported { why, .. } if why.contains(refused[0])), "{error}");
    }
}

#[test]
fn auto_takes_native_xdp_where_the_kernel_refuses_the_tc_program() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let open = |hook| loader::Plane::open(&Options { refused: &[maps::PROGRAM_TC], ..room.options(hook) });
    let plane = open(Hook::Auto).expect("opens");
    assert_eq!(plane.attach(&lossless(target(&room, "r0"))).expect("attaches"), Hook::Xdp);
    assert!(matches!(open(Hook::Tc), Err(LoadError::Unsupported { .. })));
}

#[test]
fn a_kernel_that_takes_neither_program_is_refused_before_a_device_is_touched() {
    let room = Room::enter();
    let refused = &[maps::PROGRAM_TC, maps::PROGRAM_XDP];
    let error = loader::Plane::open(&Options { refused, ..room.options(Hook::Auto) }).expect_err("refused");
    assert!(error.to_string().starts_with("Linux ") && error.to_string().contains("cannot run vipgate: "), "{error}");
    assert!(!room.bpffs().exists(), "it left pins");
}

#[test]
fn a_refusal_leaves_the_programs_and_tables_that_an_earlier_controller_left() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let pins = {
        let plane = room.open(Hook::Tc).expect("opens");
        plane.attach(&target(&room, "r0")).expect("attaches");
        plane.pins().to_owned()
    };
    let refused = || loader::Plane::open(&Options { refused: &[maps::PROGRAM_TC], ..room.options(Hook::Tc) });
    assert!(refused().is_err());
    assert!(pins.join("links/tc-r0").exists() && pins.join(maps::FLOWS).exists());
    // The same for those of another version.
    let other = pins.with_file_name("abi-0");
    fs::rename(&pins, &other).expect("renamed");
    assert!(refused().is_err());
    assert!(other.join("links/tc-r0").exists() && other.join(maps::FLOWS).exists());
    assert!(!pins.exists(), "it left pins");
}

#[test]
fn programs_are_tried_beside_a_running_plane_and_leave_nothing() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let plane = room.open(Hook::Tc).expect("opens");
    plane.attach(&target(&room, "r0")).expect("attaches");
    let epoch = || plane.epoch().and_then(|epoch| Ok(epoch.get()?.epoch)).expect("readable");
    let before = epoch();
    let trials = loader::try_programs().expect("this kernel runs vipgate");
    assert!([maps::PROGRAM_XDP, maps::PROGRAM_TC].iter().all(|name| trials.iter().any(|trial| trial.name == *name)));
    for trial in trials {
        assert!(trial.loads && trial.reason.is_none() && trial.instructions > Some(0), "{trial:?}");
    }
    assert_eq!(epoch(), before);
    assert_eq!(plane.attached().expect("a list"), [(Hook::Tc, "r0".to_owned())]);
}

#[test]
fn a_device_that_carries_anothers_xdp_program_is_left_to_it() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let device = target(&room, "r0");
    let other = Options { bpffs: room.mount_point().join("other"), ..room.options(Hook::Xdp) };
    let other = loader::Plane::open(&other).expect("opens");
    other.attach(&device).expect("attaches");
    let ours = room.open(Hook::Xdp).expect("opens");
    assert!(matches!(ours.attach(&device), Err(AttachError::Busy { .. })));
    assert_eq!(other.attached().expect("a list"), [(Hook::Xdp, "r0".to_owned())]);
}

#[test]
fn a_device_made_anew_gets_its_program_again() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let plane = room.open(Hook::Tc).expect("opens");
    plane.attach(&target(&room, "r0")).expect("attaches");
    room.ip("link del r0");
    room.veth("r0", "c0", "10.0.0.1/24");
    plane.attach(&target(&room, "r0")).expect("attaches to the new one");
    let gone = Target { ifindex: 9999, ..target(&room, "r0") };
    let xdp = room.open(Hook::Xdp).expect("opens");
    assert!(matches!(xdp.attach(&gone), Err(AttachError::NoXdp { .. } | AttachError::NoDevice { .. })));
}

#[test]
fn detach_leaves_nothing() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let plane = room.open(Hook::Xdp).expect("opens");
    plane.attach(&target(&room, "r0")).expect("attaches");
    drop(plane);
    let status = loader::status::read(&room.bpffs()).expect("readable").expect("there");
    assert_eq!(status.links, [(Hook::Xdp, "r0".to_owned())]);
    assert_eq!(status.flows.fill.capacity, u64::from(SIZES.flows));

    let detached = loader::detach(&room.bpffs()).expect("detaches");
    assert_eq!(detached.devices, ["r0"]);
    assert_eq!(detached.maps, maps::PINNED.len());
    assert!(!room.show("link show dev r0").contains("xdp"));
    assert!(loader::status::read(&room.bpffs()).expect("readable").is_none());
    assert_eq!(loader::detach(&room.bpffs()).expect("again is no error").maps, 0);
    assert!(room.mount_point().exists());
}
