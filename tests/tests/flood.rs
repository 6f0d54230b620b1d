//! A SYN flood from forged sources does not disturb open connections.
//!
//! It is a test program of its own, so that nothing else runs meanwhile: all namespaces of a machine share each CPU's receive
//! queue, which the flood fills.

use anyhow::{Context as _, ensure};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use vipgate_abi::maps;
use vipgate_tests::{
    both_hooks,
    lab::{Counts, Datagrams, ECHO, Flood, Running, Standing, UDP, WEB, report, wait_until},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Number of SYNs, each from another source.
const SYNS: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);
/// TCP connections that stay open.
const SESSIONS: usize = 8;

both_hooks! {
    fn a_syn_flood_from_a_million_sources_does_not_disturb_open_connections(hook) {
        let run = Running::new(hook, 1, 2)?;
        run.cloud.balanced_everywhere(VIP)?;
        let client = run.lab.client();
        let mut standing = Standing::open(client, SocketAddrV4::new(VIP, ECHO.port), SESSIONS)?;
        let datagrams = Datagrams::start(client, SocketAddrV4::new(VIP, UDP.port))?;
        datagrams.wait_for(100)?;
        let flows = standing.flows(&datagrams);
        let counts = Counts::read(&run.lab, &flows)?;
        let before = run.controller.resident()?;

        let flood = Flood::start(&run.lab, SocketAddrV4::new(VIP, WEB.port))?;
        let mut asked = 0;
        while flood.sent() < SYNS {
            standing.ask().with_context(|| format!("after {} SYNs", flood.sent()))?;
            asked += SESSIONS;
            // The flood fills the wires' queues, where a client's own packets may be lost several times.
            wait_until("a new client gets through", PATIENCE, || client.fetch(SocketAddrV4::new(VIP, WEB.port)))?;
        }
        let sent = flood.stop()?;
        let table = report(&run.lab, "status")?["flows"].clone();
        ensure!(table["capacity"] == maps::FIRST_FLOWS, "the flood made the flow table grow: {table}");
        let datagrams = datagrams.stop()?;
        let grown = run.controller.resident()?.saturating_sub(before);
        ensure!(grown < 16 << 20, "the controller has grown by {grown} bytes");
        let after = Counts::read(&run.lab, &flows)?;
        counts.check_grown(&after)?;
        let opened = after.connections(WEB.port) - counts.connections(WEB.port);
        ensure!(opened > SYNS / 10, "only {opened} of {sent} SYNs opened a connection: too few for a flood");
        // The flood fills the queues of the lab's wires, where datagrams are lost before the router sees them. What the router
        // drops is counted. It may drop answers to forged sources, to which it has no route; the few forged sources that
        // share a bit of the address filter with its own addresses and that no route distinguishes; and a half-open
        // connection whose slot another CPU reused while its SYN was being sent. It must drop nothing else.
        let drops = report(&run.lab, "status")?["drops"].clone();
        let forged = ["unroutable", "martian", "flow_ended"];
        let others = drops.as_object().context("drops")?.keys().find(|reason| !forged.contains(&reason.as_str()));
        ensure!(others.is_none(), "the router dropped {drops}");
        for few in ["martian", "flow_ended"] {
            ensure!(drops[few].as_u64().unwrap_or(0) < sent >> 14, "the router dropped {drops} of {sent}");
        }
        println!(
            "{sent} SYNs, {opened} half-open connections: {asked} answers on connections, {} datagrams answered, {} lost on the wires; dropped {drops}",
            datagrams.answered,
            datagrams.lost.len(),
        );
        Ok(())
    }
}
