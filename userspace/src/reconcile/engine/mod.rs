//! Brings the kernel's tables to what VIPs need: diff, then apply in an order that never exposes a half state.
//!
//! Touches the tables through [`KernelTables`] only; addresses, devices and the order among VIPs are the
//! [worker](super::worker)'s.
//!
//! # Order
//! Additions run backends, ring, service key: a packet that meets a key finds its ring written and the ring's backends
//! filled in. Removals run the other way: key, then backends, and the ring's range rests in the
//! [arena](super::arena). A backend that is down leaves its ring before its flows end. A changed ring is a new range that one key update swaps in.
//!
//! # Generations
//! A flow ends when its backend's generation moves on. That happens when a listener or a port-forwarding rule goes (its
//! flows end at once), when a backend is found to be down, and when a number is given to another backend. A backend that
//! only leaves its listener keeps its entry, so that its flows drain.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    time::Instant,
};

use thiserror::Error;
use vipgate_abi::{
    backend::Backend,
    service::{Kind, Member, Service},
};

use super::{
    arena::Arena,
    compile::{Key, ServiceEntry, Tables},
};
use crate::loader::{self, TableError};

/// The tables that the engine writes. The loader's are the kernel's; tests have theirs.
pub(super) trait KernelTables {
    /// Every entry of the services trie.
    fn services(&self) -> Result<Vec<(Key, Service)>, TableError>;
    /// Adds or replaces an entry at once.
    fn set_service(&mut self, key: Key, service: Service) -> Result<(), TableError>;
    /// Removes an entry; one that is not there is no error.
    fn remove_service(&mut self, key: Key) -> Result<(), TableError>;

    /// Number of elements of BACKENDS.
    fn backend_count(&self) -> u32;
    /// One element, all zero beyond the end.
    fn backend(&self, number: u32) -> Backend;
    /// Writes one element, below `backend_count`; its generation, address and port change together.
    fn set_backend(&mut self, number: u32, backend: Backend);
    /// Zeroes what was counted for a number before.
    fn reset_traffic(&mut self, number: u32) -> Result<(), TableError>;

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

/// The tables and what is known of them. Only the engine writes them, so what it knows is what they hold.
#[derive(Debug)]
pub(super) struct Engine<K> {
    kernel: K,
    arena: Arena,
    /// The services trie.
    services: BTreeMap<Key, Service>,
    /// Which keys have a service number: a listener's one, or those of a rule's range.
    owners: HashMap<u32, BTreeSet<Key>>,
    /// The backend numbers whose entries name a service number, draining ones included.
    members: HashMap<u32, BTreeSet<u32>>,
    /// Generations moved on since the last [`Engine::take_ended`].
    ended: bool,
}

impl<K: KernelTables> Engine<K> {
    /// Learns what the kernel holds.
    pub(super) fn new(kernel: K) -> Result<Self, EngineError> {
        let mut arena = Arena::new(kernel.ring_elements());
        let mut services = BTreeMap::new();
        let mut owners: HashMap<u32, BTreeSet<Key>> = HashMap::new();
        for (key, mut service) in kernel.services()? {
            if !arena.reserve(service.ring_base, service.ring_len) {
                // Two rings overlap or one lies outside: a table that was written by something else. Known without its
                // ring, it is written anew.
                service.ring_len = 0;
            }
            if let Some(number) = number_of(&service) {
                owners.entry(number).or_default().insert(key);
            }
            services.insert(key, service);
        }
        let mut members: HashMap<u32, BTreeSet<u32>> = HashMap::new();
        for number in 0..kernel.backend_count() {
            let backend = kernel.backend(number);
            if backend.addr != 0 {
                members.entry(backend.service).or_default().insert(number);
            }
        }
        Ok(Self { kernel, arena, services, owners, members, ended: false })
    }

    /// Every VIP that has an entry.
    pub(super) fn vips(&self) -> BTreeSet<Ipv4Addr> {
        self.services.keys().map(Key::vip).collect()
    }

    /// Whether flows ended since this was last asked: the sweeper should clear them away.
    pub(super) fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }

