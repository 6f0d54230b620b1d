//! The scheduler by instants of the test's choice; the prober against real sockets on the loopback.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use super::{
    scheduler::{Check, Noted, Scheduler},
    *,
};

const SECOND: Duration = Duration::from_secs(1);

fn target(number: u32) -> Target {
    let check = HealthCheck { interval: 10, healthy_threshold: 2, unhealthy_threshold: 3, ..HealthCheck::default() };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    Target { number, account: "account".into(), address, device: "lo".into(), check, healthy: true }
}

/// Backends of an account.
fn of_account(account: &str, numbers: std::ops::Range<u32>) -> Vec<Target> {
    let of = |number| Target { account: account.into(), ..target(number) };
    numbers.map(of).collect()
}

/// A scheduler on a clock of its own.
struct Clock {
    scheduler: Scheduler,
    now: Instant,
}

impl Clock {
    fn new() -> Self {
        let mut scheduler = Scheduler::default();
        scheduler.allow(100);
        Self { scheduler, now: Instant::now() }
    }

    fn watch(&mut self, vip: &str, targets: Vec<Target>) {
        self.scheduler.watch(vip, targets, self.now);
    }

    /// Goes on to the next check and begins it.
    fn next(&mut self) -> Check {
        self.now = self.now.max(self.scheduler.next().expect("a check is to come"));
        self.scheduler.begin(self.now).expect("it is due")
    }

    /// The next check finds this; the backend's health if that changed it.
    fn find(&mut self, finding: &Finding) -> Option<bool> {
        let check = self.next();
        self.end(&check, finding).health
    }

    /// A check has found this, and gives its slot back.
    fn end(&mut self, check: &Check, finding: &Finding) -> Noted {
        let noted = self.scheduler.done(check, finding, self.now);
        self.scheduler.give_back(&check.account);
        noted
    }
}

fn failed() -> Finding {
    Finding::Failed("refused".into())
}

#[test]
fn results_count_only_in_a_row() {
    let mut clock = Clock::new();
    clock.watch("v", vec![target(1)]);
    let mut find = |findings: &[(Finding, Option<bool>)]| {
        for (at, (finding, health)) in findings.iter().enumerate() {
            assert_eq!(clock.find(finding), *health, "{at}: {finding:?}");
        }
    };
    find(&[(failed(), None), (failed(), None), (Finding::Passed, None), (failed(), None), (failed(), None)]);
    // What the router could not ask says nothing, and does not end a row.
    find(&[(Finding::Inconclusive("no file".into()), None), (failed(), Some(false)), (failed(), None)]);
    find(&[(Finding::Passed, None), (failed(), None), (Finding::Passed, None), (Finding::Passed, Some(true))]);
}

#[test]
fn what_changed_is_told_until_it_is_stored() {
    let mut clock = Clock::new();
    clock.watch("v", vec![target(1)]);
    (0..3).for_each(|_| assert!(clock.find(&failed()) != Some(true)));
    let changes = clock.scheduler.take_changes();
    assert_eq!(changes, [(1, false)].into());
    // It could not be stored.
    clock.scheduler.return_changes(changes);
    assert_eq!(clock.scheduler.take_changes(), [(1, false)].into());
    // Stored: the reconciler tells it back. Then something else is stored, and is told of again.
    clock.watch("v", vec![Target { healthy: false, ..target(1) }]);
    assert!(!clock.scheduler.has_changes());
    clock.watch("v", vec![target(1)]);
    assert_eq!(clock.scheduler.take_changes(), [(1, false)].into());
    assert_eq!(clock.scheduler.count(), (1, 1));
}

#[test]
fn changed_settings_keep_what_was_found_and_another_address_does_not() {
    let mut clock = Clock::new();
    clock.watch("v", vec![target(1)]);
    (0..2).for_each(|_| assert_eq!(clock.find(&failed()), None));
    let mut patient = target(1);
    (patient.check.interval, patient.check.unhealthy_threshold) = (1, 4);
    clock.watch("v", vec![patient]);
    let before = clock.now;
    assert_eq!(clock.find(&failed()), None);
    assert!(clock.now - before <= SECOND, "the new interval holds at once");
    assert_eq!(clock.find(&failed()), Some(false));
    clock.scheduler.take_changes();

    let moved = Target { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 81)), ..target(1) };
    clock.watch("v", vec![moved]);
    assert_eq!(clock.scheduler.count(), (1, 0));
    assert!(!clock.scheduler.has_changes());
}

