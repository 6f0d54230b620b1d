//! What the facts mean: a check a function, each finding with its remedy.

use std::cmp::Reverse;

use vipgate_abi::maps;
use vipgate_agent::loader::{Hook, Trial, hook_for, why};

use super::{
    Examined, Facts, Finding, Report, Severity,
    facts::{DeviceFacts, Peer},
    filter, flow_table,
};

/// For what no setting mends.
const NEWER_KERNEL: &str = "boot Linux 6.1 or later, as distributions build it";
/// The driver whose receive offloads are the hypervisor's: it turns them off itself under XDP, and keeps half of its queues
/// for XDP.
const VIRTIO: &str = "virtio_net";

/// Native XDP without multi-buffer wants a packet in one page, beside its headroom and the kernel's own data.
const XDP_MTU: u32 = 3498;

pub(super) fn judge(facts: &Facts) -> Report {
    let mut findings = Vec::new();
    kernel(facts, &mut findings);
    programs(facts, &mut findings);
    network(facts, &mut findings);
    arp(facts, &mut findings);
    filter::judge(facts, &mut findings);
    refused(facts, &mut findings);
    flow_table::judge(facts, &mut findings);
    for device in &facts.devices {
        settings(device, &mut findings);
        offloads(device, facts.hook, &mut findings);
        queues(device, facts, &mut findings);
        mtu(device, facts, &mut findings);
        carried(device, facts, &mut findings);
    }
    // Stable: those of a device stay together.
    findings.sort_by_key(|finding| Reverse(finding.severity));
    let devices = facts.devices.iter().map(|device| Examined {
        name: device.link.device.name.clone(),
        hook: device.hook.map(|hook| hook.to_string()),
        why: chosen(device, facts),
        driver: device.driver.name.clone(),
        mtu: device.link.device.mtu,
        queues: receive_queues(device),
    });
    let programs = facts.programs.clone().unwrap_or_default();
    Report { kernel: facts.kernel.clone(), devices: devices.collect(), programs, findings }
}

pub(super) fn router(severity: Severity, check: &'static str, problem: String, remedy: impl Into<String>) -> Finding {
    Finding { severity, device: None, check, problem, remedy: remedy.into() }
}

fn kernel(facts: &Facts, findings: &mut Vec<Finding>) {
    if !facts.bpffs_is_mounted {
        let problem = format!("{} is on no BPF file system: tables would not outlive the controller", facts.bpffs);
        findings.push(router(Severity::Error, "bpffs", problem, "mount -t bpf bpf /sys/fs/bpf"));
    }
    if facts.jit == Some(0) {
        let problem = "BPF programs are interpreted instead of compiled: every packet costs many times as much";
        findings.push(router(Severity::Warning, "jit", problem.to_owned(), "sysctl -w net.core.bpf_jit_enable=1"));
    }
    if !facts.htb {
        let problem =
            "the kernel has no HTB (CONFIG_NET_SCH_HTB): bandwidth limits drop what exceeds them, with no queue";
        findings.push(router(
            Severity::Warning,
            "htb",
            problem.to_owned(),
            "use a kernel with CONFIG_NET_SCH_HTB=y or m",
        ));
    }
    if !facts.btf {
        let problem = "the kernel has no type information (CONFIG_DEBUG_INFO_BTF): tools such as bpftool show less";
        findings.push(router(Severity::Note, "btf", problem.to_owned(), "use a kernel with CONFIG_DEBUG_INFO_BTF=y"));
    }
}

