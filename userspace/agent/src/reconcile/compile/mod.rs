//! From one VIP's state to the table entries it needs. Pure: no I/O, no clock, no kernel.
//!
//! The result says what the kernel shall hold, not how to get there: where a ring lies in the arena and which
//! generation a backend has are the engine's.

mod port_prefixes;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{Ipv4Addr, SocketAddrV4},
};

use ipnet::Ipv4Net;
use thiserror::Error;
use vipgate_abi::{
    backend::{self, Backend, TCP_IDLE, UDP_IDLE},
    meter::Binding,
    service::{self, Kind, Member, ServiceKey},
    snat::{self, SnatKey, SnatKind},
};
use vipgate_state::{Algorithm, BackendState, ForwardState, Limits, ListenerState, Protocol, VipState};

use super::{bandwidth::Rates, maglev};

/// A key of the services trie. Ordered by VIP first, so that one VIP's keys are one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub data: ServiceKey,
    /// Bits of `data` that count: [`ServiceKey::EXACT`], fewer for a range of ports, or [`ServiceKey::WHOLE_VIP`].
    pub prefix_len: u32,
}

impl Key {
    /// The key of one listener.
    pub fn listener(vip: Ipv4Addr, protocol: Protocol, port: u16) -> Self {
        let data = ServiceKey { vip: vip.octets(), protocol: protocol.number(), port: port.to_be_bytes(), reserved: 0 };
        Self { data, prefix_len: ServiceKey::EXACT }
    }

    /// The keys that together are the ports of a range.
    pub fn range(vip: Ipv4Addr, protocol: Protocol, (first, last): (u16, u16)) -> impl Iterator<Item = Self> {
        port_prefixes::cover(first, last).into_iter().map(move |(port, bits)| Self {
            prefix_len: ServiceKey::EXACT - u16::BITS + bits,
            ..Self::listener(vip, protocol, port)
        })
    }

    /// The key of the whole VIP, which applies where no listener's does.
    pub fn whole(vip: Ipv4Addr) -> Self {
        Self { data: ServiceKey { vip: vip.octets(), ..ServiceKey::default() }, prefix_len: ServiceKey::WHOLE_VIP }
    }

    pub fn vip(&self) -> Ipv4Addr {
        self.data.vip.into()
    }
}

/// A key of the sources trie: guests, and the device by which their packets are about to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    pub data: SnatKey,
    /// Bits of `data` that count: [`SnatKey::EXACT`] for one guest, fewer for a network.
    pub prefix_len: u32,
}

impl Origin {
    /// The key of the guests that a network has, by a device's interface index.
    pub fn new(device: u32, guests: Ipv4Net) -> Self {
        let data = SnatKey::new(device, u32::from(guests.network()).to_be());
        Self { data, prefix_len: SnatKey::EXACT - u32::BITS + u32::from(guests.prefix_len()) }
    }

    /// Whether both are about the same guests, by whatever devices.
    pub fn same_guests(&self, other: &Self) -> bool {
        (self.data.addr, self.prefix_len) == (other.data.addr, other.prefix_len)
    }
}

/// What one VIP needs in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    pub vip: Ipv4Addr,
    pub services: BTreeMap<Key, ServiceEntry>,
    pub sources: BTreeMap<Origin, SourceEntry>,
    /// By backend number, without their generations.
    pub backends: BTreeMap<u32, Backend>,
    /// Bandwidth limits, by number.
    pub limits: BTreeMap<u32, Rates>,
    /// The number of the limit that a port has of its own.
    pub port_limits: BTreeMap<u16, u32>,
    /// Whose limit the backends of a service number count against, those that drain included.
    pub bindings: BTreeMap<u32, Binding>,
}

impl Tables {
    /// Of a VIP that needs nothing.
    pub fn empty(vip: Ipv4Addr) -> Self {
        Self {
            vip,
            services: BTreeMap::new(),
            sources: BTreeMap::new(),
            backends: BTreeMap::new(),
            limits: BTreeMap::new(),
            port_limits: BTreeMap::new(),
            bindings: BTreeMap::new(),
        }
    }
}

/// A service with its ring's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEntry {
    Disabled,
    /// Of the whole VIP, whose other ports nobody has, the router's own sockets neither.
    Closed,
    Balance {
        algorithm: service::Algorithm,
        /// The listener's number.
        number: u32,
        max_connections: u32,
        /// [`Member`]s; empty: the listener has no backend.
        ring: Vec<u32>,
    },
    /// Of each of the keys of a port-forwarding rule.
    Forward {
        /// The rule's number.
        number: u32,
        backend: u32,
        port_shift: u16,
        allowed: Ipv4Net,
    },
    /// Of the whole VIP, which is one guest's.
    Elastic {
        /// The elastic IP's number.
        number: u32,
        backend: u32,
        /// Interface index of the VIP's device.
        device: u32,
    },
}