#[test]
fn a_backend_that_is_gone_is_not_checked_and_its_last_check_means_nothing() {
    let mut clock = Clock::new();
    let hasty = |number| {
        let mut target = target(number);
        target.check.unhealthy_threshold = 1;
        target
    };
    clock.watch("v", vec![hasty(1)]);
    let check = clock.next();
    clock.watch("v", vec![]);
    clock.watch("v", vec![hasty(1)]);
    let noted = clock.end(&check, &failed());
    assert_eq!(noted.health, None, "it was another backend's");
    assert_eq!(clock.find(&failed()), Some(false));
    // Its number goes to another VIP before its own lets go of it.
    clock.watch("w", vec![hasty(1)]);
    clock.watch("v", vec![]);
    assert_eq!(clock.scheduler.count().0, 1);
    clock.watch("w", vec![]);
    assert_eq!((clock.scheduler.next(), clock.scheduler.count().0), (None, 0));
}

#[test]
fn turns_are_spread_over_the_interval_and_none_is_left_out() {
    let mut clock = Clock::new();
    let start = clock.now;
    clock.watch("v", (0..1000).map(target).collect());
    let mut tenths = [0_u32; 10];
    let mut seen = BTreeSet::new();
    while clock.scheduler.next().is_some_and(|at| at < start + 10 * SECOND) {
        let check = clock.next();
        tenths[(clock.now - start).as_secs() as usize] += 1;
        seen.insert(check.number);
        clock.end(&check, &Finding::Passed);
    }
    assert_eq!(seen.len(), 1000);
    assert!(tenths.iter().all(|count| (60..150).contains(count)), "{tenths:?}");
}

#[test]
fn a_check_that_takes_longer_than_the_interval_is_not_doubled() {
    let mut clock = Clock::new();
    clock.watch("v", vec![target(1)]);
    let check = clock.next();
    assert_eq!(clock.scheduler.next(), None, "one at a time");
    clock.now += 60 * SECOND;
    assert!(clock.end(&check, &Finding::Passed).is_next);
    assert_eq!(clock.scheduler.next(), Some(clock.now));
}

#[test]
fn an_account_whose_backends_do_not_answer_keeps_no_others_from_being_asked() {
    let mut clock = Clock::new();
    clock.watch("greedy", of_account("greedy", 0..1000));
    clock.now += 10 * SECOND;
    let mut held: Vec<Check> = std::iter::from_fn(|| clock.scheduler.begin(clock.now)).collect();
    assert_eq!(held.len(), 80, "of 100 slots");
    clock.watch("meek", of_account("meek", 1000..1010));
    clock.now += 10 * SECOND;
    let meek: Vec<Check> = std::iter::from_fn(|| clock.scheduler.begin(clock.now)).collect();
    assert!(meek.len() == 10 && meek.iter().all(|check| &*check.account == "meek"));
    for check in &meek {
        clock.end(check, &Finding::Passed);
    }
    // The slots of those that end at last go to who has waited longest.
    let mut seen: BTreeSet<u32> = held.iter().map(|check| check.number).collect();
    while let Some(check) = held.pop() {
        if seen.len() == 1000 {
            break;
        }
        clock.end(&check, &failed());
        let next = clock.scheduler.begin(clock.now).expect("others wait");
        assert!(seen.insert(next.number), "{} is asked again before all others were", next.number);
        held.insert(0, next);
    }
    assert_eq!(seen.len(), 1000);
}

#[test]
fn a_backend_that_goes_while_it_waits_takes_nobodys_place() {
    let mut clock = Clock::new();
    clock.scheduler.allow(1);
    clock.watch("v", of_account("a", 0..1));
    clock.watch("w", of_account("a", 1..2));
    clock.watch("x", of_account("b", 2..3));
    clock.now += 10 * SECOND;
    let check = clock.scheduler.begin(clock.now).expect("one is due");
    assert!(clock.scheduler.begin(clock.now).is_none());
    for vip in ["v", "w", "x"] {
        clock.watch(vip, vec![]);
    }
    clock.watch("y", of_account("c", 3..4));
    clock.now += 10 * SECOND;
    assert!(clock.scheduler.begin(clock.now).is_none());
    clock.end(&check, &failed());
    assert_eq!(clock.scheduler.begin(clock.now).map(|check| check.number), Some(3));
    assert_eq!(clock.scheduler.running(), 1);
}

