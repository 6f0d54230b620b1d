//! Checks how packets change the states of connections that are over: not at all, until they prove that the connection is
//! alive.

use vipgate_abi::{
    config::Config,
    flow::{
        FlowKey,
        State::{self, Answered, Closed, Established, Reset, Resumed},
    },
};
use vipgate_pipeline::maps;

use crate::{
    hook::{Arriving, Outcome, Verdict},
    judge::key,
    table::{Slot, Table},
    wire::{Ipv4, TCP},
};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A TCP segment. A later fragment shows its addresses only, and may belong to any connection between them.
#[derive(Clone, Copy)]
struct Segment {
    key: FlowKey,
    is_later_fragment: bool,
    flags: u8,
}

impl Segment {
    fn of_frame(bytes: &[u8]) -> Option<Self> {
        let packet = Ipv4::of_frame(bytes).filter(|packet| packet.protocol == TCP)?;
        if packet.offset != 0 {
            return Some(Self { key: key(&packet, (0, 0)), is_later_fragment: true, flags: ACK });
        }
        let key = key(&packet, packet.ports(bytes)?);
        Some(Self { key, is_later_fragment: false, flags: *bytes.get(packet.l4 + 13)? })
    }

    fn is_of(&self, slot: &Slot) -> bool {
        let key = slot.flow.key;
        self.key == if self.is_later_fragment { FlowKey { sport: 0, dport: 0, ..key } } else { key }
    }
}

/// A connection that is over.
struct Over<'a> {
    /// Its first flow, and the flow of its answers.
    both: [&'a Slot; 2],
    /// Index of the flow that the packet belongs to.
    own: usize,
    flags: u8,
    now: u32,
}

/// Checks the connections that were over before a packet. Returns true if the packet revived one.
pub(crate) fn check(came: &Arriving, outcome: &Outcome, now: u32, before: &Table, after: &Table) -> bool {
    let segment = Segment::of_frame(&came.bytes);
    let stored = |slot: &Slot| (slot.word.state(), slot.word.seen());
    let mut lives_on = false;
    for both in before.connections().filter(|both| both[0].word.state().is_over() && both[0].is_current()) {
        let is = both.map(stored);
        let left = both.map(|slot| after.same(slot).map(stored));
        let own = segment.and_then(|segment| Some((both.iter().position(|slot| segment.is_of(slot))?, segment)));
        let Some((own, Segment { flags, is_later_fragment, .. })) = own else {
            let stays = left.into_iter().zip(is).all(|(left, is)| left.is_none_or(|left| left == is));
            assert!(stays, "another's packet makes {left:?} of {is:?}");
            continue;
        };
        let over = Over { both, own, flags, now };
        let [Some(first), Some(answers)] = left else {
            assert!(over.starts_anew(), "ended by flags {flags:#x} at {now}: {is:?}");
            continue;
        };
        let (left, becomes) = ([first, answers], over.becomes());
        let is_hit = matches!(outcome.verdict, Verdict::Redirect(_)) && !is_later_fragment;
        assert!(
            left == becomes || left == is && !is_hit,
            "flags {flags:#x} of flow {own} at {now} make {left:?} of {is:?} instead of {becomes:?}"
        );
        lives_on |= first.0.is_live();
    }
    lives_on
}

impl Over<'_> {
    /// Jiffies since the connection was closed, and since a packet last showed that it may be alive.
    fn ages(&self) -> [u32; 2] {
        self.both.map(|slot| slot.word.age(self.now))
    }

    fn starts_anew(&self) -> bool {
        starts_anew(self.both[self.own], Some(self.both[1]), self.now, self.flags)
    }

    /// The expected states and times afterwards.
    fn becomes(&self) -> [(State, u32); 2] {
        let is = self.both.map(|slot| (slot.word.state(), slot.word.seen()));
        let [closed, _] = self.ages();
        let is_resumed = is.map(|(state, _)| state == Resumed);
        let has = |flags| self.flags & flags != 0;
        if has(RST) {
            let over = if is.iter().any(|(state, _)| *state == Reset) { Reset } else { Closed };
            return if is_resumed == [false; 2] { is } else { [(over, self.now); 2] };
        }
        if has(FIN) {
            return is;
        }
        if has(SYN) {
            return if has(ACK) && self.own == 1 { [(Answered, self.now); 2] } else { is };
        }
        if closed <= second() {
            return [is[0], (is[1].0, self.now)];
        }
        match (is_resumed[self.own], is_resumed[1 - self.own]) {
            (_, true) => [(Established, self.now); 2],
            (true, false) => is,
            (false, false) => {
                let mut becomes = [is[0], (is[1].0, self.now)];
                becomes[self.own].0 = Resumed;
                becomes
            }
        }
    }
}

/// True for a SYN of the client if the connection is over, not by a reset, and its answers have been silent for more than a
/// second.
pub(crate) fn starts_anew(known: &Slot, answers: Option<&Slot>, now: u32, flags: u8) -> bool {
    let opens = flags & (FIN | SYN | RST | ACK) == SYN;
    let is_reset = [Some(known), answers].iter().flatten().any(|slot| slot.word.state() == Reset);
    let is_silent = answers.is_some_and(|answers| answers.word.age(now) > second());
    known.word.state().is_over() && !is_reset && !known.flow.mark.is_reply() && opens && is_silent
}

fn second() -> u32 {
    maps::CONFIG.get(0).map_or(0, Config::second)
}
