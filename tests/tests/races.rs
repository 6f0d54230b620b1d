//! Two CPUs at once: the race rules of the flow table, on the real programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Barrier,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use vipgate_abi::{
    flow::{self, Flow, FlowKey, State, Word},
    hash,
    service::Algorithm,
};
use vipgate_tests::packet::{Bench, Frame, Hook, Verdict, tcp};

const TCP: u8 = 6;
const UDP: u8 = 17;
const VIP: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 80);
const BACKENDS: [SocketAddrV4; 2] =
    [SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 8080), SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 12), 8080)];
/// More connections than a bucket has room for.
const CLIENTS: u16 = 10;
const RUNS: u32 = 60_000;
/// Two guests that use the same source port, and the destinations that they connect to one after the other.
const GUESTS: [SocketAddrV4; 2] =
    [SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 40_000), SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 12), 40_000)];
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const DESTINATIONS: u16 = 1000;
const ROUNDS: u16 = 5_000;

#[test]
fn two_cpus_in_one_bucket_keep_the_race_rules_xdp() -> Result<()> {
    hammer(Hook::Xdp)
}

#[test]
fn two_cpus_in_one_bucket_keep_the_race_rules_tc() -> Result<()> {
    hammer(Hook::Tc)
}

#[test]
fn two_guests_at_once_never_get_the_same_port_towards_one_destination_xdp() -> Result<()> {
    contend(Hook::Xdp)
}

#[test]
fn two_guests_at_once_never_get_the_same_port_towards_one_destination_tc() -> Result<()> {
    contend(Hook::Tc)
}

#[test]
fn two_cpus_that_see_a_guests_new_socket_at_once_use_one_port_xdp() -> Result<()> {
    share_a_socket(Hook::Xdp)
}

#[test]
fn two_cpus_that_see_a_guests_new_socket_at_once_use_one_port_tc() -> Result<()> {
    share_a_socket(Hook::Tc)
}

#[test]
fn a_connection_whose_sides_end_it_at_once_is_closed_xdp() -> Result<()> {
    close_by_both(Hook::Xdp)
}

#[test]
fn a_connection_whose_sides_end_it_at_once_is_closed_tc() -> Result<()> {
    close_by_both(Hook::Tc)
}

/// Opens, answers, uses, ends and evicts the same few connections from two CPUs at once, and checks the table afterwards.
fn hammer(hook: Hook) -> Result<()> {
    let mut bench = Bench::with_buckets(hook, 1)?;
    let mut numbers = bench.serve(VIP, TCP, Algorithm::Maglev, &BACKENDS)?;
    numbers.extend(bench.serve(VIP, UDP, Algorithm::Maglev, &BACKENDS)?);
    let frames = frames();
    let verdicts = on_two_cpus(|cpu| {
        let mut verdicts = BTreeMap::new();
        let mut random = Random(0x9e37_79b9 + cpu as u64);
        for _ in 0..RUNS {
            let outcome = bench.run_shared(&frames[random.below(frames.len())])?;
            let verdict = match outcome.verdict {
                Verdict::Redirect => "sent",
                Verdict::Pass => "passed",
                Verdict::Drop => "dropped",
                Verdict::Other(_) => "broken",
            };
            *verdicts.entry(verdict).or_insert(0) += 1;
        }
        Ok(verdicts)
    })?;
    for verdicts in &verdicts {
        ensure!(!verdicts.contains_key("broken"), "{verdicts:?}");
        ensure!(verdicts.get("sent").is_some_and(|sent| *sent > RUNS / 20), "too few packets were sent: {verdicts:?}");
    }

    let seed = bench.config()?.flow_seed;
    let slots = bench.slots()?;
    let mut live: BTreeMap<u32, u32> = BTreeMap::new();
    for (index, (word, flow)) in (0..).zip(&slots) {
        ensure!(word.0 as u8 != State::Busy as u8, "slot {index} is left busy");
        if word.state() == State::Empty {
            continue;
        }
        check_whole(*word, flow, seed).with_context(|| format!("slot {index}: {word:x?} {flow:?}"))?;
        check_peer(index, flow, &slots).with_context(|| format!("slot {index}: {word:x?} {flow:?}"))?;
        if !flow.mark.is_reply() && word.state().is_live() {
            *live.entry(flow.backend()).or_default() += 1;
        }
    }
    for number in numbers {
        let (load, found) = (bench.load(number)?, live.get(&number).copied().unwrap_or(0));
        ensure!(load == found, "backend {number} counts {load} connections, the table holds {found}: {slots:x?}");
    }
    println!("{hook:?}: {verdicts:?}");
    Ok(())
}

