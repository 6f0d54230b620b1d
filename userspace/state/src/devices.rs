//! The router's devices and addresses, as the rules need them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

/// The router's devices and what is on them, as the rules see them.
pub trait Devices: Send + Sync {
    /// The names of the devices that a network can be on, as they are now. Must not block.
    fn list(&self) -> Vec<String>;

    /// The addresses that the router has of its own, each with its device, VIPs not among them. Must not block.
    fn addresses_by_device(&self) -> Vec<(String, IpAddr)>;

    /// Where the router serves the API itself; `None` if that is not known.
    fn api(&self) -> Option<SocketAddr> {
        None
    }

    /// The same as [`Self::addresses_by_device`] without the devices.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses_by_device().into_iter().map(|(_, address)| address).collect()
    }
}
