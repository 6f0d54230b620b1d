//! Nanoseconds per packet by BPF_PROG_TEST_RUN: the pipeline without devices. Each run gets a fresh packet; the cost of the
//! prologue that makes it is subtracted.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use vipgate_abi::{
    flow::State,
    meter::{self, Binding, Meter, Rate},
    service::{Algorithm, ServiceKey},
};

use super::{Effort, Report, Series};
use crate::packet::{Bench, Frame, Hook, Packets, Verdict, tcp};

const TCP: u8 = 6;
/// Address of the first client.
const CLIENTS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 64, 0, 0), 1024);
/// An address of no service.
const ELSEWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 80);
/// The networks of all other VIPs, of their guests, and of VIPs with port ranges.
const OTHER_VIPS: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 0);
const OTHER_GUESTS: Ipv4Addr = Ipv4Addr::new(10, 4, 0, 0);
const RANGES: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 0);
/// Number of the first bandwidth limit.
const LIMIT: u32 = 1;
const VIP: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 80);

/// What a case measures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Packets of this many established connections.
    Hit(u32),
    /// The same, under a limit without a queue that drops none of them.
    Policed(u32),
    /// Packets of one connection to a port with its own limit, as this many ports of the VIP have.
    PolicedPort(u32),
    /// Only new connections, from this many clients in turn, in a table of half as many slots, which is always full.
    Syn(u32),
    /// This many new connections, each once, in a table that starts empty and ends half full.
    Opened(u32),
    /// Traffic to none of our addresses.
    Elsewhere,
    /// To a port of a VIP without a service.
    OtherPort,
}

impl Kind {
    fn verdict(self) -> Verdict {
        match self {
            Self::Hit(_) | Self::Policed(_) | Self::PolicedPort(_) | Self::Syn(_) | Self::Opened(_) => {
                Verdict::Redirect
            }
            Self::Elsewhere | Self::OtherPort => Verdict::Pass,
        }
    }

    /// The number of different packets, and the flow table's number of buckets.
    fn sizes(self) -> (u32, u32) {
        match self {
            Self::Hit(flows) | Self::Policed(flows) => (flows, flows.max(128)),
            Self::PolicedPort(_) => (1, 128),
            Self::Syn(clients) => (clients, clients / 16),
            Self::Opened(clients) => (clients, clients / 2),
            Self::Elsewhere | Self::OtherPort => (1 << 10, 128),
        }
    }
}

/// A figure: its name, what runs, the number of VIPs, and the goal for XDP in nanoseconds.
struct Case(&'static str, Kind, u32, Option<f64>);

const CASES: [Case; 12] = [
    Case("hit, 1 flow", Kind::Hit(1), 1, Some(35.0)),
    Case("hit, 65,536 flows", Kind::Hit(1 << 16), 1, Some(65.0)),
    Case("hit, 1,048,576 flows", Kind::Hit(1 << 20), 1, Some(150.0)),
    Case("hit, 65,536 flows, 1,000 VIPs", Kind::Hit(1 << 16), 1000, None),
    Case("SYN, 16,384 clients, table with room", Kind::Opened(1 << 14), 1, None),
    Case("SYN, 1,024 clients, table full", Kind::Syn(1 << 10), 1, Some(250.0)),
    Case("SYN, 65,536 clients, table full", Kind::Syn(1 << 16), 1, Some(250.0)),
    Case("SYN, 1,048,576 clients, table full", Kind::Syn(1 << 20), 1, None),
    Case("SYN, 1,024 clients, 1,000 VIPs", Kind::Syn(1 << 10), 1000, None),
    Case("not ours", Kind::Elsewhere, 1, Some(20.0)),
    Case("not ours, 1,000 VIPs", Kind::Elsewhere, 1000, Some(20.0)),
    Case("a VIP's other port", Kind::OtherPort, 1, None),
];

/// Measures every case in turn, round by round.
pub fn run(report: &mut Report, hook: Hook, effort: Effort) -> Result<()> {
    for Case(name, kind, vips, goal) in CASES {
        let mut net = Series::default();
        let mut bench = prepare(hook, kind, vips)?;
        for _ in 0..effort.rounds {
            let mut effort = effort;
            if let Kind::Opened(clients) = kind {
                (bench, effort.packets) = (prepare(hook, kind, vips)?, clients);
            }
            net.push(net_time(&mut bench, effort, kind.verdict()).context(name)?);
        }
        let row = net.row(format!("test run, {hook:?}: {name}"), "ns");
        report.add(match goal {
            Some(goal) if hook == Hook::Xdp => row.at_most(goal),
            _ => row,
        });
    }
    Ok(())
}

/// Nanoseconds per packet without the prologue; all packets must get this verdict.
pub(super) fn net_time(bench: &mut Bench, effort: Effort, expected: Verdict) -> Result<f64> {
    let empty = bench.time_empty(effort.packets)?;
    let (whole, verdict) = bench.time(effort.packets)?;
    ensure!(verdict == expected, "verdict {verdict:?}, not {expected:?}");
    Ok(whole - empty)
}

/// Measures what a limit without a queue adds to a packet, and the packets of a port with its own limit: the only one, and one
/// among ten thousand.
pub fn limits(report: &mut Report, effort: Effort) -> Result<()> {
    for hook in [Hook::Xdp, Hook::Tc] {
        let [without, with] = in_turn(hook, effort, [Kind::Hit(1), Kind::Policed(1)])?;
        let name = format!("test run, {hook:?}: hit under a limit without a queue");
        report.add(with.row(name, "ns").compared_with("without", &with, &without));
        let added = with.differences(&without).row(format!("test run, {hook:?}: what the limit adds"), "ns");
        report.add(if hook == Hook::Xdp { added.at_most(15.0) } else { added });
        let [one, many] = in_turn(hook, effort, [Kind::PolicedPort(1), Kind::PolicedPort(10_000)])?;
        let name = |limits: &str| format!("test run, {hook:?}, a port's limit: {limits}");
        report.add(one.row(name("alone"), "ns"));
        report.add(many.row(name("among 10,000"), "ns").compared_with("alone", &many, &one).ratio_at_most(1.1));
    }
    Ok(())
}

/// Measures two kinds in turn, round by round.
fn in_turn(hook: Hook, effort: Effort, [one, other]: [Kind; 2]) -> Result<[Series; 2]> {
    let mut benches = [prepare(hook, one, 1)?, prepare(hook, other, 1)?];
    let mut nets = <[Series; 2]>::default();
    for _ in 0..effort.rounds {
        for (bench, net) in benches.iter_mut().zip(&mut nets) {
            net.push(net_time(bench, effort, Verdict::Redirect)?);
        }
    }
    Ok(nets)
}

/// Measures packets of every kind of service in turn, with few other services and with many: of established connections, and
/// only new ones.
pub fn services(report: &mut Report, hook: Hook, effort: Effort) -> Result<()> {
    offers(report, hook, effort, Stage::Hit)?;
    offers(report, hook, effort, Stage::Syn)
}

/// Whether the packets belong to known flows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Hit,
    /// As [`Kind::Syn`].
    Syn,
}

