//! From one VIP's state to the table entries it needs. Pure: no I/O, no clock, no kernel.
//!
//! The result says what the kernel shall hold, not how to get there: where a selection table lies in the arena and which
//! generation a backend has are the engine's.

mod capacity;
mod entries;
mod ipv4;
mod keys;
mod port_prefixes;
mod selection;

use std::{collections::btree_map::Entry, net::Ipv4Addr};

use vipgate_abi::{
    backend::{self, Backend, TCP_IDLE, UDP_IDLE},
    meter::Binding,
    service,
    snat::{self, SnatKind},
};
use vipgate_state::{Algorithm, BackendState, ForwardState, ListenerState, Protocol, VipState};

use self::selection::{is_in_pool, selection_table};
pub use self::{
    capacity::{CapacityError, check},
    entries::{ServiceEntry, SnatEntry, Tables},
    ipv4::{NotIpv4, ipv4},
    keys::{ServicePrefix, SnatPrefix},
};
use super::bandwidth::Rates;

/// The interface indices of the router's devices, by name.
pub type Devices<'a> = dyn Fn(&str) -> Option<u32> + 'a;

/// Compiles one VIP. SNAT rules are looked up by the VIP's device: while that is missing, elastic IPs and source NAT have no
/// entries. While the device of a backend or guest is missing, any device may lead to it.
///
/// A Disabled VIP is one key for the whole address that drops, and SNAT rules that drop what would leave by it; nothing of its
/// services stays, so that their flows end. An Enabled VIP also has a key that keeps the router's sockets from its other ports.
/// The router's own address has neither key: packets of the router itself must pass.
///
/// A listener without a backend that takes new flows keeps its key with an empty selection table: its packets are refused and
/// counted, and do not go to another service.
pub fn compile(vip: &VipState<Ipv4Addr>, devices: &Devices<'_>) -> Tables {
    let mut tables = Tables::empty(vip.address);
    if let Some(device) = devices(&vip.device) {
        translate(vip, device, devices, &mut tables);
    }
    if vip.enabled {
        serve(vip, devices, &mut tables);
        if !vip.own {
            tables.services.entry(ServicePrefix::whole(vip.address)).or_insert(ServiceEntry::Closed);
        }
        limit(vip, &mut tables);
    } else if !vip.own {
        tables.services.insert(ServicePrefix::whole(vip.address), ServiceEntry::Disabled);
    }
    tables
}

/// Listeners and port-forwarding rules.
fn serve(vip: &VipState<Ipv4Addr>, devices: &Devices<'_>, tables: &mut Tables) {
    for listener in &vip.listeners {
        tables
            .services
            .insert(ServicePrefix::listener(vip.address, listener.protocol, listener.port), balance(listener));
        // The backend of a stopped VM keeps its entry: it gets no new flows, and those that it has may drain. The entry of an
        // unhealthy backend says that it is down, which ends its flows.
        tables.backends.extend(listener.backends.iter().map(|b| (b.number, entry(listener, b, devices))));
    }
    for forward in &vip.forwards {
        let service = ServiceEntry::Forward {
            number: forward.number,
            backend: forward.backend,
            port_shift: forward.guest_port.wrapping_sub(forward.ports.0),
            allowed: forward.allowed,
        };
        let keys = ServicePrefix::range(vip.address, forward.protocol, forward.ports);
        tables.services.extend(keys.map(|key| (key, service.clone())));
        tables.backends.insert(forward.backend, guest(forward, devices));
    }
}

/// Bandwidth limits. A packet counts against the limit of its port alone, if there is one, else against the VIP's. A service of
/// one port is bound to that port's limit; for a service of several ports, of which any has a limit, the packet path looks it up.
fn limit(vip: &VipState<Ipv4Addr>, tables: &mut Tables) {
    let mut whole = 0;
    for limit in &vip.limits {
        tables.limits.insert(limit.number, Rates::of(limit));
        match limit.port {
            Some(port) => drop(tables.port_limits.insert(port, limit.number)),
            None => whole = limit.number,
        }
    }
    let of_ports = |first: u16, last: u16| match tables.port_limits.range(first..=last).next() {
        Some((_, number)) if first == last => Binding::new(*number, false),
        own => Binding::new(whole, own.is_some()),
    };
    let listeners = vip.listeners.iter().map(|listener| (listener.number, of_ports(listener.port, listener.port)));
    let forwards = vip.forwards.iter().map(|forward| (forward.number, of_ports(forward.ports.0, forward.ports.1)));
    let masquerades = vip.masquerades.iter().map(|masquerade| masquerade.number);
    let all = vip.elastic.iter().map(|elastic| elastic.number).chain(masquerades);
    let all = all.map(|number| (number, of_ports(0, u16::MAX)));
    let bindings = listeners.chain(forwards).chain(all);
    tables.bindings = bindings.filter(|(_, binding)| *binding != Binding::default()).collect();
    for backend in tables.backends.values_mut() {
        backend.meter = tables.bindings.get(&backend.service).copied().unwrap_or_default();
    }
}

