//! Bandwidth limits: the elements of the METERS map, their running state, and the arithmetic of both.
//!
//! A meter is the generic cell rate algorithm in its virtual-scheduling form (ITU-T I.371, annex A). Its whole state is
//! one 64-bit word, the *theoretical arrival time*: when what has passed so far will have used its time at the rate.
//! A packet [is admitted](Rate::admit) unless that lies further ahead of the clock than the tolerance, and then
//! moves it on by its own time at the rate, its [cost](Rate::cost). How far it is [ahead](Rate::lead) is the delay of a
//! queue that is served at exactly the rate, whether or not there is such a queue.
//!
//! A word is advanced by compare-and-swap: so a meter is exact however many CPUs share it, and needs no lock. The
//! configuration is in another map than the words, so that neither writer overwrites the other.
//!
//! # Fragments
//! A fragmented packet is lost if any fragment is lost. A packet larger than the tolerance, of which there are many at low
//! rates, would never come through. So if a packet's first fragment finds the meter idle, its other fragments are admitted,
//! too, until the word is as far ahead as the largest packet would move it ([`Rate::admit_rest`]). That is a point in time,
//! which passes: neither repeated first fragments nor repeated later ones get more than one such packet out of an idle
//! meter, and the rate still holds.
//!
//! # Units
//! Time is counted in fractions of a nanosecond, [`Rate::fraction_bits`] binary digits of them, as many as the rate needs:
//! a byte is at least 2^14 such units long, so that rounding a 64-byte frame's cost to one is off by less than one part
//! in 2^20, and all larger ones by less. From 8 kbit/s to 400 Gbit/s that takes 0 to 20 digits.
//!
//! # The clock's end
//! Words and clock count modulo 2^64 units: 584 years without fractions, 146 years at 1 Mbit/s, 52 days at 1 Gbit/s, 5
//! hours at 400 Gbit/s. Only their difference matters, so a wrap does not affect a meter in use. No admitted packet moves
//! the word further ahead than the [horizon](Rate::horizon): a word beyond that is outdated, and the meter idle. The same
//! holds for a word in another rate's units. An idle meter's old word can look as if it were ahead for the horizon's part
//! of the period, less than 2^-14 of it at any rate. So a wrapped clock can make a meter stricter for that time, but never
//! laxer.

/// Both directions of one limit, by [`INBOUND`] and [`OUTBOUND`]: an element of the METERS map, whose index is the limit's
/// number. Element 0 is no limit.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    pub rates: [Rate; 2],
}

/// Index of the direction towards guests.
pub const INBOUND: usize = 0;
/// Index of the direction from guests.
pub const OUTBOUND: usize = 1;

/// One direction's rate. All zero if it is not limited.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Units of time that 2^[`BYTES_SHIFT`] bytes take; 0 if the direction is not limited.
    pub multiplier: u64,
    /// Units that the theoretical arrival time may be ahead of the clock when a packet comes.
    pub tolerance: u64,
    /// Units that it may be ahead before queued packets are marked (RFC 3168), and flows have to
    /// [share](crate::fair_share) the rest of the queue; at most the tolerance.
    pub congested: u64,
    /// Binary digits after the nanosecond's point.
    pub fraction_bits: u32,
    /// Interface index of the device that queues the packets; 0 if there is no queue, and packets beyond the tolerance are
    /// dropped.
    pub queue: u32,
}

/// Running state of a meter, by direction: an element of the METER_STATES map. Only the programs write it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterState {
    pub words: [u64; 2],
    pub fragment_passes: [FragmentPass; 2],
}

/// The packet whose fragments all pass: the last one whose first fragment found the meter idle. Written without
/// synchronisation: at worst a packet loses its fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPass {
    /// Its flow and identification; 0 if there is none.
    pub packet: u64,
    /// How far its fragments may move the word.
    pub until: u64,
}

/// What a meter let pass and what it dropped, by direction: an element of the METER_TRAFFIC map. Bytes are those on the
/// wire, from the Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterTraffic {
    pub directions: [Metered; 2],
}

