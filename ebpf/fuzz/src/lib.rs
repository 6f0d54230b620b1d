//! The packet path under arbitrary packets, tables and times.
//!
//! An input is a sequence of bytes that decodes to steps ([`input`]): services and backends come and go, packets arrive,
//! are answered, damaged, quoted in errors; guests get VIPs, and begin connections. It runs through the pipeline at both
//! hooks, compiled for the host. After every step the harness checks the packet (`judge`) and the flow table (`table`).
//! Both hooks must decide alike.
//!
//! The same function is the fuzz target (`cargo xtask fuzz`), a test over random inputs, and the test that replays
//! `regressions/` (inputs that once failed) and `seeds/` (inputs that reach states which random ones seldom reach).

mod errors;
#[path = "../../../tests/src/packet/frame.rs"]
pub mod frame;
mod hook;
pub mod input;
mod judge;
#[cfg(test)]
mod properties;
mod refusals;
mod reset;
mod states;
mod sweeper;
mod table;
mod traffic;
mod wire;
mod world;

use std::{
    ops::Add,
    sync::{Mutex, PoisonError},
};

use hook::{Hook, Outcome, Verdict};
use input::{Case, Step};
use judge::Judge;
use table::Table;
use traffic::{Sent, Traffic};
use vipgate_abi::counters::Reason;
use wire::Ipv4;
use world::World;

/// Length of a frame's first field, its destination.
const MAC_LEN: usize = 6;

/// Held while an input runs: the tables are statics of the process.
static TURN: Mutex<()> = Mutex::new(());

/// What inputs led to: shows that they reach the interesting cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub packets: u64,
    pub sent: u64,
    pub errors_translated: u64,
    /// Packets of connections that guests began.
    pub outbound: u64,
    /// Packets of the stack that were dropped at egress.
    pub stopped: u64,
    /// Packets that counted against a bandwidth limit.
    pub limited: u64,
    /// Packets that revived a connection that was over.
    pub revived: u64,
    /// Packets that were answered with a reset.
    pub reset: u64,
    /// Datagram connections that were evicted, for a full service or for a slot.
    pub gave_way: u64,
    /// Established connections that were evicted because they had been idle for too long.
    pub idle: u64,
    /// Packets that the stack refused.
    pub refused: u64,
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            sent: self.sent + other.sent,
            errors_translated: self.errors_translated + other.errors_translated,
            outbound: self.outbound + other.outbound,
            stopped: self.stopped + other.stopped,
            limited: self.limited + other.limited,
            revived: self.revived + other.revived,
            reset: self.reset + other.reset,
            gave_way: self.gave_way + other.gave_way,
            idle: self.idle + other.idle,
            refused: self.refused + other.refused,
        }
    }
}

/// Runs an input.
///
/// # Panics
/// A property does not hold: that is what inputs look for.
pub fn run(bytes: &[u8]) -> Tally {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let case = Case::decode(bytes);
    let [(at_xdp, tally), (at_tc, _)] = [Hook::Xdp, Hook::Tc].map(|hook| play(&case, hook));
    if !case.steps.iter().any(is_of_one_hook) {
        assert_eq!(at_xdp, at_tc, "the hooks decide differently");
    }
    tally
}

/// True for packets that differ between the hooks: TC always knows whether a frame is addressed to its device.
fn is_of_one_hook(step: &Step) -> bool {
    match step {
        Step::Mangle { offset, .. } => usize::from(*offset) < MAC_LEN,
        // XDP leaves errors that would leave by such an interface to the stack.
        Step::Buffers { .. } | Step::SocketsOnly { only: true, .. } => true,
        Step::Raw { bytes } => bytes.get(..MAC_LEN) != Some(&world::mac(world::PUBLIC)),
        Step::Ask { shape, .. }
        | Step::Answer { shape, .. }
        | Step::Again { shape, .. }
        | Step::Begin { shape, .. } => shape.buffer.is_some(),
        _ => false,
    }
}

/// Runs a case at one hook. Returns what became of each packet.
fn play(case: &Case, hook: Hook) -> (Vec<Outcome>, Tally) {
    let mut world = World::new(case.seed, case.buckets);
    let mut traffic = Traffic::default();
    let mut judge = Judge::new(hook);
    let mut outcomes = Vec::new();
    let mut tally = Tally::default();
    let mut before = Table::read(&world);
    for step in &case.steps {
        if world.change(step) {
            before = Table::read(&world);
            before.check();
            continue;
        }
        let Some(mut packet) = traffic.packet(step) else { continue };
        match hook {
            Hook::Xdp => packet.buffer = None,
            Hook::Tc => packet.first_buffer = None,
        }
        if let Step::Own { .. } = step {
            packet.run_as_own();
            let after = Table::read(&world);
            after.check();
            judge::own(&packet, &before, &after);
            before = after;
            continue;
        }
        if matches!(step, Step::OwnError { .. } | Step::Leave { .. }) {
            let departure = packet.run_at_egress();
            tally.errors_translated += u64::from(departure.translated);
            tally.stopped += u64::from(!departure.leaves);
            judge::departure(&packet, &departure, &before);
            judge.departed(&packet, &departure);
            continue;
        }
        let metered = world::metered();
        let was_direct = judge::is_direct(&packet);
        let outcome = packet.run(hook);
        if judge::is_direct(&packet) && !was_direct {
            judge::direct(&packet, &outcome);
            errors::about_direct(&packet, &before);
        }
        let after = Table::read(&world);
        after.check();
        tally.idle += before.check_kept(world.now, &after);
        tally.gave_way += before.gave_way(&after);
        tally.limited += u64::from(judge::metered(&packet, &outcome, &metered, &world::metered(), &after));
        judge.packet(&packet, &outcome, world.now, &before, &after);
        tally.refused += u64::from(errors::about_refused(&packet, &outcome, &after));
        tally.revived += u64::from(states::check(&packet, &outcome, world.now, &before, &after));
        reset::check(&packet, &outcome, &before, &after);
        tally.packets += 1;
        tally.reset += u64::from(outcome.verdict == Verdict::Reset);
        if let Some(ifindex) = outcome.verdict.leaves_by() {
            tally.sent += 1;
            let tells_its_ends = Ipv4::of_frame(&outcome.bytes)
                .is_some_and(|packet| packet.offset == 0 && packet.ports(&outcome.bytes).is_some());
            tally.errors_translated += u64::from(matches!(step, Step::Error { .. }));
            tally.outbound += u64::from(matches!(step, Step::Begin { .. }));
            if tells_its_ends {
                let left = outcome.bytes.clone();
                traffic.sent.push(Sent { came: packet.bytes, came_by: packet.ifindex, left, ifindex });
            }
        }
        // At TC the first tag is not in the frame: a frame that ends right after it is malformed at TC, unknown at XDP.
        let verdict = match outcome.verdict {
            Verdict::Pass(Reason::NotIpv4 | Reason::Tagged) => Verdict::Pass(Reason::Malformed),
            verdict => verdict,
        };
        outcomes.push(Outcome { verdict, ..outcome });
        before = after;
    }
    (outcomes, tally)
}
