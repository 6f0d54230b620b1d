//! The entries that lead packets to backends: services with their selection tables, and SNAT rules.

use std::{net::Ipv4Addr, time::Instant};

use vipgate_abi::service::{Kind, Service};

use super::{Engine, EngineError, kernel_tables::KernelTables};
use crate::reconcile::compile::{ServiceEntry, ServicePrefix, SnatEntry, SnatPrefix};

/// An entry that leads packets to a service's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    Service(ServicePrefix),
    Snat(SnatPrefix),
}

impl<K: KernelTables> Engine<K> {
    pub(super) fn put_service(
        &mut self,
        key: ServicePrefix,
        entry: &ServiceEntry,
        now: Instant,
    ) -> Result<(), EngineError> {
        let table = entry.selection_table();
        let held = self.services.get(&key).copied();
        if let Some(held) = held
            && held.ring_len as usize == table.len()
            && self.kernel.selection_table(held.ring_base, held.ring_len) == table
        {
            let wanted = entry.value(held.ring_base);
            if wanted != held {
                self.set_service(key, wanted)?;
            }
            return Ok(());
        }
        let (base, len) = self.place_selection_table(table, now)?;
        if let Err(error) = self.set_service(key, entry.value(base)) {
            self.arena.cancel(base, len);
            return Err(error);
        }
        if let Some(held) = held {
            self.arena.free(held.ring_base, held.ring_len, now);
        }
        Ok(())
    }

    /// Writes a selection table into a free range of the arena; returns its base and length.
    pub(super) fn place_selection_table(&mut self, table: &[u32], now: Instant) -> Result<(u32, u32), EngineError> {
        let len = table.len() as u32;
        let full = EngineError::ArenaFull { wanted: len, available: self.arena.available() };
        let base = self.arena.allocate(len, now).ok_or(full)?;
        self.kernel.write_selection_table(base, table);
        Ok((base, len))
    }

    pub(super) fn set_service(&mut self, key: ServicePrefix, service: Service) -> Result<(), EngineError> {
        self.kernel.set_service(key, service)?;
        self.note_service(key, service);
        Ok(())
    }

    pub(super) fn note_service(&mut self, key: ServicePrefix, service: Service) {
        let before = self.services.insert(key, service).as_ref().and_then(number_of);
        self.own(Entry::Service(key), before, number_of(&service));
    }

    /// Removes a service key and, with the last entry of its service, all its backends: their flows end.
    pub(super) fn remove_service(&mut self, key: ServicePrefix, now: Instant) -> Result<(), EngineError> {
        let Some(held) = self.services.get(&key).copied() else {
            return Ok(());
        };
        self.kernel.remove_service(key)?;
        self.services.remove(&key);
        self.arena.free(held.ring_base, held.ring_len, now);
        self.own(Entry::Service(key), number_of(&held), None);
        Ok(())
    }

    pub(super) fn put_snat_rule(&mut self, prefix: SnatPrefix, entry: SnatEntry) -> Result<(), EngineError> {
        if self.snat_rules.get(&prefix) != Some(&entry) {
            self.kernel.set_snat_rule(prefix, entry.value)?;
            self.note_snat_rule(prefix, entry);
        }
        Ok(())
    }

    pub(super) fn note_snat_rule(&mut self, prefix: SnatPrefix, entry: SnatEntry) {
        let before = self.snat_rules.insert(prefix, entry);
        before.iter().for_each(|before| self.forget_snat_rule(prefix, before));
        self.snat_rules_of.entry(vip_of(&entry)).or_default().insert(prefix);
        self.own(Entry::Snat(prefix), before.and_then(|before| before.number), entry.number);
    }

    /// Removes an SNAT rule and, with the last entry of its service, all its backends: their flows end.
    pub(super) fn remove_snat_rule(&mut self, prefix: SnatPrefix) -> Result<(), EngineError> {
        let Some(held) = self.snat_rules.get(&prefix).copied() else {
            return Ok(());
        };
        self.kernel.remove_snat_rule(prefix)?;
        self.snat_rules.remove(&prefix);
        self.forget_snat_rule(prefix, &held);
        self.own(Entry::Snat(prefix), held.number, None);
        Ok(())
    }

    fn forget_snat_rule(&mut self, prefix: SnatPrefix, held: &SnatEntry) {
        let vip = vip_of(held);
        if let Some(rules) = self.snat_rules_of.get_mut(&vip) {
            rules.remove(&prefix);
            if rules.is_empty() {
                self.snat_rules_of.remove(&vip);
            }
        }
    }

    pub(super) fn remove_entry(&mut self, entry: Entry, now: Instant) -> Result<(), EngineError> {
        match entry {
            Entry::Service(key) => self.remove_service(key, now),
            Entry::Snat(prefix) => self.remove_snat_rule(prefix),
        }
    }
}

/// The number of a service that has backends.
fn number_of(service: &Service) -> Option<u32> {
    (service.kind != Kind::Disabled as u8 && service.kind != Kind::Closed as u8).then_some(service.number)
}

/// The VIP whose entry it is.
pub(super) fn vip_of(entry: &SnatEntry) -> Ipv4Addr {
    u32::from_be(entry.value.vip).into()
}
