//! `cargo xtask vm`: builds the package, the guest's init and the `vm` binary of the tests crate, and runs that binary.

use crate::{
    build::target_directory,
    ebpf, package,
    setup::{self, Need},
    sh::{as_root, cargo, run as run_command, step},
};
use anyhow::{Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The binary has its own help, which covers the whole command.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments for the binary, passed on unchanged; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let helps = args.arguments.iter().any(|word| ["--help", "-h"].contains(&word.as_str()));
    let verb = args.arguments.first().map_or("", String::as_str);
    let boots = ["test", "bench", "shell"].contains(&verb) && !helps;
    if boots && verb == "bench" {
        setup::ensure(&[Need::Bench])?;
    }
    let binary = build_binary()?;
    if boots {
        // The binary checks its arguments first: building the package takes minutes.
        run_command(Command::new(&binary).arg("--check").args(&args.arguments))?;
    }
    let mut command = if boots { booting(&binary)? } else { Command::new(binary) };
    run_command(command.args(&args.arguments))
}

/// The `vm` binary with everything that its machines need, as root.
pub(crate) fn booting(binary: &Path) -> Result<Command> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machines run Debian's kernels for amd64: there are none for {}", std::env::consts::ARCH);
    }
    setup::ensure(&[Need::Build, Need::Lab, Need::Vm])?;
    let package = package::build()?;
    let init = init()?;
    let mut command = as_root(binary, "making network namespaces and virtual machines")?;
    command.arg("--package").arg(package).arg("--init").arg(init);
    Ok(command)
}

/// Path of the `vm` binary, once it is built.
pub(crate) fn binary() -> PathBuf {
    target_directory().join("debug/vm")
}

fn build_binary() -> Result<PathBuf> {
    setup::ensure(&[Need::Build])?;
    ebpf::build()?;
    step(
        "the program of the virtual machines",
        &mut cargo(&["build", "--locked", "--package", "vipgate-tests", "--bin", "vm"]),
    )?;
    Ok(binary())
}

/// Builds the guest's first process, linked statically: it runs before any library is there.
fn init() -> Result<PathBuf> {
    let words = ["rustc", "--locked", "--release", "--package", "vipgate-guest", "--bin", "vipgate-guest"];
    step("the guests' init", cargo(&words).args(["--", "-C", "target-feature=+crt-static"]))?;
    Ok(target_directory().join("release/vipgate-guest"))
}
