//! Ends flows that are over: idle for too long, closed, or of a backend whose generation moved on. TCP connections that both
//! sides may think alive stay for a while, closed, so that whoever sends is answered with a reset; and both sides are nudged, so
//! that who is silent does.
//!
//! A thread of its own walks the mapped flow table in slices, a pass every [`PASS`]: only the slot words, 8 bytes a
//! flow, unless a word is old. So a million flows cost some milliseconds of one CPU a pass, and no system call but one
//! for the time. It meets the programs by the race rules of `vipgate_abi::flow`.
//!
//! Every [`DEEP_EVERY`] passes, and at once when the reconciler ended flows, a *deep* pass reads every flow: it removes
//! those of past generations and corrects the backends' and services' load should it have drifted from what the table holds.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::SocketAddrV4,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{debug, error, warn};
use vipgate_abi::{
    backend::{Backend, ICMP_IDLE},
    flow::{Flow, FlowKey, State, WAYS, Word},
    load::Load,
};

use crate::{
    loader::{self, FlowTable, LoadError, Plane},
    net::Nudger,
};

/// Time of one pass over the table: how late a flow may be found to be over.
const PASS: Duration = Duration::from_secs(5);
/// Buckets between two rests: 256 KiB of words.
const SLICE: u32 = 4096;
const DEEP_EVERY: u32 = 12;
/// Connections after which a slice ends whose sides are to be nudged, by four segments each.
const BURST: usize = 64;
/// Rests of a hurried pass: between its slices, and after it, so that a stream of changes does not keep a CPU busy.
const BREATH: Duration = Duration::from_millis(1);
const BETWEEN_HURRIED: Duration = Duration::from_secs(1);

/// [`loader::ENDED`] in seconds.
const ENDED: u32 = loader::ENDED.as_secs() as u32;

/// Seconds without a packet after which a connection is over.
const HALF_OPEN: u32 = 30;
const CLOSED: u32 = 5;
/// After a reset, which whoever sent it may have guessed, of one that may be silent for as long as its service lets it: the
/// transitory timeout of RFC 5382, section 5. Its slots are the first that new flows get all the same.
const RESET: u32 = 240;

/// IANA protocol number.
const TCP: u8 = 6;

/// The sweeper's thread.
#[derive(Debug)]
pub(super) struct Sweeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    deep: AtomicBool,
}

/// Ready once the sweeper's thread has ended, however it did.
pub(super) type Ended = oneshot::Receiver<Infallible>;

impl Sweeper {
    /// Starts the thread.
    pub(super) fn start(plane: Arc<Plane>) -> Result<(Self, Ended), LoadError> {
        let table = plane.flow_table()?;
        let started = Self::run(move |shared| sweep(&plane, &table, shared));
        started.map_err(|error| LoadError::io("start the sweeper's thread", error))
    }

