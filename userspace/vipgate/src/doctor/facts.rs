//! What the doctor looks at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use ipnet::Ipv4Net;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use vipgate_abi::maps;
use vipgate_agent::{
    loader::{self, Crowding, Driver, Hook, LoadError, PinDir, Trial, driver, drivers, release, status::Guests},
    net::{HeldAddress, Link, Netlink, netfilter::Filter, queue, sysctl},
    reconcile::Refusals,
};

use super::DoctorError;
use crate::{config::Config, controller_status};

/// The router at one moment.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The kernel's release, such as `6.12.3`.
    pub(super) kernel: String,
    /// The running controller's, else that of the configuration.
    pub(super) hook: Hook,
    pub(super) bpffs: String,
    pub(super) bpffs_is_mounted: bool,
    /// `net.core.bpf_jit_enable`; `None` if this namespace does not show it.
    pub(super) jit: Option<u32>,
    /// The kernel describes its types, which newer features of the loader want.
    pub(super) btf: bool,
    /// What became of our programs, or why none could be tried.
    pub(super) programs: Result<Vec<Trial>, String>,
    /// It has the HTB queueing discipline, or a module of it.
    pub(super) htb: bool,
    pub(super) ip_forward: u32,
    /// Devices that answer ARP requests for the addresses of others, VIPs among them.
    pub(super) answering: Vec<String>,
    /// `net.ipv4.conf.all.arp_announce`.
    pub(super) arp_announce: u32,
    /// The packet filter's rules.
    pub(super) filter: Filter,
    /// Connections that the kernel tracks in this namespace; `None` if the module is not loaded.
    pub(super) tracked: Option<u32>,
    pub(super) cpus: u32,
    /// Those that there could be, for which drivers keep queues.
    pub(super) possible_cpus: u32,
    pub(super) devices: Vec<DeviceFacts>,
    /// Pinned links whose device is not there.
    pub(super) lost: Vec<String>,
    /// Devices that the running controller wants and cannot set up.
    pub(super) refused: Refusals,
    /// How crowded the flow table is; `None` if there is none yet.
    pub(super) flows: Option<Crowding>,
    /// Flow entries that there may be.
    pub(super) largest_flows: u32,
}

#[derive(Clone, Debug)]
pub(super) struct DeviceFacts {
    pub(super) link: Link,
    pub(super) hook: Option<Hook>,
    /// A TC program of ours is pinned and not there.
    pub(super) program_lost: bool,
    pub(super) driver: Driver,
    /// Those that carry its frames: of a bond, its devices'.
    pub(super) drivers: Vec<String>,
    pub(super) forwarding: u32,
    pub(super) accept_local: u32,
    /// The larger of the device's own and that of all: what counts (ip-sysctl).
    pub(super) rp_filter: u32,
    /// Its networks in which guests are.
    pub(super) guests: Vec<GuestNetwork>,
    /// A veth's other end, where it is in the same namespace.
    pub(super) peer: Option<Peer>,
}

/// A network of the router's in which there are guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GuestNetwork {
    pub(super) network: Ipv4Net,
    /// It leaves by source NAT.
    pub(super) masked: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) driver: Driver,
    /// It carries an XDP program.
    pub(super) xdp: bool,
}

/// By its functions, or by the list of modules.
fn has_htb() -> bool {
    let modules = format!("/lib/modules/{}/modules.dep", release());
    let names = |path: &str, name: &str| fs::read_to_string(path).is_ok_and(|text| text.contains(name));
    names("/proc/kallsyms", " htb_enqueue") || names(&modules, "sch_htb")
}

/// The devices that carry programs or should; where there is none yet, all that could.
fn devices(links: &[Link], pinned: &BTreeMap<String, Hook>, refused: &Refusals) -> Vec<DeviceFacts> {
    let wanted = |link: &&Link| match pinned.is_empty() && refused.is_empty() {
        true => link.device.ethernet && link.device.up && link.device.name != "lo" && !link.enslaved,
        false => pinned.contains_key(&link.device.name) || refused.contains_key(&link.device.name),
    };
    links.iter().filter(wanted).map(|link| DeviceFacts::collect(link, links, pinned)).collect()
}

