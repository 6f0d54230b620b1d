//! Configures what the router offers: services, backends, SNAT rules, limits.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result};
use aya::maps::{
    Array, HashMap, MapData,
    lpm_trie::{Key, LpmTrie},
};
use vipgate_abi::{
    address_filter::Bit,
    backend::Backend,
    load::Load,
    maps,
    meter::{Binding, Meter, MeterPort},
    service::{Algorithm, Kind, Member, Service, ServiceKey},
    snat::{SnatKey, SnatKind, SnatRule},
};

use super::{Bench, network::ifindex};

impl Bench {
    /// Adds a backend; returns its number.
    pub fn add_backend(&mut self, backend: SocketAddrV4, service: u32) -> Result<u32> {
        let number = self.next_backend;
        self.next_backend += 1;
        let generation = self.backend(number)?.generation + 1;
        let value = Backend {
            addr: u32::from(*backend.ip()).to_be(),
            port: backend.port().to_be(),
            generation,
            service,
            idle_timeout: 60,
            ..Backend::default()
        };
        self.set_backend(number, value)?;
        Ok(number)
    }

    pub fn backend(&mut self, number: u32) -> Result<Backend> {
        Ok(self.array(maps::BACKENDS)?.get(&number, 0)?)
    }

    /// Writes a backend as the controller does: a new generation resets the last one's counters.
    pub fn set_backend(&mut self, number: u32, backend: Backend) -> Result<()> {
        self.add_to_address_filter(Bit::from(backend.addr))?;
        let held = self.backend(number)?;
        if held.generation != backend.generation {
            let mut loads = self.array::<u64>(maps::BACKEND_LOAD)?;
            let ended = Load(loads.get(&number, 0)?);
            loads.set(number, Load::of(backend.generation).0, 0)?;
            let others = self.service_load(held.service)?.wrapping_sub(ended.admitted());
            self.set_service_load(held.service, others)?;
        }
        Ok(self.array(maps::BACKENDS)?.set(number, backend, 0)?)
    }

    /// Offers `protocol`:`port` of a VIP by these backends, one selection table element each; returns their numbers.
    pub fn serve(
        &mut self,
        vip: SocketAddrV4,
        protocol: u8,
        algorithm: Algorithm,
        backends: &[SocketAddrV4],
    ) -> Result<Vec<u32>> {
        let number = self.next_service;
        self.next_service += 1;
        let numbers = backends.iter().map(|&backend| self.add_backend(backend, number)).collect::<Result<Vec<_>>>()?;
        let service = self.ring(number, algorithm, &numbers)?;
        self.set_service(vip, protocol, ServiceKey::EXACT, service)?;
        Ok(numbers)
    }

    /// A service of this number with a selection table of these backends.
    pub fn ring(&mut self, number: u32, algorithm: Algorithm, ring: &[u32]) -> Result<Service> {
        let ring_base = self.next_ring;
        let ring_len = u32::try_from(ring.len())?;
        self.next_ring += ring_len;
        for (index, &backend) in (ring_base..).zip(ring) {
            self.array(maps::RINGS)?.set(index, backend, 0)?;
        }
        let (kind, algorithm) = (Kind::Balance as u8, algorithm as u8);
        Ok(Service { kind, algorithm, number, ring_base, ring_len, ..Service::default() })
    }

    /// Forwards ports of a VIP to as many ports of a guest: those whose keys share `prefix_len` bits with the first one's.
    /// Returns the backend's number.
    pub fn forward(&mut self, first: SocketAddrV4, protocol: u8, prefix_len: u32, to: SocketAddrV4) -> Result<u32> {
        let number = self.next_service;
        self.next_service += 1;
        let backend = self.add_backend(to, number)?;
        let port_shift = to.port().wrapping_sub(first.port());
        let service = Service { kind: Kind::Forward as u8, number, backend, port_shift, ..Service::default() };
        self.set_service(first, protocol, prefix_len, service)?;
        Ok(backend)
    }

    /// Makes a VIP on the public device the guest's elastic IP; with `leads`, also for connections that the guest begins. Returns
    /// the guest's backend number.
    pub fn elastic(&mut self, vip: Ipv4Addr, guest: Ipv4Addr, leads: bool) -> Result<u32> {
        let (number, backend) = self.add_whole_backend(guest)?;
        let device = ifindex("pub0")?;
        let service = Service { kind: Kind::Elastic as u8, number, ring_base: device, backend, ..Service::default() };
        self.set_service(SocketAddrV4::new(vip, 0), 0, ServiceKey::WHOLE_VIP, service)?;
        if leads {
            self.set_source(
                "pub0",
                (guest, 32),
                vip,
                SnatRule { kind: SnatKind::Elastic as u8, backend, ..SnatRule::default() },
            )?;
        }
        Ok(backend)
    }

