//! Brings the kernel's tables to what VIPs need: diff, then apply in an order that never exposes a half state.
//!
//! Touches the tables through [`KernelTables`] only; addresses, devices and the order among VIPs are the
//! [worker](super::worker)'s.
//!
//! # Order
//! Additions run meter, limited port, backends, ring, service key, source: a packet that meets a key finds its ring written, the
//! ring's backends filled in, and the meters that those are bound to. Removals run the other way: source, key, then backends,
//! limited port, meter, and the ring's range rests in the [arena](super::arena). A meter's queues are the
//! [worker](super::worker)'s, which makes them before and removes them after. A backend that is down leaves its ring before its flows end. A changed ring is a new range that one key update swaps in.
//!
//! # Generations
//! A flow ends when its backend's generation moves on. That happens when a listener, a port-forwarding rule, an elastic IP
//! or a network's source NAT goes (its flows end at once), when a backend is found to be down, and when a number is given to another backend. A backend that
//! only leaves its listener keeps its entry, so that its flows drain.
//!
//! Its meter is no part of that: a limit that comes, changes or goes ends nothing, and holds for what there is at once.
//!
//! # Whose an entry is
//! A service key names its VIP, so it is that VIP's for ever. The key of a source does not: of several elastic IPs of one
//! guest another one may come to lead. Such an entry is the VIP's that its value names, who wrote it last. A meter names none: it
//! is the VIP's that applied it last, and those that none has applied when all were are left over.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    time::Instant,
};

use thiserror::Error;
use vipgate_abi::{
    backend::Backend,
    meter::{Meter, MeterPort},
    service::{Kind, Member, Service},
    snat::{SnatKind, SnatRule},
};

use super::{
    arena::Arena,
    bandwidth::Rates,
    compile::{Key, Origin, ServiceEntry, SourceEntry, Tables},
};
use crate::{
    loader::{self, TableError},
    net::queue,
};

/// The tables that the engine writes. The loader's are the kernel's; tests have theirs.
pub(super) trait KernelTables {
    /// Every entry of the services trie.
    fn services(&self) -> Result<Vec<(Key, Service)>, TableError>;
    /// Adds or replaces an entry at once.
    fn set_service(&mut self, key: Key, service: Service) -> Result<(), TableError>;
    /// Removes an entry; one that is not there is no error.
    fn remove_service(&mut self, key: Key) -> Result<(), TableError>;

    /// Every entry of the sources trie.
    fn sources(&self) -> Result<Vec<(Origin, SnatRule)>, TableError>;
    /// Adds or replaces an entry at once.
    fn set_source(&mut self, origin: Origin, source: SnatRule) -> Result<(), TableError>;
    /// Removes an entry; one that is not there is no error.
    fn remove_source(&mut self, origin: Origin) -> Result<(), TableError>;

    /// Number of elements of BACKENDS.
    fn backend_count(&self) -> u32;
    /// One element, all zero beyond the end.
    fn backend(&self, number: u32) -> Backend;
    /// Writes one element, below `backend_count`; its generation, address and port change together.
    fn set_backend(&mut self, number: u32, backend: Backend);
    /// Zeroes what was counted for a number before.
    fn reset_traffic(&mut self, number: u32) -> Result<(), TableError>;

    /// Every meter that limits something, by number.
    fn meters(&self) -> Vec<(u32, Meter)>;
    /// Writes one meter, or, all zero, takes it away.
    fn set_meter(&mut self, number: u32, meter: Meter);
    /// Zeroes what was counted for a meter's number before.
    fn reset_metered(&mut self, number: u32) -> Result<(), TableError>;
    /// Every port that has a meter of its own.
    fn port_meters(&self) -> Result<Vec<(MeterPort, u32)>, TableError>;
    /// Gives a port a meter, at once.
    fn set_port_meter(&mut self, port: MeterPort, number: u32) -> Result<(), TableError>;
    /// Takes a port's meter away; one that is not there is no error.
    fn remove_port_meter(&mut self, port: MeterPort) -> Result<(), TableError>;

