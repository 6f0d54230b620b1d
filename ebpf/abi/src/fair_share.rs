//! Fair shares of a congested meter's queue: what each flow may have in it.
//!
//! If a meter only dropped packets that find the queue full, chance would decide whose packets those are, and flows that keep
//! the queue full would shut others out: of eight TCP connections at 1 Mbit/s two starved.
//!
//! So a queue has dynamic thresholds (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
//! Switches", 1998): one flow may have in it [a multiple](MULTIPLE) of the free room. Flows that send more are
//! dropped first, flows that send little are not shut out, and equally greedy flows get equal shares. A single flow leaves
//! about a fifth of the queue empty. In a queue of a few frames one frame is much: to leave room for others,
//! a flow that sent a frame or more recently leaves room for a frame, and one that sent less leaves as much as it sent.
//!
//! A flow's part of the queue is estimated by what it sent recently: a sum that halves with each period, half the longest
//! queue. It is only updated while the meter is congested, so that other flows pay nothing. Two flows with the same place
//! in the table overwrite each other, and both count as flows that send little.

use crate::meter::{FRAME, Rate};

/// What a flow sent recently: an element of the METER_SHARES map, whose index is the flow's [`Share::place`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// [`crate::flow::Flow::peer`], which no other flow has.
    pub flow: u32,
    /// The period in which it last sent something; wraps.
    pub period: u32,
    /// Units of time that what it sent recently takes at the meter's rate.
    pub recent: u64,
}

const _: () = assert!(size_of::<Share>() == 16);

crate::pod!(Share);

/// Elements of METER_SHARES, a power of two: of a thousand flows each meets another with a probability of 1.5%.
pub const SHARES: u32 = 1 << 16;

/// Ratio of what a flow may have in a queue to the free room.
pub const MULTIPLE: u64 = 4;

impl Share {
    /// The index of a flow's share.
    #[inline(always)]
    pub const fn place(flow: u32) -> u32 {
        flow & (SHARES - 1)
    }

    /// This flow's share now, given the element at its place.
    #[inline(always)]
    pub const fn of(self, flow: u32, rate: &Rate, now: u64) -> Self {
        let period = match now.checked_div(rate.congested) {
            Some(period) => period as u32,
            None => 0,
        };
        let ago = period.wrapping_sub(self.period);
        let recent = if self.flow == flow && ago < u64::BITS { self.recent >> ago } else { 0 };
        Self { flow, period, recent }
    }

