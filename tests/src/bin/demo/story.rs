//! The demo's scenes: each makes a few REST calls and shows their effect on real traffic.

use crate::screen::Screen;
use anyhow::Context as _;
use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
};
use vipgate_tests::lab::{
    Cloud, Controller, Hook, Lab, LabOptions, Listener, Load, Origin, Result, Shell, UDP, WEB, controller::PASSWORD,
    topology::PUBLIC_ROUTER, vipgate_binary,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const ELASTIC_IP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);

/// Everything that runs. Dropped in this order.
pub(crate) struct Stage {
    /// `None` while the controller is stopped.
    controller: Option<Controller>,
    pub(crate) cloud: Cloud,
    /// The VIP's uuid.
    uuid: String,
    /// The web listener's uuid and address.
    pub(crate) web: String,
    pub(crate) vip: SocketAddrV4,
    udp: SocketAddrV4,
    pub(crate) lab: Lab,
}

impl Stage {
    /// Builds the network, starts the controller and configures everything over REST.
    pub(crate) fn new(hook: Hook, screen: &mut Screen) -> Result<Self> {
        screen.heading("a router with two clients and three backends, each in a network namespace");
        let mut lab = Lab::new(LabOptions { hook, clients: 2, backends: 3 })?;
        lab.serve_outside()?;
        picture(&lab);
        let controller = lab.start_controller()?;
        println!("  vipgate serves the REST API in the router's namespace, hook {hook}");

        screen.heading("configured over the REST API; to repeat a call, first:");
        println!("  alias r='nsenter --net={}'", lab.router.path().display());
        let api = Controller::stranger(&lab.router)?.narrated().log_in("admin", PASSWORD)?;
        println!("  SESSION=...  # the uuid in that answer");
        let cloud = Cloud::new(&lab, api)?;
        let (uuid, balancer) = cloud.load_balancer(VIP)?;
        let web = cloud.listener(&balancer, WEB)?;
        cloud.add_backends(&web, &[0, 1])?;
        let udp = cloud.listener(&balancer, Listener { algorithm: "source", ..UDP })?;
        cloud.add_backends(&udp, &[0, 1, 2])?;
        let at = |port| SocketAddrV4::new(VIP, port);
        Ok(Self { controller: Some(controller), cloud, uuid, web, vip: at(WEB.port), udp: at(UDP.port), lab })
    }

    /// Asks the VIP `count` times from the first client and draws how many each backend answers.
    pub(crate) fn distribution(&self, screen: &Screen, count: u64) -> Result<BTreeMap<String, u64>> {
        const BATCH: u64 = 10;
        let mut shares: BTreeMap<String, u64> =
            self.lab.backends.iter().map(|backend| (backend.name.clone(), 0)).collect();
        let mut drawn = false;
        for _ in 0..count / BATCH {
            for origin in self.lab.client().fetch_many(self.vip, usize::try_from(BATCH)?)? {
                *shares.entry(origin.backend).or_default() += 1;
            }
            if screen.is_live() {
                screen.bars(&shares, drawn);
                drawn = true;
            }
        }
        if !drawn {
            screen.bars(&shares, false);
        }
        Ok(shares)
    }

    /// Stops the controller with SIGTERM.
    pub(crate) fn stop(&mut self) -> Result<bool> {
        let controller = self.controller.take().context("no controller runs")?;
        Ok(controller.stop()?.success())
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        self.controller = Some(self.lab.start_controller()?);
        Ok(())
    }

    /// Has the backend of this index ask the first client's web server; returns the source address that the client sees.
    pub(crate) fn seen_outside(&self, backend: usize) -> Result<Ipv4Addr> {
        let (guest, outside) = (&self.lab.backends[backend], self.lab.client());
        let seen = *guest.curl(outside.web())?.client.ip();
        println!("  {} {} asks {} {}, which sees {seen}", guest.name, guest.address, outside.name, outside.address);
        Ok(seen)
    }

    /// The output of `vipgate status` and other commands that read the kernel's tables.
    pub(crate) fn vipgate(&self, words: &str) -> Result<String> {
        let binary = vipgate_binary()?;
        let words = format!("{words} --bpffs {}", self.lab.bpffs.path().display());
        self.lab.router.run(&binary.display().to_string(), &words)
    }
}

