//! The task that owns the tables, the devices and the VIPs' addresses.
//!
//! It serves one command at a time; commands that wait meanwhile are served as one batch. System calls that may block run on the
//! blocking pool; the worker waits for them, the rest of the controller does not.
//!
//! - [`mod@apply`]: VIPs applied, removed, tried again; [`addresses`], which their devices have; [`announce`]ments by ARP
//! - [`devices`]: set up and followed; [`epoch`]: what the programs must know of them; [`neighbours`]: kept confirmed
//! - [`queues`] of bandwidth limits; [`resize`]: the flow table's size
//! - [`watch`]: what makes the worker look again; [`retry`]: when what failed is tried again

mod addresses;
mod announce;
mod apply;
mod devices;
mod epoch;
mod neighbours;
mod queues;
mod resize;
mod retry;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{mpsc, watch as channel},
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};
use vipgate_state::{Capacity, Source};

use self::{queues::Queues, retry::Retry};
use super::{
    ApplyError, Pace, Refusals, Reply,
    devices::ManagedDevices,
    engine::Engine,
    exhaustion::Exhaustion,
    flow_table_size::Sizing,
    sweep::{self, Sweeper},
};
use crate::{
    health::HealthChecks,
    loader::{self, Addresses, Epoch, FlowReader, Plane},
    net::{Device, Netlink, Watcher, arp::Announcer},
};

/// A batch is at most so many commands, so that the first caller's wait is bounded.
const BATCH: usize = 256;

/// What callers ask of the worker.
#[derive(Debug)]
pub(super) enum Command {
    Apply {
        vips: BTreeSet<String>,
        reply: Reply,
    },
    Prepare {
        device: String,
        reply: Reply,
    },
    Devices {
        reply: Reply,
    },
    /// The programs shall log packets with these reasons.
    LogReasons {
        reasons: u64,
        reply: Reply,
    },
    /// Something in the router's network changed.
    SyncNetwork,
    /// VIPs that were announced, by the name of their device, are to be so once more.
    Announce {
        vips: BTreeMap<String, Vec<Ipv4Addr>>,
    },
    /// Somebody may have taken programs, or the disciplines of queues, off their devices.
    FindLost,
    /// The flow table may be too small, or too large.
    SizeFlows,
    Stop {
        reply: Reply,
    },
}

/// What blocking work uses.
#[derive(Debug)]
struct Kernel {
    plane: Arc<Plane>,
    engine: Engine<loader::Tables>,
    devices: ManagedDevices,
    sweeper: Sweeper,
    /// The flow table, and which size it should have.
    flows: FlowReader,
    sizing: Sizing,
    exhaustion: Exhaustion,
}

/// What [`Kernel::open`] opens.
struct Opened {
    kernel: Kernel,
    swept: sweep::Ended,
    epoch: Epoch,
    own: Addresses,
}

impl Kernel {
    /// Opens the tables, and starts the sweeper.
    fn open(plane: Arc<Plane>, pace: Pace) -> Result<Opened, ApplyError> {
        let mut tables = plane.tables().map_err(open)?;
        tables.begin().map_err(open)?;
        let (sweeper, swept) = Sweeper::start(Arc::clone(&plane)).map_err(open)?;
        let kernel = Self {
            engine: Engine::new(tables).map_err(open)?,
            devices: ManagedDevices::new(Arc::clone(&plane)).map_err(open)?,
            sweeper,
            flows: plane.flow_reader().map_err(open)?,
            sizing: Sizing::new(pace, plane.flows(), std::time::Instant::now()),
            exhaustion: Exhaustion::start(&plane).map_err(open)?,
            plane,
        };
        let epoch = kernel.plane.epoch().map_err(open)?;
        let own = kernel.plane.addresses().map_err(open)?;
        Ok(Opened { kernel, swept, epoch, own })
    }
}

/// A VIP as it was applied.
#[derive(Clone, Debug)]
struct AppliedVip {
    address: Ipv4Addr,
    device: String,
    /// The address is the router's own: it is not added, removed or announced.
    own: bool,
    /// The devices that its entries name, with their interface indices; `None` if the device was missing.
    named: BTreeMap<String, Option<u32>>,
    backends: BTreeSet<Ipv4Addr>,
}

