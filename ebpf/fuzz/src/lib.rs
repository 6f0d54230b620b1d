//! The packet path under arbitrary packets, tables and times.
//!
//! An input is a sequence of bytes that says what happens ([`input`]): services and backends come and go, packets arrive,
//! are answered, damaged, quoted in errors; guests get VIPs, and begin connections. It runs through the pipeline at both hooks, compiled for the host, and after
//! every step everything holds that must hold whatever came: of the packet ([`judge`]) and of the flow table ([`table`]).
//! Both hooks decide alike.
//!
//! The same function is the fuzz target (`cargo xtask fuzz`), a test over random inputs, and the test that replays
//! `regressions/`, inputs that once failed, and `seeds/`, inputs that lead where random ones seldom come.

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

/// The tables are the process's.
static TURN: Mutex<()> = Mutex::new(());

/// What an input led to, to see that inputs lead anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub packets: u64,
    pub sent: u64,
    pub errors_translated: u64,
    /// Packets that left by what guests began.
    pub outbound: u64,
    /// Packets of the stack's that did not leave.
    pub stopped: u64,
    /// Packets that counted against a bandwidth limit.
    pub limited: u64,
    /// Packets that proved that a connection lives which was over.
    pub revived: u64,
    /// Packets that were answered with a reset.
    pub reset: u64,
    /// Datagrams' connections that gave way in a full service, or for a slot.
    pub gave_way: u64,
    /// Connections that both sides had opened, and that were idle for too long when another one needed their slot.
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
/// Something did not hold: that is what is looked for.
pub fn run(bytes: &[u8]) -> Tally {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let case = Case::decode(bytes);
    let [(at_xdp, tally), (at_tc, _)] = [Hook::Xdp, Hook::Tc].map(|hook| play(&case, hook));
    if !case.steps.iter().any(is_of_one_hook) {
        assert_eq!(at_xdp, at_tc, "the hooks decide differently");
    }
    tally
}

/// True for packets that are not the same at both hooks: TC knows whether each is addressed to its device.
fn is_of_one_hook(step: &Step) -> bool {
    match step {
        Step::Mangle { offset, .. } => usize::from(*offset) < MAC_LEN,
        // XDP leaves errors to the stack that would go to such a port.
        Step::Buffers { .. } | Step::SocketsOnly { only: true, .. } => true,
        Step::Raw { bytes } => bytes.get(..MAC_LEN) != Some(&world::mac(world::PUBLIC)),
        Step::Ask { shape, .. }
        | Step::Answer { shape, .. }
        | Step::Again { shape, .. }
        | Step::Begin { shape, .. } => shape.buffer.is_some(),
        _ => false,
    }
}

/// Runs a case at one hook: what became of each packet.
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
        // At TC the first tag is not in the frame: one cut short behind it is malformed there, unknown at XDP.
        let verdict = match outcome.verdict {
            Verdict::Pass(Reason::NotIpv4 | Reason::Tagged) => Verdict::Pass(Reason::Malformed),
            verdict => verdict,
        };
        outcomes.push(Outcome { verdict, ..outcome });
        before = after;
    }
    (outcomes, tally)
}
