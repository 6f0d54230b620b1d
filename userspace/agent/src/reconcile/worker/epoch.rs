//! The epoch under which flows remember their next hop: when it moves on, every flow looks its next hop up again.

use std::sync::Mutex;

use tracing::warn;

use super::lock;
use crate::{loader::Epoch, reconcile::devices::Synced};

/// Has every flow look its next hop up again. One short system call that does not block.
pub(super) fn bump(epoch: &Mutex<Epoch>) {
    if let Err(error) = lock(epoch).bump() {
        warn!(%error, "flows may keep an old next hop");
    }
}

/// Passes on to the programs what a sync of the devices changed.
pub(super) fn publish(epoch: &Mutex<Epoch>, synced: &Synced) {
    if let Err(error) = lock(epoch).set_strict(synced.strict) {
        warn!(%error, "strict reverse-path filtering may not be as it was set");
    }
    if synced.changed {
        bump(epoch);
    }
}
