//! The sweeper against a table in memory, alone and against others that use it at the same time.

use std::{collections::HashMap, iter, sync::atomic::AtomicU32};

use vipgate_abi::{
    backend::{Backend, ICMP_IDLE, OTHER_IDLE, TCP_IDLE, UDP_IDLE},
    flow::{FLAG_OUTWARD, FLAG_REPLY, Flow, FlowKey, Mark, State, TOUCH_PERIOD, Target, WAYS, Word},
    load::Load,
};

use super::{
    load_drift::{Count, settle},
    pass::*,
    timeouts::*,
    *,
};

const HZ: u32 = 100;
const IDLE: u32 = 600;
/// Seconds by which a time may lag behind, and one.
const LATE: u32 = (1 << TOUCH_PERIOD) / HZ + 1;
/// Shortly after jiffies' low bits wrapped, as 5 minutes after every boot.
const NOW: u32 = 1000;

/// A table with one backend, number 1, generation 7.
fn table() -> FlowTable {
    let table = FlowTable::in_memory(64, 4);
    table.put_backend(
        1,
        Backend { addr: 1, port: 80, generation: 7, service: 3, idle_timeout: IDLE, ..Backend::default() },
    );
    table
}

/// Of a flow from backend to client.
const REPLY: Mark = Mark::new(State::Empty, 0, 0, FLAG_REPLY);

fn word(state: State, age: u32) -> Word {
    Word::new(state, 3, 0xbeef, NOW.wrapping_sub(age * HZ))
}

/// Puts a connection into slots `first` and `first + 8`, with these states and ages in seconds, counted.
fn connect(table: &FlowTable, first: u32, one: (State, u32), other: (State, u32)) {
    let second = first + WAYS as u32;
    let flow = Flow { target: Target::of(1), generation: 7, peer: second, ..Flow::default() };
    table.put(first, word(one.0, one.1), flow);
    table.put(second, word(other.0, other.1), Flow { peer: first, mark: REPLY, ..flow });
    table.backend_loads().add(1, 7, Load::change(State::Empty, one.0));
    if one.0.is_admitted() {
        table.service_loads().add(3, 1);
    }
}

fn pass(table: &FlowTable, deep: bool) -> Option<Count> {
    let mut pass = Pass::new(table, HZ, TRANSITORY, deep);
    (0..table.buckets()).for_each(|bucket| pass.bucket(bucket, NOW));
    pass.count
}

/// Live connections of the backend.
fn live(table: &FlowTable) -> u32 {
    table.backend_loads().get(1).live()
}

/// The states of the two slots of a connection.
fn states(table: &FlowTable, first: u32) -> (State, State) {
    let state = |slot| table.word(slot).expect("a slot").state();
    (state(first), state(first + WAYS as u32))
}

const GONE: (State, State) = (State::Empty, State::Empty);

#[test]
fn connections_go_when_both_directions_are_idle_for_their_states_time() {
    use State::{Answered, Closed, Closing, Datagrams, Established, Opening, Reset, Resumed};
    for (one, other, lives, dies) in [
        (Opening, Opening, HALF_OPEN, HALF_OPEN + LATE),
        (Answered, Answered, HALF_OPEN, HALF_OPEN + LATE),
        (Established, Established, IDLE, IDLE + LATE),
        (Datagrams, Datagrams, IDLE, IDLE + LATE),
        (Closing, Established, IDLE, IDLE + LATE),
        (Established, Closing, IDLE, IDLE + LATE),
        (Closed, Closed, TRANSITORY, TRANSITORY + LATE),
        (Closed, Resumed, TRANSITORY, TRANSITORY + LATE),
        (Resumed, Closed, TRANSITORY, TRANSITORY + LATE),
        (Reset, Reset, TRANSITORY, TRANSITORY + LATE),
        (Resumed, Reset, TRANSITORY, TRANSITORY + LATE),
    ] {
        let table = table();
        connect(&table, 0, (one, lives), (other, lives));
        connect(&table, 16, (one, dies), (other, dies));
        connect(&table, 32, (one, dies), (other, 0));
        connect(&table, 48, (one, 0), (other, dies));
        let before = live(&table);
        pass(&table, false);
        assert_eq!(states(&table, 0), (one, other), "{one:?}: young enough");
        assert_eq!(states(&table, 16), GONE, "{one:?}: over");
        assert_eq!(states(&table, 32), (one, other), "{one:?}: the backend still talks");
        assert_eq!(states(&table, 48), (one, other), "{one:?}: the client still talks");
        assert_eq!(before - live(&table), u32::from(one.is_live()), "{one:?}: counted once");
        let admitted = if one.is_admitted() { live(&table) } else { 0 };
        assert_eq!(table.service_loads().get(3), admitted, "{one:?}: counts against the limit");
    }
}

