//! Packets on the wire: a generator's live frames through a router to a sink, over veth.
//!
//! ```text
//! generator c0 ── r0 router r1 ── b0 sink (XDP: count, drop)
//! ```
//! Veth's NAPI runs the whole chain on the generator's CPU, so that its processor time over the packets that arrived is
//! the cost of a packet, whatever else the machine does. The cost of generating and sinking alone (the sink on r0) is
//! subtracted. Every way of forwarding gets the same frames, in turn, round by round.

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
/// Frames a live test run pushes at a time.
const BATCH: u32 = 64;
const BACKENDS: std::ops::RangeInclusive<u8> = 10..=19;

/// How the router forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It does not: the sink is its own device.
    Nothing,
    Vipgate,
    NftablesDnat,
    NftablesJhash,
    Forwarding,
}

/// Measures each way in turn.
pub fn run(report: &mut Report, effort: Effort) -> Result<()> {
    for flows in [1, 1 << 14] {
        let wire = Wire::new()?;
        let ways = [Way::Nothing, Way::Vipgate, Way::Forwarding, Way::NftablesDnat, Way::NftablesJhash];
        let mut series = ways.map(|_| Series::default());
        for _ in 0..effort.rounds {
            let mut base = 0.0;
            for (way, net) in ways.iter().zip(&mut series) {
                let nanoseconds =
                    wire.measure(*way, flows, effort.packets).with_context(|| format!("{way:?}, {flows} flows"))?;
                if *way == Way::Nothing {
                    base = nanoseconds;
                    net.push(nanoseconds);
                } else {
                    net.push(nanoseconds - base);
                }
            }
        }
        let [nothing, vipgate, forwarding, dnat, jhash] = &series;
        let name = |way: &str| format!("wire, {flows} UDP flows: {way}");
        report.add(nothing.row(name("generator and sink alone"), "ns"));
        report.add(forwarding.row(name("plain forwarding"), "ns"));
        report.add(dnat.row(name("nftables DNAT"), "ns"));
        report.add(jhash.row(name("nftables jhash balancing"), "ns"));
        report.add(vipgate.row(name("vipgate (xdp)"), "ns").beside("nftables DNAT", vipgate, dnat));
    }
    Ok(())
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
            // NAPI on every end: without it a device takes no XDP frames.
            namespace.run("ethtool", &format!("-K {device} gro on"))?;
            namespace.ip(&format!("link set {device} up"))?;
        }
        wire.router.ip("link set r0 address 02:00:00:00:01:01")?;
        wire.router.ip("link set r1 address 02:00:00:00:02:01")?;
        wire.router.ip("addr add 10.1.0.1/24 dev r0")?;
        wire.router.ip("addr add 10.2.0.1/24 dev r1")?;
        wire.router.ip(&format!("addr add {}/32 dev r0", Bench::VIP))?;
        for host in BACKENDS {
            wire.router.ip(&format!("neigh add 10.2.0.{host} lladdr 02:00:00:00:02:{host:02x} dev r1"))?;
        }
        Ok(wire)
    }

    /// Processor nanoseconds a packet that arrived, the generator's own cost included.
    fn measure(&self, way: Way, flows: u32, frames: u32) -> Result<f64> {
        let router = match way {
            Way::Vipgate => Some(self.router.within(vipgate)?),
            _ => None,
        };
        self.router.run("nft", "flush ruleset")?;
        if let Some(rules) = rules(way) {
            self.router.run("nft", &rules)?;
        }
        let sink = match way {
            Way::Nothing => self.router.within(|| Bench::sink("r0"))?,
            _ => self.sink.within(|| Bench::sink("b0"))?,
        };
        let to = if way == Way::Forwarding { SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 80) } else { VIP };
        let nanoseconds = self.generator.within(|| {
            let mut generator = Bench::generator("c0", &packets(flows, to))?;
            // Warms caches and flow tables up: every flow is known when the count starts.
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

/// The XDP program on r0, with a UDP listener of ten backends.
fn vipgate() -> Result<Bench> {
    let mut bench = Bench::in_namespace(Hook::Xdp, 1 << 14)?;
    bench.set_port(1, "r0", Bench::PUBLIC_MAC)?;
    bench.set_port(2, "r1", Bench::PRIVATE_MAC)?;
    let backends: Vec<_> = BACKENDS.map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080)).collect();
    bench.serve(VIP, UDP, Algorithm::Maglev, &backends)?;
    bench.attach("r0")?;
    Ok(bench)
}

/// The peers' rules, as an operator would write them.
fn rules(way: Way) -> Option<String> {
    let translation = match way {
        Way::NftablesDnat => "dnat to 10.2.0.11:8080".to_owned(),
        Way::NftablesJhash => {
            let backends: Vec<_> = (0..).zip(BACKENDS).map(|(slot, host)| format!("{slot} : 10.2.0.{host}")).collect();
            format!(
                "dnat to jhash ip saddr . udp sport mod {} map {{ {} }} : 8080",
                backends.len(),
                backends.join(", ")
            )
        }
        Way::Nothing | Way::Vipgate | Way::Forwarding => return None,
    };
    Some(format!(
        "table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat ; ip daddr {} udp dport 80 {translation} ; }} ; }}",
        VIP.ip()
    ))
}

/// So many flows' datagrams.
fn packets(flows: u32, to: SocketAddrV4) -> Packets {
    let first = Frame::udp(SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 20), 1024), to).payload(&[0; 18]);
    Packets { first, count: flows, port_bits: 10 }
}
