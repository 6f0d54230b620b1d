//! The task that owns the tables, the devices and the VIPs' addresses.
//!
//! One command at a time, those that wait meanwhile are one batch. System calls that may block run on the blocking
//! pool; the worker waits for them, the rest of the controller does not.
//!
//! A VIP's address comes after its entries and goes before them, so that no packet reaches the router for a service
//! that it does not know yet, or no longer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    ApplyError, Reply,
    compile::{check, compile},
    devices::{Managed, Synced},
    engine::Engine,
    sweep::Sweeper,
};
use crate::{
    loader::{self, Epoch, Plane},
    net::{Device, NetError, Netlink, Watcher, arp},
    state::{Limits, Source, VipState},
};

/// A batch is at most so many commands, so that the first caller's wait is bounded.
const BATCH: usize = 256;
/// First and longest pause before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Pause between events of the network and the look at it, so that a burst of them costs one look.
const SETTLE: Duration = Duration::from_millis(50);
/// Announcements after the first, should that one be lost.
const REPEAT_ANNOUNCEMENT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// How often the neighbours of backends are confirmed: within Linux's 30 s of reachability and 60 s of grace.
const CONFIRM_NEIGHBOURS: Duration = Duration::from_secs(20);

/// What callers ask of the worker.
#[derive(Debug)]
pub(super) enum Command {
    Apply {
        vips: BTreeSet<String>,
        reply: Reply,
    },
    Devices {
        reply: Reply,
    },
    /// Something in the router's network changed.
    Look,
    Stop {
        reply: Reply,
    },
}

/// What blocking work owns.
#[derive(Debug)]
struct Kernel {
    engine: Engine<loader::Tables>,
    devices: Managed,
    sweeper: Sweeper,
}

/// A VIP as it was applied.
#[derive(Clone, Debug)]
struct Placed {
    address: Ipv4Addr,
    device: String,
    backends: BTreeSet<Ipv4Addr>,
}

/// A VIP by uuid whose entries come or came to the kernel, and its backends that are new.
type Ready = (String, VipState, BTreeSet<Ipv4Addr>);

/// Something that failed and is to be tried again.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

#[derive(Debug)]
pub(super) struct Worker<S> {
    source: S,
    net: Netlink,
    kernel: Arc<Mutex<Kernel>>,
    epoch: Arc<Mutex<Epoch>>,
    limits: Limits,
    /// VIPs by uuid; shared with the task that confirms their neighbours.
    placed: Arc<Mutex<BTreeMap<String, Placed>>>,
    /// Which VIP has an address, by uuid.
    owners: HashMap<Ipv4Addr, String>,
    dirty: HashMap<String, Retry>,
    /// The devices, or the addresses on them, failed.
    network_dirty: Option<Retry>,
    /// End with the worker.
    tasks: Vec<AbortHandle>,
    /// Announcements that are still to be repeated.
    repeats: JoinSet<()>,
}

impl<S: Source> Worker<S> {
    /// Opens everything, starts the helpers, and brings everything in line.
    pub(super) async fn start(
        plane: Arc<Plane>,
        source: S,
        commands: mpsc::WeakSender<Command>,
    ) -> Result<Self, ApplyError> {
        // Before anything is read, so that what changes while it is read is noticed.
        let watcher = Watcher::open().await.map_err(open)?;
        let net = Netlink::open().map_err(open)?;
        let sizes = plane.sizes();
        let limits = Limits { listeners: sizes.services, backends: sizes.backends, ..Limits::default() };
        let (kernel, epoch) = blocking(move || {
            let kernel = Kernel {
                engine: Engine::new(plane.tables().map_err(open)?).map_err(open)?,
                devices: Managed::new(Arc::clone(&plane)).map_err(open)?,
                sweeper: Sweeper::start(Arc::clone(&plane)).map_err(open)?,
            };
            Ok::<_, ApplyError>((kernel, plane.epoch().map_err(open)?))
        })
        .await?;
        let epoch = Arc::new(Mutex::new(epoch));
        let placed = Arc::default();
        let tasks = vec![
            tokio::spawn(watch(watcher, Arc::clone(&epoch), commands)).abort_handle(),
            tokio::spawn(confirm_neighbours(net.clone(), Arc::clone(&placed))).abort_handle(),
        ];
        let mut worker = Self {
            source,
            net,
            kernel: Arc::new(Mutex::new(kernel)),
            epoch,
            limits,
            placed,
            owners: HashMap::new(),
            dirty: HashMap::new(),
            network_dirty: None,
            tasks,
            repeats: JoinSet::new(),
        };
        worker.full_pass().await?;
        Ok(worker)
    }

