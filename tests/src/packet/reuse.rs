//! Reuses loaded programs from one bench to the next: the kernel's verifier takes longer than most tests.
//!
//! The tables are wiped before another bench gets them. A table that [`wipe`] does not name makes every bench fail. If wiping a
//! table costs more than it saves, the bench that uses it is the programs' last ([`Loaded::is_last`]).

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError, atomic::Ordering},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, Pod,
    maps::{
        Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
    util::nr_cpus,
};
use vipgate_abi::{
    backend::{Backend, BackendRoute},
    counters::Traffic,
    flow::{Bucket, Flow, FlowKey},
    fragment::{FragmentKey, FragmentPorts},
    interface::Interface,
    maps,
    meter::MeterPort,
    refused::OriginalDestination,
    service::{Service, ServiceKey},
    snat::{SnatKey, SnatRule},
};
use vipgate_agent::loader::Mapping;

use super::Hook;

/// What the programs were loaded for: programs of the same kind can replace each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) hook: Hook,
    pub(super) buckets: u32,
}

static IDLE: Mutex<Vec<(Kind, Ebpf)>> = Mutex::new(Vec::new());
/// Most idle programs kept: tests of one process run on few threads.
const MOST_IDLE: usize = 8;

/// The programs and tables that a bench holds.
#[derive(Debug)]
pub(super) struct Loaded {
    /// `None` once they are given back.
    ebpf: Option<Ebpf>,
    /// `None` if no bench may get them after this one.
    kind: Option<Kind>,
}

impl Loaded {
    /// Programs for this bench alone.
    pub(super) fn once(ebpf: Ebpf) -> Self {
        Self { ebpf: Some(ebpf), kind: None }
    }

    /// Idle programs of this kind, wiped, or newly loaded ones.
    pub(super) fn of(kind: Kind, load: impl FnOnce() -> Result<Ebpf>) -> Result<Self> {
        let idle = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().position(|(held, _)| *held == kind).map(|at| idle.swap_remove(at).1)
        };
        let ebpf = match idle {
            Some(mut ebpf) => {
                for (name, map) in ebpf.maps_mut() {
                    wipe(name, map).with_context(|| format!("cannot wipe {name}"))?;
                }
                ebpf
            }
            None => load()?,
        };
        Ok(Self { ebpf: Some(ebpf), kind: Some(kind) })
    }

    /// Lets no bench get these programs after this one: their tables hold what is not wiped.
    pub(super) fn is_last(&mut self) {
        self.kind = None;
    }
}

impl Deref for Loaded {
    type Target = Ebpf;

    fn deref(&self) -> &Ebpf {
        self.ebpf.as_ref().expect("given back only on drop")
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Ebpf {
        self.ebpf.as_mut().expect("given back only on drop")
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // The state after a failing test may be why it failed.
        if let (Some(kind), Some(ebpf), false) = (self.kind, self.ebpf.take(), std::thread::panicking()) {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < MOST_IDLE {
                idle.push((kind, ebpf));
            }
        }
    }
}

/// Makes a table as it was when it was created.
fn wipe(name: &str, map: &mut Map) -> Result<()> {
    match name {
        maps::FLOW_BUCKETS => zero::<Bucket>(maps::FLOW_BUCKETS, map),
        maps::FLOWS => zero::<Flow>(maps::FLOWS, map),
        maps::INTEREST => zero::<u64>(maps::INTEREST, map),
        maps::BACKENDS => zero::<Backend>(maps::BACKENDS, map),
        maps::BACKEND_LOAD => zero::<u64>(maps::BACKEND_LOAD, map),
        maps::SERVICE_LOAD => zero::<u32>(maps::SERVICE_LOAD, map),
        maps::RINGS => zero::<u32>(maps::RINGS, map),
        maps::BACKEND_ROUTES => clear::<BackendRoute>(map),
        maps::PORT_CURSORS | maps::CONFIRMED => clear::<u32>(map),
        maps::CURSORS | maps::SAMPLE => clear::<u64>(map),
        maps::PORTS => clear::<Interface>(map),
        maps::BACKEND_TRAFFIC => clear_each_cpu::<Traffic>(map),
        maps::REASONS => clear_each_cpu::<u64>(map),
        maps::SERVICES => remove_prefixes::<ServiceKey, Service>(map),
        maps::SOURCES => remove_prefixes::<SnatKey, SnatRule>(map),
        maps::PORT_NUMBERS => remove_all::<u32, u32>(map),
        maps::PORT_METERS => remove_all::<MeterPort, u32>(map),
        maps::FRAGMENTS => remove_all::<FragmentKey, FragmentPorts>(map),
        maps::DIRECT => remove_all::<FlowKey, u32>(map),
        maps::REFUSED => remove_all::<FlowKey, OriginalDestination>(map),
        // Not wiped: each bench writes them whole, they go with its devices, only the controller uses them, or the bench is the last.
        maps::CONFIG
        | maps::TX_PORTS
        | maps::PAST_TRAFFIC
        | maps::OTHER_BUCKETS
        | maps::OTHER_FLOWS
        | maps::METERS
        | maps::METER_STATES
        | maps::METER_TRAFFIC
        | maps::METER_SHARES
        | maps::LAST_TOLD
        | maps::AYA_LOGS => Ok(()),
        // The programs' constants.
        name if name.starts_with(".rodata") || name.starts_with(".bss") || name.starts_with(".data") => Ok(()),
        name => bail!("no rule to wipe {name}: add one in tests/src/packet/reuse.rs"),
    }
}

fn zero<T: Pod>(name: &'static str, map: &Map) -> Result<()> {
    let Map::Array(data) = map else {
        bail!("it is not an array");
    };
    let mapping = Mapping::<T>::new(name, data)?;
    for word in (0..mapping.len()).filter_map(|index| mapping.words(index)).flatten() {
        if word.load(Ordering::Relaxed) != 0 {
            word.store(0, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn clear<T: Pod + Default>(map: &mut Map) -> Result<()> {
    let mut array = Array::<&mut MapData, T>::try_from(map)?;
    (0..array.len()).try_for_each(|index| array.set(index, T::default(), 0))?;
    Ok(())
}

fn clear_each_cpu<T: Pod + Default>(map: &mut Map) -> Result<()> {
    let cpus = nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
    let mut array = PerCpuArray::<&mut MapData, T>::try_from(map)?;
    for index in 0..array.len() {
        array.set(index, PerCpuValues::try_from(vec![T::default(); cpus])?, 0)?;
    }
    Ok(())
}

fn remove_prefixes<K: Pod, V: Pod>(map: &mut Map) -> Result<()> {
    let mut trie = LpmTrie::<&mut MapData, K, V>::try_from(map)?;
    let keys = trie.keys().collect::<Result<Vec<Key<K>>, _>>()?;
    keys.iter().try_for_each(|key| trie.remove(key))?;
    Ok(())
}

fn remove_all<K: Pod, V: Pod>(map: &mut Map) -> Result<()> {
    let mut table = HashMap::<&mut MapData, K, V>::try_from(map)?;
    let keys = table.keys().collect::<Result<Vec<K>, _>>()?;
    keys.iter().try_for_each(|key| table.remove(key))?;
    Ok(())
}
