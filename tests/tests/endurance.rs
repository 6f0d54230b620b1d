//! Nothing is lost: the controller ends in every way, again and again, under traffic that is counted.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use vipgate_tests::{
    both_hooks,
    lab::{
        Datagrams, ECHO, Flood, Lab, Load, Origin, Result, Running, UDP, WEB, host::TcpSession, vipgate_binary,
        wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// In each hook.
const ROUNDS: usize = 50;
/// Each from another source.
const SYNS: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);
/// TCP connections that stay through all rounds.
const SESSIONS: usize = 8;

both_hooks! {
    fn fifty_ends_and_starts_lose_no_packet_no_connection_and_no_count(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        for listener in [WEB, ECHO, UDP] {
            let uuid = run.cloud.listener(&balancer, listener)?;
            run.cloud.add_backends(&uuid, &[0, 1])?;
        }
        let Running { mut controller, lab, .. } = run;
        let client = lab.client();
        let connect = || client.tcp(SocketAddrV4::new(VIP, ECHO.port));
        let mut sessions = (0..SESSIONS).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        let origins = sessions.iter_mut().map(TcpSession::ask).collect::<Result<Vec<_>>>()?;
        let datagrams = Datagrams::start(client, SocketAddrV4::new(VIP, UDP.port))?;
        let requests = Load::start(client, SocketAddrV4::new(VIP, WEB.port))?;
        datagrams.wait_for(100)?;
        requests.wait_for(10)?;

        let flows = watched(&origins, &datagrams);
        let mut counts = Counts::read(&lab, &flows)?;
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                controller.kill()?;
            } else {
                ensure!(controller.stop()?.success(), "an orderly end failed in round {round}");
            }
            datagrams.wait_for(20)?;
            controller = lab.start_controller()?;
            datagrams.wait_for(20)?;
            for (session, origin) in sessions.iter_mut().zip(&origins) {
                let answer = session.ask().with_context(|| format!("a connection broke in round {round}"))?;
                ensure!(answer == *origin, "{answer:?} answers for {origin:?} in round {round}");
            }
            let next = Counts::read(&lab, &flows)?;
            counts.check_grown(&next).with_context(|| format!("in round {round}"))?;
            counts = next;
        }
        let (datagrams, requests) = (datagrams.stop()?, requests.stop()?);
        ensure!(datagrams.lost.is_empty(), "{} of {} datagrams are lost", datagrams.lost.len(), datagrams.answered);
        ensure!(requests.failures.is_empty(), "{:?}", requests.failures);
        println!("{ROUNDS} rounds, {} datagrams, {} requests: none lost", datagrams.answered, requests.answered);
        drop(controller);
        Ok(())
    }

    fn a_syn_flood_from_a_million_sources_takes_nothing_from_those_who_are_connected(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        for listener in [WEB, ECHO, UDP] {
            let uuid = run.cloud.listener(&balancer, listener)?;
            run.cloud.add_backends(&uuid, &[0, 1])?;
        }
        let client = run.lab.client();
        let connect = || client.tcp(SocketAddrV4::new(VIP, ECHO.port));
        let mut sessions = (0..SESSIONS).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        let origins = sessions.iter_mut().map(TcpSession::ask).collect::<Result<Vec<_>>>()?;
        let datagrams = Datagrams::start(client, SocketAddrV4::new(VIP, UDP.port))?;
        datagrams.wait_for(100)?;
        let flows = watched(&origins, &datagrams);
        let counts = Counts::read(&run.lab, &flows)?;
        let before = run.controller.resident()?;

        let flood = Flood::start(&run.lab, SocketAddrV4::new(VIP, WEB.port))?;
        let mut asked = 0;
        while flood.sent() < SYNS {
            for (session, origin) in sessions.iter_mut().zip(&origins) {
                let answer = session.ask().with_context(|| format!("after {} SYNs", flood.sent()))?;
                ensure!(answer == *origin, "{answer:?} answers for {origin:?}");
                asked += 1;
            }
            // The wires' queues are full of the flood: a client's own packets may be lost there more than once.
            wait_until("a new client gets through", PATIENCE, || client.fetch(SocketAddrV4::new(VIP, WEB.port)))?;
        }
        let sent = flood.stop()?;
        let datagrams = datagrams.stop()?;
        let grown = run.controller.resident()?.saturating_sub(before);
        ensure!(grown < 16 << 20, "the controller has grown by {grown} bytes");
        let after = Counts::read(&run.lab, &flows)?;
        counts.check_grown(&after)?;
        let opened = after.connections(WEB.port) - counts.connections(WEB.port);
        ensure!(opened > SYNS / 10, "{opened} of {sent} SYNs opened a connection: that is no flood");
        // The wires of the lab are queues that the flood fills, so datagrams are lost before the router has seen them. Whom
        // the router drops it counts: answers to forged sources, to which it has no route, and nobody else.
        let drops = ask(&run.lab, "status")?["drops"].clone();
        let others = drops.as_object().context("drops")?.keys().find(|reason| *reason != "unroutable");
        ensure!(others.is_none(), "the router dropped {drops}");
        println!(
            "{sent} SYNs, {opened} half-open connections: {asked} answers on connections, {} datagrams answered, {} lost on the wires; dropped {drops}",
            datagrams.answered,
            datagrams.lost.len(),
        );
        Ok(())
    }
}