/// Whether the kernel takes the programs, each as bad as what needs it.
fn programs(facts: &Facts, findings: &mut Vec<Finding>) {
    let programs = match &facts.programs {
        Ok(programs) => programs,
        Err(reason) => {
            findings.push(router(Severity::Error, "kernel", reason.clone(), NEWER_KERNEL));
            return;
        }
    };
    for Trial { name, reason, .. } in programs {
        let Some(reason) = reason else { continue };
        let (severity, effect, remedy) = match (*name, facts.hook) {
            (maps::PROGRAM_QUEUE, _) => {
                (Severity::Warning, "bandwidth limits drop what exceeds them, with no queue", NEWER_KERNEL)
            }
            (maps::PROGRAM_XDP, Hook::XdpGeneric) | (maps::PROGRAM_GENERIC, Hook::Auto | Hook::Xdp | Hook::Tc) => {
                (Severity::Note, "the hook that is set does without", NEWER_KERNEL)
            }
            (maps::PROGRAM_REDIRECTS, _) => (Severity::Note, "redirects that fail are not counted", NEWER_KERNEL),
            (maps::PROGRAM_SOCKETS, _) => {
                (Severity::Warning, "what listens on all of the router's addresses answers on VIPs, too", NEWER_KERNEL)
            }
            (maps::PROGRAM_XDP | maps::PROGRAM_BEHIND, Hook::Tc) => {
                (Severity::Note, "native XDP is not to be had; the hook `tc` does without", NEWER_KERNEL)
            }
            (maps::PROGRAM_XDP | maps::PROGRAM_BEHIND, Hook::Auto) => {
                let is_wanted = facts.devices.iter().any(|device| hook_for(Hook::Auto, &device.drivers) == Hook::Xdp);
                let severity = if is_wanted { Severity::Warning } else { Severity::Note };
                (severity, "`auto` takes TC on every device", NEWER_KERNEL)
            }
            (maps::PROGRAM_XDP | maps::PROGRAM_GENERIC | maps::PROGRAM_BEHIND, _) => (
                Severity::Error,
                "the hook is not to be had",
                "set hook = \"auto\" in vipgate.toml; systemctl restart vipgate",
            ),
            (maps::PROGRAM_TC, Hook::Xdp | Hook::XdpGeneric) => {
                (Severity::Note, "TC is not to be had; the hook that is set does without", NEWER_KERNEL)
            }
            _ => (Severity::Error, "the controller cannot start", NEWER_KERNEL),
        };
        findings.push(router(
            severity,
            "kernel_program",
            format!("{name} does not load, so {effect}: {reason}"),
            remedy,
        ));
    }
}

fn network(facts: &Facts, findings: &mut Vec<Finding>) {
    if facts.ip_forward == 0 {
        let problem =
            "the kernel does not route: what the programs hand to the stack, and the backends' own traffic, ends";
        findings.push(router(Severity::Error, "ip_forward", problem.to_owned(), "sysctl -w net.ipv4.ip_forward=1"));
    }
    if facts.tracked.is_some_and(|count| count > 0) {
        let problem = format!(
            "connection tracking is at work ({} entries): packets that go through the stack pay for it",
            facts.tracked.unwrap_or_default()
        );
        let remedy = "nft list ruleset # and remove what uses `ct` or nat, where nothing needs it";
        findings.push(router(Severity::Note, "conntrack", problem, remedy));
    }
    for device in &facts.lost {
        let problem = format!("a program is pinned for {device}, which is not there");
        findings.push(router(Severity::Warning, "lost_device", problem, "systemctl restart vipgate"));
    }
    if facts.devices.is_empty() {
        let problem = "there is no Ethernet device that is up".to_owned();
        findings.push(router(Severity::Error, "devices", problem, "ip link set <device> up"));
    }
}

/// Which devices answer and announce VIPs by ARP; `serve` sets that when it takes a device over.
fn arp(facts: &Facts, findings: &mut Vec<Finding>) {
    if facts.devices.iter().all(|device| device.hook.is_none()) {
        return;
    }
    if !facts.answering.is_empty() {
        let problem = format!(
            "{} answer ARP requests for the addresses of other devices: where one is on a VIP's segment, the VIP's packets come \
             to it, and past the programs",
            facts.answering.join(", ")
        );
        findings.push(router(Severity::Error, "arp_ignore", problem, "sysctl -w net.ipv4.conf.all.arp_ignore=1"));
    }
    if facts.arp_announce < 2 {
        let problem =
            "devices ask for their neighbours with any address of the router as the sender: neighbours may learn \
                       that a VIP is at another device"
                .to_owned();
        findings.push(router(Severity::Warning, "arp_announce", problem, "sysctl -w net.ipv4.conf.all.arp_announce=2"));
    }
}

