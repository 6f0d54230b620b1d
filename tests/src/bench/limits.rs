//! Bandwidth limits: throughput, queueing delay, and the effect on other traffic, compared with the kernel's own shapers.
//!
//! ```text
//! client eth0 ── pub0 router priv0 ── eth0 guest
//! ```
//! The wires and their offloads are as in `peers`. The limited traffic goes from the client to the guest. For
//! vipgate it goes to the guest's elastic IP, whose inbound bandwidth is limited through the REST API; for its peers, which
//! only forward, to the guest's own address. The peers shape where the existing router does: ingress of the public device is
//! redirected to an ifb. HTB has that router's settings (rate = ceil, burst 15k), except that its leaf is a FIFO as long as a
//! device's queue; that router has SFQ, under which a ping does not wait for other flows. TBF has a burst of 10 ms and a
//! latency of 50 ms.
//!
//! A figure is what arrives in a window of time after the traffic has run for a while: UDP in bits on the wire, TCP in payload
//! compared with what full segments at the limit would carry. vipgate serves its queues a little faster than their limits
//! (`net::queue` of the agent) until they have drained what the first burst left in them, which a window of the first
//! seconds would show.
//!
//! Flows compete for a limit only if they can fill its queue. At TC the senders here cannot do so at high limits: they share
//! the router's kernel, where TCP small queues let each have little more than a millisecond's packets in flight, so a fast
//! flow stays fast under any limit. XDP gets copies, which TCP small queues do not count.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use reqwest::Method;
use serde_json::json;

use super::{
    Curve, Effort, Report, Row, Series,
    control::call,
    peers::{plug_straight, remove, set_offloads, start_as_shipped},
    traffic::{BBR, CUBIC, DATAGRAM, FRAME, SEGMENT, Traffic},
};
use crate::lab::{
    Cloud, Controller, Hook, Host, Lab, LabOptions, host::ECHO_PORT, topology::PUBLIC_DEVICE, wait_until,
};

/// The limited VIP, and another one.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 50);
const BYSTANDER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 51);
const PORT: u16 = 5201;
const BYSTANDER_PORT: u16 = 5202;

/// A megabit as the API and the existing router count it.
const MEGABIT: u64 = 1 << 20;
const LIMITS: [(u64, &str); 5] = [
    (MEGABIT, "1 Mbit/s"),
    (10 * MEGABIT, "10 Mbit/s"),
    (100 * MEGABIT, "100 Mbit/s"),
    (1000 * MEGABIT, "1 Gbit/s"),
    (5000 * MEGABIT, "5 Gbit/s"),
];
/// Rounds of throughput, whose windows are long.
const ROUNDS: u32 = 5;
/// Rounds of a bystander's figures, as a multiple of the others': they vary more.
const BYSTANDER_ROUNDS: u32 = 3;
/// The limit for pings and bystanders.
const SLOW: u64 = 10 * MEGABIT;

/// The highest limit for datagrams: no sender here is faster.
const MOST_DATAGRAMS: u64 = 1000 * MEGABIT;

/// Time before the window: as long as this many frames take, so that slow start and the first burst are over.
const RAMP: Duration = Duration::from_millis(750);
const RAMP_FRAMES: u32 = 150;
/// The same for datagrams, which fill a limit immediately; their window is also half as long.
const UDP_RAMP: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(20);
/// Rate of the datagrams sent, relative to the limit.
const EXCESS: f64 = 1.25;
/// A ratio that rounds to 1.00: a smaller difference does not count.
const EQUAL: f64 = 0.995;

/// What enforces the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Vipgate(Hook),
    Htb,
    Tbf,
}

impl Way {
    const ALL: [Self; 4] = [Self::Vipgate(Hook::Xdp), Self::Vipgate(Hook::Tc), Self::Htb, Self::Tbf];

    fn name(self) -> String {
        match self {
            Self::Vipgate(hook) => format!("vipgate ({hook})"),
            Self::Htb => "HTB".to_owned(),
            Self::Tbf => "TBF".to_owned(),
        }
    }

    fn is_peer(self) -> bool {
        !matches!(self, Self::Vipgate(_))
    }
}

