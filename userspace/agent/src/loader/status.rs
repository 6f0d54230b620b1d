//! What the kernel holds and counted, read from the pins alone: works with and without a running controller, and
//! changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::Ipv4Addr,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use aya::maps::{MapData, PerCpuArray};
use ipnet::Ipv4Net;
use vipgate_abi::{
    backend::Backend,
    counters::{Reason, Traffic},
    interface::Interface,
    maps,
    meter::{Meter, Metered},
    service::{Kind, Member, Service, ServiceKey},
    snat::{SnatKey, SnatKind, SnatRule},
};

use super::{
    Crowding, Hook,
    bpffs::PinDir,
    error::{LoadError, TableError},
    flow_reader::FlowReader,
    interfaces::Interfaces,
    object::open,
    tables::Tables,
};

/// A moment's picture of the packet plane.
#[derive(Clone, Debug)]
pub struct Status {
    /// Devices that carry a program, and the hook.
    pub links: Vec<(Hook, String)>,
    /// By port number.
    pub ports: BTreeMap<u32, Interface>,
    /// Key, its prefix length in bits, value.
    pub services: Vec<(ServiceKey, u32, Service)>,
    /// The same of the SNAT rules.
    pub snat_rules: Vec<(SnatKey, u32, SnatRule)>,
    /// By number, those in use.
    pub backends: BTreeMap<u32, BackendStatus>,
    /// Bandwidth limits by number.
    pub limits: BTreeMap<u32, LimitStatus>,
    /// Packets that were not simply forwarded, by reason; those that happened.
    pub reasons: Vec<(Reason, u64)>,
    pub flows: Crowding,
}

/// One backend's entry and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    pub backend: Backend,
    /// Live connections.
    pub load: u32,
    pub traffic: Traffic,
    /// Its service gives it new connections. `false` if it only keeps those it has.
    pub chosen: bool,
}

/// One bandwidth limit and its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitStatus {
    /// `None` if nothing on its VIP counts against it.
    pub vip: Option<Ipv4Addr>,
    /// `None` if it is the whole VIP's, but for ports with limits of their own.
    pub port: Option<u16>,
    /// By direction, as what follows.
    pub meter: Meter,
    pub traffic: [Metered; 2],
    /// Bits on the wire per second that passed during the last second.
    pub passing: [u64; 2],
}

/// Reads it all. `None` if nothing is pinned under this bpffs root.
pub fn read(bpffs: &Path) -> Result<Option<Status>, LoadError> {
    let dir = PinDir::new(bpffs);
    if !dir.is_there()? {
        return Ok(None);
    }
    let tables = Tables::open(&dir)?;
    let reasons = Reasons::open(&dir)?;
    let flows = Crowding::of(&FlowReader::open(&dir)?, &reasons)?;
    let (services, snat_rules) = (tables.services()?, tables.snat_rules()?);
    let backends = backends(&tables, &services, &snat_rules)?;
    Ok(Some(Status {
        links: dir.pinned_links()?,
        ports: Interfaces::open(&dir)?.list()?,
        limits: limits(&tables, &services, &snat_rules, &backends)?,
        backends,
        services,
        snat_rules,
        reasons: reasons.all()?,
        flows,
    }))
}

/// How crowded the flow table is; `None` if nothing is pinned under this bpffs root.
pub fn crowding(bpffs: &Path) -> Result<Option<Crowding>, LoadError> {
    let dir = PinDir::new(bpffs);
    match dir.is_there()? {
        true => Ok(Some(Crowding::of(&FlowReader::open(&dir)?, &Reasons::open(&dir)?)?)),
        false => Ok(None),
    }
}

/// The guests that services lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guests {
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Networks that leave by source NAT.
    pub masked: BTreeSet<Ipv4Net>,
}

/// Reads the guests that services lead to; none where nothing is pinned under this bpffs root.
pub fn guests(bpffs: &Path) -> Result<Guests, LoadError> {
    let dir = PinDir::new(bpffs);
    let mut guests = Guests::default();
    if !dir.is_there()? {
        return Ok(guests);
    }
    let tables = Tables::open(&dir)?;
    // Behind these is no guest but the VIP itself.
    let mut vips = BTreeSet::new();
    for (key, prefix_len, source) in tables.snat_rules()? {
        if source.kind == SnatKind::Masquerade as u8 {
            vips.insert(source.backend);
            let prefix_len = prefix_len.saturating_sub(SnatKey::EXACT - 32) as u8;
            guests.masked.extend(Ipv4Net::new(key.addr.into(), prefix_len).ok());
        }
    }
    for number in (0..tables.backends().len()).filter(|number| !vips.contains(number)) {
        let backend = tables.backends().read(number).filter(|backend| backend.addr != 0);
        guests.addresses.extend(backend.map(|backend| Ipv4Addr::from(u32::from_be(backend.addr))));
    }
    Ok(guests)
}

