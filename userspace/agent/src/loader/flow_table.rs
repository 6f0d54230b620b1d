//! The flow table through its mappings, for the sweeper and for migrations to another table: see the race rules in
//! `vipgate_abi::flow`.

use std::{
    iter,
    sync::atomic::{AtomicU64, Ordering},
};

use vipgate_abi::{
    backend::Backend,
    flow::{self, Bucket, CANDIDATES, Candidate, Flow, FlowKey, Mark, State, Survey, Target, Volume, WAYS, Word},
    load::Load,
    maps,
};

use super::{
    bpffs::PinDir,
    error::LoadError,
    loads::{BackendLoads, ServiceLoads},
    mapping::Mapping,
    tables::mapping,
};

/// How often claiming a slot is tried.
const CLAIMS: usize = 64;

/// The backend and generation of a connection that was ended and whose sides are still to be reset: a number that no backend ever
/// has, and a generation that it never has. So its flows are over, and count nowhere.
const NOBODYS: (Target, u16) = (Target::of(0), 1);
/// No slot.
const NOWHERE: u32 = u32::MAX;

/// Buckets, flows, and what is known of their backends.
#[derive(Debug)]
pub struct FlowTable {
    buckets: Mapping<Bucket>,
    flows: Mapping<Flow>,
    backends: Mapping<Backend>,
    backend_loads: BackendLoads,
    service_loads: ServiceLoads,
}

