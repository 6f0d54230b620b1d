//! Gives the flow table the size that its content needs, and logs what found no room.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use tracing::{info, warn};
use vipgate_state::Source;

use super::{Kernel, Worker};
use crate::{
    loader::{self, Epoch, LoadError},
    reconcile::sweep::{self, Sweeper},
};

impl<S: Source> Worker<S> {
    /// Gives the flow table another size if it should have one.
    ///
    /// # Errors
    /// An error after which there is no way back: the controller must be started again.
    pub(super) async fn size_flows(&mut self) -> Result<(), LoadError> {
        self.with_kernel(|kernel| {
            let (_, most) = kernel.plane.flows();
            if let Err(error) = kernel.exhaustion.log(most, Instant::now()) {
                warn!(%error, "cannot see whether connections were refused");
            }
        })
        .await;
        if !self.lock().sizing.is_due(Instant::now()) {
            return Ok(());
        }
        let epoch = Arc::clone(&self.epoch);
        if let Some(swept) = self.with_kernel(move |kernel| kernel.size_flows(&epoch)).await? {
            self.swept = swept;
        }
        Ok(())
    }
}

impl Kernel {
    /// Returns the end of the new sweeper if there is one now.
    fn size_flows(&mut self, epoch: &Mutex<Epoch>) -> Result<Option<sweep::Ended>, LoadError> {
        let begun = Instant::now();
        let (has, live) = (self.plane.sizes().flows, self.flows.fill().live());
        let Some(wanted) = self.sizing.look(has, live, begun) else {
            return Ok(None);
        };
        // The sweeper has the table open. Without it flows that are over stay for a moment.
        self.sweeper.stop();
        if self.plane.resize_flows(wanted, epoch)? {
            self.flows = self.plane.flow_reader()?;
            self.sizing.changed();
            let milliseconds = begun.elapsed().as_millis();
            info!(from = has, to = wanted, live, milliseconds, "the flow table has another size");
        } else {
            warn!(has, wanted, live, "the flow table keeps its size");
            self.sizing.failed(Instant::now());
        }
        let (sweeper, swept) = Sweeper::start(Arc::clone(&self.plane))?;
        self.sweeper = sweeper;
        Ok(Some(swept))
    }
}

/// Logs an error that only another start mends.
pub(super) fn log(error: &LoadError) {
    tracing::error!(error = %loader::causes(error), "the flow table was left between two sizes; another start goes on from there");
}