    /// The share after a packet of this cost; `None` if the flow has no room for it in a queue of this [lead](Rate::lead).
    #[inline(always)]
    pub const fn admit(self, rate: &Rate, lead: u64, cost: u64) -> Option<Self> {
        let frame = rate.cost(FRAME);
        let left_to_others = if self.recent < frame { self.recent } else { frame };
        let room = rate.tolerance.saturating_sub(lead);
        if lead > rate.tolerance || self.recent / MULTIPLE + left_to_others > room {
            return None;
        }
        Some(Self { recent: self.recent.saturating_add(cost), ..self })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::meter::{HIGHEST, LOWEST};

    const MS: u64 = 1_000_000;

    /// A meter and the shares of its flows, as the programs keep them.
    struct Queue {
        rate: Rate,
        word: u64,
        shares: Vec<Share>,
    }

    impl Queue {
        fn new(bits_per_second: u64, flows: usize) -> Self {
            Self { rate: Rate::queued(bits_per_second, 1), word: 0, shares: vec![Share::default(); flows] }
        }

        /// Whether a frame of a flow passes.
        fn passes(&mut self, flow: usize, nanoseconds: u64) -> bool {
            let (rate, now) = (self.rate, self.rate.clock(nanoseconds));
            let (lead, cost) = (rate.lead(self.word, now), rate.cost(FRAME));
            let mut share = self.shares[flow];
            if lead > rate.congested {
                match share.of(flow as u32, &rate, now).admit(&rate, lead, cost) {
                    Some(after) => share = after,
                    None => return false,
                }
            }
            let Some(next) = rate.admit(self.word, now, cost) else { return false };
            (self.word, self.shares[flow]) = (next, share);
            true
        }

        /// Frames that pass of each flow, and that it offers: so many hundredths of the limit, the second half of a time.
        fn share(&mut self, offers: &[u64]) -> (Vec<u64>, Vec<u64>) {
            let frame = 8 * u64::from(FRAME) * 1_000_000_000 / self.rate.bits_per_second().expect("a limit");
            // Another flow's frame comes at another moment.
            let mut due: Vec<u64> = (0..offers.len() as u64).map(|flow| flow * frame / 97).collect();
            let (mut passed, mut offered) = (vec![0; offers.len()], vec![0; offers.len()]);
            let end = 2000 * MS + 200 * frame;
            while let Some((flow, now)) = due.iter().copied().enumerate().min_by_key(|(_, due)| *due)
                && now < end
            {
                let counts = u64::from(now >= end / 2);
                offered[flow] += counts;
                passed[flow] += u64::from(self.passes(flow, now)) * counts;
                due[flow] += frame * 100 / offers[flow];
            }
            (passed, offered)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn greedy_flows_get_equal_parts_however_greedy(
            bits in 1_000_000u64..30_000_000, offers in proptest::collection::vec(110u64..1000, 2..12),
        ) {
            let (passed, _) = Queue::new(bits, offers.len()).share(&offers);
            let fair = passed.iter().sum::<u64>() / offers.len() as u64;
            for passed in &passed {
                prop_assert!(*passed * 2 >= fair && *passed <= 2 * fair, "of {offers:?}: {passed:?}, fair is {fair}");
            }
        }

        #[test]
        fn a_flow_that_asks_for_less_than_its_part_is_not_shut_out(
            bits in 1_000_000u64..30_000_000, greedy in proptest::collection::vec(110u64..1000, 1..8),
        ) {
            let modest = 100 / (greedy.len() as u64 + 1) / 2;
            let offers: Vec<u64> = [modest].into_iter().chain(greedy).collect();
            let (passed, offered) = Queue::new(bits, offers.len()).share(&offers);
            // In a queue of a few frames chance has its part, and so has it where few were offered.
            let least = if bits > 10_000_000 { offered[0] * 19 / 20 - 3 } else { offered[0] * 3 / 5 };
            prop_assert!(passed[0] >= least, "of {offers:?}: {passed:?} of {offered:?}");
        }

        #[test]
        fn a_flow_alone_gets_the_rate_and_most_of_the_queue(bits in LOWEST..HIGHEST, offer in 101u64..1000) {
            let mut queue = Queue::new(bits, 1);
            let frame = 8 * u64::from(FRAME) * 1_000_000_000 / bits;
            let (mut now, mut passed, mut longest) = (0, 0, 0);
            while passed < 10_000 {
                passed += u64::from(queue.passes(0, now));
                longest = longest.max(queue.rate.lead(queue.word, queue.rate.clock(now)));
                now += (frame * 100 / offer).max(1);
            }
            let (rate, cost) = (queue.rate, queue.rate.cost(FRAME));
            if passed * cost > 4 * rate.tolerance {
                prop_assert!(longest >= rate.tolerance / 10 * 7, "{longest} of {}", rate.tolerance);
            }
            prop_assert!(longest <= rate.tolerance + cost);
            // It never ran dry.
            prop_assert_eq!(queue.word, passed * cost);
        }

        #[test]
        fn nothing_overflows(bits in any::<u64>(), held in any::<(u32, u32, u64)>(), now in any::<u64>(), lead in any::<u64>()) {
            let held = Share { flow: held.0, period: held.1, recent: held.2 };
            for rate in [Rate::policed(bits), Rate::queued(bits, 1), Rate::default()] {
                let share = held.of(held.flow, &rate, now);
                prop_assert!(share.recent <= held.recent);
                share.admit(&rate, lead, rate.cost(u32::MAX));
            }
        }
    }

    #[test]
    fn a_share_halves_with_each_period_and_is_no_other_flows() {
        let rate = Rate::queued(1_000_000, 1);
        let held = Share { flow: 7, period: 10, recent: 1 << 20 };
        for (period, recent) in [(10, 1 << 20), (11, 1 << 19), (30, 1), (31, 0), (10 + 64, 0)] {
            assert_eq!(held.of(7, &rate, period * rate.congested), Share { flow: 7, period: period as u32, recent });
        }
        assert_eq!(held.of(7 + SHARES, &rate, 10 * rate.congested).recent, 0);
        assert_eq!(Share::place(7), Share::place(7 + SHARES));
    }
}
