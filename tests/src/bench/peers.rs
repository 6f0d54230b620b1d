//! What whole connections cost: one client, the router and one backend, with every way from the client to the backend.
//!
//! ```text
//! client eth0 ── pub0 router priv0 ── eth0 backend (nginx with one worker, iperf3)
//! ```
//! The wires are veth pairs of MTU 1500 without switches in between, with the kernel's default offloads. Native XDP needs ends
//! that compute checksums themselves and poll (`tx off`, `gro on`), which disables their segmentation offload: the name of
//! that way says so. vipgate is the controller as an operator runs it, with the default size of its tables. HAProxy runs in
//! TCP mode with two threads, as many as the machine has processors, and may splice. nftables has one rule, with connection
//! tracking.
//!
//! Processor time is that of the involved processes (the generator, the server, the proxy or the controller) and of ksoftirqd.
//! Over veth the kernel forwards on the sender's time, so this covers the whole path and nothing else on the machine. Each
//! way's figure includes the same cost of the ends, so the ratios are smaller than those of the routers alone.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use super::{Effort, Report, Series};
use crate::lab::{
    CHECKED_BY_WEB, Cloud, Controller, Hook, Lab, LabOptions, Listener, Namespace, Process, WEB,
    host::HTTP_PORT,
    topology::{PRIVATE_DEVICE, PRIVATE_ROUTER, PUBLIC_DEVICE, PUBLIC_ROUTER},
    wait_until,
};

/// iperf3's port.
pub(super) const BULK_PORT: u16 = 5201;
const BULK: Listener = Listener {
    protocol: "tcp",
    port: BULK_PORT,
    instance_port: BULK_PORT,
    algorithm: "roundrobin",
    tags: CHECKED_BY_WEB,
};
/// vipgate's VIP; its peers serve the router's own address.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 50);
const PATIENCE: Duration = Duration::from_secs(20);
/// Settings of the lab's small tables: without them the controller takes its defaults.
const DEFAULTS: [&str; 9] = [
    "env",
    "-u",
    "VIPGATE_DATAPATH_FLOWS",
    "-u",
    "VIPGATE_DATAPATH_SERVICES",
    "-u",
    "VIPGATE_DATAPATH_BACKENDS",
    "-u",
    "VIPGATE_DATAPATH_RING_ELEMENTS",
];

/// The way from the client to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// vipgate with the hook that `auto` chooses: TC on veth.
    Vipgate,
    VipgateXdp,
    NftablesDnat,
    HaProxy,
    /// Plain forwarding to the backend's own address.
    Forwarding,
}

impl Way {
    pub(super) const ALL: [Self; 5] =
        [Self::Vipgate, Self::VipgateXdp, Self::NftablesDnat, Self::HaProxy, Self::Forwarding];

    fn name(self) -> &'static str {
        match self {
            Self::Vipgate => "vipgate (auto: tc)",
            Self::VipgateXdp => "vipgate (xdp; ends tx off, gro on)",
            Self::NftablesDnat => "nftables DNAT",
            Self::HaProxy => "HAProxy, TCP mode",
            Self::Forwarding => "plain forwarding",
        }
    }
}

/// Starts the controller as [`Lab::start_controller`] does, but with default tables and with little logging.
pub(super) fn start_as_shipped(lab: &Lab, hook: Hook) -> Result<Controller> {
    let hook = format!("VIPGATE_HOOK={hook}");
    let wrapper: Vec<&str> = DEFAULTS.into_iter().chain(["VIPGATE_LOG_FILTER=info", hook.as_str()]).collect();
    Controller::start_as(lab, &wrapper)
}

/// Stops the controller and removes its pins, so that nothing is left in the kernel.
pub(super) fn remove(lab: &Lab, controller: Controller) -> Result<()> {
    let status = controller.stop()?;
    ensure!(status.success(), "vipgate ended with {status}");
    let path = lab.bpffs.path();
    fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    wait_until("the programs to be off the devices", PATIENCE, || {
        let found = lab.router.run("bpftool", "net")?;
        ensure!(!found.contains(&format!("{PUBLIC_DEVICE}(")), "there are still programs: {found}");
        Ok(())
    })
}

/// The hosts. Dropped in this order: processes on them first.
#[derive(Debug)]
pub(super) struct Room {
    iperf: Process,
    /// Process ids of ksoftirqd.
    ksoftirqd: Vec<u32>,
    lab: Lab,
}

/// A way that is open.
#[derive(Debug)]
struct Opened {
    controller: Option<Controller>,
    proxy: Option<Process>,
    address: Ipv4Addr,
}

/// The result of a round.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Number of units done, and the seconds that they took.
    pub(crate) done: f64,
    pub(crate) seconds: f64,
    /// 99th percentile of the latency in ms, if it is measured.
    pub(super) p99: Option<f64>,
}

/// A measurement that is made by every way.
pub(super) struct Case<'a> {
    pub(super) name: &'a str,
    pub(super) port: u16,
    pub(super) units: [&'static str; 2],
    /// Makes requests from the client's namespace.
    pub(super) ask: &'a dyn Fn(&Room, SocketAddrV4) -> Result<Sample>,
}