/// Every limit. What passes is looked at for a second, if there is one.
fn limits(
    tables: &Tables,
    services: &[(ServiceKey, u32, Service)],
    snat_rules: &[(SnatKey, u32, SnatRule)],
    backends: &BTreeMap<u32, BackendStatus>,
) -> Result<BTreeMap<u32, LimitStatus>, TableError> {
    const LOOK: Duration = Duration::from_secs(1);
    let of_services = services.iter().map(|(key, _, service)| (service.number, Ipv4Addr::from(key.vip)));
    let vip_of = |source: &SnatRule| Ipv4Addr::from(u32::from_be(source.vip));
    let of_sources = snat_rules
        .iter()
        .filter_map(|(_, _, source)| Some((backends.get(&source.backend)?.backend.service, vip_of(source))));
    let vips: HashMap<u32, Ipv4Addr> = of_services.chain(of_sources).collect();
    let bound = backends.values().map(|one| one.backend);
    let whole = bound.filter_map(|backend| Some((backend.meter.number(), (*vips.get(&backend.service)?, None))));
    let ports = tables
        .port_meters()?
        .into_iter()
        .map(|(port, number)| (number, (Ipv4Addr::from(u32::from_be(port.vip)), Some(u16::from_be(port.port)))));
    // A port's service is bound to the port's limit: that it is the port's is said last.
    let owners: HashMap<u32, (Ipv4Addr, Option<u16>)> = whole.chain(ports).collect();
    let mut limits = BTreeMap::new();
    let begun = Instant::now();
    for number in 1..tables.meters().len() {
        if let Some(meter) = tables.meters().read(number).filter(|meter| *meter != Meter::default()) {
            let owner = owners.get(&number);
            let (vip, port) = (owner.map(|(vip, _)| *vip), owner.and_then(|(_, port)| *port));
            let traffic = tables.metered(number)?.directions;
            limits.insert(number, LimitStatus { vip, port, meter, traffic, passing: [0; 2] });
        }
    }
    if limits.is_empty() {
        return Ok(limits);
    }
    sleep(LOOK);
    let seconds = begun.elapsed().as_secs_f64();
    for (number, limit) in &mut limits {
        let now = tables.metered(*number)?.directions;
        for (passing, (now, before)) in limit.passing.iter_mut().zip(now.iter().zip(limit.traffic)) {
            let bytes = now.passed_bytes.saturating_sub(before.passed_bytes);
            *passing = (bytes as f64 * 8.0 / seconds) as u64;
        }
        limit.traffic = now;
    }
    Ok(limits)
}

/// Every backend that has an entry, with its counters.
fn backends(
    tables: &Tables,
    services: &[(ServiceKey, u32, Service)],
    snat_rules: &[(SnatKey, u32, SnatRule)],
) -> Result<BTreeMap<u32, BackendStatus>, TableError> {
    let rings =
        services.iter().flat_map(|(_, _, service)| (0..service.ring_len).map(|element| service.ring_base + element));
    let members = rings.filter_map(|element| tables.rings().read(element)).map(|member| Member(member).number());
    let services = services.iter().map(|(_, _, service)| service);
    let guests =
        services.filter(|service| [Kind::Forward, Kind::Elastic].map(|kind| kind as u8).contains(&service.kind));
    let guests = guests.map(|service| service.backend).chain(snat_rules.iter().map(|(_, _, source)| source.backend));
    let chosen: BTreeSet<u32> = members.chain(guests).collect();
    let mut backends = BTreeMap::new();
    for number in 0..tables.backends().len() {
        if let Some(backend) = tables.backends().read(number).filter(|backend| backend.addr != 0) {
            let (load, traffic) = (tables.load(number), tables.traffic(number)?);
            backends.insert(number, BackendStatus { backend, load, traffic, chosen: chosen.contains(&number) });
        }
    }
    Ok(backends)
}

/// Why packets were not simply forwarded, counted.
pub struct Reasons(PerCpuArray<MapData, u64>);

impl fmt::Debug for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reasons").finish_non_exhaustive()
    }
}

impl Reasons {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self(open(dir, maps::REASONS)?))
    }

    /// Packets for one reason, over all CPUs.
    pub fn count(&self, reason: Reason) -> Result<u64, TableError> {
        let values = self.0.get(&(reason as u32), 0).map_err(|error| TableError::new(maps::REASONS, "read", error))?;
        Ok(values.iter().sum())
    }

    /// The reasons that happened.
    fn all(&self) -> Result<Vec<(Reason, u64)>, TableError> {
        let counts = Reason::ALL.iter().map(|reason| Ok((*reason, self.count(*reason)?)));
        counts.filter(|count| !matches!(count, Ok((_, 0)))).collect()
    }
}