/// One direction of a [`MeterTraffic`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    pub passed_packets: u64,
    pub passed_bytes: u64,
    pub dropped_packets: u64,
    pub dropped_bytes: u64,
}

/// Key of the PORT_METERS map, whose value is a limit's number: a port of a VIP that has a limit of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterPort {
    pub vip: crate::Be32,
    pub port: crate::Be16,
    pub reserved: u16,
}

const _: () = assert!(size_of::<Meter>() == 64 && size_of::<MeterState>() == 48);
const _: () = assert!(size_of::<MeterTraffic>() == 64 && size_of::<MeterPort>() == 8);

crate::pod!(Meter, Rate, MeterState, FragmentPass, MeterTraffic, Metered, MeterPort);

/// The limit that the packets of a backend's flows count against: [`crate::backend::Backend::meter`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding(pub u32);

impl Binding {
    const BY_PORT: u32 = 1 << 31;

    /// `number` is the limit, 0 for none. If `by_port`, ports of the VIP that have limits of their own (PORT_METERS) count
    /// against those.
    #[inline(always)]
    pub const fn new(number: u32, by_port: bool) -> Self {
        Self(number | if by_port { Self::BY_PORT } else { 0 })
    }

    /// The limit for ports without one of their own; 0 for none.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & !Self::BY_PORT
    }

    #[inline(always)]
    pub const fn is_by_port(self) -> bool {
        self.0 & Self::BY_PORT != 0
    }
}

/// The class in which a limit's queue holds one direction's packets: its minor number.
#[inline(always)]
pub const fn class(number: u32, direction: usize) -> u32 {
    2 * number + direction as u32
}

/// The limit whose queue has this class.
#[inline(always)]
pub const fn limit_of(class: u32) -> u32 {
    class / 2
}

/// Binary logarithm of the number of bytes for [`Rate::multiplier`].
pub const BYTES_SHIFT: u32 = 24;
/// Most bytes that a packet is charged for. An IPv4 super-packet stands for fewer, unless its segments have less than 20 bytes.
pub const LONGEST: u32 = 1 << 18;
/// Bytes on the wire of the largest IPv4 packet, in fragments of 576 bytes or more, which every host takes (RFC 791, section
/// 3.1).
const LARGEST: u32 = 65_535 + 120 * 34;
/// The rates, in bits per second, between which costs are exact. A lower rate is raised to the lowest; a higher one has
/// coarser costs.
pub const LOWEST: u64 = 8_000;
pub const HIGHEST: u64 = 400_000_000_000;
/// Digits of the nanosecond at [`HIGHEST`] and above.
const MOST_FRACTION_BITS: u32 = 20;
/// Binary logarithm of the least units of a byte, while [`MOST_FRACTION_BITS`] allow.
const BYTE_BITS: u32 = 14;

/// Nanoseconds that a queue may hold a packet. Longer delays are noticeable; with shorter ones TCP cannot fill the line
/// after it has backed off. A single flow gets 60 ms of them.
pub const QUEUE_TIME: u64 = 75_000_000;
/// The burst of a limit without a queue, in nanoseconds at its rate: a TCP sender that lost the end of a burst waits at
/// least 200 ms (RFC 6298: a second) before it sends again, and then has to catch up. A single flow gets 300 ms of them.
pub const BURST_TIME: u64 = 375_000_000;
/// Least bytes of any burst or queue: enough full frames for the initial window (RFC 6928) of a single flow.
const LEAST_BURST: u32 = 12 * FRAME;
/// Bytes of a full frame, from the Ethernet header.
pub(crate) const FRAME: u32 = 1514;

/// Units that a byte takes, rounded, with so many digits.
const fn byte(bits_per_second: u64, fraction_bits: u32) -> u64 {
    let whole = 8_000_000_000u128 << fraction_bits;
    ((whole + bits_per_second as u128 / 2) / bits_per_second as u128) as u64
}

impl Rate {
    /// A rate, in bits per second, whose packets meet the queue of this device.
    pub const fn queued(bits_per_second: u64, queue: u32) -> Self {
        Self::new(bits_per_second, QUEUE_TIME, queue)
    }

