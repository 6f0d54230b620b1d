//! What somebody takes off the devices while the reconciler runs.

use std::{fs, process::Command, sync::Arc};

use vipgate_agent::{health::HealthChecks, loader::Hook, reconcile::Reconciler};

use crate::{filters::tc_links, loading::target, room::Room, source::Desired};

/// The programs that are on r0.
fn programs(room: &Room) -> Vec<String> {
    let mut programs = [tc_links("ingress"), tc_links("egress")].concat();
    programs.extend(room.show("link show dev r0").contains("prog/xdp").then(|| "xdp".to_owned()));
    programs
}

#[test]
fn programs_that_somebody_takes_off_come_back_while_the_reconciler_runs() {
    for (hook, count) in [(Hook::Tc, 2), (Hook::Xdp, 3), (Hook::XdpGeneric, 3)] {
        let room = Room::enter();
        room.veth("r0", "c0", "10.0.0.1/24");
        let plane = room.open(hook).expect("opens");
        let desired = Desired::with_devices(&["r0"]);
        let reconciler =
            room.run(Reconciler::start(Arc::clone(&plane), desired, HealthChecks::default())).expect("starts");
        let before = programs(&room);
        assert_eq!(before.len(), count, "{before:?}");
        for link in fs::read_dir(plane.pins().join("links")).expect("pins") {
            let link = link.expect("a pin").path();
            // No device's.
            if link.ends_with("redirects") || link.ends_with("sockets") {
                continue;
            }
            let detach = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&link).status();
            assert!(detach.expect("bpftool is there").success(), "{}", link.display());
        }
        room.wait("the programs to be back", || (programs(&room) == before).then_some(()));
        room.run(async move { reconciler.shutdown().await });
    }
}

#[test]
fn links_that_moved_away_with_their_device_are_not_taken_for_those_of_one_with_its_name_and_index() {
    for (hook, count) in [(Hook::Tc, 2), (Hook::Xdp, 3), (Hook::XdpGeneric, 3)] {
        let room = Room::enter();
        room.veth("r0", "c0", "10.0.0.1/24");
        let plane = room.open(hook).expect("opens");
        let moved = target(&room, "r0");
        plane.attach(&moved).expect("attaches");
        let before = programs(&room);
        assert_eq!(before.len(), count, "{before:?}");
        assert_eq!(plane.missing_programs().expect("looks"), []);

        let far = room.far("r0", "10.0.0.2/24");
        room.ip(&format!("link add r0 index {} type veth peer name c1", moved.ifindex));
        assert_eq!(target(&room, "r0").ifindex, moved.ifindex);
        let lost: Vec<_> = plane.missing_programs().expect("looks").into_iter().map(|lost| lost.device).collect();
        assert_eq!(lost, vec!["r0"; count], "{hook}");

        plane.attach(&target(&room, "r0")).expect("attaches to the new one");
        assert_eq!(programs(&room), before, "{hook}");
        assert_eq!(plane.missing_programs().expect("looks"), []);
        assert!(!far.run("ip link show dev r0").contains("prog/xdp"), "{hook}");
    }
}
