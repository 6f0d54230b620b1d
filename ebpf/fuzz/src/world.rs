//! The tables, the kernel's state, and what small numbers name in them.
//!
//! ```text
//! clients 10.1.0.0/24 - device 11 (interface 1) [router] device 12 (interface 2) - backends 10.2.0.0/24
//! ```
//! The networks 10.3.0.0/24 to 10.8.0.0/24 start with the other results of a route lookup: a device without a program, no
//! neighbour, unreachable, a packet that does not fit, a gateway, and no route. Any host may be a guest.

mod names;

use vipgate_abi::{
    address_filter::{self, Bit},
    backend::Backend,
    config::Config,
    counters::{REASON_SLOTS, Reason},
    fair_share::SHARES,
    flow::WAYS,
    interface::Interface,
    load::Load,
    meter::{self, Binding, INBOUND, MeterPort, Metered, OUTBOUND, Rate},
    sample,
    service::{Algorithm, Kind, Service, ServiceKey},
    snat::{self, SnatKey, SnatKind, SnatRule},
};
use vipgate_host_kernel::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_UNREACHABLE,
    },
    btf_maps::lpm_trie::Key,
    kernel::{self, Route, Socket},
};
use vipgate_pipeline::maps;

pub(crate) use self::names::{address, destination, device, device_astray, forged, mac, service};
use self::names::{device_of, mask};
use crate::{
    input::Step,
    sweeper, traffic,
    wire::{TCP, UDP},
};

pub(crate) const BACKENDS: u32 = 16;
pub(crate) const SERVICES: u32 = 32;
/// Elements of each service's selection table.
const RING: u32 = 8;
const INTERFACES: u32 = 4;
/// Number of bandwidth limits.
const LIMITS: u32 = 8;

pub(crate) const PUBLIC: u32 = 11;
pub(crate) const PRIVATE: u32 = 12;
/// A device that carries no program.
const OTHER: u32 = 14;

/// The router's own addresses.
pub(crate) const OWN: [[u8; 4]; 2] = [[10, 1, 0, 50], [10, 2, 0, 50]];

/// Nanoseconds of a jiffy.
pub(crate) const TICK: u32 = 4_000_000;

/// The state of the tables and the kernel, as the controller last set it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) buckets: u32,
    pub(crate) now: u32,
    routes: Vec<Route>,
    sockets: Vec<Socket>,
    config: Config,
}

impl World {
    /// Empty tables but for the ports and four services.
    pub(crate) fn new(seed: u8, buckets: u32) -> Self {
        let ways = WAYS as u32;
        maps::CONFIG.allocate(1);
        maps::FLOW_BUCKETS.allocate(buckets as usize);
        maps::FLOWS.allocate((buckets * ways) as usize);
        maps::BACKENDS.allocate(BACKENDS as usize);
        maps::BACKEND_LOAD.allocate(BACKENDS as usize);
        maps::BACKEND_ROUTES.allocate(BACKENDS as usize);
        maps::BACKEND_TRAFFIC.allocate(BACKENDS as usize);
        maps::RINGS.allocate((SERVICES * RING) as usize);
        maps::CURSORS.allocate(SERVICES as usize);
        maps::SERVICE_LOAD.allocate(SERVICES as usize);
        maps::PORTS.allocate(INTERFACES as usize);
        maps::INTEREST.allocate(address_filter::WORDS);
        maps::METERS.allocate(LIMITS as usize);
        maps::METER_STATES.allocate(LIMITS as usize);
        maps::METER_TRAFFIC.allocate(LIMITS as usize);
        maps::METER_SHARES.allocate(SHARES as usize);
        maps::SAMPLE.allocate(sample::PLACES as usize);
        maps::REASONS.allocate(REASON_SLOTS as usize);
        maps::LAST_TOLD.allocate(REASON_SLOTS as usize);
        maps::PORT_CURSORS.allocate(snat::CURSORS as usize);
        maps::SERVICES.clear();
        maps::SOURCES.clear();
        maps::PORT_NUMBERS.clear();
        maps::FRAGMENTS.clear();
        maps::DIRECT.clear();
        maps::REFUSED.clear();
        maps::PORT_METERS.clear();
        let flow_seed = u64::from(seed);
        let config = Config { flow_seed, bucket_mask: buckets - 1, tick: TICK, log: u64::MAX, ..Config::default() };
        // The clock wraps while an input runs.
        let own =
            |network| Route { network, prefix_len: 32, answer: BPF_FIB_LKUP_RET_NOT_FWDED, ifindex: 0, gateway: None };
        let routes = OWN.map(own).into();
        let mut world = Self { buckets, now: u32::MAX - 1000, routes, sockets: Vec::new(), config };
        OWN.iter().for_each(|own| add_to_address_filter(Bit::own(u32::from_ne_bytes(*own))));
        kernel::set_jiffies(world.now.into());
        kernel::set_sockets(Vec::new());
        for (network, answer) in (0..).zip([0, 1, 2, 3, 4, 5, 6, 7]) {
            world.set_route(network, answer);
        }
        for number in [1, 2] {
            set_interface(number, true);
        }
        for number in 1..8 {
            set_backend(number, 0x20 | number, number);
        }
        for (service, what) in [(0, 0x40), (8, 0x42), (1, 0x44), (9, 0x46)] {
            serve(service, what, &[1 + service % 4, 3 + service % 4]);
        }
        world.new_epoch();
        world
    }

