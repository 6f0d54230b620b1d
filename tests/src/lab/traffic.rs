//! Traffic that must survive what happens to the router: open connections, datagrams, and one client's HTTP requests.

use super::{DatagramReport, Datagrams, ECHO, Lab, Load, LoadReport, Result, Standing, UDP, WEB, report};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddrV4};

/// All of these, to a VIP that is [balanced everywhere](super::Cloud::balanced_everywhere).
#[derive(Debug)]
pub struct Traffic {
    pub standing: Standing,
    pub datagrams: Datagrams,
    pub requests: Load,
}

impl Traffic {
    /// Starts all of it, with this many open connections.
    pub fn start(lab: &Lab, vip: Ipv4Addr, sessions: usize) -> Result<Self> {
        let client = lab.client();
        let mut standing = Standing::open(client, SocketAddrV4::new(vip, ECHO.port), sessions)?;
        let datagrams = Datagrams::start(client, SocketAddrV4::new(vip, UDP.port))?;
        let requests = Load::start(client, SocketAddrV4::new(vip, WEB.port))?;
        datagrams.wait_for(100)?;
        requests.wait_for(10)?;
        standing.ask()?;
        Ok(Self { standing, datagrams, requests })
    }

    /// The flows of the open connections and of the datagrams, as client and VIP.
    #[must_use]
    pub fn flows(&self) -> Vec<(SocketAddrV4, SocketAddrV4)> {
        self.standing.flows(&self.datagrams)
    }

    /// Stops it; fails if a packet or request was lost.
    pub fn stop(self) -> Result<(DatagramReport, LoadReport)> {
        let (datagrams, requests) = (self.datagrams.stop()?, self.requests.stop()?);
        ensure!(datagrams.lost.is_empty(), "{} of {} datagrams are lost", datagrams.lost.len(), datagrams.answered);
        ensure!(requests.failures.is_empty(), "{:?}", requests.failures);
        Ok((datagrams, requests))
    }

    /// [`Self::stop`]; also fails unless the kernel counted every datagram in its flow, which is returned third.
    pub fn stop_counted(self, lab: &Lab) -> Result<(DatagramReport, LoadReport, Value)> {
        let client = self.datagrams.client().to_string();
        let (datagrams, requests) = self.stop()?;
        let flows = report(lab, "flows")?;
        let flows = flows["connections"].as_array().context("connections")?;
        let flow = flows.iter().find(|flow| flow["protocol"] == "udp" && flow["client"] == client);
        let flow = flow.context("the datagrams' flow")?.clone();
        for what in ["packetsIn", "packetsOut"] {
            ensure!(flow[what] == datagrams.answered, "{} datagrams, but {flow}", datagrams.answered);
        }
        Ok((datagrams, requests, flow))
    }
}