fn offers(report: &mut Report, hook: Hook, effort: Effort, stage: Stage) -> Result<()> {
    let kinds = [Offer::Balanced, Offer::Range, Offer::Elastic, Offer::Outward];
    let mut nets: Vec<[Series; 2]> = kinds.iter().map(|_| Default::default()).collect();
    let mut benches = Vec::new();
    for kind in kinds {
        benches.push([offer(hook, stage, kind, 10)?, offer(hook, stage, kind, 10_000)?]);
    }
    for _ in 0..effort.rounds {
        for (benches, nets) in benches.iter_mut().zip(&mut nets) {
            for (bench, net) in benches.iter_mut().zip(nets) {
                net.push(net_time(bench, effort, Verdict::Redirect)?);
            }
        }
    }
    for (kind, [few, many]) in kinds.into_iter().zip(&nets) {
        let what = if stage == Stage::Hit { "hit" } else { "SYN" };
        let name = |count: &str| format!("test run, {hook:?}: {}, {what}, {count} services", kind.name());
        let row = few.row(name("10"), "ns");
        report.add(match kind {
            Offer::Balanced => row,
            _ if stage == Stage::Syn => row.compared_with(Offer::Balanced.name(), few, &nets[0][0]),
            _ => row.compared_with(Offer::Balanced.name(), few, &nets[0][0]).ratio_at_most(1.1),
        });
        report.add(many.row(name("10,000"), "ns").compared_with("10 services", many, few).ratio_at_most(1.1));
    }
    Ok(())
}

/// Number of connections.
const CONNECTIONS: u32 = 1024;

/// The kind of service that the connections belong to.
#[derive(Clone, Copy)]
enum Offer {
    Balanced,
    /// A port forwarding rule of 16 ports.
    Range,
    Elastic,
    /// An elastic IP, by connections that its guest begins.
    Outward,
}

impl Offer {
    fn name(self) -> &'static str {
        match self {
            Self::Balanced => "load balancer",
            Self::Range => "port forwarding",
            Self::Elastic => "elastic IP",
            Self::Outward => "elastic IP, outward",
        }
    }
}

