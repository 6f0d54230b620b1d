//! Moves every connection from one flow table to another, while programs look flows up in both.
//!
//! No program makes flows in the old table any more. A connection is first copied; from then on packets find the copy. When the
//! packets that had found the old flows are done, what they changed there is added to the copy, and the old slots are emptied. So
//! every packet finds its flow at any moment.

use vipgate_abi::{
    flow::{Flow, State, WAYS, Word},
    hash,
};

use super::flow_table::FlowTable;

/// Connections that are copied between two waits.
const BATCH: usize = 1 << 16;

/// What became of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Migrated {
    pub(super) connections: u64,
    /// Connections for which no slot of the new table was free.
    pub(super) lost: u64,
}

/// A flow table that connections come from.
pub(super) trait OldTable {
    /// Whether its programs count connections in the same load tables as the programs of the new table.
    const SHARES_LOADS: bool;

    fn slots(&self) -> u32;
    /// The word of a slot; `None` beyond the end.
    fn word(&self, slot: u32) -> Option<Word>;
    /// A slot's flow and the word under which it was read whole; `None` if the slot has no flow.
    fn stable(&self, slot: u32) -> Option<(Word, Flow)>;
    /// Empties the slot of a flow that was moved.
    fn clear(&self, slot: u32, seen: Word);
}

impl OldTable for FlowTable {
    const SHARES_LOADS: bool = true;

    fn slots(&self) -> u32 {
        self.buckets() * WAYS as u32
    }

    fn word(&self, slot: u32) -> Option<Word> {
        self.word(slot)
    }

    fn stable(&self, slot: u32) -> Option<(Word, Flow)> {
        self.stable(slot)
    }

    fn clear(&self, slot: u32, seen: Word) {
        self.move_to(slot, seen, State::Empty);
    }
}

/// A migration between two tables with the same seed.
pub(super) struct Migration<'a, O = FlowTable> {
    pub(super) old: &'a O,
    pub(super) new: &'a FlowTable,
    pub(super) seed: u64,
    /// Low 32 bits of jiffies.
    pub(super) now: u32,
}

/// One flow in both tables.
#[derive(Clone, Copy)]
pub(super) struct Copy {
    pub(super) from: (u32, Word),
    to: (u32, Word),
    /// The counters that the copy began with.
    packets: u32,
    bytes: u64,
}

