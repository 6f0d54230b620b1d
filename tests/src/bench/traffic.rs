//! Continuous traffic, and measurements of what arrives when.
//!
//! One process sends and receives. So reports are not delayed by a limit that holds data back for seconds, and a window of
//! time can be taken from the middle. What is in flight at the end is discarded.

use std::{
    ffi::OsString,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::Host;

/// Bytes of a full frame including the Ethernet header, and the payload of a TCP segment (with timestamps) and of a datagram
/// in it.
pub(super) const FRAME: u32 = 1514;
pub(super) const SEGMENT: u32 = 1448;
pub(super) const DATAGRAM: u32 = 1472;

/// Timeout for connecting through a limit.
const PATIENCE: Duration = Duration::from_secs(20);
/// A thread notices the end after at most this time.
const LOOK: Duration = Duration::from_millis(50);
/// Interval between two bursts of datagrams.
const PAUSE: Duration = Duration::from_micros(500);
/// Size of a receiver's socket buffer in bytes, big enough to lose no datagrams.
const ROOM: usize = 16 << 20;

/// The threads of a sender and a receiver.
#[derive(Debug)]
pub(super) struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    arrived: Mutex<Arrived>,
}

/// Bytes of payload so far, for each connection or for all datagrams, and when the last of them arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    bytes: Vec<u64>,
    last: Instant,
}

impl Arrived {
    /// Bits per second between then and now, from arrival to arrival; 0 if nothing arrived.
    pub(super) fn rate_since(&self, then: &Self) -> f64 {
        let seconds = (self.last - then.last).as_secs_f64();
        if seconds > 0.0 { self.bytes_since(then).sum::<u64>() as f64 * 8.0 / seconds } else { 0.0 }
    }

    /// Throughput of the slowest flow between then and now, relative to an equal part.
    pub(super) fn least_since(&self, then: &Self) -> f64 {
        let all: u64 = self.bytes_since(then).sum();
        let least = self.bytes_since(then).min().unwrap_or(0);
        if all > 0 { (least * self.bytes.len() as u64) as f64 / all as f64 } else { 0.0 }
    }

    fn bytes_since(&self, then: &Self) -> impl Iterator<Item = u64> {
        self.bytes.iter().zip(&then.bytes).map(|(now, then)| now - then)
    }
}

/// Linux's default congestion control, and one that does not slow down on loss.
pub(super) const CUBIC: &str = "cubic";
pub(super) const BBR: &str = "bbr";

impl Traffic {
    /// Starts this many TCP connections, each sending as fast as this congestion control allows.
    pub(super) fn tcp(client: &Host, server: &Host, to: SocketAddrV4, flows: u32, control: &str) -> Result<Self> {
        Self::connected(client, server, to, flows, control, write)
    }

    /// Starts this many TCP connections that together send only this many bits per second on the wire.
    pub(super) fn trickle(client: &Host, server: &Host, to: SocketAddrV4, flows: u32, rate: f64) -> Result<Self> {
        let pause = Duration::from_secs_f64(f64::from(8 * FRAME * flows) / rate);
        Self::connected(client, server, to, flows, CUBIC, move |mut sender, shared| {
            paced(rate / f64::from(flows), pause, shared, || {
                shared.bytes(sender.write(&[0; SEGMENT as usize])).context("a sender's connection broke").map(drop)
            })
        })
    }

