//! TC programs as filters of clsact, as on kernels without TCX links: whose they are, and what becomes of them.

use std::{fs, process::Command, sync::Arc};

use vipgate_agent::loader::{self, AttachError, FILTER_PRIORITY, FilterError, Hook, Options, Plane, Sizes, TcMode};

use crate::{
    loading::target,
    room::{Room, SIZES},
};

fn open(room: &Room, hook: Hook) -> Arc<Plane> {
    Plane::open(&Options { tc: TcMode::Clsact, ..room.options(hook) }).expect("opens")
}

/// `tc` with these words; what it prints.
fn tc(words: &str) -> String {
    let output = Command::new("tc").args(words.split(' ')).output().expect("tc is there");
    assert!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The names of the programs on a device's sides, ours and others.
fn filters(device: &str) -> [Vec<String>; 2] {
    ["ingress", "egress"].map(|side| {
        let output = Command::new("tc").args(["filter", "show", "dev", device, side]).output().expect("tc is there");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut names: Vec<String> = text
            .lines()
            .filter(|line| line.contains(" handle "))
            .filter_map(|line| Some(line.split(" handle ").nth(1)?.split(' ').nth(1)?.to_owned()))
            .collect();
        names.sort();
        names
    })
}

fn has_clsact(device: &str) -> bool {
    tc(&format!("qdisc show dev {device}")).contains("clsact")
}

/// The id of the program that a filter of ours has.
fn program_id(device: &str) -> String {
    let text = tc(&format!("filter show dev {device} ingress"));
    let id = text.split(" id ").nth(1).and_then(|rest| rest.split(' ').next());
    id.expect("a program").to_owned()
}

/// A filter that is not ours.
fn add_foreign(device: &str, side: &str, priority: u16) {
    tc(&format!("filter add dev {device} {side} pref {priority} protocol all u32 match u32 0 0 flowid 1:1"));
}

#[test]
fn filters_are_put_replaced_in_place_by_the_next_controller_and_taken_off() {
    for (hook, ingress) in [(Hook::Tc, "vipgate_tc"), (Hook::Xdp, "vipgate_behind")] {
        let room = Room::enter();
        room.veth("r0", "c0", "10.0.0.1/24");
        let device = target(&room, "r0");
        let plane = open(&room, hook);
        assert_eq!(plane.attach(&device).expect("attaches"), hook);
        assert_eq!(filters("r0"), [vec![ingress.to_owned()], vec!["vipgate_egress".to_owned()]]);
        let first = program_id("r0");
        drop(plane);
        assert_eq!(program_id("r0"), first, "it stays without a controller");

        let plane = open(&room, hook);
        assert_eq!(plane.attached().expect("a list"), [(hook, "r0".to_owned())]);
        assert_eq!(plane.attach(&device).expect("replaces"), hook);
        assert_eq!(filters("r0"), [vec![ingress.to_owned()], vec!["vipgate_egress".to_owned()]]);
        assert_ne!(program_id("r0"), first);

        plane.detach_device("r0").expect("detaches");
        plane.detach_device("r0").expect("again is no error");
        assert!(plane.attached().expect("a list").is_empty());
        assert!(!has_clsact("r0"), "it was made for the filters");
    }
}

#[test]
fn the_hook_of_a_device_with_filters_can_change() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let device = target(&room, "r0");
    for (hook, ingress) in
        [(Hook::Xdp, "vipgate_behind"), (Hook::Tc, "vipgate_tc"), (Hook::XdpGeneric, "vipgate_behind")]
    {
        assert_eq!(open(&room, hook).attach(&device).expect("attaches"), hook);
        assert_eq!(filters("r0"), [vec![ingress.to_owned()], vec!["vipgate_egress".to_owned()]]);
    }
}

#[test]
fn a_kernel_with_tcx_links_is_asked_and_takes_filters_over_in_both_directions() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let device = target(&room, "r0");
    open(&room, Hook::Tc).attach(&device).expect("attaches");
    room.open(Hook::Tc).expect("opens").attach(&device).expect("attaches");
    assert!(!has_clsact("r0"), "links hold the programs now");
    let links = |side| tc_links(side).len();
    assert_eq!([links("ingress"), links("egress")], [1, 1]);
    open(&room, Hook::Tc).attach(&device).expect("attaches");
    assert_eq!(filters("r0"), [vec!["vipgate_tc".to_owned()], vec!["vipgate_egress".to_owned()]]);
    assert_eq!([links("ingress"), links("egress")], [0, 0]);
}