#[test]
fn closed_connections_go_early_while_they_have_a_quarter_of_the_table() {
    let table = table();
    let (slots, age) = (table.buckets() * WAYS as u32, CLOSED_OF_MANY + LATE);
    let connections: Vec<u32> = (0..table.buckets() / 2).map(|pair| pair * 2 * WAYS as u32).collect();
    let mut closed_timeout = TRANSITORY;
    let mut walk = || {
        let mut pass = Pass::new(&table, HZ, closed_timeout, false);
        (0..table.buckets()).for_each(|bucket| pass.bucket(bucket, NOW));
        closed_timeout = pass.next_closed_timeout();
        closed_timeout
    };
    let way = |way: u32| connections.iter().map(move |first| first + way);
    // Two of eight ways: a quarter.
    for first in way(0).chain(way(1)) {
        connect(&table, first, (State::Closed, age), (State::Closed, age));
    }
    connect(&table, 2, (State::Established, age), (State::Established, age));
    connect(&table, 3, (State::Reset, age), (State::Reset, age));
    assert_eq!(walk(), CLOSED_OF_MANY, "{slots} slots");
    assert!(way(0).chain(way(1)).all(|first| states(&table, first) == OVER), "the next pass acts on it");
    assert_eq!(walk(), TRANSITORY, "most of them are gone");
    assert!(way(0).chain(way(1)).all(|first| states(&table, first) == GONE));
    assert_eq!([2, 3].map(|first| states(&table, first).0), [State::Established, State::Reset]);
    for first in way(0) {
        connect(&table, first, (State::Closed, age), (State::Closed, age));
    }
    assert_eq!(walk(), TRANSITORY, "an eighth of them");
    walk();
    assert!(way(0).all(|first| states(&table, first) == OVER));
}

#[test]
fn connections_of_a_guest_go_by_their_protocols_idle_time() {
    for (protocol, state, idle) in [
        (6, State::Established, TCP_IDLE),
        (17, State::Datagrams, UDP_IDLE),
        (1, State::Datagrams, ICMP_IDLE),
        (47, State::Datagrams, OTHER_IDLE),
    ] {
        let table = table();
        let all = Backend { addr: 1, port: 0, generation: 7, service: 3, idle_timeout: TCP_IDLE, ..Backend::default() };
        table.put_backend(1, all);
        for (first, age) in [(0, idle), (16, idle + LATE)] {
            connect(&table, first, (state, age), (state, age));
            for slot in [first, first + WAYS as u32] {
                let flow = table.flow(slot).expect("a flow");
                let key = FlowKey { protocol, ..flow.key };
                table.put(slot, word(state, age), Flow { key, ..flow });
            }
        }
        pass(&table, false);
        assert_eq!((states(&table, 0), states(&table, 16)), ((state, state), GONE), "protocol {protocol}");
    }
}

#[test]
fn flows_of_a_past_generation_go_in_a_deep_pass() {
    let table = table();
    connect(&table, 0, (State::Established, 0), (State::Established, 0));
    table.put_backend(1, Backend { generation: 8, ..Backend::default() });
    pass(&table, false);
    assert_ne!(states(&table, 0), GONE);
    let count = pass(&table, true).expect("counted");
    assert_eq!((count.live.before, count.live.found), (HashMap::new(), HashMap::new()));
    assert_eq!(states(&table, 0), GONE);
    assert_eq!(live(&table), 0);
}

const OVER: (State, State) = (State::Closed, State::Closed);

/// The keys of the flows of a connection that [`connect_by`] puts into the table.
fn keys(protocol: u8, first: u32) -> [FlowKey; 2] {
    let key = FlowKey { src: first + 1, dst: 100, sport: 1, dport: 80, protocol, ..FlowKey::default() };
    [key, FlowKey { src: 200, dst: first + 1, sport: 8080, dport: 1, ..key }]
}

/// As [`connect`], of a protocol, with what the two flows have besides.
fn connect_by(table: &FlowTable, first: u32, protocol: u8, state: State, age: u32, flags: [u8; 2], new_src: u32) {
    connect(table, first, (state, age), (state, age));
    let flows = [first, first + WAYS as u32].into_iter().zip(keys(protocol, first)).zip(flags);
    for ((slot, key), flags) in flows {
        let flow = table.flow(slot).expect("a flow");
        table.put(slot, word(state, age), Flow { key, new_src, mark: Mark::new(state, 0, 0, flags), ..flow });
    }
}

