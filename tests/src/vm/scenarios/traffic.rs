//! A router's services through a machine, between clients and backends with checksum and segmentation offloads on: each service
//! once, in both hooks, and a restart of the controller meanwhile.
//!
//! Emulated machines are slow: no case checks the time, except the limit's, which only has an upper bound.

use crate::{
    lab::{Hook, Host, Process, Result, Standing, wait_until},
    vm::suite::{Case, Trial},
};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

pub(super) const ROUTER: &str = include_str!("traffic.yaml");

pub(super) const WEB: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
pub(super) const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
pub(super) const LIMITED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 12);
const OWN: Ipv4Addr = crate::lab::topology::PUBLIC_ROUTER;
/// Bandwidth limit of the limited VIP, in bits a second for each direction.
pub(super) const LIMIT: f64 = 10e6;

/// The hosts that the cases need.
pub const CLIENTS: u8 = 2;
pub const BACKENDS: u8 = 3;

#[must_use]
pub fn cases() -> Vec<Case> {
    type Scenario = fn(&mut Trial) -> Result<()>;
    const SCENARIOS: [(&str, Scenario); 9] = [
        ("balances_tcp", balances_tcp),
        ("balances_udp", balances_udp),
        ("carries_fragments", carries_fragments),
        ("carries_bulk", carries_bulk),
        ("elastic_ip", elastic_ip),
        ("forwards_ports", forwards_ports),
        ("source_nat", source_nat),
        ("limits", limits),
        ("restarts", restarts),
    ];
    let under = |hook: Hook| {
        SCENARIOS.map(|(name, scenario)| {
            Case::new(format!("{hook}::{name}"), move |trial: &mut Trial| {
                trial.router(hook, ROUTER)?;
                scenario(trial)
            })
        })
    };
    [Hook::Tc, Hook::Xdp].into_iter().flat_map(under).collect()
}

/// Requests by curl, each on a new connection: every backend answers in turn and sees the client.
pub(super) fn balances_tcp(trial: &mut Trial) -> Result<()> {
    let client = trial.lab.client();
    let answers = (0..6).map(|_| client.curl(SocketAddrV4::new(WEB, 80))).collect::<Result<Vec<_>>>()?;
    let backends: BTreeSet<&str> = answers.iter().map(|answer| answer.backend.as_str()).collect();
    ensure!(backends.len() == trial.lab.backends().len(), "not every backend answers: {answers:?}");
    ensure!(
        answers.iter().all(|answer| *answer.client.ip() == client.address),
        "backends see another client: {answers:?}"
    );
    Ok(())
}

/// Datagrams of several flows reach every backend; those of one flow keep their backend.
pub(super) fn balances_udp(trial: &mut Trial) -> Result<()> {
    let (client, vip) = (trial.lab.client(), SocketAddrV4::new(WEB, 7002));
    let answers = (0..6).map(|_| client.ask_udp(vip)).collect::<Result<Vec<_>>>()?;
    let backends: BTreeSet<&str> = answers.iter().map(|answer| answer.backend.as_str()).collect();
    ensure!(backends.len() == trial.lab.backends().len(), "not every backend answers: {answers:?}");
    let mut session = client.udp(vip)?;
    let first = session.ask()?;
    for _ in 0..4 {
        let answer = session.ask()?;
        ensure!(answer == first, "{first:?} answered first, then {answer:?}");
    }
    Ok(())
}

/// Datagrams that need three fragments in each direction, between small ones of the same flow.
pub(super) fn carries_fragments(trial: &mut Trial) -> Result<()> {
    let mut session = trial.lab.client().udp(SocketAddrV4::new(WEB, 7002))?;
    let first = session.ask()?;
    for bytes in [4000, 1, 3000, 4000] {
        let answer = session.ask_by(bytes).with_context(|| format!("{bytes} bytes"))?;
        ensure!(answer == first, "{first:?} answered first, then {answer:?}");
    }
    Ok(())
}

/// Enough TCP for segments beyond the MTU, in both directions. No host has computed their checksums.
pub(super) fn carries_bulk(trial: &mut Trial) -> Result<()> {
    let _server = server(trial)?;
    for direction in ["", "--reverse"] {
        let received = bulk(trial.lab.client(), WEB, 16, direction)?;
        // The sender ends when it has sent everything; the receiver does not wait for what is in flight.
        ensure!(received.bytes >= 8e6, "{} bytes arrived {direction}", received.bytes);
    }
    Ok(())
}

/// Everything to the elastic IP reaches the guest, and the guest's own connections leave by it.
pub(super) fn elastic_ip(trial: &mut Trial) -> Result<()> {
    serve_outside(trial)?;
    let (client, guest) = (trial.lab.client(), &trial.lab.backends()[1]);
    client.ping(ELASTIC, "")?;
    let answer = client.curl(SocketAddrV4::new(ELASTIC, 80))?;
    ensure!(answer.backend == guest.name && *answer.client.ip() == client.address, "{answer:?} answers");
    guest.ping(client.address, "")?;
    let seen = [guest.curl(client.web())?, guest.ask_udp(client.echo())?];
    ensure!(seen.iter().all(|origin| *origin.client.ip() == ELASTIC), "the guest is seen as {seen:?}");
    Ok(())
}

