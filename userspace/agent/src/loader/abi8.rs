//! Version 8 of the tables' layout, as far as it differs from ours: read, and brought to ours. Nothing is written but the state
//! of a slot whose flow was carried.
//!
//! Its slot words had a tag of 16 bits, and states without `Resumed`. Its flows had the backend and the way out apart, the epoch
//! of the next hop beside it, and bytes that wrapped at 2^64. Of backends and sources the words that name a device now were 0,
//! which means any; its counters are those of today, but for reasons that came later.

use std::{path::Path, sync::atomic::Ordering};

use aya::maps::{Array, MapInfo};
use vipgate_abi::{
    Be16, Be32,
    config::Config,
    flow::{Bucket, Flow, FlowKey, Hop, Mark, State, Target, Volume, WAYS, Word, next_epoch},
    maps,
    meter::{Meter, MeterState},
};

use super::{
    TableError, bpffs::PinDir, error::LoadError, flow_migration::OldTable, mapping::Mapping, object::open,
    tables::mapping,
};

pub(super) const VERSION: u32 = 8;

/// The tables whose elements are the same in both versions, so that programs of both may use one.
pub(super) const SAME: [&str; 16] = [
    maps::SERVICES,
    maps::SOURCES,
    maps::PORT_CURSORS,
    maps::BACKENDS,
    maps::BACKEND_TRAFFIC,
    maps::PAST_TRAFFIC,
    maps::RINGS,
    maps::CURSORS,
    maps::PORTS,
    maps::PORT_NUMBERS,
    maps::TX_PORTS,
    maps::METERS,
    maps::METER_TRAFFIC,
    maps::METER_SHARES,
    maps::PORT_METERS,
    maps::REASONS,
];

/// The tables that are read, and the bytes of their elements.
const READ: [(&str, usize); 4] = [
    (maps::CONFIG, size_of::<Config8>()),
    (maps::FLOW_BUCKETS, size_of::<Bucket>()),
    (maps::FLOWS, size_of::<Flow8>()),
    (maps::METER_STATES, size_of::<MeterState8>()),
];

/// The element of CONFIG.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Config8 {
    flow_seed: u64,
    bucket_mask: u32,
    epoch: u32,
    tick: u32,
    tx_ports: u32,
}

/// An element of FLOWS.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow8 {
    src: Be32,
    dst: Be32,
    sport: Be16,
    dport: Be16,
    protocol: u8,
    zone: u8,
    vlan: u16,
    new_src: Be32,
    new_dst: Be32,
    new_sport: Be16,
    new_dport: Be16,
    port: u16,
    next_hop: [u8; 6],
    epoch: u16,
    generation: u16,
    backend: u32,
    peer: u32,
    packets: u32,
    /// As ours but for the state.
    mark: u32,
    bytes: u64,
}

/// An element of METER_STATES.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct MeterState8 {
    words: [u64; 2],
}

const _: () = assert!(size_of::<Config8>() == 24 && size_of::<Flow8>() == 64 && size_of::<MeterState8>() == 16);

// SAFETY: repr(C), only integer fields and arrays of them, padding-free (asserted by size above).
unsafe impl aya::Pod for Config8 {}
// SAFETY: as above.
unsafe impl aya::Pod for Flow8 {}
// SAFETY: as above.
unsafe impl aya::Pod for MeterState8 {}

/// The state that a word's low byte named.
const fn state(byte: u8) -> State {
    match byte {
        0 => State::Empty,
        2 => State::Closed,
        3 => State::Opening,
        4 => State::Answered,
        5 => State::Datagrams,
        6 => State::Closing,
        7 => State::Established,
        _ => State::Busy,
    }
}

/// Our word of the same flow in the same slot.
const fn word(raw: u64) -> Word {
    Word::new(state(raw as u8), (raw >> 8) as u8, (raw >> 16) as u16, (raw >> 32) as u32)
}

