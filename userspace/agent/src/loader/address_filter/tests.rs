//! The bits of the address filter, in memory.

use super::*;

fn bits(addr: [u8; 4], hosts: u32) -> Vec<Bit> {
    let mut bits = Vec::new();
    let key = SnatKey { device: [0; 4], addr };
    out(key, SnatKey::EXACT - hosts, |bit| bits.push(bit));
    bits
}

#[test]
fn a_source_needs_the_bits_of_all_its_addresses() {
    let addr = u32::from_ne_bytes([10, 2, 0, 7]);
    assert_eq!(bits([10, 2, 0, 7], 0), [Bit::from(addr), Bit::out(addr)]);
    let last = u32::from_ne_bytes([10, 2, 0, 255]);
    let network = bits([10, 2, 0, 0], 8);
    assert_eq!(network.len(), 512);
    assert!(network.contains(&Bit::out(addr)) && network.contains(&Bit::from(last)));
    assert_eq!(bits([255, 255, 0, 0], 16).len(), 1 << 17);
    for hosts in [20, 24, 32] {
        assert_eq!(bits([0; 4], hosts).len(), 2 * BITS as usize, "more addresses than bits: all, each once");
    }
}

#[test]
fn bits_to_and_from_an_address_rest_before_they_are_cleared_and_may_be_needed_again() {
    let mut address_filter = AddressFilter {
        words: Mapping::anonymous(WORDS as u32),
        services: HashSet::new(),
        snat_rules: HashMap::new(),
        uses: Uses::none(),
        resting: VecDeque::new(),
    };
    let is_set = |address_filter: &AddressFilter, bit: Bit| {
        address_filter.words.read(bit.word()).is_some_and(|word| word & bit.mask() != 0)
    };
    let [to, from, out, other] = [Bit::to(1), Bit::from(1), Bit::out(1), Bit::to(2)];
    for bit in [to, from, out, other] {
        address_filter.add(bit);
    }
    let start = Instant::now();
    for bit in [to, from, out] {
        address_filter.remove_at(bit, start);
    }
    assert_eq!([to, from, out].map(|bit| is_set(&address_filter, bit)), [true, true, false]);
    address_filter.add(from);
    address_filter.remove_at(other, start + ENDED);
    assert_eq!([to, from, other].map(|bit| is_set(&address_filter, bit)), [false, true, true]);
}

#[test]
fn a_bit_is_wanted_from_its_first_use_to_its_last() {
    let (mut uses, bit) = (Uses::none(), Bit::out(7));
    assert!(uses.add(bit) && !uses.add(bit));
    assert!(!uses.remove(bit) && uses.remove(bit) && !uses.remove(bit));
}