    /// Applies a step that is no packet. Returns false if it is one.
    pub(crate) fn change(&mut self, step: &Step) -> bool {
        match step {
            Step::Serve { service, what, ring } => serve(*service, *what, ring),
            Step::Forward { service, backend, shift, source, bits } => {
                forward(*service, *backend, *shift, (*source, *bits));
            }
            Step::Withdraw { service } => withdraw(*service),
            Step::Elastic { service, backend, guest, what } => elastic(*service, *backend, *guest, *what),
            Step::Masquerade { service, backend, source, bits, what } => {
                let (vip, shared) = (u32::from_ne_bytes(self::service(*service).0), what & 1);
                let backend = set_whole_backend(*backend, vip, 0, 0);
                let kind = SnatKind::Masquerade;
                add_to_address_filter(Bit::to(vip));
                set_snat_rule(*source, *bits, *what, SnatRule { vip, backend, shared, ..of_kind(kind, *what) });
            }
            Step::Unmask { source, bits, what } => drop(maps::SOURCES.remove(&snat_key(*source, *bits, *what))),
            Step::Backend { number, address, port } => set_backend(*number, *address, *port),
            Step::EndFlows { number } => {
                let backend = backend(u32::from(*number) % BACKENDS);
                let ended = Backend { generation: backend.generation.wrapping_add(1), ..backend };
                put_backend(u32::from(*number) % BACKENDS, ended);
            }
            Step::Route { network, answer } => {
                self.set_route(*network, *answer);
                self.new_epoch();
            }
            Step::Mtu { interface: number, mtu } => {
                let number = u32::from(*number) % INTERFACES;
                set(maps::PORTS.set(number, Interface { mtu: u32::from(*mtu), ..interface(number) }, 0));
            }
            Step::SocketsOnly { interface: number, only } => {
                let number = u32::from(*number) % INTERFACES;
                set(maps::PORTS.set(number, Interface { sockets_only: u16::from(*only), ..interface(number) }, 0));
            }
            Step::Strict { interface: number, strict } => {
                let number = u32::from(*number) % INTERFACES;
                set(maps::PORTS.set(number, Interface { strict: u32::from(*strict), ..interface(number) }, 0));
                self.config.strict |= u32::from(*strict);
                set(maps::CONFIG.set(0, self.config, 0));
            }
            Step::Interface { interface, present } => {
                set_interface(u32::from(*interface) % INTERFACES, *present);
                self.new_epoch();
            }
            Step::Wait { jiffies } => {
                self.now = self.now.wrapping_add(u32::from(*jiffies));
                kernel::set_jiffies(self.now.into());
            }
            Step::Limit { service, most } => {
                for key in service_keys(*service) {
                    if let Some(held) = maps::SERVICES.get(&key).copied() {
                        set(maps::SERVICES.insert(&key, Service { max_connections: u32::from(*most), ..held }, 0));
                    }
                }
            }
            Step::Socket { port } => {
                let protocol = if port & 8 == 0 { TCP } else { UDP };
                self.sockets.push(Socket { protocol, port: traffic::port(*port) });
                kernel::set_sockets(self.sockets.clone());
            }
            Step::Rate { backend, limit, doublings, what } => self.set_rate(*backend, *limit, *doublings, *what),
            Step::Sweep { idle } => sweeper::sweep(self, u32::from(*idle)),
            _ => return false,
        }
        true
    }

