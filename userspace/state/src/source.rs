//! What the agent asks of the keeper of the desired state.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

use crate::VipState;

/// Where the reconciler reads the desired state. Each call sees one committed state.
pub trait Source: Send + Sync + 'static {
    type Error: Error + Send + Sync + 'static;

    /// Those of these VIPs that there are, each with all it offers. What the others had, entries and address, shall go.
    fn vips_of(&self, uuids: &[String]) -> impl Future<Output = Result<Vec<VipState>, Self::Error>> + Send;

    /// One VIP; `None` if there is no such VIP.
    fn vip(&self, uuid: &str) -> impl Future<Output = Result<Option<VipState>, Self::Error>> + Send {
        let uuids = [uuid.to_owned()];
        async move { Ok(self.vips_of(&uuids).await?.pop()) }
    }

    /// Every VIP, for the first pass after a start.
    fn vips(&self) -> impl Future<Output = Result<Vec<VipState>, Self::Error>> + Send;

    /// The router's devices that shall carry the programs: the physical interface of every L2 network that has an L3 network.
    fn devices(&self) -> impl Future<Output = Result<BTreeSet<String>, Self::Error>> + Send;
}

/// Where the health checks keep what they found. Each call is one transaction.
pub trait Findings: Send + Sync + 'static {
    type Error: Error + Send + Sync + 'static;

    /// The VIPs whose references were stored as in use, and are not known to be applied.
    fn unapplied(&self) -> impl Future<Output = Result<BTreeSet<String>, Self::Error>> + Send;

    /// Stores whether backends, by their numbers, are healthy; returns the VIPs that must be applied for it.
    fn store(
        &self,
        healthy: &BTreeMap<u32, bool>,
    ) -> impl Future<Output = Result<BTreeSet<String>, Self::Error>> + Send;

    /// Stores that the kernel holds these VIPs as they are stored.
    fn applied(&self, vips: &BTreeSet<String>) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