/// What is asked of a local socket.
fn question(protocol: Protocol, address: SocketAddr, patience: Duration) -> Question {
    Question { protocol, address, device: "lo".into(), patience }
}

const LOCAL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[tokio::test]
async fn tcp_passes_where_somebody_accepts_and_fails_where_nobody_listens() {
    for local in LOCAL {
        check_tcp(local).await;
    }
}

async fn check_tcp(local: IpAddr) {
    let listener = TcpListener::bind((local, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    assert_eq!(prober::probe(None, &question(Protocol::Tcp, address, SECOND)).await, Finding::Passed);
    // It is reset, so that nothing of it stays in TIME_WAIT.
    let (mut accepted, _) = listener.accept().expect("a connection came");
    let error = std::io::Read::read(&mut accepted, &mut [0]).expect_err("no orderly end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    drop(listener);
    let finding = prober::probe(None, &question(Protocol::Tcp, address, SECOND)).await;
    assert!(matches!(&finding, Finding::Failed(reason) if reason.contains("refused")), "{finding:?}");
}

#[tokio::test]
async fn udp_passes_on_an_answer_and_on_silence_and_fails_where_nobody_listens() {
    for local in LOCAL {
        check_udp(local).await;
    }
}

async fn check_udp(local: IpAddr) {
    let server = UdpSocket::bind((local, 0)).expect("a port is free");
    let address = server.local_addr().expect("it is bound");
    let silence = Duration::from_millis(50);
    assert_eq!(prober::probe(None, &question(Protocol::Udp, address, silence)).await, Finding::Passed);
    let answering = std::thread::spawn(move || {
        // The one before left its datagram.
        for _ in 0..2 {
            let (_, client) = server.recv_from(&mut [0; 16]).expect("somebody asks");
            let _ = server.send_to(b"here", client);
        }
    });
    // Far beyond the test's patience, should the answer not end it.
    assert_eq!(prober::probe(None, &question(Protocol::Udp, address, 3600 * SECOND)).await, Finding::Passed);
    answering.join().expect("the server has ended, its port is closed");
    let finding = prober::probe(None, &question(Protocol::Udp, address, 3600 * SECOND)).await;
    assert!(matches!(&finding, Finding::Failed(reason) if reason.contains("refused")), "{finding:?}");
}

/// 2,000 backends, checked every second: each of them is checked again and again, and each third one, which refuses, is
/// found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_thousand_backends_none_is_forgotten() {
    const BACKENDS: u32 = 2000;
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.expect("a port is free");
    let open = listener.local_addr().expect("it is bound").port();
    let closed = {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        held.local_addr().expect("it is bound").port()
    };
    let (tell, all_asked) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut asked, mut tell) = (BTreeSet::new(), Some(tell));
        while let Ok((stream, _)) = listener.accept().await {
            // Each backend is an address of its own.
            asked.extend(stream.local_addr().map(|address| address.ip()));
            if asked.len() as u32 == BACKENDS - BACKENDS.div_ceil(3)
                && let Some(tell) = tell.take()
            {
                let _ = tell.send(());
            }
        }
    });
    let check = HealthCheck { interval: 1, timeout: 60, unhealthy_threshold: 2, ..HealthCheck::default() };
    let backends = (0..BACKENDS).map(|number| Target {
        number,
        address: SocketAddr::from((
            Ipv4Addr::from(0x7f01_0000 + number),
            if number.is_multiple_of(3) { closed } else { open },
        )),
        check,
        account: "account".into(),
        device: "lo".into(),
        healthy: true,
    });
    let checks = HealthChecks::default();
    let now = Instant::now();
    checks.with_scheduler(|scheduler| scheduler.watch("v", backends.collect(), now));
    let _running = checks.probe();
    let all = async {
        all_asked.await.expect("it accepts for as long as the test runs");
        while checks.figures().unhealthy < BACKENDS.div_ceil(3) as usize {
            checks.shared.found.notified().await;
        }
    };
    tokio::time::timeout(60 * SECOND, all).await.unwrap_or_else(|_| panic!("{:?}", checks.figures()));
    let changes = checks.shared.scheduler().take_changes();
    assert!(changes.iter().all(|(number, healthy)| number.is_multiple_of(3) && !healthy));
    assert_eq!(changes.len(), BACKENDS.div_ceil(3) as usize);
}
