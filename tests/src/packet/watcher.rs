//! Another program beside ours at TC on a device, as somebody else may attach it.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::PerCpuArray,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions},
    },
};
use vipgate_agent::loader::load_persistently;

use super::harness::BENCHMARK;

/// Its position among the programs on one side of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By a TCX link, before all others.
    First,
    /// By a TCX link, after all others.
    Last,
    /// As a filter with this priority of clsact, which the device has.
    Filter(u16),
}

/// A program that counts packets and lets them go on, until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    ebpf: Ebpf,
    /// Its name.
    pub name: String,
}

impl Watcher {
    /// Attaches it to a device of the calling thread's namespace.
    pub fn new(device: &str, side: TcAttachType, order: Order) -> Result<Self> {
        let mut ebpf = Ebpf::load(BENCHMARK).context("cannot load the benchmark's programs")?;
        let program = ebpf.program_mut("bench_watch").context("the object has no watcher")?;
        let program: &mut SchedClassifier = program.try_into()?;
        load_persistently(|| program.load())?;
        let options = match order {
            Order::First => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Order::Last => TcAttachOptions::TcxOrder(LinkOrder::last()),
            Order::Filter(priority) => TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() }),
        };
        program.attach_with_options(device, side, options).with_context(|| format!("cannot watch {device}"))?;
        Ok(Self { ebpf, name: format!("{side:?} {order:?}") })
    }

    /// Number of packets that it has seen.
    pub fn seen(&self) -> Result<u64> {
        let map = self.ebpf.map("BENCH_SUNK").context("the object has no map BENCH_SUNK")?;
        Ok(PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?.iter().sum())
    }
}
