//! The engine against tables that check every single write.

mod fake;
mod fixtures;
mod meters;
mod random;

use std::time::Duration;

use vipgate_abi::{
    backend::Backend,
    service::{Algorithm, Kind},
};
use vipgate_state::{self as state, ElasticState, MasqueradeState, Protocol, VipState};

use self::{fake::*, fixtures::*};
use super::*;
use crate::{
    net::queue,
    reconcile::{arena::QUARANTINE, compile::compile},
};

#[test]
fn applying_what_is_held_writes_nothing() {
    let mut engine = engine();
    let vips = [
        vip(1, vec![listener(0, 80, state::Algorithm::Maglev, &[(0, 1), (1, 2)])]),
        VipState { enabled: false, ..vip(2, vec![]) },
        elastic(3, 2, 1, true),
        masquerading(4, vec![masquerade(3, 0)]),
        VipState { enabled: false, ..masquerading(5, vec![masquerade(4, 1)]) },
    ];
    vips.iter().for_each(|vip| apply(&mut engine, vip));
    let writes = engine.kernel.writes;
    vips.iter().for_each(|vip| apply(&mut engine, vip));
    // After a restart as well.
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    vips.iter().for_each(|vip| apply(&mut engine, vip));
    assert_eq!(engine.kernel.writes, writes);
    assert_holds(&engine, &vips);
}

#[test]
fn a_backend_that_leaves_drains_and_a_listener_that_goes_ends_its_flows() {
    let mut engine = engine();
    apply(&mut engine, &vip(1, vec![round_robin(0, 80, &[(0, 1), (1, 2)])]));
    let leaving = engine.kernel.backend(1);
    apply(&mut engine, &vip(1, vec![round_robin(0, 80, &[(0, 1)])]));
    let draining = Backend { drains: 1, ..leaving };
    assert_eq!(engine.kernel.backend(1), draining, "still there for its flows");
    assert!(!engine.take_ended());

    apply(&mut engine, &vip(1, vec![]));
    for number in [0, 1] {
        let backend = engine.kernel.backend(number);
        assert_eq!(backend.addr, 0, "free");
        assert_ne!(backend.generation, leaving.generation, "flows ended");
    }
    assert!(engine.take_ended() && !engine.take_ended());
}

#[test]
fn flows_of_a_backend_that_is_down_end_once() {
    let mut engine = engine();
    let up = vip(1, vec![round_robin(0, 80, &[(0, 1), (1, 2)])]);
    let mut down = up.clone();
    down.listeners[0].backends[1].healthy = false;
    apply(&mut engine, &up);
    let healthy = engine.kernel.backend(1);
    engine.take_ended();
    apply(&mut engine, &down);
    let unhealthy = engine.kernel.backend(1);
    assert!(unhealthy.is_down() && unhealthy.generation != healthy.generation && engine.take_ended());
    // Again, also after a restart: nothing more ends.
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    apply(&mut engine, &down);
    assert_eq!(engine.kernel.backend(1), unhealthy);
    apply(&mut engine, &up);
    assert!(!engine.kernel.backend(1).is_down() && !engine.take_ended());
    assert_holds(&engine, &[up]);
    // Left while it is down: nothing of it can drain.
    apply(&mut engine, &down);
    let left = vip(1, vec![round_robin(0, 80, &[(0, 1)])]);
    apply(&mut engine, &left);
    assert_eq!(engine.kernel.backend(1).addr, 0);
    assert_holds(&engine, &[left]);
}

#[test]
fn a_rule_is_its_ranges_keys_and_its_flows_end_with_it() {
    let mut engine = engine();
    let both = forwarding(1, vec![forward(0, (100, 300), 0, 1), forward(1, (301, 301), 1, 2)]);
    apply(&mut engine, &both);
    assert_holds(&engine, std::slice::from_ref(&both));
    let other = engine.kernel.backend(1);
    let writes = engine.kernel.writes;
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    apply(&mut engine, &both);
    assert_eq!(engine.kernel.writes, writes, "held already");

    let generation = engine.kernel.backend(0).generation;
    let one = forwarding(1, vec![forward(1, (301, 301), 1, 2)]);
    apply(&mut engine, &one);
    assert_holds(&engine, &[one]);
    assert!(engine.kernel.backend(0).addr == 0 && engine.kernel.backend(0).generation != generation);
    assert_eq!(engine.kernel.backend(1), other, "the other rule's flows go on");
    assert!(engine.take_ended());
}

#[test]
fn flows_of_a_rule_that_leads_elsewhere_end() {
    let mut engine = engine();
    apply(&mut engine, &forwarding(1, vec![forward(0, (80, 90), 0, 1)]));
    let before = engine.kernel.backend(0);
    let moved = forwarding(1, vec![forward(0, (80, 90), 0, 2)]);
    apply(&mut engine, &moved);
    assert_holds(&engine, &[moved]);
    assert_ne!(engine.kernel.backend(0).generation, before.generation);
    // Its number given to a rule of other ports, some of which are the same, and of another backend.
    let reused = forwarding(1, vec![forward(0, (85, 200), 5, 2)]);
    engine.take_ended();
    apply(&mut engine, &reused);
    assert_holds(&engine, &[reused]);
    assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
}

