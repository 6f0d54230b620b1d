//! The tables. Sizes here are the defaults; the loader may set others (see `vipgate_abi::maps`).

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use vipgate_abi::{
    address_filter,
    backend::{Backend, BackendRoute},
    config::Config,
    counters::{REASON_SLOTS, Traffic},
    fair_share::{SHARES, Share},
    flow::{Bucket, Flow, FlowKey, WAYS},
    fragment::{FRAGMENTED_PACKETS, FragmentKey, FragmentPorts},
    interface::Interface,
    maps::{
        DEFAULT_BACKENDS, DEFAULT_FLOWS, DEFAULT_LIMITS, DEFAULT_RING_ELEMENTS, DEFAULT_SERVICES, KEYS_PER_SERVICE,
        MAX_INTERFACES, NEXT_HOPS,
    },
    meter::{Meter, MeterPort, MeterState, MeterTraffic},
    refused::{OriginalDestination, REFUSED_CONNECTIONS},
    sample,
    service::{Service, ServiceKey},
    snat::{self, SnatKey, SnatRule},
};

/// The controller reads and writes these maps through a memory mapping, without a system call per element.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub static CONFIG: Array<Config, 1, 0> = Array::new();

#[btf_map]
pub static FLOW_BUCKETS: Array<Bucket, { DEFAULT_FLOWS as usize / WAYS }, MMAPABLE> = Array::new();

#[btf_map]
pub static FLOWS: Array<Flow, { DEFAULT_FLOWS as usize }, MMAPABLE> = Array::new();

/// The secondary table (`secondary`). A program that does not bridge has one of this size, and never uses it.
#[btf_map]
pub static OTHER_BUCKETS: Array<Bucket, 1, MMAPABLE> = Array::new();

#[btf_map]
pub static OTHER_FLOWS: Array<Flow, 1, MMAPABLE> = Array::new();

#[btf_map]
pub static INTEREST: Array<u64, { address_filter::WORDS }, MMAPABLE> = Array::new();

#[btf_map]
pub static SERVICES: LpmTrie<ServiceKey, Service, { (DEFAULT_SERVICES * KEYS_PER_SERVICE) as usize }> = LpmTrie::new();

#[btf_map]
pub static SOURCES: LpmTrie<SnatKey, SnatRule, { DEFAULT_SERVICES as usize }> = LpmTrie::new();

#[btf_map]
pub static PORT_CURSORS: Array<u32, { snat::CURSORS as usize }, 0> = Array::new();

#[btf_map]
pub static BACKENDS: Array<Backend, { DEFAULT_BACKENDS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static BACKEND_LOAD: Array<u64, { DEFAULT_BACKENDS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static BACKEND_ROUTES: Array<BackendRoute, { DEFAULT_BACKENDS as usize }, 0> = Array::new();

#[btf_map]
pub static BACKEND_TRAFFIC: PerCpuArray<Traffic, { DEFAULT_BACKENDS as usize }> = PerCpuArray::new();

/// Used by the controller only.
#[btf_map]
pub static PAST_TRAFFIC: Array<Traffic, { DEFAULT_BACKENDS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static RINGS: Array<u32, { DEFAULT_RING_ELEMENTS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static CURSORS: Array<u64, { DEFAULT_SERVICES as usize }, 0> = Array::new();

#[btf_map]
pub static SERVICE_LOAD: Array<u32, { DEFAULT_SERVICES as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static PORTS: Array<Interface, { MAX_INTERFACES as usize }, 0> = Array::new();

#[btf_map]
pub static PORT_NUMBERS: HashMap<u32, u32, { MAX_INTERFACES as usize }> = HashMap::new();

#[btf_map]
pub static CONFIRMED: Array<u32, { NEXT_HOPS as usize }, 0> = Array::new();

#[btf_map]
pub static TX_PORTS: DevMap<{ MAX_INTERFACES as usize }> = DevMap::new();

#[btf_map]
pub static METERS: Array<Meter, { DEFAULT_LIMITS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static METER_STATES: Array<MeterState, { DEFAULT_LIMITS as usize }, 0> = Array::new();

#[btf_map]
pub static METER_TRAFFIC: PerCpuArray<MeterTraffic, { DEFAULT_LIMITS as usize }> = PerCpuArray::new();

#[btf_map]
pub static METER_SHARES: Array<Share, { SHARES as usize }, 0> = Array::new();

#[btf_map]
pub static PORT_METERS: HashMap<MeterPort, u32, { DEFAULT_LIMITS as usize }> = HashMap::new();

#[btf_map]
pub static SAMPLE: Array<u64, { sample::PLACES as usize }, 0> = Array::new();

#[btf_map]
pub static REASONS: PerCpuArray<u64, { REASON_SLOTS as usize }> = PerCpuArray::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { FRAGMENTED_PACKETS as usize }> = LruHashMap::new();

#[btf_map]
pub static DIRECT: LruHashMap<FlowKey, u32, { snat::DIRECT_CONNECTIONS as usize }> = LruHashMap::new();

#[btf_map]
pub static REFUSED: LruHashMap<FlowKey, OriginalDestination, { REFUSED_CONNECTIONS as usize }> = LruHashMap::new();

#[btf_map]
pub static LAST_TOLD: Array<u64, { REASON_SLOTS as usize }, 0> = Array::new();
