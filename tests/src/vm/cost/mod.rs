//! What a packet costs a router that is a virtual machine, by each way through it: `cargo xtask vm bench`.
//!
//! One machine with virtio cards between the lab's hosts, which keep their segmentation and checksum offloads on, as
//! hosts on a cloud's network do. Every way gets the same load in turn, round by round, and a figure is what passed for a
//! second of the machine's processors (`processor.rs`): how long it took, and what others on the host did meanwhile, is
//! not in it. Where the machine is emulated a second is worth another number of instructions than a real one's, and all
//! instructions are about as dear: only ratios tell, and they tell of the instructions a way takes, not of its cache
//! misses.
//!
//! This is beside the tests' machines and not a part of `cargo xtask bench`, which measures the build itself on the kernel
//! that runs: here it is the package, on a distribution's kernel, with all that only its machines have.

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
use processor::Work;
use ways::{Opened, Scheduler, Way};

/// How much a run measures.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    rounds: u32,
    /// Of each load in each round, and before it without being measured: an emulator translates what it meets first.
    seconds: u32,
    first_seconds: u32,
}

impl Effort {
    pub const QUICK: Self = Self { rounds: 3, seconds: 2, first_seconds: 1 };
    pub const FULL: Self = Self { rounds: 7, seconds: 4, first_seconds: 1 };
}

/// The rounds of one way under one load, by both clocks.
#[derive(Debug)]
struct Figures {
    way: Way,
    load: Load,
    by_host: Series,
    by_guest: Series,
}

/// Measures each way under each load, and adds their rows.
pub fn run(report: &mut Report, bench: &Bench, kernel: &Kernel, effort: Effort) -> Result<()> {
    let options = VmLabOptions { tools: &ways::TOOLS, ..VmLabOptions::new(1, 3) };
    let lab = VmLab::new(bench, kernel, &options)?;
    eprintln!("    up after {:.1} s", lab.machine().took.as_secs_f64());
    let servers = Servers::start(&lab)?;
    let mut all = figures();
    for round in 1..=effort.rounds {
        eprintln!("    round {round} of {}", effort.rounds);
        for way in Way::ALL {
            let opened = ways::open(&lab, way).with_context(|| way.to_string())?;
            for figures in all.iter_mut().filter(|figures| figures.way == way) {
                let what = || format!("{}: {way}", figures.load.name());
                let (by_host, by_guest) = measure(&lab, &servers, &opened, figures.load, effort).with_context(what)?;
                figures.by_host.push(by_host);
                figures.by_guest.push(by_guest);
            }
            ways::close(&lab, way).with_context(|| way.to_string())?;
        }
    }
    show(report, &all);
    Ok(())
}

fn figures() -> Vec<Figures> {
    let of = |load| Way::ALL.map(|way| Figures { way, load, by_host: Series::default(), by_guest: Series::default() });
    Load::ALL.into_iter().flat_map(of).collect()
}

/// What passes for a second of the machine's processors, by either clock.
fn measure(lab: &VmLab, servers: &Servers, opened: &Opened, load: Load, effort: Effort) -> Result<(f64, f64)> {
    load.run(lab, servers, opened, effort.first_seconds)?;
    let before = Work::of(lab)?;
    let done = load.run(lab, servers, opened, effort.seconds)?;
    let work = Work::of(lab)?.since(before);
    Ok((done / work.by_host, done / work.by_guest))
}

/// Each figure beside plain forwarding's, then vipgate's beside IPVS's, then what the guest itself reckons.
fn show(report: &mut Report, all: &[Figures]) {
    let of = |load, way| all.iter().find(|figures| figures.load == load && figures.way == way);
    let name = |figures: &Figures| format!("virtio, {}: {}", figures.load.name(), figures.way);
    for figures in all {
        let row = figures.by_host.row(name(figures), figures.load.unit());
        report.add(match of(figures.load, Way::Forwarding) {
            Some(plain) => row.beside(Way::Forwarding.to_string(), &figures.by_host, &plain.by_host),
            None => row,
        });
    }
    for figures in all.iter().filter(|figures| matches!(figures.way, Way::Vipgate(Hook::Tc | Hook::Xdp))) {
        for peer in [Way::Ipvs(Scheduler::RoundRobin), Way::Ipvs(Scheduler::Maglev), Way::Nftables] {
            if let Some(other) = of(figures.load, peer) {
                let row = figures.by_host.row(format!("{}, beside {peer}", name(figures)), figures.load.unit());
                report.add(row.beside(peer.to_string(), &figures.by_host, &other.by_host));
            }
        }
    }
    for figures in all {
        let row = figures.by_guest.row(format!("{}, by the guest's clock", name(figures)), figures.load.unit());
        report.add(match of(figures.load, Way::Forwarding) {
            Some(plain) => row.beside(Way::Forwarding.to_string(), &figures.by_guest, &plain.by_guest),
            None => row,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// README's tables are made of these rows.
    #[test]
    fn every_way_has_a_row_for_every_load_beside_plain_forwarding_and_vipgate_beside_ipvs() {
        let mut all = figures();
        for (number, figures) in all.iter_mut().enumerate() {
            figures.by_host.push(1.0 + number as f64);
            figures.by_guest.push(2.0);
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
