//! Ends flows that are over: idle for too long, closed, or of a backend whose generation moved on. TCP connections that both
//! sides may think alive stay for a while, closed, so that a side that sends is answered with a reset; both sides are nudged, so
//! that a silent side sends.
//!
//! A thread walks the mapped flow table in slices, a pass every [`PASS`]. It reads only the slot words, 8 bytes a flow, unless a
//! word is old. So a million flows cost some milliseconds of one CPU a pass, and one system call for the time. It shares the
//! table with the programs by the race rules of `vipgate_abi::flow`.
//!
//! Every [`DEEP_EVERY`] passes, and at once when the reconciler ended flows, a *deep* pass reads every flow: it removes
//! those of past generations and corrects the loads of backends and services that differ from what the table holds.

mod load_drift;
mod pass;
mod timeouts;

use std::{
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
use vipgate_abi::flow::FlowKey;

use self::{
    load_drift::Drift,
    pass::{BURST, Pass},
    timeouts::TRANSITORY,
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
/// Rests of a hurried pass: between its slices, and after it, so that a stream of changes does not keep a CPU busy.
const BREATH: Duration = Duration::from_millis(1);
const BETWEEN_HURRIED: Duration = Duration::from_secs(1);

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

/// Ready once the sweeper's thread has ended, by a panic, too.
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
    let mut closed_timeout = TRANSITORY;
    for pass in (0..DEEP_EVERY).cycle() {
        let hurried = shared.deep.swap(false, Ordering::Relaxed);
        let mut pass = Pass::new(table, hz, closed_timeout, hurried || pass == 0);
        match walk(plane, &mut pass, shared, hurried, &mut nudger)? {
            Walked::Stopped => return Ok(()),
            // The hurried pass that follows does the work of this one, too.
            Walked::Interrupted => {}
            Walked::All => {
                closed_timeout = pass.next_closed_timeout();
                pass.count.iter().for_each(|count| drift.correct(table, count));
            }
        }
        if hurried && rest(shared, BETWEEN_HURRIED, false) == Rested::Stop {
            return Ok(());
        }
    }
    Ok(())
}

enum Walked {
    All,
    /// A deep pass was asked for.
    Interrupted,
    Stopped,
}

/// One pass, in slices: spread over [`PASS`], or hurried.
fn walk(
    plane: &Plane,
    pass: &mut Pass,
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
    Ok(Walked::All)
}

#[derive(PartialEq, Eq)]
enum Rested {
    Long,
    /// Cut short because a deep pass was asked for.
    Short,
    /// The sweeper must end.
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

/// The peer that the sender of packets with this key knows, and that sender.
fn ends(key: &FlowKey) -> (SocketAddrV4, SocketAddrV4) {
    (loader::address(key.dst, key.dport), loader::address(key.src, key.sport))
}

#[cfg(test)]
mod tests;