    /// Removes all that a VIP has; its flows end.
    pub(super) fn remove(&mut self, vip: Ipv4Addr, now: Instant) -> Result<(), EngineError> {
        self.apply(&Tables { vip, services: BTreeMap::new(), backends: BTreeMap::new() }, now)
    }

    /// Brings one VIP's entries to `tables`. After an error a part may be done; applying again does the rest.
    pub(super) fn apply(&mut self, tables: &Tables, now: Instant) -> Result<(), EngineError> {
        self.settle_claims(tables, now)?;
        let (down, up): (Vec<_>, Vec<_>) = tables.backends.iter().partition(|(_, backend)| backend.is_down());
        for (number, backend) in up {
            self.put_backend(*number, *backend)?;
        }
        for (key, entry) in &tables.services {
            self.put_service(*key, entry, now)?;
        }
        // No ring leads to them any more: what ends now does not begin anew there.
        for (number, backend) in down {
            self.put_backend(*number, *backend)?;
        }
        self.drop_left(tables);
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
        Ok(())
    }

    /// Numbers are unique in the store, so who wants one that another has says that the other's use is over, though
    /// its own VIP was not applied yet.
    fn settle_claims(&mut self, tables: &Tables, now: Instant) -> Result<(), EngineError> {
        for number in tables.services.values().filter_map(ServiceEntry::number).collect::<BTreeSet<_>>() {
            let is_its = |key: &Key| tables.services.get(key).and_then(ServiceEntry::number) == Some(number);
            let others: Vec<Key> =
                self.owners.get(&number).into_iter().flatten().filter(|key| !is_its(key)).copied().collect();
            for key in others {
                self.remove_service(key, now)?;
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
    /// none: their entries go.
    fn drop_left(&mut self, tables: &Tables) {
        for entry in tables.services.values() {
            let Some(service) = entry.number() else { continue };
            let drains = matches!(entry, ServiceEntry::Balance { .. });
            let members = self.members.get(&service).into_iter().flatten().copied();
            let left: Vec<u32> = members
                .filter(|number| !tables.backends.contains_key(number))
                .filter(|number| !drains || self.kernel.backend(*number).is_down())
                .collect();
            for number in left {
                self.free_backend(number);
                self.forget_member(service, number);
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
        if let Some(before) = self.services.insert(key, service).as_ref().and_then(number_of)
            && number_of(&service) != Some(before)
        {
            self.disown(before, key);
        }
        if let Some(number) = number_of(&service) {
            self.owners.entry(number).or_default().insert(key);
        }
        Ok(())
    }

    /// Removes a key and, with the last one of its service, all its backends: its flows end.
    fn remove_service(&mut self, key: Key, now: Instant) -> Result<(), EngineError> {
        let Some(held) = self.services.get(&key).copied() else {
            return Ok(());
        };
        self.kernel.remove_service(key)?;
        self.services.remove(&key);
        self.arena.free(held.ring_base, held.ring_len, now);
        if let Some(service) = number_of(&held) {
            self.disown(service, key);
        }
        Ok(())
    }

    /// A key is no longer the service's; with the last one, its backends go.
    fn disown(&mut self, service: u32, key: Key) {
        let Some(keys) = self.owners.get_mut(&service) else { return };
        keys.remove(&key);
        if keys.is_empty() {
            self.owners.remove(&service);
            for number in self.members.remove(&service).unwrap_or_default() {
                self.free_backend(number);
            }
        }
    }

    /// Takes a backend from its service, as well as can be done without knowing that service's state, which its own VIP's
    /// apply, which must be under way, makes exact: out of a listener's ring, while a rule goes with it.
    fn leave(&mut self, service: u32, number: u32, now: Instant) -> Result<(), EngineError> {
        for key in self.owners.get(&service).cloned().unwrap_or_default() {
            match self.services.get(&key).copied() {
                Some(held) if held.kind == Kind::Forward as u8 => self.remove_service(key, now)?,
                Some(held) => self.leave_ring(key, held, number, now)?,
                None => {}
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
    (service.kind != Kind::Disabled as u8).then_some(service.number)
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
