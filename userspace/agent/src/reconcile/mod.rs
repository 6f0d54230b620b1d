//! Brings the router to what is stored: the kernel's tables, the devices' programs, the VIPs' addresses.
//!
//! ```text
//! stored state -> compile (pure) -> engine: diff with what the kernel holds, apply -> sweeper: ends what is over
//!                                   worker: devices, addresses, order, retries
//! ```
//! Level-triggered: every apply starts from what is stored and what the kernel has. A start brings everything in line
//! and removes what nothing wants any more, so a crash at any point heals. What fails stays dirty and is tried again
//! with growing pauses; the caller gets the error.
//!
//! Reads the store through [`Source`] only, passes the backends on to the health checks, writes the kernel through the loader and
//! `net` only.

mod arena;
mod bandwidth;
pub mod compile;
mod devices;
mod engine;
mod exhaustion;
mod flow_table_size;
pub mod maglev;
mod sweep;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::flow_table_size::Pace;
use vipgate_state::{Apply, Change, NotApplied, Source};

use self::worker::{Command, Worker};
use crate::{health::HealthChecks, loader::Plane};

/// Why the kernel does not hold what was asked for. It will be tried again.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ApplyError {
    #[error("the stored state cannot be read: {reason}")]
    Source { reason: String },
    #[error("VIP {vip} could not be brought to the kernel: {reason}")]
    Vip { vip: String, reason: String },
    #[error("device {device} could not be set up: {reason}")]
    Device { device: String, reason: String },
    #[error("the router's tables or network cannot be opened: {reason}")]
    Open { reason: String },
    #[error("the reconciler has stopped; the change is stored and will be applied at the next start")]
    Stopped,
}

/// Why a device that is wanted has no program, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: String,
    /// A command, or what to do.
    pub remedy: String,
}

/// By device.
pub type Refusals = BTreeMap<String, Refusal>;

/// The handle of the running reconciler. Clones are the same one; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Reconciler {
    commands: mpsc::Sender<Command>,
    refused: watch::Receiver<Refusals>,
    addresses: watch::Receiver<()>,
}

impl Reconciler {
    /// Starts in the calling thread's network namespace and brings everything in line once. VIPs and devices that
    /// fail are logged and tried again; only what prevents all work is an error. `checks` gets the backends.
    pub async fn start<S: Source>(plane: Arc<Plane>, source: S, checks: HealthChecks) -> Result<Self, ApplyError> {
        Self::start_at(Pace::default(), plane, source, checks).await
    }

    /// The same; the flow table's size follows what is in it at this pace.
    pub async fn start_at<S: Source>(
        pace: Pace,
        plane: Arc<Plane>,
        source: S,
        checks: HealthChecks,
    ) -> Result<Self, ApplyError> {
        let (commands, queue) = mpsc::channel(1024);
        let (set_refused, refused) = watch::channel(Refusals::new());
        let (changed, addresses) = watch::channel(());
        let worker = Worker::start(plane, source, checks, pace, commands.downgrade(), set_refused, changed).await?;
        tokio::spawn(worker.run(queue));
        Ok(Self { commands, refused, addresses })
    }

    /// Brings VIPs in line, those that are no longer stored included. Returns when the kernel holds them: traffic
    /// obeys already.
    pub async fn apply(&self, vips: BTreeSet<String>) -> Result<(), ApplyError> {
        self.ask(|reply| Command::Apply { vips, reply }).await
    }

    /// Sets up a device that is about to be wanted, so that one which cannot be is refused before anything is stored.
    /// A device that is not wanted after all loses its program again at the next change.
    pub async fn prepare(&self, device: String) -> Result<(), ApplyError> {
        self.ask(|reply| Command::Prepare { device, reply }).await
    }

    /// Brings the set of devices in line, after a change to it. A device that fails is logged and tried again, and is no error
    /// of this call: the caller has had its own device prepared.
    pub async fn devices_changed(&self) -> Result<(), ApplyError> {
        self.ask(|reply| Command::Devices { reply }).await
    }

    /// Has the programs log packets with these reasons, a set of [`Reason::bit`](vipgate_abi::counters::Reason::bit)s.
    pub async fn log_reasons(&self, reasons: u64) -> Result<(), ApplyError> {
        self.ask(|reply| Command::LogReasons { reasons, reply }).await
    }

    /// The devices that are wanted and cannot be set up at present.
    #[must_use]
    pub fn refused(&self) -> watch::Receiver<Refusals> {
        self.refused.clone()
    }

    /// Changes whenever the router's own addresses may have changed; ends with the reconciler.
    #[must_use]
    pub fn own_addresses(&self) -> watch::Receiver<()> {
        self.addresses.clone()
    }

    /// Stops all work of the reconciler. The traffic goes on.
    pub async fn shutdown(&self) {
        // A worker that is gone has stopped already.
        let _ = self.ask(|reply| Command::Stop { reply }).await;
    }

    /// Ready when the reconciler has ended, by [`Reconciler::shutdown`], or by a defect of it or of the sweeper. Then changes no
    /// longer reach the kernel, or flows no longer end: a controller should end, to be started again.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), ApplyError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ApplyError::Stopped)?;
        answer.await.unwrap_or(Err(ApplyError::Stopped))
    }
}

/// Where a command's result goes.
type Reply = oneshot::Sender<Result<(), ApplyError>>;

impl From<ApplyError> for NotApplied {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Stopped => Self::Ending,
            error => Self::Failed(Box::new(error)),
        }
    }
}

impl Apply for Reconciler {
    fn prepare(&self, device: String) -> BoxFuture<'_, Result<(), NotApplied>> {
        async move { Ok(self.prepare(device).await?) }.boxed()
    }

    fn apply(&self, change: Change) -> BoxFuture<'_, Result<(), NotApplied>> {
        async move {
            // Devices first: a VIP's address needs its device.
            if change.devices {
                self.devices_changed().await?;
            }
            if !change.vips.is_empty() {
                self.apply(change.vips).await?;
            }
            Ok(())
        }
        .boxed()
    }
}
