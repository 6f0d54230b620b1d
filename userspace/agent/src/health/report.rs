//! Brings what the checks found to the store, the references' status and the selection tables.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{error, warn};
use vipgate_state::{Apply, Change, Findings, NotApplied};

use super::Shared;

/// Before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Reports until the agent ends.
pub(super) async fn run(shared: Arc<Shared>, findings: impl Findings, agent: impl Apply) {
    // What an earlier run stored and did not apply.
    let mut vips = match findings.unapplied().await {
        Ok(vips) => vips,
        Err(error) => {
            warn!(%error, "references may stay Pending until their load balancer changes");
            BTreeSet::new()
        }
    };
    loop {
        let failed = bring(&shared, &findings, &agent, &mut vips).await;
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
    findings: &impl Findings,
    agent: &impl Apply,
    vips: &mut BTreeSet<String>,
) -> Result<(), Failed> {
    let changes = shared.scheduler().take_changes();
    if !changes.is_empty() {
        match findings.store(&changes).await {
            Ok(changed) => vips.extend(changed),
            Err(error) => {
                error!(%error, backends = changes.len(), "the health of backends cannot be stored; trying again");
                shared.scheduler().return_changes(changes);
                return Err(Failed::Again);
            }
        }
    }
    if vips.is_empty() {
        return Ok(());
    }
    match agent.apply(Change { vips: vips.clone(), devices: false }).await {
        Ok(()) => {}
        Err(NotApplied::Ending) => return Err(Failed::Stopped),
        Err(error) => {
            warn!(%error, "the health of backends is stored, but not applied; trying again");
            return Err(Failed::Again);
        }
    }
    match findings.applied(vips).await {
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
