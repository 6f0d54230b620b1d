//! The selection table of a listener: the backends that its algorithm selects from.

use std::net::{Ipv4Addr, SocketAddrV4};

use vipgate_abi::service::Member;
use vipgate_state::{Algorithm, BackendState, ListenerState};

use crate::reconcile::maglev;

/// The listener's selection table, of those of its backends that take new flows; empty if none does.
pub(super) fn selection_table(listener: &ListenerState<Ipv4Addr>) -> Vec<u32> {
    let mut pool: Vec<&BackendState<Ipv4Addr>> =
        listener.backends.iter().filter(|backend| is_in_pool(backend)).collect();
    pool.sort_by_key(|b| b.number);
    match listener.algorithm {
        Algorithm::RoundRobin => turns(&pool),
        Algorithm::LeastConnections => pool.iter().map(|b| Member::new(b.number, b.weight).0).collect(),
        Algorithm::Source | Algorithm::Maglev => {
            let member = |b: &&BackendState<Ipv4Addr>| maglev::Member {
                address: SocketAddrV4::new(b.address, b.port),
                weight: b.weight,
            };
            let members: Vec<_> = pool.iter().map(member).collect();
            maglev::table(&members).into_iter().map(|at| pool[at as usize].number).collect()
        }
    }
}

/// True for a backend that takes new flows.
pub(super) fn is_in_pool(backend: &BackendState<Ipv4Addr>) -> bool {
    backend.active && backend.healthy && backend.weight > 0
}

/// The order of turns of a weighted round robin: as many turns for each as its weight says, and each one's evenly spread
/// over the table, so that no backend gets its flows in a burst. The shortest such order: weights that all are multiples
/// of a number are divided by it, and equal ones are one turn each.
fn turns(pool: &[&BackendState<Ipv4Addr>]) -> Vec<u32> {
    let divisor = pool.iter().fold(0, |divisor, b| gcd(divisor, b.weight)).max(1);
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for backend in pool {
        let count = u64::from(backend.weight / divisor);
        // The middle of each of `count` equal parts, in units of 1 / 2^33 of the table.
        turns.extend((0..count).map(|turn| (((2 * turn + 1) << 32) / count, backend.number)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, number)| number).collect()
}

fn gcd(a: u8, b: u8) -> u8 {
    if b == 0 { a } else { gcd(b, a % b) }
}
