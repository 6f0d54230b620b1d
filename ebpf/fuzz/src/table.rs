//! Checks the flow table between two packets (the rules are in `vipgate_abi::flow`).

use std::collections::HashSet;

use vipgate_abi::{
    config::Config,
    flow::{self, CANDIDATES, Candidate, Flow, FlowKey, State, WAYS, Word},
    hash,
};
use vipgate_pipeline::maps;

use crate::world::{self, BACKENDS, SERVICES, World};

/// A slot that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    index: u32,
    pub(crate) word: Word,
    pub(crate) flow: Flow,
}

impl Slot {
    /// True while its backend's flows have not been ended.
    pub(crate) fn is_current(&self) -> bool {
        world::backend(self.flow.backend()).generation == self.flow.generation
    }

    /// Source and destination of the flow's packets after their rewriting.
    pub(crate) fn rewritten(&self) -> [(u32, u16); 2] {
        [(self.flow.new_src, self.flow.new_sport), (self.flow.new_dst, self.flow.new_dport)]
    }
}

/// The slots by index of FLOWS, `None` if empty; and for each bucket, whether it has overflowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table(Vec<Option<Slot>>, Vec<bool>);

impl Table {
    pub(crate) fn read(world: &World) -> Self {
        let slot = |index: u32| {
            let bucket = maps::FLOW_BUCKETS.get(index / WAYS as u32)?;
            let word = Word(bucket.words[index as usize % WAYS]);
            let flow = *maps::FLOWS.get(index)?;
            let slot = Slot { index, word, flow };
            if word.state() == State::Empty {
                assert!(!flow.mark.is_live(), "slot {index} is empty, its mark is not: {slot:?}");
                return None;
            }
            Some(slot)
        };
        let has_overflowed = |bucket: u32| {
            maps::FLOW_BUCKETS
                .get(bucket)
                .is_some_and(|bucket| bucket.words.map(Word).iter().any(|word| word.has_overflowed()))
        };
        let buckets = (0..world.buckets).map(has_overflowed).collect();
        Self((0..world.buckets * WAYS as u32).map(slot).collect(), buckets)
    }

    /// The flow of a key, whatever its state.
    pub(crate) fn find(&self, key: &FlowKey) -> Option<Slot> {
        self.0.iter().flatten().find(|slot| slot.flow.key == *key).copied()
    }

    /// The first flow and that of the answers of each connection.
    pub(crate) fn connections(&self) -> impl Iterator<Item = [&Slot; 2]> {
        let firsts = self.0.iter().flatten().filter(|slot| !slot.flow.mark.is_reply());
        firsts.filter_map(|first| Some([first, self.0.get(first.flow.peer as usize)?.as_ref()?]))
    }

    /// The same flow in this table.
    pub(crate) fn same(&self, slot: &Slot) -> Option<&Slot> {
        let held = self.0.get(slot.index as usize)?.as_ref()?;
        (held.flow.key == slot.flow.key && held.word.same_flow(slot.word)).then_some(held)
    }

    /// The flow of the answers to a flow.
    pub(crate) fn answers(&self, slot: &Slot) -> Option<Slot> {
        self.find(&answer_key(slot))
    }

    /// The table without a flow and its other direction.
    pub(crate) fn without(&self, flow: &Slot) -> Self {
        let goes = |slot: &Slot| slot.flow.key == flow.flow.key || slot.flow.key == answer_key(flow);
        Self(self.0.iter().map(|slot| slot.filter(|slot| !goes(slot))).collect(), self.1.clone())
    }

    /// Checks that no packet evicts an established connection, unless that has been idle for too long. Returns the number of
    /// connections that were evicted.
    pub(crate) fn check_kept(&self, now: u32, after: &Self) -> u64 {
        let mut made_room = 0;
        for slot in self.0.iter().flatten().filter(|slot| slot.word.state() >= State::Closing && slot.is_current()) {
            if after.same(slot).is_none() {
                assert!(self.is_idle(slot, now), "{slot:?} was evicted for {:?}", after.0[slot.index as usize]);
                made_room += 1;
            }
        }
        made_room / 2
    }

    /// Number of answered datagram connections that were evicted.
    pub(crate) fn gave_way(&self, after: &Self) -> u64 {
        let answered =
            self.connections().filter(|both| both[0].word.state() == State::Datagrams && both[0].is_current());
        answered.filter(|both| after.same(both[0]).is_none()).count() as u64
    }