/// Lets two guests connect to the same destination from the same port at the same moment, again and again (rule 9). Checks the
/// port that each got, and the table afterwards.
fn contend(hook: Hook) -> Result<()> {
    let mut bench = Bench::with_buckets(hook, 64)?;
    bench.masquerade(Bench::VIP, false)?;
    let lockstep = Lockstep::default();
    let [own, other] = on_two_cpus(|cpu| {
        let given = (0..ROUNDS).map(|round| connect(&bench, cpu, round, &lockstep)).collect::<Result<Vec<_>>>();
        lockstep.leave(cpu);
        given
    })?;

    for (round, ports) in own.iter().zip(&other).enumerate() {
        if let (Some(one), Some(another)) = ports {
            ensure!(one != another, "round {round}: both guests got port {one}");
        }
    }
    for given in [&own, &other] {
        let connected = given.iter().flatten().count();
        ensure!(connected > usize::from(ROUNDS / 20), "too few connections: {connected} of {ROUNDS}");
    }
    let slots = bench.slots()?;
    let mut keys = BTreeSet::new();
    for (index, (word, flow)) in (0..).zip(&slots) {
        ensure!(word.0 as u8 != State::Busy as u8, "slot {index} is left busy");
        if word.state() != State::Empty {
            ensure!(keys.insert(flow.key.words()), "slot {index} holds the same key as another one: {flow:?}");
            check_peer(index, flow, &slots).with_context(|| format!("slot {index}: {word:x?} {flow:?}"))?;
        }
    }
    let gave_up = own.iter().chain(&other).filter(|port| port.is_none()).count();
    println!("{hook:?}: {gave_up} of {} gave up", 2 * u32::from(ROUNDS));
    Ok(())
}

/// Lets a guest's socket send its first datagrams by two CPUs at the same moment, again and again. No datagram is lost, except
/// one that loses the race every time, and both leave by one port, on which the socket is answered.
fn share_a_socket(hook: Hook) -> Result<()> {
    let mut bench = Bench::with_buckets(hook, 1 << 13)?;
    bench.masquerade(Bench::VIP, false)?;
    let lockstep = Lockstep::default();
    let [own, other] = on_two_cpus(|cpu| {
        let sent = (0..ROUNDS).map(|round| {
            let server = SocketAddrV4::new(SERVER, 1 + round);
            let ask = Frame::udp(GUESTS[0], server);
            lockstep.step(cpu);
            let outcome = bench.run_shared(&ask)?;
            Ok((outcome.verdict == Verdict::Redirect).then_some(outcome.bytes))
        });
        let sent = sent.collect::<Result<Vec<_>>>();
        lockstep.leave(cpu);
        sent
    })?;
    let lost = own.iter().chain(&other).filter(|sent| sent.is_none()).count();
    println!("{hook:?}: {lost} of {} are lost", 2 * u32::from(ROUNDS));
    ensure!(lost < usize::from(ROUNDS / 500), "{lost} of {} are lost", 2 * u32::from(ROUNDS));
    for (round, pair) in own.iter().zip(&other).enumerate() {
        if let (Some(one), Some(another)) = pair {
            ensure!(one == another, "round {round}: they left by two ports");
        }
    }
    let slots = bench.slots()?;
    let held = slots.iter().filter(|(word, _)| word.state() != State::Empty).count();
    ensure!(held == 2 * usize::from(ROUNDS), "{held} slots");
    for (index, (word, flow)) in (0..).zip(&slots) {
        check_peer(index, flow, &slots).with_context(|| format!("slot {index}: {word:x?} {flow:?}"))?;
    }
    Ok(())
}

