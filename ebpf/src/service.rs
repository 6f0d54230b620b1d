//! Stages 3 and 5: the service for a packet without a flow, and the backend for the new flow.

use core::ptr;

use aya_ebpf::btf_maps::lpm_trie::Key;
use vipgate_abi::{
    Be16, Be32,
    backend::Backend,
    counters::Reason,
    flow::FlowKey,
    hash,
    service::{Algorithm, Kind, Member, Service, ServiceKey},
};

use crate::{
    address_filter, atomic, load,
    maps::{BACKENDS, CURSORS, RINGS, SERVICE_LOAD, SERVICES},
    types::Arrival,
};

/// Number of backends that least connections compares. If there are more, a window that the flow's hash selects.
const COMPARED: u32 = 32;

/// The service that a packet is for, or why it has none.
#[inline(always)]
pub fn lookup(arrival: &Arrival) -> Result<&'static Service, Reason> {
    let flow = &arrival.key;
    let key = Key::new(ServiceKey::EXACT, ServiceKey::new(flow.dst, flow.protocol, flow.dport));
    let Some(service) = SERVICES.get(&key) else {
        return Err(Reason::NotOurs);
    };
    if service.kind == Kind::Closed as u8 {
        return Err(Reason::NotOurs);
    }
    if service.kind == Kind::Disabled as u8 {
        return Err(Reason::Disabled);
    }
    if !service.admits(flow.src) {
        return Err(Reason::SourceNotAllowed);
    }
    // The stack, which owns the VIP's address and has no socket there, resets the others. A connection of an elastic IP has
    // only one place to go, so it goes on even after it was evicted.
    if !(arrival.opens() || (service.kind == Kind::Elastic as u8 && arrival.resumes())) {
        return Err(Reason::NoFlow);
    }
    if service.kind == Kind::Balance as u8 && service.ring_len == 0 {
        return Err(Reason::NoBackend);
    }
    Ok(service)
}

/// True if a service with this limit of connections (0 for any number) has room for one more.
#[inline(always)]
pub fn has_room(number: u32, most: u32) -> bool {
    most == 0 || SERVICE_LOAD.get(number).is_none_or(|load| is_below(*load, most))
}

/// A negative load is drift, which the sweeper corrects.
#[inline(always)]
fn is_below(load: u32, most: u32) -> bool {
    load < most || (load as i32) < 0
}

/// The limit of a service.
#[derive(Clone, Copy)]
pub struct Limit {
    pub service: u32,
    /// Connections at a time; 0: any number.
    pub most: u32,
}

/// The limit for a connection of this backend at this port of a VIP. `None` if the backend is gone.
#[inline(always)]
pub fn limit(vip: Be32, protocol: u8, port: Be16, backend: u32) -> Option<Limit> {
    let number = BACKENDS.get(backend)?.service;
    // Connections that a guest began, and those whose service is gone, have no limit.
    let service = SERVICES.get(&Key::new(ServiceKey::EXACT, ServiceKey::new(vip, protocol, port)));
    let service = service.filter(|service| service.number == number);
    Some(Limit { service: number, most: service.map_or(0, |service| service.max_connections) })
}

/// Counts one more connection of a service. Exact, however many CPUs call it at once: a CPU that exceeds the limit undoes
/// its count. False if the service is full.
#[inline(always)]
pub fn admit(limit: Limit) -> bool {
    let Some(load) = SERVICE_LOAD.get_ptr_mut(limit.service) else {
        return true;
    };
    // SAFETY: aligned element of SERVICE_LOAD.
    let before = unsafe { atomic::fetch_add32(load, 1) };
    if limit.most != 0 && !is_below(before, limit.most) {
        leave(limit.service);
        return false;
    }
    true
}

/// Adds one connection to a service's load, whatever its limit.
#[inline(always)]
pub fn enter(number: u32) {
    count(number, 1);
}

/// Takes one connection off a service's load.
#[inline(always)]
pub fn leave(number: u32) {
    count(number, u32::MAX);
}

