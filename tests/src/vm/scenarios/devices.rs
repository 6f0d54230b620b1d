//! Kinds of devices on routers: cards with and without native XDP in one router, bonds, jumbo frames, few queues, and what
//! `vipgate doctor` reports of them.

use super::traffic;
use crate::{
    lab::{Hook, Result, wait_until},
    vm::{
        Nic, VmLabOptions,
        machine::{Model, Side},
        suite::{Case, Trial},
    },
};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{net::SocketAddrV4, time::Duration};

type Scenario = fn(&mut Trial) -> Result<()>;

/// Cases, each with the machine that it needs.
#[must_use]
pub fn suites() -> Vec<(&'static str, VmLabOptions, Vec<Case>)> {
    let options = |nics: Vec<Nic>| {
        let mut options = VmLabOptions::new(traffic::CLIENTS, traffic::BACKENDS);
        options.machine.nics = nics;
        options
    };
    let card = |device: &str, side, model| Nic { model, ..Nic::virtio(device, side, 1) };
    let mixed = vec![card("pub0", Side::Public, Model::Igb), card("priv0", Side::Private, Model::E1000e)];
    let tagged = vec![card("priv0", Side::Private, Model::Igb)];
    let bonded = vec![
        Nic::virtio("pub0", Side::Public, 4),
        Nic::virtio("pub1", Side::Public, 4),
        Nic::virtio("priv0", Side::Private, 2),
    ];
    let mut jumbo = VmLabOptions::new(traffic::CLIENTS, traffic::BACKENDS).machine.nics;
    jumbo.iter_mut().for_each(|nic| nic.mtu = JUMBO);
    let bare = |device: &str, side| {
        let properties = vec!["mrg_rxbuf=off".to_owned()];
        card(device, side, Model::Virtio { queues: 1, properties })
    };
    let few = vec![Nic::virtio("pub0", Side::Public, 1), Nic::virtio("priv0", Side::Private, 1)];
    let unmergeable = vec![bare("pub0", Side::Public), bare("priv0", Side::Private)];
    vec![
        ("mixed", options(mixed), cases(&MIXED)),
        ("vlan", options(tagged), cases(&VLAN)),
        ("bond", options(bonded), cases(&BOND)),
        ("jumbo", options(jumbo), cases(&JUMBO_FRAMES)),
        ("one_queue", options(few), cases(&ONE_QUEUE)),
        ("unmergeable", options(unmergeable), cases(&UNMERGEABLE)),
    ]
}

fn cases(scenarios: &[(&str, Scenario)]) -> Vec<Case> {
    scenarios.iter().map(|(name, scenario)| Case::new(*name, *scenario)).collect()
}

/// All services of a router except limits, which do not depend on the device.
fn serves(trial: &mut Trial) -> Result<()> {
    const TRAFFIC: [(&str, Scenario); 7] = [
        ("TCP", traffic::balances_tcp),
        ("UDP", traffic::balances_udp),
        ("fragments", traffic::carries_fragments),
        ("bulk", traffic::carries_bulk),
        ("an elastic IP", traffic::elastic_ip),
        ("forwarded ports", traffic::forwards_ports),
        ("source NAT", traffic::source_nat),
    ];
    TRAFFIC.into_iter().try_for_each(|(what, scenario)| scenario(trial).context(what))
}

/// An Intel card has native XDP and keeps its offloads under it, the other card has no native XDP. Each gets the hook that suits
/// it, and packets that come in by one leave by the other.
const MIXED: [(&str, Scenario); 2] = [
    ("auto_chooses_for_each_device", |trial| {
        trial.lab.serve(Hook::Auto)?;
        trial.lab.apply(traffic::ROUTER)?;
        let mut attached = trial.lab.attached()?;
        attached.sort();
        let attached: Vec<(&str, &str)> =
            attached.iter().map(|(device, hook)| (device.as_str(), hook.as_str())).collect();
        ensure!(attached == [("priv0", "tc"), ("pub0", "xdp")], "{attached:?}");
        let native = trial.lab.agent().says("ip -details link show dev pub0")?;
        ensure!(native.contains("prog/xdp"), "no native XDP: {native}");
        Ok(())
    }),
    ("packets_pass_between_devices_of_different_hooks", |trial| {
        serves(trial)?;
        let status = trial.lab.report("status")?;
        ensure!(status["drops"]["redirect_failed"].is_null(), "redirects failed: {}", status["drops"]);
        ensure!(status["passes"]["handed_over"].as_u64() > Some(0), "nothing was handed over: {}", status["passes"]);
        Ok(())
    }),
];

