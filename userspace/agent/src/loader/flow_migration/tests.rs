//! Migrations between tables in memory.

use State::{Answered, Closed, Closing, Datagrams, Empty, Established, Opening};
use vipgate_abi::{
    backend::Backend,
    flow::{FLAG_REPLY, FlowKey, Mark, Target, Volume},
};

use super::*;

const SEED: u64 = 0x5eed;
const BACKEND: u32 = 3;
const SERVICE: u32 = 2;

fn table(buckets: u32) -> FlowTable {
    let table = FlowTable::in_memory(buckets, 8);
    table.put_backend(BACKEND, Backend { addr: 1, service: SERVICE, ..Backend::default() });
    table
}

fn key(number: u32) -> FlowKey {
    FlowKey { src: number, dst: 1, protocol: 6, ..FlowKey::default() }
}

fn reply_key(number: u32) -> FlowKey {
    FlowKey { src: 2, dst: number, protocol: 6, ..FlowKey::default() }
}

/// A connection in a table, as programs make it.
fn connect(table: &FlowTable, number: u32, state: State) -> [u32; 2] {
    let hashes = [key(number), reply_key(number)].map(|key| hash::flow(&key, SEED));
    let slots = hashes.map(|hash| table.claim(hash, 100).expect("a slot"));
    let like = Word::new(state, 0, 0, 77);
    let flow = |key, peer: (u32, Word), flags| Flow {
        key,
        peer: peer.0,
        target: Target::of(BACKEND),
        packets: 5,
        volume: Volume::new(500),
        mark: Mark::of(like, flags),
        ..Flow::default()
    };
    table.publish(slots[1], like, hashes[1], flow(reply_key(number), slots[0], FLAG_REPLY));
    table.publish(slots[0], like, hashes[0], flow(key(number), slots[1], 0));
    slots.map(|(slot, _)| slot)
}

/// Both flows of a connection: state, packets, bytes.
fn found(table: &FlowTable, number: u32) -> Option<[(State, u32, u64); 2]> {
    let slots = [key(number), reply_key(number)].map(|key| table.find(&key, hash::flow(&key, SEED)));
    let [first, reply] = [slots[0]?, slots[1]?].map(|slot| table.stable(slot).expect("a flow"));
    assert_eq!((first.1.peer, reply.1.peer), (slots[1]?, slots[0]?), "they name each other");
    assert_eq!((first.1.mark.state(), reply.1.mark.state()), (first.0.state(), reply.0.state()));
    Some([first, reply].map(|(word, flow)| (word.state(), flow.packets, flow.bytes())))
}

fn migrate(old: &FlowTable, new: &FlowTable, meanwhile: impl Fn()) -> Migrated {
    Migration { old, new, seed: SEED, now: 100 }.migrate(meanwhile)
}

fn is_empty(table: &FlowTable) -> bool {
    (0..table.buckets() * WAYS as u32).all(|slot| table.word(slot).is_some_and(|word| word.state() == Empty))
}

#[test]
fn every_connection_is_moved_to_a_larger_and_to_a_smaller_table() {
    let tables = [table(1024), table(4096), table(512)];
    for number in 10..510 {
        connect(&tables[0], number, [Opening, Answered, Datagrams, Closing, Established, Closed][number as usize % 6]);
    }
    let before: Vec<_> = (10..510).map(|number| found(&tables[0], number)).collect();
    for pair in tables.windows(2) {
        assert_eq!(migrate(&pair[0], &pair[1], || ()), Migrated { connections: 500, lost: 0 });
        assert!(is_empty(&pair[0]));
        // Both sides of a connection that ends are at it: then it is over.
        let over = |[first, reply]: [(State, u32, u64); 2]| match first.0 {
            Closing => [(Closed, first.1, first.2), (Closed, reply.1, reply.2)],
            _ => [first, reply],
        };
        for (number, before) in (10..510).zip(&before) {
            assert_eq!(found(&pair[1], number), before.map(over), "{number}");
        }
    }
}

#[test]
fn connections_that_nearly_fill_a_table_are_moved_and_found_wherever_they_lie() {
    let (old, new) = (table(64), table(64));
    (10..200).for_each(|number| assert_eq!(connect(&old, number, Established).len(), 2));
    assert_eq!(migrate(&old, &new, || ()), Migrated { connections: 190, lost: 0 });
    assert!(is_empty(&old));
    for number in 10..200 {
        assert_eq!(found(&new, number), Some([(Established, 5, 500); 2]), "{number}");
    }
}

#[test]
fn what_packets_change_in_the_old_table_meanwhile_reaches_the_copy() {
    let (old, new) = (table(64), table(128));
    let slots = connect(&old, 10, Answered);
    let seen = slots.map(|slot| old.word(slot).expect("a word"));
    let meanwhile = || {
        assert_eq!(found(&new, 10), Some([(Answered, 5, 500); 2]), "packets find the copy");
        old.count(slots[0], 2, 20);
        for (slot, seen) in slots.into_iter().zip(seen) {
            old.move_to(slot, seen, Established);
        }
        new.count(new.find(&key(10), hash::flow(&key(10), SEED)).expect("a slot"), 1, 10);
    };
    migrate(&old, &new, meanwhile);
    assert_eq!(found(&new, 10), Some([(Established, 8, 530), (Established, 5, 500)]));
    assert!(is_empty(&old));
    // The program that did it has counted it already.
    assert_eq!(new.service_loads().get(SERVICE), 0);
}

