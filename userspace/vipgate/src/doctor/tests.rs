use std::collections::BTreeSet;

use vipgate_abi::{flow::State, maps};
use vipgate_agent::{
    loader::{Crowding, Driver, Fill, Hook, Trial},
    net::{Device, Link, netfilter::Filter},
    reconcile::{Refusal, Refusals},
};

use super::{
    Facts, Finding, Severity,
    facts::{DeviceFacts, GuestNetwork, Peer},
    judge::{is_native_or_generic, judge},
};

fn device(name: &str, hook: Option<Hook>) -> DeviceFacts {
    let features = [("rx-gro", true), ("tx-tcp-segmentation", true)];
    DeviceFacts {
        link: Link {
            device: Device {
                name: name.to_owned(),
                ifindex: 2,
                mtu: 1500,
                mac: [2; 6],
                ethernet: true,
                veth: false,
                up: true,
            },
            rx_queues: 2,
            peer: None,
            enslaved: false,
            xdp: hook.is_some_and(is_native_or_generic),
        },
        hook,
        program_lost: false,
        driver: Driver {
            name: "virtio_net".to_owned(),
            features: features.map(|(name, on)| (name.to_owned(), on)).into(),
            fixed: BTreeSet::new(),
            channels: Some((4, 4)),
        },
        drivers: vec!["virtio_net".to_owned()],
        forwarding: 1,
        accept_local: 1,
        rp_filter: 0,
        guests: Vec::new(),
        peer: None,
    }
}

fn turn_on(device: &mut DeviceFacts, feature: &str) {
    device.driver.features.insert(feature.to_owned(), true);
}

fn healthy() -> Facts {
    Facts {
        kernel: "6.12.3-amd64".to_owned(),
        hook: Hook::Xdp,
        bpffs: "/sys/fs/bpf/vipgate".to_owned(),
        bpffs_is_mounted: true,
        jit: Some(1),
        btf: true,
        programs: Ok([
            maps::PROGRAM_XDP,
            maps::PROGRAM_TC,
            maps::PROGRAM_BEHIND,
            maps::PROGRAM_QUEUE,
            maps::PROGRAM_REDIRECTS,
            maps::PROGRAM_SOCKETS,
        ]
        .map(|name| Trial { name, loads: true, instructions: Some(1000), reason: None })
        .into()),
        htb: true,
        ip_forward: 1,
        answering: Vec::new(),
        arp_announce: 2,
        filter: Filter::default(),
        tracked: None,
        cpus: 2,
        possible_cpus: 2,
        devices: vec![device("eth0", Some(Hook::Xdp)), device("eth1", Some(Hook::Xdp))],
        lost: Vec::new(),
        refused: Refusals::new(),
        flows: Some(crowded(100, 0)),
        largest_flows: 1 << 10,
    }
}

/// A flow table with so many live entries that has refused so many packets.
fn crowded(live: u64, refused: u64) -> Crowding {
    let fill = Fill { capacity: 1 << 10, states: [(State::Established, live)].into(), ..Fill::default() };
    Crowding { fill, refused }
}

/// The checks that find something once `spoil` has been at the router.
fn found(spoil: impl FnOnce(&mut Facts)) -> Vec<&'static str> {
    let mut facts = healthy();
    spoil(&mut facts);
    judge(&facts).findings.iter().map(|finding| finding.check).collect()
}

#[test]
fn a_healthy_router_has_no_finding() {
    let report = judge(&healthy());
    assert!(report.findings.is_empty() && report.defects() == 0, "{report}");
    assert_eq!(report.devices[0].hook.as_deref(), Some("xdp"));
}

#[test]
fn each_device_says_which_hook_it_has_or_is_to_get_and_why() {
    let mut facts = healthy();
    facts.hook = Hook::Auto;
    (facts.devices[0].hook, facts.devices[0].link.xdp) = (Some(Hook::Tc), false);
    (facts.devices[1].hook, facts.devices[1].link.xdp) = (None, false);
    facts.devices[1].drivers = vec!["mlx5_core".to_owned()];
    let report = judge(&facts);
    assert!(report.devices[0].why.contains("hypervisor"), "{report}");
    assert!(report.devices[1].why.starts_with("it is to get xdp: its driver is none of those"), "{report}");
    assert!(report.to_string().contains("eth1: no program") && report.to_string().contains("to get xdp"), "{report}");
}

