//! The ways through a machine that are measured. Each is measured alone: everything that another way loaded into the kernel
//! is removed first.
//!
//! vipgate is the package with default settings except for the hook. Its controller ends before the measurement, so that the
//! figures exclude its work (traffic does not need it). Its peers serve the router's own address. Touches the guest, through
//! its shell.

use super::loads::{BULK_PORT, PACKET_PORT};
use crate::{
    lab::{
        Hook, Origin, Result,
        host::HTTP_PORT,
        topology::{PRIVATE_DEVICE, PUBLIC_DEVICE, PUBLIC_ROUTER},
        wait_until,
    },
    vm::VmLab,
};
use anyhow::{Context as _, ensure};
use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

const ROUTER: &str = include_str!("router.yaml");
/// vipgate's VIP.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);

/// Tools that configure the peers; other test machines do not have them.
pub(super) const TOOLS: [&str; 2] = ["ipvsadm", "nft"];
/// Modules that the peers load, each before the modules that it needs.
const MODULES: &str = "ip_vs_rr ip_vs_mh ip_vs nft_chain_nat nft_nat nf_nat nf_tables nf_conntrack";

const PATIENCE: Duration = Duration::from_secs(120);
/// Connections that test a way; a multiple of the backends, so that round robin gives each the same number.
const TRIED: usize = 24;

/// How packets get through the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Without translation, to the backends' own addresses.
    Forwarding,
    Vipgate(Hook),
    /// IPVS with NAT: answers pass the translation, too.
    Ipvs(Scheduler),
    /// One DNAT rule to one backend, with connection tracking.
    Nftables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheduler {
    RoundRobin,
    /// Maglev, by the client's address and port.
    Maglev,
}

impl Way {
    pub(super) const ALL: [Self; 7] = [
        Self::Forwarding,
        Self::Vipgate(Hook::Tc),
        Self::Vipgate(Hook::Xdp),
        Self::Vipgate(Hook::XdpGeneric),
        Self::Ipvs(Scheduler::RoundRobin),
        Self::Ipvs(Scheduler::Maglev),
        Self::Nftables,
    ];
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwarding => formatter.write_str("plain forwarding"),
            Self::Vipgate(hook) => write!(formatter, "vipgate ({hook})"),
            Self::Ipvs(Scheduler::RoundRobin) => formatter.write_str("IPVS NAT rr"),
            Self::Ipvs(Scheduler::Maglev) => formatter.write_str("IPVS NAT mh"),
            Self::Nftables => formatter.write_str("nftables DNAT"),
        }
    }
}

/// A way that is open.
#[derive(Debug)]
pub(super) struct Opened {
    /// The addresses that clients ask, in turn.
    addresses: Vec<Ipv4Addr>,
}

impl Opened {
    /// The target of the flow with this number.
    pub(super) fn target(&self, port: u16, flow: usize) -> SocketAddrV4 {
        SocketAddrV4::new(self.addresses[flow % self.addresses.len()], port)
    }
}

/// Opens a way on a machine that has none open, and tests it.
pub(super) fn open(lab: &VmLab, way: Way) -> Result<Opened> {
    alone(lab)?;
    restore_offloads(lab)?;
    let backends: Vec<Ipv4Addr> = lab.backends().iter().map(|backend| backend.address).collect();
    let addresses = match way {
        Way::Forwarding => backends,
        Way::Vipgate(hook) => {
            lab.serve(hook)?;
            lab.apply(ROUTER)?;
            vec![VIP]
        }
        Way::Ipvs(scheduler) => {
            lab.agent().says(&ipvs(scheduler, &backends))?;
            vec![PUBLIC_ROUTER]
        }
        Way::Nftables => {
            let backend = backends.first().context("no backend")?;
            lab.agent().says(&format!(
                "nft 'table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat ; \
                 iifname {PUBLIC_DEVICE} ip daddr {PUBLIC_ROUTER} meta l4proto {{ tcp, udp }} dnat to {backend} ; }} ; }}'"
            ))?;
            vec![PUBLIC_ROUTER]
        }
    };
    let opened = Opened { addresses };
    let web = opened.target(HTTP_PORT, 0);
    wait_until("the way to be open", PATIENCE, || lab.client().fetch(web))?;
    if let Way::Vipgate(hook) = way {
        let status = lab.stop()?;
        ensure!(status == 0, "SIGTERM ends the controller with {status}");
        let attached = lab.attached()?;
        let is_right = |(_, at): &(String, String)| *at == hook.to_string();
        ensure!(attached.len() == 2 && attached.iter().all(is_right), "the hook is {hook}, but {attached:?}");
    }
    let answers = lab.client().fetch_many(web, TRIED)?;
    check(way, &answers, lab.backends().len(), lab.client().address)?;
    Ok(opened)
}