    fn connected(
        client: &Host,
        server: &Host,
        to: SocketAddrV4,
        flows: u32,
        control: &str,
        send: impl Fn(TcpStream, &Shared) -> Result<()> + Copy + Send + 'static,
    ) -> Result<Self> {
        let listener = server.namespace.within(|| {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, to.port())).with_context(|| format!("cannot listen at {to}"))
        })?;
        let mut traffic = Self::new(flows);
        for flow in 0..flows as usize {
            let sender = client.namespace.within(|| {
                TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE)
                    .with_context(|| format!("cannot connect to {to}"))
            })?;
            sender.set_write_timeout(Some(LOOK))?;
            setsockopt(&sender, sockopt::TcpCongestion, &OsString::from(control))
                .with_context(|| format!("this kernel has no TCP congestion control {control}"))?;
            // Closing resets the connection, so that nothing is sent after its end.
            setsockopt(&sender, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            let (receiver, _) = listener.accept().context("a connection is gone")?;
            receiver.set_read_timeout(Some(LOOK))?;
            traffic.spawn(move |shared| send(sender, shared));
            traffic.spawn(move |shared| read(receiver, flow, shared));
        }
        Ok(traffic)
    }

    /// Sends datagrams that fill their frames, at this many bits per second on the wire.
    pub(super) fn udp(client: &Host, server: &Host, to: SocketAddrV4, rate: f64) -> Result<Self> {
        let receiver = server.namespace.within(|| {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, to.port())).with_context(|| format!("cannot bind at {to}"))
        })?;
        setsockopt(&receiver, sockopt::RcvBufForce, &ROOM)?;
        receiver.set_read_timeout(Some(LOOK))?;
        let sender = client.namespace.within(|| {
            let socket = UdpSocket::bind((client.address, 0)).context("cannot open a UDP socket")?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        let mut traffic = Self::new(1);
        traffic.spawn(move |shared| {
            paced(rate, PAUSE, shared, || {
                // A datagram that the sender's own full queue refuses is lost like any other.
                let _ = sender.send(&[0; DATAGRAM as usize]);
                Ok(())
            })
        });
        traffic.spawn(move |shared| receive(&receiver, shared));
        Ok(traffic)
    }

    fn new(flows: u32) -> Self {
        let arrived = Mutex::new(Arrived { bytes: vec![0; flows as usize], last: Instant::now() });
        Self { shared: Arc::new(Shared { stop: AtomicBool::new(false), arrived }), threads: Vec::new() }
    }

    fn spawn(&mut self, work: impl FnOnce(&Shared) -> Result<()> + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::spawn(move || work(&shared)));
    }

    /// What has arrived so far.
    pub(super) fn arrived(&self) -> Arrived {
        self.shared.arrived().clone()
    }

    /// Bits of payload per second that arrive in a window of this length.
    pub(super) fn rate(&self, window: Duration) -> f64 {
        let before = self.arrived();
        sleep(window);
        self.arrived().rate_since(&before)
    }

    /// Stops the traffic.
    pub(super) fn end(mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let results: Vec<_> = self
            .threads
            .drain(..)
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().collect()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn ended(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of bytes that a call moved: 0 if there was nothing to do within [`LOOK`], or if the other side has noticed the
    /// end first.
    fn bytes(&self, done: std::io::Result<usize>) -> std::io::Result<usize> {
        match done {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(0),
            Err(_) if self.ended() => Ok(0),
            done => done,
        }
    }

    fn add(&self, flow: usize, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut arrived = self.arrived();
        arrived.bytes[flow] += bytes as u64;
        arrived.last = Instant::now();
    }
}

fn write(mut sender: TcpStream, shared: &Shared) -> Result<()> {
    let data = vec![0; 128 << 10];
    while !shared.ended() {
        shared.bytes(sender.write(&data)).context("a sender's connection broke")?;
    }
    Ok(())
}

fn read(mut receiver: TcpStream, flow: usize, shared: &Shared) -> Result<()> {
    let mut data = vec![0; 256 << 10];
    while !shared.ended() {
        let bytes = shared.bytes(receiver.read(&mut data)).context("a receiver's connection broke")?;
        shared.add(flow, bytes);
    }
    Ok(())
}

/// Sends full frames at this many bits per second, in a burst after each pause.
fn paced(rate: f64, pause: Duration, shared: &Shared, mut one: impl FnMut() -> Result<()>) -> Result<()> {
    let (start, mut sent) = (Instant::now(), 0.0);
    while !shared.ended() {
        let due = start.elapsed().as_secs_f64() * rate / (f64::from(FRAME) * 8.0);
        while sent < due {
            one()?;
            sent += 1.0;
        }
        sleep(pause);
    }
    Ok(())
}

fn receive(receiver: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut data = [0; DATAGRAM as usize];
    while !shared.ended() {
        let bytes = shared.bytes(receiver.recv(&mut data)).context("a receiver's socket broke")?;
        shared.add(0, bytes);
    }
    Ok(())
}