#[test]
fn a_handshake_that_completes_in_both_tables_is_counted_once() {
    let (old, new) = (table(64), table(128));
    let slots = connect(&old, 10, Answered);
    new.service_loads().add(SERVICE, 2);
    let meanwhile = || {
        let copy = new.find(&key(10), hash::flow(&key(10), SEED)).expect("a slot");
        for (table, slot) in [(&old, slots[0]), (&new, copy)] {
            table.move_to(slot, table.word(slot).expect("a word"), Established);
        }
    };
    migrate(&old, &new, meanwhile);
    assert_eq!(new.service_loads().get(SERVICE), 1);
}

#[test]
fn a_connection_that_was_copied_before_a_crash_is_not_doubled() {
    let (old, new) = (table(64), table(128));
    connect(&old, 10, Established);
    connect(&new, 10, Established);
    new.count(new.find(&key(10), hash::flow(&key(10), SEED)).expect("a slot"), 7, 70);
    migrate(&old, &new, || ());
    assert_eq!(found(&new, 10), Some([(Established, 12, 570), (Established, 5, 500)]));
    let held = (0..1024).filter(|slot| new.stable(*slot).is_some()).count();
    assert_eq!(held, 2);
}

#[test]
fn a_connection_that_is_removed_from_the_old_table_meanwhile_leaves_no_copy() {
    let (old, new) = (table(64), table(128));
    let slots = connect(&old, 10, Closed);
    let meanwhile = || {
        // Its client opens it anew: a program that has not found the copy makes a second flow of the same key.
        for slot in slots {
            old.move_to(slot, old.word(slot).expect("a word"), Empty);
        }
        connect(&new, 10, Opening);
    };
    migrate(&old, &new, meanwhile);
    assert_eq!(found(&new, 10), Some([(Opening, 5, 500); 2]));
    assert_eq!((0..1024).filter(|slot| new.stable(*slot).is_some()).count(), 2);
}

#[test]
fn half_a_copy_of_before_a_crash_is_made_anew() {
    let (old, new) = (table(64), table(128));
    connect(&old, 10, Answered);
    let [first, _] = connect(&new, 10, Opening);
    new.move_to(first, new.word(first).expect("a word"), Empty);
    migrate(&old, &new, || ());
    assert_eq!(found(&new, 10), Some([(Answered, 5, 500); 2]));
    assert_eq!((0..1024).filter(|slot| new.stable(*slot).is_some()).count(), 2);
}

#[test]
fn where_no_slot_is_free_a_half_open_connection_makes_room_and_an_established_connection_does_not() {
    let (old, new) = (table(64), table(1));
    connect(&old, 10, Established);
    for number in 20..24 {
        connect(&new, number, if number == 20 { Opening } else { Established });
    }
    new.backend_loads().correct(BACKEND, 4, 0);
    assert_eq!(migrate(&old, &new, || ()), Migrated { connections: 1, lost: 0 });
    assert!(found(&new, 10).is_some() && found(&new, 20).is_none());
    assert_eq!(new.backend_loads().get(BACKEND).live(), 3, "it is counted no more");
    connect(&old, 11, Established);
    assert_eq!(migrate(&old, &new, || ()), Migrated { connections: 0, lost: 1 });
}

#[test]
fn a_connection_comes_to_the_further_of_its_copies_states() {
    let of_live = |olds, news| further(Established, olds, news);
    assert_eq!(of_live([Established; 2], [Established; 2]), [None; 2]);
    assert_eq!(of_live([Answered; 2], [Opening; 2]), [Some(Answered); 2]);
    assert_eq!(of_live([Opening; 2], [Opening, Answered]), [Some(Answered), None]);
    assert_eq!(of_live([Closing, Established], [Established; 2]), [Some(Closing), None]);
    assert_eq!(of_live([Closing, Established], [Established, Closing]), [Some(Closed); 2]);
    assert_eq!(of_live([Closed; 2], [Established; 2]), [Some(Closed); 2]);
    assert_eq!(of_live([Established; 2], [Empty, Established]), [None; 2]);
    assert_eq!(of_live([Opening; 2], [Datagrams; 2]), [None; 2]);
}

#[test]
fn what_lives_on_after_its_close_is_counted_once_in_whichever_table_it_does() {
    // Packets find the copy, the flow of before, or both: and revive it there.
    for (in_old, in_new, state) in [(true, false, Closed), (false, true, Established), (true, true, Established)] {
        let (old, new) = (table(64), table(128));
        let slots = connect(&old, 10, Closed);
        let meanwhile = || {
            let copies = [key(10), reply_key(10)].map(|key| new.find(&key, hash::flow(&key, SEED)).expect("a slot"));
            for (table, slots, _) in [(&old, slots, in_old), (&new, copies, in_new)].into_iter().filter(|at| at.2) {
                for slot in slots {
                    let word = table.word(slot).expect("a word");
                    table.put(slot, word.with_state(Established), table.flow(slot).expect("a flow"));
                }
                new.backend_loads().correct(BACKEND, 1, 1);
                new.service_loads().add(SERVICE, 1);
            }
        };
        migrate(&old, &new, meanwhile);
        assert_eq!(found(&new, 10).map(|both| both.map(|flow| flow.0)), Some([state; 2]));
        let load = u32::from(state == Established);
        let backend = new.backend_loads().get(BACKEND);
        assert_eq!((backend.live(), backend.admitted(), new.service_loads().get(SERVICE)), (load, load, load));
    }
}