/// What the running controller cannot set up: VIPs on it, or beyond it, are not reached.
fn refused(facts: &Facts, findings: &mut Vec<Finding>) {
    findings.extend(facts.refused.iter().map(|(device, refusal)| Finding {
        severity: Severity::Error,
        device: Some(device.clone()),
        check: "refused",
        problem: format!("the controller cannot set it up, and tries again within a minute: {}", refusal.reason),
        remedy: refusal.remedy.clone(),
    }));
}

/// The kernel settings that `serve` makes when it takes a device over; a candidate gets them then.
fn settings(device: &DeviceFacts, findings: &mut Vec<Finding>) {
    if device.hook.is_none() {
        return;
    }
    let mut wrong = |name: &'static str, value: u32, severity, problem: &str| {
        let remedy = format!("sysctl -w net/ipv4/conf/{}/{name}={value}", device.link.device.name);
        findings.push(about(device, severity, name, problem.to_owned(), remedy));
    };
    if device.forwarding == 0 {
        wrong("forwarding", 1, Severity::Error, "the device does not forward: no new connection finds a way out by it");
    }
    if device.accept_local == 0 {
        wrong(
            "accept_local",
            1,
            Severity::Warning,
            "answers of backends that go through the stack are dropped as martians",
        );
    }
    if device.rp_filter == 1 {
        wrong(
            "rp_filter",
            2,
            Severity::Error,
            "strict reverse path filtering drops packets that go through the stack; a running `serve` makes it loose and does it in the programs",
        );
    }
}

fn offloads(device: &DeviceFacts, wanted: Hook, findings: &mut Vec<Finding>) {
    let name = &device.link.device.name;
    let on = |feature: &str| device.driver.features.get(feature).copied().unwrap_or(false);
    let xdp = is_xdp(device, wanted);
    let is_fixed = |feature: &str| device.driver.fixed.contains(feature);
    let switched_on = |feature: &str| on(feature) && !is_fixed(feature);
    let switched_off = |feature: &str| device.driver.features.get(feature) == Some(&false) && !is_fixed(feature);
    if switched_on("rx-lro") {
        let problem =
            "large receive offload merges packets that are to be forwarded, and keeps native XDP off".to_owned();
        findings.push(about(device, Severity::Error, "lro", problem, format!("ethtool -K {name} lro off")));
    }
    if xdp && switched_on("rx-gro-hw") && device.driver.name != VIRTIO {
        let problem = "the hardware merges packets before XDP sees them".to_owned();
        findings.push(about(device, Severity::Warning, "gro_hw", problem, format!("ethtool -K {name} rx-gro-hw off")));
    }
    if device.driver.name == VIRTIO && !xdp && !device.link.xdp && switched_off("rx-gro-hw") {
        let problem =
            "whole segments do not arrive as such, but in small packets, by which bulk TCP costs several times as much: generic \
             XDP leaves this behind"
                .to_owned();
        findings.push(about(device, Severity::Warning, "gro_hw", problem, format!("ethtool -K {name} rx-gro-hw on")));
    }
    if !device.link.device.veth {
        if xdp && switched_on("rx-vlan-hw-parse") {
            let problem = "the card takes VLAN tags off before XDP sees them: a VLAN's frames would be served as the device's own, if \
                           its link carries VLANs"
                .to_owned();
            findings.push(about(device, Severity::Note, "vlan", problem, format!("ethtool -K {name} rxvlan off")));
        }
        return;
    }
    veth(device, wanted, findings);
}

