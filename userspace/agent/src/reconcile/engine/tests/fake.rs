//! Tables in memory that look, after every single write, at what a packet could meet at that moment.

use std::collections::BTreeMap;

use vipgate_abi::{
    backend::Backend,
    meter::{Meter, MeterPort},
    service::{Kind, Member, Service},
    snat::{SnatKind, SnatRule},
};

use crate::{
    loader::TableError,
    reconcile::{
        compile::{ServicePrefix, SnatPrefix},
        engine::kernel_tables::KernelTables,
    },
};

const ELEMENTS: u32 = 8192;
pub(super) const BACKENDS: u32 = 64;

/// Tables in memory.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) services: BTreeMap<ServicePrefix, Service>,
    pub(super) snat_rules: BTreeMap<SnatPrefix, SnatRule>,
    pub(super) backends: Vec<Backend>,
    pub(super) selection: Vec<u32>,
    pub(super) meters: BTreeMap<u32, Meter>,
    pub(super) port_meters: BTreeMap<MeterPort, u32>,
    /// Number of keys that fit.
    pub(super) capacity: usize,
    pub(super) writes: usize,
    /// Tables that something else wrote show nonsense until they are written anew.
    pub(super) foreign: bool,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            snat_rules: BTreeMap::new(),
            backends: vec![Backend::default(); BACKENDS as usize],
            selection: vec![u32::MAX; ELEMENTS as usize],
            meters: BTreeMap::new(),
            port_meters: BTreeMap::new(),
            capacity: 1000,
            writes: 0,
            foreign: false,
        }
    }
}

impl Fake {
    pub(super) fn table_of(&self, service: &Service) -> &[u32] {
        &self.selection[service.ring_base as usize..][..service.ring_len as usize]
    }

    /// Whatever key a packet meets, its selection table names backends that are there and belong to that listener.
    fn look(&mut self) {
        self.writes += 1;
        for (key, service) in self.services.iter().filter(|_| !self.foreign) {
            let members = self.table_of(service).iter().map(|member| Member(*member).number());
            let guest = [Kind::Forward, Kind::Elastic].map(|kind| kind as u8).contains(&service.kind);
            let guest = guest.then_some(service.backend);
            for number in members.chain(guest) {
                let backend = self.backends[number as usize];
                assert_ne!(backend.addr, 0, "{key:?} leads to the free number {number}");
                assert!(!backend.is_down(), "{key:?} leads to {number}, which is down");
                assert_eq!(backend.service, service.number, "{key:?} leads to {number}, another listener's");
            }
        }
        let bound =
            self.backends.iter().map(|backend| backend.meter.number()).chain(self.port_meters.values().copied());
        for number in bound.filter(|number| *number != 0 && !self.foreign) {
            assert!(self.meters.contains_key(&number), "packets count against the limit {number}, which is gone");
        }
        for (prefix, source) in self.snat_rules.iter().filter(|(_, source)| source.kind != SnatKind::Disabled as u8) {
            let backend = self.backends[source.backend as usize];
            assert!(backend.takes_all(), "{prefix:?} leads to {backend:?}");
            let address = match source.kind == SnatKind::Elastic as u8 {
                true => u32::from_ne_bytes(prefix.data.addr),
                false => source.vip,
            };
            assert_eq!(backend.addr, address, "{prefix:?} leads to another's number");
        }
    }
}

impl KernelTables for Fake {
    fn services(&self) -> Result<Vec<(ServicePrefix, Service)>, TableError> {
        Ok(self.services.iter().map(|(key, service)| (*key, *service)).collect())
    }

    fn set_service(&mut self, key: ServicePrefix, service: Service) -> Result<(), TableError> {
        if self.services.len() == self.capacity && !self.services.contains_key(&key) {
            return Err(TableError::Full { map: "SERVICES" });
        }
        self.services.insert(key, service);
        self.look();
        Ok(())
    }

    fn remove_service(&mut self, key: ServicePrefix) -> Result<(), TableError> {
        self.services.remove(&key);
        self.look();
        Ok(())
    }

    fn snat_rules(&self) -> Result<Vec<(SnatPrefix, SnatRule)>, TableError> {
        Ok(self.snat_rules.iter().map(|(prefix, source)| (*prefix, *source)).collect())
    }

    fn set_snat_rule(&mut self, prefix: SnatPrefix, rule: SnatRule) -> Result<(), TableError> {
        self.snat_rules.insert(prefix, rule);
        self.look();
        Ok(())
    }

    fn remove_snat_rule(&mut self, prefix: SnatPrefix) -> Result<(), TableError> {
        self.snat_rules.remove(&prefix);
        self.look();
        Ok(())
    }

    fn backend_count(&self) -> u32 {
        BACKENDS
    }

    fn backend(&self, number: u32) -> Backend {
        self.backends.get(number as usize).copied().unwrap_or_default()
    }

    fn set_backend(&mut self, number: u32, backend: Backend) {
        let held = &mut self.backends[number as usize];
        let same = (held.addr, held.port, held.service) == (backend.addr, backend.port, backend.service);
        let stays = same && (held.is_down() || !backend.is_down());
        assert_eq!(stays, held.generation == backend.generation, "flows of {held:?} would go to {backend:?}");
        *held = backend;
        self.look();
    }

    fn reset_traffic(&mut self, _number: u32) -> Result<(), TableError> {
        Ok(())
    }

    fn meters(&self) -> Vec<(u32, Meter)> {
        self.meters.iter().map(|(number, meter)| (*number, *meter)).collect()
    }

    fn set_meter(&mut self, number: u32, meter: Meter) {
        if meter == Meter::default() {
            self.meters.remove(&number)
        } else {
            self.meters.insert(number, meter)
        };
        self.look();
    }

    fn reset_metered(&mut self, _number: u32) -> Result<(), TableError> {
        Ok(())
    }

    fn port_meters(&self) -> Result<Vec<(MeterPort, u32)>, TableError> {
        Ok(self.port_meters.iter().map(|(port, number)| (*port, *number)).collect())
    }

    fn set_port_meter(&mut self, port: MeterPort, number: u32) -> Result<(), TableError> {
        self.port_meters.insert(port, number);
        self.look();
        Ok(())
    }

    fn remove_port_meter(&mut self, port: MeterPort) -> Result<(), TableError> {
        self.port_meters.remove(&port);
        self.look();
        Ok(())
    }

    fn selection_elements(&self) -> u32 {
        self.selection.len() as u32
    }

    fn selection_table(&self, base: u32, len: u32) -> Vec<u32> {
        self.selection.iter().skip(base as usize).take(len as usize).copied().collect()
    }

    fn write_selection_table(&mut self, base: u32, table: &[u32]) {
        let (base, end) = (base as usize, base as usize + table.len());
        for service in self.services.values().filter(|service| service.ring_len > 0) {
            let (start, len) = (service.ring_base as usize, service.ring_len as usize);
            assert!(end <= start || start + len <= base, "a selection table in use is written");
        }
        self.selection[base..end].copy_from_slice(table);
        self.look();
    }
}