    /// Adds source NAT by a VIP on the public device for the backends' network; returns the network's backend number. With
    /// `shared`, the VIP has services, whose ports SNAT must not use.
    pub fn masquerade(&mut self, vip: Ipv4Addr, shared: bool) -> Result<u32> {
        self.masquerade_by("pub0", vip, (Ipv4Addr::new(10, 2, 0, 0), 24), shared)
    }

    /// [`Self::masquerade`] by any device, for any network.
    pub fn masquerade_by(&mut self, device: &str, vip: Ipv4Addr, network: (Ipv4Addr, u8), shared: bool) -> Result<u32> {
        let (_, backend) = self.add_whole_backend(vip)?;
        let source =
            SnatRule { kind: SnatKind::Masquerade as u8, backend, shared: shared.into(), ..SnatRule::default() };
        self.set_source(device, network, vip, source)?;
        self.add_to_address_filter(Bit::to(u32::from(vip).to_be()))?;
        Ok(backend)
    }

    /// Adds a backend for every protocol and port, in a service of its own; returns the numbers of both.
    fn add_whole_backend(&mut self, address: Ipv4Addr) -> Result<(u32, u32)> {
        let number = self.next_service;
        self.next_service += 1;
        Ok((number, self.add_backend(SocketAddrV4::new(address, 0), number)?))
    }

    /// Sets the source address that packets from a network get if they leave by the device.
    pub fn set_source(
        &mut self,
        device: &str,
        (network, prefix_len): (Ipv4Addr, u8),
        vip: Ipv4Addr,
        source: SnatRule,
    ) -> Result<()> {
        let last = u32::from(network) | u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
        let addresses = (u32::from(network)..=last).map(u32::to_be);
        self.add_to_address_filters(addresses.flat_map(|address| [Bit::from(address), Bit::out(address)]))?;
        let key = Key::new(32 + u32::from(prefix_len), SnatKey::new(ifindex(device)?, u32::from(network).to_be()));
        let source = SnatRule { vip: u32::from(vip).to_be(), ..source };
        Ok(LpmTrie::try_from(self.map(maps::SOURCES)?)?.insert(&key, source, 0)?)
    }

    /// Accepts guests of an SNAT rule's network by this device alone.
    pub fn keep_guests_at(&mut self, (network, prefix_len): (Ipv4Addr, u8), device: &str) -> Result<()> {
        let key = Key::new(32 + u32::from(prefix_len), SnatKey::new(ifindex("pub0")?, u32::from(network).to_be()));
        let mut sources = LpmTrie::<_, SnatKey, SnatRule>::try_from(self.map(maps::SOURCES)?)?;
        let source = sources.get(&key, 0)?;
        Ok(sources.insert(&key, SnatRule { device: ifindex(device)?, ..source }, 0)?)
    }

    /// Lets a backend keep the connections that it has, and take no new ones.
    pub fn drain(&mut self, number: u32) -> Result<()> {
        let held = self.backend(number)?;
        self.set_backend(number, Backend { drains: 1, ..held })
    }

    /// Accepts a backend's network by this device alone.
    pub fn keep_backend_at(&mut self, number: u32, device: &str) -> Result<()> {
        let held = self.backend(number)?;
        self.set_backend(number, Backend { device: ifindex(device)?, ..held })
    }

    pub fn remove_source(&mut self, network: Ipv4Addr, prefix_len: u8) -> Result<()> {
        let key = Key::new(32 + u32::from(prefix_len), SnatKey::new(ifindex("pub0")?, u32::from(network).to_be()));
        Ok(LpmTrie::<_, SnatKey, SnatRule>::try_from(self.map(maps::SOURCES)?)?.remove(&key)?)
    }

    /// Lets only clients of these networks open flows of a service.
    pub fn allow(&mut self, vip: SocketAddrV4, protocol: u8, prefix_len: u32, network: [Ipv4Addr; 2]) -> Result<()> {
        let [source, source_mask] = network.map(|address| u32::from(address).to_be());
        self.change_service(vip, protocol, prefix_len, |service| Service { source, source_mask, ..service })
    }