    /// Number of elements of RINGS.
    fn ring_elements(&self) -> u32;
    /// Copies a ring; beyond the end it is cut off.
    fn ring(&self, base: u32, len: u32) -> Vec<u32>;
    /// Writes a ring where no service points to, within the elements.
    fn write_ring(&mut self, base: u32, ring: &[u32]);
}

/// Why a VIP's entries could not be brought to the kernel.
#[derive(Debug, Error)]
pub(super) enum EngineError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(
        "no room for a ring of {wanted} elements, {available} are free in pieces or about to be; \
         raise the size `ring_elements`"
    )]
    ArenaFull { wanted: u32, available: u64 },
    #[error("backend number {number} is beyond the {limit} that the tables hold; raise the size `backends`")]
    BackendNumber { number: u32, limit: u32 },
}

/// An entry that leads packets to a service's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Service(Key),
    Source(Origin),
}

/// The tables and what is known of them. Only the engine writes them, so what it knows is what they hold.
#[derive(Debug)]
pub(super) struct Engine<K> {
    kernel: K,
    arena: Arena,
    /// The services trie.
    services: BTreeMap<Key, Service>,
    /// The sources trie.
    sources: BTreeMap<Origin, SourceEntry>,
    /// The same entries by the VIPs that they name.
    sources_of: HashMap<Ipv4Addr, BTreeSet<Origin>>,
    /// Where a service number is: a listener's one key, those of a rule's range, an elastic IP's key and source, a source.
    owners: HashMap<u32, BTreeSet<Place>>,
    /// The backend numbers whose entries name a service number, draining ones included.
    members: HashMap<u32, BTreeSet<u32>>,
    /// The meters, by number.
    meters: BTreeMap<u32, Metering>,
    /// The numbers of the meters that each VIP has.
    meters_of: HashMap<Ipv4Addr, BTreeSet<u32>>,
    /// The ports that have meters of their own, in the order of their VIPs.
    port_meters: BTreeMap<MeterPort, u32>,
    /// Interface indices of the devices that have the meters' queues, by [number](queue::pair_of).
    queues: BTreeMap<u32, u32>,
    /// What [`Engine::take_freed`] gives.
    freed: Vec<u32>,
    /// Generations moved on since the last [`Engine::take_ended`].
    ended: bool,
}

/// A meter, as far as it is known.
#[derive(Clone, Copy, Debug)]
struct Metering {
    held: Meter,
    /// Whose it is, and at which rates; `None`: it was there when the engine began, and no VIP has asked for it yet.
    wanted: Option<(Ipv4Addr, Rates)>,
}

impl<K: KernelTables> Engine<K> {
    /// Learns what the kernel holds.
    pub(super) fn new(kernel: K) -> Result<Self, EngineError> {
        let arena = Arena::new(kernel.ring_elements());
        let mut engine = Self {
            arena,
            services: BTreeMap::new(),
            sources: BTreeMap::new(),
            sources_of: HashMap::new(),
            owners: HashMap::new(),
            members: HashMap::new(),
            meters: BTreeMap::new(),
            meters_of: HashMap::new(),
            port_meters: BTreeMap::new(),
            queues: BTreeMap::new(),
            freed: Vec::new(),
            ended: false,
            kernel,
        };
        for (key, mut service) in engine.kernel.services()? {
            if !engine.arena.reserve(service.ring_base, service.ring_len) {
                // Two rings overlap or one lies outside: a table that was written by something else. Known without its
                // ring, it is written anew.
                service.ring_len = 0;
            }
            engine.note_service(key, service);
        }
        for (origin, value) in engine.kernel.sources()? {
            let backend = engine.kernel.backend(value.backend);
            let led = value.kind != SnatKind::Disabled as u8 && backend.addr != 0;
            let number = led.then_some(backend.service);
            engine.note_source(origin, SourceEntry { number, value });
        }
        let unknown = |(number, held)| (number, Metering { held, wanted: None });
        engine.meters = engine.kernel.meters().into_iter().map(unknown).collect();
        engine.port_meters = engine.kernel.port_meters()?.into_iter().collect();
        for number in 0..engine.kernel.backend_count() {
            let backend = engine.kernel.backend(number);
            if backend.addr != 0 {
                engine.members.entry(backend.service).or_default().insert(number);
            }
        }
        Ok(engine)
    }