/// The public network is a VLAN device, beside a card with native XDP. Its clients are in the guest, too, since the lab's kernel
/// may have no VLANs.
const VLAN: [(&str, Scenario); 1] = [("a_vlan_device_serves_at_tc_beside_a_card_in_xdp", |trial| {
    let agent = trial.lab.agent();
    agent.says(
        "set -e; ip netns add far; ip link add trunk type veth peer name far0 netns far; ip link set trunk up; \
         ip link add link trunk name trunk.100 type vlan id 100; ip addr add 10.1.0.1/24 dev trunk.100; \
         ip link set trunk.100 up; ip -n far link set far0 up; ip -n far link add link far0 name lan type vlan id 100; \
         ip -n far addr add 10.1.0.150/24 dev lan; ip -n far link set lan up",
    )?;
    trial.lab.serve(Hook::Auto)?;
    trial.lab.apply(&traffic::ROUTER.replace("pub0", "trunk.100"))?;
    let mut attached = trial.lab.attached()?;
    attached.sort();
    let expected = [("priv0", "xdp"), ("trunk.100", "tc")].map(|(device, hook)| (device.to_owned(), hook.to_owned()));
    ensure!(attached == expected, "{attached:?}");
    for _ in 0..3 {
        let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | ip netns exec far nc -w 20 {} 80", traffic::WEB);
        let answer = agent.says(&ask)?;
        ensure!(answer.contains("backend") && answer.contains("10.1.0.150:"), "{answer}");
    }
    let said = agent.says(&format!("ip netns exec far ping -c 3 -W 20 {}", traffic::ELASTIC))?;
    ensure!(said.contains("3 packets received"), "{said}");
    Ok(())
})];

/// The public network is a bond of two cards, `bond0`.
const BOND: [(&str, Scenario); 3] = [
    ("active_backup_at_tc", |trial| bonded(trial, "active-backup", Hook::Tc)),
    ("active_backup_in_xdp", |trial| bonded(trial, "active-backup", Hook::Xdp)),
    ("lacp_at_tc", |trial| bonded(trial, "802.3ad", Hook::Tc)),
];

fn bonded(trial: &mut Trial, mode: &str, hook: Hook) -> Result<()> {
    trial.lab.clear()?;
    // LACP needs a speed, which virtio devices do not report by default.
    let shell = format!(
        "set -e; ethtool -s pub0 speed 1000 duplex full; ethtool -s pub1 speed 1000 duplex full; ip link delete bond0 2>/dev/null || true; modprobe bonding max_bonds=0; \
         ip link add bond0 type bond mode {mode} miimon 50; \
         for slave in pub0 pub1; do ip addr flush dev $slave; ip link set $slave down; ip link set $slave master bond0; done; \
         ip addr add 10.1.0.1/24 dev bond0; ip link set bond0 up"
    );
    trial.lab.agent().says(&shell)?;
    trial.lab.serve(hook)?;
    trial.lab.apply(&traffic::ROUTER.replace("pub0", "bond0"))?;
    let attached = trial.lab.attached()?;
    ensure!(attached.contains(&("bond0".to_owned(), hook.to_string())), "{attached:?}");
    serves(trial)?;
    unrepeated(trial)?;
    if mode == "active-backup" {
        fails_over(trial)?;
    }
    no_defects(trial)
}

/// When the active card goes down, the other one carries on open connections.
fn fails_over(trial: &mut Trial) -> Result<()> {
    let active = "cat /sys/class/net/bond0/bonding/active_slave";
    let before = trial.lab.agent().says(active)?.trim().to_owned();
    let vip = SocketAddrV4::new(traffic::WEB, 7001);
    let mut standing = crate::lab::Standing::open(trial.lab.client(), vip, 2)?;
    trial.lab.agent().says(&format!("ip link set {before} down"))?;
    wait_until("the bond to use its other card", Duration::from_secs(60), || {
        let now = trial.lab.agent().says(active)?.trim().to_owned();
        ensure!(!now.is_empty() && now != before, "it still uses {now}");
        Ok(())
    })?;
    standing.ask().context("after the failover")?;
    traffic::balances_tcp(trial).context("after the failover")?;
    unrepeated(trial)?;
    trial.lab.agent().says(&format!("ip link set {before} up")).map(drop)
}

/// Each packet is answered once.
fn unrepeated(trial: &Trial) -> Result<()> {
    let words = format!("-c 5 -i 0.2 -W 20 {}", traffic::ELASTIC);
    let said = trial.lab.client().namespace.run("ping", &words)?;
    ensure!(said.contains(" 5 received") && !said.contains("DUP"), "{said}");
    Ok(())
}