    fn run(sweep: impl FnOnce(&Shared) -> Result<(), LoadError> + Send + 'static) -> io::Result<(Self, Ended)> {
        let shared = Arc::new(Shared::default());
        let (alive, ended) = oneshot::channel();
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("vipgate-sweeper".into()).spawn(move || {
                // Dropped with the thread's end, by a panic, too.
                let _alive = alive;
                if let Err(error) = sweep(&shared) {
                    error!(error = %loader::causes(&error), "the sweeper ends");
                }
            })?
        };
        Ok((Self { shared, thread: Some(thread) }, ended))
    }

    /// Asks for a deep pass soon: generations moved on.
    pub(super) fn flows_ended(&self) {
        self.shared.deep.store(true, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Ends the thread within one slice.
    pub(super) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                warn!("the sweeper had panicked");
            }
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn sweep(plane: &Plane, table: &FlowTable, shared: &Shared) -> Result<(), LoadError> {
    let hz = loader::hz()?;
    debug!(hz, "sweeping");
    let (mut drift, mut nudger) = (Drift::default(), Nudger::open());
    for pass in (0..DEEP_EVERY).cycle() {
        let hurried = shared.deep.swap(false, Ordering::Relaxed);
        match walk(plane, Pass::new(table, hz, hurried || pass == 0), shared, hurried, &mut nudger)? {
            Walked::Stopped => return Ok(()),
            // The hurried pass that comes does this one's work, too.
            Walked::Interrupted => {}
            Walked::All(count) => count.iter().for_each(|count| drift.correct(table, count)),
        }
        if hurried && rest(shared, BETWEEN_HURRIED, false) == Rested::Stop {
            return Ok(());
        }
    }
    Ok(())
}

enum Walked {
    /// With what a deep pass counted.
    All(Option<Box<Count>>),
    /// Somebody wishes for a deep pass.
    Interrupted,
    Stopped,
}

/// One pass, in slices: spread over [`PASS`], or hurried.
fn walk(
    plane: &Plane,
    mut pass: Pass,
    shared: &Shared,
    hurried: bool,
    nudger: &mut Nudger,
) -> Result<Walked, LoadError> {
    let buckets = pass.table.buckets();
    let between = if hurried { BREATH } else { PASS / buckets.div_ceil(SLICE).max(1) };
    let (mut bucket, mut pause) = (0, between);
    while bucket < buckets {
        match rest(shared, pause, !hurried) {
            Rested::Long => {}
            Rested::Short => return Ok(Walked::Interrupted),
            Rested::Stop => return Ok(Walked::Stopped),
        }
        let end = bucket.saturating_add(SLICE).min(buckets);
        let now = plane.jiffies()?;
        while bucket < end && pass.untold.len() < BURST {
            pass.bucket(bucket, now);
            bucket += 1;
        }
        nudger.nudge(pass.untold.drain(..).flatten().map(|key| ends(&key)));
        pause = if bucket < end { BREATH } else { between };
    }
    Ok(Walked::All(pass.count.map(Box::new)))
}

#[derive(PartialEq, Eq)]
enum Rested {
    Long,
    /// Cut short by a wish for a deep pass.
    Short,
    /// The sweeper shall end.
    Stop,
}

fn rest(shared: &Shared, time: Duration, may_be_short: bool) -> Rested {
    let until = Instant::now() + time;
    loop {
        if shared.stop.load(Ordering::Relaxed) {
            return Rested::Stop;
        }
        if may_be_short && shared.deep.load(Ordering::Relaxed) {
            return Rested::Short;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Rested::Long;
        }
        thread::park_timeout(left);
    }
}

/// Whom the sender of packets with this key knows as its peer, and that sender.
fn ends(key: &FlowKey) -> (SocketAddrV4, SocketAddrV4) {
    (loader::address(key.dst, key.dport), loader::address(key.src, key.sport))
}

/// One walk over the table.
struct Pass<'a> {
    table: &'a FlowTable,
    hz: u32,
    /// The shortest of the backends' idle timeouts, in seconds.
    shortest_idle: u32,
    /// In a deep pass.
    count: Option<Count>,
    /// The flows of connections whose sides are to be nudged.
    untold: Vec<[FlowKey; 2]>,
}

/// What a deep pass saw of connections.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    /// By number of backend: those that are live, and those that are admitted.
    live: Tally,
    admitted: Tally,
    /// By number of service: those that it admitted.
    services: Tally,
    /// By number of backend, as of the pass's start: what others count is of no use.
    generations: Vec<u8>,
}

/// Connections by number.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Loads at the pass's start, those that were not 0.
    before: HashMap<u32, u32>,
    /// Connections in the table.
    found: HashMap<u32, u32>,
}

impl Tally {
    fn start(loads: impl Iterator<Item = u32>) -> Self {
        Self { before: (0..).zip(loads).filter(|(_, load)| *load != 0).collect(), found: HashMap::new() }
    }

    fn note(&mut self, number: u32) {
        *self.found.entry(number).or_default() += 1;
    }
}

impl Count {
    fn start(table: &FlowTable) -> Self {
        let (backends, services) = (table.backend_loads(), table.service_loads());
        let loads: Vec<Load> = (0..backends.count()).map(|number| backends.get(number)).collect();
        Self {
            live: Tally::start(loads.iter().map(|load| load.live())),
            admitted: Tally::start(loads.iter().map(|load| load.admitted())),
            services: Tally::start((0..services.count()).map(|number| services.get(number))),
            generations: loads.iter().map(|load| load.generation()).collect(),
        }
    }
}

impl<'a> Pass<'a> {
    fn new(table: &'a FlowTable, hz: u32, deep: bool) -> Self {
        let idles = (0..table.backend_count())
            .filter_map(|number| table.backend(number))
            .filter(|b| b.addr != 0 && !b.is_down());
        // What takes all protocols has the shortest for ICMP.
        let idles = idles.map(|backend| if backend.takes_all() { ICMP_IDLE } else { backend.idle_timeout });
        let shortest_idle = idles.fold(u32::MAX, u32::min);
        let count = deep.then(|| Count::start(table));
        Self { table, hz, shortest_idle, count, untold: Vec::with_capacity(BURST + WAYS) }
    }

    fn bucket(&mut self, bucket: u32, now: u32) {
        for (way, word) in (0..).zip(self.table.words(bucket)) {
            let word = Word(word.load(Ordering::Acquire));
            if !matches!(word.state(), State::Empty | State::Busy) {
                self.slot(bucket * WAYS as u32 + way, word, now);
            }
        }
    }

