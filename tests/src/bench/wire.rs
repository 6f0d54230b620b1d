//! Packets on the wire: a generator sends live frames over veth through a router to a sink.
//!
//! ```text
//! generator c0 ── r0 router r1 ── b0 sink (XDP: count, drop)
//! ```
//! Veth's NAPI runs the whole chain on the generator's CPU, so its processor time divided by the packets that arrived is the
//! cost of a packet, independent of other load on the machine. The cost of generating and sinking alone (with the sink on r0)
//! is subtracted. Every way of forwarding gets the same frames, in turn, round by round.

use std::{net::Ipv4Addr, net::SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use vipgate_abi::service::Algorithm;

use super::{Effort, Report, Series};
use crate::{
    lab::Namespace,
    packet::{Bench, Frame, Hook, Packets},
};

const UDP: u8 = 17;
const VIP: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 80);
/// Frames that a live test run sends at a time.
const BATCH: u32 = 64;
const BACKENDS: std::ops::RangeInclusive<u8> = 10..=19;

/// The router's way of forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// No forwarding: the sink is the router's own device.
    Nothing,
    /// One fixed destination without tables: the least cost at this hook.
    Bare(Hook),
    Vipgate(Hook),
    NftablesDnat,
    NftablesJhash,
    Forwarding,
    /// Source NAT: the generator is in the guests' network, the sink outside.
    Masquerade(Hook),
    NftablesMasquerade,
}

use Way::{Bare, Forwarding, Masquerade, NftablesDnat, NftablesJhash, NftablesMasquerade, Nothing, Vipgate};

/// Measures each way in turn, with one flow, with many, and with new flows only.
pub fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let every = [
        Nothing,
        Bare(Hook::Xdp),
        Vipgate(Hook::Xdp),
        Bare(Hook::Tc),
        Vipgate(Hook::Tc),
        Forwarding,
        NftablesDnat,
        NftablesJhash,
    ];
    let under_flood = [Nothing, Vipgate(Hook::Xdp), Vipgate(Hook::Tc), NftablesJhash];
    measure(report, effort, &every, 1, "1 UDP flow", Some(75.0))?;
    measure(report, effort, &every, 1 << 14, "16,384 UDP flows", Some(110.0))?;
    measure(report, effort, &under_flood, 1 << 20, "new UDP flows only", Some(300.0))
}

/// Measures source NAT for connections that guests begin.
pub fn outgoing(report: &mut Report, effort: Effort) -> Result<()> {
    let outgoing = [Nothing, Masquerade(Hook::Xdp), Masquerade(Hook::Tc), NftablesMasquerade];
    measure(report, effort, &outgoing, 1, "1 outgoing UDP flow", None)?;
    measure(report, effort, &outgoing, 1 << 20, "new outgoing UDP flows only", None)
}