/// A pass at a time in seconds after now: whose sides are to be nudged.
fn nudged(table: &FlowTable, deep: bool, later: u32) -> Vec<[FlowKey; 2]> {
    let mut pass = Pass::new(table, HZ, TRANSITORY, deep);
    (0..table.buckets()).for_each(|bucket| pass.bucket(bucket, NOW + later * HZ));
    pass.untold
}

#[test]
fn ended_connections_stay_closed_for_a_while_and_both_sides_are_nudged_once() {
    let table = table();
    let connect = |first, state, protocol, age| connect_by(&table, first, protocol, state, age, [0, FLAG_REPLY], 0);
    connect(0, State::Established, 6, 1);
    connect(16, State::Closing, 6, ENDED);
    connect(32, State::Established, 6, ENDED + LATE);
    connect(48, State::Datagrams, 17, 1);
    connect(64, State::Answered, 6, 1);
    connect(80, State::Closed, 6, 1);
    table.put_backend(1, Backend { generation: 8, ..Backend::default() });
    for told in [vec![keys(6, 0), keys(6, 16), keys(6, 32)], vec![]] {
        assert_eq!(nudged(&table, true, 0), told);
        let found = [0, 16, 32, 48, 64, 80].map(|first| states(&table, first));
        assert_eq!(found, [OVER, OVER, OVER, GONE, OVER, OVER]);
    }
    nudged(&table, false, ENDED + LATE);
    assert_eq!([0, 16, 32, 64, 80].map(|first| states(&table, first)), [GONE; 5]);
    assert_eq!((live(&table), table.service_loads().get(3)), (0, 0));
}

#[test]
fn what_ends_by_being_idle_is_told_so_that_neither_side_keeps_it() {
    let table = table();
    for (first, state) in [(0, State::Established), (16, State::Closing), (32, State::Opening)] {
        connect_by(&table, first, 6, state, IDLE + LATE, [0, FLAG_REPLY], 0);
    }
    assert_eq!((live(&table), table.service_loads().get(3)), (3, 2));
    assert_eq!(nudged(&table, false, 0), [keys(6, 0), keys(6, 16)]);
    assert_eq!([0, 16, 32].map(|first| states(&table, first)), [OVER, OVER, GONE]);
    assert_eq!((live(&table), table.service_loads().get(3)), (0, 0));
    for slot in [0, WAYS as u32] {
        let flow = table.flow(slot).expect("a flow");
        assert_eq!(flow.key, keys(6, 0)[usize::from(slot != 0)]);
        assert_eq!(flow.mark.state(), State::Closed, "found by who sends");
        assert_eq!(flow.mark.is_reply(), slot != 0);
        assert_ne!(table.backend(flow.backend()).expect("a number").generation, flow.generation, "and is over");
        assert!(table.word(flow.peer).is_none(), "whatever becomes of the other one");
    }
    assert!(nudged(&table, true, ENDED).is_empty());
    assert_eq!(states(&table, 0), OVER);
    nudged(&table, false, ENDED + LATE);
    assert_eq!([0, 16].map(|first| states(&table, first)), [GONE; 2]);
    assert_eq!((live(&table), table.service_loads().get(3)), (0, 0));
}

#[test]
fn an_idle_connection_of_source_nat_is_told_and_an_elastic_ips_goes_on_by_its_next_segment() {
    let table = table();
    let all = Backend { addr: 7, port: 0, generation: 7, service: 3, idle_timeout: TCP_IDLE, ..Backend::default() };
    table.put_backend(1, all);
    let inward = [0, FLAG_REPLY | FLAG_OUTWARD];
    let outward = [FLAG_OUTWARD, FLAG_REPLY];
    for (first, flags, new_src) in [(0, outward, all.addr), (16, outward, 9), (32, inward, 9)] {
        connect_by(&table, first, 6, State::Established, TCP_IDLE + LATE, flags, new_src);
    }
    assert_eq!(nudged(&table, false, 0), [keys(6, 0)]);
    assert_eq!([0, 16, 32].map(|first| states(&table, first)), [OVER, GONE, GONE]);
    assert_eq!(live(&table), 0);
}

