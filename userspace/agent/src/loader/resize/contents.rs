//! What tables of another size need of the old ones before the first packet meets them, and what is brought to them when
//! the last packet has left the old ones. Flows are not here: `flow_migration` moves them.

use std::iter;

use aya::maps::{Array, LpmTrie, MapData, lpm_trie::Key};
use tracing::warn;
use vipgate_abi::{
    flow::{CANDIDATES, Candidate, SPARE, WAYS},
    hash,
    load::Load,
    maps,
    service::{Service, ServiceKey},
    snat::{SnatKey, SnatRule},
};

use crate::loader::{
    Sizes, TableError,
    bpffs::PinDir,
    error::LoadError,
    flow_table::FlowTable,
    object::{is_shared, open},
    tables::{Epoch, Tables, insert},
};

/// Of a smaller flow table's slots so many percent may be taken at first: up to then every flow finds one.
const FILLED: usize = 70;

/// The sizes nearest to the wanted ones that hold what is there; logs those that differ from the wanted ones.
pub(super) fn that_fit(dir: &PinDir, held: Sizes, wanted: Sizes) -> Result<Sizes, LoadError> {
    let tables = Tables::open(dir)?;
    let services = tables.services()?;
    let used: Vec<_> = (0..held.backends)
        .filter_map(|number| Some((number, tables.backends().read(number).filter(|backend| backend.addr != 0)?)))
        .collect();
    // Source NAT has numbers, too, but no key among the services.
    let numbers = services.iter().map(|(_, _, service)| service.number);
    let numbers = numbers.chain(used.iter().map(|(_, backend)| backend.service));
    let numbers = numbers.map(|number| number.saturating_add(1)).max().unwrap_or(1);
    let keys = u32::try_from(services.len().max(tables.snat_rules()?.len())).unwrap_or(u32::MAX);
    let rings = services.iter().map(|(_, _, service)| service).filter(|service| service.ring_len > 0);
    let rings = rings.map(|service| service.ring_base.saturating_add(service.ring_len));
    let backends = used.last().map_or(1, |(last, _)| last + 1);
    let choose = |name, held: u32, wanted: u32, least: u32| {
        if wanted >= least {
            return wanted;
        }
        warn!(
            "datapath.{name} = {wanted} is too small for what is in the table, which keeps its size of {held}: \
             {least} is the smallest possible now"
        );
        held
    };
    Ok(Sizes {
        flows: choose("flows", held.flows, wanted.flows, least_flows(dir, held.flows, wanted.flows)?),
        services: choose("services", held.services, wanted.services, numbers.max(keys)),
        backends: choose("backends", held.backends, wanted.backends, backends),
        ring_elements: choose("ring_elements", held.ring_elements, wanted.ring_elements, rings.max().unwrap_or(1)),
    })
}

/// The smallest number of flows, from the wanted one on, that holds the connections there are.
pub(super) fn least_flows(dir: &PinDir, held: u32, wanted: u32) -> Result<u32, LoadError> {
    if wanted >= held {
        return Ok(wanted);
    }
    let (table, seed) = (FlowTable::open(dir)?, Epoch::open(dir)?.get()?.flow_seed);
    let hashes: Vec<_> = (0..held)
        .filter_map(|slot| table.stable(slot))
        .filter(|(word, _)| word.state().is_live())
        .map(|(_, flow)| hash::flow(&flow.key, seed))
        .collect();
    let mut flows = wanted;
    while flows < held && !fit(&hashes, flows) {
        flows *= 2;
    }
    Ok(flows)
}

/// Whether flows with these hashes all find a slot in an empty table of so many, and leave some for others.
fn fit(hashes: &[u64], flows: u32) -> bool {
    let mask = flows / WAYS as u32 - 1;
    let mut buckets = vec![0; mask as usize + 1];
    let mut place = |hash| {
        let all = iter::successors(Some(Candidate::home(hash, mask)), |at| Some(at.next(mask)));
        let all: Vec<_> = all.take(CANDIDATES as usize).map(|at| at.bucket as usize).collect();
        let with_room = |taken: usize| all.iter().find(|bucket| buckets[**bucket] < taken);
        let bucket = with_room(WAYS + 1 - SPARE as usize).or_else(|| with_room(WAYS)).copied();
        bucket.inspect(|bucket| buckets[*bucket] += 1).is_some()
    };
    hashes.len() * 100 <= flows as usize * FILLED && hashes.iter().all(|hash| place(*hash))
}

