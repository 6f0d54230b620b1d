//! Brings what the checks found to the store, the references' status and the rings.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{error, warn};

use super::Shared;
use crate::{
    model,
    reconcile::{ApplyError, Reconciler},
    store::{self, Store, lb},
};

/// Before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Reports until the reconciler has stopped.
pub(super) async fn run(shared: Arc<Shared>, store: Store, reconciler: Reconciler) {
    // What a run before this one stored and did not live to see applied.
    let mut vips = match pending(&store).await {
        Ok(vips) => vips,
        Err(error) => {
            warn!(%error, "references may stay Pending until their load balancer changes");
            BTreeSet::new()
        }
    };
    loop {
        let failed = bring(&shared, &store, &reconciler, &mut vips).await;
        match failed {
            Ok(()) => shared.found.notified().await,
            Err(Failed::Stopped) => return,
            Err(Failed::Again) => sleep(RETRY).await,
        }
    }
}

enum Failed {
    Again,
    Stopped,
}

/// Stores what was found, and applies it: to `vips` as well, which holds afterwards what is to be applied again.
async fn bring(
    shared: &Shared,
    store: &Store,
    reconciler: &Reconciler,
    vips: &mut BTreeSet<String>,
) -> Result<(), Failed> {
    let changes = shared.board().take_changes();
    if !changes.is_empty() {
        match write(store, &changes).await {
            Ok(changed) => vips.extend(changed),
            Err(error) => {
                error!(%error, backends = changes.len(), "the health of backends cannot be stored; trying again");
                shared.board().return_changes(changes);
                return Err(Failed::Again);
            }
        }
    }
    if vips.is_empty() {
        return Ok(());
    }
    match reconciler.apply(vips.clone()).await {
        Ok(()) => {}
        Err(ApplyError::Stopped) => return Err(Failed::Stopped),
        Err(error) => {
            warn!(%error, "the health of backends is stored, but not applied; trying again");
            return Err(Failed::Again);
        }
    }
    match activate(store, vips).await {
        Ok(()) => {
            vips.clear();
            Ok(())
        }
        Err(error) => {
            error!(%error, "references that are in use cannot be stored as Active; trying again");
            Err(Failed::Again)
        }
    }
}

async fn pending(store: &Store) -> store::Result<BTreeSet<String>> {
    Ok(lb::pending_vips(&mut store.look().await?).await?.into_iter().collect())
}

/// The VIPs whose rings change.
async fn write(store: &Store, changes: impl IntoIterator<Item = (&u32, &bool)>) -> store::Result<BTreeSet<String>> {
    let mut tx = store.begin().await?;
    let mut vips = BTreeSet::new();
    for (backend, healthy) in changes {
        vips.extend(lb::set_healthy(&mut tx, *backend, *healthy).await?);
    }
    tx.commit().await?;
    Ok(vips)
}

async fn activate(store: &Store, vips: &BTreeSet<String>) -> store::Result<()> {
    let mut tx = store.begin().await?;
    model::applied(&mut tx, vips).await?;
    tx.commit().await
}
