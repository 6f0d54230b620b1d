//! The loads that are measured: bulk TCP, small datagrams, new connections. Hosts in namespaces around the machine generate
//! them; the figures exclude the hosts' own processor time.
//!
//! Touches sockets of the hosts, and runs iperf3 and wrk there.

use super::ways::Opened;
use crate::{
    bench::{bulk, connections, peers::generate},
    lab::{Host, Process, Result, host::HTTP_PORT, wait_until},
    vm::VmLab,
};
use anyhow::{Context as _, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub(super) const BULK_PORT: u16 = 5201;
pub(super) const PACKET_PORT: u16 = 7003;

/// UDP payload of a 64-byte frame, as counted on the wire.
const PAYLOAD: [u8; 18] = [0; 18];
/// Flows of small packets, a multiple of the number of backends.
const FLOWS: usize = 48;
/// Most packets in flight: fewer than any queue on the way holds, so that none is dropped.
const WINDOW: u64 = 192;
/// Receive buffer in bytes; a packet takes two or three thousand of it.
const RECEIVE_BUFFER: usize = 4 << 20;
/// After this time without an arrival, packets in flight count as lost. A busy, emulated machine that runs code for the first
/// time may need more than a second.
const LOST: Duration = Duration::from_secs(5);
/// How often a server checks whether it must end.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// One TCP stream by iperf3.
    Bulk,
    /// As many small datagrams as arrive.
    Packets,
    /// HTTP by wrk, one request on each connection, 16 connections at a time.
    Connections,
}

impl Load {
    pub(super) const ALL: [Self; 3] = [Self::Bulk, Self::Packets, Self::Connections];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk TCP",
            Self::Packets => "64-byte UDP",
            Self::Connections => "new connections",
        }
    }

    /// What is counted, per second of the machine's processors.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Bulk => "Mbit/CPU-s",
            Self::Packets => "packets/CPU-s",
            Self::Connections => "connections/CPU-s",
        }
    }

    /// Sends this load over an open way for some seconds; returns the amount that passed, in its unit.
    pub(super) fn run(self, lab: &VmLab, servers: &Servers, opened: &Opened, seconds: u32) -> Result<f64> {
        match self {
            Self::Bulk => {
                let target = opened.target(BULK_PORT, 0);
                let mut command = lab.client().namespace.command("iperf3");
                command.arg("--client").arg(target.ip().to_string()).arg("--json");
                command.args(["--time", &seconds.to_string()]);
                Ok(bulk::sample(&generate(&mut command)?)?.done * 1e3)
            }
            Self::Packets => send(lab.client(), servers, opened, Duration::from_secs(seconds.into())),
            Self::Connections => {
                let mut command = lab.client().namespace.command("wrk");
                command.args(["--threads", "1", "--connections", "16", "--latency", "--timeout", "10s", "--duration"]);
                command.arg(format!("{seconds}s")).args(["--header", "Connection: close"]);
                command.arg(format!("http://{}/", opened.target(HTTP_PORT, 0)));
                Ok(connections::sample(&generate(&mut command)?)?.done)
            }
        }
    }
}

/// What the backends run besides nginx.
#[derive(Debug)]
pub(super) struct Servers {
    arrived: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    _iperf: Process,
}

impl Servers {
    /// Starts iperf3 on the first backend, and on each backend a socket that counts the small packets.
    pub(super) fn start(lab: &VmLab) -> Result<Self> {
        for host in lab.clients().iter().chain(lab.backends()) {
            // Otherwise the side that closes first runs out of ports after some seconds.
            host.namespace.sysctl("net/ipv4/tcp_max_tw_buckets", "8")?;
        }
        let backend = &lab.backends()[0].namespace;
        let mut command = backend.command("iperf3");
        command.arg("--server");
        let iperf = Process::start("iperf3", &command, lab.directory())?;
        wait_until("iperf3 to listen", Duration::from_secs(20), || {
            let words = format!("--no-header --listening --tcp --numeric sport = :{BULK_PORT}");
            ensure!(!backend.run("ss", &words)?.trim().is_empty(), "nothing listens");
            Ok(())
        })?;
        let servers = Self { arrived: Arc::default(), stop: Arc::default(), _iperf: iperf };
        for backend in lab.backends() {
            let socket = backend.namespace.within(|| {
                let socket = UdpSocket::bind(("0.0.0.0", PACKET_PORT)).context("cannot bind a UDP socket")?;
                socket.set_read_timeout(Some(LOOK))?;
                // Holds a whole window of packets while the receiving thread has no processor.
                setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("cannot set a socket's buffer")?;
                Ok(socket)
            })?;
            let (arrived, stop) = (Arc::clone(&servers.arrived), Arc::clone(&servers.stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Excludes the health check's datagrams, which have another length.
                    if socket.recv(&mut [0; 128]).is_ok_and(|length| length == PAYLOAD.len()) {
                        arrived.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        Ok(servers)
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends on all flows in turn for this long, with at most a window in flight; returns the number of packets that arrived.
fn send(client: &Host, servers: &Servers, opened: &Opened, time: Duration) -> Result<f64> {
    let sockets = client.namespace.within(|| {
        let connected = |flow| {
            let socket = UdpSocket::bind((client.address, 0)).context("cannot open a UDP socket")?;
            socket.connect(opened.target(PACKET_PORT, flow))?;
            Ok(socket)
        };
        (0..FLOWS).map(connected).collect::<Result<Vec<UdpSocket>>>()
    })?;
    let (before, end) = (servers.arrived(), Instant::now() + time);
    let mut turns = sockets.iter().cycle();
    let (mut sent, mut lost, mut arrived) = (0, 0, 0);
    let mut progress = Instant::now();
    // At the end it waits for the packets in flight: they have cost processor time, too.
    while Instant::now() < end || arrived + lost < sent {
        let now = servers.arrived() - before;
        if now != arrived {
            (arrived, progress) = (now, Instant::now());
        }
        if Instant::now() < end && sent < arrived + lost + WINDOW {
            // A packet that cannot be sent does not arrive.
            let _ = turns.next().context("a socket")?.send(&PAYLOAD);
            sent += 1;
        } else if progress.elapsed() > LOST {
            (lost, progress) = (sent - arrived, Instant::now());
        } else {
            thread::sleep(Duration::from_micros(50));
        }
    }
    ensure!(arrived >= sent / 100 * 95, "{arrived} of {sent} packets arrived");
    Ok(arrived as f64)
}
