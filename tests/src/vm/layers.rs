//! Chooses which cases run on which kernels.

use super::{
    Kernel, VmLabOptions,
    lab::System,
    scenarios::{devices, load, traffic, userland as debian},
    suite::Suite,
    userland,
};

/// Kernels that every run tests with traffic: those of Debian's stable releases.
const TRAFFIC: [&str; 2] = ["6.1", "6.12"];

/// The kernel that all kinds of devices are tested on.
const DEVICES: &str = "6.12";
/// Suites of devices that every run includes.
const USUAL_DEVICES: [&str; 1] = ["mixed"];

/// How much to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What each run of `cargo xtask test` has time for.
    Usual,
    /// Also the newest kernel's traffic, devices of all kinds and a full Debian.
    All,
    /// Everything on each of these kernels, which the user named.
    Named,
}

/// All suites of these kernels, longest first.
#[must_use]
pub fn suites(kernels: &[Kernel], extent: Extent) -> Vec<Suite> {
    let newest = kernels.last().map(|kernel| kernel.name.as_str());
    let carries = |kernel: &&Kernel| match extent {
        Extent::Usual => TRAFFIC.contains(&kernel.name.as_str()),
        Extent::All => TRAFFIC.contains(&kernel.name.as_str()) || newest == Some(&kernel.name),
        Extent::Named => !kernel.refused,
    };
    let traffic = kernels.iter().filter(carries).map(traffic_on);
    let devices = kernels.iter().filter(|kernel| kernel.name == DEVICES).flat_map(devices_on);
    let devices = devices.filter(|suite| extent != Extent::Usual || USUAL_DEVICES.contains(&suite.layer));
    let debian = kernels.iter().filter(|kernel| extent != Extent::Usual && kernel.name == userland::KERNEL);
    debian.map(debian_with).chain(traffic).chain(devices).chain(kernels.iter().map(load_on)).collect()
}

fn devices_on(kernel: &Kernel) -> Vec<Suite> {
    let suite = |(layer, options, cases)| Suite { layer, kernel: kernel.clone(), options, cases };
    devices::suites().into_iter().map(suite).collect()
}

fn debian_with(kernel: &Kernel) -> Suite {
    let options = VmLabOptions { system: System::Debian, ..VmLabOptions::new(debian::CLIENTS, debian::BACKENDS) };
    Suite { layer: "userland", kernel: kernel.clone(), options, cases: debian::cases() }
}

fn traffic_on(kernel: &Kernel) -> Suite {
    let options = VmLabOptions::new(traffic::CLIENTS, traffic::BACKENDS);
    Suite { layer: "traffic", kernel: kernel.clone(), options, cases: traffic::cases() }
}

fn load_on(kernel: &Kernel) -> Suite {
    let cases = if kernel.refused { load::refused_cases() } else { load::cases() };
    Suite { layer: "load", kernel: kernel.clone(), options: VmLabOptions::new(0, 0), cases }
}
