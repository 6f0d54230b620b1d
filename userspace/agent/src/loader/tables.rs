//! Typed handles of the tables that the reconciler writes, opened from their pins.

use std::{fmt, fs::File, io::Read};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, PerCpuValues, lpm_trie::Key as TrieKey},
};
use vipgate_abi::{
    backend::Backend,
    config::Config,
    counters::Traffic,
    flow::{WAYS, next_epoch},
    maps,
    meter::{Meter, MeterPort, MeterTraffic, Metered},
    service::{Service, ServiceKey},
    snat::{SnatKey, SnatRule},
};

use super::{
    Sizes,
    address_filter::AddressFilter,
    bpffs::PinDir,
    error::{LoadError, TableError},
    flow_reader::{hz, tick},
    loads::{BackendLoads, ServiceLoads},
    mapping::{Mapping, View},
    object::{self, open},
};

/// Services, SNAT rules, selection tables and backends. One writer: the reconciler, which says so by [`Tables::begin`].
pub struct Tables {
    dir: PinDir,
    /// The writer's.
    address_filter: Option<AddressFilter>,
    services: LpmTrie<MapData, ServiceKey, Service>,
    snat_rules: LpmTrie<MapData, SnatKey, SnatRule>,
    traffic: PerCpuArray<MapData, Traffic>,
    past_traffic: Mapping<Traffic>,
    backends: Mapping<Backend>,
    loads: BackendLoads,
    service_loads: ServiceLoads,
    rings: Mapping<u32>,
    meters: Mapping<Meter>,
    metered: PerCpuArray<MapData, MeterTraffic>,
    port_meters: HashMap<MapData, MeterPort, u32>,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl Tables {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self {
            dir: dir.clone(),
            address_filter: None,
            services: open(dir, maps::SERVICES)?,
            snat_rules: open(dir, maps::SOURCES)?,
            traffic: open(dir, maps::BACKEND_TRAFFIC)?,
            past_traffic: mapping(dir, maps::PAST_TRAFFIC)?,
            backends: mapping(dir, maps::BACKENDS)?,
            loads: BackendLoads::open(dir)?,
            service_loads: ServiceLoads::open(dir)?,
            rings: mapping(dir, maps::RINGS)?,
            meters: mapping(dir, maps::METERS)?,
            metered: open(dir, maps::METER_TRAFFIC)?,
            port_meters: open(dir, maps::PORT_METERS)?,
        })
    }

    /// Every service, by its key and the key's prefix length in bits.
    pub fn services(&self) -> Result<Vec<(ServiceKey, u32, Service)>, TableError> {
        entries(&self.services, maps::SERVICES)
    }

    /// Every source, by its key and the key's prefix length in bits.
    pub fn snat_rules(&self) -> Result<Vec<(SnatKey, u32, SnatRule)>, TableError> {
        entries(&self.snat_rules, maps::SOURCES)
    }

    /// To be called before the first write: learns what the tables hold, and brings what follows from it in line.
    pub fn begin(&mut self) -> Result<(), LoadError> {
        let services = self.services()?.into_iter().map(|(key, prefix_len, _)| (key, prefix_len)).collect();
        let snat_rules =
            self.snat_rules()?.into_iter().map(|(key, prefix_len, source)| ((key, prefix_len), source.vip)).collect();
        let backends = || (0..self.backends.len()).filter_map(|number| Some((number, self.backends.read(number)?)));
        self.address_filter =
            Some(AddressFilter::open(&self.dir, services, snat_rules, backends().map(|(_, backend)| backend))?);
        // A controller that ended between the two writes of `set_backend` has left one that counts nothing; the sweeper counts anew.
        for (number, Backend { generation, service, .. }) in backends() {
            if !self.loads.get(number).counts(generation) {
                self.loads.begin(number, generation, &self.service_loads, service);
            }
        }
        Ok(())
    }

    /// Adds or replaces a service at once.
    pub fn set_service(&mut self, key: ServiceKey, prefix_len: u32, service: Service) -> Result<(), TableError> {
        // Should it not be written, the bit costs a look.
        if let Some(address_filter) = &mut self.address_filter {
            address_filter.add_service(key, prefix_len);
        }
        insert(&mut self.services, maps::SERVICES, TrieKey::new(prefix_len, key), service)
    }

    /// Removes a service; one that is not there is no error.
    pub fn remove_service(&mut self, key: ServiceKey, prefix_len: u32) -> Result<(), TableError> {
        remove(&mut self.services, maps::SERVICES, TrieKey::new(prefix_len, key))?;
        if let Some(address_filter) = &mut self.address_filter {
            address_filter.remove_service(key, prefix_len);
        }
        Ok(())
    }

    /// Adds or replaces a source at once.
    pub fn set_snat_rule(&mut self, key: SnatKey, prefix_len: u32, source: SnatRule) -> Result<(), TableError> {
        let replaced = self
            .address_filter
            .as_mut()
            .and_then(|address_filter| address_filter.add_source(key, prefix_len, source.vip));
        insert(&mut self.snat_rules, maps::SOURCES, TrieKey::new(prefix_len, key), source)?;
        if let Some((address_filter, vip)) = self.address_filter.as_mut().zip(replaced) {
            address_filter.remove_way(vip);
        }
        Ok(())
    }

    /// Removes a source; one that is not there is no error.
    pub fn remove_snat_rule(&mut self, key: SnatKey, prefix_len: u32) -> Result<(), TableError> {
        remove(&mut self.snat_rules, maps::SOURCES, TrieKey::new(prefix_len, key))?;
        if let Some(address_filter) = &mut self.address_filter {
            address_filter.remove_snat_rule(key, prefix_len);
        }
        Ok(())
    }

    /// Writes a backend; nothing beyond the end. With another generation, the connections of the one before are over: they
    /// are off its load and its service's when this returns, though their flows may still be in the table.
    pub fn set_backend(&mut self, number: u32, backend: Backend) {
        let held = self.backends.read(number).unwrap_or_default();
        if held.generation != backend.generation {
            self.loads.begin(number, backend.generation, &self.service_loads, held.service);
        }
        if let Some(address_filter) = &mut self.address_filter {
            address_filter.add_backend(&backend);
        }
        self.backends.write(number, backend);
        if let Some(address_filter) = &mut self.address_filter {
            address_filter.remove_backend(&held);
        }
    }

    pub fn backends(&self) -> &Mapping<Backend> {
        &self.backends
    }

    /// Live connections of a backend.
    pub fn load(&self, number: u32) -> u32 {
        self.loads.get(number).live()
    }

    pub fn rings(&self) -> &Mapping<u32> {
        &self.rings
    }

    /// What was counted for a backend, over all CPUs.
    pub fn traffic(&self, number: u32) -> Result<Traffic, TableError> {
        let values =
            self.traffic.get(&number, 0).map_err(|error| TableError::new(maps::BACKEND_TRAFFIC, "read", error))?;
        let past = self.past_traffic.read(number).unwrap_or_default();
        Ok(values.iter().fold(past, |sum, of| Traffic {
            packets_in: sum.packets_in + of.packets_in,
            bytes_in: sum.bytes_in + of.bytes_in,
            packets_out: sum.packets_out + of.packets_out,
            bytes_out: sum.bytes_out + of.bytes_out,
            connections: sum.connections + of.connections,
            reserved: [0; 3],
        }))
    }

    /// Adds what another table of backends, that programs count in no more, has counted to what was before this one.
    pub(super) fn add_past_traffic(&mut self, from: &Self) -> Result<(), TableError> {
        for number in 0..self.backends.len().min(from.backends.len()) {
            self.past_traffic.write(number, from.traffic(number)?);
        }
        Ok(())
    }

    /// Zeroes what was counted for a backend.
    pub fn reset_traffic(&mut self, number: u32) -> Result<(), TableError> {
        self.past_traffic.write(number, Traffic::default());
        zero(&mut self.traffic, maps::BACKEND_TRAFFIC, number)
    }

    /// Bandwidth limits, by number.
    pub fn meters(&self) -> &Mapping<Meter> {
        &self.meters
    }

    /// What was counted for a bandwidth limit, over all CPUs.
    pub fn metered(&self, number: u32) -> Result<MeterTraffic, TableError> {
        let failed = |error| TableError::new(maps::METER_TRAFFIC, "read", error);
        let values = self.metered.get(&number, 0).map_err(failed)?;
        Ok(values.iter().fold(MeterTraffic::default(), |sum, of| MeterTraffic {
            directions: [0, 1].map(|direction| {
                let (sum, of) = (sum.directions[direction], of.directions[direction]);
                Metered {
                    passed_packets: sum.passed_packets + of.passed_packets,
                    passed_bytes: sum.passed_bytes + of.passed_bytes,
                    dropped_packets: sum.dropped_packets + of.dropped_packets,
                    dropped_bytes: sum.dropped_bytes + of.dropped_bytes,
                }
            }),
        }))
    }

    /// Zeroes what was counted for a bandwidth limit.
    pub fn reset_metered(&mut self, number: u32) -> Result<(), TableError> {
        zero(&mut self.metered, maps::METER_TRAFFIC, number)
    }

    /// The ports that have bandwidth limits of their own, and their numbers.
    pub fn port_meters(&self) -> Result<Vec<(MeterPort, u32)>, TableError> {
        let entries = self.port_meters.iter().collect::<Result<_, _>>();
        entries.map_err(|error| TableError::new(maps::PORT_METERS, "read", error))
    }

    /// Gives a port the limit of this number, at once.
    pub fn set_port_meter(&mut self, port: MeterPort, number: u32) -> Result<(), TableError> {
        let set = self.port_meters.insert(port, number, 0);
        set.map_err(|error| TableError::new(maps::PORT_METERS, "write", error))
    }

    /// Takes a port's limit away; none there is no error.
    pub fn remove_port_meter(&mut self, port: MeterPort) -> Result<(), TableError> {
        removed(self.port_meters.remove(&port), maps::PORT_METERS)
    }
}