fn picture(lab: &Lab) {
    let clients: Vec<String> = lab.clients.iter().map(|client| client.address.to_string()).collect();
    let backends: Vec<String> = lab.backends.iter().map(|backend| backend.address.to_string()).collect();
    println!(
        "\n  {} -- pub0 10.1.0.1 [ router: vipgate ] 10.2.0.1 priv0 -- {}\n",
        clients.join(", "),
        backends.join(", ")
    );
    let hosts = lab.clients.iter().chain(&lab.backends);
    for namespace in hosts.map(|host| &host.namespace).chain([&lab.router]) {
        println!("  namespace {}", namespace.name());
    }
}

/// Plays every scene and checks its claims.
pub(crate) fn play(stage: &mut Stage, screen: &mut Screen) -> Result<()> {
    balance(stage, screen)?;
    change_backends(stage, screen)?;
    restart(stage, screen)?;
    udp(stage, screen)?;
    forward(stage, screen)?;
    elastic(stage, screen)?;
    source_nat(stage, screen)?;
    one_file(stage, screen)?;
    screen.heading("what the kernel holds: vipgate status");
    let status = stage.vipgate("status")?;
    print!("{status}");
    screen.check("the kernel knows the VIP", status.contains(&VIP.to_string()));
    Ok(())
}

fn balance(stage: &Stage, screen: &mut Screen) -> Result<()> {
    screen.heading(&format!("curl http://{} from a client: nginx on two backends answers, round robin", stage.vip));
    let origin = stage.lab.client().curl(stage.vip)?;
    println!("  {} {}", origin.backend, origin.client);
    screen.check("the backend sees the client's own address", *origin.client.ip() == stage.lab.client().address);
    let shares = stage.distribution(screen, 200)?;
    screen.check("two backends share equally", shares.values().filter(|share| **share == 100).count() == 2);
    Ok(())
}

fn change_backends(stage: &Stage, screen: &mut Screen) -> Result<()> {
    screen.heading("a third backend joins while requests run");
    let load = Load::start(&stage.lab.clients[1], stage.vip)?;
    load.wait_for(100)?;
    stage.cloud.add_backends(&stage.web, &[2])?;
    let shares = stage.distribution(screen, 150)?;
    screen.check("all three answer", shares.values().all(|share| *share > 0));

    screen.heading("the first backend leaves");
    stage.cloud.remove_backends(&stage.web, &[0])?;
    let shares = stage.distribution(screen, 150)?;
    screen.check("it gets no more requests, the others get them all", shares["backend1"] == 0);
    report(screen, load.stop()?.failures.len(), "while backends came and went");
    Ok(())
}

fn restart(stage: &mut Stage, screen: &mut Screen) -> Result<()> {
    screen.heading("the controller restarts under load");
    let load = Load::start(&stage.lab.clients[1], stage.vip)?;
    load.wait_for(100)?;
    let clean = stage.stop()?;
    screen.check("SIGTERM ends it cleanly", clean);
    load.wait_for(500)?;
    println!("  no controller: 500 more requests went through the kernel alone");
    stage.start()?;
    stage.cloud.add_backends(&stage.web, &[0])?;
    load.wait_for(100)?;
    let report_of = load.stop()?;
    println!("  {} requests answered meanwhile", report_of.answered);
    report(screen, report_of.failures.len(), "over the restart");
    let shares = stage.distribution(screen, 150)?;
    screen.check("the new controller manages what the old one set up", shares["backend1"] > 0);
    Ok(())
}

fn udp(stage: &Stage, screen: &mut Screen) -> Result<()> {
    screen.heading(&format!("UDP echo at {}, balanced by source", stage.udp));
    for client in &stage.lab.clients {
        let origins = (0..10).map(|_| client.ask_udp(stage.udp)).collect::<Result<Vec<Origin>>>()?;
        let same = origins.iter().all(|origin| origin.backend == origins[0].backend);
        screen.check(&format!("{} always reaches {}", client.address, origins[0].backend), same);
    }
    Ok(())
}