    fn change_service(
        &mut self,
        vip: SocketAddrV4,
        protocol: u8,
        prefix_len: u32,
        change: impl FnOnce(Service) -> Service,
    ) -> Result<()> {
        let key = Key::new(prefix_len, ServiceKey::new(u32::from(*vip.ip()).to_be(), protocol, vip.port().to_be()));
        let mut services = LpmTrie::<_, ServiceKey, Service>::try_from(self.map(maps::SERVICES)?)?;
        let service = services.get(&key, 0)?;
        Ok(services.insert(&key, change(service), 0)?)
    }

    /// Sets the weights of the backends of the service that was added last.
    pub fn weigh(&mut self, backends: &[u32], weights: &[u8]) -> Result<()> {
        let ring_base = self.next_ring - u32::try_from(backends.len())?;
        for (index, (&backend, &weight)) in (ring_base..).zip(backends.iter().zip(weights)) {
            self.array(maps::RINGS)?.set(index, Member::new(backend, weight).0, 0)?;
        }
        Ok(())
    }

    pub fn set_service(&mut self, vip: SocketAddrV4, protocol: u8, prefix_len: u32, service: Service) -> Result<()> {
        self.add_to_address_filter(Bit::to(u32::from(*vip.ip()).to_be()))?;
        let key = Key::new(prefix_len, ServiceKey::new(u32::from(*vip.ip()).to_be(), protocol, vip.port().to_be()));
        Ok(LpmTrie::try_from(self.map(maps::SERVICES)?)?.insert(&key, service, 0)?)
    }

    pub fn remove_service(&mut self, vip: SocketAddrV4, protocol: u8, prefix_len: u32) -> Result<()> {
        let key = Key::new(prefix_len, ServiceKey::new(u32::from(*vip.ip()).to_be(), protocol, vip.port().to_be()));
        Ok(LpmTrie::<_, ServiceKey, Service>::try_from(self.map(maps::SERVICES)?)?.remove(&key)?)
    }

    /// Takes the tables of services and selection tables out of the bench; its program keeps them.
    pub fn take_swap(&mut self) -> Result<Swap> {
        self.ebpf.is_last();
        let mut take = |name| self.ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
        Ok(Swap { rings: take(maps::RINGS)?.try_into()?, services: take(maps::SERVICES)?.try_into()? })
    }

    /// Sets a bandwidth limit.
    pub fn set_meter(&mut self, number: u32, meter: Meter) -> Result<()> {
        self.ebpf.is_last();
        Ok(self.array(maps::METERS)?.set(number, meter, 0)?)
    }

    /// Binds a backend's packets to a bandwidth limit.
    pub fn bind(&mut self, number: u32, meter: Binding) -> Result<()> {
        let backend = self.backend(number)?;
        self.set_backend(number, Backend { meter, ..backend })
    }

    /// Gives a VIP's port a bandwidth limit of its own.
    pub fn limit_port(&mut self, vip: SocketAddrV4, number: u32) -> Result<()> {
        let key = MeterPort { vip: u32::from(*vip.ip()).to_be(), port: vip.port().to_be(), reserved: 0 };
        let mut meters = HashMap::<_, MeterPort, u32>::try_from(self.map(maps::PORT_METERS)?)?;
        Ok(meters.insert(key, number, 0)?)
    }

    /// Limits a listener's connections at a time; 0: no limit.
    pub fn limit(&mut self, vip: SocketAddrV4, protocol: u8, most: u32) -> Result<()> {
        self.change_service(vip, protocol, ServiceKey::EXACT, |service| Service { max_connections: most, ..service })
    }
}

/// Changes selection tables while a bench's program runs on other threads.
#[allow(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Swap {
    rings: Array<MapData, u32>,
    services: LpmTrie<MapData, ServiceKey, Service>,
}

impl Swap {
    /// Writes the service's selection table, then the service, as the controller does.
    pub fn set(&mut self, vip: SocketAddrV4, protocol: u8, service: Service, ring: &[u32]) -> Result<()> {
        for (index, backend) in (service.ring_base..).zip(ring) {
            self.rings.set(index, backend, 0)?;
        }
        let key = ServiceKey::new(u32::from(*vip.ip()).to_be(), protocol, vip.port().to_be());
        Ok(self.services.insert(&Key::new(ServiceKey::EXACT, key), service, 0)?)
    }
}