impl ServiceEntry {
    /// The service's number; `None`: it has no backends.
    pub const fn number(&self) -> Option<u32> {
        match self {
            Self::Disabled | Self::Closed => None,
            Self::Balance { number, .. } | Self::Forward { number, .. } | Self::Elastic { number, .. } => Some(*number),
        }
    }

    /// What its keys point to in the arena.
    pub fn ring(&self) -> &[u32] {
        match self {
            Self::Balance { ring, .. } => ring,
            Self::Disabled | Self::Closed | Self::Forward { .. } | Self::Elastic { .. } => &[],
        }
    }

    /// The trie's value, given where the ring lies.
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

/// What packets of guests become, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceEntry {
    /// Number of the elastic IP, or of the network's source NAT; `None`: the packets are dropped.
    pub number: Option<u32>,
    pub value: snat::SnatRule,
}

/// The router's devices as they are now: their interface indices by name.
pub type Devices<'a> = dyn Fn(&str) -> Option<u32> + 'a;

/// Compiles one VIP. Its device is what elastic IPs and source NAT are told apart by: while it is not there, they have no
/// entries. While those of backends and guests are not there, any device may lead to them.
///
/// A Disabled VIP is one key for the whole address that drops, and keys that drop what would leave by it; nothing of its
/// services stays, so that their flows end. An Enabled one has a key, too, that keeps the router's sockets from its other ports.
/// Of the router's own address only the services go: what the router itself
/// sends and gets must pass.
/// A listener without a backend that takes new flows keeps its key with an empty ring, so that its packets are refused
/// and counted, and no other service's.
pub fn compile(vip: &VipState, devices: &Devices<'_>) -> Tables {
    let mut tables = Tables::empty(vip.address);
    if let Some(device) = devices(&vip.device) {
        translate(vip, device, devices, &mut tables);
    }
    if vip.enabled {
        serve(vip, devices, &mut tables);
        if !vip.own {
            tables.services.entry(Key::whole(vip.address)).or_insert(ServiceEntry::Closed);
        }
        limit(vip, &mut tables);
    } else if !vip.own {
        tables.services.insert(Key::whole(vip.address), ServiceEntry::Disabled);
    }
    tables
}

/// Listeners and port-forwarding rules.
fn serve(vip: &VipState, devices: &Devices<'_>, tables: &mut Tables) {
    for listener in &vip.listeners {
        tables.services.insert(Key::listener(vip.address, listener.protocol, listener.port), balance(listener));
        // A stopped VM's backend keeps its entry: it gets no new flows, and what it has may drain. An unhealthy one's
        // entry says that it is down, which ends its flows.
        tables.backends.extend(listener.backends.iter().map(|b| (b.number, entry(listener, b, devices))));
    }
    for forward in &vip.forwards {
        let service = ServiceEntry::Forward {
            number: forward.number,
            backend: forward.backend,
            port_shift: forward.guest_port.wrapping_sub(forward.ports.0),
            allowed: forward.allowed,
        };
        let keys = Key::range(vip.address, forward.protocol, forward.ports);
        tables.services.extend(keys.map(|key| (key, service.clone())));
        tables.backends.insert(forward.backend, guest(forward, devices));
    }
}

