//! `cargo xtask bench`: the figures that README shows.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use vipgate_tests::{
    bench::{Effort, Report, api, bulk, connections, control, fill, limits, plot, testrun, wire},
    packet::Hook,
};

/// Measures vipgate beside its peers; every figure is a median with its spread.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  cargo xtask bench -- --quick --json figures.json\n  cargo xtask bench -- --part wire"
)]
struct Arguments {
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Only this part; may be given more than once.
    #[arg(long, value_name = "PART")]
    part: Vec<Part>,
    /// Writes the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the figures into this directory, a plot (SVG) for each group of them.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Time per packet by test run.
    Testrun,
    /// The same of each kind of service beside the load balancer's, among few and many.
    Services,
    /// New connections that find no room in a flow table, by how full it is.
    Fill,
    /// Packets on the wire beside nftables and plain forwarding.
    Wire,
    /// What guests begin, by source NAT, on the wire beside nftables.
    Outgoing,
    /// Bulk TCP beside nftables, HAProxy and plain forwarding.
    Bulk,
    /// New connections beside the same.
    Connections,
    /// The control plane through the REST API, and packets among many listeners.
    Control,
    /// Time per packet of one that is limited by test run, among few limits and many.
    Meters,
    /// Bandwidth limits beside HTB and TBF: what passes, what waits, and what a change does.
    Limits,
    /// Another VIP's traffic beside a bandwidth limit that is full.
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

/// Runs on a thread of its own: what it makes enters network namespaces and stays there.
fn apart(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}
