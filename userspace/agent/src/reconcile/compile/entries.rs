//! What a VIP needs in the kernel's tables: the values behind its keys.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use vipgate_abi::{
    backend::Backend,
    meter::Binding,
    service::{self, Kind},
    snat,
};

use super::keys::{ServicePrefix, SnatPrefix};
use crate::reconcile::bandwidth::Rates;

/// What one VIP needs in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    pub vip: Ipv4Addr,
    pub services: BTreeMap<ServicePrefix, ServiceEntry>,
    pub snat_rules: BTreeMap<SnatPrefix, SnatEntry>,
    /// By backend number, without their generations.
    pub backends: BTreeMap<u32, Backend>,
    /// Bandwidth limits, by number.
    pub limits: BTreeMap<u32, Rates>,
    /// The number of the limit that a port has of its own.
    pub port_limits: BTreeMap<u16, u32>,
    /// The limit that the backends of a service number count against, draining ones included.
    pub bindings: BTreeMap<u32, Binding>,
}

impl Tables {
    /// The tables of a VIP that needs nothing.
    pub fn empty(vip: Ipv4Addr) -> Self {
        Self {
            vip,
            services: BTreeMap::new(),
            snat_rules: BTreeMap::new(),
            backends: BTreeMap::new(),
            limits: BTreeMap::new(),
            port_limits: BTreeMap::new(),
            bindings: BTreeMap::new(),
        }
    }
}

/// A service with the content of its selection table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEntry {
    Disabled,
    /// The rest of the VIP: no service has these ports, and packets do not reach the router's own sockets.
    Closed,
    Balance {
        algorithm: service::Algorithm,
        /// The listener's number.
        number: u32,
        max_connections: u32,
        /// [`Member`](service::Member)s; empty if the listener has no backend.
        selection_table: Vec<u32>,
    },
    /// The value of each key of a port-forwarding rule.
    Forward {
        /// The rule's number.
        number: u32,
        backend: u32,
        port_shift: u16,
        allowed: Ipv4Net,
    },
    /// The whole VIP, which belongs to one guest.
    Elastic {
        /// The elastic IP's number.
        number: u32,
        backend: u32,
        /// Interface index of the VIP's device.
        device: u32,
    },
}

impl ServiceEntry {
    /// The service's number; `None` if it has no backends.
    pub const fn number(&self) -> Option<u32> {
        match self {
            Self::Disabled | Self::Closed => None,
            Self::Balance { number, .. } | Self::Forward { number, .. } | Self::Elastic { number, .. } => Some(*number),
        }
    }

    /// What its keys point to in the arena.
    pub fn selection_table(&self) -> &[u32] {
        match self {
            Self::Balance { selection_table, .. } => selection_table,
            Self::Disabled | Self::Closed | Self::Forward { .. } | Self::Elastic { .. } => &[],
        }
    }

    /// The trie's value, given where the selection table lies.
    pub fn value(&self, ring_base: u32) -> service::Service {
        match self {
            Self::Disabled => service::Service { kind: Kind::Disabled as u8, ..service::Service::default() },
            Self::Closed => service::Service { kind: Kind::Closed as u8, ..service::Service::default() },
            Self::Forward { number, backend, port_shift, allowed } => service::Service {
                kind: Kind::Forward as u8,
                number: *number,
                backend: *backend,
                port_shift: *port_shift,
                source: u32::from(allowed.network()).to_be(),
                source_mask: u32::from(allowed.netmask()).to_be(),
                ..service::Service::default()
            },
            Self::Elastic { number, backend, device } => service::Service {
                kind: Kind::Elastic as u8,
                number: *number,
                backend: *backend,
                ring_base: *device,
                ..service::Service::default()
            },
            Self::Balance { algorithm, number, max_connections, selection_table } => service::Service {
                kind: Kind::Balance as u8,
                algorithm: *algorithm as u8,
                number: *number,
                ring_base,
                ring_len: selection_table.len() as u32,
                max_connections: *max_connections,
                ..service::Service::default()
            },
        }
    }
}

/// How packets of guests are translated, and which service they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatEntry {
    /// Number of the elastic IP, or of the network's source NAT; `None` if the packets are dropped.
    pub number: Option<u32>,
    pub value: snat::SnatRule,
}