pub(super) fn forwards_ports(trial: &mut Trial) -> Result<()> {
    let (client, guest) = (trial.lab.client(), &trial.lab.backends()[2]);
    let answer = client.curl(SocketAddrV4::new(WEB, 8080))?;
    ensure!(answer.backend == guest.name && *answer.client.ip() == client.address, "{answer:?} answers");
    Ok(())
}

/// A guest without an elastic IP is seen by the router's address.
pub(super) fn source_nat(trial: &mut Trial) -> Result<()> {
    serve_outside(trial)?;
    let (client, guest) = (trial.lab.client(), &trial.lab.backends()[0]);
    guest.ping(client.address, "")?;
    let mut session = guest.udp(client.echo())?;
    let seen = [guest.curl(client.web())?, session.ask()?, session.ask_by(4000)?];
    ensure!(seen.iter().all(|origin| *origin.client.ip() == OWN), "the guest is seen as {seen:?}");
    Ok(())
}

/// Each direction gets no more than its limit, whose counters hold what passed.
fn limits(trial: &mut Trial) -> Result<()> {
    let _server = server(trial)?;
    for (direction, name) in [("", "inbound"), ("--reverse", "outbound")] {
        let before = passed(trial, name)?;
        let received = bulk(trial.lab.client(), LIMITED, 4, direction)?;
        let rate = received.bytes * 8.0 / received.seconds;
        ensure!(rate <= 1.3 * LIMIT, "{rate:.0} bits a second {name}");
        let counted = passed(trial, name)? - before;
        ensure!(counted >= received.bytes, "{} bytes arrived {name}, {counted} were counted", received.bytes);
    }
    Ok(())
}

/// Connections survive while the controller ends, while there is none, and while the next one starts.
pub(super) fn restarts(trial: &mut Trial) -> Result<()> {
    let (client, vip) = (trial.lab.client(), SocketAddrV4::new(WEB, 7001));
    let mut standing = Standing::open(client, vip, 6)?;
    standing.ask()?;
    let status = trial.lab.stop()?;
    ensure!(status == 0, "SIGTERM ends the controller with {status}");
    standing.ask().context("without a controller")?;
    client.curl(SocketAddrV4::new(WEB, 80)).context("a new connection without a controller")?;
    trial.serve_again()?;
    standing.ask().context("with the next controller")
}

/// Starts the clients' services, once.
fn serve_outside(trial: &mut Trial) -> Result<()> {
    if trial.lab.client().web_id().is_none() {
        trial.lab.serve_outside()?;
    }
    Ok(())
}

/// The result of a bulk transfer.
pub(super) struct Received {
    pub(super) bytes: f64,
    pub(super) seconds: f64,
}

/// Starts iperf3 on the backend of the bulk listeners.
pub(super) fn server(trial: &Trial) -> Result<Process> {
    let backend = &trial.lab.backends()[0];
    let mut command = backend.namespace.command("iperf3");
    command.arg("--server");
    let server = Process::start("iperf3", &command, trial.lab.directory())?;
    wait_until("iperf3 to listen", Duration::from_secs(20), || {
        let listening = backend.namespace.run("ss", "--no-header --listening --tcp --numeric sport = :5201")?;
        ensure!(!listening.trim().is_empty(), "nothing listens");
        Ok(())
    })?;
    Ok(server)
}

/// Time for the health check to find a server that was just started; until then its listener refuses clients.
const CHECKED: Duration = Duration::from_secs(120);

/// Transfers megabytes through the VIP, to the backend or, with `--reverse`, from it.
pub(super) fn bulk(client: &Host, vip: Ipv4Addr, megabytes: u32, direction: &str) -> Result<Received> {
    let words = format!("--client {vip} --bytes {megabytes}M --json --connect-timeout 20000 {direction}");
    let report = wait_until("iperf3 to begin", CHECKED, || {
        let said = client.namespace.run("iperf3", &words)?;
        let report: Value = serde_json::from_str(&said).with_context(|| format!("iperf3 prints no JSON: {said}"))?;
        ensure!(has_begun(&report), "{}", report["error"]);
        Ok(report)
    })?;
    let received = &report["end"]["sum_received"];
    let figure = |name: &str| {
        received[name].as_f64().with_context(|| format!("iperf3 has no {name}: {} {}", report["error"], report["end"]))
    };
    Ok(Received { bytes: figure("bytes")?, seconds: figure("seconds")? })
}

/// Whether the transfer began. A server of iperf3 serves one client at a time and takes a health check for one: a client that
/// comes at that moment is refused as busy, or reset.
fn has_begun(report: &Value) -> bool {
    report["start"]["connected"].as_array().is_some_and(|streams| !streams.is_empty())
}

/// Bytes that the limited VIP let pass in this direction.
fn passed(trial: &Trial, direction: &str) -> Result<f64> {
    let status = trial.lab.report("status")?;
    let limits = status["limits"].as_array().context("status has no limits")?;
    let limit = limits.iter().find(|limit| limit["vip"] == LIMITED.to_string()).context("the limit is not there")?;
    limit["rates"][direction]["passedBytes"].as_f64().with_context(|| format!("no {direction} in {limit}"))
}
