//! `cargo xtask test`: everything the tests need, then every test of the workspace.
//!
//! End-to-end tests make their own namespaces and run side by side. The test binaries run as root: the kernel asks for
//! it to load programs and to make namespaces.

use crate::{
    build,
    setup::{self, Need},
    sh::{cargo, is_root, step, which},
};
use anyhow::{Result, bail};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the tests whose name holds this.
    #[arg(long)]
    filter: Option<String>,

    /// Tests at a time.
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    setup::ensure(&[Need::Build, Need::Lab])?;
    build::everything()?;

    let mut command = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
    if !is_root() {
        let Some(sudo) = which("sudo") else {
            bail!("the tests make network namespaces and load programs into the kernel: run this command as root");
        };
        command.env(runner_variable(), format!("{} -E", sudo.display()));
    }
    command.arg("--").args(["--test-threads", &args.threads.to_string()]);
    if let Some(filter) = &args.filter {
        command.arg(filter);
    }
    step("all tests of the workspace", &mut command)?;
    eprintln!("all tests passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// The variable that tells cargo how to start a program of the host's own target.
fn runner_variable() -> String {
    format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase())
}
