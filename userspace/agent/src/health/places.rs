//! How many checks run at a time, and whose: no account keeps the others' from being made. Pure.
//!
//! A check whose backend does not answer has its place until its time is over, so an account with many such backends, or
//! with long times, could have all places. Each may have [`SHARE`] times as many as are free (dynamic thresholds, Choudhury and
//! Hahne, 1998): one alone gets four fifths, several that want more than there is get equal parts, and who wants few is not
//! kept waiting by who wants many. What finds no place stands in its account's line; lines are served in turn.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

const SHARE: usize = 4;

/// The places, none at first. A number that stands in line names a backend to its caller.
#[derive(Debug, Default)]
pub(super) struct Places {
    most: usize,
    taken: usize,
    lines: HashMap<Arc<str>, Line>,
    /// The accounts in whose line somebody stands, in the order in which they are served.
    turns: VecDeque<Arc<str>>,
}

/// What one account has.
#[derive(Debug, Default)]
struct Line {
    taken: usize,
    waiting: VecDeque<u32>,
}

impl Places {
    /// There are so many from now on.
    pub(super) fn allow(&mut self, most: usize) {
        self.most = most;
    }

    /// Takes a place for an account; false: it has to wait.
    pub(super) fn take(&mut self, account: &Arc<str>) -> bool {
        let taken = self.lines.get(account).map_or(0, |line| line.taken);
        if taken >= SHARE * self.most.saturating_sub(self.taken) {
            return false;
        }
        self.taken += 1;
        self.lines.entry(Arc::clone(account)).or_default().taken += 1;
        true
    }

    /// Gives a place back; true: somebody waits for one.
    pub(super) fn give_back(&mut self, account: &Arc<str>) -> bool {
        self.taken = self.taken.saturating_sub(1);
        if let Some(line) = self.lines.get_mut(account) {
            line.taken = line.taken.saturating_sub(1);
            self.forget_idle(account);
        }
        !self.turns.is_empty()
    }

    /// Stands in its account's line.
    pub(super) fn wait(&mut self, account: &Arc<str>, number: u32) {
        let line = self.lines.entry(Arc::clone(account)).or_default();
        if line.waiting.is_empty() {
            self.turns.push_back(Arc::clone(account));
        }
        line.waiting.push_back(number);
    }

    /// Whoever waits and gets a place now, and whose it is.
    pub(super) fn call(&mut self) -> Option<(Arc<str>, u32)> {
        for _ in 0..self.turns.len() {
            let account = self.turns.pop_front()?;
            if !self.take(&account) {
                self.turns.push_back(account);
                continue;
            }
            let line = self.lines.get_mut(&account)?;
            let number = line.waiting.pop_front()?;
            if !line.waiting.is_empty() {
                self.turns.push_back(Arc::clone(&account));
            }
            return Some((account, number));
        }
        None
    }

    /// So many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    fn forget_idle(&mut self, account: &Arc<str>) {
        if self.lines.get(account).is_some_and(|line| line.taken == 0 && line.waiting.is_empty()) {
            self.lines.remove(account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(most: usize) -> Places {
        Places { most, ..Places::default() }
    }

    /// Takes as many as an account gets.
    fn take_all(places: &mut Places, account: &Arc<str>) -> usize {
        (0..).take_while(|_| places.take(account)).count()
    }

    #[test]
    fn an_account_alone_gets_four_fifths_and_leaves_the_rest_to_others() {
        let [greedy, meek, third]: [Arc<str>; 3] = ["greedy", "meek", "third"].map(Into::into);
        let mut places = places(100);
        assert_eq!(take_all(&mut places, &greedy), 80);
        assert!(places.take(&meek) && places.take(&third));
        assert_eq!(places.taken(), 82);
    }

    #[test]
    fn accounts_that_want_more_than_there_is_get_equal_parts_whoever_came_first() {
        let accounts: [Arc<str>; 3] = ["a", "b", "c"].map(Into::into);
        let mut places = places(130);
        for account in &accounts {
            while places.take(account) {}
            (0..1000).for_each(|number| places.wait(account, number));
        }
        // Each place that is given back goes to whoever may have it.
        let mut running: VecDeque<Arc<str>> = VecDeque::new();
        for account in &accounts {
            running.extend((0..places.lines[account].taken).map(|_| Arc::clone(account)));
        }
        for _ in 0..1000 {
            let ended = running.pop_front().expect("some run");
            assert!(places.give_back(&ended));
            while let Some((account, _)) = places.call() {
                running.push_back(account);
            }
        }
        let shares = accounts.each_ref().map(|account| places.lines[account].taken);
        assert!(shares.iter().all(|taken| (38..=42).contains(taken)), "{shares:?}");
    }

    #[test]
    fn who_waits_is_called_in_the_order_of_its_line() {
        let account: Arc<str> = "a".into();
        let mut places = places(5);
        assert_eq!(take_all(&mut places, &account), 4);
        [7, 8].into_iter().for_each(|number| places.wait(&account, number));
        assert_eq!(places.call(), None);
        for number in [7, 8] {
            assert!(places.give_back(&account));
            assert_eq!(places.call(), Some((Arc::clone(&account), number)));
        }
        (0..4).for_each(|_| assert!(!places.give_back(&account)));
        assert!(places.lines.is_empty(), "an account that has nothing is not remembered");
    }

    #[test]
    fn one_place_is_one_place() {
        let [one, other]: [Arc<str>; 2] = ["one", "other"].map(Into::into);
        let mut places = places(1);
        assert!(places.take(&one) && !places.take(&one) && !places.take(&other));
        places.wait(&other, 3);
        assert!(places.give_back(&one));
        assert_eq!(places.call(), Some((other, 3)));
    }
}