fn measure(report: &mut Report, effort: Effort, ways: &[Way], flows: u32, text: &str, goal: Option<f64>) -> Result<()> {
    let wire = Wire::new()?;
    let mut series: Vec<(Way, Series)> = ways.iter().map(|&way| (way, Series::default())).collect();
    for _ in 0..effort.rounds {
        let mut base = 0.0;
        for (way, net) in &mut series {
            let nanoseconds =
                wire.measure(*way, flows, effort.packets).with_context(|| format!("{way:?}, {flows} flows"))?;
            if *way == Nothing {
                base = nanoseconds;
                net.push(nanoseconds);
            } else {
                net.push(nanoseconds - base);
            }
        }
    }
    let of = |wanted| series.iter().find(|(way, _)| *way == wanted).map(|(_, net)| net);
    for (way, net) in &series {
        let row = net.row(format!("wire, {text}: {}", way.name()), "ns");
        let row = match (way, of(Bare(Hook::Tc)), of(NftablesJhash)) {
            (Masquerade(_), ..) => match of(NftablesMasquerade) {
                Some(peer) if flows > 1 => row.compared_with(NftablesMasquerade.name(), net, peer).ratio_at_most(0.5),
                Some(peer) => row.compared_with(NftablesMasquerade.name(), net, peer),
                None => row,
            },
            (Vipgate(Hook::Tc), Some(bare), _) => {
                row.compared_with(Bare(Hook::Tc).name(), net, bare).ratio_at_most(1.25)
            }
            (Vipgate(_), _, Some(jhash)) => row.compared_with(NftablesJhash.name(), net, jhash),
            _ => row,
        };
        report.add(match goal {
            Some(goal) if *way == Vipgate(Hook::Xdp) => row.at_most(goal),
            _ => row,
        });
    }
    Ok(())
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Nothing => "generator and sink alone",
            Bare(Hook::Xdp) => "bare redirect (xdp)",
            Bare(Hook::Tc) => "bare redirect (tc)",
            Vipgate(Hook::Xdp) => "vipgate (xdp)",
            Vipgate(Hook::Tc) => "vipgate (tc)",
            NftablesDnat => "nftables DNAT",
            NftablesJhash => "nftables jhash",
            Forwarding => "plain forwarding",
            Masquerade(Hook::Xdp) => "vipgate source NAT (xdp)",
            Masquerade(Hook::Tc) => "vipgate source NAT (tc)",
            NftablesMasquerade => "nftables masquerade",
        }
    }
}

/// The three hosts.
#[derive(Debug)]
struct Wire {
    generator: Namespace,
    router: Namespace,
    sink: Namespace,
}

impl Wire {
    fn new() -> Result<Self> {
        let namespace = |name: &str| Namespace::new(crate::lab::leftovers::unique(name));
        let wire = Self { generator: namespace("gen")?, router: namespace("rtr")?, sink: namespace("snk")? };
        wire.router.ip(&format!("link add r0 type veth peer name c0 netns {}", wire.generator.name()))?;
        wire.router.ip(&format!("link add r1 type veth peer name b0 netns {}", wire.sink.name()))?;
        wire.router.sysctl("net/ipv4/ip_forward", "1")?;
        for (namespace, device) in
            [(&wire.generator, "c0"), (&wire.router, "r0"), (&wire.router, "r1"), (&wire.sink, "b0")]
        {
            // NAPI on every end: a veth without it accepts no XDP frames.
            namespace.run("ethtool", &format!("-K {device} gro on"))?;
            namespace.ip(&format!("link set {device} up"))?;
        }
        wire.router.ip("link set r0 address 02:00:00:00:01:01")?;
        wire.router.ip("link set r1 address 02:00:00:00:02:01")?;
        wire.router.ip("addr add 10.1.0.1/24 dev r0")?;
        wire.router.ip("addr add 10.2.0.1/24 dev r1")?;
        wire.router.ip(&format!("addr add {}/32 dev r0", Bench::VIP))?;
        wire.router.ip("route add 10.64.0.0/16 via 10.2.0.10")?;
        for host in BACKENDS {
            wire.router.ip(&format!("neigh add 10.2.0.{host} lladdr 02:00:00:00:02:{host:02x} dev r1"))?;
        }
        Ok(wire)
    }