/// The traffic: a number of TCP flows with a congestion control, or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Tcp(u32, &'static str),
    Udp,
}

impl Load {
    const ALL: [Self; 4] = [Self::Tcp(1, CUBIC), Self::Tcp(1, BBR), MANY, Self::Udp];

    fn name(self) -> String {
        match self {
            Self::Tcp(flows, control) => format!("TCP goodput to the ideal, {flows} x {control}"),
            Self::Udp => "UDP on the wire to the limit".to_owned(),
        }
    }

    /// The throughput in percent of what the limit allows.
    fn percent(self, rate: f64, limit: u64) -> f64 {
        let payload = match self {
            Self::Tcp(..) => SEGMENT,
            Self::Udp => DATAGRAM,
        };
        100.0 * rate / ideal(limit, payload)
    }
}

/// Number of flows in figures of several.
const FLOWS: u32 = 8;
const MANY: Load = Load::Tcp(FLOWS, CUBIC);
/// Least share of each flow, relative to an equal part.
const LEAST: f64 = 25.0;

/// Bits of payload per second that full frames at the limit carry.
fn ideal(limit: u64, payload: u32) -> f64 {
    limit as f64 * f64::from(payload) / f64::from(FRAME)
}

/// Measures the effects of limits on traffic.
pub fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let room = Room::new()?;
    accuracy(report, effort, &room)?;
    changes(report, effort, &room)
}

/// Rounds of a figure by way.
type ByWay = Vec<(Way, Series)>;

fn by_way() -> ByWay {
    Way::ALL.iter().map(|&way| (way, Series::default())).collect()
}

/// The peer with the best median.
fn best_peer(of: &ByWay) -> Option<(Way, &Series)> {
    let peers = of.iter().filter(|(way, _)| way.is_peer()).map(|(way, series)| (*way, series));
    peers.max_by(|(_, one), (_, other)| one.median().total_cmp(&other.median()))
}

/// Measures every load through every limit by each way in turn, and pings through one of the limits.
fn accuracy(report: &mut Report, effort: Effort, room: &Room) -> Result<()> {
    let window = Duration::from_secs(u64::from(effort.seconds + 1));
    // The highest limit needs a machine with enough processor time.
    let limits = if effort.seconds > 1 { &LIMITS[..] } else { &LIMITS[..4] };
    let mut figures: Vec<Vec<ByWay>> = limits.iter().map(|_| Load::ALL.iter().map(|_| by_way()).collect()).collect();
    let (mut pings, mut leasts) = (by_way(), limits.iter().map(|_| by_way()).collect::<Vec<_>>());
    for _ in 0..ROUNDS {
        for (column, way) in Way::ALL.into_iter().enumerate() {
            let opened = room.open(way).with_context(|| way.name())?;
            for ((&(limit, name), figures), leasts) in limits.iter().zip(&mut figures).zip(&mut leasts) {
                for (load, figures) in Load::ALL.into_iter().zip(figures) {
                    if load == Load::Udp && limit > MOST_DATAGRAMS {
                        continue;
                    }
                    let with_ping = limit == SLOW && load == MANY;
                    let measured = room
                        .measure(&opened, load, limit, window, with_ping)
                        .with_context(|| format!("{}: {}, {name}", load.name(), way.name()))?;
                    figures[column].1.push(measured.percent);
                    if load == MANY {
                        leasts[column].1.push(measured.least);
                    }
                    measured.pings.into_iter().for_each(|time| pings[column].1.push(time));
                }
            }
            room.close(opened)?;
        }
    }
    for (place, load) in Load::ALL.into_iter().enumerate() {
        for ((_, limit), figures) in limits.iter().zip(&figures) {
            let best = best_peer(&figures[place]);
            for (way, series) in figures[place].iter().filter(|(_, series)| !series.is_empty()) {
                let row = series.row(format!("limits, {}: {limit}, {}", load.name(), way.name()), "%");
                report.add(match (way, load, best) {
                    (Way::Vipgate(_), Load::Udp, _) => row.at_least(99.0).at_most(100.5),
                    (Way::Vipgate(_), Load::Tcp(..), Some((peer, best))) => {
                        row.at_least(98.0).compared_with(peer.name(), series, best).ratio_at_least(EQUAL)
                    }
                    _ => row,
                });
            }
        }
    }
    for ((_, limit), leasts) in limits.iter().zip(&leasts) {
        for (way, series) in leasts {
            let row = series.row(format!("limits, least of 8 flows to its part: {limit}, {}", way.name()), "%");
            report.add(if way.is_peer() { row } else { row.at_least(LEAST) });
        }
    }
    for (way, series) in &pings {
        let row = series.row(format!("limits, ping through a full 10 Mbit/s: {}", way.name()), "ms");
        report.add(if way.is_peer() { row } else { row.at_most(60.0) });
    }
    Ok(())
}

