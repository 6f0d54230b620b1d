//! `cargo xtask build`: the kernel programs first, since the binary embeds them.

use crate::{
    ebpf,
    setup::{self, Need},
    sh::{cargo, root, step},
};
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build the kernel programs only.
    #[arg(long)]
    ebpf: bool,

    /// Optimise the binary, as for a router.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build])?;
    ebpf::build()?;
    if args.ebpf {
        println!("{}", ebpf::object_path().display());
        return Ok(());
    }
    println!("{}", binary(args.release)?.display());
    Ok(())
}

/// Builds the kernel programs, all binaries and all tests in one go. Built alone, the binaries would get dependencies with
/// fewer features than the tests do, and cargo would build all of these twice.
pub(crate) fn with_tests() -> Result<()> {
    ebpf::build()?;
    step("everything (debug)", &mut cargo(&["build", "--locked", "--workspace", "--bins", "--tests"]))
}

/// Builds `vipgate` and returns its path.
pub(crate) fn binary(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    let mut command = cargo(&["build", "--locked", "--package", "vipgate"]);
    if release {
        command.arg("--release");
    }
    step(&format!("vipgate ({profile})"), &mut command)?;
    Ok(target_directory().join(profile).join("vipgate"))
}

/// The directory that cargo builds into.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
