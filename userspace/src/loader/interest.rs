//! Keeps the set of addresses that packets are looked up for (`vipgate_abi::interest`) in line with services and
//! backends: a bit is set before the first entry that needs it is written, and cleared after the last one is gone.

use std::collections::{HashMap, HashSet};

use vipgate_abi::{
    backend::Backend,
    interest::{Bit, WORDS},
    maps,
    service::ServiceKey,
};

use super::{bpffs::PinDir, error::LoadError, mapping::Mapping, tables::mapping};

/// The bits, and what needs them.
#[derive(Debug)]
pub(super) struct Interest {
    words: Mapping<u64>,
    /// Keys with their prefix lengths: the trie cannot be asked for one, it answers with the longest match.
    services: HashSet<(ServiceKey, u32)>,
    /// How many services and backends need a bit.
    uses: HashMap<Bit, u32>,
}

impl Interest {
    /// Brings the bits in line with the services and backends that there are.
    pub(super) fn open(
        dir: &PinDir,
        services: HashSet<(ServiceKey, u32)>,
        backends: impl Iterator<Item = Backend>,
    ) -> Result<Self, LoadError> {
        let words = mapping(dir, maps::INTEREST)?;
        let (mut uses, mut wanted) = (HashMap::new(), vec![0; WORDS]);
        for bit in services.iter().map(|(key, _)| to(key)).chain(backends.filter_map(|backend| from(&backend))) {
            *uses.entry(bit).or_default() += 1;
            if let Some(word) = wanted.get_mut(bit.word() as usize) {
                *word |= bit.mask();
            }
        }
        for (at, word) in (0..).zip(wanted) {
            words.write(at, word);
        }
        Ok(Self { words, services, uses })
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

    /// A backend is about to be written.
    pub(super) fn add_backend(&mut self, backend: &Backend) {
        from(backend).into_iter().for_each(|bit| self.add(bit));
    }

    /// A backend was overwritten.
    pub(super) fn remove_backend(&mut self, backend: &Backend) {
        from(backend).into_iter().for_each(|bit| self.remove(bit));
    }

    fn add(&mut self, bit: Bit) {
        let uses = self.uses.entry(bit).or_default();
        *uses += 1;
        if *uses == 1 {
            self.change(bit, |word| word | bit.mask());
        }
    }

    fn remove(&mut self, bit: Bit) {
        let Some(uses) = self.uses.get_mut(&bit) else {
            return;
        };
        *uses -= 1;
        if *uses == 0 {
            self.uses.remove(&bit);
            self.change(bit, |word| word & !bit.mask());
        }
    }

    /// There is no other writer.
    fn change(&self, bit: Bit, change: impl FnOnce(u64) -> u64) {
        if let Some(word) = self.words.read(bit.word()) {
            self.words.write(bit.word(), change(word));
        }
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
