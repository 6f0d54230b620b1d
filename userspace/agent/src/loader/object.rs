//! The embedded object: making or opening its maps, loading its programs.

use std::{fs, path::Path};

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Map, MapData, MapInfo},
    programs::{Program, ProgramError, RawTracePoint, SchedClassifier, SkLookup, Xdp},
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tracing::debug;
use vipgate_abi::{
    address_filter,
    backend::{Backend, BackendRoute},
    config::Config,
    counters::{REASON_SLOTS, Traffic},
    fair_share::{SHARES, Share},
    flow::{Bucket, Flow, FlowKey, WAYS},
    fragment::{FRAGMENTED_PACKETS, FragmentKey, FragmentPorts},
    interface::Interface,
    load::Load,
    maps,
    meter::{Meter, MeterPort, MeterState, MeterTraffic},
    refused::{OriginalDestination, REFUSED_CONNECTIONS},
    sample,
    service::{Service, ServiceKey},
    snat::{self, SnatKey, SnatRule},
};

use super::{Hook, PacketRecords, Sizes, bpffs::PinDir, error::LoadError};

/// The kernel programs, as `cargo xtask build` made them; a deployed router needs no toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/vipgate.o"));

/// What a map must look like to be ours.
struct Shape {
    name: &'static str,
    key: usize,
    value: usize,
    entries: u32,
    /// A size that the configuration names: a pinned map may have another.
    sized: bool,
}

/// The shape of every pinned map.
fn shapes(sizes: Sizes) -> Vec<Shape> {
    let index = size_of::<u32>();
    let trie_key = size_of::<u32>() + size_of::<ServiceKey>();
    let shape = |name, key, value, entries, sized| Shape { name, key, value, entries, sized };
    vec![
        shape(maps::CONFIG, index, size_of::<Config>(), 1, false),
        shape(maps::FLOW_BUCKETS, index, size_of::<Bucket>(), sizes.flows / WAYS as u32, true),
        shape(maps::FLOWS, index, size_of::<Flow>(), sizes.flows, true),
        shape(maps::INTEREST, index, size_of::<u64>(), address_filter::WORDS as u32, false),
        shape(
            maps::SERVICES,
            trie_key,
            size_of::<Service>(),
            sizes.services.saturating_mul(maps::KEYS_PER_SERVICE),
            true,
        ),
        shape(maps::SOURCES, size_of::<u32>() + size_of::<SnatKey>(), size_of::<SnatRule>(), sizes.services, true),
        shape(maps::PORT_CURSORS, index, size_of::<u32>(), snat::CURSORS, false),
        shape(maps::BACKENDS, index, size_of::<Backend>(), sizes.backends, true),
        shape(maps::BACKEND_LOAD, index, size_of::<Load>(), sizes.backends, true),
        shape(maps::CONFIRMED, index, size_of::<u32>(), maps::NEXT_HOPS, false),
        shape(maps::BACKEND_ROUTES, index, size_of::<BackendRoute>(), sizes.backends, true),
        shape(maps::BACKEND_TRAFFIC, index, size_of::<Traffic>(), sizes.backends, true),
        shape(maps::PAST_TRAFFIC, index, size_of::<Traffic>(), sizes.backends, true),
        shape(maps::RINGS, index, size_of::<u32>(), sizes.ring_elements, true),
        shape(maps::CURSORS, index, size_of::<u64>(), sizes.services, true),
        shape(maps::SERVICE_LOAD, index, size_of::<u32>(), sizes.services, true),
        shape(maps::PORTS, index, size_of::<Interface>(), maps::MAX_INTERFACES, false),
        shape(maps::PORT_NUMBERS, index, size_of::<u32>(), maps::MAX_INTERFACES, false),
        // ifindex and program, since Linux 5.8.
        shape(maps::TX_PORTS, index, 2 * size_of::<u32>(), maps::MAX_INTERFACES, false),
        shape(maps::METERS, index, size_of::<Meter>(), maps::DEFAULT_LIMITS, false),
        shape(maps::METER_STATES, index, size_of::<MeterState>(), maps::DEFAULT_LIMITS, false),
        shape(maps::METER_TRAFFIC, index, size_of::<MeterTraffic>(), maps::DEFAULT_LIMITS, false),
        shape(maps::METER_SHARES, index, size_of::<Share>(), SHARES, false),
        shape(maps::PORT_METERS, size_of::<MeterPort>(), index, maps::DEFAULT_LIMITS, false),
        shape(maps::SAMPLE, index, size_of::<u64>(), sample::PLACES, false),
        shape(maps::FRAGMENTS, size_of::<FragmentKey>(), size_of::<FragmentPorts>(), FRAGMENTED_PACKETS, false),
        shape(maps::DIRECT, size_of::<FlowKey>(), size_of::<u32>(), snat::DIRECT_CONNECTIONS, false),
        shape(maps::REFUSED, size_of::<FlowKey>(), size_of::<OriginalDestination>(), REFUSED_CONNECTIONS, false),
        shape(maps::REASONS, index, size_of::<u64>(), REASON_SLOTS, false),
        shape(maps::LAST_TOLD, index, size_of::<u64>(), REASON_SLOTS, false),
        // A ring has neither keys nor values, and so many bytes.
        shape(maps::AYA_LOGS, 0, 0, maps::AYA_LOGS_BYTES, false),
    ]
}

