//! `cargo xtask bench`: measures the figures in docs/benchmarks.md.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use vipgate_tests::{
    bench::{Effort, Report, api, bulk, connections, control, fill, limits, plot, testrun, wire},
    packet::Hook,
};

/// Measure vipgate and its peers; every figure is a median with its spread.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  cargo xtask bench -- --quick --json figures.json\n  cargo xtask bench -- --part wire"
)]
struct Arguments {
    /// Measure in fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Measure only this part; may be given more than once.
    #[arg(long, value_name = "PART")]
    part: Vec<Part>,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the figures into this directory: a plot (SVG) for each group.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Time per packet by test run.
    Testrun,
    /// Time per packet of each kind of service and of the load balancer, with few and with many services.
    Services,
    /// New connections that find the flow table full, by the table's load.
    Fill,
    /// Packets on the wire, against nftables and plain forwarding.
    Wire,
    /// Guests' connections through source NAT on the wire, against nftables.
    Outgoing,
    /// Bulk TCP, against nftables, HAProxy and plain forwarding.
    Bulk,
    /// New connections, against nftables, HAProxy and plain forwarding.
    Connections,
    /// The control plane through the REST API, and packets with many listeners.
    Control,
    /// Time per bandwidth-limited packet by test run, with few and with many limits.
    Meters,
    /// Bandwidth limits, against HTB and TBF: throughput, delay, and the effect of a change.
    Limits,
    /// Another VIP's traffic while a bandwidth limit is exhausted.
    Bystanders,
    /// The API under load: pages of big tables, creates, polls, ten thousand bandwidth limits.
    Api,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let wanted = |part| arguments.part.is_empty() || arguments.part.contains(&part);
    let mut report = Report::default();
    if wanted(Part::Testrun) {
        apart(|| testrun::run(&mut report, Hook::Xdp, effort))?;
        apart(|| testrun::run(&mut report, Hook::Tc, effort))?;
        apart(|| testrun::tables(&mut report, effort))?;
    }
    if wanted(Part::Services) {
        apart(|| testrun::services(&mut report, Hook::Xdp, effort))?;
        apart(|| testrun::services(&mut report, Hook::Tc, effort))?;
    }
    if wanted(Part::Fill) {
        apart(|| fill::run(&mut report, effort))?;
    }
    if wanted(Part::Wire) {
        wire::run(&mut report, effort)?;
    }
    if wanted(Part::Outgoing) {
        wire::outgoing(&mut report, effort)?;
    }
    if wanted(Part::Bulk) {
        bulk::run(&mut report, effort)?;
    }
    if wanted(Part::Connections) {
        connections::run(&mut report, effort)?;
    }
    if wanted(Part::Control) {
        control::run(&mut report, effort)?;
        apart(|| control::packets(&mut report, effort))?;
    }
    if wanted(Part::Meters) {
        apart(|| testrun::limits(&mut report, effort))?;
    }
    if wanted(Part::Limits) {
        limits::run(&mut report, effort)?;
    }
    if wanted(Part::Bystanders) {
        limits::bystanders(&mut report, effort)?;
    }
    if wanted(Part::Api) {
        api::run(&mut report, effort)?;
    }
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    if let Some(directory) = &arguments.plots {
        plot::draw(&report, directory)?;
    }
    Ok(())
}

/// Runs `work` on a thread of its own: what it makes enters network namespaces and stays there.
fn apart(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}
