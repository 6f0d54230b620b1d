//! Maglev tables: how even they are, and how few entries a change moves.

use std::{collections::BTreeMap, net::Ipv4Addr};

use proptest::{
    collection::{btree_set, vec},
    prelude::*,
};

use super::*;

fn backend(n: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + n), 80)
}

fn shares(table: &[u32]) -> BTreeMap<u32, usize> {
    let mut shares = BTreeMap::new();
    for at in table {
        *shares.entry(*at).or_default() += 1;
    }
    shares
}

fn equal(pool: &[SocketAddrV4]) -> Vec<Member> {
    pool.iter().map(|address| Member { address: *address, weight: 100 }).collect()
}

/// The table as backends instead of positions.
fn named(pool: &[SocketAddrV4]) -> Vec<SocketAddrV4> {
    table(&equal(pool)).into_iter().map(|at| pool[at as usize]).collect()
}

fn pools(most: usize) -> impl Strategy<Value = Vec<SocketAddrV4>> {
    btree_set((any::<u32>(), 1_u16..), 1..most)
        .prop_map(|set| set.into_iter().map(|(a, p)| SocketAddrV4::new(a.into(), p)).collect())
}

#[test]
fn sizes_are_primes_of_a_hundred_elements_a_backend_and_seldom_change() {
    for (backends, size) in [(0, 0), (1, 1601), (16, 1601), (17, 6421), (64, 6421), (65, 25_601), (1000, 102_407)] {
        assert_eq!(table_size(backends), size, "{backends} backends");
    }
}

#[test]
fn an_empty_pool_has_an_empty_table_and_one_backend_takes_all() {
    assert!(table(&[]).is_empty());
    assert_eq!(table(&equal(&[backend(7)])), vec![0; 1601]);
}

#[test]
fn a_known_pool_keeps_its_table_for_ever() {
    // Flows move when this fails: routers of two versions would disagree.
    let table = table(&equal(&[backend(1), backend(2), backend(3)]));
    let digest = table.iter().fold(0_u64, |sum, at| sum.wrapping_mul(31).wrapping_add(u64::from(*at) + 1));
    assert_eq!(digest, 18_301_056_786_020_640_603);
}

#[test]
fn removing_one_of_ten_backends_moves_few_flows_of_the_others() {
    let ten: Vec<_> = (1..=10).map(backend).collect();
    let before = named(&ten);
    for gone in &ten {
        let nine: Vec<_> = ten.iter().copied().filter(|b| b != gone).collect();
        let after = named(&nine);
        let moved = before.iter().zip(&after).filter(|(b, a)| *b != gone && b != a).count();
        // Hashing modulo the pool's size would move about 80 %.
        assert!(moved * 100 < before.len() * 8, "{moved} of {} moved with {gone} gone", before.len());
    }
}

proptest! {
    #[test]
    fn every_backend_gets_its_share_within_two_percent(pool in pools(60)) {
        let table = table(&equal(&pool));
        let shares = shares(&table);
        let fair = table.len() as f64 / pool.len() as f64;
        for at in 0..pool.len() as u32 {
            let share = shares.get(&at).copied().unwrap_or(0) as f64;
            prop_assert!((share - fair).abs() <= 1.0_f64.max(fair * 0.02), "{at} has {share}, fair is {fair}");
        }
    }

    #[test]
    fn weights_are_shares(pool in pools(16), weights in vec(1..=100_u8, 16)) {
        let pool: Vec<Member> =
            pool.into_iter().zip(weights).map(|(address, weight)| Member { address, weight }).collect();
        let table = table(&pool);
        let shares = shares(&table);
        let all: u32 = pool.iter().map(|member| u32::from(member.weight)).sum();
        for (at, member) in (0..).zip(&pool) {
            let share = shares.get(&at).copied().unwrap_or(0) as f64;
            let fair = table.len() as f64 * f64::from(member.weight) / f64::from(all);
            // What it gathers for its next turn, and its share of what all gather for theirs.
            let rounding = 1.0 + fair / table.len() as f64 * pool.len() as f64;
            prop_assert!((share - fair).abs() <= rounding, "{member:?} has {share}, fair is {fair}");
        }
    }

    #[test]
    fn the_order_of_the_pool_does_not_matter(pool in pools(30), turn in any::<prop::sample::Index>()) {
        let mut other = pool.clone();
        other.rotate_left(turn.index(pool.len()));
        other.reverse();
        prop_assert_eq!(named(&pool), named(&other));
    }
}
