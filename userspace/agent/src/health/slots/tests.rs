//! Slots of checks, and which accounts get them.

use super::*;

fn slots(most: usize) -> Slots {
    Slots { most, ..Slots::default() }
}

/// Takes as many as an account gets.
fn take_all(slots: &mut Slots, account: &Arc<str>) -> usize {
    (0..).take_while(|_| slots.take(account)).count()
}

#[test]
fn an_account_alone_gets_four_fifths_and_leaves_the_rest_to_others() {
    let [greedy, meek, third]: [Arc<str>; 3] = ["greedy", "meek", "third"].map(Into::into);
    let mut slots = slots(100);
    assert_eq!(take_all(&mut slots, &greedy), 80);
    assert!(slots.take(&meek) && slots.take(&third));
    assert_eq!(slots.taken(), 82);
}

#[test]
fn accounts_that_want_more_than_there_is_get_equal_parts_whoever_came_first() {
    let accounts: [Arc<str>; 3] = ["a", "b", "c"].map(Into::into);
    let mut slots = slots(130);
    for account in &accounts {
        while slots.take(account) {}
        (0..1000).for_each(|number| slots.wait(account, number));
    }
    // Each slot that is given back goes to an account that may have it.
    let mut running: VecDeque<Arc<str>> = VecDeque::new();
    for account in &accounts {
        running.extend((0..slots.accounts[account].taken).map(|_| Arc::clone(account)));
    }
    for _ in 0..1000 {
        let ended = running.pop_front().expect("some run");
        assert!(slots.give_back(&ended));
        while let Some((account, _)) = slots.next_waiting() {
            running.push_back(account);
        }
    }
    let shares = accounts.each_ref().map(|account| slots.accounts[account].taken);
    assert!(shares.iter().all(|taken| (38..=42).contains(taken)), "{shares:?}");
}

#[test]
fn waiting_backends_get_slots_in_the_order_of_their_queue() {
    let account: Arc<str> = "a".into();
    let mut slots = slots(5);
    assert_eq!(take_all(&mut slots, &account), 4);
    [7, 8].into_iter().for_each(|number| slots.wait(&account, number));
    assert_eq!(slots.next_waiting(), None);
    for number in [7, 8] {
        assert!(slots.give_back(&account));
        assert_eq!(slots.next_waiting(), Some((Arc::clone(&account), number)));
    }
    (0..4).for_each(|_| assert!(!slots.give_back(&account)));
    assert!(slots.accounts.is_empty(), "an account that has nothing is not remembered");
}

#[test]
fn one_slot_is_one_slot() {
    let [one, other]: [Arc<str>; 2] = ["one", "other"].map(Into::into);
    let mut slots = slots(1);
    assert!(slots.take(&one) && !slots.take(&one) && !slots.take(&other));
    slots.wait(&other, 3);
    assert!(slots.give_back(&one));
    assert_eq!(slots.next_waiting(), Some((other, 3)));
}