    /// Every VIP that has an entry.
    pub(super) fn vips(&self) -> BTreeSet<Ipv4Addr> {
        self.services.keys().map(Key::vip).chain(self.sources_of.keys().copied()).collect()
    }

    /// Whether flows ended since this was last asked: the sweeper should clear them away.
    pub(super) fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }

    /// Removes all that a VIP has; its flows end.
    pub(super) fn remove(&mut self, vip: Ipv4Addr, now: Instant) -> Result<(), EngineError> {
        self.apply(&Tables::empty(vip), now)
    }

    /// Brings one VIP's entries to `tables`. After an error a part may be done; applying again does the rest.
    pub(super) fn apply(&mut self, tables: &Tables, now: Instant) -> Result<(), EngineError> {
        self.settle_claims(tables, now)?;
        for (number, rates) in &tables.limits {
            self.put_meter(*number, tables.vip, *rates)?;
        }
        for (port, number) in &tables.port_limits {
            self.put_port_meter(port_of(tables.vip, *port), *number)?;
        }
        let (down, up): (Vec<_>, Vec<_>) = tables.backends.iter().partition(|(_, backend)| backend.is_down());
        for (number, backend) in up {
            self.put_backend(*number, *backend)?;
        }
        for (key, entry) in &tables.services {
            self.put_service(*key, entry, now)?;
        }
        for (origin, entry) in &tables.sources {
            self.put_source(*origin, *entry)?;
        }
        // No ring leads to them any more: what ends now does not begin anew there.
        for (number, backend) in down {
            self.put_backend(*number, *backend)?;
        }
        self.drop_left(tables);
        let held = self.sources_of.get(&tables.vip).into_iter().flatten().copied();
        let stale: Vec<Origin> = held.filter(|origin| !tables.sources.contains_key(origin)).collect();
        for origin in stale {
            self.remove_source(origin)?;
        }
        let first = Key::whole(tables.vip);
        let stale: Vec<Key> = self
            .services
            .range(first..)
            .map(|(key, _)| *key)
            .take_while(|key| key.data.vip == first.data.vip)
            .filter(|key| !tables.services.contains_key(key))
            .collect();
        for key in stale {
            self.remove_service(key, now)?;
        }
        self.remove_meters(tables)
    }

    /// Names the device that has the queues of the meters of a [pair](queue::pair_of): it may be another one than before.
    pub(super) fn set_queue(&mut self, pair: u32, device: Option<u32>) {
        match device {
            Some(device) => self.queues.insert(pair, device),
            None => self.queues.remove(&pair),
        };
        for (number, metering) in self.meters.iter_mut().filter(|(number, _)| queue::pair_of(**number) == pair) {
            if let Some((_, rates)) = metering.wanted {
                let meter = rates.meter(device);
                if metering.held != meter {
                    self.kernel.set_meter(*number, meter);
                    metering.held = meter;
                }
            }
        }
    }

    /// The device that has a meter's queues.
    fn queue_of(&self, number: u32) -> Option<u32> {
        self.queues.get(&queue::pair_of(number)).copied()
    }

    /// The numbers of meters that are gone or have other rates since this was last asked: their queues may be too many.
    pub(super) fn take_freed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.freed)
    }

    /// The rates that a VIP has asked for under this number.
    pub(super) fn rates(&self, number: u32) -> Option<Rates> {
        self.meters.get(&number)?.wanted.map(|(_, rates)| rates)
    }

    /// The meters and their rates that VIPs have asked for.
    pub(super) fn limits(&self) -> impl Iterator<Item = (u32, Rates)> {
        self.meters.iter().filter_map(|(number, metering)| Some((*number, metering.wanted?.1)))
    }

    /// Takes away the meters that no VIP has asked for, when all have.
    pub(super) fn remove_unclaimed_meters(&mut self) {
        let unclaimed = self.meters.iter().filter(|(_, metering)| metering.wanted.is_none());
        for number in unclaimed.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.remove_meter(number);
        }
    }

    fn put_meter(&mut self, number: u32, vip: Ipv4Addr, rates: Rates) -> Result<(), EngineError> {
        let meter = rates.meter(self.queue_of(number));
        let before = self.meters.get(&number).copied();
        if before.is_none() {
            self.kernel.reset_metered(number)?;
        }
        if before.is_none_or(|before| before.held != meter) {
            self.kernel.set_meter(number, meter);
        }
        if let Some((owner, held)) = before.and_then(|before| before.wanted)
            && (owner, held) != (vip, rates)
        {
            self.forget_meter(owner, number);
            self.freed.push(number);
        }
        self.meters.insert(number, Metering { held: meter, wanted: Some((vip, rates)) });
        self.meters_of.entry(vip).or_default().insert(number);
        Ok(())
    }

    fn put_port_meter(&mut self, port: MeterPort, number: u32) -> Result<(), EngineError> {
        if self.port_meters.get(&port) != Some(&number) {
            self.kernel.set_port_meter(port, number)?;
            self.port_meters.insert(port, number);
        }
        Ok(())
    }

    /// Takes away what a VIP has no more: nothing is bound to it by now.
    fn remove_meters(&mut self, tables: &Tables) -> Result<(), EngineError> {
        let (first, last) = (port_of(tables.vip, 0), MeterPort { port: u16::MAX, ..port_of(tables.vip, 0) });
        let held = self.port_meters.range(first..=last).map(|(port, _)| *port);
        let stale = held.filter(|port| !tables.port_limits.contains_key(&u16::from_be(port.port)));
        for port in stale.collect::<Vec<_>>() {
            self.kernel.remove_port_meter(port)?;
            self.port_meters.remove(&port);
        }
        let held = self.meters_of.get(&tables.vip).into_iter().flatten().copied();
        for number in held.filter(|number| !tables.limits.contains_key(number)).collect::<Vec<_>>() {
            self.forget_meter(tables.vip, number);
            self.remove_meter(number);
        }
        Ok(())
    }

    fn remove_meter(&mut self, number: u32) {
        self.kernel.set_meter(number, Meter::default());
        self.meters.remove(&number);
        self.freed.push(number);
    }

    fn forget_meter(&mut self, vip: Ipv4Addr, number: u32) {
        if let Some(meters) = self.meters_of.get_mut(&vip) {
            meters.remove(&number);
            if meters.is_empty() {
                self.meters_of.remove(&vip);
            }
        }
    }

    /// Numbers are unique in the store, so who wants one that another has says that the other's use is over, though
    /// its own VIP was not applied yet.
    fn settle_claims(&mut self, tables: &Tables, now: Instant) -> Result<(), EngineError> {
        let services = tables.services.values().filter_map(ServiceEntry::number);
        let sources: BTreeMap<u32, Origin> =
            tables.sources.iter().filter_map(|(origin, entry)| Some((entry.number?, *origin))).collect();
        for number in services.chain(sources.keys().copied()).collect::<BTreeSet<_>>() {
            let is_its = |place: &Place| match place {
                Place::Service(key) => tables.services.get(key).and_then(ServiceEntry::number) == Some(number),
                // The same guests by another device: their flows go on.
                Place::Source(origin) => {
                    let same_vip = self.sources.get(origin).is_some_and(|held| vip_of(held) == tables.vip);
                    same_vip && sources.get(&number).is_some_and(|its| its.same_guests(origin))
                }
            };
            let others: Vec<Place> =
                self.owners.get(&number).into_iter().flatten().filter(|place| !is_its(place)).copied().collect();
            for place in others {
                self.remove_place(place, now)?;
            }
        }
        for (number, wanted) in &tables.backends {
            let held = self.kernel.backend(*number);
            if held.addr != 0 && held.service != wanted.service {
                self.leave(held.service, *number, now)?;
            }
        }
        Ok(())
    }

    fn put_backend(&mut self, number: u32, wanted: Backend) -> Result<(), EngineError> {
        let limit = self.kernel.backend_count();
        if number >= limit {
            return Err(EngineError::BackendNumber { number, limit });
        }
        let held = self.kernel.backend(number);
        let same = held.addr == wanted.addr && held.port == wanted.port && held.service == wanted.service;
        let ends = !same || (wanted.is_down() && !held.is_down());
        let generation = if ends { held.generation.wrapping_add(1) } else { held.generation };
        let wanted = Backend { generation, ..wanted };
        if held == wanted {
            return Ok(());
        }
        if !same {
            // A generation of 0 was never used, and has counted nothing.
            if held.generation != 0 {
                self.kernel.reset_traffic(number)?;
            }
        }
        self.ended |= ends && held.addr != 0;
        self.kernel.set_backend(number, wanted);
        if held.addr != 0 && held.service != wanted.service {
            self.forget_member(held.service, number);
        }
        self.members.entry(wanted.service).or_default().insert(number);
        Ok(())
    }

    /// A backend that was down when it left its listener has no flows that could drain, and what left a rule shall have
    /// none: their entries go. Those of backends that drain are bound to their listener's limit as the others are.
    fn drop_left(&mut self, tables: &Tables) {
        let services = tables.services.values();
        let services = services.map(|entry| (entry.number(), matches!(entry, ServiceEntry::Balance { .. })));
        let sources = tables.sources.values().map(|entry| (entry.number, false));
        for (service, drains) in services.chain(sources) {
            let Some(service) = service else { continue };
            let members = self.members.get(&service).into_iter().flatten().copied();
            let left: Vec<u32> = members.filter(|number| !tables.backends.contains_key(number)).collect();
            let binding = tables.bindings.get(&service).copied().unwrap_or_default();
            for number in left {
                let held = self.kernel.backend(number);
                if !drains || held.is_down() {
                    self.free_backend(number);
                    self.forget_member(service, number);
                } else if held.meter != binding {
                    self.kernel.set_backend(number, Backend { meter: binding, ..held });
                }
            }
        }
    }

    fn free_backend(&mut self, number: u32) {
        self.ended = true;
        let generation = self.kernel.backend(number).generation.wrapping_add(1);
        self.kernel.set_backend(number, Backend { generation, ..Backend::default() });
    }

    fn put_service(&mut self, key: Key, entry: &ServiceEntry, now: Instant) -> Result<(), EngineError> {
        let ring = entry.ring();
        let held = self.services.get(&key).copied();
        if let Some(held) = held
            && held.ring_len as usize == ring.len()
            && self.kernel.ring(held.ring_base, held.ring_len) == ring
        {
            let wanted = entry.value(held.ring_base);
            if wanted != held {
                self.set_service(key, wanted)?;
            }
            return Ok(());
        }
        let len = ring.len() as u32;
        let full = EngineError::ArenaFull { wanted: len, available: self.arena.available() };
        let base = self.arena.allocate(len, now).ok_or(full)?;
        self.kernel.write_ring(base, ring);
        if let Err(error) = self.set_service(key, entry.value(base)) {
            self.arena.cancel(base, len);
            return Err(error);
        }
        if let Some(held) = held {
            self.arena.free(held.ring_base, held.ring_len, now);
        }
        Ok(())
    }

    fn set_service(&mut self, key: Key, service: Service) -> Result<(), EngineError> {
        self.kernel.set_service(key, service)?;
        self.note_service(key, service);
        Ok(())
    }

    fn note_service(&mut self, key: Key, service: Service) {
        let before = self.services.insert(key, service).as_ref().and_then(number_of);
        self.own(Place::Service(key), before, number_of(&service));
    }

    /// Removes a key and, with the last entry of its service, all its backends: its flows end.
    fn remove_service(&mut self, key: Key, now: Instant) -> Result<(), EngineError> {
        let Some(held) = self.services.get(&key).copied() else {
            return Ok(());
        };
        self.kernel.remove_service(key)?;
        self.services.remove(&key);
        self.arena.free(held.ring_base, held.ring_len, now);
        self.own(Place::Service(key), number_of(&held), None);
        Ok(())
    }

    fn put_source(&mut self, origin: Origin, entry: SourceEntry) -> Result<(), EngineError> {
        if self.sources.get(&origin) != Some(&entry) {
            self.kernel.set_source(origin, entry.value)?;
            self.note_source(origin, entry);
        }
        Ok(())
    }

    fn note_source(&mut self, origin: Origin, entry: SourceEntry) {
        let before = self.sources.insert(origin, entry);
        before.iter().for_each(|before| self.forget_source(origin, before));
        self.sources_of.entry(vip_of(&entry)).or_default().insert(origin);
        self.own(Place::Source(origin), before.and_then(|before| before.number), entry.number);
    }

    /// Removes a source and, with the last entry of its service, all its backends: its flows end.
    fn remove_source(&mut self, origin: Origin) -> Result<(), EngineError> {
        let Some(held) = self.sources.get(&origin).copied() else {
            return Ok(());
        };
        self.kernel.remove_source(origin)?;
        self.sources.remove(&origin);
        self.forget_source(origin, &held);
        self.own(Place::Source(origin), held.number, None);
        Ok(())
    }

    fn forget_source(&mut self, origin: Origin, held: &SourceEntry) {
        let vip = vip_of(held);
        if let Some(sources) = self.sources_of.get_mut(&vip) {
            sources.remove(&origin);
            if sources.is_empty() {
                self.sources_of.remove(&vip);
            }
        }
    }

    fn remove_place(&mut self, place: Place, now: Instant) -> Result<(), EngineError> {
        match place {
            Place::Service(key) => self.remove_service(key, now),
            Place::Source(origin) => self.remove_source(origin),
        }
    }

    /// An entry is another service's than before; with the last one of a service, its backends go.
    fn own(&mut self, place: Place, before: Option<u32>, service: Option<u32>) {
        if let Some(number) = service {
            self.owners.entry(number).or_default().insert(place);
        }
        let Some(left) = before.filter(|_| before != service) else { return };
        let Some(places) = self.owners.get_mut(&left) else { return };
        places.remove(&place);
        if places.is_empty() {
            self.owners.remove(&left);
            for number in self.members.remove(&left).unwrap_or_default() {
                self.free_backend(number);
            }
        }
    }

    /// Takes a backend from its service, as well as can be done without knowing that service's state, which its own VIP's
    /// apply, which must be under way, makes exact: out of a listener's ring, while what has one backend goes with it.
    fn leave(&mut self, service: u32, number: u32, now: Instant) -> Result<(), EngineError> {
        for place in self.owners.get(&service).cloned().unwrap_or_default() {
            let listener = match place {
                Place::Service(key) => self.services.get(&key).filter(|held| held.kind == Kind::Balance as u8),
                Place::Source(_) => None,
            };
            match (place, listener.copied()) {
                (Place::Service(key), Some(held)) => self.leave_ring(key, held, number, now)?,
                _ => self.remove_place(place, now)?,
            }
        }
        Ok(())
    }

    fn leave_ring(&mut self, key: Key, held: Service, number: u32, now: Instant) -> Result<(), EngineError> {
        let mut ring = self.kernel.ring(held.ring_base, held.ring_len);
        ring.retain(|member| Member(*member).number() != number);
        if ring.len() == held.ring_len as usize {
            return Ok(());
        }
        let len = ring.len() as u32;
        let full = EngineError::ArenaFull { wanted: len, available: self.arena.available() };
        let base = self.arena.allocate(len, now).ok_or(full)?;
        self.kernel.write_ring(base, &ring);
        self.set_service(key, Service { ring_base: base, ring_len: len, ..held })?;
        self.arena.free(held.ring_base, held.ring_len, now);
        Ok(())
    }

    fn forget_member(&mut self, listener: u32, number: u32) {
        if let Some(members) = self.members.get_mut(&listener) {
            members.remove(&number);
            if members.is_empty() {
                self.members.remove(&listener);
            }
        }
    }
}