/// Zeroes an element of every CPU.
fn zero<T: Pod + Default>(
    counters: &mut PerCpuArray<MapData, T>,
    name: &'static str,
    number: u32,
) -> Result<(), TableError> {
    let failed = |error| TableError::new(name, "write", error);
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(error.into()))?;
    let zeroes = PerCpuValues::try_from(vec![T::default(); cpus]).map_err(|error| failed(error.into()))?;
    counters.set(number, zeroes, 0).map_err(failed)
}

/// Every entry of a trie: key, prefix length in bits, value.
fn entries<K: Pod, V: Pod>(trie: &LpmTrie<MapData, K, V>, name: &'static str) -> Result<Vec<(K, u32, V)>, TableError> {
    let entries = trie.iter().map(|entry| entry.map(|(key, value)| (key.data(), key.prefix_len(), value)));
    entries.collect::<Result<_, _>>().map_err(|error| TableError::new(name, "read", error))
}

/// Adds or replaces an entry of a trie.
pub(super) fn insert<K: Pod, V: Pod>(
    trie: &mut LpmTrie<MapData, K, V>,
    name: &'static str,
    key: TrieKey<K>,
    value: V,
) -> Result<(), TableError> {
    trie.insert(&key, value, 0).map_err(|error| TableError::new(name, "write", error))
}

