//! Bandwidth limits through the REST API, with real traffic.
//!
//! A test checks at any moment that a limit is not exceeded, however slow the machine is, and waits until it is used up.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use vipgate_tests::{
    both_hooks,
    lab::{
        Cloud, Controller, Hook, Host, Lab, LabOptions, Listener, Process, Result, WEB, cloud::uuid, host::ECHO_PORT,
        vipgate_binary, wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// iperf3's default port.
const PORT: u16 = 5201;
const OTHER_PORT: u16 = 5202;
const STARTED: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(90);

/// Bits per second.
const SLOWEST: u64 = 1 << 20;
const SLOW: u64 = 4 << 20;
const FAST: u64 = 16 << 20;
/// Seconds at the rate that packets may exceed it by: the queue, and the different times at which both ends count.
const SLACK: f64 = 0.5;

/// A lab whose guest has the VIP as its elastic IP.
struct Limited {
    cloud: Cloud,
    vip: String,
    controller: Option<Controller>,
    lab: Lab,
}

impl Limited {
    fn new(hook: Hook) -> Result<Self> {
        let mut limited = Self::with(hook)?;
        limited.lab.serve_outside()?;
        limited.cloud.elastic(&limited.vip, 0)?;
        Ok(limited)
    }

    /// A lab whose VIP has no service.
    fn with(hook: Hook) -> Result<Self> {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        let controller = lab.start_controller()?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let vip = cloud.vip(VIP)?;
        Ok(Self { cloud, vip, controller: Some(controller), lab })
    }

    /// Limits the VIP, or one of its ports, inbound and outbound.
    fn limit(&self, port: Option<u16>, inbound: Option<u64>, outbound: Option<u64>) -> Result<()> {
        let parameters: serde_json::Map<String, Value> =
            [("port", port.map(u64::from)), ("inboundBandwidth", inbound), ("outboundBandwidth", outbound)]
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
                .collect();
        self.cloud.api.put(&format!("/vips/{}/actions", self.vip), &json!({ "setVipQos": parameters }))?;
        Ok(())
    }

    fn remove_limit(&self, port: Option<u16>) -> Result<()> {
        let port = port.map(|port| format!("?port={port}")).unwrap_or_default();
        self.cloud.api.delete(&format!("/vips/{}/vip-qos{port}", self.vip))?;
        Ok(())
    }

    fn guest(&self) -> &Host {
        &self.lab.backends[0]
    }

    /// A transfer between the client and the VIP.
    fn inward<'a>(&'a self, port: u16, options: &'a str) -> Transfer<'a> {
        Transfer { from: self.lab.client(), server: self.guest(), to: VIP, port, options, limited: self }
    }

    /// A transfer between the guest and the client, on a connection that the guest begins.
    fn outward<'a>(&'a self, options: &'a str) -> Transfer<'a> {
        let server = self.lab.client();
        Transfer { from: self.guest(), server, to: server.address, port: PORT, options, limited: self }
    }

    /// The status of the only limit.
    fn status(&self) -> Result<Value> {
        let mut command = self.lab.router.command(vipgate_binary()?);
        command.args(["status", "--output", "json", "--bpffs"]).arg(self.lab.bpffs.path());
        let status: Value = serde_json::from_slice(&command.output()?.stdout)?;
        let [limit] = &status["limits"].as_array().context("status has no limits")?[..] else { bail!("{status}") };
        Ok(limit.clone())
    }

    /// The classes of the router's queues.
    fn queues(&self) -> Vec<String> {
        let said = self.lab.router.run("tc", "class show dev vipgate-q0").unwrap_or_default();
        said.lines().map(str::to_owned).collect()
    }
}

/// An iperf3 run.
struct Transfer<'a> {
    from: &'a Host,
    server: &'a Host,
    to: Ipv4Addr,
    port: u16,
    options: &'a str,
    limited: &'a Limited,
}