/// The number of a service that has backends.
fn number_of(service: &Service) -> Option<u32> {
    (service.kind != Kind::Disabled as u8 && service.kind != Kind::Closed as u8).then_some(service.number)
}

/// A VIP's port as the limits' table names it.
fn port_of(vip: Ipv4Addr, port: u16) -> MeterPort {
    MeterPort { vip: u32::from(vip).to_be(), port: port.to_be(), reserved: 0 }
}

/// The VIP whose entry it is.
fn vip_of(entry: &SourceEntry) -> Ipv4Addr {
    u32::from_be(entry.value.vip).into()
}

impl KernelTables for loader::Tables {
    fn services(&self) -> Result<Vec<(Key, Service)>, TableError> {
        let services = self.services()?;
        Ok(services.into_iter().map(|(data, prefix_len, service)| (Key { data, prefix_len }, service)).collect())
    }

    fn set_service(&mut self, key: Key, service: Service) -> Result<(), TableError> {
        self.set_service(key.data, key.prefix_len, service)
    }

    fn remove_service(&mut self, key: Key) -> Result<(), TableError> {
        self.remove_service(key.data, key.prefix_len)
    }

    fn sources(&self) -> Result<Vec<(Origin, SnatRule)>, TableError> {
        let sources = self.sources()?;
        Ok(sources.into_iter().map(|(data, prefix_len, source)| (Origin { data, prefix_len }, source)).collect())
    }

