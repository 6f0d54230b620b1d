//! The flow table through its mappings, for the sweeper: see the race rules in `vipgate_abi::flow`.

use std::sync::atomic::{AtomicU64, Ordering};

use vipgate_abi::{
    backend::Backend,
    flow::{Bucket, Flow, Mark, State, WAYS, Word},
    maps,
};

use super::{bpffs::PinDir, error::LoadError, mapping::Mapping, tables::mapping};

/// Buckets, flows, and what is known of their backends.
#[derive(Debug)]
pub struct FlowTable {
    buckets: Mapping<Bucket>,
    flows: Mapping<Flow>,
    backends: Mapping<Backend>,
    backend_loads: Loads,
    service_loads: Loads,
}

/// Live connections, by number of backend or service.
#[derive(Debug)]
pub struct Loads(Mapping<u32>);

impl Loads {
    /// How many numbers there are.
    pub fn count(&self) -> u32 {
        self.0.len()
    }

    /// Connections that are counted for a number.
    pub fn get(&self, number: u32) -> u32 {
        self.0.cell(number).map_or(0, |load| load.load(Ordering::Relaxed))
    }

    /// Takes connections off, never below 0.
    pub fn take(&self, number: u32, connections: u32) {
        if let Some(load) = self.0.cell(number) {
            load.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |load| Some(load.saturating_sub(connections))).ok();
        }
    }

    /// Adds connections; what a program took off below 0 comes back.
    pub fn add(&self, number: u32, connections: u32) {
        if let Some(load) = self.0.cell(number) {
            load.fetch_add(connections, Ordering::Relaxed);
        }
    }
}

impl FlowTable {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self {
            buckets: mapping(dir, maps::FLOW_BUCKETS)?,
            flows: mapping(dir, maps::FLOWS)?,
            backends: mapping(dir, maps::BACKENDS)?,
            backend_loads: Loads(mapping(dir, maps::BACKEND_LOAD)?),
            service_loads: Loads(mapping(dir, maps::SERVICE_LOAD)?),
        })
    }

    /// An empty table that belongs to no kernel.
    #[cfg(test)]
    pub(crate) fn in_memory(buckets: u32, backends: u32) -> Self {
        Self {
            buckets: Mapping::anonymous(buckets),
            flows: Mapping::anonymous(buckets * WAYS as u32),
            backends: Mapping::anonymous(backends),
            backend_loads: Loads(Mapping::anonymous(backends)),
            service_loads: Loads(Mapping::anonymous(backends)),
        }
    }

    /// Writes a flow's slot, as a program does.
    #[cfg(test)]
    pub(crate) fn put(&self, slot: u32, word: Word, flow: Flow) {
        self.flows.write(slot, Flow { mark: Mark::of(word, flow.mark.flags()), ..flow });
        self.slot(slot).expect("a slot").store(word.0, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn put_backend(&self, number: u32, backend: Backend) {
        self.backends.write(number, backend);
    }

    /// Number of buckets.
    pub fn buckets(&self) -> u32 {
        self.buckets.len()
    }

    /// Number of backend numbers.
    pub fn backend_count(&self) -> u32 {
        self.backends.len()
    }

    /// The slot words of a bucket; none beyond the end.
    pub fn words(&self, bucket: u32) -> &[AtomicU64] {
        self.buckets.words(bucket).unwrap_or_default()
    }

    /// The word of one slot.
    pub fn word(&self, slot: u32) -> Option<Word> {
        Some(Word(self.slot(slot)?.load(Ordering::Acquire)))
    }

    /// The flow in a slot; of use only while the slot's word stays the same.
    pub fn flow(&self, slot: u32) -> Option<Flow> {
        self.flows.read(slot)
    }

    pub fn backend(&self, number: u32) -> Option<Backend> {
        self.backends.read(number)
    }

    /// Live connections of the backends.
    pub fn backend_loads(&self) -> &Loads {
        &self.backend_loads
    }

    /// Live connections of the services.
    pub fn service_loads(&self) -> &Loads {
        &self.service_loads
    }

    /// Empties a slot if its word still is `seen` (rule 4), and takes the flow that was in it off its backend's and
    /// service's load when it was the one that counts (rule 5). False: the slot changed in between and was left alone.
    pub fn empty(&self, slot: u32, seen: Word, flow: &Flow) -> bool {
        let Some(word) = self.slot(slot) else {
            return false;
        };
        let empty = seen.with_state(State::Empty).0;
        if word.compare_exchange(seen.0, empty, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.mirror(slot);
        if !flow.mark.is_reply() && seen.state().is_live() {
            self.backend_loads.take(flow.backend, 1);
            if let Some(backend) = self.backend(flow.backend).filter(|_| seen.state().is_admitted()) {
                self.service_loads.take(backend.service, 1);
            }
        }
        true
    }

    /// Brings a flow's mark to its slot's word (rule 4).
    fn mirror(&self, slot: u32) {
        let (Some(word), Some(mark)) = (self.slot(slot), self.flows.mark(slot)) else {
            return;
        };
        // Ends: once nothing changes the mark in between, the swap succeeds.
        let follow = |mark| Mark(mark).following(Word(word.load(Ordering::Acquire))).map(|new| new.0);
        mark.fetch_update(Ordering::AcqRel, Ordering::Acquire, follow).ok();
    }

    fn slot(&self, slot: u32) -> Option<&AtomicU64> {
        self.buckets.words(slot / WAYS as u32)?.get(slot as usize % WAYS)
    }
}