#[test]
fn every_defect_of_the_router_is_found_alone() {
    assert_eq!(found(|facts| facts.programs = Err("Linux 5.10 cannot run vipgate".to_owned())), ["kernel"]);
    // It is tried, not guessed.
    assert_eq!(found(|facts| facts.kernel = "5.15.0".to_owned()), [""; 0]);
    assert_eq!(found(|facts| facts.bpffs_is_mounted = false), ["bpffs"]);
    assert_eq!(found(|facts| facts.jit = Some(0)), ["jit"]);
    assert_eq!(found(|facts| facts.jit = None), [""; 0]);
    assert_eq!(found(|facts| facts.btf = false), ["btf"]);
    assert_eq!(found(|facts| facts.htb = false), ["htb"]);
    assert_eq!(found(|facts| facts.ip_forward = 0), ["ip_forward"]);
    assert_eq!(found(|facts| facts.answering = vec!["eth9".to_owned()]), ["arp_ignore"]);
    assert_eq!(found(|facts| facts.arp_announce = 1), ["arp_announce"]);
    assert_eq!(found(|facts| facts.tracked = Some(0)), [""; 0]);
    assert_eq!(found(|facts| facts.tracked = Some(7)), ["conntrack"]);
    assert_eq!(found(|facts| facts.lost.push("eth9".to_owned())), ["lost_device"]);
    assert_eq!(found(|facts| facts.devices.clear()), ["devices"]);
}

#[test]
fn a_device_that_the_controller_cannot_set_up_is_an_error_with_its_reason_and_remedy() {
    let refuse = |name: &str| {
        let mut facts = healthy();
        facts.devices[0].hook = None;
        facts.devices[0].link.xdp = false;
        let (reason, remedy) = ("an ingress qdisc is there".to_owned(), "tc qdisc del dev eth0 ingress".to_owned());
        facts.refused.insert(name.to_owned(), Refusal { reason, remedy });
        judge(&facts)
    };
    // There, or gone.
    for name in ["eth0", "eth7"] {
        let report = refuse(name);
        let [finding] = &report.findings[..] else { panic!("{report}") };
        assert_eq!((finding.severity, finding.check), (Severity::Error, "refused"));
        assert_eq!((finding.device.as_deref(), &*finding.remedy), (Some(name), "tc qdisc del dev eth0 ingress"));
        assert!(finding.problem.contains("an ingress qdisc is there"), "{report}");
    }
    assert!(refuse("eth0").devices[0].why.contains("ingress qdisc"));
}

#[test]
fn every_defect_of_a_device_is_found_alone() {
    let spoiled = |spoil: fn(&mut DeviceFacts)| found(|facts| spoil(&mut facts.devices[0]));
    assert_eq!(spoiled(|device| device.forwarding = 0), ["forwarding"]);
    assert_eq!(spoiled(|device| device.accept_local = 0), ["accept_local"]);
    assert_eq!(spoiled(|device| device.rp_filter = 1), ["rp_filter"]);
    assert_eq!(spoiled(|device| device.rp_filter = 2), [""; 0]);
    assert_eq!(spoiled(|device| turn_on(device, "rx-lro")), ["lro"]);
    assert_eq!(spoiled(|device| turn_on(device, "rx-vlan-hw-parse")), ["vlan"]);
    assert_eq!(spoiled(|device| device.driver.channels = Some((1, 8))), ["queues"]);
    assert_eq!(spoiled(|device| device.program_lost = true), ["program"]);
    assert_eq!(spoiled(|device| device.link.device.mtu = 9000), ["mtu"]);
    assert_eq!(spoiled(|device| device.link.device.up = false), ["down"]);
    assert_eq!(spoiled(|device| device.link.xdp = false), ["program"]);
    assert_eq!(spoiled(|device| device.hook = Some(Hook::Tc)), ["foreign_xdp"]);
    assert_eq!(spoiled(|device| device.hook = Some(Hook::XdpGeneric)), ["generic_xdp"]);
}

