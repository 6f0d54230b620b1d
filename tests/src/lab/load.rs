//! Steady background traffic, and a report of what happened to it while a test did something to the router.

use super::{Host, Result, host::fetch};
use anyhow::Context as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddrV4, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// From one request's start to the next's: frequent, but leaves the machine time for other work.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(4);

fn lock(failures: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    failures.lock().unwrap_or_else(PoisonError::into_inner)
}

/// HTTP requests one after another at a steady rate, each on a new connection.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<Result<LoadReport>>>,
}

#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    pub answered: u64,
    /// Error messages in their order.
    pub failures: Vec<String>,
}

impl Load {
    pub fn start(client: &Host, vip: SocketAddrV4) -> Result<Self> {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let patience = client.patience;
        let (stopped, counted, failed) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failures));
        let thread = client.namespace.spawn(move || {
            let mut report = LoadReport::default();
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                due = (due + BETWEEN_REQUESTS).max(Instant::now());
                match fetch(vip, patience) {
                    Ok(_) => report.answered += 1,
                    Err(error) => {
                        let failure = format!("{error:#}");
                        lock(&failed).push(failure.clone());
                        report.failures.push(failure);
                    }
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
            report
        })?;
        Ok(Self { stop, done, failures, thread: Some(thread) })
    }

    /// Number of requests finished so far, answered or not.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Fails if a request has failed so far.
    pub fn check(&self) -> Result<()> {
        let failures = lock(&self.failures);
        anyhow::ensure!(failures.is_empty(), "of {} requests failed: {failures:?}", self.done());
        Ok(())
    }

    /// Waits for `more` further requests, so that an event in between has met traffic.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.done() + more;
        super::wait_until("the load to go on", Duration::from_secs(60), || {
            anyhow::ensure!(self.done() >= goal, "{} of {goal} requests", self.done());
            Ok(())
        })
    }

    pub fn stop(mut self) -> Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a load is stopped once")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Numbered datagrams of one flow at a steady rate, each of which must be answered.
#[derive(Debug)]
pub struct Datagrams {
    client: SocketAddrV4,
    vip: SocketAddrV4,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<DatagramReport>>>,
}

#[derive(Clone, Debug, Default)]
pub struct DatagramReport {
    pub answered: u64,
    /// Numbers of the datagrams without an answer.
    pub lost: BTreeSet<u64>,
}

/// From one datagram to the next.
const INTERVAL: Duration = Duration::from_micros(500);
/// Most unanswered datagrams at a time: fewer than any socket on the way can queue, so that a busy machine loses none.
const WINDOW: usize = 64;
/// After this time the sender goes on without the answer. A datagram counts as lost only if its answer never comes.
const ANSWER: Duration = Duration::from_secs(2);

impl Datagrams {
    pub fn start(client: &Host, vip: SocketAddrV4) -> Result<Self> {
        let socket = client.namespace.within(|| {
            let socket = UdpSocket::bind((client.address, 0)).context("cannot open a UDP socket")?;
            socket.set_read_timeout(Some(INTERVAL))?;
            socket.connect(vip)?;
            Ok(socket)
        })?;
        let port = socket.local_addr()?.port();
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = thread::spawn(move || exchange(&socket, &stopped, &counted));
        Ok(Self { client: SocketAddrV4::new(client.address, port), vip, stop, answered, thread: Some(thread) })
    }

    /// The flow's address and port at the client.
    #[must_use]
    pub fn client(&self) -> SocketAddrV4 {
        self.client
    }

    /// The address that the datagrams are sent to.
    #[must_use]
    pub fn vip(&self) -> SocketAddrV4 {
        self.vip
    }

    /// Waits for `more` further answers.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        super::wait_until("datagrams to be answered", Duration::from_secs(20), || {
            let answered = self.answered.load(Ordering::Relaxed);
            anyhow::ensure!(answered >= goal, "{answered} of {goal}");
            Ok(())
        })
    }

    /// Stops sending, waits for the last answers, and returns the report.
    pub fn stop(mut self) -> Result<DatagramReport> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a load is stopped once")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn exchange(socket: &UdpSocket, stop: &AtomicBool, answered: &AtomicU64) -> Result<DatagramReport> {
    let mut report = DatagramReport::default();
    let mut waiting: BTreeMap<u64, Instant> = BTreeMap::new();
    let (mut next, mut due) = (0_u64, Instant::now());
    while !waiting.is_empty() || !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if !stop.load(Ordering::Relaxed) && now >= due && waiting.len() < WINDOW {
            // A datagram that could not be sent has no answer either.
            let _ = socket.send(next.to_string().as_bytes());
            waiting.insert(next, now);
            next += 1;
            // Not in the past, or a pause would be made up for by a burst.
            due = (due + INTERVAL).max(now);
            continue;
        }
        let mut answer = [0; 128];
        let length = socket.recv(&mut answer).unwrap_or(0);
        let text = String::from_utf8_lossy(&answer[..length]);
        if let Some(number) = text.split(' ').next().and_then(|number| number.parse().ok())
            && (waiting.remove(&number).is_some() || report.lost.remove(&number))
        {
            report.answered += 1;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        let late = |_: &u64, sent: &mut Instant| sent.elapsed() > ANSWER;
        report.lost.extend(waiting.extract_if(.., late).map(|(number, _)| number));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_comes_late_is_not_lost() -> Result<()> {
        let (client, server) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        client.set_read_timeout(Some(INTERVAL))?;
        client.connect(server.local_addr()?)?;
        server.connect(client.local_addr()?)?;
        let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        let report = thread::scope(|scope| {
            let asking = scope.spawn(|| exchange(&client, &stop, &answered));
            let answer = |text: &String| server.send(format!("{text} server").as_bytes());
            let next = || {
                let mut text = [0; 64];
                let length = server.recv(&mut text)?;
                std::io::Result::Ok(String::from_utf8_lossy(&text[..length]).into_owned())
            };
            // The server sends the second half only after the first was given up.
            let mut asked = (0..2 * WINDOW).map(|_| next()).collect::<std::io::Result<Vec<_>>>()?;
            // The first datagram stays without an answer.
            asked.drain(1..).try_for_each(|text| answer(&text).map(drop))?;
            while answered.load(Ordering::Relaxed) < WINDOW as u64 {
                answer(&next()?)?;
            }
            stop.store(true, Ordering::Relaxed);
            server.set_read_timeout(Some(INTERVAL))?;
            while !asking.is_finished() {
                next().ok().map(|text| answer(&text)).transpose()?;
            }
            asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        assert_eq!(Vec::from_iter(report.lost), [0]);
        Ok(())
    }
}