    /// True if both directions have been idle for longer than the backend's timeout.
    fn is_idle(&self, slot: &Slot, now: u32) -> bool {
        let peer = self.0.get(slot.flow.peer as usize).and_then(Option::as_ref);
        let age = peer.map_or(u32::MAX, |peer| peer.word.age(now)).min(slot.word.age(now));
        let idle = world::backend(slot.flow.backend()).idle_timeout_of(slot.flow.key.protocol);
        Word::has_passed(age, idle, maps::CONFIG.get(0).map_or(0, Config::second))
    }

    /// Checks all slots and loads.
    pub(crate) fn check(&self) {
        let mut keys = HashSet::new();
        let mut loads = [(0, 0); BACKENDS as usize];
        let mut services = [0; SERVICES as usize];
        for (index, slot) in self.0.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.as_ref()?))) {
            self.check_slot(index, slot);
            assert!(keys.insert(slot.flow.key), "the key of slot {index} is in the table twice: {slot:?}");
            // Flows of past generations are not counted, whichever backend has the number now.
            if !slot.flow.mark.is_reply() && slot.is_current() {
                let number = slot.flow.backend();
                let (state, load) = (slot.word.state(), &mut loads[number as usize]);
                load.0 += u32::from(state.is_live());
                load.1 += u32::from(state.is_admitted());
                services[world::backend(number).service as usize] += u32::from(state.is_admitted());
            }
        }
        for (number, expected) in (0u32..).zip(loads) {
            let load = world::load(number);
            assert!(load.counts(world::backend(number).generation));
            assert_eq!((load.live(), load.admitted()), expected, "load of backend {number}: {self:#?}");
        }
        for (number, expected) in (0u32..).zip(services) {
            let load = maps::SERVICE_LOAD.get(number).copied().unwrap_or_default();
            assert_eq!(load, expected, "load of service {number}: {self:#?}");
        }
    }

    /// True if a search for this hash reaches the bucket: it is the home, or every candidate before it has overflowed (rule
    /// 10).
    fn is_found(&self, bucket: usize, hash: u64, mask: u32) -> bool {
        let mut at = Candidate::home(hash, mask);
        for _ in 0..CANDIDATES {
            if at.bucket as usize == bucket {
                return true;
            }
            if !self.1[at.bucket as usize] {
                return false;
            }
            at = at.next(mask);
        }
        false
    }

    fn check_slot(&self, index: usize, slot: &Slot) {
        let Slot { word, flow, .. } = slot;
        assert_ne!(word.state(), State::Busy, "slot {index} was left claimed");
        assert_eq!(
            (flow.mark.state(), flow.mark.version()),
            (word.state(), word.version()),
            "slot {index}'s mark differs from its word: {slot:?}"
        );
        let config = maps::CONFIG.get(0).copied().unwrap_or_default();
        let hash = hash::flow(&flow.key, config.flow_seed);
        assert!(self.is_found(index / WAYS, hash, config.bucket_mask), "no search finds slot {index}: {slot:?}");
        assert_eq!(word.tag(), flow::tag(hash), "slot {index} has another tag than its key");
        let Some(Some(peer)) = self.0.get(flow.peer as usize) else {
            panic!("slot {index} has no other direction: {slot:?}");
        };
        assert_eq!(peer.flow.peer as usize, index, "slot {index}'s other direction names another: {slot:?} {peer:?}");
        assert_ne!(peer.flow.mark.is_reply(), flow.mark.is_reply(), "slot {index}: {slot:?} {peer:?}");
        assert_ne!(peer.flow.mark.is_outward(), flow.mark.is_outward(), "slot {index}: {slot:?} {peer:?}");
        assert_eq!((peer.flow.backend(), peer.flow.generation), (flow.backend(), flow.generation));
        assert_eq!(peer.flow.key, answer_key(slot), "slot {index}'s answers have another key");
        assert_eq!(
            peer.rewritten(),
            [(flow.key.dst, flow.key.dport), (flow.key.src, flow.key.sport)],
            "the other direction of slot {index} is not its reverse: {slot:?} {peer:?}"
        );
        let states = [word.state(), peer.word.state()];
        assert_eq!(
            states[0].is_over(),
            states[1].is_over(),
            "one direction of slot {index} is over: {slot:?} {peer:?}"
        );
        assert_ne!(states, [State::Resumed; 2], "both directions of slot {index} go on: {slot:?} {peer:?}");
    }
}

/// The key of the packets that answer a flow's.
fn answer_key(slot: &Slot) -> FlowKey {
    let [(src, sport), (dst, dport)] = slot.rewritten();
    FlowKey { src: dst, dst: src, sport: dport, dport: sport, ..slot.flow.key }
}
