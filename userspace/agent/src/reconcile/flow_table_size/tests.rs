//! When the flow table grows and shrinks.

use super::*;

const LEAST: u32 = 1 << 16;
const MOST: u32 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn sizing() -> (Sizing, Instant) {
    let now = Instant::now();
    (Sizing::new(Pace::default(), (LEAST, MOST), now), now)
}

#[test]
fn a_table_grows_fourfold_once_half_of_it_is_taken_up_to_the_largest() {
    let (mut sizing, now) = sizing();
    let mut look = |has: u32, live: u32| sizing.look(has, live.into(), now);
    assert_eq!(look(LEAST, LEAST / 2), None);
    assert_eq!(look(LEAST, LEAST / 2 + 1), Some(LEAST * 4));
    assert_eq!(look(1 << 19, 1 << 19), Some(MOST));
    assert_eq!(look(MOST, MOST), None);
}

#[test]
fn a_table_shrinks_when_it_has_been_nearly_empty_for_an_hour_and_not_before() {
    let (mut sizing, start) = sizing();
    let few = u64::from(MOST) / 16;
    assert_eq!(sizing.look(MOST, few, start), None);
    assert_eq!(sizing.look(MOST, few, start + HOUR - SECOND), None);
    assert_eq!(sizing.look(MOST, few + 1, start + HOUR), None, "an hour that was not quiet");
    assert_eq!(sizing.look(MOST, few, start + HOUR + SECOND), None);
    assert_eq!(sizing.look(MOST, few, start + 2 * HOUR + SECOND), Some(MOST / 4));
    sizing.changed();
    assert_eq!(sizing.look(MOST / 4, 0, start + 2 * HOUR + SECOND), None, "another hour for another step");
    assert_eq!(sizing.look(MOST / 4, 0, start + 3 * HOUR + SECOND), Some(LEAST));
    sizing.changed();
    assert_eq!(sizing.look(LEAST, 0, start + 5 * HOUR), None);
}

#[test]
fn a_table_that_shrank_does_not_grow_by_what_it_held() {
    let (mut sizing, now) = sizing();
    assert_eq!(sizing.look(MOST / 4, u64::from(MOST) / 16, now), None);
}

#[test]
fn a_table_of_before_that_is_larger_than_it_may_be_now_shrinks_to_what_it_may_be() {
    let (mut sizing, now) = sizing();
    assert_eq!(sizing.look(MOST * 8, 1, now), None);
    assert_eq!(sizing.look(MOST * 8, 1, now + HOUR), Some(MOST));
    let mut fixed = Sizing::new(Pace::default(), (4096, 4096), now);
    assert_eq!(fixed.look(4096, 4096, now), None);
    assert_eq!(fixed.look(4096, 0, now + 2 * HOUR), None);
}

#[test]
fn one_that_may_grow_is_looked_at_each_second_and_a_failure_is_not_tried_again_at_once() {
    let (mut sizing, now) = sizing();
    assert!(sizing.is_due(now));
    sizing.look(LEAST, u64::from(LEAST), now);
    assert!(!sizing.is_due(now) && sizing.is_due(now + SECOND));
    sizing.failed(now);
    assert!(!sizing.is_due(now + SECOND) && sizing.is_due(now + 60 * SECOND));
    sizing.look(MOST, 0, now);
    assert!(!sizing.is_due(now + SECOND) && sizing.is_due(now + 10 * SECOND));
}