/// What takes all protocols: the VIP's guest and the networks that leave by the VIP.
fn translate(vip: &VipState<Ipv4Addr>, device: u32, devices: &Devices<'_>, tables: &mut Tables) {
    let entry = |kind, number, backend, of: &str| {
        let (kind, number, backend) = match vip.enabled {
            true => (kind, Some(number), backend),
            // Dropped: without an entry the packets would leave with another source address.
            false => (SnatKind::Disabled, None, 0),
        };
        let (vip, device, kind) = (u32::from(vip.address).to_be(), index(of, devices), kind as u8);
        SnatEntry { number, value: snat::SnatRule { vip, backend, device, kind, ..snat::SnatRule::default() } }
    };
    if let Some(elastic) = &vip.elastic {
        let (number, backend) = (elastic.number, elastic.backend);
        if elastic.leads {
            let guest = SnatPrefix::new(device, elastic.guest.into());
            tables.snat_rules.insert(guest, entry(SnatKind::Elastic, number, backend, &elastic.device));
        }
        if vip.enabled {
            tables
                .services
                .insert(ServicePrefix::whole(vip.address), ServiceEntry::Elastic { number, backend, device });
            let guest = Backend { device: index(&elastic.device, devices), ..any_protocol(elastic.guest, number) };
            tables.backends.insert(backend, guest);
        }
    }
    for masquerade in &vip.masquerades {
        // Networks with the same addresses cannot be told apart: the first one gets the entry.
        let Entry::Vacant(place) = tables.snat_rules.entry(SnatPrefix::new(device, masquerade.network)) else {
            continue;
        };
        let mut rule = entry(SnatKind::Masquerade, masquerade.number, masquerade.backend, masquerade.device.as_str());
        rule.value.shared = u8::from(vip.enabled && !(vip.listeners.is_empty() && vip.forwards.is_empty()));
        place.insert(rule);
        if vip.enabled {
            tables.backends.insert(masquerade.backend, any_protocol(vip.address, masquerade.number));
        }
    }
}

/// A backend that takes every protocol and port.
fn any_protocol(address: Ipv4Addr, service: u32) -> Backend {
    Backend { addr: u32::from(address).to_be(), service, idle_timeout: TCP_IDLE, ..Backend::default() }
}

/// The interface index of the device of a backend or guest; 0 if it is missing.
fn index(device: &str, devices: &Devices<'_>) -> u32 {
    devices(device).unwrap_or(0)
}

fn guest(forward: &ForwardState<Ipv4Addr>, devices: &Devices<'_>) -> Backend {
    Backend {
        addr: u32::from(forward.guest).to_be(),
        port: forward.guest_port.to_be(),
        service: forward.number,
        idle_timeout: match forward.protocol {
            Protocol::Tcp => TCP_IDLE,
            Protocol::Udp => UDP_IDLE,
        },
        device: index(&forward.device, devices),
        ..Backend::default()
    }
}

fn balance(listener: &ListenerState<Ipv4Addr>) -> ServiceEntry {
    ServiceEntry::Balance {
        algorithm: match listener.algorithm {
            Algorithm::RoundRobin => service::Algorithm::RoundRobin,
            Algorithm::LeastConnections => service::Algorithm::LeastConnections,
            Algorithm::Source => service::Algorithm::Source,
            Algorithm::Maglev => service::Algorithm::Maglev,
        },
        number: listener.number,
        max_connections: listener.max_connections,
        selection_table: selection_table(listener),
    }
}

fn entry(listener: &ListenerState<Ipv4Addr>, backend: &BackendState<Ipv4Addr>, devices: &Devices<'_>) -> Backend {
    Backend {
        addr: u32::from(backend.address).to_be(),
        port: backend.port.to_be(),
        service: listener.number,
        idle_timeout: if backend.healthy { listener.idle_timeout } else { backend::DOWN },
        device: index(&backend.device, devices),
        drains: u32::from(!is_in_pool(backend)),
        ..Backend::default()
    }
}

#[cfg(test)]
mod tests;