impl<O: OldTable> Migration<'_, O> {
    /// Moves all connections; `wait` returns when every packet that is being handled now is done.
    pub(super) fn migrate(&self, wait: impl Fn()) -> Migrated {
        let mut carried = Migrated::default();
        let mut slots = 0..self.old.slots();
        while !slots.is_empty() {
            let mut copies = Vec::new();
            for slot in slots.by_ref() {
                match self.copy(slot, true) {
                    Copying::None => {}
                    Copying::Done(both) => copies.push(both),
                    Copying::NoSlot => carried.lost += 1,
                }
                if copies.len() == BATCH {
                    break;
                }
            }
            wait();
            carried.connections += copies.len() as u64;
            for [first, reply] in copies {
                self.settle(first, reply);
            }
        }
        carried
    }

    /// Copies the connection whose first flow is in this slot. `used` if programs have made flows in the new table already; else
    /// a flow there with the same key is the copy of a connection that has ended.
    pub(super) fn copy(&self, slot: u32, used: bool) -> Copying {
        let Some((word, first)) = self.old.stable(slot).filter(|(_, flow)| !flow.mark.is_reply()) else {
            return Copying::None;
        };
        let is_its = |reply: &Flow| reply.peer == slot && reply.mark.is_reply();
        let Some((reply_word, reply)) = self.old.stable(first.peer).filter(|(_, reply)| is_its(reply)) else {
            return Copying::None;
        };
        let from = [(slot, word), (first.peer, reply_word)];
        let hashes = [&first, &reply].map(|flow| hash::flow(&flow.key, self.seed));
        if let Some(held) = self.held_copy(from, [&first, &reply], hashes, used) {
            return held;
        }
        let Some(to) = self.new.claim(hashes[0], self.now) else {
            return Copying::NoSlot;
        };
        let Some(reply_to) = self.new.claim(hashes[1], self.now) else {
            self.new.release(to);
            return Copying::NoSlot;
        };
        let begun = |from, to, flow: &Flow| Copy { from, to, packets: flow.packets, bytes: flow.bytes() };
        let (slot, reply_slot) = (to.0, reply_to.0);
        let reply_to = self.new.publish(reply_to, reply_word, hashes[1], Flow { peer: slot, ..reply });
        let to = self.new.publish(to, word, hashes[0], Flow { peer: reply_slot, ..first });
        if !O::SHARES_LOADS {
            self.count_alone(&first, State::Empty, word.state());
        }
        let both = [begun(from[0], to, &first), begun(from[1], reply_to, &reply)];
        if self.is_gone(&both[0]) {
            self.discard(both);
            return Copying::None;
        }
        Copying::Done(both)
    }

    /// What the new table holds of the connection already: a controller that ended in the middle may have copied it. `None` if it
    /// is to be copied: what a controller that ended between the two flows has left of a copy is removed.
    fn held_copy(
        &self,
        from: [(u32, Word); 2],
        [first, reply]: [&Flow; 2],
        hashes: [u64; 2],
        used: bool,
    ) -> Option<Copying> {
        let held = |flow: &Flow, hash| {
            let slot = self.new.find(&flow.key, hash)?;
            self.new.stable(slot).map(|(word, copy)| ((slot, word), copy))
        };
        match (held(first, hashes[0]), held(reply, hashes[1])) {
            (None, None) => None,
            (one, other) if !used => {
                [one, other].into_iter().flatten().for_each(|((slot, word), _)| self.remove(slot, word));
                None
            }
            (Some((to, copy)), Some((reply_to, reply_copy))) if (copy.peer, reply_copy.peer) == (reply_to.0, to.0) => {
                let begun = |from, to, old: &Flow, new: &Flow| {
                    // How many of these the copy had is not known any more: it gets what it lacks.
                    let lacks = new.packets.wrapping_sub(old.packets) > 1 << 31;
                    let packets = if lacks { new.packets } else { old.packets };
                    Copy { from, to, packets, bytes: old.bytes().min(new.bytes()) }
                };
                let both = [begun(from[0], to, first, &copy), begun(from[1], reply_to, reply, &reply_copy)];
                Some(if self.is_gone(&both[0]) { Copying::None } else { Copying::Done(both) })
            }
            // The controller ended between the two.
            (None, Some(((slot, word), copy))) if self.new.stable(copy.peer).is_none() => {
                self.new.move_to(slot, word, State::Empty);
                None
            }
            // What is there is a later connection.
            _ => Some(Copying::None),
        }
    }

    /// True when a program has removed the flow that was copied: its client has opened another connection, which must not
    /// meet the copy.
    pub(super) fn is_gone(&self, copy: &Copy) -> bool {
        let (slot, seen) = copy.from;
        self.old.word(slot).is_none_or(|word| !word.same_flow(seen) || word.state() <= State::Busy)
    }

    pub(super) fn discard(&self, both: [Copy; 2]) {
        both.into_iter().for_each(|Copy { to: (slot, word), .. }| self.remove(slot, word));
    }

    /// Empties a slot of the new table, if it still holds what was seen there.
    fn remove(&self, slot: u32, seen: Word) {
        let flow = self.new.flow(slot);
        let left = self.new.move_to(slot, seen, State::Empty);
        if let (false, Some(left), Some(flow)) = (O::SHARES_LOADS, left, flow)
            && !flow.mark.is_reply()
        {
            self.count_alone(&flow, left, State::Empty);
        }
    }

    /// Counts a connection's first flow that comes to another state, where the old table's programs count for themselves.
    fn count_alone(&self, flow: &Flow, left: State, state: State) {
        let change = |counts: fn(State) -> bool| i64::from(counts(state)) - i64::from(counts(left));
        self.new.account(flow, change(State::is_live), change(State::is_admitted));
    }

    /// Brings what packets still changed in the old flows to their copies, and empties the old slots.
    pub(super) fn settle(&self, first: Copy, reply: Copy) {
        if self.is_gone(&first) {
            self.discard([first, reply]);
            return;
        }
        let state =
            |word: Option<Word>, seen: Word| word.filter(|word| word.same_flow(seen)).map_or(State::Empty, Word::state);
        let olds = [first, reply].map(|Copy { from: (slot, seen), .. }| state(self.old.word(slot), seen));
        let news = [first, reply].map(|Copy { to: (slot, seen), .. }| state(self.new.word(slot), seen));
        let targets = further(first.from.1.state(), olds, news);
        let moved = |copy: Copy, target: Option<State>| self.new.move_to(copy.to.0, copy.to.1, target?);
        let left = moved(first, targets[0]).or(targets[0]).unwrap_or(news[0]);
        moved(reply, targets[1]);
        if news[0] > State::Busy
            && let Some(flow) = self.new.flow(first.to.0)
        {
            // What the old table's programs count for themselves is nothing to correct.
            let began = if O::SHARES_LOADS { first.from.1.state() } else { olds[0] };
            self.account(&flow, began, [olds[0], left], targets[0].unwrap_or(news[0]));
        }
        for Copy { from: (slot, seen), to, packets, bytes } in [first, reply] {
            if let Some((_, flow)) = self.old.stable(slot).filter(|(word, _)| word.same_flow(seen)) {
                self.new.count(to.0, flow.packets.wrapping_sub(packets), flow.bytes().wrapping_sub(bytes));
            }
            self.old.clear(slot, seen);
        }
    }

    /// Corrects the loads where packets moved a connection's first flow from where both copies `began` in both tables, or
    /// in one other than the `target`.
    fn account(&self, flow: &Flow, began: State, left: [State; 2], target: State) {
        let missing = |counts: fn(State) -> bool| {
            let is = |state| i64::from(counts(state));
            is(target) + is(began) - is(left[0]) - is(left[1])
        };
        self.new.account(flow, missing(State::is_live), missing(State::is_admitted));
    }
}

