//! The meters of bandwidth limits: what they hold, which VIP has asked for them, and which device has their queues.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use vipgate_abi::meter::{Meter, MeterPort};

use super::kernel_tables::KernelTables;
use crate::{
    loader::TableError,
    net::queue,
    reconcile::{bandwidth::Rates, compile::Tables},
};

/// The meters, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// By number.
    meters: BTreeMap<u32, Metering>,
    /// The numbers of the meters that each VIP has.
    meters_of: HashMap<Ipv4Addr, BTreeSet<u32>>,
    /// The ports that have meters of their own, in the order of their VIPs.
    port_meters: BTreeMap<MeterPort, u32>,
    /// Interface indices of the devices that have the meters' queues, by [number](queue::pair_of).
    queues: BTreeMap<u32, u32>,
    /// What [`Meters::take_freed`] returns.
    freed: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Metering {
    held: Meter,
    /// The VIP that has asked for it, and the rates; `None` if it was there when the engine began and no VIP has asked for it yet.
    wanted: Option<(Ipv4Addr, Rates)>,
}

impl Meters {
    /// Learns what the kernel holds.
    pub(super) fn read(kernel: &impl KernelTables) -> Result<Self, TableError> {
        let unknown = |(number, held)| (number, Metering { held, wanted: None });
        Ok(Self {
            meters: kernel.meters().into_iter().map(unknown).collect(),
            port_meters: kernel.port_meters()?.into_iter().collect(),
            ..Self::default()
        })
    }

    /// Writes the meters that a VIP has, and which of its ports have one of their own.
    pub(super) fn put(&mut self, kernel: &mut impl KernelTables, tables: &Tables) -> Result<(), TableError> {
        for (number, rates) in &tables.limits {
            self.put_meter(kernel, *number, tables.vip, *rates)?;
        }
        for (port, number) in &tables.port_limits {
            self.put_port_meter(kernel, port_of(tables.vip, *port), *number)?;
        }
        Ok(())
    }

    /// Sets the device that has the queues of the meters of a [pair](queue::pair_of), and changes those meters to it.
    pub(super) fn set_queue(&mut self, kernel: &mut impl KernelTables, pair: u32, device: Option<u32>) {
        match device {
            Some(device) => self.queues.insert(pair, device),
            None => self.queues.remove(&pair),
        };
        for (number, metering) in self.meters.iter_mut().filter(|(number, _)| queue::pair_of(**number) == pair) {
            if let Some((_, rates)) = metering.wanted {
                let meter = rates.meter(device);
                if metering.held != meter {
                    kernel.set_meter(*number, meter);
                    metering.held = meter;
                }
            }
        }
    }

    /// The device that has a meter's queues.
    pub(super) fn queue_of(&self, number: u32) -> Option<u32> {
        self.queues.get(&queue::pair_of(number)).copied()
    }

    /// The numbers of meters that are gone or have other rates since this was last asked: their queues may be too many.
    pub(super) fn take_freed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.freed)
    }

    /// The rates that a VIP has asked for under this number.
    pub(crate) fn rates(&self, number: u32) -> Option<Rates> {
        self.meters.get(&number)?.wanted.map(|(_, rates)| rates)
    }

    /// The meters and their rates that VIPs have asked for.
    pub(crate) fn limits(&self) -> impl Iterator<Item = (u32, Rates)> {
        self.meters.iter().filter_map(|(number, metering)| Some((*number, metering.wanted?.1)))
    }

    /// Removes the meters that no VIP has asked for. All VIPs must have been applied.
    pub(super) fn remove_unclaimed(&mut self, kernel: &mut impl KernelTables) {
        let unclaimed = self.meters.iter().filter(|(_, metering)| metering.wanted.is_none());
        for number in unclaimed.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.remove_meter(kernel, number);
        }
    }

    fn put_meter(
        &mut self,
        kernel: &mut impl KernelTables,
        number: u32,
        vip: Ipv4Addr,
        rates: Rates,
    ) -> Result<(), TableError> {
        let meter = rates.meter(self.queue_of(number));
        let before = self.meters.get(&number).copied();
        if before.is_none() {
            kernel.reset_metered(number)?;
        }
        if before.is_none_or(|before| before.held != meter) {
            kernel.set_meter(number, meter);
        }
        if let Some((owner, held)) = before.and_then(|before| before.wanted)
            && (owner, held) != (vip, rates)
        {
            self.forget_meter(owner, number);
            self.freed.push(number);
        }
        self.meters.insert(number, Metering { held: meter, wanted: Some((vip, rates)) });
        self.meters_of.entry(vip).or_default().insert(number);
        Ok(())
    }

    fn put_port_meter(
        &mut self,
        kernel: &mut impl KernelTables,
        port: MeterPort,
        number: u32,
    ) -> Result<(), TableError> {
        if self.port_meters.get(&port) != Some(&number) {
            kernel.set_port_meter(port, number)?;
            self.port_meters.insert(port, number);
        }
        Ok(())
    }

    /// Removes the meters that a VIP no longer has: nothing is bound to them by now.
    pub(super) fn remove_others(&mut self, kernel: &mut impl KernelTables, tables: &Tables) -> Result<(), TableError> {
        let (first, last) = (port_of(tables.vip, 0), MeterPort { port: u16::MAX, ..port_of(tables.vip, 0) });
        let held = self.port_meters.range(first..=last).map(|(port, _)| *port);
        let stale = held.filter(|port| !tables.port_limits.contains_key(&u16::from_be(port.port)));
        for port in stale.collect::<Vec<_>>() {
            kernel.remove_port_meter(port)?;
            self.port_meters.remove(&port);
        }
        let held = self.meters_of.get(&tables.vip).into_iter().flatten().copied();
        for number in held.filter(|number| !tables.limits.contains_key(number)).collect::<Vec<_>>() {
            self.forget_meter(tables.vip, number);
            self.remove_meter(kernel, number);
        }
        Ok(())
    }

    fn remove_meter(&mut self, kernel: &mut impl KernelTables, number: u32) {
        kernel.set_meter(number, Meter::default());
        self.meters.remove(&number);
        self.freed.push(number);
    }

    fn forget_meter(&mut self, vip: Ipv4Addr, number: u32) {
        if let Some(meters) = self.meters_of.get_mut(&vip) {
            meters.remove(&number);
            if meters.is_empty() {
                self.meters_of.remove(&vip);
            }
        }
    }
}

/// A VIP's port as a key of the ports' meters.
pub(super) fn port_of(vip: Ipv4Addr, port: u16) -> MeterPort {
    MeterPort { vip: u32::from(vip).to_be(), port: port.to_be(), reserved: 0 }
}
