//! Tells the programs which addresses the router has of its own: bits of the set of addresses that packets are looked up for
//! (`vipgate_abi::address_filter`).

use std::{collections::BTreeMap, net::Ipv4Addr};

use vipgate_abi::{address_filter::Bit, maps};

use super::{address_filter::change_word, bpffs::PinDir, error::LoadError, mapping::Mapping, tables::mapping};

/// The words with the bits.
#[derive(Debug)]
pub struct Addresses {
    words: Mapping<u64>,
}

impl Addresses {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self { words: mapping(dir, maps::INTEREST)? })
    }

    /// The router has these, and no others.
    pub fn set(&self, addresses: impl Iterator<Item = Ipv4Addr>) {
        let mut wanted = BTreeMap::<u32, u64>::new();
        for bit in addresses.map(|address| Bit::own(u32::from(address).to_be())) {
            *wanted.entry(bit.word()).or_default() |= bit.mask();
        }
        for at in 0..self.words.len() {
            let own = wanted.get(&at).copied().unwrap_or_default();
            change_word(&self.words, at, |held| held & !Bit::OWN | own);
        }
    }
}
