//! Asks the backends whose turn it is.
//!
//! TCP: a connection that is made is a pass; it is reset at once, which leaves no socket in TIME_WAIT on the router.
//! UDP: a datagram of one byte is sent. That it is answered proves the service, that it is not proves nothing, as only
//! the service knows what it answers to: so silence passes, and what the network says against it (port, host or network
//! unreachable, nobody on the link who has the address) fails.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{setsockopt, sockopt},
};
use tokio::{
    net::{TcpSocket, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tracing::{info, warn};

use super::{Counts, Finding, Shared, board::Check};
use crate::{net::Netlink, state::Protocol};

/// What is sent to a UDP service.
const DATAGRAM: [u8; 1] = [0];
/// Checks at a time: what 100,000 checks a minute need when nobody answers within the default timeout of 2 s, and some.
const MOST: usize = 4096;
/// Over which the rate of checks is measured.
const WINDOW: Duration = Duration::from_secs(5);
/// A check that begins later than this is told in the log,
const LATE: Duration = Duration::from_secs(1);
/// once in so long.
const TELL_LATE: Duration = Duration::from_secs(60);

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

/// Checks whoever's turn it is, for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let most = most_at_once();
    let places = Arc::new(Semaphore::new(most));
    // Ends its tasks when this one ends.
    let mut checks = JoinSet::new();
    let mut window = Window { since: Instant::now(), begun: 0, latest: Duration::ZERO };
    let mut told_late: Option<Instant> = None;
    let net = match Netlink::open() {
        Ok(net) => Some(net),
        Err(error) => {
            warn!(%error, "checks by UDP do not see hosts that are gone");
            None
        }
    };
    loop {
        while checks.try_join_next().is_some() {}
        let next = shared.board().next();
        let wait = async {
            match next {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = shared.rescheduled.notified() => continue,
        }
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let now = Instant::now();
        let Some(check) = shared.board().begin(now) else { continue };
        let late = now.saturating_duration_since(check.due);
        window.note(now, late, &shared.counts);
        if late > LATE && told_late.is_none_or(|at| at.elapsed() > TELL_LATE) {
            told_late = Some(now);
            let running = most - places.available_permits();
            warn!(?late, running, most, "health checks begin late; longer intervals or shorter timeouts help");
        }
        let (shared, net) = (Arc::clone(&shared), net.clone());
        checks.spawn(async move {
            let finding = probe(net.as_ref(), check.protocol, check.address, check.timeout).await;
            drop(place);
            note(&shared, &check, &finding);
        });
    }
}

/// Measures the rate and the delay of checks: what is told is what the last whole window saw.
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

fn note(shared: &Shared, check: &Check, finding: &Finding) {
    let counts = &shared.counts;
    let count = match finding {
        Finding::Passed => &counts.passed,
        Finding::Failed(_) => &counts.failed,
        Finding::Inconclusive(_) => &counts.inconclusive,
    };
    count.fetch_add(1, Ordering::Relaxed);
    let noted = shared.board().done(check, finding, Instant::now());
    if noted.is_next {
        shared.rescheduled.notify_one();
    }
    if noted.health.is_none() {
        return;
    }
    counts.changed.fetch_add(1, Ordering::Relaxed);
    shared.found.notify_one();
    let (vip, backend, address) = (&*check.vip, check.number, check.address);
    match finding {
        Finding::Failed(reason) => warn!(vip, backend, %address, reason, "a backend is unhealthy"),
        Finding::Passed | Finding::Inconclusive(_) => info!(vip, backend, %address, "a backend is healthy again"),
    }
}

/// One check.
pub(super) async fn probe(
    net: Option<&Netlink>,
    protocol: Protocol,
    address: SocketAddrV4,
    patience: Duration,
) -> Finding {
    let answer = async {
        match protocol {
            Protocol::Tcp => ask_tcp(address).await,
            Protocol::Udp => ask_udp(address).await,
        }
    };
    match (timeout(patience, answer).await, protocol) {
        (Ok(Ok(())), _) => Finding::Passed,
        // The kernel takes longer than most timeouts to say so by itself.
        (Err(_), Protocol::Udp) => match net {
            Some(net) if net.is_unresolved(*address.ip()).await => {
                Finding::Failed("no host on the link has its address".to_owned())
            }
            _ => Finding::Passed,
        },
        (Err(_), Protocol::Tcp) => Finding::Failed(format!("no connection within {} s", patience.as_secs())),
        (Ok(Err(error)), _) if is_ours(&error) => Finding::Inconclusive(error.to_string()),
        (Ok(Err(error)), _) => Finding::Failed(error.to_string()),
    }
}

async fn ask_tcp(address: SocketAddrV4) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // Its close is a reset.
    socket.set_zero_linger()?;
    socket.connect(SocketAddr::V4(address)).await.map(drop)
}

/// Ends with the first thing that is heard, answer or error.
async fn ask_udp(address: SocketAddrV4) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    // Tells of hosts that are unreachable, too, not of ports alone.
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    socket.connect(address).await?;
    socket.send(&DATAGRAM).await?;
    socket.recv(&mut [0; 1]).await.map(drop)
}

/// Whether an error is the router's own, which lacks something, and not the backend's.
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
        )
    )
}
