//! Whether the tables can hold a VIP.

use std::net::Ipv4Addr;

use thiserror::Error;
use vipgate_state::{Capacity, Protocol, VipState};

/// Why the tables cannot hold a VIP. The service that wants too much is named by kind and uuid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CapacityError {
    #[error("{owner} would be number {number}, the router's tables hold {limit}; raise the size `services`")]
    Services { owner: String, number: u32, limit: u32 },
    #[error("{owner} would have backend number {number}, the router's tables hold {limit}; raise the size `backends`")]
    Backends { owner: String, number: u32, limit: u32 },
    #[error("{owner} has {count} backends, at most {limit} are possible; remove some or add a listener")]
    BackendsPerListener { owner: String, count: usize, limit: u32 },
    #[error("{owner} has the backend address {address}, which no host can have")]
    BackendAddress { owner: String, address: Ipv4Addr },
    #[error("{owner} wants {protocol} port {port} of {vip}, which another service of that VIP has")]
    PortTaken { owner: String, vip: Ipv4Addr, protocol: &'static str, port: u16 },
    #[error("{owner} would be number {number}, the router's tables hold {limit}; delete bandwidth limits")]
    Bandwidths { owner: String, number: u32, limit: u32 },
    #[error("{vip} cannot be a VIP: it is not a unicast address")]
    VipAddress { vip: Ipv4Addr },
}

/// Whether the tables can hold a VIP; asked before a change is stored.
pub fn check(vip: &VipState<Ipv4Addr>, capacity: &Capacity) -> Result<(), CapacityError> {
    if !is_host(vip.address) {
        return Err(CapacityError::VipAddress { vip: vip.address });
    }
    let mut ranges = Vec::new();
    for listener in &vip.listeners {
        let owner = format!("listener {}", listener.uuid);
        let count = listener.backends.len();
        if count > capacity.backends_per_listener as usize {
            return Err(CapacityError::BackendsPerListener { owner, count, limit: capacity.backends_per_listener });
        }
        let backends = listener.backends.iter().map(|backend| (backend.number, backend.address));
        check_service(&owner, listener.number, backends, capacity)?;
        ranges.push((listener.protocol, listener.port, listener.port, owner));
    }
    for forward in &vip.forwards {
        let owner = format!("port-forwarding rule {}", forward.uuid);
        check_service(&owner, forward.number, [(forward.backend, forward.guest)], capacity)?;
        ranges.push((forward.protocol, forward.ports.0, forward.ports.1, owner));
    }
    if let Some(elastic) = &vip.elastic {
        let owner = format!("elastic IP {}", elastic.uuid);
        check_service(&owner, elastic.number, [(elastic.backend, elastic.guest)], capacity)?;
    }
    for masquerade in &vip.masquerades {
        let owner = format!("source NAT of L3 network {}", masquerade.uuid);
        check_service(&owner, masquerade.number, [(masquerade.backend, vip.address)], capacity)?;
    }
    if let Some(limit) = vip.limits.iter().find(|limit| !(1..capacity.limits).contains(&limit.number)) {
        let owner = format!("bandwidth limit {}", limit.uuid);
        return Err(CapacityError::Bandwidths { owner, number: limit.number, limit: capacity.limits });
    }
    ranges.sort();
    let taken = ranges.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[1].1 <= pair[0].2);
    if let Some([_, (protocol, port, _, owner)]) = taken {
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        return Err(CapacityError::PortTaken { owner: owner.clone(), vip: vip.address, protocol, port: *port });
    }
    Ok(())
}

fn check_service(
    owner: &str,
    number: u32,
    backends: impl IntoIterator<Item = (u32, Ipv4Addr)>,
    capacity: &Capacity,
) -> Result<(), CapacityError> {
    let owner = || owner.to_owned();
    if number >= capacity.services {
        return Err(CapacityError::Services { owner: owner(), number, limit: capacity.services });
    }
    for (number, address) in backends {
        if number >= capacity.backends {
            return Err(CapacityError::Backends { owner: owner(), number, limit: capacity.backends });
        }
        if !is_host(address) {
            return Err(CapacityError::BackendAddress { owner: owner(), address });
        }
    }
    Ok(())
}

fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_broadcast() || address.is_multicast() || address.is_loopback())
}
