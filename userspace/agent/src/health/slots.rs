//! How many checks run at a time, and of which accounts: no account keeps the others' checks from being made. Pure.
//!
//! A check holds its slot until the backend answers or the check times out, so an account with many silent backends, or
//! with long timeouts, could hold all slots. Each account may have [`SHARE`] times as many slots as are free (dynamic
//! thresholds, Choudhury and Hahne, 1998): an account alone gets four fifths, accounts that want more than there is get equal
//! parts, and one that wants few does not wait for one that wants many. A check without a slot waits in its account's queue;
//! the queues are served in turn.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

const SHARE: usize = 4;

/// The slots, none at first. The numbers that wait are those of backends.
#[derive(Debug, Default)]
pub(super) struct Slots {
    most: usize,
    taken: usize,
    accounts: HashMap<Arc<str>, Account>,
    /// The accounts that have checks waiting, in the order in which they are served.
    turns: VecDeque<Arc<str>>,
}

#[derive(Debug, Default)]
struct Account {
    taken: usize,
    waiting: VecDeque<u32>,
}

impl Slots {
    /// Sets how many there are.
    pub(super) fn allow(&mut self, most: usize) {
        self.most = most;
    }

    /// Takes a slot for an account; `false` if it has to wait.
    pub(super) fn take(&mut self, account: &Arc<str>) -> bool {
        let taken = self.accounts.get(account).map_or(0, |account| account.taken);
        if taken >= SHARE * self.most.saturating_sub(self.taken) {
            return false;
        }
        self.taken += 1;
        self.accounts.entry(Arc::clone(account)).or_default().taken += 1;
        true
    }

    /// Gives a slot back; `true` if a check waits for one.
    pub(super) fn give_back(&mut self, account: &Arc<str>) -> bool {
        self.taken = self.taken.saturating_sub(1);
        if let Some(held) = self.accounts.get_mut(account) {
            held.taken = held.taken.saturating_sub(1);
            self.forget_idle(account);
        }
        !self.turns.is_empty()
    }

    /// Adds a backend to its account's queue.
    pub(super) fn wait(&mut self, account: &Arc<str>, number: u32) {
        let held = self.accounts.entry(Arc::clone(account)).or_default();
        if held.waiting.is_empty() {
            self.turns.push_back(Arc::clone(account));
        }
        held.waiting.push_back(number);
    }

    /// The next waiting backend that gets a slot now, and its account.
    pub(super) fn next_waiting(&mut self) -> Option<(Arc<str>, u32)> {
        for _ in 0..self.turns.len() {
            let account = self.turns.pop_front()?;
            if !self.take(&account) {
                self.turns.push_back(account);
                continue;
            }
            let held = self.accounts.get_mut(&account)?;
            let number = held.waiting.pop_front()?;
            if !held.waiting.is_empty() {
                self.turns.push_back(Arc::clone(&account));
            }
            return Some((account, number));
        }
        None
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    fn forget_idle(&mut self, account: &Arc<str>) {
        if self.accounts.get(account).is_some_and(|held| held.taken == 0 && held.waiting.is_empty()) {
            self.accounts.remove(account);
        }
    }
}

#[cfg(test)]
mod tests;
