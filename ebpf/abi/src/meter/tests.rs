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