/// Removes a way.
pub(super) fn close(lab: &VmLab, way: Way) -> Result<()> {
    match way {
        Way::Forwarding => return Ok(()),
        Way::Vipgate(_) => lab.clear()?,
        Way::Ipvs(_) => lab.agent().says("ipvsadm --clear").map(drop)?,
        Way::Nftables => lab.agent().says("nft flush ruleset").map(drop)?,
    }
    // A module may stay in use for some moments.
    wait_until("the peers' modules to be gone", PATIENCE, || {
        lab.agent().run(&format!("for module in {MODULES}; do rmmod $module; done"))?;
        alone(lab)
    })
}

/// Fails if something of a measured way is in the kernel.
fn alone(lab: &VmLab) -> Result<()> {
    lab.is_clean()?;
    let pattern = MODULES.replace(' ', "|");
    let left = lab.agent().run(&format!("grep -E '^({pattern}) ' /proc/modules"))?.stdout;
    ensure!(left.is_empty(), "modules are still loaded: {left}");
    Ok(())
}

/// Turns hardware GRO (in virtio's terms: whole segments from the host) on again. Generic XDP turns it off, and the kernel
/// does not restore it when the program is removed.
fn restore_offloads(lab: &VmLab) -> Result<()> {
    for device in [PUBLIC_DEVICE, PRIVATE_DEVICE] {
        let state = lab.agent().says(&format!("ethtool -K {device} rx-gro-hw on; ethtool -k {device}"))?;
        ensure!(state.contains("rx-gro-hw: on"), "{device} does not accept whole segments: {state}");
    }
    Ok(())
}

/// The lines that create the services, as an operator would type them.
fn ipvs(scheduler: Scheduler, backends: &[Ipv4Addr]) -> String {
    let scheduler = match scheduler {
        Scheduler::RoundRobin => "rr",
        Scheduler::Maglev => "mh --sched-flags mh-port",
    };
    let service = |flag: &str, port: u16, backends: &[Ipv4Addr]| {
        let service = format!("{flag} {PUBLIC_ROUTER}:{port}");
        let servers = backends
            .iter()
            .map(|backend| format!("; ipvsadm -a {service} --real-server {backend}:{port} --masquerading"));
        format!("; ipvsadm -A {service} --scheduler {scheduler}{}", servers.collect::<String>())
    };
    format!(
        "set -e; modprobe ip_vs{}{}{}",
        service("--tcp-service", HTTP_PORT, backends),
        service("--udp-service", PACKET_PORT, backends),
        service("--tcp-service", BULK_PORT, &backends[..1]),
    )
}

/// Checks the backends' answers: all backends answer if the way balances, equally often if it takes them in turn, and see
/// the client itself.
fn check(way: Way, answers: &[Origin], backends: usize, client: Ipv4Addr) -> Result<()> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for Origin { backend, client: seen } in answers {
        ensure!(*seen.ip() == client, "{way}: {backend} sees {seen}, not {client}");
        *counts.entry(backend).or_default() += 1;
    }
    let expected = if matches!(way, Way::Vipgate(_) | Way::Ipvs(_)) { backends } else { 1 };
    ensure!(counts.len() == expected, "{way}: {expected} backends should answer, not {counts:?}");
    let in_turn = way == Way::Ipvs(Scheduler::RoundRobin);
    let alike = counts.values().all(|count| *count == answers.len() / backends);
    ensure!(!in_turn || alike, "{way}: the backends do not answer in turn: {counts:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);

    fn answers(backends: &[&str], seen: Ipv4Addr) -> Vec<Origin> {
        let origin = |backend: &&str| Origin { backend: (*backend).to_owned(), client: SocketAddrV4::new(seen, 40000) };
        backends.iter().map(origin).collect()
    }

    #[test]
    fn a_way_that_does_not_balance_or_hides_the_client_is_not_measured() {
        let rr = Way::Ipvs(Scheduler::RoundRobin);
        let turns = answers(&["b1", "b2", "b3", "b1", "b2", "b3"], CLIENT);
        assert!(check(rr, &turns, 3, CLIENT).is_ok());
        assert!(check(rr, &answers(&["b1", "b1", "b1", "b1", "b2", "b3"], CLIENT), 3, CLIENT).is_err());
        assert!(check(rr, &turns, 3, PUBLIC_ROUTER).is_err());
        let one = answers(&["b1", "b1"], CLIENT);
        assert!(check(Way::Vipgate(Hook::Tc), &one, 3, CLIENT).is_err());
        assert!(check(Way::Forwarding, &one, 3, CLIENT).is_ok());
        assert!(check(Way::Nftables, &[], 3, CLIENT).is_err());
    }

    #[test]
    fn ipvs_serves_each_load_and_bulk_by_one_backend() {
        let lines = ipvs(Scheduler::Maglev, &[Ipv4Addr::new(10, 2, 0, 11), Ipv4Addr::new(10, 2, 0, 12)]);
        let count = |text: &str| lines.matches(text).count();
        assert_eq!(count("--scheduler mh --sched-flags mh-port"), 3);
        assert_eq!([":80 --masq", ":7003 --masq", ":5201 --masq"].map(count), [2, 2, 1], "{lines}");
    }
}