/// Bandwidth limits. A packet counts against its port's alone, if that has one, else against the VIP's. What serves one
/// port is bound to the limit of that; what serves several has the packet path ask for the packet's, if any of them has one.
fn limit(vip: &VipState, tables: &mut Tables) {
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

/// What takes all protocols: the VIP's guest and the networks whose way out it is.
fn translate(vip: &VipState, device: u32, devices: &Devices<'_>, tables: &mut Tables) {
    let entry = |kind, number, backend, of: &str| {
        let (kind, number, backend) = match vip.enabled {
            true => (kind, Some(number), backend),
            // Dropped: without an entry the packets would leave with another source.
            false => (SnatKind::Disabled, None, 0),
        };
        let (vip, device, kind) = (u32::from(vip.address).to_be(), index(of, devices), kind as u8);
        SourceEntry { number, value: snat::SnatRule { vip, backend, device, kind, ..snat::SnatRule::default() } }
    };
    if let Some(elastic) = &vip.elastic {
        let (number, backend) = (elastic.number, elastic.backend);
        if elastic.leads {
            let guest = Origin::new(device, elastic.guest.into());
            tables.sources.insert(guest, entry(SnatKind::Elastic, number, backend, &elastic.device));
        }
        if vip.enabled {
            tables.services.insert(Key::whole(vip.address), ServiceEntry::Elastic { number, backend, device });
            let guest = Backend { device: index(&elastic.device, devices), ..all_of(elastic.guest, number) };
            tables.backends.insert(backend, guest);
        }
    }
    for masquerade in &vip.masquerades {
        // Networks with the same addresses cannot be told apart: the first one's traffic it is.
        let Entry::Vacant(place) = tables.sources.entry(Origin::new(device, masquerade.network)) else { continue };
        let mut source = entry(SnatKind::Masquerade, masquerade.number, masquerade.backend, masquerade.device.as_str());
        source.value.shared = u8::from(vip.enabled && !(vip.listeners.is_empty() && vip.forwards.is_empty()));
        place.insert(source);
        if vip.enabled {
            tables.backends.insert(masquerade.backend, all_of(vip.address, masquerade.number));
        }
    }
}

/// A backend that takes every protocol and port.
fn all_of(address: Ipv4Addr, service: u32) -> Backend {
    Backend { addr: u32::from(address).to_be(), service, idle_timeout: TCP_IDLE, ..Backend::default() }
}

/// The interface index of a backend's or guest's device; 0: it is not there.
fn index(device: &str, devices: &Devices<'_>) -> u32 {
    devices(device).unwrap_or(0)
}

fn guest(forward: &ForwardState, devices: &Devices<'_>) -> Backend {
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

fn balance(listener: &ListenerState) -> ServiceEntry {
    let mut pool: Vec<&BackendState> =
        listener.backends.iter().filter(|b| b.active && b.healthy && b.weight > 0).collect();
    pool.sort_by_key(|b| b.number);
    let ring = match listener.algorithm {
        Algorithm::RoundRobin => turns(&pool),
        Algorithm::LeastConnections => pool.iter().map(|b| Member::new(b.number, b.weight).0).collect(),
        Algorithm::Source | Algorithm::Maglev => {
            let member =
                |b: &&BackendState| maglev::Member { address: SocketAddrV4::new(b.address, b.port), weight: b.weight };
            let members: Vec<_> = pool.iter().map(member).collect();
            maglev::table(&members).into_iter().map(|at| pool[at as usize].number).collect()
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

/// The order of turns of a weighted round robin: as many turns for each as its weight says, and each one's evenly spread
/// over the ring, so that no backend gets its flows in a burst. The shortest such order: weights that all are multiples
/// of a number are divided by it, and equal ones are one turn each.
fn turns(pool: &[&BackendState]) -> Vec<u32> {
    let divisor = pool.iter().fold(0, |divisor, b| gcd(divisor, b.weight)).max(1);
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for backend in pool {
        let count = u64::from(backend.weight / divisor);
        // The middle of each of `count` equal parts, in units of 1 / 2^33 of the ring.
        turns.extend((0..count).map(|turn| (((2 * turn + 1) << 32) / count, backend.number)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, number)| number).collect()
}

fn gcd(a: u8, b: u8) -> u8 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn entry(listener: &ListenerState, backend: &BackendState, devices: &Devices<'_>) -> Backend {
    Backend {
        addr: u32::from(backend.address).to_be(),
        port: backend.port.to_be(),
        service: listener.number,
        idle_timeout: if backend.healthy { listener.idle_timeout } else { backend::DOWN },
        device: index(&backend.device, devices),
        ..Backend::default()
    }
}

/// Why a VIP cannot be brought to the kernel. Who wants too much is named by kind and uuid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LimitError {
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
pub fn check(vip: &VipState, limits: &Limits) -> Result<(), LimitError> {
    if !is_host(vip.address) {
        return Err(LimitError::VipAddress { vip: vip.address });
    }
    let mut ranges = Vec::new();
    for listener in &vip.listeners {
        let owner = format!("listener {}", listener.uuid);
        let count = listener.backends.len();
        if count > limits.backends_per_listener as usize {
            return Err(LimitError::BackendsPerListener { owner, count, limit: limits.backends_per_listener });
        }
        let backends = listener.backends.iter().map(|backend| (backend.number, backend.address));
        check_service(&owner, listener.number, backends, limits)?;
        ranges.push((listener.protocol, listener.port, listener.port, owner));
    }
    for forward in &vip.forwards {
        let owner = format!("port-forwarding rule {}", forward.uuid);
        check_service(&owner, forward.number, [(forward.backend, forward.guest)], limits)?;
        ranges.push((forward.protocol, forward.ports.0, forward.ports.1, owner));
    }
    if let Some(elastic) = &vip.elastic {
        let owner = format!("elastic IP {}", elastic.uuid);
        check_service(&owner, elastic.number, [(elastic.backend, elastic.guest)], limits)?;
    }
    for masquerade in &vip.masquerades {
        let owner = format!("source NAT of L3 network {}", masquerade.uuid);
        check_service(&owner, masquerade.number, [(masquerade.backend, vip.address)], limits)?;
    }
    if let Some(limit) = vip.limits.iter().find(|limit| !(1..limits.limits).contains(&limit.number)) {
        let owner = format!("bandwidth limit {}", limit.uuid);
        return Err(LimitError::Bandwidths { owner, number: limit.number, limit: limits.limits });
    }
    ranges.sort();
    let taken = ranges.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[1].1 <= pair[0].2);
    if let Some([_, (protocol, port, _, owner)]) = taken {
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        return Err(LimitError::PortTaken { owner: owner.clone(), vip: vip.address, protocol, port: *port });
    }
    Ok(())
}

fn check_service(
    owner: &str,
    number: u32,
    backends: impl IntoIterator<Item = (u32, Ipv4Addr)>,
    limits: &Limits,
) -> Result<(), LimitError> {
    let owner = || owner.to_owned();
    if number >= limits.services {
        return Err(LimitError::Services { owner: owner(), number, limit: limits.services });
    }
    for (number, address) in backends {
        if number >= limits.backends {
            return Err(LimitError::Backends { owner: owner(), number, limit: limits.backends });
        }
        if !is_host(address) {
            return Err(LimitError::BackendAddress { owner: owner(), address });
        }
    }
    Ok(())
}

fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_broadcast() || address.is_multicast() || address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vipgate_state::{ElasticState, HealthCheck, LimitState, MasqueradeState};

    use super::*;

    /// Interface indices of the VIPs' device, and of the guests'.
    fn devices(name: &str) -> Option<u32> {
        [("eth0", 3), ("eth1", 4)].into_iter().find(|(known, _)| *known == name).map(|(_, index)| index)
    }

    fn backend(number: u32, host: u8) -> BackendState {
        BackendState {
            number,
            address: Ipv4Addr::new(192, 168, 1, host),
            port: 8080,
            device: "eth1".into(),
            active: true,
            weight: 100,
            healthy: true,
        }
    }

    fn listener(algorithm: Algorithm, backends: Vec<BackendState>) -> ListenerState {
        ListenerState {
            uuid: "a".into(),
            account: "account".into(),
            number: 3,
            protocol: Protocol::Udp,
            port: 53,
            algorithm,
            max_connections: 5000,
            idle_timeout: 60,
            check: HealthCheck::default(),
            backends,
        }
    }

    fn vip(listeners: Vec<ListenerState>) -> VipState {
        VipState {
            uuid: "v".into(),
            address: Ipv4Addr::new(10, 0, 0, 5),
            prefix_len: 24,
            device: "eth0".into(),
            own: false,
            enabled: true,
            listeners,
            forwards: vec![],
            elastic: None,
            masquerades: vec![],
            limits: vec![],
        }
    }

    fn forward(ports: (u16, u16), guest_port: u16) -> ForwardState {
        ForwardState {
            uuid: "f".into(),
            number: 9,
            backend: 90,
            protocol: Protocol::Tcp,
            ports,
            guest: Ipv4Addr::new(192, 168, 1, 9),
            device: "eth1".into(),
            guest_port,
            allowed: "10.1.2.77/28".parse().expect("a network"),
        }
    }

    fn forwarding(forwards: Vec<ForwardState>) -> VipState {
        VipState { forwards, ..vip(vec![]) }
    }

    /// The ring of the one listener that [`vip`] has.
    fn ring(tables: &Tables) -> &[u32] {
        match tables.services.values().find(|entry| **entry != ServiceEntry::Closed) {
            Some(ServiceEntry::Balance { ring, .. }) => ring,
            other => panic!("no listener but {other:?}"),
        }
    }

    #[test]
    fn a_listener_is_a_key_of_its_address_protocol_and_port_in_network_order() {
        let tables =
            compile(&vip(vec![listener(Algorithm::LeastConnections, vec![backend(8, 2), backend(7, 1)])]), &devices);
        let key = Key {
            data: ServiceKey { vip: [10, 0, 0, 5], protocol: 17, reserved: 0, port: [0, 53] },
            prefix_len: ServiceKey::EXACT,
        };
        let service = tables.services[&key].value(900);
        assert_eq!(
            (service.kind, service.algorithm),
            (Kind::Balance as u8, service::Algorithm::LeastConnections as u8)
        );
        assert_eq!((service.number, service.max_connections), (3, 5000));
        assert_eq!((service.ring_base, service.ring_len), (900, 2));
        let members = [7, 8].map(|number| Member::new(number, 100).0);
        assert_eq!(ring(&tables), members, "in the order of their numbers");
        let expected = Backend {
            addr: u32::from_ne_bytes([192, 168, 1, 2]),
            port: u16::from_ne_bytes([0x1f, 0x90]),
            generation: 0,
            service: 3,
            idle_timeout: 60,
            device: 4,
            ..Backend::default()
        };
        assert_eq!(tables.backends[&8], expected);
    }

    #[test]
    fn rings_of_both_hashing_algorithms_are_maglev_tables_of_backend_numbers() {
        let pool = vec![backend(70, 1), backend(80, 2), backend(90, 3)];
        for algorithm in [Algorithm::Source, Algorithm::Maglev] {
            let tables = compile(&vip(vec![listener(algorithm, pool.clone())]), &devices);
            assert_eq!(ring(&tables).len() as u32, maglev::table_size(3));
            assert_eq!(ring(&tables).iter().collect::<BTreeSet<_>>(), BTreeSet::from([&70, &80, &90]));
        }
    }

    #[test]
    fn a_stopped_backend_gets_no_new_flows_and_keeps_its_entry() {
        let stopped = BackendState { active: false, ..backend(8, 2) };
        let tables = compile(&vip(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1), stopped])]), &devices);
        assert_eq!(ring(&tables), [7]);
        assert!(tables.backends.contains_key(&8));
    }

    #[test]
    fn weights_are_turns_evenly_spread_and_none_for_weight_zero() {
        let pool: Vec<_> = [(1, 50), (2, 20), (3, 10), (4, 0)]
            .map(|(n, weight)| BackendState { weight, ..backend(n, n as u8) })
            .into();
        let of = |algorithm| ring(&compile(&vip(vec![listener(algorithm, pool.clone())]), &devices)).to_vec();
        assert_eq!(of(Algorithm::RoundRobin), [1, 2, 1, 1, 3, 1, 2, 1]);
        let members = [(1, 50), (2, 20), (3, 10)].map(|(number, weight)| Member::new(number, weight).0);
        assert_eq!(of(Algorithm::LeastConnections), members);
        let table = of(Algorithm::Source);
        let share = |n| table.iter().filter(|number| **number == n).count() * 8 * 100 / table.len();
        assert_eq!([1, 2, 3, 4].map(share).map(|percents| (percents + 50) / 100), [5, 2, 1, 0]);
        let tables = compile(&vip(vec![listener(Algorithm::RoundRobin, pool)]), &devices);
        assert!(tables.backends.contains_key(&4), "what it has may drain");
    }

    #[test]
    fn an_unhealthy_backend_gets_no_new_flows_and_its_entry_says_that_it_is_down() {
        let unhealthy = BackendState { healthy: false, ..backend(8, 2) };
        let tables = compile(&vip(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1), unhealthy])]), &devices);
        assert_eq!(ring(&tables), [7]);
        assert!(tables.backends[&8].is_down() && !tables.backends[&7].is_down());
    }

    #[test]
    fn an_empty_pool_keeps_its_key_and_drops() {
        for algorithm in [Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::Source, Algorithm::Maglev] {
            assert!(ring(&compile(&vip(vec![listener(algorithm, vec![])]), &devices)).is_empty());
        }
    }

    #[test]
    fn a_rule_is_the_prefixes_of_its_range_and_one_backend() {
        let tables = compile(&forwarding(vec![forward((1, 6), 1001)]), &devices);
        let keys: Vec<_> = tables.services.keys().map(|key| (key.data.port, key.prefix_len)).collect();
        assert_eq!(keys, [([0, 0], 32), ([0, 1], 64), ([0, 2], 63), ([0, 4], 63), ([0, 6], 64)]);
        let values: Vec<_> = tables.services.values().skip(1).map(|entry| entry.value(0)).collect();
        assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "one value for the whole range");
        assert_eq!((values[0].kind, values[0].number, values[0].backend), (Kind::Forward as u8, 9, 90));
        assert_eq!(values[0].port_shift, 1000);
        let of = |octets| u32::from_ne_bytes(octets);
        assert_eq!([values[0].source, values[0].source_mask], [of([10, 1, 2, 64]), of([255, 255, 255, 240])]);
        let expected = Backend {
            addr: of([192, 168, 1, 9]),
            port: 1001_u16.to_be(),
            generation: 0,
            service: 9,
            idle_timeout: 7440,
            device: 4,
            ..Backend::default()
        };
        assert_eq!(tables.backends, BTreeMap::from([(90, expected)]));
        let down = compile(&forwarding(vec![forward((2222, 2222), 22)]), &devices);
        assert_eq!(
            down.services.values().nth(1).map(|entry| entry.value(0).port_shift),
            Some(22_u16.wrapping_sub(2222))
        );
    }

    #[test]
    fn any_width_of_range_is_a_handful_of_keys() {
        for (ports, count) in [((1, 65535), 16), ((1, 65534), 30), ((8000, 8015), 1), ((1024, 65535), 6)] {
            assert_eq!(compile(&forwarding(vec![forward(ports, 1)]), &devices).services.len(), 1 + count, "{ports:?}");
        }
        // The rest is for the VIP's own.
        const { assert!(1 + 30 < vipgate_abi::maps::KEYS_PER_SERVICE) };
    }

    #[test]
    fn a_disabled_vip_is_one_key_that_drops_everything() {
        let enabled = vip(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1)])]);
        let tables = compile(&VipState { enabled: false, ..enabled }, &devices);
        let whole = Key::whole(Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(tables.services, BTreeMap::from([(whole, ServiceEntry::Disabled)]));
        assert!(tables.backends.is_empty());
        assert_eq!((whole.prefix_len, whole.vip()), (32, Ipv4Addr::new(10, 0, 0, 5)));
        assert_eq!(ServiceEntry::Disabled.value(0).kind, Kind::Disabled as u8);
    }

    #[test]
    fn an_enabled_vip_keeps_the_routers_sockets_away_and_the_routers_own_address_does_not() {
        let whole = Key::whole(Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(compile(&vip(vec![]), &devices).services, BTreeMap::from([(whole, ServiceEntry::Closed)]));
        assert_eq!(ServiceEntry::Closed.value(0).kind, Kind::Closed as u8);
        assert!(!compile(&own(vec![listener(Algorithm::Source, vec![])]), &devices).services.contains_key(&whole));
        // While an elastic IP's device is not there, too.
        assert_eq!(compile(&elastic(true), &|_| None).services, BTreeMap::from([(whole, ServiceEntry::Closed)]));
    }

    #[test]
    fn what_serves_one_port_is_bound_to_its_limit_and_what_serves_several_asks() {
        let limit = |number, port| LimitState {
            uuid: "limit".into(),
            number,
            port,
            inbound: Some(1 << 20),
            outbound: (port.is_none()).then_some(1 << 30),
        };
        let mut state = own(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1)])]);
        state.forwards =
            vec![forward((100, 200), 1000), ForwardState { number: 10, backend: 91, ..forward((300, 310), 1) }];
        let bound = |limits: &[LimitState]| {
            let tables = compile(&VipState { limits: limits.to_vec(), ..state.clone() }, &devices);
            let bindings = [7, 90, 91, 80].map(|number| tables.backends[&number].meter);
            (bindings, tables)
        };
        assert_eq!(bound(&[]).0, [Binding::default(); 4]);
        assert_eq!(bound(&[limit(1, None)]).0, [Binding::new(1, false); 4]);
        let (bindings, tables) = bound(&[limit(1, None), limit(2, Some(53)), limit(3, Some(200))]);
        let [of_port, asks, whole] = [Binding::new(2, false), Binding::new(1, true), Binding::new(1, false)];
        assert_eq!(bindings, [of_port, asks, whole, asks]);
        assert_eq!(tables.port_limits, BTreeMap::from([(53, 2), (200, 3)]));
        assert_eq!(tables.limits[&1], Rates([Some(1 << 20), Some(1 << 30)]));
        assert_eq!(
            bound(&[limit(3, Some(200))]).0,
            [Binding::default(), Binding::new(0, true), Binding::default(), Binding::new(0, true)]
        );
        // Without traffic there is nothing to limit.
        assert!(
            compile(&VipState { enabled: false, limits: vec![limit(1, None)], ..state.clone() }, &devices)
                .limits
                .is_empty()
        );
        for number in [0, 16_384] {
            let state = VipState { limits: vec![limit(number, None)], ..state.clone() };
            let error = check(&state, &Limits::default()).expect_err("refused").to_string();
            assert!(error.contains(&number.to_string()), "{error}");
        }
    }

    fn elastic(leads: bool) -> VipState {
        let guest = Ipv4Addr::new(192, 168, 1, 9);
        let elastic = ElasticState { uuid: "e".into(), number: 6, backend: 60, guest, device: "eth1".into(), leads };
        VipState { elastic: Some(elastic), ..vip(vec![]) }
    }

    /// The router's own address, by which 192.168.0.0/16 goes out.
    fn own(listeners: Vec<ListenerState>) -> VipState {
        let network = "192.168.0.0/16".parse().expect("a network");
        let masquerade = MasqueradeState { uuid: "n".into(), number: 8, backend: 80, network, device: "eth1".into() };
        VipState { own: true, masquerades: vec![masquerade], ..vip(listeners) }
    }

    #[test]
    fn an_elastic_ip_is_the_whole_vip_and_its_guest_leaves_by_the_one_that_leads() {
        let (vip, guest) = (u32::from_ne_bytes([10, 0, 0, 5]), u32::from_ne_bytes([192, 168, 1, 9]));
        let tables = compile(&elastic(true), &devices);
        let service = tables.services[&Key::whole(Ipv4Addr::new(10, 0, 0, 5))].value(0);
        assert_eq!((service.kind, service.number, service.backend), (Kind::Elastic as u8, 6, 60));
        assert_eq!(service.device(), 3);
        let expected = Backend { addr: guest, service: 6, idle_timeout: 7440, device: 4, ..Backend::default() };
        assert_eq!(tables.backends, BTreeMap::from([(60, expected)]));
        assert!(expected.takes_all());
        let key = Origin { data: SnatKey::new(3, guest), prefix_len: 64 };
        let kind = SnatKind::Elastic as u8;
        let value = snat::SnatRule { vip, backend: 60, device: 4, kind, ..snat::SnatRule::default() };
        assert_eq!(tables.sources, BTreeMap::from([(key, SourceEntry { number: Some(6), value })]));

        let follower = compile(&elastic(false), &devices);
        assert!(follower.sources.is_empty());
        assert_eq!((follower.services, follower.backends), (tables.services, tables.backends));
    }

    #[test]
    fn a_masqueraded_network_leaves_by_the_vip_and_spares_the_ports_of_its_services() {
        let vip = u32::from_ne_bytes([10, 0, 0, 5]);
        for (state, shared) in [
            (own(vec![]), 0),
            (own(vec![listener(Algorithm::RoundRobin, vec![])]), 1),
            (VipState { forwards: vec![forward((1, 2), 1)], ..own(vec![]) }, 1),
        ] {
            let tables = compile(&state, &devices);
            let key = Origin { data: SnatKey { device: 3_u32.to_ne_bytes(), addr: [192, 168, 0, 0] }, prefix_len: 48 };
            let kind = SnatKind::Masquerade as u8;
            let value = snat::SnatRule { vip, backend: 80, device: 4, kind, shared, ..snat::SnatRule::default() };
            assert_eq!(tables.sources, BTreeMap::from([(key, SourceEntry { number: Some(8), value })]));
            let expected = Backend { addr: vip, service: 8, idle_timeout: 7440, ..Backend::default() };
            assert_eq!(tables.backends[&80], expected);
        }
        let mut twice = own(vec![]);
        let second = MasqueradeState { number: 9, backend: 90, ..twice.masquerades[0].clone() };
        twice.masquerades.push(second);
        assert_eq!(compile(&twice, &devices), compile(&own(vec![]), &devices), "one of two with the same addresses");
    }

    #[test]
    fn what_would_leave_by_a_disabled_vip_is_dropped_and_the_routers_own_address_goes_on() {
        let disabled = |state| compile(&VipState { enabled: false, ..state }, &devices);
        let whole = Key::whole(Ipv4Addr::new(10, 0, 0, 5));
        for (state, services) in [
            (elastic(true), BTreeMap::from([(whole, ServiceEntry::Disabled)])),
            (own(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1)])]), BTreeMap::new()),
        ] {
            let (on, off) = (compile(&state, &devices), disabled(state));
            assert_eq!(off.services, services);
            assert!(off.backends.is_empty());
            assert!(off.sources.keys().eq(on.sources.keys()));
            let (vip, kind) = (u32::from_ne_bytes([10, 0, 0, 5]), SnatKind::Disabled as u8);
            let value = snat::SnatRule { vip, device: 4, kind, ..snat::SnatRule::default() };
            assert!(off.sources.values().all(|entry| *entry == SourceEntry { number: None, value }));
        }
    }

    #[test]
    fn without_its_device_a_vip_has_only_what_needs_none() {
        let state = VipState { elastic: elastic(true).elastic, ..own(vec![listener(Algorithm::RoundRobin, vec![])]) };
        let tables = compile(&state, &|_| None);
        assert!(tables.sources.is_empty() && tables.backends.is_empty());
        assert_eq!(tables.services.into_keys().collect::<Vec<_>>(), [Key::listener(state.address, Protocol::Udp, 53)]);
    }

    #[test]
    fn backends_and_guests_are_by_their_networks_device_and_by_any_while_that_is_not_there() {
        let mut state = vip(vec![listener(Algorithm::RoundRobin, vec![backend(7, 1)])]);
        (state.elastic, state.masquerades) = (elastic(true).elastic, own(vec![]).masquerades);
        state.forwards = vec![ForwardState { device: "eth2".into(), ..forward((1, 2), 1) }];
        assert_eq!(state.devices(), BTreeSet::from(["eth0", "eth1", "eth2"]));
        let of = |backend: u32, devices: &Devices<'_>| compile(&state, devices).backends[&backend].device;
        assert_eq!([7, 60, 80, 90].map(|backend| of(backend, &devices)), [4, 4, 0, 0]);
        let later = |name: &str| devices(name).or((name == "eth2").then_some(5));
        assert_eq!(of(90, &later), 5);
    }

    #[test]
    fn keys_of_one_vip_are_one_range() {
        let one = Ipv4Addr::new(10, 0, 0, 5);
        let next = Ipv4Addr::new(10, 0, 0, 6);
        let last = Key::listener(one, Protocol::Udp, u16::MAX);
        assert!(Key::whole(one) < Key::listener(one, Protocol::Tcp, 1) && last < Key::whole(next));
    }

    #[test]
    fn what_the_tables_cannot_hold_is_refused_with_the_value_named() {
        let limits = Limits { services: 10, backends: 100, backends_per_listener: 2, ..Limits::default() };
        let of = |listener: ListenerState| vip(vec![listener]);
        let plain = listener(Algorithm::RoundRobin, vec![backend(7, 1)]);
        check(&of(plain.clone()), &limits).expect("fits");
        let pool = |backends| ListenerState { backends, ..plain.clone() };
        let nowhere = BackendState { address: Ipv4Addr::UNSPECIFIED, ..backend(7, 1) };
        for (vip, named) in [
            (of(ListenerState { number: 10, ..plain.clone() }), "number 10"),
            (of(pool(vec![backend(100, 1)])), "number 100"),
            (of(pool((1..4).map(|n| backend(n, n as u8)).collect())), "has 3 backends"),
            (of(pool(vec![nowhere])), "0.0.0.0"),
            (vip(vec![plain.clone(), ListenerState { number: 4, ..plain.clone() }]), "udp port 53"),
            (VipState { address: Ipv4Addr::new(224, 0, 0, 1), ..of(plain.clone()) }, "224.0.0.1"),
        ] {
            let error = check(&vip, &limits).expect_err(named).to_string();
            assert!(error.contains(named), "{error} should name {named}");
        }
        for (rule, named) in [
            (ForwardState { number: 10, ..forward((1, 2), 1) }, "number 10"),
            (ForwardState { backend: 100, ..forward((1, 2), 1) }, "number 100"),
            (ForwardState { guest: Ipv4Addr::BROADCAST, ..forward((1, 2), 1) }, "255.255.255.255"),
            (ForwardState { protocol: Protocol::Udp, ..forward((50, 53), 50) }, "udp port 53"),
        ] {
            let vip = VipState { forwards: vec![rule], ..of(plain.clone()) };
            let error = check(&vip, &limits).expect_err(named).to_string();
            assert!(error.contains(named), "{error} should name {named}");
        }
        check(&VipState { forwards: vec![forward((50, 53), 50)], ..of(plain.clone()) }, &limits).expect("fits");
        let (mut guest, mut network) = (elastic(true), own(vec![]));
        [&guest, &network].into_iter().for_each(|vip| check(vip, &limits).expect("fits"));
        guest.elastic.iter_mut().for_each(|elastic| elastic.backend = 100);
        network.masquerades[0].number = 10;
        for (vip, named) in [(guest, "elastic IP e would have backend number 100"), (network, "number 10")] {
            let error = check(&vip, &limits).expect_err(named).to_string();
            assert!(error.contains(named), "{error} should name {named}");
        }
        // The same port of another protocol is another listener's.
        let tcp = ListenerState { protocol: Protocol::Tcp, number: 4, ..plain.clone() };
        check(&vip(vec![plain, tcp]), &limits).expect("fits");
    }
}