#[derive(Debug)]
pub(super) struct Worker<S> {
    source: S,
    checks: HealthChecks,
    net: Netlink,
    kernel: Arc<Mutex<Kernel>>,
    /// Ready when the sweeper has ended. Without it the flow table only fills.
    swept: sweep::Ended,
    epoch: Arc<Mutex<Epoch>>,
    /// The table by which the programs know the router's own addresses.
    own: Addresses,
    queues: Queues,
    capacity: Capacity,
    /// VIPs by uuid; shared with the task that confirms their neighbours.
    applied: Arc<Mutex<BTreeMap<String, AppliedVip>>>,
    /// The uuid of the VIP that has an address.
    owners: HashMap<Ipv4Addr, String>,
    /// The addresses that vipgate set, with interface indices, as far as is known: no other address is removed from a device.
    marked: HashSet<(u32, Ipv4Addr)>,
    dirty: HashMap<String, Retry>,
    /// Set while devices, or the addresses on them, have failed.
    network_dirty: Option<Retry>,
    /// Gets the devices that cannot be set up.
    refused: channel::Sender<Refusals>,
    /// The tasks beside the worker, which end with it.
    tasks: Vec<AbortHandle>,
    announcer: Announcer,
    /// Announcements that are still to be repeated.
    repeats: JoinSet<()>,
    /// For tasks that send commands to the worker.
    commands: mpsc::WeakSender<Command>,
}

impl<S: Source> Worker<S> {
    /// Opens everything, starts the tasks beside the worker, and brings everything in line.
    pub(super) async fn start(
        plane: Arc<Plane>,
        source: S,
        checks: HealthChecks,
        pace: Pace,
        commands: mpsc::WeakSender<Command>,
        refused: channel::Sender<Refusals>,
        addresses: channel::Sender<()>,
    ) -> Result<Self, ApplyError> {
        // Before anything is read, so that what changes while it is read is noticed.
        let watcher = Watcher::open().await.map_err(open)?;
        let net = Netlink::open().map_err(open)?;
        let queues = Queues::find(&net).await.map_err(open)?;
        let sizes = plane.sizes();
        let capacity = Capacity { services: sizes.services, backends: sizes.backends, ..Capacity::default() };
        let Opened { kernel, swept, epoch, own } = blocking(move || Kernel::open(plane, pace)).await?;
        let epoch = Arc::new(Mutex::new(epoch));
        let applied = Arc::default();
        let tasks = vec![
            tokio::spawn(watch::find_lost(commands.clone())).abort_handle(),
            tokio::spawn(watch::size_flows(commands.clone(), pace.look)).abort_handle(),
            tokio::spawn(watch::watch(watcher, Arc::clone(&epoch), commands.clone(), addresses)).abort_handle(),
            tokio::spawn(neighbours::keep_confirmed(net.clone(), Arc::clone(&applied))).abort_handle(),
        ];
        let mut worker = Self {
            source,
            checks,
            net,
            kernel: Arc::new(Mutex::new(kernel)),
            swept,
            epoch,
            own,
            queues,
            capacity,
            applied,
            owners: HashMap::new(),
            marked: HashSet::new(),
            dirty: HashMap::new(),
            network_dirty: None,
            refused,
            tasks,
            announcer: Announcer::default(),
            repeats: JoinSet::new(),
            commands,
        };
        worker.resume_queues().await?;
        worker.full_pass().await?;
        Ok(worker)
    }

