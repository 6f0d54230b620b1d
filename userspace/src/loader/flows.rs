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
    load: Mapping<u32>,
}

impl FlowTable {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self {
            buckets: mapping(dir, maps::FLOW_BUCKETS)?,
            flows: mapping(dir, maps::FLOWS)?,
            backends: mapping(dir, maps::BACKENDS)?,
            load: mapping(dir, maps::BACKEND_LOAD)?,
        })
    }

    /// An empty table that belongs to no kernel.
    #[cfg(test)]
    pub(crate) fn in_memory(buckets: u32, backends: u32) -> Self {
        Self {
            buckets: Mapping::anonymous(buckets),
            flows: Mapping::anonymous(buckets * WAYS as u32),
            backends: Mapping::anonymous(backends),
            load: Mapping::anonymous(backends),
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

    /// Live connections that are counted for a backend.
    pub fn load(&self, number: u32) -> u32 {
        self.load.cell(number).map_or(0, |load| load.load(Ordering::Relaxed))
    }

    /// Empties a slot if its word still is `seen` (rule 4), and takes the flow that was in it off its backend's load
    /// when it was the one that counts (rule 5). False: the slot changed in between and was left alone.
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
            self.unload(flow.backend, 1);
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

    /// Takes connections off a backend's load, never below 0.
    pub fn unload(&self, number: u32, connections: u32) {
        if let Some(load) = self.load.cell(number) {
            load.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |load| Some(load.saturating_sub(connections))).ok();
        }
    }

    /// Adds connections to a backend's load.
    pub fn add_load(&self, number: u32, connections: u32) {
        if let Some(load) = self.load.cell(number) {
            load.fetch_add(connections, Ordering::Relaxed);
        }
    }

    fn slot(&self, slot: u32) -> Option<&AtomicU64> {
        self.buckets.words(slot / WAYS as u32)?.get(slot as usize % WAYS)
    }
}
