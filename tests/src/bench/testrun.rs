//! Nanoseconds a packet by BPF_PROG_TEST_RUN: the pipeline without devices, every run with a fresh packet, the
//! prologue that makes it subtracted.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use vipgate_abi::{flow::State, service::Algorithm};

use super::{Effort, Report, Series};
use crate::packet::{Bench, Frame, Hook, Packets, Verdict, tcp};

const TCP: u8 = 6;
/// The first client.
const CLIENTS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 64, 0, 0), 1024);
/// No service's.
const ELSEWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 80);
const VIP: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 80);

/// What a case runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Established connections, so many.
    Hit(u32),
    /// New connections only, over a table that is always full.
    Syn,
    /// Traffic that is not ours.
    Other,
}

/// Measures every case in turn, round by round.
pub fn run(report: &mut Report, hook: Hook, effort: Effort) -> Result<()> {
    let cases = [
        ("hit, 1 flow", Kind::Hit(1), 35.0),
        ("hit, 65,536 flows", Kind::Hit(1 << 16), 65.0),
        ("hit, 1,048,576 flows", Kind::Hit(1 << 20), 150.0),
        ("SYN", Kind::Syn, 250.0),
        ("not ours", Kind::Other, 20.0),
    ];
    for (name, kind, goal) in cases {
        let mut net = Series::default();
        let mut bench = prepare(hook, kind)?;
        for _ in 0..effort.rounds {
            let empty = bench.time_empty(effort.packets)?;
            let (whole, verdict) = bench.time(effort.packets)?;
            let expected = if kind == Kind::Other { Verdict::Pass } else { Verdict::Redirect };
            ensure!(verdict == expected, "{name}: verdict {verdict:?}");
            net.push(whole - empty);
        }
        let row = net.row(format!("{hook:?} test run: {name}"), "ns");
        report.add(if hook == Hook::Xdp { row.at_most(goal) } else { row });
    }
    Ok(())
}

fn prepare(hook: Hook, kind: Kind) -> Result<Bench> {
    let (count, buckets) = match kind {
        Kind::Hit(flows) => (flows, flows.max(128)),
        Kind::Syn => (1 << 20, 1 << 16),
        Kind::Other => (1 << 10, 128),
    };
    let segments = |flags| Packets {
        first: Frame::tcp(CLIENTS, if kind == Kind::Other { ELSEWHERE } else { VIP }, flags),
        count,
        port_bits: 4,
    };
    let mut bench = Bench::benchmark(hook, buckets, &segments(tcp::SYN))?;
    let backends: Vec<_> = (10..20).map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080)).collect();
    bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends)?;
    if let Kind::Hit(flows) = kind {
        bench.time(flows)?;
        let made = bench.set_states(State::Established)?;
        ensure!(made >= flows * 2 / 100 * 99, "{made} flows of {flows} connections are in the table");
        bench.set_packets(&segments(tcp::ACK))?;
    }
    Ok(bench)
}