/// Measures another VIP's throughput and latency: alone, while a limit is full, and while the same traffic is not limited. Hosts
/// and router share the machine, so that other traffic costs the bystander something in any case.
pub fn bystanders(report: &mut Report, effort: Effort) -> Result<()> {
    let room = Room::new()?;
    let window = Duration::from_secs(u64::from(effort.seconds));
    for hook in [Hook::Xdp, Hook::Tc] {
        let opened = room.open(Way::Vipgate(hook))?;
        let mut series = <[[Series; 2]; 3]>::default();
        let [alone, limited, free] = &mut series;
        for _ in 0..effort.rounds * BYSTANDER_ROUNDS {
            room.limit(&opened, SLOW)?;
            room.bystander(alone, window)?;
            let full = room.start(&opened, MANY, SLOW)?;
            room.bystander(limited, window)?;
            full.end()?;
            room.remove_limit(&opened)?;
            let to = opened.target(&room);
            let as_much = Traffic::trickle(room.lab.client(), room.guest(), to, FLOWS, SLOW as f64)?;
            room.bystander(free, window)?;
            as_much.end()?;
        }
        room.close(opened)?;
        let [throughput, trip]: [fn(Row) -> Row; 2] = [|row| row.ratio_at_least(0.95), |row| row.ratio_at_most(1.05)];
        let kinds = [("TCP", "Gbit/s", throughput), ("round trip", "us", trip)];
        for (place, (what, unit, with_goal)) in kinds.into_iter().enumerate() {
            let [alone, limited, free] = series.each_ref().map(|kinds| &kinds[place]);
            let row = |series: &Series, when: &str| {
                series.row(format!("limits, another VIP's {what}: {when}, vipgate ({hook})"), unit)
            };
            report.add(row(alone, "alone"));
            report.add(with_goal(row(limited, "beside a full 10 Mbit/s limit").compared_with("alone", limited, alone)));
            report.add(row(free, "beside 10 Mbit/s without a limit").compared_with("alone", free, alone));
        }
    }
    Ok(())
}

/// The limit's steps in Mbit/s.
const STEPS: [u64; 3] = [20, 80, 40];
/// Interval between samples of what has arrived.
const TICK: Duration = Duration::from_millis(100);
/// Samples of a step, for each of an effort's seconds.
const TICKS: u32 = 24;

/// Measures one flow while its limit changes: its rate over time, and at the end of each step relative to the limit.
fn changes(report: &mut Report, effort: Effort, room: &Room) -> Result<()> {
    let ticks = TICKS * effort.seconds;
    let mut allowed = Vec::new();
    for hook in [Hook::Xdp, Hook::Tc] {
        let opened = room.open(Way::Vipgate(hook))?;
        room.limit(&opened, STEPS[0] * MEGABIT)?;
        let traffic = room.start(&opened, Load::Tcp(1, CUBIC), STEPS[0] * MEGABIT)?;
        let start = Instant::now();
        let mut points = Vec::new();
        let mut steps = Vec::new();
        allowed.clear();
        for (number, step) in STEPS.into_iter().enumerate() {
            if number > 0 {
                room.remove_limit(&opened)?;
                room.limit(&opened, step * MEGABIT)?;
            }
            let megabits = ideal(step, SEGMENT);
            allowed.push((start.elapsed().as_secs_f64(), megabits));
            let mut before = traffic.arrived();
            let mut settled = before.clone();
            for tick in 0..ticks {
                sleep(TICK);
                let now = traffic.arrived();
                points.push((start.elapsed().as_secs_f64(), now.rate_since(&before) / MEGABIT as f64));
                if tick == ticks / 2 {
                    settled = now.clone();
                }
                before = now;
            }
            allowed.push((start.elapsed().as_secs_f64(), megabits));
            steps.push(Load::Tcp(1, CUBIC).percent(before.rate_since(&settled), step * MEGABIT));
        }
        traffic.end()?;
        room.remove_limit(&opened)?;
        room.close(opened)?;
        let way = Way::Vipgate(hook).name();
        for (step, percent) in STEPS.into_iter().zip(steps) {
            let mut series = Series::default();
            series.push(percent);
            report.add(series.row(format!("limits, changed while in use: {step} Mbit/s, {way}"), "%").at_least(98.0));
        }
        report.add_curve(Curve { name: format!("{CHANGED}: {way}"), unit: "Mbit/s", points });
    }
    report.add_curve(Curve { name: format!("{CHANGED}: the ideal"), unit: "Mbit/s", points: allowed });
    Ok(())
}

