//! The project's own commands: `cargo xtask setup | build | demo | load | unload | test | vm | fuzz | mutants | lint |
//! bench | package`.
//!
//! One module a command. What runs here is what CI and the README run: nothing has a second, hidden way.

mod aside;
mod bench;
mod build;
mod crates;
mod demo;
mod ebpf;
mod fuzz;
mod lint;
mod load;
mod mutants;
mod package;
mod qemu;
mod setup;
mod sh;
mod test;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building and testing need; says what and why. Safe to run again.
    #[command(
        after_help = "Examples:\n  cargo xtask setup            # everything\n  cargo xtask setup --check    # only say what is missing"
    )]
    Setup(setup::Args),

    /// Build the kernel programs, then the `vipgate` binary that embeds them.
    #[command(
        after_help = "Examples:\n  cargo xtask build\n  cargo xtask build --release\n  cargo xtask build --ebpf     # the kernel programs only"
    )]
    Build(build::Args),

    /// A virtual router with clients and backends in network namespaces, configured by REST calls. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask demo             # stays up with a prompt\n  cargo xtask demo --once      # shows everything and ends; exit status 0 if all of it held\n  cargo xtask demo --hook xdp"
    )]
    Demo(demo::Args),

    /// Build, then the controller in the foreground on devices of this machine, after doctor has looked at it. Needs root.
    ///
    /// For work on a router VM: its store, kept until `unload`, is below the build directory, its pins are beside an
    /// installed router's. It begins with a network on each device, for VIPs to be made in.
    #[command(
        after_help = "Examples:\n  cargo xtask load --device pub0 --device priv0\n  cargo xtask load --device pub0 --device priv0 --hook xdp --release\n  cargo xtask unload    # takes all of it away"
    )]
    Load(load::Args),

    /// Take what `load` has loaded and made off this machine again. Its controller must have ended.
    #[command(after_help = "Example:\n  cargo xtask unload")]
    Unload(load::UnloadArgs),

    /// All tests: units, kernel programs by test run, end to end in namespaces under both hooks, and the package on
    /// distribution kernels in virtual machines. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --filter restart    # the tests whose name holds `restart`"
    )]
    Test(test::Args),

    /// Distribution kernels in virtual machines, and the package in them: tests, a router to look at, and what packets
    /// cost it. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask vm list\n  cargo xtask vm test --kernel 6.12\n  cargo xtask vm shell\n  cargo xtask vm bench    # each hook beside IPVS, nftables and plain forwarding"
    )]
    Vm(vm::Args),

    /// Look for packets and tables under which the packet path, compiled for this machine, breaks what must hold.
    #[command(
        after_help = "Examples:\n  cargo xtask fuzz\n  cargo xtask fuzz --minutes 60    # goes on where the last run ended"
    )]
    Fuzz(fuzz::Args),

    /// Put faults into a copy of the packet path, one at a time, and see whether a test notices. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask mutants                  # those that ebpf/faults.toml names: hours\n  cargo xtask mutants --only checksum --output json\n  cargo xtask mutants --pure             # those that cargo-mutants makes in the tables' arithmetic"
    )]
    Mutants(mutants::Args),

    /// Formatting, clippy with warnings as errors, the kernel programs' lints, licences of the dependencies.
    #[command(after_help = "Example:\n  cargo xtask lint")]
    Lint(lint::Args),

    /// Measure: time per packet by test run, packets per second against nftables. Needs root.
    #[command(after_help = "Example:\n  cargo xtask bench")]
    Bench(bench::Args),

    /// A tarball to install on a router: the binary, its systemd unit, an example configuration.
    #[command(
        after_help = "Example:\n  cargo xtask package    # target/package/vipgate-<version>-<architecture>.tar.gz"
    )]
    Package(package::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Unload(args) => load::unload(&args),
        Command::Test(args) => test::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Package(args) => package::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