/// The programs that the object has.
pub(super) const PROGRAMS: [&str; 9] = [
    maps::PROGRAM_XDP,
    maps::PROGRAM_GENERIC,
    maps::PROGRAM_TC,
    maps::PROGRAM_BEHIND,
    maps::PROGRAM_QUEUE,
    maps::PROGRAM_EGRESS,
    maps::PROGRAM_CLOCK,
    maps::PROGRAM_REDIRECTS,
    maps::PROGRAM_SOCKETS,
];

/// The XDP program that drivers run or, for generic XDP, the kernel's stack.
pub(super) const fn xdp_program(hook: Hook) -> &'static str {
    match hook {
        Hook::XdpGeneric => maps::PROGRAM_GENERIC,
        Hook::Auto | Hook::Xdp | Hook::Tc => maps::PROGRAM_XDP,
    }
}

/// The programs, each loaded when it is first asked for: the kernel's verification of one takes long.
#[derive(Debug)]
pub(super) struct Programs {
    ebpf: Ebpf,
    refused: &'static [&'static str],
}

impl Programs {
    /// From now on these do not load, as on a kernel that refuses them.
    pub(super) fn refuse(&mut self, names: &'static [&'static str]) {
        self.refused = names;
    }

    /// Loads the clock and what a hook needs on every device, so that a kernel that refuses it is known before a device is
    /// touched.
    pub(super) fn load_for(&mut self, hook: Hook) -> Result<(), LoadError> {
        self.frame_program(maps::PROGRAM_CLOCK)?;
        self.egress()?;
        match hook {
            // What every device can have: without it native XDP is needed.
            Hook::Auto => match self.tc() {
                Err(LoadError::Program { .. }) => {
                    self.behind()?;
                    self.xdp(Hook::Xdp)?;
                }
                other => drop(other?),
            },
            Hook::Tc => drop(self.tc()?),
            Hook::Xdp | Hook::XdpGeneric => {
                self.behind()?;
                self.xdp(hook)?;
            }
        }
        Ok(())
    }

    pub(super) fn xdp(&mut self, hook: Hook) -> Result<&mut Xdp, LoadError> {
        self.frame_program(xdp_program(hook))
    }

    pub(super) fn tc(&mut self) -> Result<&mut SchedClassifier, LoadError> {
        self.classifier(maps::PROGRAM_TC)
    }

    pub(super) fn egress(&mut self) -> Result<&mut SchedClassifier, LoadError> {
        self.classifier(maps::PROGRAM_EGRESS)
    }

    pub(super) fn behind(&mut self) -> Result<&mut SchedClassifier, LoadError> {
        self.classifier(maps::PROGRAM_BEHIND)
    }

    pub(super) fn queue(&mut self) -> Result<&mut SchedClassifier, LoadError> {
        self.classifier(maps::PROGRAM_QUEUE)
    }

    pub(super) fn redirects(&mut self) -> Result<&mut RawTracePoint, LoadError> {
        loaded(
            &mut self.ebpf,
            maps::PROGRAM_REDIRECTS,
            |program: &RawTracePoint| program.fd().is_ok(),
            RawTracePoint::load,
        )
    }

    pub(super) fn sockets(&mut self) -> Result<&mut SkLookup, LoadError> {
        loaded(&mut self.ebpf, maps::PROGRAM_SOCKETS, |program: &SkLookup| program.fd().is_ok(), SkLookup::load)
    }

    /// Loads the program of this name. Tells how many instructions the kernel followed to verify it, if the kernel does.
    pub(super) fn load(&mut self, name: &'static str) -> Result<Option<u32>, LoadError> {
        let info = match name {
            maps::PROGRAM_XDP | maps::PROGRAM_GENERIC | maps::PROGRAM_CLOCK => self.frame_program(name)?.info(),
            maps::PROGRAM_REDIRECTS => self.redirects()?.info(),
            maps::PROGRAM_SOCKETS => self.sockets()?.info(),
            _ => self.classifier(name)?.info(),
        };
        Ok(info.map_err(|error| LoadError::program(name, &error))?.verified_instruction_count())
    }

    pub(super) fn jiffies(&mut self) -> Result<u32, LoadError> {
        let clock = self.frame_program(maps::PROGRAM_CLOCK)?;
        // The kernel wants at least an Ethernet header; the program does not look at it.
        let options = TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::default() };
        let run = clock.test_run(options).map_err(|error| LoadError::program(maps::PROGRAM_CLOCK, &error))?;
        Ok(run.return_value)
    }

    fn frame_program(&mut self, name: &'static str) -> Result<&mut Xdp, LoadError> {
        refuse(self.refused, name)?;
        loaded(&mut self.ebpf, name, |xdp: &Xdp| xdp.fd().is_ok(), Xdp::load)
    }

    fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        refuse(self.refused, name)?;
        loaded(&mut self.ebpf, name, |tc: &SchedClassifier| tc.fd().is_ok(), SchedClassifier::load)
    }
}

