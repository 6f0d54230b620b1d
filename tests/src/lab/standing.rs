//! What must survive whatever happens to the router: open connections, and the kernel's counts.

use super::{Datagrams, Host, Lab, Origin, Result, host::TcpSession, vipgate_binary, wait_until};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

/// Longer than a few passes of the sweeper.
const RESET: Duration = Duration::from_secs(30);

/// TCP connections of one client that stay open, each with the backend that answered on it first.
#[derive(Debug)]
pub struct Standing {
    vip: SocketAddrV4,
    sessions: Vec<(TcpSession, Origin)>,
}

impl Standing {
    pub fn open(client: &Host, vip: SocketAddrV4, count: usize) -> Result<Self> {
        let open = || {
            let mut session = client.tcp(vip)?;
            let origin = session.ask()?;
            Ok((session, origin))
        };
        Ok(Self { vip, sessions: (0..count).map(|_| open()).collect::<Result<_>>()? })
    }

    /// Asks on each connection; the same backend as before must answer.
    pub fn ask(&mut self) -> Result<()> {
        for (session, origin) in &mut self.sessions {
            let answer = session.ask()?;
            ensure!(answer == *origin, "{answer:?} answers for {origin:?}");
        }
        Ok(())
    }

    /// The flows of these connections and of the datagrams, as client and VIP.
    #[must_use]
    pub fn flows(&self, datagrams: &Datagrams) -> Vec<(SocketAddrV4, SocketAddrV4)> {
        let sessions = self.sessions.iter().map(|(_, origin)| (origin.client, self.vip));
        sessions.chain([(datagrams.client(), datagrams.vip())]).collect()
    }
}

/// Waits until no host has a TCP connection with its given peer any more. The hosts neither send nor close anything: the router
/// must reset both ends by itself.
pub fn wait_for_resets(ends: [(&Host, Ipv4Addr); 2]) -> Result<()> {
    wait_until("both ends of a silent connection to be reset", RESET, || {
        for (host, peer) in ends {
            let left = host.connections_with(peer)?;
            ensure!(left == 0, "{} has {left} connections with {peer}", host.name);
        }
        Ok(())
    })
}

/// The kernel's counts at one moment.
#[derive(Clone, Debug)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Reads the counts of all backends, and of the flows between these clients and VIPs.
    pub fn read(lab: &Lab, watched: &[(SocketAddrV4, SocketAddrV4)]) -> Result<Self> {
        let mut counts = BTreeMap::new();
        let status = report(lab, "status")?;
        for service in status["services"].as_array().context("services")? {
            for backend in service["backends"].as_array().context("backends")? {
                for what in ["connections", "packetsIn", "bytesIn", "packetsOut", "bytesOut"] {
                    let name = format!("{what} of backend {} at {}", backend["number"], service["port"]);
                    counts.insert(name, backend[what].as_u64().context("a count")?);
                }
            }
        }
        // Filtered: there may be ten thousand other flows.
        let listeners: BTreeSet<_> = watched.iter().map(|(_, vip)| *vip).collect();
        let mut flows = Vec::new();
        for listener in listeners {
            let listed = report(lab, &format!("flows --vip {} --port {}", listener.ip(), listener.port()))?;
            flows.extend(listed["connections"].as_array().context("connections")?.iter().cloned());
        }
        for (client, vip) in watched {
            let (client, vip) = (client.to_string(), vip.to_string());
            let flow = flows.iter().find(|flow| flow["client"] == client && flow["vip"] == vip);
            let flow = flow.with_context(|| format!("the flow of {client} is lost"))?;
            for what in ["packetsIn", "packetsOut"] {
                counts.insert(format!("{what} of {client}"), flow[what].as_u64().context("a count")?);
            }
        }
        Ok(Self(counts))
    }

    /// Number of connections made to the listener at this port.
    #[must_use]
    pub fn connections(&self, port: u16) -> u64 {
        let of = |name: &str| name.starts_with("connections of") && name.ends_with(&format!(" at {port}"));
        self.0.iter().filter(|(name, _)| of(name)).map(|(_, count)| count).sum()
    }

    /// Fails if a count is missing or smaller in `next`.
    pub fn check_grown(&self, next: &Self) -> Result<()> {
        for (name, count) in &self.0 {
            let now = next.0.get(name).with_context(|| format!("{name} is no longer counted"))?;
            ensure!(now >= count, "{name}: {count} became {now}");
        }
        Ok(())
    }
}

/// Runs a vipgate command that reads the lab's kernel tables, with these options; returns its JSON.
pub fn report(lab: &Lab, command: &str) -> Result<Value> {
    let mut vipgate = lab.router.command(vipgate_binary()?);
    let output =
        vipgate.args(command.split(' ')).args(["--output", "json", "--bpffs"]).arg(lab.bpffs.path()).output()?;
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}
