//! How many connections backends and services have, through mappings of their tables.

use std::sync::atomic::{AtomicU64, Ordering};

use vipgate_abi::{load::Load, maps};

use super::{bpffs::PinDir, error::LoadError, mapping::Mapping, tables::mapping};

/// Connections by number of backend (`vipgate_abi::load`).
#[derive(Debug)]
pub struct BackendLoads(Mapping<Load>);

impl BackendLoads {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self(mapping(dir, maps::BACKEND_LOAD)?))
    }

    /// How many numbers there are.
    pub fn count(&self) -> u32 {
        self.0.len()
    }

    /// What is counted for a number.
    pub fn get(&self, number: u32) -> Load {
        self.0.read(number).unwrap_or_default()
    }

    /// Begins a generation, before the programs know of it. Drops what the generation before has counted, for the backend and for
    /// its `service`.
    pub fn begin(&self, number: u32, generation: u16, services: &ServiceLoads, service: u32) {
        if let Some(word) = self.word(number) {
            let ended = Load(word.swap(Load::of(generation).0, Ordering::AcqRel));
            services.take(service, ended.admitted());
        }
    }

    /// Adds a change, as [`Load::by`] or [`Load::change`] returns it, of flows of this generation. `false` if the backend is at
    /// another generation.
    pub fn add(&self, number: u32, generation: u16, change: u64) -> bool {
        self.word(number).is_some_and(|word| {
            let add = |load| Load(load).counts(generation).then_some(load.wrapping_add(change));
            word.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
        })
    }

    /// Adds to what has drifted, whatever the generation.
    pub fn correct(&self, number: u32, live: i64, admitted: i64) {
        if let Some(word) = self.word(number) {
            word.fetch_add(Load::by(live, admitted), Ordering::Relaxed);
        }
    }

    /// Begins with what another table has counted for a number.
    pub(super) fn copy(&self, number: u32, load: Load) {
        self.0.write(number, load);
    }

    /// Adds what another table has counted since it had `before`, to the same generation.
    pub(super) fn add_grown(&self, number: u32, before: Load, now: Load) {
        if let Some(word) = self.word(number).filter(|_| before.generation() == now.generation()) {
            // Modulo 2^64: it may have shrunk.
            word.fetch_add(now.0.wrapping_sub(before.0), Ordering::Relaxed);
        }
    }

    /// The words by number.
    pub(super) fn all(&self) -> Vec<Load> {
        (0..self.count()).map(|number| self.get(number)).collect()
    }

    #[cfg(test)]
    pub(super) fn in_memory(count: u32) -> Self {
        Self(Mapping::anonymous(count))
    }

    fn word(&self, number: u32) -> Option<&AtomicU64> {
        self.0.words(number)?.first()
    }
}

/// Connections that services admitted, by number of service.
#[derive(Debug)]
pub struct ServiceLoads(Mapping<u32>);

impl ServiceLoads {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self(mapping(dir, maps::SERVICE_LOAD)?))
    }

    /// How many numbers there are.
    pub fn count(&self) -> u32 {
        self.0.len()
    }

    /// Connections that are counted for a number.
    pub fn get(&self, number: u32) -> u32 {
        self.0.cell(number).map_or(0, |load| load.load(Ordering::Relaxed))
    }

    /// Connections by number.
    pub(super) fn all(&self) -> Vec<u32> {
        (0..self.count()).map(|number| self.get(number)).collect()
    }

    /// Takes connections off, never below 0.
    pub fn take(&self, number: u32, connections: u32) {
        if let Some(load) = self.0.cell(number) {
            load.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |load| Some(load.saturating_sub(connections))).ok();
        }
    }

    #[cfg(test)]
    pub(super) fn in_memory(count: u32) -> Self {
        Self(Mapping::anonymous(count))
    }

    /// Adds connections; what a program took off below 0 comes back.
    pub fn add(&self, number: u32, connections: u32) {
        if let Some(load) = self.0.cell(number) {
            load.fetch_add(connections, Ordering::Relaxed);
        }
    }
}