    /// Serves commands until one stops it, until all senders are gone, or until the sweeper has ended by itself.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let stops = loop {
            let next = self.next_retry();
            let mut batch = Vec::new();
            tokio::select! {
                count = queue.recv_many(&mut batch, BATCH) => if count == 0 { break Vec::new() },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                _ = &mut self.swept => break Vec::new(),
            }
            let sizes = batch.iter().any(|command| matches!(command, Command::SizeFlows));
            let stops = self.serve(batch).await;
            if !stops.is_empty() {
                break stops;
            }
            if sizes && let Err(error) = self.size_flows().await {
                resize::log(&error);
                break Vec::new();
            }
        };
        let kernel = Arc::clone(&self.kernel);
        drop(self);
        // Waits for the sweeper's thread.
        blocking(move || drop(kernel)).await;
        debug!("the reconciler has ended");
        for reply in stops {
            let _ = reply.send(Ok(()));
        }
    }

    /// Serves a batch and what is due again. Returns the replies of those who asked for the end.
    async fn serve(&mut self, batch: Vec<Command>) -> Vec<Reply> {
        let (mut applies, mut devices, mut stops) = (Vec::new(), Vec::new(), Vec::new());
        let (mut look, mut find_lost) = (false, false);
        let mut announced: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        for command in batch {
            match command {
                Command::Prepare { device, reply } => {
                    // The caller may have gone away.
                    let _ = reply.send(self.prepare_device(device).await);
                }
                Command::Apply { vips, reply } => applies.push((vips, reply)),
                Command::Devices { reply } => devices.push(reply),
                Command::LogReasons { reasons, reply } => {
                    let _ = reply.send(lock(&self.epoch).set_logged_reasons(reasons).map_err(open));
                }
                Command::SyncNetwork => look = true,
                Command::Announce { vips } => {
                    vips.into_iter().for_each(|(device, vips)| announced.entry(device).or_default().extend(vips));
                }
                Command::FindLost => find_lost = true,
                // After all else.
                Command::SizeFlows => {}
                Command::Stop { reply } => stops.push(reply),
            }
        }
        look |= find_lost && self.find_lost().await;
        let now = Instant::now();
        if look || !devices.is_empty() || self.network_dirty.is_some_and(|retry| retry.at <= now) {
            let result = match self.sync_network().await {
                // Logged and tried again; the caller's change is not the cause.
                Err(ApplyError::Device { .. } | ApplyError::Vip { .. }) => Ok(()),
                result => result,
            };
            for reply in devices {
                let _ = reply.send(result.clone());
            }
        }
        // Once the devices are as they are now.
        self.announce_again(announced).await;
        let due = self.dirty.iter().filter(|(_, retry)| retry.at <= now).map(|(vip, _)| vip.clone());
        let vips: BTreeSet<String> = applies.iter().flat_map(|(vips, _)| vips).cloned().chain(due).collect();
        let errors = if vips.is_empty() { HashMap::new() } else { self.apply(&vips).await };
        for (vips, reply) in applies {
            let _ = reply.send(vips.iter().find_map(|vip| errors.get(vip)).cloned().map_or(Ok(()), Err));
        }
        stops
    }

    fn next_retry(&self) -> Option<Instant> {
        self.dirty.values().chain(&self.network_dirty).map(|retry| retry.at).min()
    }

    /// Notes whether a VIP is to be tried again.
    fn mark(&mut self, uuid: &str, error: Option<&ApplyError>) {
        match error {
            None => drop(self.dirty.remove(uuid)),
            Some(error) => {
                let retry = Retry::after(self.dirty.get(uuid).copied());
                warn!(vip = uuid, %error, again_in = ?retry.pause, "trying again");
                self.dirty.insert(uuid.to_owned(), retry);
            }
        }
    }

    /// The device of that name, if it is set up.
    fn device(&self, name: &str) -> Option<Device> {
        self.lock().devices.get(name).cloned()
    }

    fn applied(&self) -> MutexGuard<'_, BTreeMap<String, AppliedVip>> {
        lock(&self.applied)
    }

    /// For reads that do not block; nothing else holds the lock while the worker is not waiting for it.
    fn lock(&self) -> MutexGuard<'_, Kernel> {
        lock(&self.kernel)
    }

    /// Runs work that makes system calls on the blocking pool.
    async fn with_kernel<T: Send + 'static>(&self, work: impl FnOnce(&mut Kernel) -> T + Send + 'static) -> T {
        let kernel = Arc::clone(&self.kernel);
        blocking(move || work(&mut lock(&kernel))).await
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn open(error: impl std::error::Error) -> ApplyError {
    ApplyError::Open { reason: loader::causes(&error) }
}

fn unreadable(error: &dyn std::error::Error) -> ApplyError {
    ApplyError::Source { reason: loader::causes(error) }
}

fn failed(vip: impl Into<IpAddr>, error: &dyn std::error::Error) -> ApplyError {
    ApplyError::Vip { vip: vip.into().to_string(), reason: loader::causes(error) }
}

/// A panic of the lock's holder leaves the data whole: it is changed in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        // What panicked for us shall be seen to panic here.
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Cancelled: the runtime is ending, and this task with it.
        Err(Err(_)) => std::future::pending().await,
    }
}
