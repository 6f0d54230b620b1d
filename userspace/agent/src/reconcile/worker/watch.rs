//! What makes the worker look at the router again: announcements of the kernel, and time.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{Command, epoch};
use crate::{loader::Epoch, net::Watcher};

/// Pause between a change of devices and the sync that follows, so that a burst of changes costs one sync.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two checks that all programs and queueing disciplines are still attached: the kernel does not announce their removal.
const FIND_LOST: Duration = Duration::from_secs(3);

/// Follows the kernel's announcements: a next hop's change at once, a device's after [`SETTLE`]. Notifies `addresses` when the
/// router's own may have changed.
pub(super) async fn watch(
    mut watcher: Watcher,
    epoch: Arc<Mutex<Epoch>>,
    commands: mpsc::WeakSender<Command>,
    addresses: watch::Sender<()>,
) {
    let mut sync_at: Option<Instant> = None;
    loop {
        tokio::select! {
            changes = watcher.changed() => {
                if changes.next_hops {
                    epoch::bump(&epoch);
                }
                if changes.own_addresses {
                    addresses.send_replace(());
                }
                if changes.devices {
                    sync_at.get_or_insert_with(|| Instant::now() + SETTLE);
                }
            }
            () = sleep_until(sync_at.unwrap_or_else(Instant::now)), if sync_at.is_some() => {
                sync_at = None;
                // The worker has ended.
                let Some(commands) = commands.upgrade() else { return };
                if commands.send(Command::SyncNetwork).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Asks for [`Command::FindLost`] again and again.
pub(super) async fn find_lost(commands: mpsc::WeakSender<Command>) {
    send_every(FIND_LOST, commands, || Command::FindLost).await;
}

/// Asks for [`Command::SizeFlows`] again and again.
pub(super) async fn size_flows(commands: mpsc::WeakSender<Command>, every: Duration) {
    send_every(every, commands, || Command::SizeFlows).await;
}

async fn send_every(every: Duration, commands: mpsc::WeakSender<Command>, command: fn() -> Command) {
    loop {
        sleep(every).await;
        // The worker has ended.
        let Some(commands) = commands.upgrade() else { return };
        if commands.send(command()).await.is_err() {
            return;
        }
    }
}
