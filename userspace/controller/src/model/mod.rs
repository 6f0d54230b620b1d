//! The API's rules: what each call requires, writes and returns. Knows no HTTP and touches no kernel.
//!
//! Every call is one function over one transaction: it checks, writes, and returns an [`Outcome`]. On an error the caller
//! drops the transaction, and nothing has happened. The row in `vipgate_api::calls` has checked each parameter by itself
//! (presence, length, choice, range). The rules here check what needs the stored state or several parameters. [`call()`]
//! finds the function of a call.

mod access;
mod account;
mod allocate;
mod attachment;
mod call;
mod eip;
mod ip_range;
mod l2;
mod l3;
mod listener;
mod load_balancer;
mod network_service;
mod port_forwarding;
mod resource;
mod source_nat;
mod tag;
mod vip;
mod vip_qos;
mod vip_use;
mod vm;
mod zone;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use vipgate_api::{ApiError, Reply, Resource, common::StateEvent};

use crate::store::{self, Tx, lb};

pub use call::call;
pub use source_nat::follow;

/// Result of a call's rules.
pub type Result<T = Outcome> = std::result::Result<T, ApiError>;

/// The account that makes a call.
#[derive(Clone, Debug)]
pub struct Caller {
    /// It will own the resources that the call creates.
    pub account_uuid: String,
    /// It may make every call, with the resources of all accounts.
    pub admin: bool,
}

/// The states of resources that can be disabled.
const ENABLED: &str = "Enabled";
const DISABLED: &str = "Disabled";

/// The type of the network service provider that stands for this router.
const PROVIDER: &str = "vrouter";

const fn state_after(event: StateEvent) -> &'static str {
    match event {
        StateEvent::Enable => ENABLED,
        StateEvent::Disable => DISABLED,
    }
}

/// The reply of a call, and what it changed.
#[derive(Debug)]
pub struct Outcome {
    pub reply: Reply,
    /// Uuids of the VIPs whose state in the kernel may differ now, deleted ones among them.
    pub vips: BTreeSet<String>,
    /// Whether the set of devices that carry programs may differ now.
    pub devices: bool,
    /// A device that must be able to carry the programs before anything of the call is stored. If it has to be set up
    /// first, the call is decided again afterwards.
    pub needs_device: Option<String>,
}

impl Outcome {
    fn new(reply: Reply) -> Self {
        Self { reply, vips: BTreeSet::new(), devices: false, needs_device: None }
    }

    /// An empty reply, nothing changed.
    fn empty() -> Self {
        Self::new(Reply::Empty)
    }

    fn inventory(resource: Resource, uuid: impl Into<String>) -> Self {
        Self::new(Reply::Inventory(resource, uuid.into()))
    }

    fn touching(mut self, vips: impl IntoIterator<Item = String>) -> Self {
        self.vips.extend(vips);
        self
    }

    /// The device is to carry the programs.
    fn needing_device(mut self, device: String) -> Self {
        self.needs_device = Some(device);
        self.changing_devices()
    }

    fn changing_devices(mut self) -> Self {
        self.devices = true;
        self
    }
}

/// The kernel holds these VIPs now: makes their Pending backends Active.
///
/// # Errors
/// [`store::Error::Database`].
pub async fn applied(tx: &mut Tx, vips: &BTreeSet<String>) -> store::Result<()> {
    lb::activate(tx, vips).await
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Exhausted { .. } => Self::operation(error.to_string()),
            store::Error::Url { .. }
            | store::Error::Open { .. }
            | store::Error::Migrate { .. }
            | store::Error::Database(_)
            | store::Error::Commit(_)
            | store::Error::Corrupt { .. } => Self::internal(error.to_string()),
        }
    }
}