/// The loads that new tables began with; what the old ones have grown since is theirs, too.
#[derive(Debug, Default)]
pub(super) struct Begun {
    backends: Vec<Load>,
    services: Vec<u32>,
}

/// Fills new tables with what the old ones hold: services, SNAT rules, backends, rings, cursors, loads.
pub(super) fn fill(dir: &PinDir, next: &PinDir) -> Result<Begun, LoadError> {
    let (old, new) = (Tables::open(dir)?, Tables::open(next)?);
    let services = old.services()?;
    if !is_shared(maps::SERVICES, dir, next)? {
        let mut copy: LpmTrie<MapData, ServiceKey, Service> = open(next, maps::SERVICES)?;
        for (key, prefix_len, service) in &services {
            insert(&mut copy, maps::SERVICES, Key::new(*prefix_len, *key), *service)?;
        }
        let from: Array<MapData, u64> = open(dir, maps::CURSORS)?;
        let mut copy: Array<MapData, u64> = open(next, maps::CURSORS)?;
        for (_, _, Service { number, .. }) in &services {
            // A service without cursor is none that takes turns.
            if let Ok(turn) = from.get(number, 0) {
                copy.set(*number, turn, 0).map_err(|error| TableError::new(maps::CURSORS, "write", error))?;
            }
        }
    }
    if !is_shared(maps::SOURCES, dir, next)? {
        let mut copy: LpmTrie<MapData, SnatKey, SnatRule> = open(next, maps::SOURCES)?;
        for (key, prefix_len, source) in old.snat_rules()? {
            insert(&mut copy, maps::SOURCES, Key::new(prefix_len, key), source)?;
        }
    }
    if !is_shared(maps::BACKENDS, dir, next)? {
        // Of a number that is free the generation counts.
        for number in 0..old.backends().len() {
            new.backends().write(number, old.backends().read(number).unwrap_or_default());
        }
    }
    if !is_shared(maps::RINGS, dir, next)? {
        let elements = services
            .iter()
            .flat_map(|(_, _, service)| (0..service.ring_len).map(|element| service.ring_base + element));
        for element in elements {
            new.rings().write(element, old.rings().read(element).unwrap_or_default());
        }
    }
    let (from, to) = (FlowTable::open(dir)?, FlowTable::open(next)?);
    let mut begun = Begun::default();
    if !is_shared(maps::BACKEND_LOAD, dir, next)? {
        begun.backends = from.backend_loads().all();
        (0..).zip(&begun.backends).for_each(|(number, load)| to.backend_loads().copy(number, *load));
    }
    if !is_shared(maps::SERVICE_LOAD, dir, next)? {
        begun.services = from.service_loads().all();
        (0..).zip(&begun.services).for_each(|(number, load)| to.service_loads().add(number, *load));
    }
    Ok(begun)
}

/// Adds what was counted in the old tables, which no program uses any more, to the new ones. Loads whose start is unknown are
/// left to the sweeper.
pub(super) fn settle(dir: &PinDir, next: &PinDir, begun: &Begun) -> Result<(), LoadError> {
    if !is_shared(maps::BACKEND_TRAFFIC, dir, next)? {
        Tables::open(next)?.add_past_traffic(&Tables::open(dir)?)?;
    }
    let (from, to) = (FlowTable::open(dir)?, FlowTable::open(next)?);
    for (number, before) in (0..).zip(&begun.backends) {
        to.backend_loads().add_grown(number, *before, from.backend_loads().get(number));
    }
    for (number, before) in (0..).zip(&begun.services) {
        // Modulo 2^32: it may have shrunk.
        to.service_loads().add(number, from.service_loads().get(number).wrapping_sub(*before));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_fit_into_a_table_that_leaves_slots_for_others() {
        let hashes: Vec<_> = (0..5700).map(hash::source).collect();
        assert!(fit(&hashes, 8192), "69%");
        assert!(!fit(&hashes, 4096));
        assert!(!fit(&(0..5800).map(hash::source).collect::<Vec<_>>(), 8192), "71%");
        // All the same, so that there are four buckets for them.
        assert!(fit(&[hashes[0]; 32], 8192) && !fit(&[hashes[0]; 33], 8192));
    }
}