fn forward(stage: &Stage, screen: &mut Screen) -> Result<()> {
    screen.heading("ports 8080 to 8089 of the same VIP lead to ports 80 to 89 of the third backend");
    let rule = stage.cloud.forward(&stage.uuid, "TCP", [8080, 8089], [80, 89], 2)?;
    let at = SocketAddrV4::new(VIP, 8080);
    let origin = stage.lab.client().curl(at)?;
    println!("  {} {}", origin.backend, origin.client);
    screen.check("the first of these ports reaches its web server", origin.backend == "backend3");
    stage.cloud.change_rule_state(&rule, "disable")?;
    screen.check("nobody answers once the rule is disabled", stage.lab.client().fetch(at).is_err());
    stage.cloud.change_rule_state(&rule, "enable")?;
    Ok(())
}

fn elastic(stage: &Stage, screen: &mut Screen) -> Result<()> {
    screen.heading(&format!("{ELASTIC_IP} becomes the second backend's elastic IP"));
    let vip = stage.cloud.vip(ELASTIC_IP)?;
    stage.cloud.elastic(&vip, 1)?;
    let (client, guest) = (stage.lab.client(), &stage.lab.backends[1]);
    let origin = client.curl(SocketAddrV4::new(ELASTIC_IP, WEB.instance_port))?;
    println!("  {} {}", origin.backend, origin.client);
    screen.check(
        "a client reaches that backend, which sees the client's own address",
        (&origin.backend, *origin.client.ip()) == (&guest.name, client.address),
    );
    screen.check("the backend asks a client, which sees the elastic IP", stage.seen_outside(1)? == ELASTIC_IP);
    screen.check("each can ping the other", client.ping(ELASTIC_IP, "").and(guest.ping(client.address, "")).is_ok());
    Ok(())
}

fn source_nat(stage: &Stage, screen: &mut Screen) -> Result<()> {
    screen.heading(&format!("the backends' network gets source NAT by the router's own address, {PUBLIC_ROUTER}"));
    let guest = &stage.lab.backends[0];
    screen.check("before, the first backend is seen by its own address", stage.seen_outside(0)? == guest.address);
    stage.cloud.attach_services(&["SNAT"])?;
    let vips = stage.cloud.api.query("/vips?q=useFor=SNAT")?;
    let is_routers = vips.iter().any(|vip| vip["ip"] == PUBLIC_ROUTER.to_string());
    screen.check("the router's own address is a VIP now", is_routers);
    screen.check("the first backend is seen by the router's address", stage.seen_outside(0)? == PUBLIC_ROUTER);
    screen.check("its pings are answered", guest.ping(stage.lab.client().address, "").is_ok());
    screen.check("the second is still seen by its elastic IP", stage.seen_outside(1)? == ELASTIC_IP);

    screen.heading("connections that guests began: vipgate flows --direction out");
    let flows = stage.vipgate("flows --direction out")?;
    print!("{flows}");
    let is_listed = |vip: Ipv4Addr| flows.contains(&format!(" {vip}:"));
    screen.check("connections by both addresses are listed", is_listed(ELASTIC_IP) && is_listed(PUBLIC_ROUTER));
    Ok(())
}

fn one_file(stage: &Stage, screen: &mut Screen) -> Result<()> {
    screen.heading("all of that as one file: vipgate login, vipgate export > router.yaml");
    let shell = Shell { lab: &stage.lab };
    shell.types(&shell.login()?)?;
    let exported = shell.types("export")?;
    print!("{exported}");
    let path = stage.lab.directory().join("router.yaml");
    fs::write(&path, exported)?;
    let output = shell.types(&format!("apply -f {} --prune", path.display()))?;
    print!("  vipgate apply -f router.yaml --prune: {output}");
    screen.check(
        "applied to the router that it was exported from, the file has nothing to do",
        output == "nothing to do\n",
    );
    Ok(())
}

fn report(screen: &mut Screen, failures: usize, when: &str) {
    screen.check(&format!("{failures} requests failed {when}"), failures == 0);
}