const JUMBO: u32 = 9000;

/// Frames larger than a page, in both hooks.
const JUMBO_FRAMES: [(&str, Scenario); 2] =
    [("tc", |trial| jumbo(trial, Hook::Tc)), ("xdp", |trial| jumbo(trial, Hook::Xdp))];

fn jumbo(trial: &mut Trial, hook: Hook) -> Result<()> {
    trial.lab.set_mtu_around(JUMBO)?;
    trial.router(hook, traffic::ROUTER)?;
    let mut session = trial.lab.client().udp(SocketAddrV4::new(traffic::WEB, 7002))?;
    let first = session.ask()?;
    for bytes in [8900, 1, 4000, 8972] {
        let answer = session.ask_by(bytes).with_context(|| format!("{bytes} bytes"))?;
        ensure!(answer == first, "{first:?} answered first, then {answer:?}");
    }
    traffic::carries_bulk(trial)?;
    no_defects(trial)
}

/// One queue pair: fewer than native XDP needs.
const ONE_QUEUE: [(&str, Scenario); 4] = [
    ("tc", |trial| {
        trial.router(Hook::Tc, traffic::ROUTER)?;
        serves(trial)?;
        no_defects(trial)
    }),
    ("xdp", |trial| {
        trial.router(Hook::Xdp, traffic::ROUTER)?;
        serves(trial)
    }),
    ("doctor_says_that_xdp_wants_more_queues_than_the_hypervisor_gives", |trial| {
        let report = trial.lab.report("doctor")?;
        let findings = report["findings"].as_array().context("findings")?;
        let about = |finding: &&Value| finding["device"] == "pub0" && finding["check"] == "xdp_queues";
        let finding = findings.iter().find(about).with_context(|| format!("not found: {report}"))?;
        ensure!(finding["remedy"].as_str().is_some_and(|remedy| remedy.contains("queues")), "{finding}");
        Ok(())
    }),
    ("doctor_gives_whole_segments_back_after_generic_xdp", |trial| {
        trial.router(Hook::XdpGeneric, traffic::ROUTER)?;
        trial.lab.clear()?;
        trial.lab.serve(Hook::Tc)?;
        trial.lab.apply(traffic::ROUTER)?;
        for device in ["pub0", "priv0"] {
            let report = trial.lab.report("doctor")?;
            let findings = report["findings"].as_array().context("findings")?;
            let about = |finding: &&Value| finding["device"] == device && finding["check"] == "gro_hw";
            let finding = findings.iter().find(about).with_context(|| format!("{device} is not reported: {report}"))?;
            trial.lab.agent().says(finding["remedy"].as_str().context("a remedy")?)?;
        }
        let said = trial.lab.agent().says("ethtool -k pub0; ethtool -k priv0")?;
        ensure!(said.matches("rx-gro-hw: on").count() == 2, "{said}");
        let report = trial.lab.report("doctor")?;
        ensure!(!report.to_string().contains("gro_hw"), "{report}");
        Ok(())
    }),
];

/// Without mergeable buffers the driver accepts an XDP program but never runs it.
const UNMERGEABLE: [(&str, Scenario); 2] = [
    ("xdp_is_refused_where_it_would_be_ignored", |trial| {
        trial.lab.serve(Hook::Xdp)?;
        let refused = trial.lab.apply(traffic::ROUTER).err().context("the device accepted XDP")?;
        ensure!(format!("{refused:#}").contains("mrg_rxbuf"), "{refused:#}");
        trial.lab.clear()
    }),
    ("tc", |trial| {
        trial.router(Hook::Tc, traffic::ROUTER)?;
        serves(trial)
    }),
];

/// Doctor finds no defect, and each hint that it gives goes away by its remedy.
fn no_defects(trial: &Trial) -> Result<()> {
    let report = trial.lab.report("doctor")?;
    let findings = report["findings"].as_array().context("findings")?;
    let defects: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] != "note").collect();
    ensure!(defects.is_empty(), "doctor finds {defects:?}");
    for finding in findings {
        let remedy = finding["remedy"].as_str().context("a finding has a remedy")?;
        if ["ethtool ", "ip ", "sysctl "].iter().any(|command| remedy.starts_with(command)) {
            trial.lab.agent().says(remedy).with_context(|| format!("the remedy of {finding}"))?;
            let after = trial.lab.report("doctor")?;
            let is_same = |other: &Value| other["device"] == finding["device"] && other["check"] == finding["check"];
            ensure!(!after["findings"].as_array().is_some_and(|all| all.iter().any(is_same)), "{finding} stays");
        }
    }
    Ok(())
}
