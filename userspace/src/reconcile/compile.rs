//! From one VIP's state to the table entries it needs. Pure: no I/O, no clock, no kernel.
//!
//! The result says what the kernel shall hold, not how to get there: where a ring lies in the arena and which
//! generation a backend has are the [engine](super::engine)'s.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use thiserror::Error;
use vipgate_abi::{
    backend::Backend,
    service::{self, Kind, ServiceKey},
};

use super::maglev;
use crate::state::{Algorithm, BackendState, Limits, ListenerState, Protocol, VipState};

/// A key of the services trie. Ordered by VIP first, so that one VIP's keys are one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub data: ServiceKey,
    /// Bits of `data` that count: [`ServiceKey::EXACT`] or [`ServiceKey::WHOLE_VIP`].
    pub prefix_len: u32,
}

impl Key {
    /// The key of one listener.
    pub fn listener(vip: Ipv4Addr, protocol: Protocol, port: u16) -> Self {
        let data = ServiceKey { vip: vip.octets(), protocol: protocol.number(), port: port.to_be_bytes(), reserved: 0 };
        Self { data, prefix_len: ServiceKey::EXACT }
    }

    /// The key of the whole VIP, which applies where no listener's does.
    pub fn whole(vip: Ipv4Addr) -> Self {
        Self { data: ServiceKey { vip: vip.octets(), ..ServiceKey::default() }, prefix_len: ServiceKey::WHOLE_VIP }
    }

    pub fn vip(&self) -> Ipv4Addr {
        self.data.vip.into()
    }
}

/// What one VIP needs in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    pub vip: Ipv4Addr,
    pub services: BTreeMap<Key, ServiceEntry>,
    /// By backend number, without their generations.
    pub backends: BTreeMap<u32, Backend>,
}

/// A service with its ring's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEntry {
    Disabled,
    Balance {
        algorithm: service::Algorithm,
        /// The listener's number.
        number: u32,
        max_connections: u32,
        /// Backend numbers; empty: the listener has no backend.
        ring: Vec<u32>,
    },
}

impl ServiceEntry {
    /// The trie's value, given where the ring lies.
    pub fn value(&self, ring_base: u32) -> service::Service {
        match self {
            Self::Disabled => service::Service { kind: Kind::Disabled as u8, ..service::Service::default() },
            Self::Balance { algorithm, number, max_connections, ring } => service::Service {
                kind: Kind::Balance as u8,
                algorithm: *algorithm as u8,
                number: *number,
                ring_base,
                ring_len: ring.len() as u32,
                max_connections: *max_connections,
                ..service::Service::default()
            },
        }
    }
}

/// Compiles one VIP.
///
/// A Disabled VIP is one key for the whole address that drops; nothing of its listeners stays, so that their flows end.
/// A listener without an active backend keeps its key with an empty ring, so that its packets are dropped and counted
/// instead of reaching the router's own stack.
pub fn compile(vip: &VipState) -> Tables {
    let mut tables = Tables { vip: vip.address, services: BTreeMap::new(), backends: BTreeMap::new() };
    if !vip.enabled {
        tables.services.insert(Key::whole(vip.address), ServiceEntry::Disabled);
        return tables;
    }
    for listener in &vip.listeners {
        tables.services.insert(Key::listener(vip.address, listener.protocol, listener.port), balance(listener));
        // A stopped VM's backend keeps its entry: it gets no new flows, and what it has may drain.
        tables.backends.extend(listener.backends.iter().map(|b| (b.number, entry(listener, b))));
    }
    tables
}

fn balance(listener: &ListenerState) -> ServiceEntry {
    let mut pool: Vec<&BackendState> = listener.backends.iter().filter(|b| b.active).collect();
    pool.sort_by_key(|b| b.number);
    let ring = match listener.algorithm {
        Algorithm::RoundRobin | Algorithm::LeastConnections => pool.iter().map(|b| b.number).collect(),
        Algorithm::Source | Algorithm::Maglev => {
            let addresses: Vec<_> = pool.iter().map(|b| SocketAddrV4::new(b.address, b.port)).collect();
            maglev::table(&addresses).into_iter().map(|at| pool[at as usize].number).collect()
        }
    };
    ServiceEntry::Balance {
        algorithm: match listener.algorithm {
            Algorithm::RoundRobin => service::Algorithm::RoundRobin,
            Algorithm::LeastConnections => service::Algorithm::LeastConnections,
            Algorithm::Source => service::Algorithm::Source,
            Algorithm::Maglev => service::Algorithm::Maglev,
        },
        number: listener.number,
        max_connections: listener.max_connections,
        ring,
    }
}

fn entry(listener: &ListenerState, backend: &BackendState) -> Backend {
    Backend {
        addr: u32::from(backend.address).to_be(),
        port: backend.port.to_be(),
        generation: 0,
        service: listener.number,
        idle_timeout: listener.idle_timeout,
    }
}

/// Why a VIP cannot be brought to the kernel.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LimitError {
    #[error(
        "listener {listener} would be number {number}, the router's tables hold {limit}; raise the size `services`"
    )]
    Listeners { listener: String, number: u32, limit: u32 },
    #[error(
        "listener {listener} would have backend number {number}, the router's tables hold {limit}; raise the size `backends`"
    )]
    Backends { listener: String, number: u32, limit: u32 },
    #[error("listener {listener} has {count} backends, at most {limit} are possible; remove some or add a listener")]
    BackendsPerListener { listener: String, count: usize, limit: u32 },
    #[error("listener {listener} has the backend address {address}, which no host can have")]
    BackendAddress { listener: String, address: Ipv4Addr },
    #[error("listener {listener} wants {protocol} port {port} of {vip}, which another listener of that VIP has")]
    PortTaken { listener: String, vip: Ipv4Addr, protocol: &'static str, port: u16 },
    #[error("{vip} cannot be a VIP: it is not a unicast address")]
    VipAddress { vip: Ipv4Addr },
}

/// Whether the tables can hold a VIP; asked before a change is stored.
pub fn check(vip: &VipState, limits: &Limits) -> Result<(), LimitError> {
    if !is_host(vip.address) {
        return Err(LimitError::VipAddress { vip: vip.address });
    }
    let mut ports = HashSet::new();
    for listener in &vip.listeners {
        let name = || listener.uuid.clone();
        if listener.number >= limits.listeners {
            return Err(LimitError::Listeners { listener: name(), number: listener.number, limit: limits.listeners });
        }
        if !ports.insert((listener.protocol, listener.port)) {
            let protocol = match listener.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            return Err(LimitError::PortTaken { listener: name(), vip: vip.address, protocol, port: listener.port });
        }
        let count = listener.backends.len();
        if count > limits.backends_per_listener as usize {
            return Err(LimitError::BackendsPerListener {
                listener: name(),
                count,
                limit: limits.backends_per_listener,
            });
        }
        for backend in &listener.backends {
            if backend.number >= limits.backends {
                return Err(LimitError::Backends { listener: name(), number: backend.number, limit: limits.backends });
            }
            if !is_host(backend.address) {
                return Err(LimitError::BackendAddress { listener: name(), address: backend.address });
            }
        }
    }
    Ok(())
}

fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_broadcast() || address.is_multicast() || address.is_loopback())
}
