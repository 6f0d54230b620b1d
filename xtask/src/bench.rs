//! `cargo xtask bench`: builds everything optimised and runs the `bench` binary of the tests crate.

use crate::{
    build::{binary, target_directory},
    ebpf,
    setup::{self, Need},
    sh::{as_root, cargo, run as run_command, step},
};
use anyhow::Result;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments for the benchmark, passed on unchanged; `-- --help` lists them.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Lab, Need::Bench])?;
    ebpf::build()?;
    // The measurements with whole connections and of the control plane run the controller.
    binary(true)?;
    step(
        "the benchmark",
        &mut cargo(&["build", "--locked", "--release", "--package", "vipgate-tests", "--bin", "bench"]),
    )?;
    let mut bench = as_root(&target_directory().join("release/bench"), "loading programs into the kernel")?;
    run_command(bench.args(&args.arguments))
}