    /// A rate, in bits per second, that drops what exceeds it.
    pub const fn policed(bits_per_second: u64) -> Self {
        Self::new(bits_per_second, BURST_TIME, 0)
    }

    const fn new(bits_per_second: u64, nanoseconds: u64, queue: u32) -> Self {
        let rate = if bits_per_second < LOWEST { LOWEST } else { bits_per_second };
        let mut fraction_bits = 0;
        while fraction_bits < MOST_FRACTION_BITS && byte(rate, fraction_bits) < 1 << BYTE_BITS {
            fraction_bits += 1;
        }
        let multiplier = byte(rate, fraction_bits + BYTES_SHIFT);
        let multiplier = if multiplier == 0 { 1 } else { multiplier };
        let rate = Self { multiplier, tolerance: 0, congested: 0, fraction_bits, queue };
        let (time, frames) = (rate.clock(nanoseconds), rate.cost(LEAST_BURST));
        rate.tolerating(if time > frames { time } else { frames })
    }

    #[inline(always)]
    const fn tolerating(self, tolerance: u64) -> Self {
        Self { tolerance, congested: tolerance / 2, ..self }
    }

    /// The rate in bits per second; `None` if the direction is not limited.
    pub const fn bits_per_second(&self) -> Option<u64> {
        if !self.is_limited() {
            return None;
        }
        let whole = 8_000_000_000u128 << (self.fraction_bits + BYTES_SHIFT);
        Some(((whole + self.multiplier as u128 / 2) / self.multiplier as u128) as u64)
    }

    /// The same rate for packets that cannot be queued.
    #[inline(always)]
    pub const fn without_queue(self) -> Self {
        let time = self.clock(BURST_TIME);
        self.tolerating(if time > self.tolerance { time } else { self.tolerance })
    }

    /// True if the direction has a limit.
    #[inline(always)]
    pub const fn is_limited(&self) -> bool {
        self.multiplier != 0
    }

    /// A time in this rate's units.
    #[inline(always)]
    pub const fn clock(&self, nanoseconds: u64) -> u64 {
        nanoseconds << (self.fraction_bits & 63)
    }

    /// Units of time that so many bytes on the wire take, rounded.
    #[inline(always)]
    pub const fn cost(&self, bytes: u32) -> u64 {
        let bytes = if bytes < LONGEST { bytes } else { LONGEST };
        (bytes as u64 * self.multiplier + (1 << (BYTES_SHIFT - 1))) >> BYTES_SHIFT
    }

    /// The furthest that the meter can move a word ahead of the clock, in units.
    #[inline(always)]
    pub const fn horizon(&self) -> u64 {
        self.tolerance + self.cost(LONGEST)
    }

    /// How far the theoretical arrival time is ahead of the clock, in units; 0 if the meter is idle.
    #[inline(always)]
    pub const fn lead(&self, word: u64, now: u64) -> u64 {
        let lead = word.wrapping_sub(now);
        if lead <= self.horizon() { lead } else { 0 }
    }

    /// The word after a packet of this cost; `None` if the packet is over the limit, and the word stays as it is.
    ///
    /// ```
    /// use vipgate_abi::meter::Rate;
    ///
    /// // 12 Mbit/s are a frame of 1,500 bytes each millisecond: a burst of 375 ms passes at once, and one more.
    /// let rate = Rate::policed(12_000_000);
    /// let (now, cost) = (rate.clock(5_000_000_000), rate.cost(1500));
    /// let (mut word, mut passed) = (0, 0);
    /// while let Some(next) = rate.admit(word, now, cost) {
    ///     (word, passed) = (next, passed + 1);
    /// }
    /// assert_eq!(passed, 376);
    /// ```
    #[inline(always)]
    pub const fn admit(&self, word: u64, now: u64, cost: u64) -> Option<u64> {
        let lead = self.lead(word, now);
        if lead > self.tolerance { None } else { Some(now.wrapping_add(lead + cost)) }
    }