fn refuse(refused: &[&str], name: &'static str) -> Result<(), LoadError> {
    match refused.contains(&name) {
        true => Err(LoadError::Program { name, reason: "it is to be taken for refused".to_owned(), passing: false }),
        false => Ok(()),
    }
}

/// The program of this name, loaded unless it is.
fn loaded<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    is_loaded: impl Fn(&P) -> bool,
    load: impl Fn(&mut P) -> Result<(), ProgramError>,
) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let program = ebpf
        .program_mut(name)
        .and_then(|program| <&mut P>::try_from(program).ok())
        .ok_or(LoadError::Incomplete { kind: "program", name })?;
    if !is_loaded(program) {
        load_persistently(|| load(program)).map_err(|error| LoadError::program(name, &error))?;
    }
    Ok(program)
}

/// Kernels before 5.11 count maps as locked memory, of which a process may have little. Newer ones ignore the limit,
/// so a refusal is no error here: where it matters, making the maps fails and says so.
pub(super) fn lift_memlock() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        debug!(%error, "the locked-memory limit stays");
    }
}

/// Opens or makes the maps. The sizes are those that the maps really have.
pub(super) fn prepare(dir: &PinDir, wanted: Sizes) -> Result<(Programs, Sizes), LoadError> {
    let sizes = sizes_of_pins(dir, wanted)?;
    Ok((prepare_with_secondary(dir, sizes, None)?, sizes))
}

/// [`prepare`] for maps of these sizes; the programs bridge to the flow table of another directory, of so many flows.
pub(super) fn prepare_with_secondary(
    dir: &PinDir,
    sizes: Sizes,
    other: Option<(&PinDir, u32)>,
) -> Result<Programs, LoadError> {
    complete(with_maps(dir, sizes, Beside { table: other, coming: false })?)
}

/// [`prepare`] for maps of these sizes; the programs wait for flows that come over from another version's table.
pub(super) fn prepare_taking(dir: &PinDir, sizes: Sizes) -> Result<Programs, LoadError> {
    complete(with_maps(dir, sizes, Beside { table: None, coming: true })?)
}

