//! Meters of bandwidth limits.

use super::*;

#[test]
fn limits_come_change_and_go_and_end_no_flow() {
    let mut engine = engine();
    let free = vip(1, vec![round_robin(0, 80, &[(0, 1)]), round_robin(1, 81, &[(1, 1)])]);
    let limited = |rate| VipState { limits: vec![limit(1, None, rate), limit(2, Some(80), rate)], ..free.clone() };
    apply(&mut engine, &free);
    for vip in [limited(1 << 20), limited(1 << 30), VipState { limits: vec![limit(1, None, 1 << 30)], ..free.clone() }]
    {
        apply(&mut engine, &vip);
        assert_holds(&engine, std::slice::from_ref(&vip));
        // After a restart as well, without a write.
        let writes = engine.kernel.writes;
        engine = Engine::new(engine.kernel).expect("the same tables");
        apply(&mut engine, &vip);
        assert_eq!(engine.kernel.writes, writes);
    }
    apply(&mut engine, &free);
    assert_holds(&engine, &[free]);
    assert!(engine.kernel.meters.is_empty() && !engine.take_ended());
}

#[test]
fn a_backend_that_drains_counts_against_what_its_listener_does() {
    let mut engine = engine();
    let limits = vec![limit(1, None, 1 << 20)];
    apply(&mut engine, &VipState { limits, ..vip(1, vec![round_robin(0, 80, &[(0, 1), (1, 2)])]) });
    let left = vip(1, vec![round_robin(0, 80, &[(0, 1)])]);
    for limits in [vec![limit(1, None, 1 << 20)], vec![limit(2, Some(80), 1 << 20)], vec![]] {
        let number = limits.first().map_or(0, |limit| limit.number);
        apply(&mut engine, &VipState { limits, ..left.clone() });
        let draining = engine.kernel.backend(1);
        assert!(draining.addr != 0 && draining.meter.number() == number);
    }
}

#[test]
fn meters_follow_the_queues_device_and_those_of_nobody_go() {
    let mut engine = engine();
    let one = VipState { own: true, limits: vec![limit(1, None, 1 << 20)], ..vip(1, vec![]) };
    let other = VipState { own: true, limits: vec![limit(2, None, 1 << 20)], ..vip(2, vec![]) };
    for vip in [&one, &other] {
        apply(&mut engine, vip);
    }
    for device in [Some(7), Some(8), None] {
        engine.set_queue(queue::pair_of(1), device);
        assert_holds(&engine, &[one.clone(), other.clone()]);
    }
    assert!(engine.take_freed_meters().is_empty());
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    apply(&mut engine, &one);
    engine.remove_unclaimed_meters();
    assert_holds(&engine, std::slice::from_ref(&one));
    assert_eq!(engine.take_freed_meters(), [2]);
    engine.remove(one.address, Instant::now()).expect("removed");
    assert_eq!((engine.kernel.meters.len(), engine.take_freed_meters()), (0, vec![1]));
}

#[test]
fn a_limits_number_that_another_vip_gets_stays_with_that() {
    let mut engine = engine();
    let with = |host: u8, number: u32| VipState {
        limits: vec![limit(number, None, 1 << 20)],
        ..vip(host, vec![round_robin(u32::from(host), 80, &[(u32::from(host), 1)])])
    };
    apply(&mut engine, &with(1, 1));
    apply(&mut engine, &with(2, 1));
    apply(&mut engine, &with(1, 2));
    assert_holds(&engine, &[with(1, 2), with(2, 1)]);
}
