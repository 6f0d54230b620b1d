//! What the controller asks of the agent.

use std::{collections::BTreeSet, error};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a committed call changed: the reconciler reads these from the store again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Uuids of the VIPs whose tables may differ from what is stored.
    pub vips: BTreeSet<String>,
    /// The set of devices that carry the programs may differ.
    pub devices: bool,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.vips.is_empty() && !self.devices
    }
}

/// Why the kernel does not hold a change.
#[derive(Debug, Error)]
pub enum NotApplied {
    /// The controller is ending: the next run shall finish the job.
    #[error("the controller is ending")]
    Ending,
    #[error(transparent)]
    Failed(Box<dyn error::Error + Send + Sync>),
}

/// Brings the kernel to what is stored. When the future is ready with `Ok`, traffic obeys the change already. Applying
/// the same change again does no harm: that is how an interrupted job is finished.
pub trait Apply: Send + Sync + 'static {
    /// Makes a device carry the programs, before what needs it is stored: a network that cannot work is refused, not
    /// stored. If nothing is stored after all, the next change of devices takes it back.
    fn prepare(&self, device: String) -> BoxFuture<'_, Result<(), NotApplied>>;

    fn apply(&self, change: Change) -> BoxFuture<'_, Result<(), NotApplied>>;
}
