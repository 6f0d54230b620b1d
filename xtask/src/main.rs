//! The project's own commands: `cargo xtask setup | build | demo | load | unload | test | vm | fuzz | mutants | lint |
//! bench | package`.
//!
//! One module a command. What runs here is what CI and the book run: nothing has a second, hidden way.

mod aside;
mod bench;
mod build;
mod crates;
mod demo;
mod deny;
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
    /// Install what building and testing need; prints what and why. Safe to run again.
    #[command(
        after_help = "Examples:\n  cargo xtask setup            # everything\n  cargo xtask setup --check    # only say what is missing"
    )]
    Setup(setup::Args),

    /// Build the kernel programs, then the `vipgate` binary that embeds them.
    #[command(
        after_help = "Examples:\n  cargo xtask build\n  cargo xtask build --release\n  cargo xtask build --ebpf     # only the kernel programs"
    )]
    Build(build::Args),

    /// Set up a virtual router with clients and backends in network namespaces, configured by REST calls. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask demo             # stays up with a prompt\n  cargo xtask demo --once      # shows everything and ends; exit status 0 if every check passed\n  cargo xtask demo --hook xdp"
    )]
    Demo(demo::Args),

    /// Build, run doctor, then run the controller in the foreground on devices of this machine. Needs root.
    ///
    /// For development on a router VM. The store is below the build directory and is kept until `unload`; the pins are
    /// separate from an installed router's. Each device starts with a network, on which VIPs can be created.
    #[command(
        after_help = "Examples:\n  cargo xtask load --device pub0 --device priv0\n  cargo xtask load --device pub0 --device priv0 --hook xdp --release\n  cargo xtask unload    # removes all of it"
    )]
    Load(load::Args),

    /// Remove everything that `load` loaded and created on this machine. Its controller must have ended.
    #[command(after_help = "Example:\n  cargo xtask unload")]
    Unload(load::UnloadArgs),

    /// Run all tests: unit tests, kernel programs by test run, end to end in namespaces under both hooks, and the package on
    /// distribution kernels in virtual machines. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --filter restart    # only tests whose name contains `restart`"
    )]
    Test(test::Args),

    /// Run the package on distribution kernels in virtual machines: tests, a router to look at, and the cost of packets.
    /// Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask vm list\n  cargo xtask vm test --kernel 6.12\n  cargo xtask vm shell\n  cargo xtask vm bench    # each hook against IPVS, nftables and plain forwarding"
    )]
    Vm(vm::Args),

    /// Fuzz the packet path, compiled for this machine, against its invariants.
    #[command(
        after_help = "Examples:\n  cargo xtask fuzz\n  cargo xtask fuzz --minutes 60    # continues where the last run ended"
    )]
    Fuzz(fuzz::Args),

    /// Put faults into a copy of the packet path, one at a time, and check that a test notices each. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask mutants                  # the faults of ebpf/faults.toml; takes hours\n  cargo xtask mutants --only checksum --output json\n  cargo xtask mutants --pure             # faults that cargo-mutants makes in the tables' arithmetic"
    )]
    Mutants(mutants::Args),

    /// Formatting, clippy and rustdoc with warnings as errors, the kernel programs' lints, licences of the dependencies.
    #[command(after_help = "Example:\n  cargo xtask lint")]
    Lint(lint::Args),

    /// Measure: time per packet by test run, packets per second against nftables. Needs root.
    #[command(after_help = "Example:\n  cargo xtask bench")]
    Bench(bench::Args),

    /// Build a tarball to install on a router: the binary, its systemd unit, an example configuration.
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