#[test]
fn an_elastic_ip_that_comes_to_lead_takes_the_guests_way_out_over() {
    for order in [[0, 1], [1, 0]] {
        let mut engine = engine();
        let before = [elastic(1, 0, 7, true), elastic(2, 1, 7, false)];
        before.iter().for_each(|vip| apply(&mut engine, vip));
        assert_holds(&engine, &before);
        let backends = [0, 1].map(|number| engine.kernel.backend(number));
        let after = [elastic(1, 0, 7, false), elastic(2, 1, 7, true)];
        order.iter().for_each(|at| apply(&mut engine, &after[*at]));
        assert_holds(&engine, &after);
        assert_eq!([0, 1].map(|number| engine.kernel.backend(number)), backends, "what was open goes on");
        // It goes, and does not take the other's with it.
        engine.remove(before[0].address, Instant::now()).expect("removes");
        assert_holds(&engine, &after[1..]);
        assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
    }
}

#[test]
fn flows_of_an_elastic_ip_end_when_it_goes_or_gets_another_guest() {
    let mut engine = engine();
    apply(&mut engine, &elastic(1, 0, 7, true));
    let first = engine.kernel.backend(0);
    let moved = elastic(1, 0, 8, true);
    apply(&mut engine, &moved);
    assert_holds(&engine, &[moved]);
    assert!(engine.kernel.backend(0).generation != first.generation && engine.take_ended());
    let off = VipState { enabled: false, ..elastic(1, 0, 8, true) };
    apply(&mut engine, &off);
    assert_holds(&engine, &[off]);
    assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
    let detached = vip(1, vec![]);
    apply(&mut engine, &detached);
    assert_holds(&engine, &[detached]);
}

#[test]
fn flows_of_a_masqueraded_network_end_with_it_and_only_those() {
    let mut engine = engine();
    let own = masquerading(1, vec![masquerade(0, 0), masquerade(1, 1)]);
    apply(&mut engine, &own);
    assert_holds(&engine, std::slice::from_ref(&own));
    let held = [0, 1].map(|number| engine.kernel.backend(number));
    // A listener comes to the same VIP: ports are spared from now on, and nothing ends.
    let shared = VipState { listeners: vec![round_robin(5, 80, &[])], ..own.clone() };
    apply(&mut engine, &shared);
    assert_holds(&engine, &[shared]);
    let other = masquerading(1, vec![masquerade(1, 1)]);
    apply(&mut engine, &other);
    assert_holds(&engine, &[other]);
    assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
    assert_eq!(engine.kernel.backend(1), held[1], "the other network's go on");
    // Its numbers given to another network before it was known that it left.
    let reused = masquerading(1, vec![masquerade(1, 2)]);
    apply(&mut engine, &reused);
    assert_holds(&engine, &[reused]);
    assert!(engine.kernel.backend(1).generation != held[1].generation && engine.take_ended());
    // The VIP goes while no controller runs: its entries tell that it was there.
    let mut engine = Engine::new(engine.kernel).expect("the same tables");
    assert_eq!(engine.vips(), BTreeSet::from([own.address]));
    engine.remove(own.address, Instant::now()).expect("removes");
    assert_holds(&engine, &[]);
    assert!(engine.kernel.backend(1).addr == 0 && engine.take_ended());
}

#[test]
fn flows_go_on_when_a_device_comes_back_under_another_index() {
    let mut engine = engine();
    let vips = [elastic(1, 0, 7, true), masquerading(2, vec![masquerade(1, 0)])];
    vips.iter().for_each(|vip| apply_by(&mut engine, vip, 3));
    let held = [0, 1].map(|number| engine.kernel.backend(number));
    vips.iter().for_each(|vip| apply_by(&mut engine, vip, 4));
    assert_holds_by(&engine, &vips, 4);
    assert_eq!([0, 1].map(|number| engine.kernel.backend(number)), held);
    assert!(!engine.take_ended());
}

#[test]
fn numbers_of_a_network_that_the_store_gave_away_are_the_new_owners() {
    let mut engine = engine();
    apply(&mut engine, &masquerading(1, vec![masquerade(0, 0), masquerade(1, 1)]));
    // Both numbers are a rule's of another VIP, whose apply comes first. `Fake::look` guards each step.
    let rule = forwarding(2, vec![forward(0, (80, 80), 1, 9)]);
    apply(&mut engine, &rule);
    assert_holds(&engine, std::slice::from_ref(&rule));
    let own = masquerading(1, vec![masquerade(2, 1)]);
    apply(&mut engine, &own);
    assert_holds(&engine, &[rule, own]);
}

