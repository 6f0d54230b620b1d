//! The router's own network: devices, VIP addresses, neighbours, and what changes among them.
//!
//! Everything happens in the network namespace of the thread that opened the [`Netlink`] socket: vipgate runs in the
//! router's. Touches the kernel by rtnetlink, nfnetlink, packet sockets (gratuitous ARP), a raw
//! socket (segments that make the ends of connections speak) and /proc/sys/net; no map, no store.

mod address;
pub mod arp;
mod dump;
pub mod netfilter;
mod netlink;
mod nudge;
mod own_addresses;
pub mod queue;
pub mod sysctl;
mod watch;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Mutex, PoisonError},
};

use thiserror::Error;

pub use self::{
    address::HeldAddress,
    netlink::{Netlink, Reach},
    nudge::Nudger,
    watch::{Changes, Watcher},
};
use own_addresses::OwnAddresses;

/// A network device of the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub ifindex: u32,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// All zero: the device has no MAC address.
    pub mac: [u8; 6],
    /// Carries Ethernet frames: the programs and ARP work on it.
    pub ethernet: bool,
    pub veth: bool,
    pub up: bool,
}

/// A device and what only the doctor asks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub device: Device,
    pub rx_queues: u32,
    /// A veth's other end, where it is in the same namespace: its interface index.
    pub peer: Option<u32>,
    /// It carries an XDP program, of vipgate or another.
    pub xdp: bool,
    /// Part of another device, such as a bridge or a bond, which is the router's.
    pub enslaved: bool,
}

/// What could not be done to the router's network.
#[derive(Debug, Error)]
pub enum NetError {
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    #[error("cannot {what}: {reason}")]
    Netlink { what: String, reason: String },
    #[error("cannot announce {vip} on {device}: {source}")]
    Announce { vip: Ipv4Addr, device: String, source: io::Error },
    #[error("cannot set {path} to {value}: {source}")]
    Sysctl { path: String, value: String, source: io::Error },
    #[error("cannot keep what {setting} was in {path}: {source}")]
    Keep { setting: String, path: String, source: io::Error },
}

/// The router's devices and their addresses as they are at each call; cheap and synchronous.
#[derive(Debug)]
pub struct Devices {
    /// Where the API is served.
    api: SocketAddr,
    own: Mutex<OwnAddresses>,
}

impl Devices {
    /// Those of the calling thread's network namespace.
    pub fn open(api: SocketAddr) -> Result<Self, NetError> {
        Ok(Self { api, own: Mutex::new(OwnAddresses::open()?) })
    }
}

impl vipgate_state::Devices for Devices {
    fn api(&self) -> Option<SocketAddr> {
        Some(self.api)
    }

    /// All but the loopback and vipgate's own, sorted. Empty when the kernel does not list them.
    fn list(&self) -> Vec<String> {
        let Ok(interfaces) = nix::net::if_::if_nameindex() else {
            return Vec::new();
        };
        let names = interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| name != "lo" && queue::pair_with(name).is_none()).collect();
        names.sort();
        names
    }

    /// Empty when the kernel does not list them.
    fn addresses_by_device(&self) -> Vec<(String, IpAddr)> {
        let addresses = self.own.lock().unwrap_or_else(PoisonError::into_inner).addresses();
        addresses.into_iter().map(|(device, address)| (device, address.into())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Devices {
        Devices::open(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))).unwrap()
    }

    #[test]
    fn the_loopbacks_address_is_the_routers_own() {
        assert!(vipgate_state::Devices::addresses(&devices()).contains(&IpAddr::from(Ipv4Addr::LOCALHOST)));
        let by_device = vipgate_state::Devices::addresses_by_device(&devices());
        assert!(by_device.contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST.into())));
    }

    #[test]
    fn the_loopback_is_no_choice() {
        assert!(!vipgate_state::Devices::list(&devices()).contains(&"lo".to_owned()));
    }
}
