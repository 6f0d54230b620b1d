//! Health checks: whether backends answer the router's own probes.
//!
//! ```text
//! reconciler: a VIP's backends -> scheduler: which backends, when, what was found -> prober
//! store, reconciler  <-  reporter: what changed  <-
//! ```
//! Each running VM's backend of each enabled VIP is probed at its own address, every interval of its listener. A backend
//! changes its health after so many results in a row that say the opposite; a new one is healthy until then. What
//! changed is stored first and applied then, as any change is: the reference's status shows it, the selection table follows at
//! once, and a controller that starts anew goes on with what was known.
//!
//! No thread and no task waits for a backend's turn: one task sleeps until the next one of all. The turns of backends
//! with the same interval are spread over it. The number of checks that run at a time is bounded, and accounts share it
//! fairly; should that not be enough, checks begin late, which [`Figures::late_milliseconds`] and the log show.
//!
//! Each backend is probed by the device of its own network. A check that fails because the router cannot reach that network is
//! inconclusive: backends keep the health that they had.
//!
//! Touches the network by sockets of its own and asks `net` for neighbours; the kernel's tables through the reconciler only.

mod prober;
mod report;
mod scheduler;
mod slots;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, task::AbortHandle};
use vipgate_state::{Address, Apply, Findings, HealthCheck, Protocol, VipState};

use self::scheduler::Scheduler;

/// The checks of all backends. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct HealthChecks {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    scheduler: Mutex<Scheduler>,
    /// The scheduler changed: the next turn may be sooner.
    rescheduled: Notify,
    /// A backend's health changed.
    found: Notify,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    passed: AtomicU64,
    failed: AtomicU64,
    inconclusive: AtomicU64,
    changed: AtomicU64,
    per_minute: AtomicU64,
    late_milliseconds: AtomicU64,
}

/// A moment's figures of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Backends that are checked.
    pub backends: usize,
    /// Those of them that are unhealthy.
    pub unhealthy: usize,
    /// Checks since the start that passed, that failed, and that the router itself could not make.
    pub passed: u64,
    pub failed: u64,
    pub inconclusive: u64,
    /// How often a backend's health changed since the start.
    pub changed: u64,
    /// Checks begun a minute, of late.
    pub per_minute: u64,
    /// How late a check began at most, of late, in milliseconds.
    pub late_milliseconds: u64,
}

/// A backend to check.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// The backend's number.
    number: u32,
    /// Uuid of its listener's account.
    account: Arc<str>,
    /// Where it is asked, and by which device.
    address: SocketAddr,
    device: Arc<str>,
    check: HealthCheck,
    /// As stored.
    healthy: bool,
}

impl Target {
    fn question(&self) -> Question {
        Question {
            protocol: self.check.protocol,
            address: self.address,
            device: Arc::clone(&self.device),
            patience: Duration::from_secs(self.check.timeout.into()),
        }
    }
}

/// What one check asks.
#[derive(Clone, Debug)]
struct Question {
    protocol: Protocol,
    address: SocketAddr,
    /// The router's device by which the backend's network is.
    device: Arc<str>,
    /// How long an answer may take.
    patience: Duration,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    Passed,
    Failed(String),
    /// The router itself could not ask; this proves nothing about the backend.
    Inconclusive(String),
}

/// The running checks; they end on drop.
#[derive(Debug)]
pub struct Running {
    tasks: Vec<AbortHandle>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl HealthChecks {
    /// Checks exactly these backends of a VIP from now on. Those that were checked before keep what
    /// was found.
    pub fn watch<A: Address>(&self, vip: &VipState<A>) {
        let now = Instant::now();
        self.with_scheduler(|scheduler| scheduler.watch(&vip.uuid, targets(vip), now));
    }

    /// Ends the checks of a VIP's backends.
    pub fn forget(&self, vip: &str) {
        let now = Instant::now();
        self.with_scheduler(|scheduler| scheduler.watch(vip, Vec::new(), now));
    }

    /// Starts to check, in the calling thread's network namespace, and to report what changes.
    #[must_use = "the checks end when this is dropped"]
    pub fn run(&self, findings: impl Findings, agent: impl Apply) -> Running {
        let mut running = self.probe();
        let report = report::run(Arc::clone(&self.shared), findings, agent);
        running.tasks.push(tokio::spawn(report).abort_handle());
        running
    }

    /// Checks without reporting.
    fn probe(&self) -> Running {
        Running { tasks: vec![tokio::spawn(prober::run(Arc::clone(&self.shared))).abort_handle()] }
    }

    pub fn figures(&self) -> Figures {
        let (backends, unhealthy) = self.shared.scheduler().count();
        let counts = &self.shared.counts;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Figures {
            backends,
            unhealthy,
            passed: of(&counts.passed),
            failed: of(&counts.failed),
            inconclusive: of(&counts.inconclusive),
            changed: of(&counts.changed),
            per_minute: of(&counts.per_minute),
            late_milliseconds: of(&counts.late_milliseconds),
        }
    }

    fn with_scheduler(&self, change: impl FnOnce(&mut Scheduler)) {
        let mut scheduler = self.shared.scheduler();
        change(&mut scheduler);
        let found = scheduler.has_changes();
        drop(scheduler);
        self.shared.rescheduled.notify_one();
        if found {
            self.shared.found.notify_one();
        }
    }
}

impl Shared {
    /// A panic of the lock's holder leaves the scheduler whole: it is changed in single steps.
    fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The backends of a VIP that are to be checked: those that could get flows if they answer.
fn targets<A: Address>(vip: &VipState<A>) -> Vec<Target> {
    let listeners = vip.listeners.iter().filter(|_| vip.enabled);
    listeners
        .flat_map(|listener| {
            let (check, account) = (listener.check, Arc::<str>::from(listener.account.as_str()));
            let backends = listener.backends.iter().filter(|backend| backend.active);
            backends.map(move |backend| Target {
                number: backend.number,
                account: Arc::clone(&account),
                address: SocketAddr::new(backend.address.into(), check.port.unwrap_or(backend.port)),
                device: backend.device.as_str().into(),
                check,
                healthy: backend.healthy,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