/// Lets two CPUs see the FINs of both sides at the same moment, again and again: each time, the connection is closed.
fn close_by_both(hook: Hook) -> Result<()> {
    let mut bench = Bench::with_buckets(hook, 1 << 13)?;
    bench.serve(VIP, TCP, Algorithm::Maglev, &BACKENDS[..1])?;
    let clients = || (0..ROUNDS).map(|round| SocketAddrV4::new(Bench::CLIENT, 40_000 + round));
    for client in clients() {
        let (from_client, from_backend) = ends(client);
        bench.run_shared(&from_client(tcp::SYN))?;
        bench.run_shared(&from_backend(tcp::SYN | tcp::ACK))?;
        bench.run_shared(&from_client(tcp::ACK))?;
    }
    let lockstep = Lockstep::default();
    on_two_cpus(|cpu| {
        let closed = clients().try_for_each(|client| {
            let (from_client, from_backend) = ends(client);
            let fin = tcp::FIN | tcp::ACK;
            let frame = if cpu == 0 { from_client(fin) } else { from_backend(fin) };
            lockstep.step(cpu);
            let verdict = bench.run_shared(&frame)?.verdict;
            ensure!(verdict == Verdict::Redirect, "{client}: {verdict:?}");
            Ok(())
        });
        lockstep.leave(cpu);
        closed
    })?;
    let states: Vec<State> = bench.slots()?.iter().map(|(word, _)| word.state()).collect();
    let count = |state| states.iter().filter(|held| **held == state).count();
    ensure!(count(State::Closing) == 0, "{} flows never close", count(State::Closing));
    ensure!(count(State::Closed) == 2 * usize::from(ROUNDS), "{} of them are closed", count(State::Closed));
    Ok(())
}

/// Segments of a client's connection to the first backend, with these flags: the client's, and the backend's.
fn ends(client: SocketAddrV4) -> (impl Fn(u8) -> Frame, impl Fn(u8) -> Frame) {
    (move |flags| Frame::tcp(client, VIP, flags), move |flags| Frame::tcp(BACKENDS[0], client, flags))
}

/// Connects a guest at the same moment as the other one, and ends the connection once the other one has connected, too. Returns
/// the port that the guest got; `None` if it was refused.
fn connect(bench: &Bench, guest: usize, round: u16, lockstep: &Lockstep) -> Result<Option<u16>> {
    let (from, server) = (GUESTS[guest], SocketAddrV4::new(SERVER, 1 + round % DESTINATIONS));
    let ask = Frame::tcp(from, server, tcp::SYN);
    lockstep.step(guest);
    let outcome = bench.run_shared(&ask)?;
    lockstep.step(guest);
    bench.run_shared(&Frame::tcp(from, server, tcp::RST))?;
    if outcome.verdict == Verdict::Drop {
        return Ok(None);
    }
    ensure!(outcome.verdict == Verdict::Redirect, "round {round}: verdict {:?}", outcome.verdict);
    let given = u16::from_be_bytes([outcome.bytes[34], outcome.bytes[35]]);
    let sent = ask.between(SocketAddrV4::new(Bench::VIP, given), server);
    ensure!(outcome.bytes == sent.forwarded(Bench::PUBLIC_MAC, Bench::GATEWAY_MAC).bytes(), "{:02x?}", outcome.bytes);
    Ok(Some(given))
}

/// Lets two threads take each step at the same moment. The first one to arrive spins: waking up would take longer than the
/// operations that must collide.
#[derive(Default)]
struct Lockstep([AtomicU32; 2]);

impl Lockstep {
    fn step(&self, own: usize) {
        let step = self.0[own].fetch_add(1, Ordering::AcqRel) + 1;
        while self.0[1 - own].load(Ordering::Acquire) < step {
            hint::spin_loop();
        }
    }

    /// Lets the other thread go on alone.
    fn leave(&self, own: usize) {
        self.0[own].store(u32::MAX, Ordering::Release);
    }
}

