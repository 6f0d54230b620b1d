//! Which cases run on which kernels.

use super::{
    Kernel, VmLabOptions,
    scenarios::{load, traffic},
    suite::Suite,
};

/// Kernels whose traffic is tried each time: those of Debian's stable releases.
const TRAFFIC: [&str; 2] = ["6.1", "6.12"];

/// How much to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What each run of the project's tests has time for.
    Usual,
    /// The newest kernel's traffic, too.
    All,
    /// Everything on each of these kernels, which somebody named.
    Named,
}

/// All suites of these kernels, those that take longest first.
#[must_use]
pub fn suites(kernels: &[Kernel], extent: Extent) -> Vec<Suite> {
    let newest = kernels.last().map(|kernel| kernel.name.as_str());
    let carries = |kernel: &&Kernel| match extent {
        Extent::Usual => TRAFFIC.contains(&kernel.name.as_str()),
        Extent::All => TRAFFIC.contains(&kernel.name.as_str()) || newest == Some(&kernel.name),
        Extent::Named => !kernel.refused,
    };
    let traffic = kernels.iter().filter(carries).map(traffic_on);
    traffic.chain(kernels.iter().map(load_on)).collect()
}

fn traffic_on(kernel: &Kernel) -> Suite {
    let options = VmLabOptions::new(traffic::CLIENTS, traffic::BACKENDS);
    Suite { layer: "traffic", kernel: kernel.clone(), options, cases: traffic::cases() }
}

fn load_on(kernel: &Kernel) -> Suite {
    let cases = if kernel.refused { load::refused_cases() } else { load::cases() };
    Suite { layer: "load", kernel: kernel.clone(), options: VmLabOptions::new(0, 0), cases }
}