/// The flows of the connections and of the datagrams: client and the VIP's port.
fn watched(origins: &[Origin], datagrams: &Datagrams) -> Vec<(SocketAddrV4, u16)> {
    let sessions = origins.iter().map(|origin| (origin.client, ECHO.port));
    sessions.chain([(datagrams.client(), UDP.port)]).collect()
}

/// What the kernel has counted at one moment.
struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Those of all backends, and of the flows from these clients to these ports.
    fn read(lab: &Lab, watched: &[(SocketAddrV4, u16)]) -> Result<Self> {
        let mut counts = BTreeMap::new();
        let status = ask(lab, "status")?;
        for service in status["services"].as_array().context("services")? {
            for backend in service["backends"].as_array().context("backends")? {
                for what in ["connections", "packetsIn", "bytesIn", "packetsOut", "bytesOut"] {
                    let name = format!("{what} of backend {} at {}", backend["number"], service["port"]);
                    counts.insert(name, backend[what].as_u64().context("a count")?);
                }
            }
        }
        let flows = ask(lab, "flows")?;
        let flows = flows["connections"].as_array().context("connections")?;
        for (client, port) in watched {
            let (client, vip) = (client.to_string(), SocketAddrV4::new(VIP, *port).to_string());
            let flow = flows.iter().find(|flow| flow["client"] == client && flow["vip"] == vip);
            let flow = flow.with_context(|| format!("the flow of {client} is lost"))?;
            for what in ["packetsIn", "packetsOut"] {
                counts.insert(format!("{what} of {client}"), flow[what].as_u64().context("a count")?);
            }
        }
        Ok(Self(counts))
    }

    /// Connections that were made to a listener of the VIP.
    fn connections(&self, port: u16) -> u64 {
        let of = |name: &str| name.starts_with("connections of") && name.ends_with(&format!(" at {port}"));
        self.0.iter().filter(|(name, _)| of(name)).map(|(_, count)| count).sum()
    }

    /// No count is missing or smaller in `next`.
    fn check_grown(&self, next: &Self) -> Result<()> {
        for (name, count) in &self.0 {
            let now = next.0.get(name).with_context(|| format!("{name} is not counted any more"))?;
            ensure!(now >= count, "{name}: {count} became {now}");
        }
        Ok(())
    }
}

fn ask(lab: &Lab, command: &str) -> Result<Value> {
    let mut vipgate = lab.router.command(vipgate_binary()?);
    let output = vipgate.args([command, "--output", "json", "--bpffs"]).arg(lab.bpffs.path()).output()?;
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}
