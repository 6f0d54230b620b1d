//! `cargo xtask demo`: builds everything and runs the `demo` binary of the tests crate.

use crate::{
    build::{self, target_directory},
    setup::{self, Need},
    sh::{as_root, cargo, run as run_command, step},
};
use anyhow::Result;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show everything, then end: exit status 0 only if all that it showed was right.
    #[arg(long)]
    once: bool,

    /// Where the router's programs attach: auto, xdp, xdp-generic or tc.
    #[arg(long, default_value = "auto")]
    hook: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Lab])?;
    build::everything()?;
    step("the demo's program", &mut cargo(&["build", "--locked", "--package", "vipgate-tests", "--bin", "demo"]))?;
    let mut demo = as_root(&target_directory().join("debug/demo"), "making network namespaces")?;
    demo.args(["--hook", &args.hook]);
    if args.once {
        demo.arg("--once");
    }
    run_command(&mut demo)
}
