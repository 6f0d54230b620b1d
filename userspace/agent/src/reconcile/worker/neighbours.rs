//! Keeps the neighbour entries of backends confirmed, so that the kernel does not let them go stale: the stack sees none of
//! the packets that the programs forward.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::sleep;
use tracing::debug;

use super::{AppliedVip, lock};
use crate::net::Netlink;

/// Between two confirmations: within Linux's 30 s of reachability and 60 s of grace.
const CONFIRM: Duration = Duration::from_secs(20);

/// Confirms the neighbours of all backends again and again.
pub(super) async fn keep_confirmed(net: Netlink, applied: Arc<Mutex<BTreeMap<String, AppliedVip>>>) {
    loop {
        sleep(CONFIRM).await;
        let backends = lock(&applied).values().flat_map(|applied| &applied.backends).copied().collect();
        confirm(net.clone(), backends).await;
    }
}

pub(super) async fn confirm(net: Netlink, backends: BTreeSet<Ipv4Addr>) {
    for backend in backends {
        if let Err(error) = net.confirm_neighbour(backend.into()).await {
            debug!(%error, "packets will have the stack resolve it");
        }
    }
}
