//! The tables that the engine reads and writes.

use vipgate_abi::{
    backend::Backend,
    meter::{Meter, MeterPort},
    service::Service,
    snat::SnatRule,
};

use crate::{
    loader::{self, TableError},
    reconcile::compile::{ServicePrefix, SnatPrefix},
};

/// The tables that the engine writes. The loader's are the kernel's; tests have theirs.
pub(crate) trait KernelTables {
    /// Every entry of the services trie.
    fn services(&self) -> Result<Vec<(ServicePrefix, Service)>, TableError>;
    /// Adds or replaces an entry at once.
    fn set_service(&mut self, key: ServicePrefix, service: Service) -> Result<(), TableError>;
    /// Removes an entry; one that is not there is no error.
    fn remove_service(&mut self, key: ServicePrefix) -> Result<(), TableError>;

    /// Every entry of the trie of SNAT rules.
    fn snat_rules(&self) -> Result<Vec<(SnatPrefix, SnatRule)>, TableError>;
    /// Adds or replaces an entry at once.
    fn set_snat_rule(&mut self, prefix: SnatPrefix, rule: SnatRule) -> Result<(), TableError>;
    /// Removes an entry; one that is not there is no error.
    fn remove_snat_rule(&mut self, prefix: SnatPrefix) -> Result<(), TableError>;

    /// Number of elements of BACKENDS.
    fn backend_count(&self) -> u32;
    /// One element, all zero beyond the end.
    fn backend(&self, number: u32) -> Backend;
    /// Writes one element, below `backend_count`; its generation, address and port change together.
    fn set_backend(&mut self, number: u32, backend: Backend);
    /// Zeroes what was counted for a number before.
    fn reset_traffic(&mut self, number: u32) -> Result<(), TableError>;

    /// Every meter that limits something, by number.
    fn meters(&self) -> Vec<(u32, Meter)>;
    /// Writes one meter, or, all zero, takes it away.
    fn set_meter(&mut self, number: u32, meter: Meter);
    /// Zeroes what was counted for a meter's number before.
    fn reset_metered(&mut self, number: u32) -> Result<(), TableError>;
    /// Every port that has a meter of its own.
    fn port_meters(&self) -> Result<Vec<(MeterPort, u32)>, TableError>;
    /// Gives a port a meter, at once.
    fn set_port_meter(&mut self, port: MeterPort, number: u32) -> Result<(), TableError>;
    /// Takes a port's meter away; one that is not there is no error.
    fn remove_port_meter(&mut self, port: MeterPort) -> Result<(), TableError>;

    /// Number of elements of RINGS, which holds the selection tables.
    fn selection_elements(&self) -> u32;
    /// Copies a selection table; beyond the end it is cut off.
    fn selection_table(&self, base: u32, len: u32) -> Vec<u32>;
    /// Writes a selection table where no service points to, within the elements.
    fn write_selection_table(&mut self, base: u32, table: &[u32]);
}

impl KernelTables for loader::Tables {
    fn services(&self) -> Result<Vec<(ServicePrefix, Service)>, TableError> {
        let services = self.services()?;
        Ok(services
            .into_iter()
            .map(|(data, prefix_len, service)| (ServicePrefix { data, prefix_len }, service))
            .collect())
    }

    fn set_service(&mut self, key: ServicePrefix, service: Service) -> Result<(), TableError> {
        self.set_service(key.data, key.prefix_len, service)
    }

    fn remove_service(&mut self, key: ServicePrefix) -> Result<(), TableError> {
        self.remove_service(key.data, key.prefix_len)
    }

    fn snat_rules(&self) -> Result<Vec<(SnatPrefix, SnatRule)>, TableError> {
        let rules = self.snat_rules()?;
        Ok(rules.into_iter().map(|(data, prefix_len, rule)| (SnatPrefix { data, prefix_len }, rule)).collect())
    }

    fn set_snat_rule(&mut self, prefix: SnatPrefix, rule: SnatRule) -> Result<(), TableError> {
        self.set_snat_rule(prefix.data, prefix.prefix_len, rule)
    }

    fn remove_snat_rule(&mut self, prefix: SnatPrefix) -> Result<(), TableError> {
        self.remove_snat_rule(prefix.data, prefix.prefix_len)
    }

    fn backend_count(&self) -> u32 {
        self.backends().len()
    }

    fn backend(&self, number: u32) -> Backend {
        self.backends().read(number).unwrap_or_default()
    }

    fn set_backend(&mut self, number: u32, backend: Backend) {
        self.set_backend(number, backend);
    }

    fn reset_traffic(&mut self, number: u32) -> Result<(), TableError> {
        self.reset_traffic(number)
    }

    fn meters(&self) -> Vec<(u32, Meter)> {
        let numbers = 0..self.meters().len();
        let meters = numbers.filter_map(|number| Some((number, self.meters().read(number)?)));
        meters.filter(|(_, meter)| *meter != Meter::default()).collect()
    }

    fn set_meter(&mut self, number: u32, meter: Meter) {
        self.meters().write(number, meter);
    }

    fn reset_metered(&mut self, number: u32) -> Result<(), TableError> {
        self.reset_metered(number)
    }

    fn port_meters(&self) -> Result<Vec<(MeterPort, u32)>, TableError> {
        self.port_meters()
    }

    fn set_port_meter(&mut self, port: MeterPort, number: u32) -> Result<(), TableError> {
        self.set_port_meter(port, number)
    }

    fn remove_port_meter(&mut self, port: MeterPort) -> Result<(), TableError> {
        self.remove_port_meter(port)
    }

    fn selection_elements(&self) -> u32 {
        self.rings().len()
    }

    fn selection_table(&self, base: u32, len: u32) -> Vec<u32> {
        (base..base.saturating_add(len)).map_while(|at| self.rings().read(at)).collect()
    }

    fn write_selection_table(&mut self, base: u32, table: &[u32]) {
        for (at, number) in (base..).zip(table) {
            self.rings().write(at, *number);
        }
    }
}
