//! `cargo xtask bench`: the figures that README shows.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use vipgate_tests::{
    bench::{Report, testrun, wire},
    packet::Hook,
};

/// Measures vipgate beside its peers; every figure is a median with its spread.
#[derive(Debug, Parser)]
#[command(after_help = "Example: cargo xtask bench -- --quick --json figures.json")]
struct Arguments {
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Writes the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (rounds, repeat) = if arguments.quick { (5, 300_000) } else { (9, 2_000_000) };
    let mut report = Report::default();
    for hook in [Hook::Xdp, Hook::Tc] {
        // A thread of its own: the bench enters a network namespace and stays there.
        std::thread::scope(|scope| {
            scope
                .spawn(|| testrun::run(&mut report, hook, rounds, repeat))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
    }
    wire::run(&mut report, rounds, repeat)?;
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    Ok(())
}