impl Transfer<'_> {
    fn serve(&self) -> Result<Process> {
        let mut command = self.server.namespace.command("iperf3");
        let directory = self.limited.lab.directory();
        Process::start("iperf3", command.args(["-s", "-1", "-p", &self.port.to_string()]), directory)
    }

    /// Sends more than the limit lets pass, until the returned processes are dropped.
    fn flood(&self) -> Result<[Process; 2]> {
        let server = self.serve()?;
        let mut command = self.from.namespace.command("iperf3");
        command.args(["-c", &self.to.to_string(), "-p", &self.port.to_string(), "-t", "600"]);
        command.args(self.options.split_whitespace());
        let start = || Process::start("iperf3", &command, self.limited.lab.directory());
        let mut client = start()?;
        wait_until("more than the limit", PATIENCE, || {
            if client.ended()?.is_some() {
                // The server did not listen yet.
                client = start()?;
            }
            let limit = self.limited.status()?;
            ensure!(limit["rates"]["inbound"]["droppedPackets"].as_u64() > Some(100), "{limit}");
            Ok(())
        })?;
        Ok([server, client])
    }

    /// Returns the number of bits that arrived, and the seconds that it took.
    fn run(&self) -> Result<(f64, f64)> {
        let _server = self.serve()?;
        wait_until("iperf3 to serve", STARTED, || {
            let words = format!("-c {} -p {} -J -t 2 {}", self.to, self.port, self.options);
            let said: Value = serde_json::from_str(&self.from.namespace.run("iperf3", &words)?)?;
            let received = |name: &str| said["end"]["sum_received"][name].as_f64();
            let failed = || format!("{}: {}", said["error"], said["end"]);
            Ok((received("bytes").with_context(failed)? * 8.0, received("seconds").with_context(failed)?))
        })
    }

    /// Never gets more than the rate, and finally most of it.
    fn gets(&self, rate: u64) -> Result<()> {
        self.gets_part(0.8, rate)
    }

    /// Never gets more than the rate, and finally this part of it.
    fn gets_part(&self, part: f64, rate: u64) -> Result<()> {
        let rate = rate as f64;
        wait_until(&format!("{} of {rate} bit/s to port {}", self.options, self.port), PATIENCE, || {
            let (bits, seconds) = self.run()?;
            assert!(bits <= rate * (seconds + SLACK), "{bits} bits in {seconds} s through {rate} bit/s");
            ensure!(bits >= part * rate * seconds, "only {} bit/s", bits / seconds);
            Ok(())
        })
    }

    /// Gets more than the rate.
    fn exceeds(&self, rate: u64) -> Result<()> {
        wait_until(&format!("{} of more than {rate} bit/s", self.options), PATIENCE, || {
            let (bits, seconds) = self.run()?;
            ensure!(bits > rate as f64 * (seconds + SLACK), "only {} bit/s", bits / seconds);
            Ok(())
        })
    }
}

