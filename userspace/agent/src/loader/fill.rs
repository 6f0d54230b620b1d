//! How full the flow table is, by a look at all its slot words.

use std::collections::BTreeMap;

use vipgate_abi::{
    counters::Reason,
    flow::{State, WAYS, Word, is_evictable},
};

use super::{TableError, flow_reader::FlowReader, status::Reasons};

/// A moment's picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Flow entries that fit.
    pub capacity: u64,
    /// Flow entries by state; empty slots are left out. A connection has two.
    pub states: BTreeMap<State, u64>,
    /// By number of entries in it that give way to nobody: how many buckets have so many.
    pub buckets: [u64; WAYS + 1],
}

/// The same, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crowding {
    pub fill: Fill,
    /// Packets of new connections that found no room.
    pub refused: u64,
}

impl Crowding {
    pub(super) fn of(table: &FlowReader, reasons: &Reasons) -> Result<Self, TableError> {
        Ok(Self { fill: table.fill(), refused: reasons.count(Reason::TableFull)? })
    }
}

/// Hundredths.
#[must_use]
pub fn percent(part: u64, whole: u64) -> u64 {
    part * 100 / whole.max(1)
}

impl Fill {
    pub(super) fn of(table: &FlowReader) -> Self {
        let (mut states, mut buckets) = ([0u64; 1 << 8], [0u64; WAYS + 1]);
        for bucket in 0..table.buckets() {
            let mut held = 0;
            for word in (0..WAYS).filter_map(|way| table.word(bucket * WAYS as u32 + way as u32)) {
                states[word.state() as usize] += 1;
                held += usize::from(!gives_way(word));
            }
            buckets[held] += 1;
        }
        let states = (0..=u8::MAX).zip(states).filter(|(state, count)| *state != State::Empty as u8 && *count > 0);
        let states = states.map(|(state, count)| (State::from_byte(state), count)).collect();
        Self { capacity: table.capacity(), states, buckets }
    }

    /// Entries that are not empty.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.states.values().sum()
    }

    /// Entries of connections that both sides speak in: a flood of first packets makes none.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.states.iter().filter(|(state, _)| state.is_admitted()).map(|(_, count)| count).sum()
    }

    /// Buckets with no room for a new flow.
    #[must_use]
    pub fn full_buckets(&self) -> u64 {
        self.buckets[WAYS]
    }
}

/// Whether a new flow may have the slot.
fn gives_way(word: Word) -> bool {
    is_evictable(word.eviction_rank(word.seen()))
}