fn complete(ebpf: Ebpf) -> Result<Programs, LoadError> {
    if let Some(name) = maps::PINNED.into_iter().find(|name| ebpf.map(name).is_none()) {
        return Err(LoadError::Incomplete { kind: "map", name });
    }
    Ok(Programs { ebpf, refused: &[] })
}

/// The object with small tables of its own, pinned nowhere: to see whether its programs load.
pub(super) fn prepare_apart() -> Result<Programs, LoadError> {
    /// Elements of each table: no program depends on how many there are.
    const FEW: u32 = 16;
    let mut loader = EbpfLoader::new();
    for shape in shapes(Sizes::default()).into_iter().filter(|shape| shape.name != maps::AYA_LOGS) {
        loader.map_max_entries(shape.name, shape.entries.min(FEW));
    }
    Ok(Programs { ebpf: loader.load(OBJECT).map_err(LoadError::object)?, refused: &[] })
}

/// Opens the maps, and makes and pins those that are missing.
pub(super) fn make_maps(dir: &PinDir, sizes: Sizes) -> Result<(), LoadError> {
    with_maps(dir, sizes, Beside::default()).map(|_| ())
}

/// Makes the maps of other sizes in a directory of their own; those whose size stays are the same maps in both.
pub(super) fn make_resized(dir: &PinDir, held: Sizes, next: &PinDir, sizes: Sizes) -> Result<(), LoadError> {
    let stay = shapes(held).into_iter().zip(shapes(sizes));
    // The flow table's mask is in CONFIG.
    let stay = stay.filter(|(one, other)| one.entries == other.entries).map(|(shape, _)| shape.name);
    let stay: Vec<_> = stay.filter(|name| *name != maps::CONFIG || held.flows == sizes.flows).collect();
    share(dir, next, &stay)?;
    make_maps(next, sizes)
}

/// Pins the maps of these names in another directory as well.
pub(super) fn share(dir: &PinDir, next: &PinDir, names: &[&'static str]) -> Result<(), LoadError> {
    for name in names {
        let map = MapData::from_pin(dir.map(name)).map_err(|error| LoadError::opening(name, error))?;
        let path = next.map(name);
        map.pin(&path).map_err(|error| LoadError::ForeignPin { path, problem: super::causes(&error) })?;
    }
    Ok(())
}

/// Whether a name is of the same map in both directories.
pub(super) fn is_shared(name: &str, one: &PinDir, other: &PinDir) -> Result<bool, LoadError> {
    Ok(id(one, name)? == id(other, name)?)
}

/// For readers: makes no map, so all of them must be pinned.
pub(super) fn prepare_reading(dir: &PinDir) -> Result<Programs, LoadError> {
    if let Some(name) = maps::PINNED.into_iter().find(|name| !dir.map(name).exists()) {
        return Err(LoadError::ForeignPin { path: dir.map(name), problem: "it is missing".to_owned() });
    }
    let ebpf = with_maps(dir, sizes_of_pins(dir, Sizes::default())?, Beside::default())?;
    Ok(Programs { ebpf, refused: &[] })
}

/// The records of the programs that use the tables pinned here.
pub(super) fn open_packet_records(dir: &PinDir) -> Result<PacketRecords, LoadError> {
    PacketRecords::of(&mut with_maps(dir, sizes_of_pins(dir, Sizes::default())?, Beside::default())?)
}

/// The flows that programs know of beside those of their own table.
#[derive(Clone, Copy, Default)]
struct Beside<'a> {
    /// Those of another directory's table, of so many flows.
    table: Option<(&'a PinDir, u32)>,
    /// Some that are about to come, from a table that they cannot read.
    coming: bool,
}

/// The object with its maps, opened where they are pinned, else made and pinned. No program is loaded yet.
fn with_maps(dir: &PinDir, sizes: Sizes, beside: Beside<'_>) -> Result<Ebpf, LoadError> {
    let other_mask = beside.table.map_or(0, |(_, flows)| flows / WAYS as u32 - 1);
    let takes_over = u32::from(beside.coming);
    let mut loader = EbpfLoader::new();
    loader.override_global(maps::TAKES_OVER, &takes_over, true);
    if let Some((other, flows)) = beside.table {
        loader
            .override_global(maps::OTHER_MASK, &other_mask, true)
            .map_pin_path(maps::OTHER_BUCKETS, other.map(maps::FLOW_BUCKETS))
            .map_max_entries(maps::OTHER_BUCKETS, flows / WAYS as u32)
            .map_pin_path(maps::OTHER_FLOWS, other.map(maps::FLOWS))
            .map_max_entries(maps::OTHER_FLOWS, flows);
    }
    for shape in shapes(sizes) {
        check_pin(&dir.map(shape.name), &shape)?;
        loader.map_pin_path(shape.name, dir.map(shape.name));
        if shape.sized {
            loader.map_max_entries(shape.name, shape.entries);
        }
    }
    loader.load(OBJECT).map_err(LoadError::object)
}

/// The kernel gives a verification up with EAGAIN when a signal is pending for the thread, whatever it is for: so often
/// it is asked again.
const TRIES: u32 = 20;

/// Loads a program, again when the kernel was interrupted while it verified it.
pub fn load_persistently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES =>
            {
                debug!(tries, "the kernel was interrupted while it verified a program");
            }
            result => return result,
        }
    }
}

