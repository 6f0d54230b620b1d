//! Follows the router's own addresses: when a lease or a renumbering changes them, source NAT moves to the new ones, as after a
//! start.
//!
//! `net` lists them, `model` decides, the store keeps the result, and the reconciler applies what changed.

use std::{future, sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{info, warn};
use vipgate_agent::{net::Devices, reconcile::Reconciler};
use vipgate_controller::{
    model,
    store::{self, Store},
};
use vipgate_state::Devices as _;

/// Between a notification and the look at all addresses, so that an old address that goes and its successor are one change.
const SETTLE: Duration = Duration::from_millis(50);
/// Before what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Runs until the reconciler ends.
pub async fn run(store: Store, devices: Arc<Devices>, reconciler: Reconciler) {
    let mut news = reconciler.own_addresses();
    let mut known = None;
    loop {
        // Changes from here on wake us again.
        news.mark_unchanged();
        let addresses = devices.addresses_by_device();
        if known.as_ref() != Some(&addresses) {
            known = match once(&store, &devices, &reconciler).await {
                Ok(()) => Some(addresses),
                Err(error) => {
                    warn!(%error, again_in = ?RETRY, "source NAT may go on with an address that the router has no more");
                    None
                }
            };
        }
        let again = async {
            match known {
                Some(_) => future::pending().await,
                None => sleep(RETRY).await,
            }
        };
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            () = again => {}
        }
        sleep(SETTLE).await;
    }
}

async fn once(store: &Store, devices: &Devices, reconciler: &Reconciler) -> Result<(), store::Error> {
    let mut tx = store.begin().await?;
    let vips = model::follow(&mut tx, devices).await?;
    tx.commit().await?;
    if vips.is_empty() {
        return Ok(());
    }
    let count = vips.len();
    match reconciler.apply(vips).await {
        Ok(()) => info!(vips = count, "source NAT follows the router's addresses"),
        // It is stored: the reconciler tries again by itself.
        Err(error) => warn!(%error, "source NAT does not follow the router's addresses yet"),
    }
    Ok(())
}
