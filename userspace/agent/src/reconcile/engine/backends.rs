//! Backends: their elements of the table, their generations, and the services that they belong to.

use vipgate_abi::backend::Backend;

use super::{Engine, EngineError, kernel_tables::KernelTables};
use crate::reconcile::compile::{ServiceEntry, Tables};

impl<K: KernelTables> Engine<K> {
    pub(super) fn put_backend(&mut self, number: u32, wanted: Backend) -> Result<(), EngineError> {
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
    /// none: their entries go. Those of backends that drain say so, and are bound to their listener's limit as the others are.
    pub(super) fn drop_left(&mut self, tables: &Tables) {
        let services = tables.services.values();
        let services = services.map(|entry| (entry.number(), matches!(entry, ServiceEntry::Balance { .. })));
        let snat_rules = tables.snat_rules.values().map(|entry| (entry.number, false));
        for (service, drains) in services.chain(snat_rules) {
            let Some(service) = service else { continue };
            let members = self.members.get(&service).into_iter().flatten().copied();
            let left: Vec<u32> = members.filter(|number| !tables.backends.contains_key(number)).collect();
            let binding = tables.bindings.get(&service).copied().unwrap_or_default();
            for number in left {
                let held = self.kernel.backend(number);
                let draining = Backend { meter: binding, drains: 1, ..held };
                if !drains || held.is_down() {
                    self.free_backend(number);
                    self.forget_member(service, number);
                } else if held != draining {
                    self.kernel.set_backend(number, draining);
                }
            }
        }
    }

    pub(super) fn free_backend(&mut self, number: u32) {
        self.ended = true;
        let generation = self.kernel.backend(number).generation.wrapping_add(1);
        self.kernel.set_backend(number, Backend { generation, ..Backend::default() });
    }

    pub(super) fn forget_member(&mut self, listener: u32, number: u32) {
        if let Some(members) = self.members.get_mut(&listener) {
            members.remove(&number);
            if members.is_empty() {
                self.members.remove(&listener);
            }
        }
    }
}