#[derive(Debug, Default)]
struct Figures {
    by_time: Series,
    by_processor: Series,
    p99: Series,
}

/// Measures all cases by each way in turn, round by round.
pub(super) fn compare(report: &mut Report, effort: Effort, cases: &[Case<'_>]) -> Result<()> {
    let room = Room::new()?;
    let mut figures: Vec<Vec<Figures>> =
        cases.iter().map(|_| Way::ALL.iter().map(|_| Figures::default()).collect()).collect();
    for _ in 0..effort.rounds {
        for (column, &way) in Way::ALL.iter().enumerate() {
            let opened = room.open(way).with_context(|| way.name())?;
            for (case, figures) in cases.iter().zip(&mut figures) {
                let (sample, processor) =
                    room.measure(&opened, case).with_context(|| format!("{}: {}", case.name, way.name()))?;
                let figures = &mut figures[column];
                figures.by_time.push(sample.done / sample.seconds);
                figures.by_processor.push(sample.done / processor);
                if let Some(p99) = sample.p99 {
                    figures.p99.push(p99);
                }
            }
            room.close(opened)?;
        }
    }
    for (case, figures) in cases.iter().zip(&figures) {
        show(report, case, figures);
    }
    Ok(())
}

fn show(report: &mut Report, case: &Case<'_>, figures: &[Figures]) {
    let rows = || Way::ALL.into_iter().zip(figures);
    let of = |wanted| rows().find(|(way, _)| *way == wanted).map(|(_, figures)| &figures.by_processor);
    let name = case.name;
    for (way, figures) in rows() {
        report.add(figures.by_time.row(format!("{name}: {}", way.name()), case.units[0]));
    }
    for (way, figures) in rows() {
        let own = &figures.by_processor;
        let row = own.row(format!("{name}: {}", way.name()), case.units[1]);
        let nftables = Way::NftablesDnat;
        report.add(match of(nftables) {
            Some(other) if way == Way::Vipgate => row.compared_with(nftables.name(), own, other).ratio_at_least(1.0),
            Some(other) if way == Way::VipgateXdp => row.compared_with(nftables.name(), own, other),
            _ => row,
        });
    }
    if let (Some(own), Some(other)) = (of(Way::Vipgate), of(Way::HaProxy)) {
        let row = own.row(format!("{name}, beside HAProxy: {}", Way::Vipgate.name()), case.units[1]);
        report.add(row.compared_with(Way::HaProxy.name(), own, other).ratio_at_least(1.7));
    }
    for (way, figures) in rows().filter(|(_, figures)| !figures.p99.is_empty()) {
        report.add(figures.p99.row(format!("{name}, p99: {}", way.name()), "ms"));
    }
}

impl Room {
    fn new() -> Result<Self> {
        let lab = Lab::new(LabOptions { hook: Hook::Auto, clients: 1, backends: 1 })?;
        plug_straight(&lab)?;
        let (client, backend) = (lab.client(), &lab.backends[0]);
        for namespace in [&client.namespace, &lab.router, &backend.namespace] {
            // Otherwise the side that closes first runs out of ports after some seconds.
            namespace.sysctl("net/ipv4/tcp_max_tw_buckets", "8")?;
        }
        let mut command = backend.namespace.command("iperf3");
        command.args(["--server", "--port", &BULK_PORT.to_string()]);
        let iperf = Process::start("iperf3", &command, lab.directory())?;

        let controller = start_as_shipped(&lab, Hook::Auto)?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let (_, balancer) = cloud.load_balancer(VIP)?;
        for listener in [WEB, BULK] {
            cloud.add_backends(&cloud.listener(&balancer, listener)?, &[0])?;
        }
        remove(&lab, controller)?;
        Ok(Self { iperf, ksoftirqd: ksoftirqd()?, lab })
    }

    pub(super) fn client(&self) -> &Namespace {
        &self.lab.client().namespace
    }

    /// Connections that the backend has accepted since it was started.
    pub(super) fn accepted(&self) -> Result<u64> {
        self.lab.backends[0].namespace.within(|| {
            let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
            let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
            let (names, values) = (lines.next().context("no TCP counters")?, lines.next().context("no TCP counters")?);
            let found = names.zip(values).find(|(name, _)| *name == "PassiveOpens");
            Ok(found.context("no PassiveOpens")?.1.parse()?)
        })
    }

    fn open(&self, way: Way) -> Result<Opened> {
        set_offloads(&self.lab, way == Way::VipgateXdp)?;
        let mut opened = Opened { controller: None, proxy: None, address: PUBLIC_ROUTER };
        let backend = self.lab.backends[0].address;
        match way {
            Way::Vipgate | Way::VipgateXdp => {
                let hook = if way == Way::Vipgate { Hook::Auto } else { Hook::Xdp };
                opened.controller = Some(start_as_shipped(&self.lab, hook)?);
                opened.address = VIP;
            }
            Way::NftablesDnat => {
                self.lab.router.run("nft", &format!(
                    "table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat ; ip daddr {PUBLIC_ROUTER} tcp dport {{ {HTTP_PORT}, {BULK_PORT} }} dnat to {backend} ; }} ; }}",
                ))?;
            }
            Way::HaProxy => opened.proxy = Some(self.start_proxy(backend)?),
            Way::Forwarding => opened.address = backend,
        }
        let web = SocketAddrV4::new(opened.address, HTTP_PORT);
        wait_until("the way to be open", PATIENCE, || self.lab.client().fetch(web))?;
        Ok(opened)
    }

    fn start_proxy(&self, backend: Ipv4Addr) -> Result<Process> {
        let services = [HTTP_PORT, BULK_PORT]
            .map(|port| format!("listen port{port}\n  bind {PUBLIC_ROUTER}:{port}\n  server one {backend}:{port}\n"));
        let configuration = format!(
            "global\n  nbthread 2\n  maxconn 4000\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  \
             timeout client 60s\n  timeout server 60s\n{}",
            services.concat()
        );
        let path = self.lab.directory().join("haproxy.cfg");
        fs::write(&path, configuration).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = self.lab.router.command("haproxy");
        command.arg("-db").arg("-f").arg(path);
        Process::start("haproxy", &command, self.lab.directory())
    }

    fn close(&self, opened: Opened) -> Result<()> {
        drop(opened.proxy);
        self.lab.router.run("nft", "flush ruleset")?;
        opened.controller.map_or(Ok(()), |controller| remove(&self.lab, controller))
    }

    /// Runs the case; returns its result and the processor seconds used.
    fn measure(&self, opened: &Opened, case: &Case<'_>) -> Result<(Sample, f64)> {
        let servers = [Some(self.iperf.id()), self.lab.backends[0].web_id()];
        let between = [opened.controller.as_ref().map(Controller::id), opened.proxy.as_ref().map(Process::id)];
        let ids: Vec<u32> =
            servers.into_iter().chain(between).flatten().chain(self.ksoftirqd.iter().copied()).collect();
        let before = running(&ids)? + ended()?;
        let sample = (case.ask)(self, SocketAddrV4::new(opened.address, case.port))?;
        Ok((sample, running(&ids)? + ended()? - before))
    }
}

/// Connects the first client and the first backend directly to the router, without switches.
pub(super) fn plug_straight(lab: &Lab) -> Result<()> {
    let (client, backend) = (lab.client(), &lab.backends[0]);
    wire(&lab.router, PUBLIC_DEVICE, PUBLIC_ROUTER, &client.namespace, client.address)?;
    wire(&lab.router, PRIVATE_DEVICE, PRIVATE_ROUTER, &backend.namespace, backend.address)?;
    backend.namespace.ip(&format!("link set eth0 address {}", backend.mac))?;
    Ok(())
}

/// Sets the ends' offloads to the kernel's defaults, or to what native XDP needs.
pub(super) fn set_offloads(lab: &Lab, for_xdp: bool) -> Result<()> {
    let offloads = if for_xdp { "tx off gro on" } else { "tx on gro off" };
    for namespace in [&lab.client().namespace, &lab.backends[0].namespace] {
        namespace.run("ethtool", &format!("-K eth0 {offloads}"))?;
    }
    Ok(())
}

/// Connects a host directly to the router.
fn wire(router: &Namespace, device: &str, gateway: Ipv4Addr, host: &Namespace, address: Ipv4Addr) -> Result<()> {
    router.ip(&format!("link del {device}"))?;
    host.ip("link del eth0")?;
    router.ip(&format!("link add {device} type veth peer name eth0 netns {}", host.name()))?;
    for (namespace, device, address) in [(router, device, gateway), (host, "eth0", address)] {
        namespace.ip(&format!("addr add {address}/24 dev {device}"))?;
        namespace.ip(&format!("link set {device} up"))?;
    }
    host.ip(&format!("route add default via {gateway}"))?;
    Ok(())
}

fn ksoftirqd() -> Result<Vec<u32>> {
    let processes = fs::read_dir("/proc")?.flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // A process that has ended meanwhile is not the kernel's.
    let found: Vec<u32> = ids
        .filter(|id| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with("ksoftirqd/")))
        .collect();
    ensure!(!found.is_empty(), "there is no ksoftirqd in /proc: the benchmark must see the machine's own processes");
    Ok(found)
}

/// Processor seconds that these processes have used.
fn running(ids: &[u32]) -> Result<f64> {
    let mut nanoseconds = 0;
    for id in ids {
        for thread in fs::read_dir(format!("/proc/{id}/task")).with_context(|| format!("process {id}"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let ran = text.split_whitespace().next().context("an empty schedstat")?;
            nanoseconds += ran.parse::<u64>()?;
        }
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// Processor seconds that our ended children have used: the generators.
fn ended() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds =
        [usage.user_time(), usage.system_time()].map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6);
    Ok(seconds.iter().sum())
}

/// Runs a generator to its end; returns its output.
pub(crate) fn generate(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said} {errors}", output.status);
    Ok(said)
}