    fn slot(&mut self, slot: u32, word: Word, now: u32) {
        let shortest = match word.state() {
            State::Closed | State::Resumed => CLOSED,
            State::Reset => RESET.min(self.shortest_idle),
            State::Opening | State::Answered => HALF_OPEN,
            // Were the other direction over, its slot would see to both.
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
            // Whoever has the other direction in hand may be about to end the connection, or put it back. The next pass sees.
            return self.note(word, &flow, &backend);
        }
        let peer = self.peer(slot, &flow);
        let age = peer.as_ref().map_or(word.age(now), |(_, peer, _)| word.age(now).min(peer.age(now)));
        let idle = backend.idle_timeout_of(flow.key.protocol);
        let timeout = timeout(word.state(), peer.as_ref().map(|(_, peer, _)| peer.state()), idle);
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

/// True for a connection of an elastic IP: whichever side sends next, its segment makes the flows anew, so that it ends for none of
/// them by being idle.
fn goes_on(flows: [&Flow; 2], backend: &Backend) -> bool {
    // Of a network with source NAT the backend is the VIP.
    let is_masked = |flow: &Flow| flow.mark.is_outward() && flow.new_src == backend.addr;
    backend.takes_all() && !flows.into_iter().any(is_masked)
}

/// Seconds without a packet in either direction after which a connection is over. Its two slots may differ for the
/// moment in which a program moves one after the other, and while one side has closed: whom it left may be silent for as long
/// as before, until it answers.
fn timeout(one: State, other: Option<State>, idle: u32) -> u32 {
    let either = |is: fn(State) -> bool| is(one) || other.is_some_and(is);
    if either(|state| state == State::Reset) {
        RESET.min(idle)
    } else if either(State::is_over) {
        CLOSED
    } else if either(State::is_admitted) {
        idle
    } else {
        HALF_OPEN
    }
}

/// Corrects loads that differ from what the table holds. Connections come and go during a pass, so what was found lies
/// somewhere between the loads before and after it; how far it lies outside is a surplus, and what two deep passes in a
/// row find in the same direction is drift.
#[derive(Debug, Default)]
struct Drift {
    live: HashMap<u32, i64>,
    admitted: HashMap<u32, i64>,
    services: HashMap<u32, i64>,
}

impl Drift {
    fn correct(&mut self, table: &FlowTable, count: &Count) {
        let (backends, services) = (table.backend_loads(), table.service_loads());
        let same = |number: &u32| count.generations.get(*number as usize) == Some(&backends.get(*number).generation());
        let numbers: Vec<u32> = (0..backends.count()).filter(same).collect();
        let live = |number| backends.get(number).live();
        correct(&mut self.live, &numbers, live, &count.live, |number, by| backends.correct(number, by, 0));
        let admitted = |number| backends.get(number).admitted();
        correct(&mut self.admitted, &numbers, admitted, &count.admitted, |number, by| backends.correct(number, 0, by));
        let numbers: Vec<u32> = (0..services.count()).collect();
        let admitted = |number| services.get(number);
        correct(&mut self.services, &numbers, admitted, &count.services, |number, by| {
            let connections = u32::try_from(by.unsigned_abs()).unwrap_or(u32::MAX);
            if by > 0 { services.add(number, connections) } else { services.take(number, connections) }
        });
    }
}

/// Corrects the loads of these numbers by the `last` pass's surpluses and this one's, which stand there afterwards.
fn correct(
    last: &mut HashMap<u32, i64>,
    numbers: &[u32],
    load: impl Fn(u32) -> u32,
    tally: &Tally,
    add: impl Fn(u32, i64),
) {
    let before = std::mem::take(last);
    let of = |counts: &HashMap<u32, u32>, number| i64::from(counts.get(&number).copied().unwrap_or(0));
    for number in numbers.iter().copied() {
        let (at_start, now) = (of(&tally.before, number), i64::from(load(number)));
        let found = of(&tally.found, number);
        let surplus = found.clamp(at_start.min(now), at_start.max(now)) - found;
        if surplus == 0 {
            continue;
        }
        let (off, left) = settle(before.get(&number).copied().unwrap_or(0), surplus);
        if off != 0 {
            add(number, -off);
        }
        last.insert(number, left);
    }
}

/// What to take off for the last and this pass's surplus, and what surplus is left to be seen again.
fn settle(last: i64, now: i64) -> (i64, i64) {
    if last.signum() != now.signum() {
        return (0, now);
    }
    let off = if last.abs() < now.abs() { last } else { now };
    (off, now - off)
}

#[cfg(test)]
mod tests;