#[test]
fn a_flow_table_that_refuses_or_soon_will_is_found_with_the_setting_that_mends_it() {
    let found = |live, refused| findings(|facts| facts.flows = Some(crowded(live, refused)));
    assert!(found(700, 0).is_empty(), "68%");
    for (live, refused, severity) in
        [(720, 0, Severity::Warning), (520, 3, Severity::Warning), (400, 3, Severity::Note)]
    {
        let findings = found(live, refused);
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((finding.severity, finding.check), (severity, "flow_table"), "{live} live, {refused} refused");
        assert!(finding.remedy.contains("flows = 2048"), "{}", finding.remedy);
    }
    assert!(findings(|facts| facts.flows = None).is_empty(), "before the first start");
}

/// The findings of a router whose first device is spoiled so.
fn findings(spoil: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = healthy();
    spoil(&mut facts);
    judge(&facts).findings
}

#[test]
fn what_cannot_be_switched_is_not_to_be_switched() {
    let spoil = |fixed: bool, driver: &str, feature: &str| {
        found(|facts| {
            let device = &mut facts.devices[0];
            device.driver.name = driver.to_owned();
            device.drivers = vec![driver.to_owned()];
            turn_on(device, feature);
            if fixed {
                device.driver.fixed.insert(feature.to_owned());
            }
        })
    };
    assert_eq!(spoil(false, "bnxt_en", "rx-gro-hw"), ["gro_hw"]);
    assert_eq!(spoil(true, "bnxt_en", "rx-gro-hw"), [""; 0]);
    assert_eq!(spoil(true, "bnxt_en", "rx-lro"), [""; 0]);
    // On virtio it is what the hypervisor may send, and the driver's to switch.
    assert_eq!(spoil(false, "virtio_net", "rx-gro-hw"), [""; 0]);
}

#[test]
fn virtio_at_tc_wants_the_whole_segments_that_generic_xdp_left_off() {
    let without = |fixed: bool, driver: &str, hook: Hook| {
        let all = found(|facts| {
            let device = &mut facts.devices[0];
            device.driver.name = driver.to_owned();
            device.drivers = vec![driver.to_owned()];
            device.driver.features.insert("rx-gro-hw".to_owned(), false);
            (device.hook, device.link.xdp) = (Some(hook), is_native_or_generic(hook));
            if fixed {
                device.driver.fixed.insert("rx-gro-hw".to_owned());
            }
        });
        // Generic XDP has a note of its own.
        all.into_iter().filter(|check| *check == "gro_hw").collect::<Vec<_>>()
    };
    assert_eq!(without(false, "virtio_net", Hook::Tc), ["gro_hw"]);
    // A hypervisor that never sends them; the hook that takes them off; a card that only merges what came small.
    assert_eq!(without(true, "virtio_net", Hook::Tc), [""; 0]);
    assert_eq!(without(false, "virtio_net", Hook::XdpGeneric), [""; 0]);
    assert_eq!(without(false, "bnxt_en", Hook::Tc), [""; 0]);
}

#[test]
fn virtio_under_native_xdp_wants_a_queue_for_each_cpu_to_send_by() {
    let with = |hook: Hook, channels: (u32, u32)| {
        findings(|facts| {
            let device = &mut facts.devices[0];
            (device.hook, device.link.xdp) = (Some(hook), is_native_or_generic(hook));
            device.driver.channels = Some(channels);
        })
    };
    assert!(with(Hook::Xdp, (4, 4)).is_empty(), "two to receive, two to send");
    assert!(with(Hook::Tc, (2, 2)).is_empty());
    let few = with(Hook::Xdp, (2, 2));
    assert_eq!((few.len(), few[0].check, few[0].severity), (1, "xdp_queues", Severity::Note));
    assert!(few[0].remedy.contains("queues='4'") && few[0].remedy.contains("vectors=10"), "{}", few[0].remedy);
    // ethtool cannot change them while an XDP program is there.
    let unused = with(Hook::Xdp, (1, 4));
    assert_eq!(unused[0].check, "queues");
    assert!(unused[0].remedy.contains("vipgate detach; ethtool -L eth0 combined 2"), "{}", unused[0].remedy);
    assert_eq!(with(Hook::Tc, (1, 4))[0].remedy, "ethtool -L eth0 combined 2");
}