    fn set_source(&mut self, origin: Origin, source: SnatRule) -> Result<(), TableError> {
        self.set_source(origin.data, origin.prefix_len, source)
    }

    fn remove_source(&mut self, origin: Origin) -> Result<(), TableError> {
        self.remove_source(origin.data, origin.prefix_len)
    }

    fn backend_count(&self) -> u32 {
        self.backends().len()
    }

    fn backend(&self, number: u32) -> Backend {
        self.backends().read(number).unwrap_or_default()
    }

    fn set_backend(&mut self, number: u32, backend: Backend) {
        self.set_backend(number, backend);
    }

    fn reset_traffic(&mut self, number: u32) -> Result<(), TableError> {
        self.reset_traffic(number)
    }

    fn meters(&self) -> Vec<(u32, Meter)> {
        let numbers = 0..self.meters().len();
        let meters = numbers.filter_map(|number| Some((number, self.meters().read(number)?)));
        meters.filter(|(_, meter)| *meter != Meter::default()).collect()
    }

    fn set_meter(&mut self, number: u32, meter: Meter) {
        self.meters().write(number, meter);
    }

    fn reset_metered(&mut self, number: u32) -> Result<(), TableError> {
        self.reset_metered(number)
    }

    fn port_meters(&self) -> Result<Vec<(MeterPort, u32)>, TableError> {
        self.port_meters()
    }

    fn set_port_meter(&mut self, port: MeterPort, number: u32) -> Result<(), TableError> {
        self.set_port_meter(port, number)
    }

    fn remove_port_meter(&mut self, port: MeterPort) -> Result<(), TableError> {
        self.remove_port_meter(port)
    }

    fn ring_elements(&self) -> u32 {
        self.rings().len()
    }

    fn ring(&self, base: u32, len: u32) -> Vec<u32> {
        (base..base.saturating_add(len)).map_while(|at| self.rings().read(at)).collect()
    }

    fn write_ring(&mut self, base: u32, ring: &[u32]) {
        for (at, number) in (base..).zip(ring) {
            self.rings().write(at, *number);
        }
    }
}

#[cfg(test)]
mod tests;
