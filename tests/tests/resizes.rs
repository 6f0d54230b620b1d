//! The tables change their sizes again and again under counted traffic, the flow table also grows while it fills, and nothing is
//! lost.

use std::{
    cell::Cell,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vipgate_abi::maps;
use vipgate_agent::loader::Sizes;
use vipgate_tests::{
    both_hooks,
    lab::{Controller, Counts, ECHO, Hook, Lab, Listener, Result, Running, SIZES, Traffic, UDP, report, wait_until},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
/// Rounds in each hook: enough that each set of tables has changed together with the flow table.
const ROUNDS: usize = 31;
/// Rounds in each hook in which the controller is killed while it changes sizes.
const KILLED: usize = 24;
/// TCP connections that stay open through all rounds.
const SESSIONS: usize = 8;
/// Flow entries in every other round: few enough for the table to have this size from the start.
const FLOWS: u32 = maps::FIRST_FLOWS / 2;
/// Clients that fill more than half of the initial flow table, from ports that no kernel chooses.
const CLIENTS: u16 = 17_000;

/// The sizes of a round: each size changes alone and together with others.
fn sizes(round: usize) -> Sizes {
    let doubled = |every: usize, size: u32| if (round / every).is_multiple_of(2) { size * 2 } else { size };
    Sizes {
        flows: doubled(1, FLOWS),
        services: doubled(2, SIZES.services),
        backends: doubled(3, SIZES.backends),
        ring_elements: doubled(5, SIZES.ring_elements),
    }
}

/// A test's traffic and its counts so far.
struct Counted<'a> {
    lab: &'a Lab,
    traffic: Traffic,
    counts: Counts,
}

impl<'a> Counted<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let traffic = Traffic::start(lab, VIP, SESSIONS)?;
        let counts = Counts::read(lab, &traffic.flows())?;
        Ok(Self { lab, traffic, counts })
    }

    /// All traffic goes on and was counted.
    fn check(&mut self) -> Result<()> {
        self.traffic.datagrams.wait_for(20)?;
        self.traffic.requests.wait_for(5)?;
        self.traffic.requests.check()?;
        self.traffic.standing.ask()?;
        let next = Counts::read(self.lab, &self.traffic.flows())?;
        self.counts.check_grown(&next)?;
        self.counts = next;
        Ok(())
    }

    /// Nothing is lost; the kernel has counted each datagram.
    fn finish(self) -> Result<()> {
        let (datagrams, requests, flow) = self.traffic.stop_counted(self.lab)?;
        let status = report(self.lab, "status")?;
        let services = status["services"].as_array().context("services")?;
        let service = services
            .iter()
            .find(|service| service["protocol"] == "udp" && service["port"] == UDP.port)
            .context("the datagrams' service")?;
        let backends = service["backends"].as_array().context("backends")?;
        let opened: u64 = backends.iter().filter_map(|backend| backend["connections"].as_u64()).sum();
        ensure!(opened == 1, "the datagrams' flow was lost, and opened {opened} times: {flow}, {service}");
        for what in ["packetsIn", "packetsOut"] {
            let counted: u64 = backends.iter().filter_map(|backend| backend[what].as_u64()).sum();
            ensure!(counted == datagrams.answered, "{} datagrams, but {service}", datagrams.answered);
        }
        println!("{} datagrams, {} requests: none lost, all counted", datagrams.answered, requests.answered);
        Ok(())
    }
}

/// The flow table has this size, and no intermediate pins of a change are left.
fn check_flows(lab: &Lab, flows: u32) -> Result<()> {
    let status: Value = report(lab, "status")?;
    let capacity = status["flows"]["capacity"].as_u64().context("a capacity")?;
    ensure!(capacity == u64::from(flows), "room for {capacity} flows");
    let names = fs::read_dir(lab.bpffs.path())?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    let pins = names.iter().filter(|name| name.to_string_lossy().starts_with("abi-")).count();
    ensure!(pins == 1, "{pins} directories of pins");
    Ok(())
}

fn start(hook: Hook) -> Result<(Lab, Controller)> {
    let run = Running::new(hook, 1, 2)?;
    run.cloud.balanced_everywhere(VIP)?;
    let Running { controller, lab, .. } = run;
    Ok((lab, controller))
}

