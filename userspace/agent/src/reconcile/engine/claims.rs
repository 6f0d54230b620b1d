//! Numbers that one VIP has taken over from another, and what becomes of a service that has lost its last entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use vipgate_abi::service::{Kind, Member, Service};

use super::{
    Engine, EngineError,
    entries::{Entry, vip_of},
    kernel_tables::KernelTables,
};
use crate::reconcile::compile::{ServiceEntry, ServicePrefix, SnatPrefix, Tables};

impl<K: KernelTables> Engine<K> {
    /// Takes the numbers of `tables` from other entries and services that still hold them. Numbers are unique in the store: the
    /// other's use of the number is over, although its own VIP has not been applied yet.
    pub(super) fn settle_claims(&mut self, tables: &Tables, now: Instant) -> Result<(), EngineError> {
        let services = tables.services.values().filter_map(ServiceEntry::number);
        let snat_rules: BTreeMap<u32, SnatPrefix> =
            tables.snat_rules.iter().filter_map(|(prefix, entry)| Some((entry.number?, *prefix))).collect();
        for number in services.chain(snat_rules.keys().copied()).collect::<BTreeSet<_>>() {
            let is_its = |entry: &Entry| match entry {
                Entry::Service(key) => tables.services.get(key).and_then(ServiceEntry::number) == Some(number),
                // The same guests by another device: their flows go on.
                Entry::Snat(prefix) => {
                    let same_vip = self.snat_rules.get(prefix).is_some_and(|held| vip_of(held) == tables.vip);
                    same_vip && snat_rules.get(&number).is_some_and(|its| its.same_guests(prefix))
                }
            };
            let others: Vec<Entry> =
                self.owners.get(&number).into_iter().flatten().filter(|entry| !is_its(entry)).copied().collect();
            for entry in others {
                self.remove_entry(entry, now)?;
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

    /// Notes that an entry belongs to another service than before. With the last entry of a service, its backends go.
    pub(super) fn own(&mut self, entry: Entry, before: Option<u32>, service: Option<u32>) {
        if let Some(number) = service {
            self.owners.entry(number).or_default().insert(entry);
        }
        let Some(left) = before.filter(|_| before != service) else { return };
        let Some(entries) = self.owners.get_mut(&left) else { return };
        entries.remove(&entry);
        if entries.is_empty() {
            self.owners.remove(&left);
            for number in self.members.remove(&left).unwrap_or_default() {
                self.free_backend(number);
            }
        }
    }

    /// Takes a backend from its service without knowing that service's state: out of a listener's selection table; an entry that
    /// has this backend alone goes. The next apply of that service's VIP, which must be under way, makes this exact.
    fn leave(&mut self, service: u32, number: u32, now: Instant) -> Result<(), EngineError> {
        for entry in self.owners.get(&service).cloned().unwrap_or_default() {
            let listener = match entry {
                Entry::Service(key) => self.services.get(&key).filter(|held| held.kind == Kind::Balance as u8),
                Entry::Snat(_) => None,
            };
            match (entry, listener.copied()) {
                (Entry::Service(key), Some(held)) => self.leave_selection_table(key, held, number, now)?,
                _ => self.remove_entry(entry, now)?,
            }
        }
        Ok(())
    }

    fn leave_selection_table(
        &mut self,
        key: ServicePrefix,
        held: Service,
        number: u32,
        now: Instant,
    ) -> Result<(), EngineError> {
        let mut table = self.kernel.selection_table(held.ring_base, held.ring_len);
        table.retain(|member| Member(*member).number() != number);
        if table.len() == held.ring_len as usize {
            return Ok(());
        }
        let (base, len) = self.place_selection_table(&table, now)?;
        self.set_service(key, Service { ring_base: base, ring_len: len, ..held })?;
        self.arena.free(held.ring_base, held.ring_len, now);
        Ok(())
    }
}