/// The wanted sizes, but for those that pinned maps have already.
pub(super) fn sizes_of_pins(dir: &PinDir, wanted: Sizes) -> Result<Sizes, LoadError> {
    let pinned = |name: &str| Ok::<_, LoadError>(info(&dir.map(name))?.map(|info| info.max_entries()));
    let either = |one: &str, other: &str| Ok::<_, LoadError>(pinned(one)?.or(pinned(other)?));
    let buckets = pinned(maps::FLOW_BUCKETS)?.map(|buckets| buckets.saturating_mul(WAYS as u32));
    let backends = either(maps::BACKENDS, maps::BACKEND_LOAD)?.or(pinned(maps::BACKEND_TRAFFIC)?);
    Ok(Sizes {
        flows: pinned(maps::FLOWS)?.or(buckets).unwrap_or(wanted.flows),
        services: either(maps::CURSORS, maps::SERVICE_LOAD)?.unwrap_or(wanted.services),
        backends: backends.unwrap_or(wanted.backends),
        ring_elements: pinned(maps::RINGS)?.unwrap_or(wanted.ring_elements),
    })
}

/// A pinned map's description; `None` when nothing is pinned there.
fn info(path: &Path) -> Result<Option<MapInfo>, LoadError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LoadError::io(format!("look at {}", path.display()), error)),
        Ok(_) => {}
    }
    MapInfo::from_pin(path).map(Some).map_err(|error| LoadError::pin(path.to_owned(), &error))
}

/// aya takes a pinned map as it is; a map of another shape would be read as nonsense.
fn check_pin(path: &Path, shape: &Shape) -> Result<(), LoadError> {
    let Some(info) = info(path)? else {
        return Ok(());
    };
    let found = [info.key_size() as usize, info.value_size() as usize, info.max_entries() as usize];
    let needed = [shape.key, shape.value, shape.entries as usize];
    if found != needed {
        let problem = format!("key, value and number of elements are {found:?}, needed are {needed:?}");
        return Err(LoadError::ForeignPin { path: path.to_owned(), problem });
    }
    Ok(())
}

/// The kernel's number of a pinned map; 0: nothing is pinned there.
pub(super) fn id(dir: &PinDir, name: &str) -> Result<u32, LoadError> {
    Ok(info(&dir.map(name))?.map_or(0, |info| info.id()))
}

/// Opens a pinned map as the typed handle `M`.
pub(super) fn open<M>(dir: &PinDir, name: &'static str) -> Result<M, LoadError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let data = MapData::from_pin(dir.map(name)).map_err(|error| LoadError::opening(name, error))?;
    let map = Map::from_map_data(data).and_then(M::try_from);
    Ok(map.map_err(|error| super::TableError::new(name, "open", error))?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pinned_map_has_a_shape() {
        let shapes: BTreeSet<_> = shapes(Sizes::default()).into_iter().map(|shape| shape.name).collect();
        assert_eq!(shapes, BTreeSet::from(maps::PINNED));
    }
}
