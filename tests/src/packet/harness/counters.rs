//! What the programs counted and logged.

use anyhow::Result;
use aya::maps::PerCpuArray;
use vipgate_abi::{
    config::Config,
    counters::{Reason, Traffic},
    load::Load,
    maps,
    meter::{MeterTraffic, Metered},
};
use vipgate_agent::loader::PacketRecords;

use super::Bench;

impl Bench {
    /// How many packets were counted for this reason.
    pub fn reason(&mut self, reason: Reason) -> Result<u64> {
        let counters = PerCpuArray::<_, u64>::try_from(self.map(maps::REASONS)?)?;
        Ok(counters.get(&(reason as u32), 0)?.iter().sum())
    }

    /// Has the programs log packets with these reasons, each reason once: the clock is made to stand still.
    pub fn tidings(&mut self, reasons: &[Reason]) -> Result<PacketRecords> {
        self.ebpf.is_last();
        let log = reasons.iter().fold(0, |set, reason| set | reason.bit());
        let config = self.config()?;
        self.set_config(Config { log, tick: 1, ..config })?;
        Ok(PacketRecords::of(&mut self.ebpf)?)
    }

    /// A backend's traffic.
    pub fn traffic(&mut self, backend: u32) -> Result<Traffic> {
        let counters = PerCpuArray::<_, Traffic>::try_from(self.map(maps::BACKEND_TRAFFIC)?)?;
        let mut sum = Traffic::default();
        for cpu in counters.get(&backend, 0)?.iter() {
            sum.packets_in += cpu.packets_in;
            sum.bytes_in += cpu.bytes_in;
            sum.packets_out += cpu.packets_out;
            sum.bytes_out += cpu.bytes_out;
            sum.connections += cpu.connections;
        }
        Ok(sum)
    }

    /// The counters of a bandwidth limit.
    pub fn metered(&mut self, number: u32) -> Result<MeterTraffic> {
        let counters = PerCpuArray::<_, MeterTraffic>::try_from(self.map(maps::METER_TRAFFIC)?)?;
        let mut sum = MeterTraffic::default();
        for cpu in counters.get(&number, 0)?.iter() {
            for (sum, of) in sum.directions.iter_mut().zip(cpu.directions) {
                *sum = Metered {
                    passed_packets: sum.passed_packets + of.passed_packets,
                    passed_bytes: sum.passed_bytes + of.passed_bytes,
                    dropped_packets: sum.dropped_packets + of.dropped_packets,
                    dropped_bytes: sum.dropped_bytes + of.dropped_bytes,
                };
            }
        }
        Ok(sum)
    }

    /// A backend's number of live connections.
    pub fn load(&mut self, backend: u32) -> Result<u32> {
        Ok(Load(self.array(maps::BACKEND_LOAD)?.get(&backend, 0)?).live())
    }

    /// A service's number of live connections.
    pub fn service_load(&mut self, service: u32) -> Result<u32> {
        Ok(self.array(maps::SERVICE_LOAD)?.get(&service, 0)?)
    }

    pub fn set_service_load(&mut self, service: u32, connections: u32) -> Result<()> {
        Ok(self.array(maps::SERVICE_LOAD)?.set(service, connections, 0)?)
    }
}
