//! One walk over the flow table: which connections are over, and how they end.

use std::sync::atomic::Ordering;

use vipgate_abi::{
    backend::{Backend, ICMP_IDLE},
    flow::{Flow, FlowKey, State, WAYS, Word},
};

use super::{
    load_drift::Count,
    timeouts::{ENDED, HALF_OPEN, TRANSITORY, closed_timeout, timeout},
};
use crate::loader::FlowTable;

/// A slice ends after so many connections with sides to nudge, by four segments each.
pub(super) const BURST: usize = 64;

/// IANA protocol number.
pub(super) const TCP: u8 = 6;

/// One walk over the table.
pub(super) struct Pass<'a> {
    pub(super) table: &'a FlowTable,
    hz: u32,
    /// The shortest of the backends' idle timeouts, in seconds.
    shortest_idle: u32,
    /// [`closed_timeout`] by what the pass before found.
    closed_timeout: u32,
    /// Slots of closed connections that were found.
    closed: u32,
    /// In a deep pass.
    pub(super) count: Option<Count>,
    /// The flows of connections with sides to nudge.
    pub(super) untold: Vec<[FlowKey; 2]>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(table: &'a FlowTable, hz: u32, closed_timeout: u32, deep: bool) -> Self {
        let idles = (0..table.backend_count())
            .filter_map(|number| table.backend(number))
            .filter(|b| b.addr != 0 && !b.is_down());
        // A backend that takes all protocols has its shortest timeout for ICMP.
        let idles = idles.map(|backend| if backend.takes_all() { ICMP_IDLE } else { backend.idle_timeout });
        let shortest_idle = idles.fold(u32::MAX, u32::min);
        let count = deep.then(|| Count::start(table));
        let untold = Vec::with_capacity(BURST + WAYS);
        Self { table, hz, shortest_idle, closed_timeout, closed: 0, count, untold }
    }

    /// The [`closed_timeout`] for the next pass, after a walk over the whole table.
    pub(super) fn next_closed_timeout(&self) -> u32 {
        closed_timeout(self.closed, self.table.buckets() * WAYS as u32)
    }

    pub(super) fn bucket(&mut self, bucket: u32, now: u32) {
        for (way, word) in (0..).zip(self.table.words(bucket)) {
            let word = Word(word.load(Ordering::Acquire));
            if !matches!(word.state(), State::Empty | State::Busy) {
                self.slot(bucket * WAYS as u32 + way, word, now);
            }
        }
    }

    fn slot(&mut self, slot: u32, word: Word, now: u32) {
        let shortest = match word.state() {
            State::Closed | State::Resumed => {
                self.closed += 1;
                self.closed_timeout.min(self.shortest_idle)
            }
            State::Reset => TRANSITORY.min(self.shortest_idle),
            State::Opening | State::Answered => HALF_OPEN,
            // If the other direction is over, its slot ends both.
            _ => self.shortest_idle,
        };
        if self.count.is_none() && !Word::has_passed(word.age(now), shortest, self.hz) {
            return;
        }
        let Some(flow) = self.table.flow(slot) else {
            return;
        };
        let backend = self.table.backend(flow.backend()).unwrap_or_default();
        if self.table.word(flow.peer).is_some_and(|word| word.state() == State::Busy) {
            // A program that changes the other direction may be about to end the connection, or put it back. The next pass sees.
            return self.note(word, &flow, &backend);
        }
        let peer = self.peer(slot, &flow);
        let age = peer.as_ref().map_or(word.age(now), |(_, peer, _)| word.age(now).min(peer.age(now)));
        let idle = backend.idle_timeout_of(flow.key.protocol);
        let timeout = timeout(word.state(), peer.as_ref().map(|(_, peer, _)| peer.state()), idle, self.closed_timeout);
        if backend.generation == flow.generation && !Word::has_passed(age, timeout, self.hz) {
            self.note(word, &flow, &backend);
            return;
        }
        self.end((slot, word, flow), peer, &backend, (age, now));
    }

    /// Ends a connection that is over: `ours` is one direction, `peer` the other one if it is there. Time is in jiffies.
    fn end(
        &mut self,
        ours: (u32, Word, Flow),
        peer: Option<(u32, Word, Flow)>,
        backend: &Backend,
        (age, now): (u32, u32),
    ) {
        let (slot, word, flow) = ours;
        let is_past = backend.generation != flow.generation;
        if let Some(peer) = peer
            && flow.key.protocol == TCP
            && word.state().is_admitted()
            && peer.1.state().is_admitted()
            && (is_past || !goes_on([&flow, &peer.2], backend))
        {
            // New flows take the slots of retired connections first.
            if self.table.retire([ours, peer], now) {
                self.untold.push([flow.key, peer.2.key]);
            } else {
                self.note(word, &flow, backend);
            }
            return;
        }
        if is_past && flow.key.protocol == TCP && !Word::has_passed(age, ENDED, self.hz) {
            self.table.move_to(slot, word, State::Closed);
            if let Some((peer_slot, peer_word, _)) = peer {
                self.table.move_to(peer_slot, peer_word, State::Closed);
            }
            return;
        }
        // The other direction first: if a packet has just hit it, the connection is alive and both stay.
        if let Some((peer_slot, peer_word, peer_flow)) = peer
            && !self.table.empty(peer_slot, peer_word, &peer_flow)
        {
            return self.note(word, &flow, backend);
        }
        self.table.empty(slot, word, &flow);
    }

    /// The other direction's slot, word and flow, unless it is another connection's by now.
    fn peer(&self, slot: u32, flow: &Flow) -> Option<(u32, Word, Flow)> {
        // The word before the flow: should the slot be claimed in between, emptying it by this word fails.
        let word = self.table.word(flow.peer).filter(|word| !matches!(word.state(), State::Empty | State::Busy))?;
        let peer = self.table.flow(flow.peer)?;
        let is_other = peer.peer == slot && peer.mark.is_reply() != flow.mark.is_reply();
        is_other.then_some((flow.peer, word, peer))
    }

    /// Counts a connection that stays.
    fn note(&mut self, word: Word, flow: &Flow, backend: &Backend) {
        if let Some(count) = &mut self.count
            && !flow.mark.is_reply()
            && word.state().is_live()
            && backend.generation == flow.generation
        {
            count.live.note(flow.backend());
            if word.state().is_admitted() {
                count.admitted.note(flow.backend());
                count.services.note(backend.service);
            }
        }
    }
}

/// True for a connection of an elastic IP: the next segment of either side makes the flows anew, so that being idle ends it for
/// neither.
fn goes_on(flows: [&Flow; 2], backend: &Backend) -> bool {
    // The backend of a network with source NAT is the VIP.
    let is_masked = |flow: &Flow| flow.mark.is_outward() && flow.new_src == backend.addr;
    backend.takes_all() && !flows.into_iter().any(is_masked)
}