#[test]
fn a_connection_with_a_packet_at_the_last_moment_is_as_it_was() {
    let table = table();
    connect_by(&table, 0, 6, State::Established, IDLE + LATE, [0, FLAG_REPLY], 0);
    let second = WAYS as u32;
    let seen = [0, second].map(|slot| (slot, table.word(slot).expect("a word"), table.flow(slot).expect("a flow")));
    let hit = word(State::Established, 0);
    table.words(1)[0].store(hit.0, Ordering::Release);
    assert!(!table.retire(seen, NOW));
    assert_eq!((states(&table, 0), live(&table)), ((State::Established, State::Established), 1));
    assert_eq!(table.word(second), Some(hit));
    let first = table.flow(0).expect("a flow");
    assert_eq!((first.key, first.peer, first.backend(), first.generation), (keys(6, 0)[0], second, 1, 7));
    assert_eq!(first.mark, Mark::of(table.word(0).expect("a word"), 0), "found by the next packet");
    assert!(nudged(&table, false, 0).is_empty());
    assert_eq!(nudged(&table, false, IDLE + LATE), [keys(6, 0)]);
}

#[test]
fn flows_of_a_past_generation_are_off_their_service_at_once_and_off_no_other_when_they_go() {
    let table = table();
    for first in [0, 16, 32] {
        connect(&table, first, (State::Established, 1), (State::Established, 1));
    }
    // The number is another service's now, which has a connection already.
    table.put_backend(1, Backend { generation: 8, service: 2, ..table.backend(1).expect("a backend") });
    assert_eq!((live(&table), table.service_loads().get(3)), (0, 0));
    let flow = Flow { target: Target::of(1), generation: 8, peer: 56, ..Flow::default() };
    table.put(48, word(State::Established, 1), flow);
    table.put(56, word(State::Established, 1), Flow { peer: 48, mark: REPLY, ..flow });
    table.account(&flow, 1, 1);
    let mut drift = Drift::default();
    for _ in 0..3 {
        let count = pass(&table, true).expect("counted");
        assert_eq!([0, 16, 32].map(|first| states(&table, first)), [GONE; 3]);
        drift.correct(&table, &count);
        assert_eq!((live(&table), table.service_loads().get(3), table.service_loads().get(2)), (1, 0, 1));
    }
}

#[test]
fn a_flow_whose_other_direction_is_anothers_goes_alone() {
    let table = table();
    connect(&table, 0, (State::Established, IDLE + LATE), (State::Established, 0));
    // The second slot was claimed for another connection.
    let stranger = Flow { target: Target::of(1), generation: 7, peer: 40, mark: REPLY, ..Flow::default() };
    table.put(8, word(State::Established, 0), stranger);
    pass(&table, false);
    assert_eq!(states(&table, 0), (State::Empty, State::Established));
    assert_eq!(live(&table), 0);
    // A peer beyond the table, as a torn read may show, is none.
    table.put(
        0,
        word(State::Closed, TRANSITORY + LATE),
        Flow { peer: u32::MAX, generation: 7, target: Target::of(1), ..Flow::default() },
    );
    pass(&table, false);
    assert_eq!(states(&table, 0).0, State::Empty);
}

#[test]
fn slots_in_other_hands_are_left_alone() {
    let table = table();
    table.put(0, word(State::Busy, 1000), Flow::default());
    pass(&table, true);
    assert_eq!(table.word(0), Some(word(State::Busy, 1000)));
}

#[test]
fn a_deep_pass_counts_connections_and_two_correct_the_load() {
    let table = table();
    for first in [0, 16, 32] {
        connect(&table, first, (State::Established, 1), (State::Established, 1));
    }
    table.backend_loads().correct(1, 10, 5);
    table.service_loads().add(3, 20);
    // One that a program took off too often.
    table.service_loads().add(2, u32::MAX);
    table.backend_loads().correct(2, 4, 1);
    let mut drift = Drift::default();
    for _ in 0..2 {
        assert_eq!((live(&table), table.backend_loads().get(2).live()), (13, 4), "one look proves nothing");
        let count = pass(&table, true).expect("counted");
        assert_eq!(count.live.found, HashMap::from([(1, 3)]));
        drift.correct(&table, &count);
    }
    assert_eq!((live(&table), table.backend_loads().get(1).admitted()), (3, 3));
    assert_eq!(table.backend_loads().get(2), Load::of(0));
    assert_eq!((table.service_loads().get(3), table.service_loads().get(2)), (3, 0));
}

#[test]
fn a_load_that_changes_during_the_pass_is_no_drift() {
    let table = table();
    let mut drift = Drift::default();
    for round in 1..4_u32 {
        let mut count = Count::start(&table);
        // Half of the ten that came during the pass were seen.
        let found = live(&table) + 5;
        table.backend_loads().correct(1, 10, 0);
        count.live.found.insert(1, found);
        drift.correct(&table, &count);
        assert_eq!(live(&table), round * 10);
    }
}