impl FlowTable {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self {
            buckets: mapping(dir, maps::FLOW_BUCKETS)?,
            flows: mapping(dir, maps::FLOWS)?,
            backends: mapping(dir, maps::BACKENDS)?,
            backend_loads: BackendLoads::open(dir)?,
            service_loads: ServiceLoads::open(dir)?,
        })
    }

    /// An empty table that belongs to no kernel.
    #[cfg(test)]
    pub(crate) fn in_memory(buckets: u32, backends: u32) -> Self {
        Self {
            buckets: Mapping::anonymous(buckets),
            flows: Mapping::anonymous(buckets * WAYS as u32),
            backends: Mapping::anonymous(backends),
            backend_loads: BackendLoads::in_memory(backends),
            service_loads: ServiceLoads::in_memory(backends),
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
        let held = self.backend(number).unwrap_or_default();
        if held.generation != backend.generation {
            self.backend_loads.begin(number, backend.generation, &self.service_loads, held.service);
        }
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

    /// Connections of the backends.
    pub fn backend_loads(&self) -> &BackendLoads {
        &self.backend_loads
    }

    /// Connections that the services admitted.
    pub fn service_loads(&self) -> &ServiceLoads {
        &self.service_loads
    }

    /// Empties a slot if its word still is `seen` (rule 4), and takes the flow that was in it off its backend's and
    /// service's load when it was the one that counts (rule 5). `false` if the slot changed in between and was left alone.
    pub fn empty(&self, slot: u32, seen: Word, flow: &Flow) -> bool {
        if !self.exchange(slot, seen, seen.with_state(State::Empty)) {
            return false;
        }
        if !flow.mark.is_reply() {
            self.account(flow, -i64::from(seen.state().is_live()), -i64::from(seen.state().is_admitted()));
        }
        true
    }

    /// Adds connections like this one, or takes them off, where such are counted: live ones, and admitted ones.
    pub(crate) fn account(&self, flow: &Flow, live: i64, admitted: i64) {
        // Before the load: whoever gives the number to another service changes that first.
        let service = self.backend(flow.backend()).map(|backend| backend.service);
        if !self.backend_loads.add(flow.backend(), flow.generation, Load::by(live, admitted)) {
            return;
        }
        if let Some(service) = service {
            match admitted {
                0 => {}
                more @ 1.. => self.service_loads.add(service, more as u32),
                less => self.service_loads.take(service, less.unsigned_abs() as u32),
            }
        }
    }

    /// A slot's flow and the word under which it was read whole (rule 2); `None` if there is none.
    pub(super) fn stable(&self, slot: u32) -> Option<(Word, Flow)> {
        let holds = |word: &Word| word.state() > State::Busy;
        let before = self.word(slot).filter(holds)?;
        let flow = self.flow(slot)?;
        let after = self.word(slot).filter(holds)?;
        after.same_flow(before).then_some((after, flow))
    }

    /// The buckets that a hash names, in order.
    fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> + use<> {
        let mask = self.buckets() - 1;
        let all = iter::successors(Some(Candidate::home(hash, mask)), move |at| Some(at.next(mask)));
        all.take(CANDIDATES as usize).map(|at| at.bucket)
    }

    /// The slot of the flow with this key.
    pub(super) fn find(&self, key: &FlowKey, hash: u64) -> Option<u32> {
        for bucket in self.candidates(hash) {
            let mut slots = (0..WAYS as u32).map(|way| bucket * WAYS as u32 + way);
            if let Some(slot) = slots.find(|slot| self.stable(*slot).is_some_and(|(_, flow)| flow.key == *key)) {
                return Some(slot);
            }
            if !self.has_overflowed(bucket) {
                break;
            }
        }
        None
    }

    /// Claims a slot for a flow with this hash as a program does (rules 1 and 10), and ends the connection that eviction
    /// prefers where there is none empty. `None` if every slot holds an established connection.
    pub(super) fn claim(&self, hash: u64, now: u32) -> Option<(u32, Word)> {
        // Programs win races against this thread, but not for long.
        for _ in 0..CLAIMS {
            let preferred = flow::preferred(hash, self.buckets() - 1);
            let empty = self.word(preferred).filter(|word| word.state() == State::Empty).map(|word| (preferred, word));
            let (slot, seen) = empty.or_else(|| self.best(hash, now))?;
            if !flow::is_evictable(seen.eviction_rank(now)) {
                return None;
            }
            if seen.state() != State::Empty {
                self.end(slot, seen);
                continue;
            }
            let passed = self.candidates(hash).take_while(|bucket| *bucket != slot / WAYS as u32);
            if passed.into_iter().all(|bucket| self.mark_overflowed(bucket))
                && let Some(claimed) = self.take(slot, seen)
            {
                return Some((slot, claimed));
            }
        }
        None
    }

    /// Claims a slot whose word still is `seen` (rules 1 and 2): its word then.
    fn take(&self, slot: u32, seen: Word) -> Option<Word> {
        let claimed = seen.claimed();
        self.slot(slot)?.compare_exchange(seen.0, claimed.0, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        self.flows.mark(slot)?.store(Mark::new(State::Busy, claimed.version(), 0, 0).0, Ordering::Release);
        Some(claimed)
    }

    /// Ends a TCP connection, both of whose flows are given as they were seen, so that both sides can be reset. The flows stay in
    /// their slots, closed as of `now` and nobody's: whoever sends is answered with a reset. Each stays alone: a side that has
    /// forgotten the connection, and says so, takes nothing away by which the other one is told. Counted once (rule 5).
    ///
    /// `false` if a packet came meanwhile. The connection goes on.
    pub fn retire(&self, flows: [(u32, Word, Flow); 2], now: u32) -> bool {
        let [first, second] = flows;
        let Some(taken) = self.take(first.0, first.1) else {
            return false;
        };
        let Some(second_taken) = self.take(second.0, second.1) else {
            self.show((first.0, taken), first.1, first.2.mark.flags());
            return false;
        };
        for ((slot, seen, flow), claimed) in flows.into_iter().zip([taken, second_taken]) {
            if !flow.mark.is_reply() {
                self.account(&flow, -i64::from(seen.state().is_live()), -i64::from(seen.state().is_admitted()));
            }
            let dead = Mark::new(State::Busy, claimed.version(), 0, 0);
            let (target, generation) = NOBODYS;
            self.flows.write(slot, Flow { target, generation, peer: NOWHERE, mark: dead, ..flow });
            let closed = Word::new(State::Closed, seen.version(), seen.tag(), now);
            self.show((slot, claimed), closed, flow.mark.flags());
        }
        true
    }

    /// The slot that a new flow with this hash takes, and its word.
    fn best(&self, hash: u64, now: u32) -> Option<(u32, Word)> {
        let mut best = (Survey::default(), 0);
        for bucket in self.candidates(hash) {
            let words = self.words(bucket).iter().map(|word| Word(word.load(Ordering::Acquire)));
            let seen = words.enumerate().fold(Survey::default(), |sum, (way, word)| sum.with(way, word, now));
            if !seen.is_crowded() || seen.is_better(best.0) {
                best = (seen, bucket);
            }
            if !seen.is_crowded() {
                break;
            }
        }
        let slot = best.1 * WAYS as u32 + best.0.way() as u32;
        Some((slot, self.word(slot)?))
    }

    fn has_overflowed(&self, bucket: u32) -> bool {
        self.words(bucket).iter().any(|word| Word(word.load(Ordering::Acquire)).has_overflowed())
    }

    /// Marks a bucket as overflowed (rule 10); `false` if a program that holds a slot of it is changing it just now.
    fn mark_overflowed(&self, bucket: u32) -> bool {
        let mark = |cell: &AtomicU64| {
            let seen = Word(cell.load(Ordering::Acquire));
            let marked = seen.overflowed().0;
            seen.state() != State::Busy
                && cell.compare_exchange(seen.0, marked, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        self.has_overflowed(bucket) || self.words(bucket).iter().any(mark)
    }

    /// Ends the connection of the flow in this slot: both directions.
    fn end(&self, slot: u32, seen: Word) {
        let Some(flow) = self.flow(slot).filter(|flow| self.empty(slot, seen, flow)) else {
            return;
        };
        let is_other = |other: &Flow| other.peer == slot && other.mark.is_reply() != flow.mark.is_reply();
        if let Some((word, other)) = self.stable(flow.peer).filter(|(_, other)| is_other(other)) {
            self.empty(flow.peer, word, &other);
        }
    }

    /// Writes a flow to a slot that was claimed, and publishes it as it was under the word `like` (rules 1 and 2): the slot,
    /// and its word now.
    pub(super) fn publish(&self, (slot, claimed): (u32, Word), like: Word, hash: u64, flow: Flow) -> (u32, Word) {
        let dead = Mark::new(State::Busy, claimed.version(), 0, 0);
        self.flows.write(slot, Flow { mark: dead, ..flow });
        let like = Word::new(like.state(), like.version(), flow::tag(hash), like.seen());
        (slot, self.show((slot, claimed), like, flow.mark.flags()))
    }

    /// Publishes the flow in a claimed slot as it is under the word `like`: the slot's word now.
    fn show(&self, (slot, claimed): (u32, Word), like: Word, flags: u8) -> Word {
        let word = Word::new(like.state(), claimed.version(), like.tag(), like.seen()).after(claimed);
        if let (Some(mark), Some(cell)) = (self.flows.mark(slot), self.slot(slot)) {
            mark.store(Mark::of(word, flags).0, Ordering::Release);
            cell.store(word.0, Ordering::Release);
        }
        word
    }

    /// Frees a slot that was claimed.
    pub(super) fn release(&self, (slot, claimed): (u32, Word)) {
        self.exchange(slot, claimed, claimed.with_state(State::Empty));
    }

    /// Moves the flow that was seen in a slot to a state (rule 4), without accounting for it; the state it was in. `None`:
    /// it is there no more, or over, or in that state.
    pub fn move_to(&self, slot: u32, seen: Word, state: State) -> Option<State> {
        loop {
            let word = self.word(slot).filter(|word| word.same_flow(seen))?;
            if word.state() == state || word.state() <= state.comes_after() {
                return None;
            }
            if self.exchange(slot, word, word.with_state(state)) {
                return Some(word.state());
            }
        }
    }

    /// Adds packets and bytes to the counters of the flow in a slot (rule 6).
    pub(super) fn count(&self, slot: u32, packets: u32, bytes: u64) {
        if let Some((cell, total)) = self.flows.counters(slot) {
            cell.fetch_add(packets, Ordering::Relaxed);
            total.fetch_add(Volume::new(bytes).0, Ordering::Relaxed);
        }
    }

    /// Swaps a slot's word for another of the same flow; `false` if it was not `seen` any more.
    fn exchange(&self, slot: u32, seen: Word, new: Word) -> bool {
        let swap = |word: &AtomicU64| word.compare_exchange(seen.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let swapped = self.slot(slot).is_some_and(swap);
        if swapped {
            self.mirror(slot);
        }
        swapped
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