    /// Processor nanoseconds per arrived packet, including the generator's own cost.
    fn measure(&self, way: Way, flows: u32, frames: u32) -> Result<f64> {
        let router = match way {
            Vipgate(hook) => Some(self.router.within(|| vipgate(hook))?),
            Masquerade(hook) => Some(self.router.within(|| masquerade(hook))?),
            Bare(hook) => Some(self.router.within(|| bare(hook))?),
            _ => None,
        };
        self.router.run("nft", "flush ruleset")?;
        if let Some(rules) = rules(way) {
            self.router.run("nft", &rules)?;
        }
        let sink = match way {
            Nothing => self.router.within(|| Bench::sink("r0"))?,
            _ => self.sink.within(|| Bench::sink("b0"))?,
        };
        let to = match way {
            Forwarding => SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 80),
            Masquerade(_) | NftablesMasquerade => OUTSIDE,
            Nothing | Bare(_) | Vipgate(_) | NftablesDnat | NftablesJhash => VIP,
        };
        let nanoseconds = self.generator.within(|| {
            let mut generator = Bench::generator("c0", &packets(flows, to))?;
            // Warm up caches and flow tables: every flow is known when the measurement starts.
            generator.send(flows.max(frames / 8), BATCH)?;
            let before = sink.sunk()?;
            let seconds = generator.send(frames, BATCH)?;
            let arrived = sink.sunk()? - before;
            ensure!(arrived > u64::from(frames) / 100 * 95, "{arrived} of {frames} frames arrived");
            Ok(seconds * 1e9 / arrived as f64)
        })?;
        drop(router);
        Ok(nanoseconds)
    }
}

/// The hook's program on r0, with a UDP listener of ten backends.
fn vipgate(hook: Hook) -> Result<Bench> {
    let mut bench = Bench::in_namespace(hook, 1 << 14)?;
    set_interfaces(&mut bench)?;
    let backends: Vec<_> = BACKENDS.map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080)).collect();
    bench.serve(VIP, UDP, Algorithm::Maglev, &backends)?;
    bench.attach("r0")?;
    Ok(bench)
}

/// The hook's program with source NAT for the generator's network, by the router's address on r1.
fn masquerade(hook: Hook) -> Result<Bench> {
    let mut bench = Bench::in_namespace(hook, 1 << 14)?;
    set_interfaces(&mut bench)?;
    bench.masquerade_by("r1", Ipv4Addr::new(10, 2, 0, 1), GUESTS, false)?;
    bench.attach("r0")?;
    Ok(bench)
}

/// The hook's least possible program on r0.
fn bare(hook: Hook) -> Result<Bench> {
    let mut bench = Bench::bare(hook)?;
    set_interfaces(&mut bench)?;
    bench.attach("r0")?;
    Ok(bench)
}

fn set_interfaces(bench: &mut Bench) -> Result<()> {
    bench.set_interface(1, "r0", Bench::PUBLIC_MAC)?;
    bench.set_interface(2, "r1", Bench::PRIVATE_MAC)
}

/// The peers' rules, as an operator would write them.
fn rules(way: Way) -> Option<String> {
    let translation = match way {
        NftablesDnat => "dnat to 10.2.0.11:8080".to_owned(),
        NftablesJhash => {
            let backends: Vec<_> = (0..).zip(BACKENDS).map(|(slot, host)| format!("{slot} : 10.2.0.{host}")).collect();
            format!(
                "dnat to jhash ip saddr . udp sport mod {} map {{ {} }} : 8080",
                backends.len(),
                backends.join(", ")
            )
        }
        NftablesMasquerade => {
            return Some(
                "table ip nat { chain postrouting { type nat hook postrouting priority srcnat ; oifname r1 masquerade ; } ; }"
                    .to_owned(),
            );
        }
        Nothing | Bare(_) | Vipgate(_) | Masquerade(_) | Forwarding => return None,
    };
    Some(format!(
        "table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat ; ip daddr {} udp dport 80 {translation} ; }} ; }}",
        VIP.ip()
    ))
}

/// The generator's network, and the first host that it asks outside, behind a gateway in the sink's network.
const GUESTS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 1, 0, 0), 24);
const OUTSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 64, 0, 0), 80);

/// Datagrams of this many flows: from many clients to the VIP, or from one guest to many outside hosts, each with its own range
/// of source ports.
fn packets(flows: u32, to: SocketAddrV4) -> Packets {
    let first = Frame::udp(SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 20), 1024), to).payload(&[0; 18]);
    Packets { first, count: flows, port_bits: 10, to_others: to == OUTSIDE, scattered: true }
}
