//! What goes on beside the worker: watching the kernel's network, confirming neighbours, announcing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use super::{AppliedVip, Command, blocking, lock};
use crate::{
    loader::Epoch,
    net::{Device, Netlink, Watcher, arp::Announcer},
    reconcile::devices::Synced,
};

/// Announcements after the first, should that one be lost.
const REPEAT_ANNOUNCEMENT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Pause between a change of devices and the look at them, so that a burst of changes costs one look.
const SETTLE: Duration = Duration::from_millis(50);
/// How often it is looked whether all programs, and the disciplines of queues, are where they were put: nothing that somebody
/// does to them is announced.
const FIND_LOST: Duration = Duration::from_secs(3);
/// How often the neighbours of backends are confirmed: within Linux's 30 s of reachability and 60 s of grace.
const CONFIRM_NEIGHBOURS: Duration = Duration::from_secs(20);

/// Every flow looks its next hop up again. One short system call that cannot wait for anything.
pub(super) fn bump(epoch: &Mutex<Epoch>) {
    if let Err(error) = lock(epoch).bump() {
        warn!(%error, "flows may keep an old next hop");
    }
}

/// Tells the programs what a sync of the devices did.
pub(super) fn tell(epoch: &Mutex<Epoch>, synced: &Synced) {
    if let Err(error) = lock(epoch).be_strict(synced.strict) {
        warn!(%error, "strict reverse-path filtering may not be as it was set");
    }
    if synced.changed {
        bump(epoch);
    }
}

/// Follows the kernel's announcements: a next hop's change at once, a device's after the dust has settled. Tells `addresses`
/// when the router's own may have changed.
pub(super) async fn watch(
    mut watcher: Watcher,
    epoch: Arc<Mutex<Epoch>>,
    commands: mpsc::WeakSender<Command>,
    addresses: watch::Sender<()>,
) {
    let mut look: Option<Instant> = None;
    loop {
        tokio::select! {
            changes = watcher.changed() => {
                if changes.next_hops {
                    bump(&epoch);
                }
                if changes.own_addresses {
                    addresses.send_replace(());
                }
                if changes.devices {
                    look.get_or_insert_with(|| Instant::now() + SETTLE);
                }
            }
            () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                look = None;
                // Its end is the worker's end.
                let Some(commands) = commands.upgrade() else { return };
                if commands.send(Command::Look).await.is_err() {
                    return;
                }
            }
        }
    }
}

pub(super) async fn find_lost(commands: mpsc::WeakSender<Command>) {
    say_every(FIND_LOST, commands, || Command::FindLost).await;
}

pub(super) async fn size_flows(commands: mpsc::WeakSender<Command>, every: Duration) {
    say_every(every, commands, || Command::SizeFlows).await;
}

async fn say_every(every: Duration, commands: mpsc::WeakSender<Command>, command: fn() -> Command) {
    loop {
        sleep(every).await;
        // Its end is the worker's end.
        let Some(commands) = commands.upgrade() else { return };
        if commands.send(command()).await.is_err() {
            return;
        }
    }
}

pub(super) async fn confirm_neighbours(net: Netlink, applied: Arc<Mutex<BTreeMap<String, AppliedVip>>>) {
    loop {
        sleep(CONFIRM_NEIGHBOURS).await;
        let backends = lock(&applied).values().flat_map(|applied| &applied.backends).copied().collect();
        confirm(net.clone(), backends).await;
    }
}

pub(super) async fn confirm(net: Netlink, backends: BTreeSet<Ipv4Addr>) {
    for backend in backends {
        if let Err(error) = net.confirm_neighbour(backend).await {
            debug!(%error, "packets will have the stack resolve it");
        }
    }
}

/// Has VIPs, each with its device's name, announced again later.
pub(super) async fn repeat(vips: BTreeMap<String, Vec<Ipv4Addr>>, commands: mpsc::WeakSender<Command>) {
    for pause in REPEAT_ANNOUNCEMENT {
        sleep(pause).await;
        // Its end is the worker's end.
        let Some(commands) = commands.upgrade() else { return };
        if commands.send(Command::Announce { vips: vips.clone() }).await.is_err() {
            return;
        }
    }
}

pub(super) async fn announce(announcer: Announcer, vips: Vec<(Device, Vec<Ipv4Addr>)>) {
    blocking(move || {
        for (device, vips) in vips {
            if let Err(error) = announcer.announce(&device, &vips) {
                warn!(%error, "neighbours may know the VIP elsewhere for a while");
            }
        }
    })
    .await;
}