    fn set_route(&mut self, network: u8, answer: u8) {
        let network = [10, 1 + network % 8, 0, 0];
        let (answer, ifindex, gateway) = match answer % 8 {
            0 => (BPF_FIB_LKUP_RET_SUCCESS, PUBLIC, None),
            1 => (BPF_FIB_LKUP_RET_SUCCESS, PRIVATE, None),
            2 => (BPF_FIB_LKUP_RET_SUCCESS, OTHER, None),
            3 => (BPF_FIB_LKUP_RET_NO_NEIGH, PUBLIC, None),
            4 => (BPF_FIB_LKUP_RET_UNREACHABLE, 0, None),
            5 => (BPF_FIB_LKUP_RET_FRAG_NEEDED, PRIVATE, None),
            6 => (BPF_FIB_LKUP_RET_SUCCESS, PUBLIC, Some([0x02, 0, 0, 0, 0, 0xfe])),
            _ => (BPF_FIB_LKUP_RET_NOT_FWDED, 0, None),
        };
        self.routes.retain(|route| route.network != network);
        self.routes.push(Route { network, prefix_len: 24, answer, ifindex, gateway });
        kernel::set_routes(self.routes.clone());
    }

    /// The limits have no queue: only TC has queues.
    fn set_rate(&self, backend_number: u8, limit: u8, doublings: u8, what: u8) {
        let backend_number = u32::from(backend_number) % BACKENDS;
        let limit = 1 + u32::from(limit) % (LIMITS - 1);
        let direction = if what & 1 == 0 { INBOUND } else { OUTBOUND };
        let rate = Rate::policed(meter::LOWEST << (doublings % 26));
        let mut meter = maps::METERS.get(limit).copied().unwrap_or_default();
        meter.rates[direction] = rate;
        set(maps::METERS.set(limit, meter, 0));
        if what & 8 != 0 {
            let mut state = maps::METER_STATES.get(limit).copied().unwrap_or_default();
            let now = rate.clock(u64::from(self.now) * u64::from(TICK));
            state.words[direction] = now.wrapping_add(rate.tolerance + 1);
            set(maps::METER_STATES.set(limit, state, 0));
        }
        let by_port = what & 2 != 0;
        if by_port {
            let (vip, _, port) = service(backend_number as u8);
            let port = MeterPort { vip: u32::from_ne_bytes(vip), port: port.to_be(), reserved: 0 };
            set(maps::PORT_METERS.insert(port, limit, 0));
        }
        let meter = match what & 4 {
            0 => Binding::new(if by_port { 0 } else { limit }, by_port),
            _ => Binding::default(),
        };
        put_backend(backend_number, Backend { meter, ..backend(backend_number) });
    }

    /// Bumps the epoch, as the controller does after a change of routes, neighbours or devices.
    fn new_epoch(&mut self) {
        self.config.epoch += 1;
        set(maps::CONFIG.set(0, self.config, 0));
    }
}

/// The keys that a service may have: its port, or the whole VIP. A Disabled VIP and an elastic IP take every protocol;
/// services with target ports take TCP and UDP.
fn service_keys(number: u8) -> Vec<Key<ServiceKey>> {
    /// Prefix length of a key that names a VIP's protocol.
    const PROTOCOL: u32 = ServiceKey::WHOLE_VIP + 8;
    let (vip, protocol, port) = service(number);
    let key = |length, protocol, port| Key::new(length, ServiceKey::new(u32::from_ne_bytes(vip), protocol, port));
    if number & 16 == 0 {
        vec![key(ServiceKey::EXACT, protocol, port.to_be())]
    } else {
        vec![key(ServiceKey::WHOLE_VIP, 0, 0), key(PROTOCOL, TCP, 0), key(PROTOCOL, UDP, 0)]
    }
}

fn set_service(number: u8, value: Service) {
    withdraw(number);
    let takes_all = value.kind == Kind::Disabled as u8 || value.kind == Kind::Elastic as u8;
    add_to_address_filter(Bit::to(u32::from_ne_bytes(service(number).0)));
    for key in service_keys(number) {
        if number & 16 == 0 || takes_all == (key.prefix_len == ServiceKey::WHOLE_VIP) {
            set(maps::SERVICES.insert(&key, value, 0));
        }
    }
}