/// Runs `work` on two CPUs at once; returns the result of each.
fn on_two_cpus<T: Send>(work: impl Fn(usize) -> Result<T> + Sync) -> Result<[T; 2]> {
    let start = Barrier::new(2);
    let run = |cpu| {
        let pinned = pin(cpu);
        start.wait();
        pinned.and_then(|()| work(cpu))
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let own = run(0);
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok([own?, other?])
    })
}

/// A flow is consistent: its tag, key and rewrite belong together, and its mark to its word (rules 1, 2 and 4).
fn check_whole(word: Word, flow: &Flow, seed: u64) -> Result<()> {
    let marked = (flow.mark.state(), flow.mark.version());
    ensure!(marked == (word.state(), word.version()), "the mark does not mirror the word");
    ensure!(word.tag() == flow::tag(hash::flow(&flow.key, seed)), "the tag is another key's");
    let (client, port) = (u32::from(Bench::CLIENT).to_be(), VIP.port().to_be());
    let vip = u32::from(Bench::VIP).to_be();
    let backend = |addr: u32| BACKENDS.iter().any(|backend| u32::from(*backend.ip()).to_be() == addr);
    let key = &flow.key;
    if !flow.mark.is_reply() {
        ensure!((key.src, key.dst, key.dport) == (client, vip, port), "the key is not a client's");
        ensure!((flow.new_src, flow.new_sport) == (client, key.sport), "the client's address is changed");
        ensure!(backend(flow.new_dst), "the destination is not a backend");
    } else {
        ensure!(
            backend(key.src) && (key.dst, key.sport) == (client, BACKENDS[0].port().to_be()),
            "the key is not a backend's"
        );
        ensure!((flow.new_src, flow.new_sport) == (vip, port), "the answer does not come from the VIP");
        ensure!((flow.new_dst, flow.new_dport) == (client, key.dport), "the answer goes to another client");
    }
    Ok(())
}

/// Two flows that refer to each other are the two directions of one connection.
fn check_peer(index: u32, flow: &Flow, slots: &[(Word, Flow)]) -> Result<()> {
    let (word, peer) = slots.get(flow.peer as usize).context("a peer beyond the table")?;
    if word.state() == State::Empty || peer.peer != index {
        // The other direction was evicted while this one was being inserted: this one ages out.
        return Ok(());
    }
    ensure!(peer.mark.is_reply() != flow.mark.is_reply(), "both have the same direction: {peer:?}");
    ensure!(
        (peer.backend(), peer.generation) == (flow.backend(), flow.generation),
        "they have different backends: {peer:?}"
    );
    let mirrored =
        FlowKey { src: flow.new_dst, dst: flow.new_src, sport: flow.new_dport, dport: flow.new_sport, ..flow.key };
    ensure!(peer.key == mirrored, "the peer is not the other direction: {peer:?}");
    Ok(())
}

/// Every kind of packet that a connection may see.
fn frames() -> Vec<Frame> {
    let mut frames = Vec::new();
    for port in 0..CLIENTS {
        let client = SocketAddrV4::new(Bench::CLIENT, 40_000 + port);
        let fin = tcp::FIN | tcp::ACK;
        // Opens twice as often: the other frames need connections.
        for flags in [tcp::SYN, tcp::SYN, tcp::ACK, fin, tcp::RST] {
            frames.push(Frame::tcp(client, VIP, flags));
        }
        frames.extend([Frame::udp(client, VIP), Frame::udp(client, VIP)]);
        for backend in BACKENDS {
            for flags in [tcp::SYN | tcp::ACK, tcp::ACK, fin, tcp::RST] {
                frames.push(Frame::tcp(backend, client, flags));
            }
            frames.push(Frame::udp(backend, client));
        }
    }
    frames
}

fn pin(cpu: usize) -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    ensure!(cpus > 1, "a race needs two CPUs");
    let mut set = CpuSet::new();
    set.set(cpu % cpus)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot stay on one CPU")
}

/// Marsaglia's xorshift: the same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 32).unwrap_or_default() % end
    }
}
