//! What must survive whatever happens to the router: connections that stand, and what the kernel has counted.

use super::{Datagrams, Host, Lab, Origin, Result, host::TcpSession, vipgate_binary, wait_until};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

/// Passes of the sweeper, and more.
const TOLD: Duration = Duration::from_secs(30);

/// TCP connections of one client that stay open, and who answered on each of them first.
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

    /// Each of them answers, and nobody else answers on it.
    pub fn ask(&mut self) -> Result<()> {
        for (session, origin) in &mut self.sessions {
            let answer = session.ask()?;
            ensure!(answer == *origin, "{answer:?} answers for {origin:?}");
        }
        Ok(())
    }

    /// Their flows and that of the datagrams: client and VIP.
    #[must_use]
    pub fn flows(&self, datagrams: &Datagrams) -> Vec<(SocketAddrV4, SocketAddrV4)> {
        let sessions = self.sessions.iter().map(|(_, origin)| (origin.client, self.vip));
        sessions.chain([(datagrams.client(), datagrams.vip())]).collect()
    }
}

/// Waits until none of these hosts has a TCP connection with the peer beside it any more: who of them was told of its end, and
/// neither sends nor closes anything, was told without being asked.
pub fn all_are_told(ends: [(&Host, Ipv4Addr); 2]) -> Result<()> {
    wait_until("both ends of a silent connection to be told", TOLD, || {
        for (host, peer) in ends {
            let left = host.connections_with(peer)?;
            ensure!(left == 0, "{} has {left} connections with {peer}", host.name);
        }
        Ok(())
    })
}

/// What the kernel has counted at one moment.
#[derive(Clone, Debug)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Those of all backends, and of the flows between these clients and VIPs.
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
        // Not all of them: there may be ten thousand others.
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

    /// Connections that were made to the listener at this port.
    #[must_use]
    pub fn connections(&self, port: u16) -> u64 {
        let of = |name: &str| name.starts_with("connections of") && name.ends_with(&format!(" at {port}"));
        self.0.iter().filter(|(name, _)| of(name)).map(|(_, count)| count).sum()
    }

    /// No count is missing or smaller in `next`.
    pub fn check_grown(&self, next: &Self) -> Result<()> {
        for (name, count) in &self.0 {
            let now = next.0.get(name).with_context(|| format!("{name} is not counted any more"))?;
            ensure!(now >= count, "{name}: {count} became {now}");
        }
        Ok(())
    }
}

/// What a command of vipgate that reads the kernel's tables, with these options, tells about this lab's.
pub fn report(lab: &Lab, command: &str) -> Result<Value> {
    let mut vipgate = lab.router.command(vipgate_binary()?);
    let output =
        vipgate.args(command.split(' ')).args(["--output", "json", "--bpffs"]).arg(lab.bpffs.path()).output()?;
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}
