//! Probes the backends that are due.
//!
//! TCP: a connection that is made is a pass; it is reset at once, which leaves no socket in TIME_WAIT on the router.
//! UDP: a datagram of one byte is sent. That it is answered proves the service, that it is not proves nothing, as only
//! the service knows what it answers to: so silence passes, and what the network says against it (port, host or network
//! unreachable, nobody on the link who has the address) fails.
//!
//! A probe that the router itself could not send proves nothing about a backend: where a check did not pass, the kernel is asked
//! whether the router has a way to the backend's network, by a device that works.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{setsockopt, sockopt},
};
use tokio::{
    net::{TcpSocket, UdpSocket},
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tracing::{info, warn};
use vipgate_state::Protocol;

use super::{Counts, Finding, Question, Shared, scheduler::Check};
use crate::{
    log_pacing::LogPacer,
    net::{Netlink, Reach},
};

/// What is sent to a UDP service.
const DATAGRAM: [u8; 1] = [0];
/// Checks at a time: what 100,000 checks a minute of one account need when nobody answers within the default timeout of 2 s,
/// and some.
const MOST: usize = 4608;
/// Over which the rate of checks is measured.
const WINDOW: Duration = Duration::from_secs(5);
/// A check that begins later than this is logged.
const LATE: Duration = Duration::from_secs(1);

/// How many checks run at a time: no more than half the files that the process may open.
pub(super) fn most_at_once() -> usize {
    let files = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
            raised.map_or(soft, |()| hard)
        }
        Ok((soft, _)) => soft,
        Err(_) => 1024,
    };
    usize::try_from(files / 2).unwrap_or(MOST).clamp(1, MOST)
}

/// Probes the backends that are due, for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let most = most_at_once();
    shared.scheduler().allow(most);
    // Its tasks end with this one.
    let mut checks = JoinSet::new();
    let mut window = Window { since: Instant::now(), begun: 0, latest: Duration::ZERO };
    let (mut late_pacer, inconclusive_pacer) = (LogPacer::default(), Arc::new(Mutex::new(LogPacer::default())));
    let net = match Netlink::open() {
        Ok(net) => Some(net),
        Err(error) => {
            warn!(%error, "checks do not see whether hosts or the way to them are gone");
            None
        }
    };
    loop {
        while checks.try_join_next().is_some() {}
        let next = shared.scheduler().next();
        let wait = async {
            match next {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = shared.rescheduled.notified() => {}
        }
        let now = Instant::now();
        while let Some(slot) = Slot::take(&shared, now) {
            let late = now.saturating_duration_since(slot.check.due);
            window.note(now, late, &shared.counts);
            if late > LATE && late_pacer.may_log(now) {
                let (running, account) = (shared.scheduler().running(), &*slot.check.account);
                warn!(
                    ?late,
                    running, most, account, "health checks begin late; longer intervals or shorter timeouts help"
                );
            }
            let (net, pacer) = (net.clone(), Arc::clone(&inconclusive_pacer));
            checks.spawn(async move {
                let finding = probe(net.as_ref(), &slot.check.question).await;
                note(&slot.shared, &slot.check, &finding, &pacer);
            });
        }
    }
}

/// A check that runs. Its slot is given back when it is dropped.
struct Slot {
    shared: Arc<Shared>,
    check: Check,
}

impl Slot {
    fn take(shared: &Arc<Shared>, now: Instant) -> Option<Self> {
        let check = shared.scheduler().begin(now)?;
        Some(Self { shared: Arc::clone(shared), check })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.shared.scheduler().give_back(&self.check.account) {
            self.shared.rescheduled.notify_one();
        }
    }
}

/// Measures the rate and the delay of checks: the figures are those of the last whole window.
struct Window {
    since: Instant,
    begun: u64,
    latest: Duration,
}