#[inline(always)]
fn count(number: u32, change: u32) {
    if let Some(load) = SERVICE_LOAD.get_ptr_mut(number) {
        // SAFETY: aligned element of SERVICE_LOAD.
        unsafe { atomic::add32(load, change) };
    }
}

/// True for a VIP that is not one of the router's own addresses: the router's sockets must not answer there.
#[inline(always)]
pub fn is_vip_alone(dst: Be32) -> bool {
    address_filter::of(dst).may_be_vip() && whole(dst).is_some()
}

/// True if a service has this port of the VIP, whatever it does with the packets.
#[inline(always)]
pub fn has_port(vip: Be32, protocol: u8, port: Be16) -> bool {
    let key = Key::new(ServiceKey::EXACT, ServiceKey::new(vip, protocol, port));
    SERVICES.get(&key).is_some_and(|service| service.kind != Kind::Closed as u8)
}

/// The entry for the whole VIP.
#[inline(always)]
pub fn whole(vip: Be32) -> Option<&'static Service> {
    SERVICES.get(&Key::new(ServiceKey::WHOLE_VIP, ServiceKey::new(vip, 0, 0)))
}

/// The backend for a new flow: its number, and its current address, port and generation.
pub struct Chosen {
    pub number: u32,
    pub addr: Be32,
    pub port: Be16,
    pub generation: u16,
}

/// Chooses a backend.
#[inline(always)]
pub fn choose(service: &Service, key: &FlowKey) -> Option<Chosen> {
    let number = if service.kind == Kind::Forward as u8 || service.kind == Kind::Elastic as u8 {
        service.backend
    } else if service.algorithm == Algorithm::LeastConnections as u8 {
        least_connections(service.ring_base, service.ring_len, hash::flow(key, 0))
    } else {
        let index = if service.algorithm == Algorithm::RoundRobin as u8 {
            let cursor = CURSORS.get_ptr_mut(service.number)?;
            // SAFETY: aligned element of CURSORS.
            let turn = unsafe { atomic::fetch_add(cursor, 1) } as u32;
            turn.checked_rem(service.ring_len)?
        } else if service.algorithm == Algorithm::Source as u8 {
            hash::to_index(hash::source(key.src), service.ring_len)
        } else {
            hash::to_index(hash::flow(key, 0), service.ring_len)
        };
        Member(*RINGS.get(service.ring_base + index)?).number()
    };
    let backend: *const Backend = BACKENDS.get(number)?;
    // Address, port and generation are one word, which the controller writes as one, so they are consistent.
    // SAFETY: an element of BACKENDS, which is aligned to its 8 bytes.
    let word = unsafe { ptr::read_volatile(backend.cast::<u64>()) };
    let chosen = Chosen { number, addr: word as u32, port: (word >> 32) as u16, generation: (word >> 48) as u16 };
    if chosen.addr == 0 { None } else { Some(chosen) }
}

/// No backend.
const NO_BACKEND: u32 = u32::MAX;

/// The backend with the fewest live connections for its weight, among COMPARED elements of the selection table. Ties go to
/// the lowest number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn least_connections(ring_base: u32, ring_len: u32, hash: u64) -> u32 {
    let mut index = hash::to_index(hash, ring_len);
    // Fullness and number in one value, so that the verifier has only one to follow through the loop.
    let mut best = u64::MAX;
    let mut compared = 0;
    while compared < COMPARED && compared < ring_len {
        let Some(member) = RINGS.get(ring_base + index).copied().map(Member) else {
            return NO_BACKEND;
        };
        let Some(load) = load::live(member.number()) else {
            return NO_BACKEND;
        };
        let candidate = ((member.fullness(load) as u64) << 32) | member.number() as u64;
        if candidate < best {
            best = candidate;
        }
        index = (index + 1).checked_rem(ring_len).unwrap_or(0);
        compared += 1;
    }
    best as u32
}
