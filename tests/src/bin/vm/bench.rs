//! Measures what each way through a router costs its processors, on one virtual machine.

use anyhow::Context as _;
use std::{fs, path::PathBuf};
use vipgate_tests::{
    bench::Report,
    lab::Result,
    vm::{
        Bench, Kernel,
        accel::Accelerator,
        cost::{self, Effort},
        image::Sources,
        kernels,
    },
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Kernel, by the name that `cargo xtask vm list` shows.
    #[arg(long, value_name = "NAME", value_parser = kernels::one, default_value = "6.12")]
    kernel: Kernel,

    /// Measure in fewer and shorter rounds.
    #[arg(long)]
    quick: bool,

    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, sources: Sources) -> Result<()> {
    let kernel = &arguments.kernel;
    let accelerator = Accelerator::detect(&sources, kernel)?;
    let load = fs::read_to_string("/proc/loadavg").context("cannot read the host's load")?;
    let load = load.split_whitespace().next().unwrap_or_default();
    eprintln!("==> {} ({}), {accelerator}; the host's load before: {load}", kernel.name, kernel.release);
    let bench = Bench { sources, accelerator };
    let mut report = Report::default();
    cost::run(&mut report, &bench, kernel, if arguments.quick { Effort::QUICK } else { Effort::FULL })?;
    arguments.json.as_deref().map_or(Ok(()), |path| report.write(path))
}
