//! Keeps the set of addresses that packets are looked up for (`vipgate_abi::address_filter`) in line with services, SNAT rules and
//! backends: a bit is set before the first entry that needs it is written, and cleared after the last one is gone. Bits of
//! packets to and from addresses rest before that: those of connections that were ended are to be answered.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::atomic::Ordering,
    time::Instant,
};

use vipgate_abi::{
    Be32,
    address_filter::{BITS, Bit, WORDS},
    backend::Backend,
    maps,
    service::ServiceKey,
    snat::SnatKey,
};

use super::{ENDED, bpffs::PinDir, error::LoadError, mapping::Mapping, tables::mapping};

/// The bits, and what needs them.
#[derive(Debug)]
pub(super) struct AddressFilter {
    words: Mapping<u64>,
    /// Keys with their prefix lengths: the trie cannot be asked for one, it answers with the longest match.
    services: HashSet<(ServiceKey, u32)>,
    /// With the VIP that packets leave by: their answers come to it, and it may have no service.
    snat_rules: HashMap<(SnatKey, u32), Be32>,
    uses: Uses,
    /// Bits that nothing needs since then, unless it does again. They are cleared by what is changed later: a bit more than
    /// needed costs packets a look.
    resting: VecDeque<(Instant, Bit)>,
}

/// How many services, SNAT rules and backends need a bit, by its number (of the router's own addresses none does): a network of 65,536
/// guests needs as many bits twice, which are counted in 4 ms here, and in twice the time in a hash map.
#[derive(Debug)]
struct Uses(Vec<u32>);

impl AddressFilter {
    /// Brings the bits in line with the services, SNAT rules and backends that there are.
    pub(super) fn open(
        dir: &PinDir,
        services: HashSet<(ServiceKey, u32)>,
        snat_rules: HashMap<(SnatKey, u32), Be32>,
        backends: impl Iterator<Item = Backend>,
    ) -> Result<Self, LoadError> {
        let words = mapping(dir, maps::INTEREST)?;
        let (mut uses, mut wanted) = (Uses::none(), vec![0; WORDS]);
        let mut need = |bit: Bit| {
            if uses.add(bit)
                && let Some(word) = wanted.get_mut(bit.word() as usize)
            {
                *word |= bit.mask();
            }
        };
        services.iter().for_each(|(key, _)| need(to(key)));
        snat_rules.keys().for_each(|(key, prefix_len)| out(*key, *prefix_len, &mut need));
        snat_rules.values().for_each(|vip| need(Bit::to(*vip)));
        backends.filter_map(|backend| from(&backend)).for_each(&mut need);
        let address_filter = Self { words, services, snat_rules, uses, resting: VecDeque::new() };
        for (at, word) in (0..).zip(wanted) {
            address_filter.change(at, |held| held & Bit::OWN | word);
        }
        Ok(address_filter)
    }

    /// A service is about to be written.
    pub(super) fn add_service(&mut self, key: ServiceKey, prefix_len: u32) {
        if self.services.insert((key, prefix_len)) {
            self.add(to(&key));
        }
    }

    /// A service is gone.
    pub(super) fn remove_service(&mut self, key: ServiceKey, prefix_len: u32) {
        if self.services.remove(&(key, prefix_len)) {
            self.remove(to(&key));
        }
    }

    /// A source is about to be written, by which packets leave as the VIP. The VIP of the one that it replaces is for
    /// [`Self::remove_way`] afterwards.
    pub(super) fn add_source(&mut self, key: SnatKey, prefix_len: u32, vip: Be32) -> Option<Be32> {
        self.add(Bit::to(vip));
        let replaced = self.snat_rules.insert((key, prefix_len), vip);
        if replaced.is_none() {
            out(key, prefix_len, |bit| self.add(bit));
        }
        replaced
    }

    /// A source is gone.
    pub(super) fn remove_snat_rule(&mut self, key: SnatKey, prefix_len: u32) {
        if let Some(vip) = self.snat_rules.remove(&(key, prefix_len)) {
            out(key, prefix_len, |bit| self.remove(bit));
            self.remove_way(vip);
        }
    }

    /// A source does not lead out by the VIP any more.
    pub(super) fn remove_way(&mut self, vip: Be32) {
        self.remove(Bit::to(vip));
    }

    /// A backend is about to be written.
    pub(super) fn add_backend(&mut self, backend: &Backend) {
        from(backend).into_iter().for_each(|bit| self.add(bit));
    }

    /// A backend was overwritten.
    pub(super) fn remove_backend(&mut self, backend: &Backend) {
        from(backend).into_iter().for_each(|bit| self.remove(bit));
    }

    fn add(&mut self, bit: Bit) {
        if self.uses.add(bit) {
            self.change(bit.word(), |word| word | bit.mask());
        }
    }

    fn remove(&mut self, bit: Bit) {
        self.remove_at(bit, Instant::now());
    }

    fn remove_at(&mut self, bit: Bit, now: Instant) {
        while let Some((since, rested)) = self.resting.front().copied() {
            if now.saturating_duration_since(since) < ENDED {
                break;
            }
            self.resting.pop_front();
            if !self.uses.has(rested) {
                self.change(rested.word(), |word| word & !rested.mask());
            }
        }
        match self.uses.remove(bit) {
            true if bit.is_out() => self.change(bit.word(), |word| word & !bit.mask()),
            true => self.resting.push_back((now, bit)),
            false => {}
        }
    }

    fn change(&self, at: u32, change: impl Fn(u64) -> u64) {
        change_word(&self.words, at, change);
    }
}

/// Changes a word of which others change other bits at the same time.
pub(super) fn change_word(words: &Mapping<u64>, at: u32, change: impl Fn(u64) -> u64) {
    if let Some([word]) = words.words(at) {
        let changed = |held| Some(change(held)).filter(|new| *new != held);
        // Refused where nothing is to be changed.
        let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, changed);
    }
}

impl Uses {
    fn none() -> Self {
        Self(vec![0; WORDS * u64::BITS as usize])
    }

    /// One more; `true` if it is the first.
    fn add(&mut self, bit: Bit) -> bool {
        let Some(uses) = self.0.get_mut(bit.index() as usize) else { return false };
        *uses += 1;
        *uses == 1
    }

    fn has(&self, bit: Bit) -> bool {
        self.0.get(bit.index() as usize).is_some_and(|uses| *uses > 0)
    }

    /// One less; `true` if it was the last.
    fn remove(&mut self, bit: Bit) -> bool {
        let Some(uses) = self.0.get_mut(bit.index() as usize).filter(|uses| **uses > 0) else { return false };
        *uses -= 1;
        *uses == 0
    }
}

/// Gives the bits that a source needs to `each`: those of all its addresses.
fn out(key: SnatKey, prefix_len: u32, each: impl FnMut(Bit)) {
    let first = u32::from_be_bytes(key.addr);
    match 1_u32.checked_shl(SnatKey::EXACT.saturating_sub(prefix_len)) {
        Some(count) if count <= BITS => {
            let guests = (first..=first | (count - 1)).map(u32::to_be);
            guests.flat_map(|guest| [Bit::from(guest), Bit::out(guest)]).for_each(each);
        }
        _ => Bit::from_and_out_of_all().for_each(each),
    }
}

/// The bit that a service needs.
fn to(key: &ServiceKey) -> Bit {
    Bit::to(u32::from_ne_bytes(key.vip))
}

/// The bit that a backend needs; none for a free number.
fn from(backend: &Backend) -> Option<Bit> {
    (backend.addr != 0).then(|| Bit::from(backend.addr))
}

#[cfg(test)]
mod tests;