const CHANGED: &str = "TCP goodput while the limit changes";

/// Results of a load in one window.
#[derive(Debug)]
struct Measured {
    /// Throughput in percent of what the limit allows.
    percent: f64,
    /// Throughput of the slowest flow in percent of an equal part.
    least: f64,
    /// Milliseconds of each ping, if pings were sent.
    pings: Vec<f64>,
}

/// The hosts and their records in the store.
#[derive(Debug)]
struct Room {
    cloud: Cloud,
    vip: String,
    lab: Lab,
}

/// A way that is open.
#[derive(Debug)]
struct Opened {
    way: Way,
    vipgate: Option<(Controller, Cloud)>,
}

impl Opened {
    fn target(&self, room: &Room) -> SocketAddrV4 {
        let address = if self.way.is_peer() { room.guest().address } else { VIP };
        SocketAddrV4::new(address, PORT)
    }
}

impl Room {
    fn new() -> Result<Self> {
        let lab = Lab::new(LabOptions { hook: Hook::Auto, clients: 1, backends: 1 })?;
        plug_straight(&lab)?;
        let controller = start_as_shipped(&lab, Hook::Auto)?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let vip = cloud.vip(VIP)?;
        for vip in [&vip, &cloud.vip(BYSTANDER)?] {
            cloud.elastic(vip, 0)?;
        }
        remove(&lab, controller)?;
        Ok(Self { cloud, vip, lab })
    }

    fn guest(&self) -> &Host {
        &self.lab.backends[0]
    }

    fn open(&self, way: Way) -> Result<Opened> {
        set_offloads(&self.lab, way == Way::Vipgate(Hook::Xdp))?;
        let vipgate = match way {
            Way::Vipgate(hook) => {
                let controller = start_as_shipped(&self.lab, hook)?;
                let api = controller.api(&self.lab.router)?;
                Some((controller, Cloud { api, ..self.cloud.clone() }))
            }
            Way::Htb | Way::Tbf => None,
        };
        let opened = Opened { way, vipgate };
        let echo = SocketAddrV4::new(*opened.target(self).ip(), ECHO_PORT);
        wait_until("the way to be open", PATIENCE, || self.lab.client().tcp(echo)?.ask())?;
        Ok(opened)
    }

    fn close(&self, opened: Opened) -> Result<()> {
        opened.vipgate.map_or(Ok(()), |(controller, _)| remove(&self.lab, controller))
    }

    /// Limits the traffic to the guest.
    fn limit(&self, opened: &Opened, bits: u64) -> Result<()> {
        if let Some((_, cloud)) = &opened.vipgate {
            let limit = json!({ "setVipQos": { "inboundBandwidth": bits } });
            call(&cloud.api, Method::PUT, &format!("/vips/{}/actions", self.vip), Some(&limit))?;
            return Ok(());
        }
        let router = &self.lab.router;
        router.ip("link add ifb0 txqueuelen 1000 type ifb")?;
        router.ip("link set ifb0 up")?;
        if opened.way == Way::Htb {
            router.run("tc", "qdisc add dev ifb0 root handle 1: htb default 10")?;
            router.run(
                "tc",
                &format!("class add dev ifb0 parent 1: classid 1:10 htb rate {bits}bit ceil {bits}bit burst 15k"),
            )?;
        } else {
            // A burst smaller than a frame would let no frame pass.
            let burst = (bits / 8 / 100).max(2 * u64::from(FRAME));
            router.run("tc", &format!("qdisc add dev ifb0 root tbf rate {bits}bit burst {burst} latency 50ms"))?;
        }
        router.run("tc", &format!("qdisc add dev {PUBLIC_DEVICE} ingress"))?;
        let everything = "parent ffff: protocol ip u32 match u32 0 0";
        let redirect = "action mirred egress redirect dev ifb0";
        router.run("tc", &format!("filter add dev {PUBLIC_DEVICE} {everything} {redirect}"))?;
        Ok(())
    }