/// What became of a slot.
pub(super) enum Copying {
    /// It is not a connection's first one.
    None,
    /// First flow and reply.
    Done([Copy; 2]),
    NoSlot,
}

/// The states of a connection's first flow and reply that both its copies come to: each as far as the further one, and
/// over where one is. `None` if the copy is gone already, or need not change. A connection that was over when both `began` is
/// what packets have made of the new copy: should it live, they go on.
fn further(began: State, olds: [State; 2], news: [State; 2]) -> [Option<State>; 2] {
    if began.is_over() {
        return [None; 2];
    }
    let all = [olds[0], olds[1], news[0], news[1]];
    let closing = [0, 1].map(|of| olds[of] == State::Closing || news[of] == State::Closing);
    let is_over = all.into_iter().any(State::is_over) || closing == [true; 2];
    let over = if all.contains(&State::Reset) { State::Reset } else { State::Closed };
    // A side that has ended was part of a handshake that was complete.
    let reached = |state| if state == State::Closing { State::Established } else { state };
    let furthest = all.map(reached).into_iter().max().unwrap_or(State::Empty);
    [0, 1].map(|of| {
        let target = match (is_over, closing[of]) {
            (true, _) => over,
            (_, true) => State::Closing,
            _ => furthest,
        };
        (news[of] > State::Busy && news[of] != target).then_some(target)
    })
}

#[cfg(test)]
mod tests;