#[test]
fn a_program_that_does_not_load_is_as_bad_as_what_needs_it() {
    let without = |name: &'static str, hook: Hook, drivers: &str| {
        let findings = findings(|facts| {
            facts.hook = hook;
            facts.devices.truncate(1);
            let device = &mut facts.devices[0];
            (device.hook, device.link.xdp) = (None, false);
            device.drivers = vec![drivers.to_owned()];
            for trial in facts.programs.as_mut().expect("tried") {
                if trial.name == name {
                    (trial.loads, trial.reason) = (false, Some("the verifier says no".to_owned()));
                }
            }
        });
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].problem.contains(name) && findings[0].problem.contains("says no"), "{findings:?}");
        findings[0].severity
    };
    assert_eq!(without(maps::PROGRAM_XDP, Hook::Xdp, "mlx5_core"), Severity::Error);
    assert_eq!(without(maps::PROGRAM_XDP, Hook::Auto, "mlx5_core"), Severity::Warning);
    assert_eq!(without(maps::PROGRAM_XDP, Hook::Auto, "virtio_net"), Severity::Note);
    assert_eq!(without(maps::PROGRAM_BEHIND, Hook::Tc, "virtio_net"), Severity::Note);
    assert_eq!(without(maps::PROGRAM_TC, Hook::Auto, "virtio_net"), Severity::Error);
    assert_eq!(without(maps::PROGRAM_TC, Hook::Xdp, "mlx5_core"), Severity::Note);
    assert_eq!(without(maps::PROGRAM_QUEUE, Hook::Tc, "virtio_net"), Severity::Warning);
    assert_eq!(without(maps::PROGRAM_REDIRECTS, Hook::Xdp, "mlx5_core"), Severity::Note);
    assert_eq!(without(maps::PROGRAM_SOCKETS, Hook::Xdp, "mlx5_core"), Severity::Warning);
}

#[test]
fn a_veth_under_xdp_needs_a_peer_that_polls_and_computes_checksums() {
    let veth = |peer: Option<Peer>| {
        found(|facts| {
            facts.devices[0].link.device.veth = true;
            facts.devices[0].peer = peer;
        })
    };
    let peer = |gro: bool, checksum: bool, xdp: bool| {
        let features = [("rx-gro", gro), ("tx-checksum-ip-generic", checksum)];
        let features = features.map(|(name, on)| (name.to_owned(), on)).into();
        Some(Peer { name: "c0".to_owned(), driver: Driver { features, ..Driver::default() }, xdp })
    };
    assert_eq!(veth(None), ["peer"]);
    assert_eq!(veth(peer(true, false, false)), [""; 0]);
    assert_eq!(veth(peer(false, false, true)), [""; 0]);
    assert_eq!(veth(peer(false, false, false)), ["peer_napi"]);
    assert_eq!(veth(peer(true, true, false)), ["peer_checksum"]);
}

#[test]
fn a_veth_under_generic_xdp_needs_a_peer_that_sends_no_large_segments() {
    let peer = |segments: bool| {
        let features = [("tx-tcp-segmentation".to_owned(), segments)].into();
        Some(Peer { name: "c0".to_owned(), driver: Driver { features, ..Driver::default() }, xdp: false })
    };
    let about_peer = |hook: Hook, peer: Option<Peer>| -> Vec<Finding> {
        let all = findings(|facts| {
            let device = &mut facts.devices[0];
            (device.link.device.veth, device.peer) = (true, peer);
            (device.hook, device.link.xdp) = (Some(hook), is_native_or_generic(hook));
        });
        all.into_iter().filter(|finding| finding.check.starts_with("peer")).collect()
    };
    let spoiled = about_peer(Hook::XdpGeneric, peer(true));
    assert_eq!((spoiled.len(), spoiled[0].check, spoiled[0].severity), (1, "peer_segments", Severity::Warning));
    assert_eq!(spoiled[0].remedy, "ethtool -K c0 tso off gso off");
    // As the remedy leaves it; where nobody can look; a hook that sees large packets as such.
    assert_eq!(about_peer(Hook::XdpGeneric, peer(false)), []);
    assert_eq!(about_peer(Hook::XdpGeneric, None)[0].severity, Severity::Note);
    assert_eq!(about_peer(Hook::Tc, peer(true)), []);
}

#[test]
fn a_candidate_is_not_blamed_for_what_serve_will_set() {
    let checks = found(|facts| {
        for device in &mut facts.devices {
            (device.hook, device.link.xdp) = (None, false);
            (device.forwarding, device.accept_local, device.rp_filter) = (0, 0, 1);
        }
        (facts.answering, facts.arp_announce) = (vec!["eth0".to_owned()], 0);
    });
    assert!(checks.is_empty(), "{checks:?}");
}

