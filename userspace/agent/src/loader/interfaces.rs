//! The router's devices as the programs know them: port numbers, and what a packet needs to leave by one.

use std::{collections::BTreeMap, fmt};

use aya::maps::{Array, DevMap, HashMap, MapData, MapError};
use vipgate_abi::{interface::Interface, maps};

use super::{
    bpffs::PinDir,
    error::{LoadError, TableError, os_error},
    object::open,
};

/// The port tables. One writer: the reconciler.
pub struct Interfaces {
    ports: Array<MapData, Interface>,
    numbers: HashMap<MapData, u32, u32>,
    transmit: DevMap<MapData>,
}

impl fmt::Debug for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interfaces").finish_non_exhaustive()
    }
}

impl Interfaces {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self {
            ports: open(dir, maps::PORTS)?,
            numbers: open(dir, maps::PORT_NUMBERS)?,
            transmit: open(dir, maps::TX_PORTS)?,
        })
    }

    /// The ports in use, by number.
    pub fn list(&self) -> Result<BTreeMap<u32, Interface>, TableError> {
        let mut list = BTreeMap::new();
        for number in 1..self.ports.len() {
            let port = self.ports.get(&number, 0).map_err(|error| TableError::new(maps::PORTS, "read", error))?;
            if port.ifindex != 0 {
                list.insert(number, port);
            }
        }
        Ok(list)
    }

    /// Gives a number to a device, or changes what is known of it. The number comes to be found last, when all that
    /// it leads to is there. `previous` is what the number was before.
    pub fn set(&mut self, number: u32, port: Interface, previous: Option<Interface>) -> Result<(), TableError> {
        if let Some(previous) = previous
            && previous.ifindex != port.ifindex
        {
            self.forget(previous.ifindex)?;
        }
        self.ports.set(number, port, 0).map_err(|error| TableError::new(maps::PORTS, "write", error))?;
        self.transmit_by(number, port.ifindex)?;
        let named = self.numbers.insert(port.ifindex, number, 0);
        named.map_err(|error| TableError::new(maps::PORT_NUMBERS, "write", error))
    }

    /// Frees a number.
    pub fn clear(&mut self, number: u32, port: Interface) -> Result<(), TableError> {
        self.forget(port.ifindex)?;
        let cleared = self.ports.set(number, Interface::default(), 0);
        cleared.map_err(|error| TableError::new(maps::PORTS, "write", error))?;
        self.transmit_by(number, 0)
    }

    fn forget(&mut self, ifindex: u32) -> Result<(), TableError> {
        match self.numbers.remove(&ifindex) {
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(|error| TableError::new(maps::PORT_NUMBERS, "remove from", error)),
        }
    }

    /// Interface index 0 empties the element.
    fn transmit_by(&mut self, number: u32, ifindex: u32) -> Result<(), TableError> {
        self.transmit.set(number, ifindex, None, 0).map_err(|error| {
            let error = match error {
                aya::maps::xdp::XdpMapError::MapError(error) => error,
                aya::maps::xdp::XdpMapError::ChainedProgramNotSupported => MapError::ProgIdNotSupported,
            };
            TableError::new(maps::TX_PORTS, "write", error)
        })
    }
}
