//! `cargo xtask vm`: distribution kernels in virtual machines, and the released binary in them.

mod bench;
mod fetch;
mod list;
mod shell;
mod test;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::{
    path::PathBuf,
    process::{self, ExitCode},
    thread,
};
use vipgate_tests::{
    lab::{Result, leftovers::remove_own},
    vm::image::Sources,
};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask vm", bin_name = "cargo xtask vm", about, arg_required_else_help = true)]
struct Arguments {
    /// The package for routers; set by `cargo xtask vm`.
    #[arg(long, hide = true, env = "VIPGATE_VM_PACKAGE")]
    package: Option<PathBuf>,

    /// The guest's init; set by `cargo xtask vm`.
    #[arg(long, hide = true, env = "VIPGATE_VM_INIT")]
    init: Option<PathBuf>,

    /// Only check the other arguments, before anything is built for them.
    #[arg(long, hide = true)]
    check: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the kernels, and whether they are in the cache.
    #[command(after_help = "Examples:\n  cargo xtask vm list\n  cargo xtask vm list --archive    # newer ones")]
    List(list::Arguments),

    /// Fetch the kernels into the cache; tests also do so on demand.
    #[command(after_help = "Example:\n  cargo xtask vm fetch --kernel 6.12")]
    Fetch(fetch::Arguments),

    /// Run the tests in virtual machines: load, traffic, userland.
    #[command(
        after_help = "Examples:\n  cargo xtask vm test                               # the tests that `cargo xtask test` runs\n  cargo xtask vm test --all\n  cargo xtask vm test --kernel 6.12 --filter xdp\n  cargo xtask vm test --filter userland            # the package on a full Debian"
    )]
    Test(test::Arguments),

    /// Measure what a packet costs the router's processors: with each hook, IPVS, nftables, and plain forwarding.
    #[command(
        after_help = "Examples:\n  cargo xtask vm bench --json figures.json\n  cargo xtask vm bench --quick --kernel 6.1"
    )]
    Bench(bench::Arguments),

    /// Start a router with clients and backends, and run lines that you type in its shell.
    #[command(
        after_help = "Examples:\n  cargo xtask vm shell\n  echo 'vipgate status' | cargo xtask vm shell --kernel 6.12 --hook xdp"
    )]
    Shell(shell::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check {
        return ExitCode::SUCCESS;
    }
    clean_up_on_interrupt();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    match &arguments.command {
        Command::List(list) => list::run(list).map(|()| true),
        Command::Fetch(fetch) => fetch::run(fetch).map(|()| true),
        Command::Test(test) => test::run(test, sources(arguments)?),
        Command::Bench(bench) => bench::run(bench, sources(arguments)?).map(|()| true),
        Command::Shell(shell) => shell::run(shell, sources(arguments)?).map(|()| true),
    }
}

fn sources(arguments: &Arguments) -> Result<Sources> {
    let usage = "start this program by `cargo xtask vm`, which builds what the machines need";
    let (package, init) = (arguments.package.clone().context(usage)?, arguments.init.clone().context(usage)?);
    Ok(Sources { package, init })
}

/// Makes Ctrl-C remove everything, too.
fn clean_up_on_interrupt() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        match runtime.and_then(|runtime| runtime.block_on(tokio::signal::ctrl_c())) {
            Ok(()) => {
                remove_own();
                process::exit(130);
            }
            Err(error) => eprintln!("vm: after Ctrl-C the next run must remove the namespaces: {error}"),
        }
    });
}