fn withdraw(number: u8) {
    for key in service_keys(number) {
        // Which of the keys exist depends on the service's kind.
        let _ = maps::SERVICES.remove(&key);
    }
}

fn serve(service: u8, what: u8, ring: &[u8]) {
    let number = u32::from(service) % SERVICES;
    let algorithm = match what >> 1 & 3 {
        0 => Algorithm::RoundRobin,
        1 => Algorithm::LeastConnections,
        2 => Algorithm::Source,
        _ => Algorithm::Maglev,
    };
    let ring_base = number * RING;
    for (index, &backend) in (ring_base..).zip(ring) {
        set(maps::RINGS.set(index, u32::from(backend) % BACKENDS, 0));
    }
    let value = Service {
        kind: if what & 1 == 0 { Kind::Balance } else { Kind::Disabled } as u8,
        algorithm: algorithm as u8,
        number,
        ring_base,
        ring_len: ring.len() as u32,
        ..Service::default()
    };
    set_service(service, value);
}

fn forward(service: u8, backend: u8, port_shift: u16, (source, bits): (u8, u8)) {
    let mask = mask(bits);
    let value = Service {
        kind: Kind::Forward as u8,
        number: u32::from(service) % SERVICES,
        backend: u32::from(backend) % BACKENDS,
        port_shift,
        source: (u32::from_be_bytes(address(source)) & mask).to_be(),
        source_mask: mask.to_be(),
        ..Service::default()
    };
    set_service(service, value);
}

fn elastic(service: u8, backend: u8, guest: u8, what: u8) {
    let number = u32::from(service) % SERVICES;
    let (vip, guest_address) = (u32::from_ne_bytes(self::service(service).0), u32::from_ne_bytes(address(guest)));
    let backend = set_whole_backend(backend, guest_address, number, device_of(what >> 3));
    let value = Service { kind: Kind::Elastic as u8, number, ring_base: device(what), backend, ..Service::default() };
    set_service(service | 16, value);
    if what & 1 != 0 {
        set_snat_rule(guest, 32, what, SnatRule { vip, backend, ..of_kind(SnatKind::Elastic, what) });
    }
}

/// Sets a backend that takes every protocol and port. Returns its number.
fn set_whole_backend(number: u8, addr: u32, service: u32, device: u32) -> u32 {
    let number = u32::from(number) % BACKENDS;
    let generation = backend(number).generation.wrapping_add(1);
    add_to_address_filter(Bit::from(addr));
    put_backend(number, Backend { addr, generation, service, idle_timeout: 60, device, ..Backend::default() });
    number
}

fn of_kind(kind: SnatKind, what: u8) -> SnatRule {
    let kind = if what & 4 == 0 { kind } else { SnatKind::Disabled } as u8;
    SnatRule { kind, device: device_of(what >> 3), ..SnatRule::default() }
}

fn set_snat_rule(source: u8, bits: u8, what: u8, value: SnatRule) {
    // For every host that the rule may apply to.
    for number in 0..address_filter::WORDS {
        set(maps::INTEREST.set(number as u32, u64::MAX, 0));
    }
    set(maps::SOURCES.insert(&snat_key(source, bits, what), value, 0));
}

fn snat_key(source: u8, bits: u8, what: u8) -> Key<SnatKey> {
    let network = u32::from_be_bytes(address(source)) & mask(bits);
    Key::new(32 + u32::from(bits % 33), SnatKey::new(device(what), network.to_be()))
}

/// The SNAT rule for packets from this address that leave by the device.
pub(crate) fn snat_rule(device: u32, src: u32) -> Option<SnatRule> {
    maps::SOURCES.get(&Key::new(SnatKey::EXACT, SnatKey::new(device, src))).copied()
}

/// Sets a bit. Bits are never cleared: more than needed do no harm.
fn add_to_address_filter(bit: Bit) {
    let word = maps::INTEREST.get(bit.word()).copied().unwrap_or_default();
    set(maps::INTEREST.set(bit.word(), word | bit.mask(), 0));
}