impl Flow8 {
    /// Our flow. Its way out is asked for again.
    const fn ours(&self, word: Word) -> Flow {
        let Self { src, dst, sport, dport, protocol, .. } = *self;
        Flow {
            key: FlowKey { src, dst, sport, dport, protocol, reserved: 0, domain: 0 },
            new_src: self.new_src,
            new_dst: self.new_dst,
            new_sport: self.new_sport,
            new_dport: self.new_dport,
            peer: self.peer,
            hop: Hop::unknown(word.version(), word.seen()),
            target: Target::of(self.backend),
            from: 0,
            generation: self.generation,
            volume: Volume::new(self.bytes),
            packets: self.packets,
            mark: Mark::of(word, (self.mark >> 24) as u8),
        }
    }
}

/// Whether a directory holds tables of that layout.
pub(super) fn is_there(dir: &PinDir) -> bool {
    let info = |name: &str| MapInfo::from_pin(dir.map(name));
    let fits = |(name, bytes): &(&str, usize)| info(name).is_ok_and(|info| info.value_size() as usize == *bytes);
    READ.iter().all(fits) && SAME.iter().all(|name| Path::new(&dir.map(name)).exists())
}

/// Our configuration, under the same seed and another epoch.
pub(super) fn config(dir: &PinDir) -> Result<Config, LoadError> {
    let held: Array<_, Config8> = open(dir, maps::CONFIG)?;
    let held = held.get(&0, 0).map_err(|error| TableError::new(maps::CONFIG, "read", error))?;
    Ok(Config { flow_seed: held.flow_seed, epoch: next_epoch(held.epoch), ..Config::default() })
}

/// Brings how far the limits are used up from one directory to another.
pub(super) fn copy_meter_states(from: &PinDir, to: &PinDir) -> Result<(), LoadError> {
    let meters: Mapping<Meter> = mapping(from, maps::METERS)?;
    let states: Array<_, MeterState8> = open(from, maps::METER_STATES)?;
    let mut copies: Array<_, MeterState> = open(to, maps::METER_STATES)?;
    for number in (0..meters.len()).filter(|number| meters.read(*number) != Some(Meter::default())) {
        let held = states.get(&number, 0).map_err(|error| TableError::new(maps::METER_STATES, "read", error))?;
        let copy = MeterState { words: held.words, ..MeterState::default() };
        copies.set(number, copy, 0).map_err(|error| TableError::new(maps::METER_STATES, "write", error))?;
    }
    Ok(())
}

/// A flow table.
#[derive(Debug)]
pub(super) struct FlowTable8 {
    buckets: Mapping<Bucket>,
    flows: Mapping<Flow8>,
}

impl FlowTable8 {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self { buckets: mapping(dir, maps::FLOW_BUCKETS)?, flows: mapping(dir, maps::FLOWS)? })
    }

    /// Entries that are not empty.
    pub(super) fn entries(&self) -> u32 {
        let words = (0..self.slots()).filter_map(|slot| self.word(slot));
        words.map(|word| u32::from(word.state() > State::Busy)).sum()
    }

    fn raw(&self, slot: u32) -> Option<&std::sync::atomic::AtomicU64> {
        self.buckets.words(slot / WAYS as u32)?.get(slot as usize % WAYS)
    }
}

impl OldTable for FlowTable8 {
    const SHARES_LOADS: bool = false;

    fn slots(&self) -> u32 {
        self.buckets.len() * WAYS as u32
    }

    fn word(&self, slot: u32) -> Option<Word> {
        Some(word(self.raw(slot)?.load(Ordering::Acquire)))
    }

    fn stable(&self, slot: u32) -> Option<(Word, Flow)> {
        let holds = |word: &Word| word.state() > State::Busy;
        let before = self.word(slot).filter(holds)?;
        let flow = self.flows.read(slot)?;
        let after = self.word(slot).filter(holds)?;
        after.same_flow(before).then(|| (after, flow.ours(after)))
    }

    fn clear(&self, slot: u32, seen: Word) {
        let Some(cell) = self.raw(slot) else { return };
        let emptied = |raw| word(raw).same_flow(seen).then_some(raw & !0xff);
        cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, emptied).ok();
    }
}

#[cfg(test)]
mod tests;
