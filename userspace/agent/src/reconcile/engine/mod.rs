//! Brings the kernel's tables to what VIPs need: diff, then apply in an order that never exposes a half state.
//!
//! The engine owns what is known of the tables' content: services and SNAT rules with their selection tables ([`entries`]), the
//! backends behind them ([`backends`]), which service has which number ([`claims`]), and [`meters`]. It touches the tables through
//! [`KernelTables`] only; addresses, devices and the order among VIPs are the [worker](super::worker)'s.
//!
//! # Order
//! Additions run meter, limited port, backends, selection table, service key, SNAT rule: a packet that meets a key finds its
//! selection table written, the table's backends filled in, and the meters that those are bound to. Removals run the other way:
//! SNAT rule, key, then backends, limited port, meter; the selection table's range rests in the [arena](super::arena). The
//! [worker](super::worker) makes a meter's queues before and removes them after. A backend that is down leaves its selection table
//! before its flows end. A changed selection table is a new range that one key update swaps in.
//!
//! # Generations
//! A flow ends when its backend's generation moves on. That happens when a listener, a port-forwarding rule, an elastic IP
//! or a network's source NAT goes (its flows end at once), when a backend is found to be down, and when a number is given to
//! another backend. A backend that only leaves its listener keeps its entry, so that its flows drain.
//!
//! A meter has no generation: a limit that comes, changes or goes ends no flow, and applies to existing flows at once.
//!
//! # Which VIP an entry belongs to
//! A service key names its VIP, so it belongs to that VIP for ever. The key of an SNAT rule does not: of several elastic IPs of
//! one guest another one may come to lead. Such an entry belongs to the VIP that its value names, which wrote it last. A meter
//! names no VIP: it belongs to the VIP that applied it last, and a meter that no VIP has applied after all were is left over.

mod backends;
mod claims;
mod entries;
mod kernel_tables;
mod meters;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    time::Instant,
};

use thiserror::Error;
use vipgate_abi::{service::Service, snat::SnatKind};

use self::{entries::Entry, kernel_tables::KernelTables, meters::Meters};
use super::{
    arena::Arena,
    compile::{ServicePrefix, SnatEntry, SnatPrefix, Tables},
};
use crate::loader::TableError;

/// Why a VIP's entries could not be brought to the kernel.
#[derive(Debug, Error)]
pub(super) enum EngineError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(
        "no room for a selection table of {wanted} elements, {available} are free in pieces or about to be; \
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
    services: BTreeMap<ServicePrefix, Service>,
    /// The trie of SNAT rules.
    snat_rules: BTreeMap<SnatPrefix, SnatEntry>,
    /// The SNAT rules of each VIP, by the VIP that their values name.
    snat_rules_of: HashMap<Ipv4Addr, BTreeSet<SnatPrefix>>,
    /// The entries of each service number: a listener's one key, the keys of a port-forwarding rule's range, an elastic IP's key and
    /// SNAT rule, the SNAT rule of a network.
    owners: HashMap<u32, BTreeSet<Entry>>,
    /// The backend numbers whose entries name a service number, draining ones included.
    members: HashMap<u32, BTreeSet<u32>>,
    meters: Meters,
    /// Generations moved on since the last [`Engine::take_ended`].
    ended: bool,
}

impl<K: KernelTables> Engine<K> {
    /// Learns what the kernel holds.
    pub(super) fn new(kernel: K) -> Result<Self, EngineError> {
        let mut engine = Self {
            arena: Arena::new(kernel.selection_elements()),
            services: BTreeMap::new(),
            snat_rules: BTreeMap::new(),
            snat_rules_of: HashMap::new(),
            owners: HashMap::new(),
            members: HashMap::new(),
            meters: Meters::read(&kernel)?,
            ended: false,
            kernel,
        };
        for (key, mut service) in engine.kernel.services()? {
            if !engine.arena.reserve(service.ring_base, service.ring_len) {
                // Two selection tables overlap, or one lies outside: something else wrote them. Known without its table,
                // the service is written anew.
                service.ring_len = 0;
            }
            engine.note_service(key, service);
        }
        for (prefix, value) in engine.kernel.snat_rules()? {
            let backend = engine.kernel.backend(value.backend);
            let led = value.kind != SnatKind::Disabled as u8 && backend.addr != 0;
            let number = led.then_some(backend.service);
            engine.note_snat_rule(prefix, SnatEntry { number, value });
        }
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
        self.services.keys().map(ServicePrefix::vip).chain(self.snat_rules_of.keys().copied()).collect()
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
        self.meters.put(&mut self.kernel, tables)?;
        let (down, up): (Vec<_>, Vec<_>) = tables.backends.iter().partition(|(_, backend)| backend.is_down());
        for (number, backend) in up {
            self.put_backend(*number, *backend)?;
        }
        for (key, entry) in &tables.services {
            self.put_service(*key, entry, now)?;
        }
        for (prefix, entry) in &tables.snat_rules {
            self.put_snat_rule(*prefix, *entry)?;
        }
        // No selection table names them any more: a connection that ends now does not come back to them.
        for (number, backend) in down {
            self.put_backend(*number, *backend)?;
        }
        self.drop_left(tables);
        self.remove_stale(tables, now)?;
        self.meters.remove_others(&mut self.kernel, tables)?;
        Ok(())
    }

    /// Removes the entries that a VIP has in the kernel and no longer in `tables`.
    fn remove_stale(&mut self, tables: &Tables, now: Instant) -> Result<(), EngineError> {
        let held = self.snat_rules_of.get(&tables.vip).into_iter().flatten().copied();
        let stale: Vec<SnatPrefix> = held.filter(|prefix| !tables.snat_rules.contains_key(prefix)).collect();
        for prefix in stale {
            self.remove_snat_rule(prefix)?;
        }
        let first = ServicePrefix::whole(tables.vip);
        let stale: Vec<ServicePrefix> = self
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

    /// Sets the device that has the queues of the meters of a [pair](crate::net::queue::pair_of).
    pub(super) fn set_queue(&mut self, pair: u32, device: Option<u32>) {
        self.meters.set_queue(&mut self.kernel, pair, device);
    }

    /// The numbers of meters that are gone or have other rates since the last call: their queues may no longer be needed.
    pub(super) fn take_freed_meters(&mut self) -> Vec<u32> {
        self.meters.take_freed()
    }

    /// The meters that VIPs have asked for.
    pub(super) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Removes the meters that no VIP has asked for. All VIPs must have been applied.
    pub(super) fn remove_unclaimed_meters(&mut self) {
        self.meters.remove_unclaimed(&mut self.kernel);
    }
}

#[cfg(test)]
mod tests;