#[test]
fn two_sweepers_take_each_connection_off_the_load_once() {
    for _ in 0..50 {
        let table = table();
        for first in (0..512).filter(|slot| slot % 16 < 8) {
            connect(&table, first, (State::Established, IDLE + LATE), (State::Established, IDLE + LATE));
        }
        assert_eq!(live(&table), 256);
        // An extra one, to see a load that was taken twice.
        table.backend_loads().correct(1, 256, 256);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| pass(&table, false));
            }
        });
        assert_eq!(live(&table), 256);
        assert!((0..512).all(|slot| table.word(slot).is_some_and(|word| word.state() == State::Empty)));
    }
}

#[test]
fn two_sweepers_tell_of_each_connection_once_and_take_it_off_the_load_once() {
    for _ in 0..50 {
        let table = table();
        for first in (0..512).filter(|slot| slot % 16 < 8) {
            connect_by(&table, first, 6, State::Established, IDLE + LATE, [0, FLAG_REPLY], 0);
        }
        // An extra one, to see a load that was taken twice.
        table.backend_loads().correct(1, 256, 256);
        let told: usize = thread::scope(|scope| {
            let table = &table;
            // Each may find a slot in the other's hands, and leaves it then.
            let is_left = move || {
                let states = (0..512).filter_map(|slot| table.word(slot)).map(Word::state);
                states.into_iter().any(|state| {
                    assert_ne!(state, State::Empty, "ended, and its sides are not told");
                    state != State::Closed
                })
            };
            let sweep = move || iter::from_fn(|| is_left().then(|| nudged(table, false, 0).len())).sum::<usize>();
            let sweepers = [0, 1].map(|_| scope.spawn(sweep));
            sweepers.map(|sweeper| sweeper.join().expect("it sweeps")).iter().sum()
        });
        assert_eq!((told, live(&table)), (256, 256));
    }
}

#[test]
fn a_connection_that_is_hit_in_time_is_never_removed() {
    let table = table();
    let clock = AtomicU32::new(NOW);
    connect(&table, 0, (State::Established, 0), (State::Established, 0));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (table, clock, stop) = (&table, &clock, &stop);
        // A CPU hits the client's direction all the time, as rule 3 says: the upper half only; here the whole word is
        // swapped, which is the same for others.
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let now = u64::from(clock.load(Ordering::Relaxed)) << 32;
                let _ = table.words(0)[0]
                    .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| Some(now | (word & 0xffff_ffff)));
            }
        });
        for _ in 0..2000 {
            // Time advances by less than the timeout between two looks, so a hit always came in between.
            let now = clock.load(Ordering::Relaxed);
            let seen = || Word(table.words(0)[0].load(Ordering::Acquire)).seen();
            while seen() != now {
                thread::yield_now();
            }
            let now = clock.fetch_add(IDLE * HZ / 2, Ordering::Relaxed).wrapping_add(IDLE * HZ / 2);
            let mut pass = Pass::new(table, HZ, TRANSITORY, false);
            (0..table.buckets()).for_each(|bucket| pass.bucket(bucket, now));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(states(&table, 0), (State::Established, State::Established));
    assert_eq!(live(&table), 1);
}

#[test]
fn whoever_waits_for_the_sweepers_end_learns_of_an_error_and_of_a_panic() {
    let failed = || LoadError::io("read the clock", io::Error::from_raw_os_error(libc::EINVAL));
    let (_sweeper, ended) = Sweeper::run(move |_| Err(failed())).expect("a thread");
    assert!(ended.blocking_recv().is_err());
    let (_sweeper, ended) = Sweeper::run(|_| panic!("a defect")).expect("a thread");
    assert!(ended.blocking_recv().is_err());
    let (sweeper, mut ended) = Sweeper::run(|shared| {
        while rest(shared, PASS, false) != Rested::Stop {}
        Ok(())
    })
    .expect("a thread");
    assert_eq!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty), "it sweeps");
    drop(sweeper);
    assert!(ended.blocking_recv().is_err());
}

#[test]
fn only_a_lasting_difference_is_drift() {
    assert_eq!(settle(0, 5), (0, 5), "seen once");
    assert_eq!(settle(5, 5), (5, 0), "seen twice");
    assert_eq!(settle(5, 2), (2, 0));
    assert_eq!(settle(2, 5), (2, 3));
    assert_eq!(settle(-3, -4), (-3, -1), "too few counted");
    assert_eq!(settle(3, -4), (0, -4), "noise");
}