    /// Serves commands until told to stop, or until nobody is left to give any.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let stops = loop {
            let next = self.next_retry();
            let mut batch = Vec::new();
            tokio::select! {
                count = queue.recv_many(&mut batch, BATCH) => if count == 0 { break Vec::new() },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            let stops = self.serve(batch).await;
            if !stops.is_empty() {
                break stops;
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

    /// Serves a batch and what is due again. Gives back who wants an end.
    async fn serve(&mut self, batch: Vec<Command>) -> Vec<Reply> {
        let (mut applies, mut devices, mut stops, mut look) = (Vec::new(), Vec::new(), Vec::new(), false);
        for command in batch {
            match command {
                Command::Apply { vips, reply } => applies.push((vips, reply)),
                Command::Devices { reply } => devices.push(reply),
                Command::Look => look = true,
                Command::Stop { reply } => stops.push(reply),
            }
        }
        let now = Instant::now();
        if look || !devices.is_empty() || self.network_dirty.is_some_and(|retry| retry.at <= now) {
            let result = self.sync_network().await;
            for reply in devices {
                // A caller that went away does not want the answer.
                let _ = reply.send(result.clone());
            }
        }
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

    /// Everything stored is applied, everything else goes.
    async fn full_pass(&mut self) -> Result<(), ApplyError> {
        if let Err(error) = self.sync_devices().await {
            warn!(%error, "trying again");
            self.network_dirty = Some(again(self.network_dirty));
        }
        let vips = self.source.vips().await.map_err(|error| unreadable(&error))?;
        let count = vips.len();
        let wanted: HashSet<Ipv4Addr> = vips.iter().map(|vip| vip.address).collect();
        let states = vips.into_iter().map(|vip| (vip.uuid.clone(), Some(vip))).collect();
        let errors = self.apply_states(states).await;
        let removed = self.remove_orphans(wanted).await?;
        info!(vips = count, failed = errors.len(), orphans = removed, "the router is in line with the store");
        Ok(())
    }

    /// Removes the entries and addresses of VIPs that are not stored any more.
    async fn remove_orphans(&mut self, wanted: HashSet<Ipv4Addr>) -> Result<usize, ApplyError> {
        let held = self.lock().engine.vips();
        let orphans: BTreeSet<Ipv4Addr> = held.into_iter().filter(|vip| !wanted.contains(vip)).collect();
        let addresses = self.net.addresses().await.map_err(open)?;
        for held in addresses.into_iter().filter(|held| !wanted.contains(&held.address)) {
            // A kernel that does not keep the mark (before 5.18) still has the entries to tell.
            if (held.vip || (orphans.contains(&held.address) && held.prefix_len == 32))
                && let Err(error) = self.net.remove_vip(held.ifindex, held.address).await
            {
                warn!(%error, "an address without a VIP stays");
            }
        }
        let count = orphans.len();
        let removed = self.with_kernel(move |kernel| {
            orphans.into_iter().try_for_each(|vip| kernel.engine.remove(vip, std::time::Instant::now()))
        });
        if let Err(error) = removed.await {
            warn!(%error, "entries without a VIP stay until the next start");
        }
        Ok(count)
    }

    /// Brings VIPs in line; the errors by uuid.
    async fn apply(&mut self, vips: &BTreeSet<String>) -> HashMap<String, ApplyError> {
        let mut states = Vec::new();
        let mut unread = HashMap::new();
        for uuid in vips {
            match self.source.vip(uuid).await {
                Ok(state) => states.push((uuid.clone(), state)),
                Err(error) => drop(unread.insert(uuid.clone(), unreadable(&error))),
            }
        }
        for (uuid, error) in &unread {
            self.mark(uuid, Some(error));
        }
        unread.extend(self.apply_states(states).await);
        unread
    }

    async fn apply_states(&mut self, states: Vec<(String, Option<VipState>)>) -> HashMap<String, ApplyError> {
        let uuids: Vec<String> = states.iter().map(|(uuid, _)| uuid.clone()).collect();
        let mut errors = HashMap::new();
        // What goes comes first: its address or numbers may be another's in the same batch.
        let (stored, gone): (Vec<_>, Vec<_>) = states.into_iter().partition(|(_, state)| state.is_some());
        for (uuid, _) in gone {
            if let Err(error) = self.remove(&uuid).await {
                errors.insert(uuid, error);
            }
        }
        let mut ready = Vec::new();
        for (uuid, vip) in stored.into_iter().filter_map(|(uuid, state)| Some((uuid, state?))) {
            match self.prepare(&uuid, &vip).await {
                Ok(fresh) => ready.push((uuid, vip, fresh)),
                Err(error) => drop(errors.insert(uuid, error)),
            }
        }
        let ready = self.fill_tables(ready, &mut errors).await;
        self.place(ready, &mut errors).await;
        for uuid in uuids {
            self.mark(&uuid, errors.get(&uuid));
        }
        errors
    }

    /// Takes a VIP away: its address, then its entries.
    async fn remove(&mut self, uuid: &str) -> Result<(), ApplyError> {
        let Some(placed) = self.placed().get(uuid).cloned() else {
            return Ok(());
        };
        let vip = placed.address;
        let failed = |reason: String| ApplyError::Vip { vip: vip.to_string(), reason };
        // A new VIP may have taken the address over already.
        if self.owners.get(&vip).is_some_and(|owner| owner == uuid) {
            self.take_address(&placed).await.map_err(|error| failed(error.to_string()))?;
            let removed = self.with_kernel(move |kernel| {
                let removed = kernel.engine.remove(vip, std::time::Instant::now());
                kernel.sweeper.flows_ended();
                removed
            });
            removed.await.map_err(|error| failed(error.to_string()))?;
            self.owners.remove(&vip);
        }
        self.placed().remove(uuid);
        Ok(())
    }

    /// Notes where a VIP will be, and takes it from where it was. Gives the backends that it did not have before.
    async fn prepare(&mut self, uuid: &str, vip: &VipState) -> Result<BTreeSet<Ipv4Addr>, ApplyError> {
        check(vip, &self.limits).map_err(|error| failed(vip, &error))?;
        let before = self.placed().get(uuid).cloned();
        if let Some(before) = before.as_ref().filter(|b| b.address != vip.address || b.device != vip.device) {
            self.take_address(before).await.map_err(|error| failed(vip, &error))?;
        }
        let backends: BTreeSet<Ipv4Addr> = active_backends(vip);
        let fresh = before.map_or_else(|| backends.clone(), |before| &backends - &before.backends);
        self.owners.insert(vip.address, uuid.to_owned());
        let placed = Placed { address: vip.address, device: vip.device.clone(), backends };
        self.placed().insert(uuid.to_owned(), placed);
        Ok(fresh)
    }

    /// Brings VIPs' entries to the kernel; gives back those that it holds.
    async fn fill_tables(&self, vips: Vec<Ready>, errors: &mut HashMap<String, ApplyError>) -> Vec<Ready> {
        let results = self.with_kernel(move |kernel| {
            let now = std::time::Instant::now();
            let applied = vips.into_iter().map(|ready| (kernel.engine.apply(&compile(&ready.1), now), ready));
            let applied: Vec<_> = applied.collect();
            if kernel.engine.take_ended() {
                kernel.sweeper.flows_ended();
            }
            applied
        });
        let mut held = Vec::new();
        for (result, ready) in results.await {
            match result {
                Ok(()) => held.push(ready),
                Err(error) => drop(errors.insert(ready.0, failed(&ready.1, &error))),
            }
        }
        held
    }

    /// Puts the addresses of VIPs whose entries are there on their devices.
    async fn place(&mut self, vips: Vec<Ready>, errors: &mut HashMap<String, ApplyError>) {
        if vips.iter().any(|(_, vip, _)| self.device(&vip.device).is_none()) {
            // A VIP on a device that was not asked for yet; what fails is told for the VIP.
            let _ = self.sync_devices().await;
        }
        let mut neighbours = BTreeSet::new();
        let mut announced: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        for (uuid, vip, fresh) in vips {
            neighbours.extend(fresh);
            match self.give_address(&vip.device, vip.address).await {
                Ok(true) => announced.entry(vip.device).or_default().push(vip.address),
                Ok(false) => {}
                Err(reason) => {
                    errors.insert(uuid, ApplyError::Vip { vip: vip.address.to_string(), reason });
                }
            }
        }
        self.announce(announced).await;
        if !neighbours.is_empty() {
            tokio::spawn(confirm(self.net.clone(), neighbours));
        }
    }

    /// True: the address is new on its device.
    async fn give_address(&self, device: &str, vip: Ipv4Addr) -> Result<bool, String> {
        let Some(device) = self.device(device) else {
            return Err(format!("its device {device} is not set up; does it exist on this router?"));
        };
        self.net.add_vip(&device, vip).await.map_err(|error| error.to_string())
    }

    async fn take_address(&self, placed: &Placed) -> Result<(), NetError> {
        match self.device(&placed.device) {
            Some(device) => self.net.remove_vip(device.ifindex, placed.address).await,
            // The device is gone, and the address with it.
            None => Ok(()),
        }
    }

    /// Devices, then the VIPs' addresses on them.
    async fn sync_network(&mut self) -> Result<(), ApplyError> {
        let mut result = self.sync_devices().await.map(drop);
        if let Err(error) = self.restore_addresses().await {
            result = result.and(Err(error));
        }
        match &result {
            Ok(()) => self.network_dirty = None,
            Err(error) => {
                warn!(%error, "trying again");
                self.network_dirty = Some(again(self.network_dirty));
            }
        }
        result
    }

    /// Brings the devices in line, and announces the VIPs of those that are new or came up. The first error, if any.
    async fn sync_devices(&mut self) -> Result<(), ApplyError> {
        let wanted = self.source.devices().await.map_err(|error| unreadable(&error))?;
        let found = self.net.devices().await.map_err(open)?;
        let Synced { changed, fresh, errors } =
            self.with_kernel(move |kernel| kernel.devices.sync(&wanted, &found)).await;
        if changed {
            bump(&self.epoch);
        }
        let vips = self.placed().values().cloned().collect::<Vec<_>>();
        let mut announce: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        for placed in vips.into_iter().filter(|placed| fresh.contains(&placed.device)) {
            announce.entry(placed.device).or_default().push(placed.address);
        }
        self.announce(announce).await;
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Puts addresses back that a device lost: it was made anew, or somebody removed them.
    async fn restore_addresses(&mut self) -> Result<(), ApplyError> {
        let held = self.net.addresses().await.map_err(open)?;
        let held: HashSet<(u32, Ipv4Addr)> = held.into_iter().map(|held| (held.ifindex, held.address)).collect();
        let vips: Vec<Placed> = self.placed().values().cloned().collect();
        let mut announced: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        let mut result = Ok(());
        for placed in vips {
            // Without its device a VIP is dirty, and comes when the device does.
            let device = self.device(&placed.device).map(|device| device.ifindex);
            if device.is_none_or(|ifindex| held.contains(&(ifindex, placed.address))) {
                continue;
            }
            match self.give_address(&placed.device, placed.address).await {
                Ok(_) => announced.entry(placed.device).or_default().push(placed.address),
                Err(reason) => result = Err(ApplyError::Vip { vip: placed.address.to_string(), reason }),
            }
        }
        self.announce(announced).await;
        result
    }

    /// Announces VIPs by gratuitous ARP: once now, and a few times later. Nothing depends on it but how soon a neighbour
    /// that knew the address elsewhere learns better, so a failure is only told.
    async fn announce(&mut self, vips: BTreeMap<String, Vec<Ipv4Addr>>) {
        let vips: Vec<(Device, Vec<Ipv4Addr>)> = {
            let kernel = self.lock();
            vips.into_iter().filter_map(|(name, vips)| Some((kernel.devices.get(&name)?.clone(), vips))).collect()
        };
        if vips.is_empty() {
            return;
        }
        announce(vips.clone()).await;
        while self.repeats.try_join_next().is_some() {}
        self.repeats.spawn(async move {
            for pause in REPEAT_ANNOUNCEMENT {
                sleep(pause).await;
                announce(vips.clone()).await;
            }
        });
    }

    /// Notes whether a VIP is to be tried again.
    fn mark(&mut self, uuid: &str, error: Option<&ApplyError>) {
        match error {
            None => drop(self.dirty.remove(uuid)),
            Some(error) => {
                let retry = again(self.dirty.get(uuid).copied());
                warn!(vip = uuid, %error, again_in = ?retry.pause, "trying again");
                self.dirty.insert(uuid.to_owned(), retry);
            }
        }
    }

    /// The device of that name, if it is set up.
    fn device(&self, name: &str) -> Option<Device> {
        self.lock().devices.get(name).cloned()
    }

    fn placed(&self) -> MutexGuard<'_, BTreeMap<String, Placed>> {
        lock(&self.placed)
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

/// Every flow looks its next hop up again. One short system call that cannot wait for anything.
fn bump(epoch: &Mutex<Epoch>) {
    if let Err(error) = lock(epoch).bump() {
        warn!(%error, "flows may keep an old next hop");
    }
}

/// Follows the kernel's announcements.
async fn watch(mut watcher: Watcher, epoch: Arc<Mutex<Epoch>>, commands: mpsc::WeakSender<Command>) {
    loop {
        let changes = watcher.changed().await;
        if changes.next_hops {
            bump(&epoch);
        }
        if changes.devices {
            sleep(SETTLE).await;
            // Its end is the worker's end.
            let Some(commands) = commands.upgrade() else { return };
            if commands.send(Command::Look).await.is_err() {
                return;
            }
        }
    }
}

async fn confirm_neighbours(net: Netlink, placed: Arc<Mutex<BTreeMap<String, Placed>>>) {
    loop {
        sleep(CONFIRM_NEIGHBOURS).await;
        let backends = lock(&placed).values().flat_map(|placed| &placed.backends).copied().collect();
        confirm(net.clone(), backends).await;
    }
}

async fn confirm(net: Netlink, backends: BTreeSet<Ipv4Addr>) {
    for backend in backends {
        if let Err(error) = net.confirm_neighbour(backend).await {
            debug!(%error, "packets will have the stack resolve it");
        }
    }
}

async fn announce(vips: Vec<(Device, Vec<Ipv4Addr>)>) {
    blocking(move || {
        for (device, vips) in vips {
            if let Err(error) = arp::announce(&device, &vips) {
                warn!(%error, "neighbours may know the VIP elsewhere for a while");
            }
        }
    })
    .await;
}

/// The addresses to which a VIP sends new flows.
fn active_backends(vip: &VipState) -> BTreeSet<Ipv4Addr> {
    let backends = vip.listeners.iter().filter(|_| vip.enabled).flat_map(|listener| &listener.backends);
    backends.filter(|backend| backend.active).map(|backend| backend.address).collect()
}

fn again(last: Option<Retry>) -> Retry {
    let pause = last.map_or(RETRY.0, |last| (last.pause * 2).min(RETRY.1));
    Retry { at: Instant::now() + pause, pause }
}

fn open(error: impl std::error::Error) -> ApplyError {
    ApplyError::Open { reason: loader::causes(&error) }
}

fn unreadable(error: &dyn std::error::Error) -> ApplyError {
    ApplyError::Source { reason: loader::causes(error) }
}

fn failed(vip: &VipState, error: &dyn std::error::Error) -> ApplyError {
    ApplyError::Vip { vip: vip.address.to_string(), reason: loader::causes(error) }
}

/// The data behind a lock stays whole when its holder panics: it is changed in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Never cancelled: so it panicked, and so shall who waits for it.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
