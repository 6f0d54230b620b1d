//! One VIP and all that it offers: plain values, one type for each kind of service.
//!
//! Each type has the family of its addresses in its own type: `VipState` is of any family, as the store yields it,
//! `VipState<Ipv4Addr>` of IPv4, as the packet path serves it.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use vipgate_api::{Protocol, listener_tag::Algorithm};

/// The addresses of one family, or of any.
pub trait Address: Copy + Debug + Eq + Into<IpAddr> {
    /// A network of such addresses.
    type Network: Copy + Debug + Eq;
}

impl Address for IpAddr {
    type Network = IpNet;
}

impl Address for Ipv4Addr {
    type Network = Ipv4Net;
}

/// One VIP and what it offers: the unit of compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipState<A: Address = IpAddr> {
    pub uuid: String,
    pub address: A,
    /// Length of its L3 network's prefix, in bits.
    pub prefix_len: u8,
    /// The router's device on that network, which shall hold the address.
    pub device: String,
    /// The address is the router's own, and stays where it is when the VIP goes.
    pub own: bool,
    /// If not, everything sent to it is dropped.
    pub enabled: bool,
    pub listeners: Vec<ListenerState<A>>,
    /// The port-forwarding rules in force: enabled, to a running VM.
    pub forwards: Vec<ForwardState<A>>,
    /// The elastic IP in force: enabled, attached, of a running VM.
    pub elastic: Option<ElasticState<A>>,
    /// The guest networks that leave by it: source NAT.
    pub masquerades: Vec<MasqueradeState<A>>,
    /// Its bandwidth limits: at most one of the whole VIP and one a port.
    pub limits: Vec<LimitState>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerState<A: Address = IpAddr> {
    pub uuid: String,
    /// Uuid of the account that owns it.
    pub account: String,
    /// Small stable number, unique among listeners, kept in SQL: indexes the kernel's tables.
    pub number: u32,
    pub protocol: Protocol,
    pub port: u16,
    pub algorithm: Algorithm,
    /// 0: no limit.
    pub max_connections: u32,
    /// Seconds without a packet after which a flow is swept.
    pub idle_timeout: u32,
    pub check: HealthCheck,
    pub backends: Vec<BackendState<A>>,
}

/// How the backends of a listener are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub protocol: Protocol,
    /// `None` for the port that the backend serves.
    pub port: Option<u16>,
    /// Seconds from one check of a backend to its next.
    pub interval: u32,
    /// Seconds that a backend has to answer.
    pub timeout: u32,
    /// How many checks in a row must pass until an unhealthy backend is healthy.
    pub healthy_threshold: u32,
    /// How many checks in a row must fail until a healthy backend is unhealthy.
    pub unhealthy_threshold: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            protocol: Protocol::Tcp,
            port: None,
            interval: 5,
            timeout: 2,
            healthy_threshold: 2,
            unhealthy_threshold: 2,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendState<A: Address = IpAddr> {
    /// Small stable number, unique among all backends, kept in SQL: indexes the kernel's tables.
    pub number: u32,
    pub address: A,
    pub port: u16,
    /// The router's device on its NIC's network.
    pub device: String,
    /// `false` if the VM is stopped: it gets no new flows, and those that it has may drain.
    pub active: bool,
    /// Its share of new flows, in proportion to those of the listener's other backends; 0: it gets none, and those that it
    /// has may drain.
    pub weight: u8,
    /// `false` if it fails its checks: it gets no new flows, and those that it has end.
    pub healthy: bool,
}

/// A port-forwarding rule: ports of the VIP that lead to as many of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardState<A: Address = IpAddr> {
    pub uuid: String,
    /// Small stable number, unique among listeners and rules, kept in SQL: indexes the kernel's tables.
    pub number: u32,
    /// The same for the guest, unique among all backends.
    pub backend: u32,
    pub protocol: Protocol,
    /// First and last.
    pub ports: (u16, u16),
    pub guest: A,
    /// The router's device on its NIC's network.
    pub device: String,
    /// Where the first port leads; the others follow.
    pub guest_port: u16,
    /// The clients that may use it.
    pub allowed: A::Network,
}

/// An elastic IP: a VIP that is one guest's, for every protocol and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElasticState<A: Address = IpAddr> {
    pub uuid: String,
    /// Small stable number, unique among listeners, rules and the like, kept in SQL: indexes the kernel's tables.
    pub number: u32,
    /// The same for the guest, unique among all backends.
    pub backend: u32,
    pub guest: A,
    /// The router's device on its NIC's network.
    pub device: String,
    /// The guest's own connections leave by this VIP: of several by the same device, the one that was attached first.
    pub leads: bool,
}

/// Source NAT: a guest network whose connections to the outside leave by a VIP, each by a port of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasqueradeState<A: Address = IpAddr> {
    /// Of the L3 network.
    pub uuid: String,
    /// Small stable number, unique among listeners, rules and the like, kept in SQL: indexes the kernel's tables.
    pub number: u32,
    /// The same for the network, unique among all backends.
    pub backend: u32,
    pub network: A::Network,
    /// The router's device on it.
    pub device: String,
}

impl<A: Address> VipState<A> {
    /// The router's devices that are on the networks of its backends and guests, and its own.
    pub fn devices(&self) -> BTreeSet<&str> {
        let backends = self.listeners.iter().flat_map(|listener| &listener.backends).map(|backend| &backend.device);
        let guests = self.forwards.iter().map(|forward| &forward.device);
        let elastic = self.elastic.iter().map(|elastic| &elastic.device);
        let networks = self.masquerades.iter().map(|masquerade| &masquerade.device);
        let all = backends.chain(guests).chain(elastic).chain(networks).chain([&self.device]);
        all.map(String::as_str).collect()
    }
}

/// A bandwidth limit of a VIP, in either direction or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitState {
    pub uuid: String,
    /// Small stable number, unique among limits, kept in SQL: indexes the kernel's tables. From 1.
    pub number: u32,
    /// `None` for the whole VIP, but for ports with limits of their own.
    pub port: Option<u16>,
    /// Bits per second on the wire, from the Ethernet header, towards the guests; `None` if not limited.
    pub inbound: Option<u64>,
    /// The same from the guests.
    pub outbound: Option<u64>,
}
