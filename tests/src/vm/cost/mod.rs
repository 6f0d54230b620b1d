//! What a packet costs a router in a virtual machine, by each way through it: `cargo xtask vm bench`.
//!
//! One machine with virtio cards is between the lab's hosts, which keep their segmentation and checksum offloads on, as hosts
//! on a cloud's network do. Every way gets the same load in turn, round by round. A figure is the amount that passed per
//! second of the machine's processor time (`processor.rs`), so it depends neither on how long a round took nor on the host's
//! other work. On an emulated machine a second is worth another number of instructions than on real hardware, and all
//! instructions cost about the same: compare only ratios, which reflect the instructions of a way, not its cache misses.
//!
//! `cargo xtask bench` is separate: it measures this tree's build on the running kernel, while this measures the package on
//! a distribution's kernel, in a machine as the tests have it.

mod loads;
mod processor;
mod ways;

use super::{Bench, Kernel, VmLab, VmLabOptions};
use crate::{
    bench::{Report, Series},
    lab::{Hook, Result},
};
use anyhow::Context as _;
use loads::{Load, Servers};
use std::{thread, time::Duration};
use ways::{Opened, Scheduler, Way};

/// The amount of measuring in a run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    rounds: u32,
    /// Seconds of each load in each round, and unmeasured seconds before it: an emulator translates code when it first runs.
    seconds: u32,
    first_seconds: u32,
}

impl Effort {
    pub const QUICK: Self = Self { rounds: 3, seconds: 2, first_seconds: 1 };
    pub const FULL: Self = Self { rounds: 5, seconds: 3, first_seconds: 1 };
}

/// The measurements of one way under one load.
#[derive(Debug)]
struct Figures {
    way: Way,
    load: Load,
    series: Series,
}

/// Measures each way under each load; adds a row for each to the report.
pub fn run(report: &mut Report, bench: &Bench, kernel: &Kernel, effort: Effort) -> Result<()> {
    let options = VmLabOptions { tools: &ways::TOOLS, ..VmLabOptions::new(1, 3) };
    let lab = VmLab::new(bench, kernel, &options)?;
    eprintln!("    up after {:.1} s", lab.machine().took.as_secs_f64());
    let servers = Servers::start(&lab)?;
    let (mut all, mut idle) = (figures(), Series::default());
    for round in 1..=effort.rounds {
        eprintln!("    round {round} of {}", effort.rounds);
        idle.push(idleness(&lab, effort)?);
        for way in Way::ALL {
            let opened = ways::open(&lab, way).with_context(|| way.to_string())?;
            for figures in all.iter_mut().filter(|figures| figures.way == way) {
                let passed = measure(&lab, &servers, &opened, figures.load, effort);
                figures.series.push(passed.with_context(|| format!("{}: {way}", figures.load.name()))?);
            }
            ways::close(&lab, way).with_context(|| way.to_string())?;
        }
    }
    report.add(idle.row("virtio, without a load", "CPU-ms/s"));
    show(report, &all);
    Ok(())
}

fn figures() -> Vec<Figures> {
    let of = |load| Way::ALL.map(|way| Figures { way, load, series: Series::default() });
    Load::ALL.into_iter().flat_map(of).collect()
}

/// Milliseconds of work per second without any load, by which every figure is too small.
fn idleness(lab: &VmLab, effort: Effort) -> Result<f64> {
    let before = processor::worked(lab.machine().id())?;
    thread::sleep(Duration::from_secs(effort.seconds.into()));
    Ok((processor::worked(lab.machine().id())? - before) * 1e3 / f64::from(effort.seconds))
}

/// How often a load is tried whose generator fails, which happens if a busy host keeps one end waiting too long.
const ATTEMPTS: u32 = 4;

/// The amount that passes per second of the machine's processors, from the first attempt without a generator's error.
fn measure(lab: &VmLab, servers: &Servers, opened: &Opened, load: Load, effort: Effort) -> Result<f64> {
    for _ in 1..ATTEMPTS {
        match attempt(lab, servers, opened, load, effort) {
            Ok(passed) => return Ok(passed),
            Err(error) => eprintln!("    {} again: {error:#}", load.name()),
        }
        thread::sleep(Duration::from_secs(1));
    }
    attempt(lab, servers, opened, load, effort)
}

fn attempt(lab: &VmLab, servers: &Servers, opened: &Opened, load: Load, effort: Effort) -> Result<f64> {
    load.run(lab, servers, opened, effort.first_seconds)?;
    let before = processor::worked(lab.machine().id())?;
    let done = load.run(lab, servers, opened, effort.seconds)?;
    Ok(done / (processor::worked(lab.machine().id())? - before))
}

/// Compares each figure with plain forwarding, then vipgate with its peers.
fn show(report: &mut Report, all: &[Figures]) {
    let of = |load, way| all.iter().find(|figures| figures.load == load && figures.way == way);
    let mut add = |figures: &Figures, name: String, other: Way| {
        let row = figures.series.row(name, figures.load.unit());
        report.add(match of(figures.load, other) {
            Some(baseline) => row.compared_with(other.to_string(), &figures.series, &baseline.series),
            None => row,
        });
    };
    let name = |figures: &Figures| format!("virtio, {}: {}", figures.load.name(), figures.way);
    for figures in all {
        add(figures, name(figures), Way::Forwarding);
    }
    for figures in all.iter().filter(|figures| matches!(figures.way, Way::Vipgate(Hook::Tc | Hook::Xdp))) {
        for peer in [Way::Ipvs(Scheduler::RoundRobin), Way::Ipvs(Scheduler::Maglev), Way::Nftables] {
            add(figures, format!("{}, beside {peer}", name(figures)), peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of docs/benchmarks.md are made of these rows.
    #[test]
    fn every_way_is_compared_with_plain_forwarding_and_vipgate_with_ipvs_under_every_load() {
        let mut all = figures();
        for (number, figures) in all.iter_mut().enumerate() {
            figures.series.push(1.0 + number as f64);
        }
        let mut report = Report::default();
        show(&mut report, &all);
        let row = |name: &str| report.rows().iter().find(|row| row.name == name);
        for load in ["bulk TCP", "64-byte UDP", "new connections"] {
            for way in [
                "plain forwarding",
                "vipgate (tc)",
                "vipgate (xdp)",
                "vipgate (xdp-generic)",
                "IPVS NAT rr",
                "IPVS NAT mh",
                "nftables DNAT",
            ] {
                let row = row(&format!("virtio, {load}: {way}")).unwrap_or_else(|| panic!("no row: {load}, {way}"));
                assert_eq!(row.baseline.as_ref().map(|(name, _)| name.as_str()), Some("plain forwarding"));
            }
            for beside in ["IPVS NAT rr", "IPVS NAT mh"] {
                let row = row(&format!("virtio, {load}: vipgate (tc), beside {beside}"));
                assert!(row.is_some_and(|row| row.ratio.is_some()), "{load}, {beside}");
            }
        }
    }
}