#[test]
fn the_worst_comes_first_and_each_finding_has_a_remedy() {
    let mut facts = healthy();
    (facts.btf, facts.jit, facts.ip_forward) = (false, Some(0), 0);
    let report = judge(&facts);
    assert!(report.findings.is_sorted_by(|one, other| one.severity >= other.severity));
    assert!(report.defects() == 2 && report.findings.iter().all(|finding| !finding.remedy.is_empty()));
    assert!(report.to_string().starts_with("kernel   6.12.3-amd64\ndevice   eth0: xdp, driver virtio_net"));
}

/// The findings about a packet filter with these rules, as iptables prints them, where guests are behind eth1: kind, how bad,
/// and the remedy.
fn filtered(rules: &str, masked: bool) -> Vec<(&'static str, Severity, String)> {
    let mut facts = healthy();
    facts.filter = Filter::of_iptables(rules);
    facts.devices[1].guests = vec![GuestNetwork { network: "10.2.0.0/24".parse().expect("a network"), masked }];
    let told = judge(&facts).findings.into_iter();
    told.map(|finding| (finding.check, finding.severity, finding.remedy)).collect()
}

#[test]
fn a_filter_that_drops_is_told_with_the_rule_that_lets_the_stack_forward() {
    let out = ("forward_policy", Severity::Warning, "iptables-legacy -I FORWARD -i eth1 -o eth0 -j ACCEPT".to_owned());
    let back = ("forward_policy", Severity::Note, "iptables-legacy -I FORWARD -i eth0 -o eth1 -j ACCEPT".to_owned());
    assert_eq!(filtered(":FORWARD DROP [0:0]", true), [out.clone(), back.clone()]);
    assert_eq!(filtered(":FORWARD DROP [0:0]\n-A FORWARD -i eth1 -j ACCEPT", true), std::slice::from_ref(&back));
    // Who knows what that rule takes.
    let unsure = filtered(":FORWARD DROP [0:0]\n-A FORWARD -s 10.2.0.0/24 -j ACCEPT", true);
    assert_eq!(unsure, [(out.0, Severity::Note, out.2), back]);
    // Before there are guests.
    assert_eq!(found(|facts| facts.filter = Filter::of_iptables(":FORWARD DROP [0:0]")), ["forward_policy"]);
}

#[test]
fn rules_that_cannot_be_read_are_told() {
    let unread = |facts: &mut Facts| facts.filter.unread = Some("iptables-legacy-save: not found".to_owned());
    assert_eq!(found(unread), ["packet_filter"]);
}

#[test]
fn guests_that_are_reached_past_their_vips_are_told_with_the_rule_that_forbids_it() {
    let remedy = |findings: Vec<(&'static str, Severity, String)>| {
        let [("past_vips", Severity::Note, remedy)] = &findings[..] else { panic!("{findings:?}") };
        remedy.clone()
    };
    assert_eq!(remedy(filtered(":FORWARD ACCEPT [0:0]", true)), "iptables-legacy -I FORWARD -i eth0 -o eth1 -j DROP");
    let plain = remedy(filtered(":FORWARD ACCEPT [0:0]", false));
    assert_eq!(plain, "iptables-legacy -I FORWARD -i eth0 -o eth1 -m conntrack --ctstate NEW -j DROP");
    assert!(remedy(filtered("", true)).starts_with("nft 'add table inet guests; "));
    assert_eq!(filtered(":FORWARD ACCEPT [0:0]\n-A FORWARD -i eth0 -d 10.2.0.0/24 -j DROP", true), []);
}

#[test]
fn a_filter_that_keeps_answers_to_health_checks_or_pings_out_is_told() {
    let closed = filtered(":FORWARD ACCEPT [0:0]\n-A FORWARD -o eth1 -j DROP\n:INPUT DROP [0:0]", true);
    let told: Vec<_> = closed.iter().map(|(check, severity, _)| (*check, *severity)).collect();
    let expected =
        [("input_policy", Severity::Warning), ("forward_policy", Severity::Note), ("input_policy", Severity::Note)];
    assert_eq!(told, expected);
    let states = ":INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A INPUT -p icmp -j ACCEPT";
    assert_eq!(
        filtered(&format!(":FORWARD ACCEPT [0:0]\n-A FORWARD -i eth0 -d 10.2.0.0/24 -j DROP\n{states}"), true),
        []
    );
}
