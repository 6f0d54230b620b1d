//! What the kernel holds and counted, read from the pins alone: works with and without a running controller, and
//! changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

use aya::maps::{MapData, PerCpuArray};
use vipgate_abi::{
    backend::Backend,
    counters::{Reason, Traffic},
    flow::State,
    maps,
    port::Port,
    service::{Kind, Member, Service, ServiceKey},
    source::{Source, SourceKey},
};

use super::{
    Hook,
    bpffs::PinDir,
    connections::FlowView,
    error::{LoadError, TableError},
    object::open,
    ports::Ports,
    tables::Tables,
};

/// A moment's picture of the packet plane.
#[derive(Clone, Debug)]
pub struct Status {
    /// Devices that carry a program, and the hook.
    pub links: Vec<(Hook, String)>,
    /// By port number.
    pub ports: BTreeMap<u32, Port>,
    /// Key, its prefix length in bits, value.
    pub services: Vec<(ServiceKey, u32, Service)>,
    /// The same of the sources.
    pub sources: Vec<(SourceKey, u32, Source)>,
    /// By number, those in use.
    pub backends: BTreeMap<u32, BackendStatus>,
    /// Packets that were not simply forwarded, by reason; those that happened.
    pub reasons: Vec<(Reason, u64)>,
    /// Flow entries by state; a connection has two.
    pub flows: BTreeMap<State, u64>,
    /// Number of flow entries that fit.
    pub flow_capacity: u64,
}

/// One backend's entry and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    pub backend: Backend,
    /// Live connections.
    pub load: u32,
    pub traffic: Traffic,
    /// Its service gives it new connections. False: it only keeps those it has.
    pub chosen: bool,
}

/// Reads it all. `None`: nothing is pinned under this bpffs root.
pub fn read(bpffs: &Path) -> Result<Option<Status>, LoadError> {
    let dir = PinDir::new(bpffs);
    if !dir.path().exists() {
        return Ok(None);
    }
    let tables = Tables::open(&dir)?;
    let flow_table = FlowView::open(&dir)?;
    let flows = flow_table.count();
    let (services, sources) = (tables.services()?, tables.sources()?);
    Ok(Some(Status {
        links: dir.pinned_links()?,
        ports: Ports::open(&dir)?.list()?,
        backends: backends(&tables, &services, &sources)?,
        services,
        sources,
        reasons: Reasons::open(&dir)?.all()?,
        flows,
        flow_capacity: flow_table.capacity(),
    }))
}

/// Every backend that has an entry, with its counters.
fn backends(
    tables: &Tables,
    services: &[(ServiceKey, u32, Service)],
    sources: &[(SourceKey, u32, Source)],
) -> Result<BTreeMap<u32, BackendStatus>, TableError> {
    let rings =
        services.iter().flat_map(|(_, _, service)| (0..service.ring_len).map(|element| service.ring_base + element));
    let members = rings.filter_map(|element| tables.rings().read(element)).map(|member| Member(member).number());
    let services = services.iter().map(|(_, _, service)| service);
    let guests =
        services.filter(|service| [Kind::Forward, Kind::Elastic].map(|kind| kind as u8).contains(&service.kind));
    let guests = guests.map(|service| service.backend).chain(sources.iter().map(|(_, _, source)| source.backend));
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