both_hooks! {
    fn tcp_fills_a_limit_in_each_direction_whichever_side_began(hook) {
        let limited = Limited::new(hook)?;
        limited.limit(None, Some(FAST), Some(SLOW))?;
        limited.inward(PORT, "").gets(FAST)?;
        limited.inward(PORT, "-P 4").gets(FAST)?;
        limited.inward(PORT, "--reverse").gets(SLOW)?;
        limited.outward("").gets(SLOW)?;
        limited.outward("--reverse").gets(FAST)
    }

    fn a_large_datagram_passes_a_slow_limit_and_a_flood_of_datagrams_gets_its_limit(hook) {
        let limited = Limited::new(hook)?;
        limited.limit(None, Some(SLOWEST), None)?;
        limited.lab.client().ping(VIP, "-s 16384 -i 1")?;
        limited.remove_limit(None)?;
        limited.limit(None, Some(SLOW), None)?;
        limited.inward(PORT, "--udp -l 1400 -b 8M").gets(SLOW)?;
        // The other direction has no limit.
        limited.inward(PORT, "--udp -l 1400 -b 16M --reverse").exceeds(SLOW)
    }

    fn a_flood_of_datagrams_leaves_a_tcp_connection_its_share(hook) {
        let limited = Limited::new(hook)?;
        limited.limit(None, Some(SLOW), None)?;
        let _flood = limited.inward(OTHER_PORT, "--udp -l 1400 -b 40M").flood()?;
        limited.inward(PORT, "").gets_part(0.3, SLOW)
    }

    fn status_reports_what_a_limit_lets_pass_and_what_it_drops(hook) {
        let limited = Limited::new(hook)?;
        limited.limit(Some(PORT), Some(SLOW), None)?;
        limited.inward(PORT, "--udp -l 1400 -b 16M").gets(SLOW)?;
        let limit = limited.status()?;
        assert_eq!((&limit["vip"], &limit["port"], &limit["queued"]), (&json!(VIP), &json!(PORT), &json!(true)));
        let rates = &limit["rates"];
        assert!(rates["outbound"].is_null() && rates["inbound"]["bitsPerSecond"] == SLOW, "{rates}");
        for counted in ["passedPackets", "passedBytes", "droppedPackets", "droppedBytes"] {
            assert!(rates["inbound"][counted].as_u64() > Some(100), "{rates}");
        }
        Ok(())
    }

    fn traffic_of_a_port_with_its_own_limit_counts_only_against_that(hook) {
        let limited = Limited::new(hook)?;
        limited.limit(None, Some(FAST), Some(FAST))?;
        limited.limit(Some(PORT), Some(SLOW), None)?;
        limited.inward(PORT, "").gets(SLOW)?;
        limited.inward(OTHER_PORT, "").gets(FAST)?;
        // A direction that the port's limit does not limit is not limited by the VIP's either.
        limited.inward(PORT, "--reverse").exceeds(FAST)?;
        limited.remove_limit(Some(PORT))?;
        limited.inward(PORT, "").gets(FAST)?;
        limited.inward(PORT, "--reverse").gets(FAST)
    }

    fn listeners_and_ranges_share_their_vips_limit_but_for_ports_with_their_own(hook) {
        let limited = Limited::with(hook)?;
        let balancer = json!({ "name": "balancer", "vipUuid": limited.vip });
        let balancer = uuid(&limited.cloud.api.create("/load-balancers", &balancer)?)?;
        let listener = Listener { port: PORT, instance_port: PORT, ..WEB };
        let listener = limited.cloud.listener(&balancer, listener)?;
        limited.cloud.add_backends(&listener, &[0])?;
        limited.cloud.forward(&limited.vip, "TCP", [OTHER_PORT, 5300], [OTHER_PORT, 5300], 0)?;
        limited.limit(None, Some(FAST), None)?;
        limited.inward(PORT, "").gets(FAST)?;
        limited.inward(OTHER_PORT, "").gets(FAST)?;
        limited.limit(Some(5203), Some(SLOW), None)?;
        limited.limit(Some(PORT), Some(SLOW), None)?;
        limited.inward(PORT, "").gets(SLOW)?;
        limited.inward(5203, "").gets(SLOW)?;
        limited.inward(OTHER_PORT, "").gets(FAST)
    }

    fn a_limit_that_changes_or_goes_applies_at_once_to_open_connections(hook) {
        let limited = Limited::new(hook)?;
        let mut session = limited.lab.client().tcp(SocketAddrV4::new(VIP, ECHO_PORT))?;
        session.ask()?;
        limited.limit(None, Some(SLOW), Some(SLOW))?;
        limited.inward(PORT, "").gets(SLOW)?;
        limited.remove_limit(None)?;
        assert!(limited.queues().is_empty(), "queues are left: {:?}", limited.queues());
        limited.inward(PORT, "").exceeds(SLOW)?;
        limited.limit(None, Some(FAST), Some(FAST))?;
        limited.inward(PORT, "").gets(FAST)?;
        session.ask()?;
        Ok(())
    }

    fn limits_hold_without_a_controller_and_the_next_one_keeps_them(hook) {
        let mut limited = Limited::new(hook)?;
        limited.limit(None, Some(SLOW), None)?;
        let queues = limited.queues();
        limited.controller.take().context("no controller")?.kill()?;
        limited.inward(PORT, "").gets(SLOW)?;
        limited.controller = Some(limited.lab.start_controller()?);
        assert_eq!(limited.queues(), queues);
        limited.inward(PORT, "").gets(SLOW)?;
        drop(limited.controller.take());
        let mut command = limited.lab.router.command(vipgate_binary()?);
        assert!(command.arg("detach").arg("--bpffs").arg(limited.lab.bpffs.path()).status()?.success());
        assert!(limited.queues().is_empty());
        Ok(())
    }

    fn queues_whose_devices_get_other_macs_are_kept(hook) {
        let limited = Limited::new(hook)?;
        limited.limit(None, Some(SLOW), Some(SLOW))?;
        let router = &limited.lab.router;
        let indexes = || router.ip("-oneline link").map(|links| {
            let ours = links.lines().filter(|link| link.contains(": vipgate-q"));
            ours.filter_map(|link| link.split(':').next().map(str::to_owned)).collect::<Vec<_>>()
        });
        let before = indexes()?;
        // As udev does to every new device by default (systemd.link, MACAddressPolicy).
        for (device, mac) in [("vipgate-q0", "02:00:00:00:00:01"), ("vipgate-q0-end", "02:00:00:00:00:02")] {
            router.ip(&format!("link set {device} address {mac}"))?;
        }
        // The controller restores a removed address after it has handled the events above.
        router.ip(&format!("address del {VIP}/32 dev pub0"))?;
        wait_until("the VIP to be back", STARTED, || {
            ensure!(router.ip("address show dev pub0")?.contains(&VIP.to_string()), "it is not");
            Ok(())
        })?;
        assert_eq!(indexes()?, before, "the queues were recreated");
        limited.inward(PORT, "").gets(SLOW)
    }

    fn queues_that_somebody_removed_are_recreated(hook) {
        let limited = Limited::new(hook)?;
        limited.limit(None, Some(SLOW), Some(SLOW))?;
        let queues = limited.queues();
        limited.lab.router.run("ip", "link delete vipgate-q0")?;
        wait_until("the queues", STARTED, || {
            ensure!(limited.queues() == queues, "{:?}", limited.queues());
            Ok(())
        })?;
        limited.inward(PORT, "").gets(SLOW)
    }

    fn queues_whose_discipline_somebody_removed_are_recreated_and_it_is_logged_once(hook) {
        let limited = Limited::new(hook)?;
        limited.limit(None, Some(SLOW), Some(SLOW))?;
        let queues = limited.queues();
        ensure!(!queues.is_empty(), "there are no queues");
        // The second command puts another discipline in its place.
        for (round, words) in ["del dev vipgate-q0 root", "replace dev vipgate-q0 root pfifo"].into_iter().enumerate() {
            limited.lab.router.run("tc", &format!("qdisc {words}"))?;
            ensure!(limited.queues() != queues, "the queues are still there");
            wait_until("the queues", STARTED, || {
                ensure!(limited.queues() == queues, "{:?}", limited.queues());
                Ok(())
            })?;
            let log = limited.controller.as_ref().context("it runs")?.said();
            let logged = log.matches("somebody took the discipline of the queues off").count();
            ensure!(logged == round + 1, "logged {logged} times: {log}");
        }
        limited.inward(PORT, "").gets(SLOW)
    }
}
