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

/// The kernel programs, all binaries and all tests, in one go: alone, the binaries would have their dependencies with fewer
/// features than beside the tests, and all of that would be built twice.
pub(crate) fn with_tests() -> Result<()> {
    ebpf::build()?;
    step("everything (debug)", &mut cargo(&["build", "--locked", "--workspace", "--bins", "--tests"]))
}

/// Builds `vipgate`; where it is.
pub(crate) fn binary(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    let mut command = cargo(&["build", "--locked", "--package", "vipgate"]);
    if release {
        command.arg("--release");
    }
    step(&format!("vipgate ({profile})"), &mut command)?;
    Ok(target_directory().join(profile).join("vipgate"))
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
