//! `cargo xtask demo`: builds everything and runs the `demo` binary of the tests crate.

use crate::{
    build::target_directory,
    ebpf,
    setup::{self, Need},
    sh::{as_root, cargo, run as run_command, step},
};
use anyhow::Result;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show everything, then end; exit status 0 only if every check passed.
    #[arg(long)]
    once: bool,

    /// Where the router's programs attach: auto, xdp, xdp-generic or tc.
    #[arg(long, default_value = "auto")]
    hook: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Lab])?;
    ebpf::build()?;
    // One cargo call: built one by one, their dependencies would have other features and be built twice.
    let words = ["--package", "vipgate", "--package", "vipgate-tests", "--bin", "vipgate", "--bin", "demo"];
    step("vipgate and the demo's program", cargo(&["build", "--locked"]).args(words))?;
    let mut demo = as_root(&target_directory().join("debug/demo"), "making network namespaces")?;
    demo.args(["--hook", &args.hook]);
    if args.once {
        demo.arg("--once");
    }
    run_command(&mut demo)
}