/// The programs that TCX links hold on r0.
pub(crate) fn tc_links(side: &str) -> Vec<String> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let at = if side == "ingress" { TcAttachType::Ingress } else { TcAttachType::Egress };
    let (_, programs) = SchedClassifier::query_tcx("r0", at).expect("this kernel has them");
    programs.iter().filter_map(|program| program.name_as_str().map(str::to_owned)).collect()
}

#[test]
fn clsact_and_filters_of_others_stay() {
    let room = Room::enter();
    for (device, peer) in [("r0", "c0"), ("r1", "c1")] {
        room.veth(device, peer, "10.0.0.1/24");
    }
    // One device has it already; on the other somebody adds a filter to ours.
    tc("qdisc add dev r0 clsact");
    let plane = open(&room, Hook::Tc);
    for device in ["r0", "r1"] {
        plane.attach(&target(&room, device)).expect("attaches");
        add_foreign(device, "ingress", 1);
        add_foreign(device, "egress", 200);
    }
    for device in ["r0", "r1"] {
        plane.detach_device(device).expect("detaches");
        assert!(has_clsact(device));
        assert!(tc(&format!("filter show dev {device} ingress")).contains("u32"));
        assert!(tc(&format!("filter show dev {device} egress")).contains("u32"));
        assert!(!tc(&format!("filter show dev {device} ingress")).contains("vipgate"));
    }
    drop(plane);
    loader::detach(&room.bpffs()).expect("detaches");
    assert!(has_clsact("r0") && has_clsact("r1"));
}

#[test]
fn a_filter_or_discipline_of_others_where_ours_goes_is_left_and_named() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let device = target(&room, "r0");
    let plane = open(&room, Hook::Tc);
    let refused = |words: &[&str]| {
        let error = plane.attach(&device).expect_err("it is in the way");
        assert!(matches!(&error, AttachError::Filter { source: FilterError::Foreign { .. }, .. }), "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    };
    tc("qdisc add dev r0 clsact");
    add_foreign("r0", "ingress", FILTER_PRIORITY);
    refused(&["u32", "priority 86", "tc filter del dev r0 ingress pref 86"]);
    assert!(tc("filter show dev r0 ingress").contains("u32"));
    assert!(plane.attached().expect("a list").is_empty());

    tc("qdisc del dev r0 clsact");
    tc("qdisc add dev r0 ingress");
    refused(&["`ingress`", "tc qdisc del dev r0 ingress"]);
    tc("qdisc del dev r0 ingress");
    plane.attach(&device).expect("nothing is in the way any more");
}

#[test]
fn a_device_made_anew_gets_its_filter_again_and_a_renamed_one_loses_it() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let plane = open(&room, Hook::Tc);
    plane.attach(&target(&room, "r0")).expect("attaches");
    room.ip("link del r0");
    room.veth("r0", "c0", "10.0.0.1/24");
    assert_eq!(plane.attached().expect("a list"), [(Hook::Tc, "r0".to_owned())]);
    plane.attach(&target(&room, "r0")).expect("attaches to the new one");
    assert_eq!(filters("r0")[0], ["vipgate_tc"]);

    room.ip("link set r0 down");
    room.ip("link set r0 name r9");
    room.ip("link set r9 up");
    plane.detach_device("r0").expect("detaches");
    assert!(!has_clsact("r9"), "{:?}", filters("r9"));

    // The same while no controller runs.
    plane.attach(&target(&room, "r9")).expect("attaches");
    drop(plane);
    room.ip("link set r9 down");
    room.ip("link set r9 name r8");
    drop(open(&room, Hook::Tc));
    assert!(!has_clsact("r8"), "{:?}", filters("r8"));
}

#[test]
fn the_filter_that_a_controller_put_just_before_it_was_killed_is_found() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let plane = open(&room, Hook::Tc);
    plane.attach(&target(&room, "r0")).expect("attaches");
    fs::remove_file(plane.pins().join("links/tc-r0")).expect("what stands for it is gone");
    drop(plane);
    drop(open(&room, Hook::Tc));
    assert_eq!(filters("r0"), [vec![], vec!["vipgate_egress".to_owned()]]);
}