/// A veth, whose other end decides what native XDP redirects to it.
fn veth(device: &DeviceFacts, wanted: Hook, findings: &mut Vec<Finding>) {
    let name = &device.link.device.name;
    if !is_xdp(device, wanted) {
        if !device.driver.features.get("tx-tcp-segmentation").copied().unwrap_or(false) {
            let problem = "large (GSO) packets are cut before they leave: bulk TCP costs more".to_owned();
            findings.push(about(device, Severity::Note, "tso", problem, format!("ethtool -K {name} tso on")));
        }
        if device.hook.unwrap_or(wanted) == Hook::XdpGeneric {
            generic_peer(device, findings);
        }
        return;
    }
    match &device.peer {
        Some(peer) => xdp_peer(device, peer, findings),
        None => {
            let problem =
                "its other end is in another namespace, where it must poll (GRO on, or an XDP program) to get \
                           what XDP redirects to it, and compute its checksums itself"
                    .to_owned();
            let remedy = "ethtool -K <peer> gro on tx off # in the peer's namespace, and tx off in the hosts behind it";
            findings.push(about(device, Severity::Note, "peer", problem, remedy.to_owned()));
        }
    }
}

/// A veth's other end, under native XDP.
fn xdp_peer(device: &DeviceFacts, peer: &Peer, findings: &mut Vec<Finding>) {
    let on = |feature: &str| peer.driver.features.get(feature).copied().unwrap_or(false);
    let name = &peer.name;
    if !on("rx-gro") && !peer.xdp {
        let problem = format!("its other end {name} does not poll, and what XDP redirects to it is dropped");
        findings.push(about(device, Severity::Error, "peer_napi", problem, format!("ethtool -K {name} gro on")));
    }
    if on("tx-checksum-ip-generic") {
        let problem = format!("its other end {name} leaves checksums undone, which XDP cannot see");
        findings.push(about(device, Severity::Warning, "peer_checksum", problem, format!("ethtool -K {name} tx off")));
    }
}

/// A veth's other end, under generic XDP.
fn generic_peer(device: &DeviceFacts, findings: &mut Vec<Finding>) {
    let Some(Peer { name, driver, .. }) = &device.peer else {
        let problem =
            "its other end is in another namespace, where it must send no segments larger than the MTU, which \
             generic XDP cannot see as such"
                .to_owned();
        let remedy = "ethtool -K <peer> tso off gso off # in the peer's namespace";
        findings.push(about(device, Severity::Note, "peer", problem, remedy.to_owned()));
        return;
    };
    if driver.features.get("tx-tcp-segmentation") == Some(&true) {
        let problem = format!(
            "its other end {name} sends segments larger than the MTU, which generic XDP cannot see as such: bulk TCP all but stops"
        );
        let remedy = format!("ethtool -K {name} tso off gso off");
        findings.push(about(device, Severity::Warning, "peer_segments", problem, remedy));
    }
}

fn queues(device: &DeviceFacts, facts: &Facts, findings: &mut Vec<Finding>) {
    let Some((used, most)) = device.driver.channels else { return };
    let (name, cpus) = (&device.link.device.name, facts.cpus);
    let wanted = cpus.min(most);
    let is_virtio = device.driver.name == VIRTIO;
    if !device.link.device.veth && used < wanted {
        let problem = format!("{used} of {most} receive queues are in use for {cpus} CPUs: the others get no packets");
        let set = format!("ethtool -L {name} combined {wanted}");
        let remedy = match is_virtio && device.link.xdp {
            // The driver refuses while it carries an XDP program.
            true => format!("systemctl stop vipgate; vipgate detach; {set}; systemctl start vipgate"),
            false => set,
        };
        findings.push(about(device, Severity::Warning, "queues", problem, remedy));
    }
    // One for each CPU beside those that receive, or all CPUs send by the same, under a lock.
    let needed = cpus + facts.possible_cpus;
    if is_virtio && is_xdp(device, facts.hook) && most < needed {
        let problem = format!(
            "it has {most} queue pairs, native XDP takes {needed} ({cpus} to receive, and one for each of {} CPUs to send): \
             without them all CPUs send under one lock",
            facts.possible_cpus
        );
        let remedy = format!(
            "give the VM {needed} queues in the hypervisor: libvirt <driver queues='{needed}'/>, QEMU queues={needed} and \
             mq=on,vectors={}",
            2 * needed + 2
        );
        findings.push(about(device, Severity::Note, "xdp_queues", problem, remedy));
    }
}