impl Facts {
    /// Reads them all.
    pub(super) async fn collect(config: &Config) -> Result<Self, DoctorError> {
        let net = Netlink::open()?;
        let (links, addresses) = (net.links().await?, net.addresses().await?);
        let guests = loader::status::guests(&config.bpffs)?;
        let pinned: BTreeMap<String, Hook> =
            PinDir::new(&config.bpffs).pinned_links()?.into_iter().map(|(hook, device)| (device, hook)).collect();
        let running = controller_status::ask(&config.bpffs);
        let hook = running.as_ref().and_then(|running| running.hook).unwrap_or(config.hook);
        let largest_flows = running.as_ref().and_then(|running| running.flows).unwrap_or(config.datapath.flows);
        let refused = running.map(|running| running.refused).unwrap_or_default();
        let mut devices = devices(&links, &pinned, &refused);
        // Whether an XDP program is there, the device itself says.
        let missing = loader::missing_programs(&config.bpffs)?
            .into_iter()
            .filter(|missing| ![maps::PROGRAM_XDP, maps::PROGRAM_GENERIC].contains(&missing.program));
        let missing: BTreeSet<String> = missing.map(|missing| missing.device).collect();
        for device in &mut devices {
            device.program_lost = missing.contains(&device.link.device.name);
            device.guests = guest_networks(device.link.device.ifindex, &addresses, &guests);
        }
        let is_there = |name: &str| links.iter().any(|link| link.device.name == name);
        // A running controller reports the reason.
        let gone = pinned.keys().filter(|name| !is_there(name) && !refused.contains_key(*name));
        let lost = gone.cloned().collect();
        let existing = config.bpffs.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        Ok(Self {
            kernel: release(),
            programs: match loader::try_programs() {
                Ok(programs) => Ok(programs),
                Err(error @ LoadError::Privileges { .. }) => return Err(error.into()),
                Err(error) => Err(loader::causes(&error)),
            },
            hook,
            bpffs: config.bpffs.display().to_string(),
            bpffs_is_mounted: statfs(existing).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC),
            jit: number("/proc/sys/net/core/bpf_jit_enable"),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            htb: has_htb(),
            ip_forward: number("/proc/sys/net/ipv4/ip_forward").unwrap_or(0),
            answering: answering(&links),
            arp_announce: sysctl::read("all", "arp_announce"),
            filter: Filter::read(),
            tracked: number("/proc/sys/net/netfilter/nf_conntrack_count"),
            possible_cpus: possible_cpus(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(1)),
            devices,
            lost,
            refused,
            flows: loader::status::crowding(&config.bpffs)?,
            largest_flows,
        })
    }
}

impl DeviceFacts {
    fn collect(link: &Link, links: &[Link], pinned: &BTreeMap<String, Hook>) -> Self {
        let name = &link.device.name;
        let peer = links.iter().find(|other| link.device.veth && link.peer == Some(other.device.ifindex));
        Self {
            link: link.clone(),
            hook: pinned.get(name).copied(),
            program_lost: false,
            driver: driver(name).unwrap_or_default(),
            drivers: drivers(name),
            forwarding: sysctl::read(name, "forwarding"),
            accept_local: sysctl::read(name, "accept_local"),
            rp_filter: sysctl::in_force(name, "rp_filter"),
            guests: Vec::new(),
            peer: peer.map(|peer| Peer {
                name: peer.device.name.clone(),
                driver: driver(&peer.device.name).unwrap_or_default(),
                xdp: peer.xdp,
            }),
        }
    }
}

/// Those that answer ARP requests for the addresses of others.
fn answering(links: &[Link]) -> Vec<String> {
    let asked = links.iter().filter(|link| link.device.ethernet && link.device.up && !link.enslaved);
    let answering = asked.map(|link| &link.device.name).filter(|name| queue::pair_with(name).is_none());
    answering.filter(|name| sysctl::answers_for_others(name)).cloned().collect()
}

/// The networks of a device in which guests are.
fn guest_networks(ifindex: u32, addresses: &[HeldAddress], guests: &Guests) -> Vec<GuestNetwork> {
    let own = addresses.iter().filter(|held| held.ifindex == ifindex && !held.vip);
    let networks = own.filter_map(|held| Some(Ipv4Net::new(held.address, held.prefix_len).ok()?.trunc()));
    let networks: BTreeSet<Ipv4Net> = networks.collect();
    let known = networks.into_iter().map(|network| {
        let masked = guests.masked.iter().any(|masked| masked.contains(&network) || network.contains(masked));
        (GuestNetwork { network, masked }, masked || guests.addresses.iter().any(|guest| network.contains(guest)))
    });
    known.filter(|(_, has_guests)| *has_guests).map(|(network, _)| network).collect()
}

/// One more than the highest number in a list such as `0-3` (admin-guide/cputopology).
fn possible_cpus() -> u32 {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = list.trim().rsplit([',', '-']).next().and_then(|number| number.parse::<u32>().ok());
    last.map_or(1, |last| last + 1)
}

fn number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
