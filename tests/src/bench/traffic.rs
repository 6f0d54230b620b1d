//! Traffic that goes on until it is ended, and what of it arrives when.
//!
//! One process sends and receives: so a limit that holds data back for seconds delays no report about it, and a window
//! of time is cut out of the middle. What is still on its way at the end is thrown away.

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

/// Bytes of a full frame, from the Ethernet header, and of what a TCP segment (with timestamps) or a datagram carries in
/// it.
pub(super) const FRAME: u32 = 1514;
pub(super) const SEGMENT: u32 = 1448;
pub(super) const DATAGRAM: u32 = 1472;

/// How long a connection may take through a limit.
const PATIENCE: Duration = Duration::from_secs(20);
/// At most this long after the end a thread sees it.
const LOOK: Duration = Duration::from_millis(50);
/// Between two bursts of datagrams.
const PAUSE: Duration = Duration::from_micros(500);
/// Bytes that a receiver's socket holds: it is never what loses datagrams.
const ROOM: usize = 16 << 20;

/// A sender's and a receiver's threads.
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

/// Bytes of payload so far, of each connection or of all datagrams, and when the last of them came.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    bytes: Vec<u64>,
    last: Instant,
}

impl Arrived {
    /// Bits a second between then and now, from arrival to arrival; 0 where nothing came.
    pub(super) fn rate_since(&self, then: &Self) -> f64 {
        let seconds = (self.last - then.last).as_secs_f64();
        if seconds > 0.0 { self.bytes_since(then).sum::<u64>() as f64 * 8.0 / seconds } else { 0.0 }
    }

    /// What the flow that got least got between then and now, to the part that each would have of equal ones.
    pub(super) fn least_since(&self, then: &Self) -> f64 {
        let all: u64 = self.bytes_since(then).sum();
        let least = self.bytes_since(then).min().unwrap_or(0);
        if all > 0 { (least * self.bytes.len() as u64) as f64 / all as f64 } else { 0.0 }
    }

    fn bytes_since(&self, then: &Self) -> impl Iterator<Item = u64> {
        self.bytes.iter().zip(&then.bytes).map(|(now, then)| now - then)
    }
}

/// Linux's congestion control by default, and one that loss does not slow down.
pub(super) const CUBIC: &str = "cubic";
pub(super) const BBR: &str = "bbr";

impl Traffic {
    /// So many TCP connections, each of which sends as fast as this congestion control lets it.
    pub(super) fn tcp(client: &Host, server: &Host, to: SocketAddrV4, flows: u32, control: &str) -> Result<Self> {
        Self::connected(client, server, to, flows, control, write)
    }

    /// So many TCP connections that have no more to send than this many bits a second together, on the wire.
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
            // Closing resets: nothing of a connection is sent after its end.
            setsockopt(&sender, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            let (receiver, _) = listener.accept().context("a connection is gone")?;
            receiver.set_read_timeout(Some(LOOK))?;
            traffic.spawn(move |shared| send(sender, shared));
            traffic.spawn(move |shared| read(receiver, flow, shared));
        }
        Ok(traffic)
    }

    /// Datagrams that fill their frames, on the wire at this many bits a second.
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
                // What a full queue of the sender's own refuses is lost, as any other.
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

    /// What has arrived until now.
    pub(super) fn arrived(&self) -> Arrived {
        self.shared.arrived().clone()
    }

    /// Bits of payload a second that arrive in a window of this length.
    pub(super) fn rate(&self, window: Duration) -> f64 {
        let before = self.arrived();
        sleep(window);
        self.arrived().rate_since(&before)
    }

    /// Ends it.
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

    /// Bytes that a call moved: none where there was nothing to do within [`LOOK`], or where the other side has seen the
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

/// Sends as many full frames as make this many bits a second, those that are due after each pause at once.
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