/// Connections to a service of that kind, with this many other elastic IPs and port ranges.
fn offer(hook: Hook, stage: Stage, offer: Offer, others: u32) -> Result<Bench> {
    let guest = Ipv4Addr::new(10, 2, 0, 11);
    let packets = |flags| match offer {
        Offer::Outward => {
            let first = Frame::tcp(SocketAddrV4::new(guest, 1024), ELSEWHERE, flags);
            Packets { first, count: CONNECTIONS, port_bits: 10, to_others: false, scattered: false }
        }
        _ => segments(VIP, CONNECTIONS, flags),
    };
    let buckets = if stage == Stage::Hit { CONNECTIONS } else { CONNECTIONS / 16 };
    let mut bench = Bench::benchmark(hook, buckets, &packets(tcp::SYN))?;
    for other in 0..others {
        let at = |network: Ipv4Addr| Ipv4Addr::from_bits(network.to_bits() + other);
        bench.elastic(at(OTHER_VIPS), at(OTHER_GUESTS), true)?;
        let range = SocketAddrV4::new(at(RANGES), 8000);
        bench.forward(range, TCP, ServiceKey::EXACT - 4, SocketAddrV4::new(guest, 8000))?;
    }
    match offer {
        Offer::Balanced => drop(bench.serve(VIP, TCP, Algorithm::RoundRobin, &[SocketAddrV4::new(guest, 8080)])?),
        Offer::Range => drop(bench.forward(VIP, TCP, ServiceKey::EXACT - 4, SocketAddrV4::new(guest, 8080))?),
        Offer::Elastic | Offer::Outward => drop(bench.elastic(*VIP.ip(), guest, true)?),
    }
    bench.time(CONNECTIONS)?;
    if stage == Stage::Syn {
        return Ok(bench);
    }
    let made = bench.set_states(State::Established)?;
    ensure!(made >= CONNECTIONS * 2 / 100 * 99, "{made} flows of {CONNECTIONS} connections are in the table");
    bench.set_packets(&scattered(packets(tcp::ACK)))?;
    Ok(bench)
}

/// Measures lookups alone, in our table and in the kernel's LRU hash, both with the parsing that they need.
pub fn tables(report: &mut Report, effort: Effort) -> Result<()> {
    for (flows, text) in [(1, "1 flow"), (1 << 16, "65,536 flows"), (1 << 20, "1,048,576 flows")] {
        let (mut own, mut other) = (Series::default(), Series::default());
        let mut ours = prepare(Hook::Xdp, Kind::Hit(flows), 1)?;
        ours.measure_lookups()?;
        let mut lru = Bench::lru(2 << 20, &segments(VIP, flows, tcp::ACK))?;
        lru.time(flows)?;
        lru.set_packets(&scattered(segments(VIP, flows, tcp::ACK)))?;
        for _ in 0..effort.rounds {
            for (bench, net) in [(&mut ours, &mut own), (&mut lru, &mut other)] {
                net.push(net_time(bench, effort, Verdict::Other(XDP_TX)).context(text)?);
            }
        }
        let name = |table: &str| format!("test run, lookup alone, {text}: {table}");
        report.add(other.row(name("LRU_HASH"), "ns"));
        report.add(own.row(name("our table"), "ns").compared_with("LRU_HASH", &own, &other));
    }
    Ok(())
}

/// Return value of the lookup programs if they found the flow.
const XDP_TX: u32 = 3;

fn prepare(hook: Hook, kind: Kind, vips: u32) -> Result<Bench> {
    let (count, buckets) = kind.sizes();
    let to = match kind {
        Kind::Elsewhere => ELSEWHERE,
        Kind::OtherPort => SocketAddrV4::new(*VIP.ip(), 81),
        Kind::Hit(_) | Kind::Policed(_) | Kind::PolicedPort(_) | Kind::Syn(_) | Kind::Opened(_) => VIP,
    };
    let mut bench = Bench::benchmark(hook, buckets, &segments(to, count, tcp::SYN))?;
    let backends: Vec<_> = (10..20).map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080)).collect();
    let numbers = bench.serve(VIP, TCP, Algorithm::RoundRobin, &backends)?;
    let limits = match kind {
        Kind::Policed(_) => 1,
        Kind::PolicedPort(ports) => ports,
        _ => 0,
    };
    for limit in LIMIT..LIMIT + limits {
        bench.set_meter(limit, Meter { rates: [Rate::policed(meter::HIGHEST); 2] })?;
    }
    if limits > 0 {
        let by_port = matches!(kind, Kind::PolicedPort(_));
        numbers.into_iter().try_for_each(|number| bench.bind(number, Binding::new(LIMIT, by_port)))?;
    }
    if let Kind::PolicedPort(ports) = kind {
        for (port, limit) in (VIP.port()..).zip(LIMIT..LIMIT + ports) {
            bench.limit_port(SocketAddrV4::new(*VIP.ip(), port), limit)?;
        }
    }
    for other in 1..vips {
        let vip = Ipv4Addr::from_bits(OTHER_VIPS.to_bits() + other);
        bench.serve(SocketAddrV4::new(vip, VIP.port()), TCP, Algorithm::RoundRobin, &backends[..1])?;
    }
    if let Kind::Hit(_) | Kind::Policed(_) | Kind::PolicedPort(_) = kind {
        bench.time(count)?;
        let made = bench.set_states(State::Established)?;
        ensure!(made >= count * 2 / 100 * 99, "{made} flows of {count} connections are in the table");
        bench.set_packets(&scattered(segments(to, count, tcp::ACK)))?;
    }
    Ok(bench)
}

/// One segment of each of this many connections.
fn segments(to: SocketAddrV4, count: u32, flags: u8) -> Packets {
    Packets { first: Frame::tcp(CLIENTS, to, flags), count, port_bits: 4, to_others: false, scattered: false }
}

/// The same packets in another order than their flows were made in, which a table may keep.
fn scattered(packets: Packets) -> Packets {
    Packets { scattered: true, ..packets }
}