    /// How far the fragments of a packet may move the word of a meter that is idle now.
    #[inline(always)]
    pub const fn fragment_limit(&self, now: u64) -> u64 {
        now.wrapping_add(self.cost(LARGEST))
    }

    /// The word after a fragment that is over the limit, if its packet's first fragment found the meter idle and the packet may
    /// move the word up to `until`; `None` if that is exceeded.
    #[inline(always)]
    pub const fn admit_rest(&self, word: u64, now: u64, cost: u64, until: u64) -> Option<u64> {
        let left = until.wrapping_sub(now);
        let after = self.lead(word, now) + cost;
        // A time that is further away was written under another rate, or before the clock wrapped.
        if left > self.cost(LARGEST) || after > left { None } else { Some(now.wrapping_add(after)) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;

    use super::*;

    /// A millisecond, in nanoseconds.
    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1000 * MS;

    /// Rates over the whole range, as many of each order of magnitude.
    fn rates() -> impl Strategy<Value = u64> {
        (LOWEST.ilog2()..=HIGHEST.ilog2(), any::<u64>())
            .prop_map(|(bits, rest)| ((1 << bits) | (rest % (1 << bits))).clamp(LOWEST, HIGHEST))
    }

    fn either(bits_per_second: u64, is_queued: bool) -> Rate {
        if is_queued { Rate::queued(bits_per_second, 7) } else { Rate::policed(bits_per_second) }
    }

    /// Sends `bytes` as often as the meter allows for a time, from a clock on; the bytes that passed.
    fn passed(rate: &Rate, start: u64, time: u64, step: u64, bytes: u32) -> u128 {
        let (mut word, mut sum) = (rate.clock(start), 0);
        let mut now = 0;
        while now < time {
            while let Some(next) = rate.admit(word, rate.clock(start.wrapping_add(now)), rate.cost(bytes)) {
                word = next;
                sum += u128::from(bytes);
            }
            now += step;
        }
        sum
    }

    proptest! {
        #[test]
        fn a_packets_cost_is_its_time_at_the_rate_to_a_millionth(bits in rates(), bytes in 64u32..=LONGEST) {
            let rate = Rate::policed(bits);
            let exact = (8_000_000_000u128 << rate.fraction_bits) * u128::from(bytes) / u128::from(bits);
            let cost = u128::from(rate.cost(bytes));
            prop_assert!(cost.abs_diff(exact) * 1_000_000 <= exact + 1_000_000, "{cost} is not {exact}");
        }

        #[test]
        fn a_rate_can_be_read_from_it(bits in rates(), queued in any::<bool>()) {
            let read = either(bits, queued).bits_per_second().expect("a limit");
            // Of 38 binary digits none is lost.
            prop_assert!(read.abs_diff(bits) <= bits >> 37, "{read} is not {bits}");
        }

        #[test]
        fn in_the_long_run_exactly_the_rate_passes(bits in rates(), bytes in 64u32..=1514, start in any::<u64>()) {
            const PACKETS: u64 = 20_000;
            let rate = Rate::policed(bits);
            let (mut word, mut now) = (start, start);
            for _ in 0..PACKETS {
                word = match rate.admit(word, now, rate.cost(bytes)) {
                    Some(next) => next,
                    None => {
                        // The first moment at which it may pass.
                        now = word.wrapping_sub(rate.tolerance);
                        prop_assert_eq!(rate.admit(word, now.wrapping_sub(1), rate.cost(bytes)), None);
                        rate.admit(word, now, rate.cost(bytes)).expect("it is its turn")
                    }
                };
            }
            let exact = (8_000_000_000u128 << rate.fraction_bits) * u128::from(bytes) * u128::from(PACKETS) / u128::from(bits);
            let used = u128::from(word.wrapping_sub(start));
            prop_assert!(used.abs_diff(exact) * 1_000_000 <= exact, "{used} is not {exact}");
        }

        #[test]
        fn an_idle_meter_lets_its_burst_pass_and_no_more(
            bits in rates(), bytes in 64u32..=1514, idle in 0..=u64::MAX >> 1, start in any::<u64>(), queued in any::<bool>(),
        ) {
            let rate = either(bits, queued);
            let cost = rate.cost(bytes);
            // However long it was idle, as far as its clock can tell.
            let now = start.wrapping_add(idle);
            let mut word = start;
            let (mut used, mut packets) = (0u64, 0);
            while packets < 100_000 && let Some(next) = rate.admit(word, now, cost) {
                word = next;
                used += cost;
                packets += 1;
            }
            prop_assert!(used <= rate.tolerance + cost);
            prop_assert!(packets == 100_000 || used > rate.tolerance);
            prop_assert_eq!(rate.lead(word, now), used);
        }

        #[test]
        fn an_admitted_packet_moves_the_word_on_by_its_cost_and_no_other_does(
            bits in rates(), bytes in 1u32..=u32::MAX, ahead in 0u64..=u64::MAX, now in any::<u64>(), queued in any::<bool>(),
        ) {
            let rate = either(bits, queued);
            let word = now.wrapping_add(ahead % (rate.horizon() + 1));
            let lead = rate.lead(word, now);
            prop_assert_eq!(lead, word.wrapping_sub(now));
            match rate.admit(word, now, rate.cost(bytes)) {
                Some(next) => {
                    prop_assert!(lead <= rate.tolerance);
                    prop_assert_eq!(next, word.wrapping_add(rate.cost(bytes)));
                    prop_assert!(rate.lead(next, now) == lead + rate.cost(bytes), "within the horizon");
                }
                None => prop_assert!(lead > rate.tolerance),
            }
        }

        #[test]
        fn a_change_of_the_rate_lets_at_most_the_new_burst_pass_at_once(
            before in rates(), after in rates(), word in any::<u64>(), nanoseconds in any::<u64>(), queued in any::<bool>(),
        ) {
            let (held, rate) = (either(before, !queued), either(after, queued));
            let word = held.admit(word, held.clock(nanoseconds), held.cost(1514)).unwrap_or(word);
            let now = rate.clock(nanoseconds);
            let cost = rate.cost(1514);
            let (mut word, mut used) = (word, 0u64);
            for _ in 0..100_000 {
                let Some(next) = rate.admit(word, now, cost) else { break };
                (word, used) = (next, used + cost);
            }
            prop_assert!(used <= rate.tolerance + cost);
        }

        #[test]
        fn an_idle_meter_lets_the_fragments_of_one_packet_pass_and_no_more(
            bits in rates(), mtu in 576u32..=1500, idle in 0..=u64::MAX >> 1, queued in any::<bool>(),
        ) {
            let rate = either(bits, queued);
            let now = rate.clock(idle);
            let until = rate.fragment_limit(now);
            let pass = |word, bytes| {
                let cost = rate.cost(bytes);
                rate.admit(word, now, cost).or_else(|| rate.admit_rest(word, now, cost, until))
            };
            let (mut word, mut left) = (now, 65_535 - 20);
            while left > 0 {
                let data = left.min((mtu - 20) & !7);
                word = pass(word, 34 + data).expect("a fragment of the largest packet");
                left -= data;
            }
            for _ in 0..1000 {
                word = pass(word, 1514).unwrap_or(word);
            }
            prop_assert!(word - now <= rate.tolerance.max(rate.cost(LARGEST)) + rate.cost(1514));
            // It was allowed then: whatever comes later is not.
            let later = now + rate.cost(LARGEST) + 1;
            prop_assert_eq!(rate.admit_rest(later, later, rate.cost(64), until), None);
        }

        #[test]
        fn nothing_overflows_at_any_rate(bits in any::<u64>(), bytes in any::<u32>(), word in any::<u64>(), now in any::<u64>()) {
            for rate in [Rate::policed(bits), Rate::queued(bits, 1), Rate::queued(bits, 1).without_queue()] {
                prop_assert!(rate.is_limited() && rate.congested == rate.tolerance / 2);
                prop_assert!(rate.horizon() >= rate.tolerance && rate.horizon() < 1 << 50);
                rate.admit(word, rate.clock(now), rate.cost(bytes));
                rate.admit_rest(word, rate.clock(now), rate.cost(bytes), word);
            }
        }
    }

    /// Every word against every clock of a small domain: the high bits of both, at a rate whose units are large.
    #[test]
    fn each_word_is_ahead_within_the_horizon_or_idle_and_a_wrap_changes_nothing() {
        let rate = Rate::policed(1 << 20);
        for now in [0, 1, rate.tolerance, rate.horizon(), u64::MAX - rate.horizon(), u64::MAX - 1, u64::MAX] {
            for word in (0..=u16::MAX).map(|high| u64::from(high) << 48) {
                let lead = rate.lead(word, now);
                assert!(lead <= rate.horizon());
                for turn in [1, 1 << 40, u64::MAX / 3, u64::MAX] {
                    assert_eq!(rate.lead(word.wrapping_add(turn), now.wrapping_add(turn)), lead);
                }
            }
            for ahead in 0..100_000u64 {
                let ahead = ahead * (rate.horizon() / 90_000);
                let expected = if ahead <= rate.horizon() { ahead } else { 0 };
                assert_eq!(rate.lead(now.wrapping_add(ahead), now), expected);
            }
        }
    }

    #[test]
    fn the_rate_passes_from_8_kilobits_to_400_gigabits() {
        // The clock wraps at this rate while this runs.
        for (bits, time, step) in [
            (LOWEST, 1000 * SECOND, 50 * MS),
            (1_048_576, 60 * SECOND, 4 * MS),
            (10_000_000, 20 * SECOND, 4 * MS),
            (1_000_000_000, 2 * SECOND, 4 * MS),
            (HIGHEST, SECOND / 20, MS / 10),
        ] {
            let rate = Rate::policed(bits);
            for start in [0, u64::MAX >> rate.fraction_bits, (u64::MAX >> rate.fraction_bits) - time / 2] {
                let burst = u128::from(rate.tolerance >> rate.fraction_bits);
                let exact = u128::from(bits) * (u128::from(time - step) + burst) / 8_000_000_000;
                let sum = passed(&rate, start, time, step, 1514);
                assert!(sum.abs_diff(exact) <= 1514 + exact / 1_000_000, "{bits} from {start}: {sum}, not {exact}");
            }
        }
    }

    #[test]
    fn a_burst_is_never_less_than_ten_frames() {
        for rate in [Rate::queued(LOWEST, 1), Rate::queued(1 << 20, 1), Rate::policed(LOWEST)] {
            assert!(rate.tolerance >= 10 * rate.cost(1514) - 10);
        }
        let rate = Rate::queued(10_000_000, 1);
        assert_eq!(rate.tolerance, rate.clock(QUEUE_TIME));
        assert_eq!(rate.without_queue().tolerance, Rate::policed(10_000_000).tolerance);
    }

    #[test]
    fn a_clock_lasts_for_years_at_the_rates_of_routers() {
        const DAY: u64 = 86_400 * SECOND;
        for (bits, days) in [(LOWEST, 200_000), (1 << 20, 50_000), (100_000_000, 400), (1_000_000_000, 50)] {
            assert!(u64::MAX >> Rate::policed(bits).fraction_bits > days * DAY, "{bits}");
        }
    }

    #[test]
    fn a_binding_keeps_its_number_and_whether_ports_have_limits() {
        for (number, by_port) in [(0, false), (0, true), (16_383, false), (16_383, true)] {
            let binding = Binding::new(number, by_port);
            assert_eq!((binding.number(), binding.is_by_port()), (number, by_port));
        }
        assert_eq!(Binding::new(0, false), Binding::default());
        assert_eq!(Rate::default().bits_per_second(), None);
        assert_eq!((class(1, INBOUND), class(1, OUTBOUND), class(2, INBOUND)), (2, 3, 4));
        assert!((2..9).all(|number| [INBOUND, OUTBOUND].iter().all(|way| limit_of(class(number, *way)) == number)));
    }
}
