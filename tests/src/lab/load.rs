//! Steady traffic in the background of a test: what happened to it while something else happened to the router.

use super::{Client, Result, host::fetch};
use anyhow::Context as _;
use std::{
    net::SocketAddrV4,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// However long a test takes, its load ends.
const LONGEST: Duration = Duration::from_secs(120);

/// HTTP requests one after another, each on a new connection.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<LoadReport>>>,
}

#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    pub answered: u64,
    /// What went wrong, in the order it did.
    pub failures: Vec<String>,
}

impl Load {
    pub fn start(client: &Client, vip: SocketAddrV4) -> Result<Self> {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = client.namespace.spawn(move || {
            let mut report = LoadReport::default();
            let end = Instant::now() + LONGEST;
            while !stopped.load(Ordering::Relaxed) && Instant::now() < end {
                match fetch(vip) {
                    Ok(_) => report.answered += 1,
                    Err(error) => report.failures.push(format!("{error:#}")),
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
            report
        })?;
        Ok(Self { stop, done, thread: Some(thread) })
    }

    /// Requests finished so far, answered or not.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits for `more` further requests, so that what happened in between has met traffic.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.done() + more;
        super::wait_until("the load to go on", Duration::from_secs(60), || {
            anyhow::ensure!(self.done() >= goal, "{} of {goal} requests", self.done());
            Ok(())
        })
    }

    pub fn stop(mut self) -> Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a load is stopped once")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