/// Removes an entry of a trie; one that is not there is no error.
fn remove<K: Pod, V: Pod>(
    trie: &mut LpmTrie<MapData, K, V>,
    name: &'static str,
    key: TrieKey<K>,
) -> Result<(), TableError> {
    removed(trie.remove(&key), name)
}

/// What is not there is removed.
fn removed(result: Result<(), MapError>, name: &'static str) -> Result<(), TableError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(error) if super::error::os_error(&error) == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(TableError::new(name, "remove from", error)),
    }
}

/// Opens a pinned array and maps it into memory.
pub(super) fn mapping<T: Pod>(dir: &PinDir, name: &'static str) -> Result<Mapping<T>, LoadError> {
    Ok(Mapping::new(name, &pinned(dir, name)?)?)
}

/// The same for reading only.
pub(super) fn view<T: Pod>(dir: &PinDir, name: &'static str) -> Result<View<T>, LoadError> {
    Ok(View::new(name, &pinned(dir, name)?)?)
}

fn pinned(dir: &PinDir, name: &'static str) -> Result<MapData, TableError> {
    MapData::from_pin(dir.map(name)).map_err(|error| TableError::new(name, "open", error))
}

/// What the programs read on every packet, above all the epoch under which flows remember their next hop. One writer.
pub struct Epoch {
    config: Array<MapData, Config>,
    /// The same for the flow table to which flows are being migrated; the two differ in their masks alone.
    next: Option<Array<MapData, Config>>,
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch").finish_non_exhaustive()
    }
}