impl Window {
    fn note(&mut self, now: Instant, late: Duration, counts: &Counts) {
        self.begun += 1;
        self.latest = self.latest.max(late);
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            let per_minute = self.begun as f64 * 60.0 / elapsed.as_secs_f64();
            counts.per_minute.store(per_minute.round() as u64, Ordering::Relaxed);
            let latest = u64::try_from(self.latest.as_millis()).unwrap_or(u64::MAX);
            counts.late_milliseconds.store(latest, Ordering::Relaxed);
            *self = Self { since: now, begun: 0, latest: Duration::ZERO };
        }
    }
}

fn note(shared: &Shared, check: &Check, finding: &Finding, pacer: &Mutex<LogPacer>) {
    let counts = &shared.counts;
    let count = match finding {
        Finding::Passed => &counts.passed,
        Finding::Failed(_) => &counts.failed,
        Finding::Inconclusive(_) => &counts.inconclusive,
    };
    count.fetch_add(1, Ordering::Relaxed);
    let (vip, backend, address) = (&*check.vip, check.number, check.question.address);
    if let Finding::Inconclusive(reason) = finding
        && pacer.lock().unwrap_or_else(PoisonError::into_inner).may_log(Instant::now())
    {
        warn!(vip, backend, %address, reason, "a backend cannot be asked; such ones keep the health that they had");
    }
    let noted = shared.scheduler().done(check, finding, Instant::now());
    if noted.is_next {
        shared.rescheduled.notify_one();
    }
    if noted.health.is_none() {
        return;
    }
    counts.changed.fetch_add(1, Ordering::Relaxed);
    shared.found.notify_one();
    match finding {
        Finding::Failed(reason) => warn!(vip, backend, %address, reason, "a backend is unhealthy"),
        Finding::Passed | Finding::Inconclusive(_) => info!(vip, backend, %address, "a backend is healthy again"),
    }
}

/// One check.
pub(super) async fn probe(net: Option<&Netlink>, question: &Question) -> Finding {
    let answer = async {
        match question.protocol {
            Protocol::Tcp => ask_tcp(question).await,
            Protocol::Udp => ask_udp(question).await,
        }
    };
    let heard = match timeout(question.patience, answer).await {
        Ok(Ok(())) => return Finding::Passed,
        Ok(Err(error)) if is_ours(&error) => return Finding::Inconclusive(error.to_string()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Finding::Failed(error.to_string());
        }
        heard => heard,
    };
    // The kernel takes longer than most timeouts to report this, and does not report where the fault lies.
    let reach = match net {
        Some(net) => net.reach(question.address.ip(), &question.device).await,
        None => Reach::Open,
    };
    match (reach, heard) {
        (Reach::Missing(reason), _) => Finding::Inconclusive(reason),
        (Reach::Unresolved, _) => Finding::Failed("no host on the link has its address".to_owned()),
        (Reach::Open, Ok(Err(error))) => Finding::Failed(error.to_string()),
        (Reach::Open, _) if question.protocol == Protocol::Udp => Finding::Passed,
        (Reach::Open, _) => Finding::Failed(format!("no connection within {} s", question.patience.as_secs())),
    }
}

async fn ask_tcp(question: &Question) -> io::Result<()> {
    let socket = match question.address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Closing it then sends a reset.
    socket.set_zero_linger()?;
    socket.bind_device(Some(question.device.as_bytes()))?;
    socket.connect(question.address).await.map(drop)
}

/// Returns with the first answer or error.
async fn ask_udp(question: &Question) -> io::Result<()> {
    // These options tell of hosts that are unreachable, too, not of ports alone.
    let socket = match question.address {
        SocketAddr::V4(_) => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            socket
        }
        SocketAddr::V6(_) => {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?;
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            socket
        }
    };
    socket.bind_device(Some(question.device.as_bytes()))?;
    socket.connect(question.address).await?;
    socket.send(&DATAGRAM).await?;
    socket.recv(&mut [0; 1]).await.map(drop)
}

/// Whether an error comes from the router, which lacks or forbids something, and not from the backend.
fn is_ours(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                | libc::EAGAIN
                | libc::ENODEV
                | libc::ENETDOWN
                | libc::EPERM
                | libc::EACCES
        )
    )
}