#[test]
fn filters_follow_the_tables_to_another_size_and_to_another_version() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let device = target(&room, "r0");
    let pins = {
        let plane = open(&room, Hook::Tc);
        plane.attach(&device).expect("attaches");
        plane.pins().to_owned()
    };
    let first = program_id("r0");
    let sizes = Sizes { flows: SIZES.flows * 2, ..SIZES };
    let larger = Options { sizes, tc: TcMode::Clsact, ..room.options(Hook::Tc) };
    drop(Plane::open(&larger).expect("opens"));
    assert_ne!(program_id("r0"), first, "it has a program that knows the new tables");
    assert_eq!(filters("r0"), [vec!["vipgate_tc".to_owned()], vec!["vipgate_egress".to_owned()]]);

    fs::rename(&pins, pins.with_file_name("abi-0")).expect("renamed");
    let plane = Plane::open(&larger).expect("opens");
    assert_eq!(plane.attached().expect("a list"), [(Hook::Tc, "r0".to_owned())]);
    assert_eq!(plane.attach(&device).expect("replaces the other version's"), Hook::Tc);
    assert_eq!(filters("r0"), [vec!["vipgate_tc".to_owned()], vec!["vipgate_egress".to_owned()]]);
}

#[test]
fn detach_finds_filters_whatever_the_devices_are_called_and_leaves_nothing() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    room.veth("r1", "c1", "10.0.1.1/24");
    let plane = open(&room, Hook::Xdp);
    plane.attach(&target(&room, "r0")).expect("attaches");
    plane.attach_queue(&target(&room, "r1")).expect("attaches");
    drop(plane);
    assert_eq!(filters("r1")[0], ["vipgate_queue"]);
    room.ip("link set r1 down");
    room.ip("link set r1 name r9");
    loader::detach(&room.bpffs()).expect("detaches");
    assert!(!has_clsact("r0") && !has_clsact("r9"));
    assert_eq!(fs::read_dir(room.bpffs()).expect("a directory").count(), 0, "pins are left");
}

#[test]
fn filters_of_another_vipgate_are_left_and_named() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    room.veth("r1", "c1", "10.0.1.1/24");
    let elsewhere = room.mount_point().join("other");
    let options = Options { bpffs: elsewhere.clone(), tc: TcMode::Clsact, ..room.options(Hook::Tc) };
    let other = Plane::open(&options).expect("opens");
    other.attach(&target(&room, "r0")).expect("attaches");
    let its = program_id("r0");

    let ours = open(&room, Hook::Tc);
    let error = ours.attach(&target(&room, "r0")).expect_err("it is another's");
    assert!(matches!(&error, AttachError::Filter { source: FilterError::Another { .. }, .. }), "{error}");
    assert!(error.to_string().contains("vipgate_tc") && error.to_string().contains("--bpffs"), "{error}");
    ours.attach(&target(&room, "r1")).expect("here is none");
    ours.detach_device("r0").expect("nothing of ours is there");
    assert_eq!(program_id("r0"), its);
    drop(ours);
    loader::detach(&room.bpffs()).expect("detaches");
    assert!(!has_clsact("r1"));
    assert_eq!(filters("r0"), [vec!["vipgate_tc".to_owned()], vec!["vipgate_egress".to_owned()]]);
    assert_eq!(program_id("r0"), its);

    drop(other);
    loader::detach(&elsewhere).expect("detaches");
    assert!(!has_clsact("r0"), "whose it was takes it off");
}

#[test]
fn a_clsact_that_somebody_made_in_the_place_of_ours_stays() {
    let room = Room::enter();
    room.veth("r0", "c0", "10.0.0.1/24");
    let plane = open(&room, Hook::Tc);
    plane.attach(&target(&room, "r0")).expect("attaches");
    tc("qdisc del dev r0 clsact");
    tc("qdisc add dev r0 clsact");
    plane.attach(&target(&room, "r0")).expect("attaches again");
    plane.detach_device("r0").expect("detaches");
    assert!(has_clsact("r0"));
}