impl Epoch {
    pub(super) fn open(dir: &PinDir) -> Result<Self, LoadError> {
        Ok(Self { config: open(dir, maps::CONFIG)?, next: None })
    }

    /// Makes every flow look its next hop up again.
    pub fn bump(&mut self) -> Result<(), TableError> {
        self.change(|config| config.epoch = next_epoch(config.epoch))
    }

    /// Makes the programs log packets with these reasons, a set of [`Reason::bit`](vipgate_abi::counters::Reason::bit)s, from now on.
    pub fn set_logged_reasons(&mut self, reasons: u64) -> Result<(), TableError> {
        self.change(|config| config.log = reasons)
    }

    /// Sets whether any interface filters strictly by the reverse path.
    pub fn set_strict(&mut self, strict: bool) -> Result<(), TableError> {
        let strict = strict.into();
        if self.get()?.strict == strict {
            return Ok(());
        }
        self.change(|config| config.strict = strict)
    }

    fn change(&mut self, change: impl Fn(&mut Config)) -> Result<(), TableError> {
        for map in [&mut self.config].into_iter().chain(&mut self.next) {
            let mut config = read(map)?;
            change(&mut config);
            write(map, config)?;
        }
        Ok(())
    }

    pub fn get(&self) -> Result<Config, TableError> {
        read(&self.config)
    }

    /// From now on the programs that use the flow table in another directory, of this bucket mask, get every change, too.
    pub(super) fn add_secondary(&mut self, next: &PinDir, bucket_mask: u32) -> Result<(), LoadError> {
        let mut map = open(next, maps::CONFIG)?;
        write(&mut map, Config { bucket_mask, ..self.get()? })?;
        self.next = Some(map);
        Ok(())
    }

    /// From now on only those programs get changes.
    pub(super) fn switch_to_secondary(&mut self) {
        if let Some(next) = self.next.take() {
            self.config = next;
        }
    }

    /// Those programs get no change any more.
    pub(super) fn drop_secondary(&mut self) {
        self.next = None;
    }
}

fn read(map: &Array<MapData, Config>) -> Result<Config, TableError> {
    map.get(&0, 0).map_err(|error| TableError::new(maps::CONFIG, "read", error))
}

fn write(map: &mut Array<MapData, Config>, config: Config) -> Result<(), TableError> {
    map.set(0, config, 0).map_err(|error| TableError::new(maps::CONFIG, "write", error))
}

/// Seconds after which the programs look whether a next hop is where it was.
const CONFIRM: u32 = 5;

/// Writes what the programs read on every packet: a secret seed for new tables, the table's mask, a new epoch because
/// neighbours and routes may have changed while no controller watched.
pub(super) fn initialise(dir: &PinDir, sizes: Sizes) -> Result<(), LoadError> {
    let held = read(&open(dir, maps::CONFIG)?)?;
    begin(dir, held, sizes)
}

/// The same for tables that shall begin with what was `held`.
pub(super) fn begin(dir: &PinDir, held: Config, sizes: Sizes) -> Result<(), LoadError> {
    let flow_seed = if held.flow_seed == 0 { random()? } else { held.flow_seed };
    let bucket_mask = sizes.flows / WAYS as u32 - 1;
    let tx_ports = object::id(dir, maps::TX_PORTS)?;
    let config = Config {
        flow_seed,
        bucket_mask,
        epoch: next_epoch(held.epoch),
        tick: tick()?,
        confirm: CONFIRM * hz()?,
        tx_ports,
        ..held
    };
    Ok(write(&mut open(dir, maps::CONFIG)?, config)?)
}

/// A number from the kernel's generator, never 0.
fn random() -> Result<u64, LoadError> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| LoadError::io("read /dev/urandom", error))?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}