fn set_backend(number: u8, host: u8, port: u8) {
    let number = u32::from(number) % BACKENDS;
    let value = Backend {
        addr: if host == 0 { 0 } else { u32::from_ne_bytes(address(host)) },
        port: (8080 + u16::from(port & 3)).to_be(),
        generation: backend(number).generation.wrapping_add(1),
        idle_timeout: 60,
        device: device_of(port >> 4),
        ..Backend::default()
    };
    add_to_address_filter(Bit::from(value.addr));
    put_backend(number, value);
}

/// Writes a backend as the controller does: a new generation starts with a load of 0.
fn put_backend(number: u32, value: Backend) {
    let held = backend(number);
    if held.generation != value.generation {
        let ended = load(number);
        set(maps::BACKEND_LOAD.set(number, Load::of(value.generation).0, 0));
        leave(held.service, ended.admitted());
    }
    set(maps::BACKENDS.set(number, value, 0));
}

/// A backend's load by its number.
pub(crate) fn load(number: u32) -> Load {
    Load(maps::BACKEND_LOAD.get(number).copied().unwrap_or_default())
}

/// Takes connections off a service's load.
pub(crate) fn leave(service: u32, connections: u32) {
    let load = maps::SERVICE_LOAD.get(service).copied().unwrap_or_default();
    set(maps::SERVICE_LOAD.set(service, load - connections, 0));
}

/// The limits' counters, by number.
pub(crate) fn metered() -> Vec<[Metered; 2]> {
    (0..LIMITS).map(|limit| maps::METER_TRAFFIC.get(limit).copied().unwrap_or_default().directions).collect()
}

fn set_interface(number: u32, present: bool) {
    if number == 0 {
        return;
    }
    let ifindex = 10 + number;
    let here = Interface { ifindex, mtu: 1500, mac: mac(ifindex), ..Interface::default() };
    let value = if present { here } else { Interface::default() };
    set(maps::PORTS.set(number, value, 0));
    let interfaces: Vec<Interface> = (0..INTERFACES).map(interface).collect();
    maps::TX_PORTS.fill(&interfaces.iter().map(|interface| interface.ifindex).collect::<Vec<_>>());
    maps::PORT_NUMBERS.clear();
    for (number, interface) in (0u32..).zip(interfaces).filter(|(_, interface)| interface.ifindex != 0) {
        set(maps::PORT_NUMBERS.insert(interface.ifindex, number, 0));
    }
}

/// True if the device carries a program.
pub(crate) fn is_interface(ifindex: u32) -> bool {
    (0..INTERFACES).any(|number| interface(number).ifindex == ifindex)
}

/// True for a device with strict reverse-path filtering.
pub(crate) fn is_strict(ifindex: u32) -> bool {
    (1..INTERFACES).map(interface).any(|interface| interface.ifindex == ifindex && interface.is_strict())
}

pub(crate) fn set(result: Result<(), i32>) {
    assert_eq!(result, Ok(()), "the world only names elements that exist");
}

/// A backend by number; all zero if there is none.
pub(crate) fn backend(number: u32) -> Backend {
    maps::BACKENDS.get(number).copied().unwrap_or_default()
}

/// An interface by number.
pub(crate) fn interface(number: u32) -> Interface {
    maps::PORTS.get(number).copied().unwrap_or_default()
}

/// The counters of all reasons.
pub(crate) fn reasons() -> Vec<u64> {
    (0..REASON_SLOTS).map(|number| maps::REASONS.get(number).copied().unwrap_or_default()).collect()
}

/// The reason that was counted since then, if any.
pub(crate) fn reason_since(before: &[u64]) -> Option<Reason> {
    let after = reasons();
    let counted: Vec<usize> = (0..after.len()).filter(|&number| after[number] != before[number]).collect();
    let total: u64 = after.iter().sum::<u64>() - before.iter().sum::<u64>();
    assert!(total <= 1, "one packet, {total} reasons");
    let number = *counted.first()?;
    let named = Reason::ALL.iter().find(|reason| **reason as usize == number);
    Some(*named.unwrap_or_else(|| panic!("reason {number} has no name")))
}

/// When each reason was last logged, by its number.
pub(crate) fn last_told() -> Vec<u64> {
    (0..REASON_SLOTS).map(|number| maps::LAST_TOLD.get(number).copied().unwrap_or_default()).collect()
}