#[test]
fn a_listener_in_anothers_place_ends_that_ones_flows() {
    let mut engine = engine();
    apply(&mut engine, &vip(1, vec![round_robin(0, 80, &[(0, 1)])]));
    apply(&mut engine, &vip(1, vec![round_robin(1, 80, &[(1, 1)])]));
    assert!(engine.kernel.backend(0).addr == 0 && engine.take_ended());
    let rule = forwarding(1, vec![forward(2, (80, 80), 2, 1)]);
    apply(&mut engine, &rule);
    assert_holds(&engine, &[rule]);
    assert!(engine.kernel.backend(1).addr == 0 && engine.take_ended());
}

#[test]
fn disabling_drops_before_the_listeners_go_and_enabling_the_other_way() {
    let mut engine = engine();
    let on = vip(1, vec![round_robin(0, 80, &[(0, 1)])]);
    apply(&mut engine, &on);
    let generation = engine.kernel.backend(0).generation;
    let off = VipState { enabled: false, ..on.clone() };
    apply(&mut engine, &off);
    assert_holds(&engine, &[off]);
    assert_ne!(engine.kernel.backend(0).generation, generation);
    apply(&mut engine, &on);
    assert_holds(&engine, &[on]);
}

#[test]
fn a_number_that_the_store_gave_away_leaves_its_old_place_first() {
    let mut engine = engine();
    apply(&mut engine, &vip(1, vec![round_robin(0, 80, &[(0, 1), (1, 2)])]));
    // The store moved backend 1 to another VIP's listener, whose apply comes first. `Fake::look` guards each step.
    let other = vip(2, vec![round_robin(1, 80, &[(1, 9)])]);
    apply(&mut engine, &other);
    let service = engine.kernel.services[&ServicePrefix::listener(Ipv4Addr::new(10, 0, 0, 1), Protocol::Tcp, 80)];
    assert_eq!(engine.kernel.table_of(&service), [0]);
    // The same for a listener's number.
    let third = vip(3, vec![round_robin(0, 81, &[(2, 3)])]);
    apply(&mut engine, &third);
    assert_holds(&engine, &[vip(1, vec![]), other, third]);
    assert_eq!(engine.kernel.backend(0).addr, 0);
}

#[test]
fn what_does_not_fit_is_an_error_and_keeps_what_was() {
    let mut engine = engine();
    let pool: Vec<_> = (0..17).map(|n| (n, n as u8 + 1)).collect();
    let small = vip(1, vec![listener(0, 80, state::Algorithm::Maglev, &pool[..2])]);
    apply(&mut engine, &small);
    let first = listener(1, 80, state::Algorithm::Maglev, &[(20, 1)]);
    let now = Instant::now();
    engine.apply(&compile(&vip(2, vec![first]), &devices(DEVICE)), now).expect("1601 elements more");
    let large = vip(1, vec![listener(0, 80, state::Algorithm::Maglev, &pool)]);
    let error = engine.apply(&compile(&large, &devices(DEVICE)), now).expect_err("6421 elements do not fit");
    assert!(matches!(error, EngineError::ArenaFull { wanted: 6421, .. }), "{error}");
    assert_eq!(engine.kernel.services.len(), 4, "both listeners go on, and the keys of their VIPs");

    let error = engine.apply(&compile(&vip(3, vec![round_robin(2, 80, &[(BACKENDS, 1)])]), &devices(DEVICE)), now);
    assert!(matches!(error, Err(EngineError::BackendNumber { number: BACKENDS, .. })));

    engine.kernel.capacity = 4;
    let error = engine.apply(&compile(&vip(4, vec![round_robin(3, 80, &[(30, 1)])]), &devices(DEVICE)), now);
    assert!(matches!(error, Err(EngineError::Table(TableError::Full { .. }))));
    engine.kernel.capacity = 6;
    apply(&mut engine, &vip(4, vec![round_robin(3, 80, &[(30, 1)])]));
}

#[test]
fn selection_tables_that_overlap_in_the_tables_are_written_anew() {
    let mut kernel = Fake { foreign: true, ..Fake::default() };
    let service = |ring_base| Service {
        kind: Kind::Balance as u8,
        algorithm: Algorithm::RoundRobin as u8,
        ring_base,
        ring_len: 2,
        ..Service::default()
    };
    for (host, ring_base) in [(1, 0), (2, 1)] {
        let key = ServicePrefix::listener(Ipv4Addr::new(10, 0, 0, host), Protocol::Tcp, 80);
        kernel.services.insert(key, service(ring_base));
    }
    kernel.selection[..3].fill(0);
    kernel.backends[0] = Backend { addr: 1, ..Backend::default() };
    let mut engine = Engine::new(kernel).expect("opens");
    let vips = [vip(1, vec![round_robin(0, 80, &[(3, 1), (4, 2)])]), vip(2, vec![round_robin(2, 80, &[(5, 1)])])];
    vips.iter().for_each(|vip| apply(&mut engine, vip));
    assert_holds(&engine, &vips);
}