    fn remove_limit(&self, opened: &Opened) -> Result<()> {
        if let Some((_, cloud)) = &opened.vipgate {
            call(&cloud.api, Method::DELETE, &format!("/vips/{}/vip-qos", self.vip), None)?;
            return Ok(());
        }
        self.lab.router.run("tc", &format!("qdisc del dev {PUBLIC_DEVICE} ingress"))?;
        self.lab.router.ip("link del ifb0")?;
        Ok(())
    }

    /// Starts traffic that fills the limit.
    fn start(&self, opened: &Opened, load: Load, limit: u64) -> Result<Traffic> {
        let (client, guest, to) = (self.lab.client(), self.guest(), opened.target(self));
        Ok(match load {
            Load::Tcp(flows, control) => {
                let traffic = Traffic::tcp(client, guest, to, flows, control)?;
                sleep(RAMP + RAMP_FRAMES * Duration::from_secs_f64(f64::from(8 * FRAME) / limit as f64));
                traffic
            }
            Load::Udp => {
                let traffic = Traffic::udp(client, guest, to, limit as f64 * EXCESS)?;
                sleep(UDP_RAMP);
                traffic
            }
        })
    }

    fn measure(&self, opened: &Opened, load: Load, limit: u64, window: Duration, with_ping: bool) -> Result<Measured> {
        // New traffic each time: a long queue still holds the last one's.
        self.limit(opened, limit)?;
        let traffic = self.start(opened, load, limit)?;
        let before = traffic.arrived();
        let pings = if with_ping { self.ping(opened, window)? } else { Vec::new() };
        if !with_ping {
            sleep(if load == Load::Udp { window / 2 } else { window });
        }
        let after = traffic.arrived();
        traffic.end()?;
        self.remove_limit(opened)?;
        let percent = load.percent(after.rate_since(&before), limit);
        Ok(Measured { percent, least: 100.0 * after.least_since(&before), pings })
    }

    /// Pings five times a second; returns the milliseconds of each answered ping.
    fn ping(&self, opened: &Opened, window: Duration) -> Result<Vec<f64>> {
        let (count, to) = (window.as_millis() / 200, *opened.target(self).ip());
        let said = self.lab.client().namespace.run("ping", &format!("-n -c {count} -i 0.2 -W 3 {to}"))?;
        let times = said.lines().filter_map(|line| line.split_once(" time=")?.1.strip_suffix(" ms"));
        times.map(|time| time.parse().with_context(|| format!("not ping's output: {said}"))).collect()
    }

    /// Adds the other VIP's throughput in Gbit/s and its round trip in microseconds to the series.
    fn bystander(&self, [throughput, trip]: &mut [Series; 2], window: Duration) -> Result<()> {
        let to = SocketAddrV4::new(BYSTANDER, BYSTANDER_PORT);
        let traffic = Traffic::tcp(self.lab.client(), self.guest(), to, 1, CUBIC)?;
        sleep(RAMP);
        throughput.push(traffic.rate(window) / 1e9);
        traffic.end()?;
        let mut session = self.lab.client().tcp(SocketAddrV4::new(BYSTANDER, ECHO_PORT))?;
        let mut asked = Series::default();
        let end = Instant::now() + window / 2;
        while Instant::now() < end {
            let start = Instant::now();
            session.ask()?;
            asked.push(start.elapsed().as_secs_f64() * 1e6);
        }
        trip.push(asked.median());
        Ok(())
    }
}