fn mtu(device: &DeviceFacts, facts: &Facts, findings: &mut Vec<Finding>) {
    let (name, own) = (&device.link.device.name, device.link.device.mtu);
    if facts.hook == Hook::Xdp && device.hook.is_none() && own > XDP_MTU {
        let problem = format!("its MTU of {own} is too large for native XDP in most drivers");
        findings.push(about(
            device,
            Severity::Warning,
            "mtu_xdp",
            problem,
            format!("ip link set dev {name} mtu {XDP_MTU}"),
        ));
    }
    let smallest = facts.devices.iter().map(|other| other.link.device.mtu).min().unwrap_or(own);
    if own > smallest {
        let problem = format!(
            "its MTU of {own} is larger than another device's {smallest}: larger packets go through the stack, which \
             fragments or refuses them"
        );
        findings.push(about(device, Severity::Note, "mtu", problem, format!("ip link set dev {name} mtu {smallest}")));
    }
}

/// Whether the device is up and carries what it should.
fn carried(device: &DeviceFacts, facts: &Facts, findings: &mut Vec<Finding>) {
    let name = &device.link.device.name;
    if !device.link.device.up {
        let problem = "the device is down".to_owned();
        findings.push(about(device, Severity::Error, "down", problem, format!("ip link set dev {name} up")));
    }
    if device.hook.is_some_and(|hook| is_native_or_generic(hook) && !device.link.xdp) {
        let problem = "its pinned XDP program is not on it any more".to_owned();
        findings.push(about(device, Severity::Error, "program", problem, "systemctl restart vipgate".to_owned()));
    }
    if device.program_lost {
        let problem = "a TC program of vipgate is not on it any more, which a running controller puts back".to_owned();
        findings.push(about(device, Severity::Error, "program", problem, "systemctl restart vipgate".to_owned()));
    }
    if device.link.xdp && !device.hook.is_some_and(is_native_or_generic) && facts.hook != Hook::Tc {
        let problem = "another program's XDP program is on it, and sees every packet first".to_owned();
        findings.push(about(
            device,
            Severity::Warning,
            "foreign_xdp",
            problem,
            format!("ip link set dev {name} xdpgeneric off; ip link set dev {name} xdp off"),
        ));
    }
    if device.hook == Some(Hook::XdpGeneric) {
        let problem = "generic XDP copies packets and is slower than TC".to_owned();
        let remedy = "set hook = \"auto\" in vipgate.toml; systemctl restart vipgate".to_owned();
        findings.push(about(device, Severity::Note, "generic_xdp", problem, remedy));
    }
}

/// Native XDP runs on the device, or would.
fn is_xdp(device: &DeviceFacts, wanted: Hook) -> bool {
    match device.hook {
        Some(hook) => hook == Hook::Xdp,
        None => hook_for(wanted, &device.drivers) == Hook::Xdp,
    }
}

/// Why the device has its hook, or is to get one.
fn chosen(device: &DeviceFacts, facts: &Facts) -> String {
    let wanted = facts.hook;
    if let Some(refusal) = facts.refused.get(&device.link.device.name) {
        return format!("it cannot be set up: {}", refusal.reason);
    }
    match device.hook {
        Some(hook) => why(wanted, hook, &device.drivers),
        None => {
            let hook = hook_for(wanted, &device.drivers);
            format!("it is to get {hook}: {}", why(wanted, hook, &device.drivers))
        }
    }
}

pub(super) fn is_native_or_generic(hook: Hook) -> bool {
    matches!(hook, Hook::Xdp | Hook::XdpGeneric)
}

fn receive_queues(device: &DeviceFacts) -> u32 {
    device.driver.channels.map_or(device.link.rx_queues, |(used, _)| used)
}

pub(super) fn about(
    device: &DeviceFacts,
    severity: Severity,
    check: &'static str,
    problem: String,
    remedy: String,
) -> Finding {
    Finding { severity, device: Some(device.link.device.name.clone()), check, problem, remedy }
}