#[test]
fn connections_refused_by_a_full_flow_table_of_the_largest_size_are_reported_everywhere() -> Result<()> {
    let (lab, controller) = start(Hook::Tc)?;
    controller.kill()?;
    let controller = Controller::start_with(&lab, Sizes { flows: 128, ..SIZES })?;
    // The client's kernel repeats each refused connection request.
    let echo = SocketAddrV4::new(VIP, ECHO.port);
    let sessions: Vec<_> = (0..80).map_while(|_| lab.client().tcp(echo).ok()).collect();
    ensure!(sessions.len() <= 64, "{} connections found room in 128 entries", sessions.len());
    wait_until("the log to name the setting", Duration::from_secs(30), || {
        ensure!(controller.said().contains("raise datapath.flows"), "it does not name it yet");
        Ok(())
    })?;
    let flows = report(&lab, "status")?["flows"].clone();
    ensure!(flows["refused"].as_u64() > Some(0) && flows["largest"] == 128, "{flows}");
    let doctor = report(&lab, "doctor")?;
    let findings = doctor["findings"].as_array().context("findings")?;
    ensure!(findings.iter().any(|finding| finding["check"] == "flow_table"), "{doctor}");
    Ok(())
}

both_hooks! {
    fn size_changes_of_each_set_of_tables_lose_no_packet_no_connection_and_no_count(hook) {
        let (lab, mut controller) = start(hook)?;
        let mut load = Counted::start(&lab)?;
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                controller.kill()?;
            } else {
                ensure!(controller.stop()?.success(), "an orderly end failed in round {round}");
            }
            controller = Controller::start_with(&lab, sizes(round))?;
            check_flows(&lab, sizes(round).flows).with_context(|| format!("in round {round}"))?;
            load.check().with_context(|| format!("in round {round}"))?;
        }
        load.finish()?;
        drop(controller);
        Ok(())
    }

    fn a_flow_table_that_fills_grows_and_loses_no_packet_no_connection_and_no_count(hook) {
        let run = Running::new(hook, 1, 2)?;
        run.cloud.balanced_everywhere(VIP)?;
        let many = Listener { port: 7003, tags: &["maxConnection::0"], ..UDP };
        let (_, balancer) = run.cloud.load_balancer(OTHER)?;
        run.cloud.add_backends(&run.cloud.listener(&balancer, many)?, &[0, 1])?;
        check_flows(&run.lab, maps::FIRST_FLOWS)?;
        let mut load = Counted::start(&run.lab)?;
        run.lab.client().ask_from_many(SocketAddrV4::new(OTHER, many.port), 10_000..10_000 + CLIENTS)?;
        wait_until("a larger flow table", Duration::from_secs(30), || check_flows(&run.lab, SIZES.flows))?;
        load.check()?;
        let flows = report(&run.lab, "status")?["flows"].clone();
        let held = flows["states"]["datagrams"].as_u64().context("flows of datagrams")?;
        ensure!(held >= 2 * u64::from(CLIENTS) * 97 / 100, "some of the clients' flows are lost: {flows}");
        load.finish()?;
        Ok(())
    }

    fn a_kill_at_any_step_of_a_change_of_sizes_loses_nothing(hook) {
        let (lab, mut controller) = start(hook)?;
        let mut load = Counted::start(&lab)?;
        for round in 0..KILLED {
            controller.kill()?;
            // Wait for the stage's directory, and then a little longer.
            let stage = ["-new", "-carried", "-carried", "-old"][round % 4];
            let looks = Cell::new(round / 4 * 20 * usize::from(round % 4 != 2));
            let reached = || {
                let there = fs::read_dir(lab.bpffs.path()).is_ok_and(|entries| {
                    entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(stage))
                });
                if there && looks.get() > 0 {
                    looks.set(looks.get() - 1);
                    return false;
                }
                there
            };
            Controller::start_and_kill(&lab, sizes(round), reached)?;
            load.traffic.requests.wait_for(5).with_context(|| format!("killed in round {round}"))?;
            let survived = load.traffic.requests.check().and_then(|()| load.traffic.standing.ask());
            survived.with_context(|| format!("killed in round {round} at {stage}"))?;
            controller = Controller::start_with(&lab, sizes(round))?;
            check_flows(&lab, sizes(round).flows).with_context(|| format!("in round {round}"))?;
            load.check().with_context(|| format!("in round {round}, killed at {stage}"))?;
        }
        load.finish()?;
        drop(controller);
        Ok(())
    }
}
