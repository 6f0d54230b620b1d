//! The programs on the bench: loaded with small tables, fed with frames.

use std::{
    borrow::Cow,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _, TestRunAttrs, TestRunOptions, TestRunResult, include_bytes_aligned,
    maps::{
        Array, HashMap, Map, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
        xdp::DevMap,
    },
    programs::{Program, SchedClassifier, TcAttachType, Xdp, XdpMode, tc::SchedClassifierLink, xdp::XdpLink},
};
use nix::sched::{CloneFlags, unshare};
use vipgate_abi::{
    address_filter::Bit,
    backend::Backend,
    config::Config,
    counters::{Reason, Traffic},
    flow::{Bucket, Flow, FlowKey, Mark, State, WAYS, Word},
    fragment::{FragmentKey, FragmentPorts},
    interface::Interface,
    load::Load,
    maps,
    meter::{Binding, Meter, MeterPort, MeterTraffic, Metered},
    refused::Sent,
    service::{Algorithm, Kind, Member, Service, ServiceKey},
    snat::{SnatKey, SnatKind, SnatRule},
};
use vipgate_agent::loader::{Tidings, load_persistently};

use super::{
    Frame,
    reuse::{Kind as Reusable, Loaded},
};

/// An object file of the kernel programs' workspace.
macro_rules! object {
    ($name:literal) => {
        include_bytes_aligned!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../ebpf/target/bpfel-unknown-none/release/",
            $name
        ))
    };
}

/// What `cargo xtask build` made, or what is at the path in `VIPGATE_TEST_PROGRAMS`: programs with a fault, say, to see whether
/// tests notice it.
static PROGRAMS: LazyLock<Cow<'static, [u8]>> = LazyLock::new(|| match std::env::var_os("VIPGATE_TEST_PROGRAMS") {
    Some(path) => fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into(),
    None => object!("vipgate-ebpf").into(),
});
pub(super) static BENCHMARK: &[u8] = object!("vipgate-bench");

/// Which program a bench runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

/// TC_ACT_UNSPEC: what is beside our program on the device goes on with the packet.
const UNSPEC: u32 = u32::MAX;

impl Hook {
    /// The program that the controller attaches there.
    fn program(self) -> &'static str {
        match self {
            Self::Xdp => maps::PROGRAM_XDP,
            Self::Tc => maps::PROGRAM_TC,
        }
    }
}

/// A program on a device, until it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "only kept")]
enum Attached {
    Xdp(XdpLink),
    Tc(SchedClassifierLink),
}

/// What a program decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Up the stack.
    Pass,
    Drop,
    /// Out of a device.
    Redirect,
    Other(u32),
}

/// What a program left beside a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// At XDP: before it.
    Metadata(Vec<u8>),
    /// At TC: in its socket buffer.
    Fields { priority: u32, mark: u32 },
}

/// A run's verdict and the frame it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

/// Packets of many flows: the first one, and those that differ from it in their source, or in its port and their
/// destination.
#[derive(Clone, Debug)]
pub struct Packets {
    pub first: Frame,
    /// A power of two.
    pub count: u32,
    /// Consecutive packets have consecutive source ports, two to the power of this many, before the next address' turn.
    pub port_bits: u32,
    /// It is the destination's address that the other bits count.
    pub to_others: bool,
    /// They come in an order that no cache foresees, not in that of their sources.
    pub scattered: bool,
}

/// Loaded programs with their tables, in a network namespace of the calling thread.
///
/// ```text
/// clients 10.1.0.0/24 - pub0 (port 1) [router] priv0 (port 2) - backends 10.2.0.0/24
/// ```
/// Hosts 10 to 30 of both networks are neighbours; everything else is behind 10.1.0.254.
#[derive(Debug)]
pub struct Bench {
    ebpf: Loaded,
    /// What it has attached to devices.
    attached: Vec<Attached>,
    /// Keeps the namespace that was made for it when the thread goes on to another bench's.
    _network: Option<File>,
    hook: Hook,
    /// The program that runs.
    program: &'static str,
    /// The benchmark's prologue alone.
    empty: &'static str,
    /// The device that packets come in by, or leave by from a generator; 0: the one that they are addressed to.
    device: u32,
    /// The devices of the network that was made for it, by their addresses.
    own: Vec<([u8; 6], u32)>,
    /// The device that those came by which a program sees on their way out; 0: the stack has made them.
    came_by: u32,
    /// At TC, how many segments of how many bytes each packet stands for; 0: it is one.
    segments: [u32; 2],
    next_backend: u32,
    next_service: u32,
    next_ring: u32,
}

impl Bench {
    pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
    pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 100);
    pub const PUBLIC_MAC: [u8; 6] = Frame::ROUTER_MAC;
    pub const PRIVATE_MAC: [u8; 6] = Frame::INSIDE_MAC;
    pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 0xfe];
    /// Nanoseconds of a jiffy, as the programs are told.
    pub const TICK: u32 = 4_000_000;
    /// In buckets.
    pub const BUCKETS: u32 = 128;
    /// Of backends, and of those where programs are used again.
    const NUMBERS: u32 = 1 << 15;
    const FEW_NUMBERS: u32 = 1 << 10;

    /// The MAC of a client, 10.1.0.`host`.
    #[must_use]
    pub const fn client_mac(host: u8) -> [u8; 6] {
        [0x02, 0, 0, 0, 1, host]
    }

    /// The MAC of a backend, 10.2.0.`host`.
    #[must_use]
    pub const fn backend_mac(host: u8) -> [u8; 6] {
        [0x02, 0, 0, 0, 2, host]
    }

    /// The programs that the controller loads, with a small flow table.
    pub fn new(hook: Hook) -> Result<Self> {
        Self::with_buckets(hook, Self::BUCKETS)
    }

    /// The same with so many flow buckets, a power of two.
    pub fn with_buckets(hook: Hook, buckets: u32) -> Result<Self> {
        let program = hook.program();
        let network = make_network()?;
        let ebpf = Loaded::of(Reusable { hook, buckets }, || {
            let mut loader = EbpfLoader::new();
            for map in [maps::CURSORS, maps::SERVICE_LOAD] {
                loader.map_max_entries(map, Self::FEW_NUMBERS);
            }
            let mut ebpf = Self::load_tables(&PROGRAMS, buckets, Self::FEW_NUMBERS, loader)?;
            load_program(&mut ebpf, hook, program)?;
            for program in [maps::PROGRAM_EGRESS, maps::PROGRAM_BEHIND, maps::PROGRAM_QUEUE] {
                load_program(&mut ebpf, Hook::Tc, program)?;
            }
            Ok(ebpf)
        })?;
        let mut bench = Self::around(hook, ebpf, buckets)?;
        bench.enter(network)?;
        bench.program = program;
        Ok(bench)
    }

    /// The same programs, bridging to another flow table of the same size.
    pub fn bridging(hook: Hook) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let mask = Self::BUCKETS - 1;
        loader
            .override_global(maps::OTHER_MASK, &mask, true)
            .map_max_entries(maps::OTHER_BUCKETS, Self::BUCKETS)
            .map_max_entries(maps::OTHER_FLOWS, Self::BUCKETS * WAYS as u32);
        Self::alone(hook, loader)
    }

    /// The same programs, while connections come over from another version's tables.
    pub fn taking_over(hook: Hook) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global(maps::TAKES_OVER, &1u32, true);
        Self::alone(hook, loader)
    }

    /// The hook's program as this loader makes it, for this bench alone.
    fn alone(hook: Hook, loader: EbpfLoader<'_>) -> Result<Self> {
        let network = make_network()?;
        let mut bench = Self::load_with(hook, &PROGRAMS, Self::BUCKETS, loader)?;
        bench.enter(network)?;
        bench.program = hook.program();
        bench.load_program(hook, bench.program)?;
        Ok(bench)
    }

    /// Exchanges the flows of our own table and of the one that is bridged to.
    pub fn swap_flows(&mut self) -> Result<()> {
        self.change_tables::<Flow>([maps::FLOWS, maps::OTHER_FLOWS], |[own, other]| [other, own])?;
        self.change_tables::<Bucket>([maps::FLOW_BUCKETS, maps::OTHER_BUCKETS], |[own, other]| [other, own])
    }

    /// Copies the flows of our own table into the one that is bridged to, which has no others then.
    pub fn copy_flows_aside(&mut self) -> Result<()> {
        self.change_tables::<Flow>([maps::FLOWS, maps::OTHER_FLOWS], |[own, _]| [own, own])?;
        self.change_tables::<Bucket>([maps::FLOW_BUCKETS, maps::OTHER_BUCKETS], |[own, _]| [own, own])
    }

    /// Leaves the table that is bridged to without flows.
    pub fn clear_flows_aside(&mut self) -> Result<()> {
        let empty = Bucket { words: [0; WAYS] };
        let mut buckets = self.array::<Bucket>(maps::OTHER_BUCKETS)?;
        (0..buckets.len()).try_for_each(|index| Ok(buckets.set(index, empty, 0)?))
    }

    /// Gives each element of two maps what `change` makes of both.
    fn change_tables<V: Pod>(&mut self, names: [&str; 2], change: fn([V; 2]) -> [V; 2]) -> Result<()> {
        let [own, other] = names;
        for index in 0..self.array::<V>(own)?.len() {
            let held = [self.array::<V>(own)?.get(&index, 0)?, self.array::<V>(other)?.get(&index, 0)?];
            for (name, value) in names.into_iter().zip(change(held)) {
                self.array(name)?.set(index, value, 0)?;
            }
        }
        Ok(())
    }

    /// Loads every program of every object, each with tables of its own: those of one table must be of one kind.
    pub fn load_all() -> Result<usize> {
        let mut loaded = 0;
        for object in [&**PROGRAMS, BENCHMARK] {
            let load = || Self::load_object(Hook::Tc, object, Self::BUCKETS);
            for name in load()?.ebpf.programs().map(|(name, _)| name.to_owned()).collect::<Vec<_>>() {
                let mut bench = load()?;
                match bench.ebpf.program_mut(&name) {
                    Some(Program::Xdp(program)) => load_persistently(|| program.load()),
                    Some(Program::SchedClassifier(program)) => load_persistently(|| program.load()),
                    Some(Program::RawTracePoint(program)) => load_persistently(|| program.load()),
                    Some(Program::SkLookup(program)) => load_persistently(|| program.load()),
                    other => bail!("{name} is of another kind: {other:?}"),
                }
                .with_context(|| format!("{name} does not load"))?;
                loaded += 1;
            }
        }
        Ok(loaded)
    }

    /// The benchmark's programs, which run `packets` in turn, with so many flow buckets.
    pub fn benchmark(hook: Hook, buckets: u32, packets: &Packets) -> Result<Self> {
        let mut bench = Self::open(hook, BENCHMARK, buckets)?;
        let (program, empty) = match hook {
            Hook::Xdp => ("bench_xdp", "bench_empty_xdp"),
            Hook::Tc => ("bench_tc", "bench_empty_tc"),
        };
        bench.program = program;
        bench.load_measured(empty, packets)?;
        Ok(bench)
    }

    /// The kernel's LRU hash table with room for so many flows, instead of ours.
    pub fn lru(entries: u32, packets: &Packets) -> Result<Self> {
        let network = make_network()?;
        let mut bench = Self::load_sized(Hook::Xdp, BENCHMARK, 8, Some(("BENCH_LRU", entries)))?;
        bench._network = Some(network);
        bench.program = "bench_lru";
        bench.load_measured("bench_empty_xdp", packets)?;
        Ok(bench)
    }

    fn load_measured(&mut self, empty: &'static str, packets: &Packets) -> Result<()> {
        self.load_program(self.hook, self.program)?;
        self.load_program(self.hook, empty)?;
        self.empty = empty;
        self.set_packets(packets)
    }

    /// From now on only the flow table's lookup is measured.
    pub fn measure_lookups(&mut self) -> Result<()> {
        self.program = "bench_table";
        self.load_program(self.hook, self.program)
    }

    /// Other packets for the benchmark's programs.
    pub fn set_packets(&mut self, packets: &Packets) -> Result<()> {
        ensure!(packets.count.is_power_of_two(), "{} packets are no power of two", packets.count);
        self.array::<[u16; 32]>("BENCH_TEMPLATE")?.set(0, packets.first.header_words(), 0)?;
        let port_bits = packets.port_bits | if packets.to_others { 1 << 4 } else { 0 };
        let factor = if packets.scattered { 0x9e37_79b1 } else { 1 };
        Ok(self.array::<[u32; 4]>("BENCH_TURN")?.set(0, [0, packets.count - 1, port_bits, factor], 0)?)
    }

    /// Runs the benchmark's program so often: nanoseconds a run, and the last run's verdict.
    pub fn time(&mut self, repeat: u32) -> Result<(f64, Verdict)> {
        self.time_program(self.program, repeat)
    }

    /// The same for the prologue alone.
    pub fn time_empty(&mut self, repeat: u32) -> Result<f64> {
        Ok(self.time_program(self.empty, repeat)?.0)
    }

    fn time_program(&mut self, name: &str, repeat: u32) -> Result<(f64, Verdict)> {
        // It comes in by the device that its packets are addressed to.
        let template = self.array::<[u16; 32]>("BENCH_TEMPLATE")?.get(&0, 0)?;
        let frame = template.map(u16::to_ne_bytes);
        // The kernel tells whole nanoseconds of wall time: the thread's processor time is finer, and leaves out what other
        // processes took. The system call around the runs is one in `repeat`.
        let start = processor_time()?;
        let (result, _) = self.test_run(self.hook, name, frame.as_flattened(), repeat)?;
        let nanoseconds = (processor_time()? - start) * 1e9 / f64::from(repeat);
        Ok((nanoseconds, self.verdict(result.return_value)))
    }

    fn open(hook: Hook, object: &[u8], buckets: u32) -> Result<Self> {
        let network = make_network()?;
        let mut bench = Self::load_object(hook, object, buckets)?;
        bench.enter(network)?;
        Ok(bench)
    }

    /// Knows the devices of the network that was made for it.
    fn enter(&mut self, network: File) -> Result<()> {
        self._network = Some(network);
        self.own = vec![(Self::PUBLIC_MAC, ifindex("pub0")?), (Self::PRIVATE_MAC, ifindex("priv0")?)];
        self.set_port(1, "pub0", Self::PUBLIC_MAC)?;
        self.set_port(2, "priv0", Self::PRIVATE_MAC)
    }

    /// The programs that the controller loads, in the calling thread's namespace as it is, without ports.
    pub fn in_namespace(hook: Hook, buckets: u32) -> Result<Self> {
        let mut bench = Self::load_object(hook, &PROGRAMS, buckets)?;
        bench.program = hook.program();
        bench.load_program(hook, bench.program)?;
        Ok(bench)
    }

    /// Attaches the program to a device of the calling thread's namespace, XDP natively, until the bench goes.
    pub fn attach(&mut self, device: &str) -> Result<()> {
        let name = self.program;
        let failed = || format!("cannot attach {name} to {device}");
        match self.hook {
            Hook::Xdp => {
                let program = program::<Xdp>(&mut self.ebpf, name)?;
                let link = program.attach(device, XdpMode::Driver).with_context(failed)?;
                self.attached.push(Attached::Xdp(program.take_link(link)?));
            }
            Hook::Tc => {
                let program = program::<SchedClassifier>(&mut self.ebpf, name)?;
                let link = program.attach(device, TcAttachType::Ingress).with_context(failed)?;
                self.attached.push(Attached::Tc(program.take_link(link)?));
            }
        }
        Ok(())
    }

    /// The least that a program of this hook can do to send packets on, without tables: its limit.
    pub fn bare(hook: Hook) -> Result<Self> {
        let mut bench = Self::load_object(hook, BENCHMARK, 8)?;
        bench.program = match hook {
            Hook::Xdp => "bench_bare_xdp",
            Hook::Tc => "bench_bare_tc",
        };
        bench.load_program(hook, bench.program)?;
        Ok(bench)
    }

    /// The benchmark's sink on a device of the calling thread's namespace.
    pub fn sink(device: &str) -> Result<Self> {
        let mut bench = Self::load_object(Hook::Xdp, BENCHMARK, 8)?;
        bench.program = "bench_sink";
        bench.load_program(Hook::Xdp, bench.program)?;
        bench.attach(device)?;
        Ok(bench)
    }

    /// Frames that came to the sink.
    pub fn sunk(&self) -> Result<u64> {
        let map = self.ebpf.map("BENCH_SUNK").context("the object has no map BENCH_SUNK")?;
        Ok(PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?.iter().sum())
    }

    /// The benchmark's generator of these packets, in turn, out of a device of the calling thread's namespace.
    pub fn generator(device: &str, packets: &Packets) -> Result<Self> {
        let mut bench = Self::load_object(Hook::Xdp, BENCHMARK, 8)?;
        bench.program = "bench_send";
        bench.load_program(Hook::Xdp, bench.program)?;
        // Whoever they are from, they are sent from outside.
        let first = Frame { dst_mac: Self::PUBLIC_MAC, src_mac: Self::GATEWAY_MAC, ..packets.first.clone() };
        bench.set_packets(&Packets { first, ..packets.clone() })?;
        bench.device = ifindex(device)?;
        Ok(bench)
    }

    /// Sends so many frames; the seconds of processor time that it took, the receivers' part included.
    pub fn send(&mut self, frames: u32, batch: u32) -> Result<f64> {
        // Of its bytes the program makes a frame; the kernel asks for as many.
        let frame = [0; 60];
        let context = self.context(Hook::Xdp, &frame, self.device);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::new()
        };
        let start = processor_time()?;
        let name = self.program;
        program::<Xdp>(&mut self.ebpf, name)?.test_run(options).context("the live test run failed")?;
        Ok(processor_time()? - start)
    }

    fn load_object(hook: Hook, object: &[u8], buckets: u32) -> Result<Self> {
        Self::load_sized(hook, object, buckets, None)
    }

    fn load_sized(hook: Hook, object: &[u8], buckets: u32, size: Option<(&str, u32)>) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        if let Some((map, entries)) = size {
            loader.map_max_entries(map, entries);
        }
        Self::load_with(hook, object, buckets, loader)
    }

    fn load_with(hook: Hook, object: &[u8], buckets: u32, loader: EbpfLoader<'_>) -> Result<Self> {
        let ebpf = Self::load_tables(object, buckets, Self::NUMBERS, loader)?;
        Self::around(hook, Loaded::once(ebpf), buckets)
    }

    fn load_tables(object: &[u8], buckets: u32, numbers: u32, mut loader: EbpfLoader<'_>) -> Result<Ebpf> {
        loader
            .map_max_entries(maps::FLOW_BUCKETS, buckets)
            .map_max_entries(maps::FLOWS, buckets * WAYS as u32)
            .map_max_entries(maps::RINGS, 1 << 16)
            .map_max_entries(maps::BACKENDS, numbers)
            .map_max_entries(maps::BACKEND_LOAD, numbers)
            .map_max_entries(maps::BACKEND_ROUTES, numbers)
            .map_max_entries(maps::BACKEND_TRAFFIC, numbers)
            .load(object)
            .context("cannot load the programs")
    }

    fn around(hook: Hook, ebpf: Loaded, buckets: u32) -> Result<Self> {
        let mut bench = Self {
            ebpf,
            attached: Vec::new(),
            _network: None,
            hook,
            program: "",
            empty: "",
            device: 0,
            own: Vec::new(),
            came_by: 0,
            segments: [0; 2],
            next_backend: 1,
            next_service: 1,
            next_ring: 0,
        };
        bench.set_config(Config {
            flow_seed: 0x5eed,
            bucket_mask: buckets - 1,
            epoch: 1,
            tick: Self::TICK,
            ..Config::default()
        })?;
        Ok(bench)
    }

    fn load_program(&mut self, hook: Hook, name: &str) -> Result<()> {
        load_program(&mut self.ebpf, hook, name)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
    }

    pub(super) fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Array::try_from(self.map(name)?).with_context(|| format!("{name} is no array of this value"))
    }

    pub fn set_config(&mut self, config: Config) -> Result<()> {
        Ok(self.array(maps::CONFIG)?.set(0, config, 0)?)
    }

    pub fn config(&mut self) -> Result<Config> {
        Ok(self.array(maps::CONFIG)?.get(&0, 0)?)
    }

    /// Makes a device a port.
    pub fn set_port(&mut self, number: u32, device: &str, mac: [u8; 6]) -> Result<()> {
        let ifindex = ifindex(device)?;
        self.array(maps::PORTS)?.set(number, Interface { ifindex, mtu: 1500, mac, ..Interface::default() }, 0)?;
        HashMap::<_, u32, u32>::try_from(self.map(maps::PORT_NUMBERS)?)?.insert(ifindex, number, 0)?;
        Ok(DevMap::try_from(self.map(maps::TX_PORTS)?)?.set(number, ifindex, None, 0)?)
    }

    /// Makes a further device a port, by which the frames come in that are addressed to it.
    pub fn add_device(&mut self, number: u32, device: &str, mac: [u8; 6]) -> Result<()> {
        self.own.push((mac, ifindex(device)?));
        self.set_port(number, device, mac)
    }

    /// Sets a port's MTU, in bytes of IP packet.
    pub fn set_mtu(&mut self, number: u32, mtu: u32) -> Result<()> {
        let mut ports = self.array::<Interface>(maps::PORTS)?;
        let port = ports.get(&number, 0)?;
        Ok(ports.set(number, Interface { mtu, ..port }, 0)?)
    }

    /// Has a port take only what comes from where the kernel sends by it.
    pub fn set_strict(&mut self, number: u32) -> Result<()> {
        let mut ports = self.array::<Interface>(maps::PORTS)?;
        let port = ports.get(&number, 0)?;
        ports.set(number, Interface { strict: 1, ..port }, 0)?;
        let config = self.config()?;
        self.set_config(Config { strict: 1, ..config })
    }

    /// Interface index of a device.
    pub fn device(&self, name: &str) -> Result<u32> {
        ifindex(name)
    }

    /// The hook whose program runs.
    #[must_use]
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Makes a port one that XDP cannot send by.
    pub fn set_sockets_only(&mut self, number: u32) -> Result<()> {
        let mut ports = self.array::<Interface>(maps::PORTS)?;
        let port = ports.get(&number, 0)?;
        Ok(ports.set(number, Interface { sockets_only: 1, ..port }, 0)?)
    }

    /// Adds a backend; its number.
    pub fn add_backend(&mut self, backend: SocketAddrV4, service: u32) -> Result<u32> {
        let number = self.next_backend;
        self.next_backend += 1;
        let generation = self.backend(number)?.generation + 1;
        let value = Backend {
            addr: u32::from(*backend.ip()).to_be(),
            port: backend.port().to_be(),
            generation,
            service,
            idle_timeout: 60,
            ..Backend::default()
        };
        self.set_backend(number, value)?;
        Ok(number)
    }

    pub fn backend(&mut self, number: u32) -> Result<Backend> {
        Ok(self.array(maps::BACKENDS)?.get(&number, 0)?)
    }

    /// Writes a backend as the controller does: with another generation, all that the last one counted is taken off.
    pub fn set_backend(&mut self, number: u32, backend: Backend) -> Result<()> {
        self.add_to_address_filter(Bit::from(backend.addr))?;
        let held = self.backend(number)?;
        if held.generation != backend.generation {
            let mut loads = self.array::<u64>(maps::BACKEND_LOAD)?;
            let ended = Load(loads.get(&number, 0)?);
            loads.set(number, Load::of(backend.generation).0, 0)?;
            let others = self.service_load(held.service)?.wrapping_sub(ended.admitted());
            self.set_service_load(held.service, others)?;
        }
        Ok(self.array(maps::BACKENDS)?.set(number, backend, 0)?)
    }

    /// Offers `protocol`:`port` of a VIP over these backends, one ring element each; the backends' numbers.
    pub fn serve(
        &mut self,
        vip: SocketAddrV4,
        protocol: u8,
        algorithm: Algorithm,
        backends: &[SocketAddrV4],
    ) -> Result<Vec<u32>> {
        let number = self.next_service;
        self.next_service += 1;
        let numbers = backends.iter().map(|&backend| self.add_backend(backend, number)).collect::<Result<Vec<_>>>()?;
        let service = self.ring(number, algorithm, &numbers)?;
        self.set_service(vip, protocol, ServiceKey::EXACT, service)?;
        Ok(numbers)
    }

    /// A service of this number over a ring of these backends.
    pub fn ring(&mut self, number: u32, algorithm: Algorithm, ring: &[u32]) -> Result<Service> {
        let ring_base = self.next_ring;
        let ring_len = u32::try_from(ring.len())?;
        self.next_ring += ring_len;
        for (index, &backend) in (ring_base..).zip(ring) {
            self.array(maps::RINGS)?.set(index, backend, 0)?;
        }
        let (kind, algorithm) = (Kind::Balance as u8, algorithm as u8);
        Ok(Service { kind, algorithm, number, ring_base, ring_len, ..Service::default() })
    }

    /// Forwards ports of a VIP, as many as the prefix of the first one's number covers, to as many of a guest; the backend's
    /// number.
    pub fn forward(&mut self, first: SocketAddrV4, protocol: u8, prefix_len: u32, to: SocketAddrV4) -> Result<u32> {
        let number = self.next_service;
        self.next_service += 1;
        let backend = self.add_backend(to, number)?;
        let port_shift = to.port().wrapping_sub(first.port());
        let service = Service { kind: Kind::Forward as u8, number, backend, port_shift, ..Service::default() };
        self.set_service(first, protocol, prefix_len, service)?;
        Ok(backend)
    }

    /// Makes a VIP on the public device the guest's elastic IP, for its own connections, too, if it `leads`; the guest's
    /// backend number.
    pub fn elastic(&mut self, vip: Ipv4Addr, guest: Ipv4Addr, leads: bool) -> Result<u32> {
        let (number, backend) = self.add_whole_backend(guest)?;
        let device = ifindex("pub0")?;
        let service = Service { kind: Kind::Elastic as u8, number, ring_base: device, backend, ..Service::default() };
        self.set_service(SocketAddrV4::new(vip, 0), 0, ServiceKey::WHOLE_VIP, service)?;
        if leads {
            self.set_source(
                "pub0",
                (guest, 32),
                vip,
                SnatRule { kind: SnatKind::Elastic as u8, backend, ..SnatRule::default() },
            )?;
        }
        Ok(backend)
    }

    /// Makes a VIP on the public device the way out of the backends' network; the network's backend number. `shared`: the VIP
    /// has services, whose ports are not given away.
    pub fn masquerade(&mut self, vip: Ipv4Addr, shared: bool) -> Result<u32> {
        self.masquerade_by("pub0", vip, (Ipv4Addr::new(10, 2, 0, 0), 24), shared)
    }

    /// The same by any device, for any network.
    pub fn masquerade_by(&mut self, device: &str, vip: Ipv4Addr, network: (Ipv4Addr, u8), shared: bool) -> Result<u32> {
        let (_, backend) = self.add_whole_backend(vip)?;
        let source =
            SnatRule { kind: SnatKind::Masquerade as u8, backend, shared: shared.into(), ..SnatRule::default() };
        self.set_source(device, network, vip, source)?;
        self.add_to_address_filter(Bit::to(u32::from(vip).to_be()))?;
        Ok(backend)
    }

    /// A backend for every protocol and port, of a service of its own; the numbers of both.
    fn add_whole_backend(&mut self, address: Ipv4Addr) -> Result<(u32, u32)> {
        let number = self.next_service;
        self.next_service += 1;
        Ok((number, self.add_backend(SocketAddrV4::new(address, 0), number)?))
    }

    /// What packets from a network get as their source when they leave by the device.
    pub fn set_source(
        &mut self,
        device: &str,
        (network, prefix_len): (Ipv4Addr, u8),
        vip: Ipv4Addr,
        source: SnatRule,
    ) -> Result<()> {
        let last = u32::from(network) | u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
        let addresses = (u32::from(network)..=last).map(u32::to_be);
        self.add_to_address_filters(addresses.flat_map(|address| [Bit::from(address), Bit::out(address)]))?;
        let key = Key::new(32 + u32::from(prefix_len), SnatKey::new(ifindex(device)?, u32::from(network).to_be()));
        let source = SnatRule { vip: u32::from(vip).to_be(), ..source };
        Ok(LpmTrie::try_from(self.map(maps::SOURCES)?)?.insert(&key, source, 0)?)
    }

    /// Has guests from a network, whose packets get another source by the public device, come by this device alone.
    pub fn keep_guests_at(&mut self, (network, prefix_len): (Ipv4Addr, u8), device: &str) -> Result<()> {
        let key = Key::new(32 + u32::from(prefix_len), SnatKey::new(ifindex("pub0")?, u32::from(network).to_be()));
        let mut sources = LpmTrie::<_, SnatKey, SnatRule>::try_from(self.map(maps::SOURCES)?)?;
        let source = sources.get(&key, 0)?;
        Ok(sources.insert(&key, SnatRule { device: ifindex(device)?, ..source }, 0)?)
    }

    /// Has a backend's network be by this device alone.
    pub fn keep_backend_at(&mut self, number: u32, device: &str) -> Result<()> {
        let held = self.backend(number)?;
        self.set_backend(number, Backend { device: ifindex(device)?, ..held })
    }

    pub fn remove_source(&mut self, network: Ipv4Addr, prefix_len: u8) -> Result<()> {
        let key = Key::new(32 + u32::from(prefix_len), SnatKey::new(ifindex("pub0")?, u32::from(network).to_be()));
        Ok(LpmTrie::<_, SnatKey, SnatRule>::try_from(self.map(maps::SOURCES)?)?.remove(&key)?)
    }

    /// The slot of the flow from here to there.
    pub fn slot_of(&mut self, from: SocketAddrV4, to: SocketAddrV4) -> Result<u32> {
        let is_its = |flow: &Flow| {
            let at = |addr: u32, port: u16| SocketAddrV4::new(u32::from_be(addr).into(), u16::from_be(port));
            at(flow.key.src, flow.key.sport) == from && at(flow.key.dst, flow.key.dport) == to
        };
        let slots = self.slots()?;
        let at = slots.iter().position(|(word, flow)| word.state().is_live() && is_its(flow));
        Ok(u32::try_from(at.context("no such flow")?)?)
    }

    /// Empties both slots of the connection from here to there.
    pub fn forget(&mut self, from: SocketAddrV4, to: SocketAddrV4) -> Result<()> {
        let at = self.slot_of(from, to)?;
        let mut flows = self.array::<Flow>(maps::FLOWS)?;
        let peer = flows.get(&at, 0)?.peer;
        for index in [at, peer] {
            flows.set(index, Flow::default(), 0)?;
        }
        let mut buckets = self.array::<Bucket>(maps::FLOW_BUCKETS)?;
        for index in [at, peer] {
            let mut bucket = buckets.get(&(index / WAYS as u32), 0)?;
            bucket.words[index as usize % WAYS] = 0;
            buckets.set(index / WAYS as u32, bucket, 0)?;
        }
        Ok(())
    }

    /// Has a flow name this slot as its other direction's.
    pub fn set_peer(&mut self, slot: u32, peer: u32) -> Result<()> {
        let mut flows = self.array::<Flow>(maps::FLOWS)?;
        let flow = flows.get(&slot, 0)?;
        Ok(flows.set(slot, Flow { peer, ..flow }, 0)?)
    }

    /// Lets only clients of this network open flows of a service.
    pub fn allow(&mut self, vip: SocketAddrV4, protocol: u8, prefix_len: u32, network: [Ipv4Addr; 2]) -> Result<()> {
        let [source, source_mask] = network.map(|address| u32::from(address).to_be());
        self.change_service(vip, protocol, prefix_len, |service| Service { source, source_mask, ..service })
    }

    fn change_service(
        &mut self,
        vip: SocketAddrV4,
        protocol: u8,
        prefix_len: u32,
        change: impl FnOnce(Service) -> Service,
    ) -> Result<()> {
        let key = Key::new(prefix_len, ServiceKey::new(u32::from(*vip.ip()).to_be(), protocol, vip.port().to_be()));
        let mut services = LpmTrie::<_, ServiceKey, Service>::try_from(self.map(maps::SERVICES)?)?;
        let service = services.get(&key, 0)?;
        Ok(services.insert(&key, change(service), 0)?)
    }

    /// Sets a bit of the set of addresses that packets are looked up for.
    pub fn add_to_address_filter(&mut self, bit: Bit) -> Result<()> {
        self.add_to_address_filters([bit])
    }

    fn add_to_address_filters(&mut self, bits: impl IntoIterator<Item = Bit>) -> Result<()> {
        let mut wanted = std::collections::HashMap::<u32, u64>::new();
        for bit in bits {
            *wanted.entry(bit.word()).or_default() |= bit.mask();
        }
        let mut words = self.array::<u64>(maps::INTEREST)?;
        for (word, mask) in wanted {
            let held = words.get(&word, 0)?;
            words.set(word, held | mask, 0)?;
        }
        Ok(())
    }

    /// Gives the backends of the service that was made last their weights.
    pub fn weigh(&mut self, backends: &[u32], weights: &[u8]) -> Result<()> {
        let ring_base = self.next_ring - u32::try_from(backends.len())?;
        for (index, (&backend, &weight)) in (ring_base..).zip(backends.iter().zip(weights)) {
            self.array(maps::RINGS)?.set(index, Member::new(backend, weight).0, 0)?;
        }
        Ok(())
    }

    pub fn set_service(&mut self, vip: SocketAddrV4, protocol: u8, prefix_len: u32, service: Service) -> Result<()> {
        self.add_to_address_filter(Bit::to(u32::from(*vip.ip()).to_be()))?;
        let key = Key::new(prefix_len, ServiceKey::new(u32::from(*vip.ip()).to_be(), protocol, vip.port().to_be()));
        Ok(LpmTrie::try_from(self.map(maps::SERVICES)?)?.insert(&key, service, 0)?)
    }

    pub fn remove_service(&mut self, vip: SocketAddrV4, protocol: u8, prefix_len: u32) -> Result<()> {
        let key = Key::new(prefix_len, ServiceKey::new(u32::from(*vip.ip()).to_be(), protocol, vip.port().to_be()));
        Ok(LpmTrie::<_, ServiceKey, Service>::try_from(self.map(maps::SERVICES)?)?.remove(&key)?)
    }

    /// Takes the tables that name the rings out of the bench; its program keeps them.
    pub fn take_swap(&mut self) -> Result<Swap> {
        self.ebpf.is_last();
        let mut take = |name| self.ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
        Ok(Swap { rings: take(maps::RINGS)?.try_into()?, services: take(maps::SERVICES)?.try_into()? })
    }

    /// How often a reason was counted.
    pub fn reason(&mut self, reason: Reason) -> Result<u64> {
        let counters = PerCpuArray::<_, u64>::try_from(self.map(maps::REASONS)?)?;
        Ok(counters.get(&(reason as u32), 0)?.iter().sum())
    }

    /// Has the programs tell of packets with these reasons, each once: time stands still.
    pub fn tidings(&mut self, reasons: &[Reason]) -> Result<Tidings> {
        self.ebpf.is_last();
        let log = reasons.iter().fold(0, |set, reason| set | reason.bit());
        let config = self.config()?;
        self.set_config(Config { log, tick: 1, ..config })?;
        Ok(Tidings::of(&mut self.ebpf)?)
    }

    /// A backend's traffic.
    pub fn traffic(&mut self, backend: u32) -> Result<Traffic> {
        let counters = PerCpuArray::<_, Traffic>::try_from(self.map(maps::BACKEND_TRAFFIC)?)?;
        let mut sum = Traffic::default();
        for cpu in counters.get(&backend, 0)?.iter() {
            sum.packets_in += cpu.packets_in;
            sum.bytes_in += cpu.bytes_in;
            sum.packets_out += cpu.packets_out;
            sum.bytes_out += cpu.bytes_out;
            sum.connections += cpu.connections;
        }
        Ok(sum)
    }

    /// Sets a bandwidth limit.
    pub fn set_meter(&mut self, number: u32, meter: Meter) -> Result<()> {
        self.ebpf.is_last();
        Ok(self.array(maps::METERS)?.set(number, meter, 0)?)
    }

    /// Has a backend's packets count against a limit.
    pub fn bind(&mut self, number: u32, meter: Binding) -> Result<()> {
        let backend = self.backend(number)?;
        self.set_backend(number, Backend { meter, ..backend })
    }

    /// Gives a port of a VIP a limit of its own.
    pub fn limit_port(&mut self, vip: SocketAddrV4, number: u32) -> Result<()> {
        let key = MeterPort { vip: u32::from(*vip.ip()).to_be(), port: vip.port().to_be(), reserved: 0 };
        let mut meters = HashMap::<_, MeterPort, u32>::try_from(self.map(maps::PORT_METERS)?)?;
        Ok(meters.insert(key, number, 0)?)
    }

    /// What was counted for a limit.
    pub fn metered(&mut self, number: u32) -> Result<MeterTraffic> {
        let counters = PerCpuArray::<_, MeterTraffic>::try_from(self.map(maps::METER_TRAFFIC)?)?;
        let mut sum = MeterTraffic::default();
        for cpu in counters.get(&number, 0)?.iter() {
            for (sum, of) in sum.directions.iter_mut().zip(cpu.directions) {
                *sum = Metered {
                    passed_packets: sum.passed_packets + of.passed_packets,
                    passed_bytes: sum.passed_bytes + of.passed_bytes,
                    dropped_packets: sum.dropped_packets + of.dropped_packets,
                    dropped_bytes: sum.dropped_bytes + of.dropped_bytes,
                };
            }
        }
        Ok(sum)
    }

    /// A backend's live connections.
    pub fn load(&mut self, backend: u32) -> Result<u32> {
        Ok(Load(self.array(maps::BACKEND_LOAD)?.get(&backend, 0)?).live())
    }

    /// A service's live connections.
    pub fn service_load(&mut self, service: u32) -> Result<u32> {
        Ok(self.array(maps::SERVICE_LOAD)?.get(&service, 0)?)
    }

    pub fn set_service_load(&mut self, service: u32, connections: u32) -> Result<()> {
        Ok(self.array(maps::SERVICE_LOAD)?.set(service, connections, 0)?)
    }

    /// Lets a listener have so many connections at a time; 0: any number.
    pub fn limit(&mut self, vip: SocketAddrV4, protocol: u8, most: u32) -> Result<()> {
        self.change_service(vip, protocol, ServiceKey::EXACT, |service| Service { max_connections: most, ..service })
    }

    /// Every flow in the table, with its slot word.
    pub fn flows(&mut self) -> Result<Vec<(Word, Flow)>> {
        self.flows_of(maps::FLOW_BUCKETS, maps::FLOWS)
    }

    /// The same of the table that is bridged to.
    pub fn flows_aside(&mut self) -> Result<Vec<(Word, Flow)>> {
        self.flows_of(maps::OTHER_BUCKETS, maps::OTHER_FLOWS)
    }

    fn flows_of(&mut self, buckets: &str, entries: &str) -> Result<Vec<(Word, Flow)>> {
        let mut flows = Vec::new();
        let buckets = self.array::<Bucket>(buckets)?.iter().collect::<Result<Vec<_>, _>>()?;
        let entries = self.array::<Flow>(entries)?;
        for (number, bucket) in (0u32..).zip(buckets) {
            for (way, word) in (0u32..).zip(bucket.words.map(Word)) {
                if word.state() > State::Busy {
                    flows.push((word, entries.get(&(number * WAYS as u32 + way), 0)?));
                }
            }
        }
        Ok(flows)
    }

    /// Every slot by its index: its word, and the flow in it.
    pub fn slots(&mut self) -> Result<Vec<(Word, Flow)>> {
        let words = self.array::<Bucket>(maps::FLOW_BUCKETS)?.iter().collect::<Result<Vec<_>, _>>()?;
        let flows = self.array::<Flow>(maps::FLOWS)?.iter().collect::<Result<Vec<_>, _>>()?;
        Ok(words.into_iter().flat_map(|bucket| bucket.words).map(Word).zip(flows).collect())
    }

    /// From now on packets at TC are super-packets of so many segments, with so many bytes of data in each but the last.
    pub fn set_segments(&mut self, count: u32, bytes: u32) {
        self.segments = [count, bytes];
    }

    /// How many first fragments are remembered.
    pub fn fragments(&mut self) -> Result<usize> {
        let fragments = HashMap::<_, FragmentKey, FragmentPorts>::try_from(self.map(maps::FRAGMENTS)?)?;
        Ok(fragments.keys().collect::<Result<Vec<_>, _>>()?.len())
    }

    /// Lets time pass for the first fragments that are remembered.
    pub fn age_fragments(&mut self, jiffies: u32) -> Result<()> {
        let mut fragments = HashMap::<_, FragmentKey, FragmentPorts>::try_from(self.map(maps::FRAGMENTS)?)?;
        for (key, ports) in fragments.iter().collect::<Result<Vec<_>, _>>()? {
            fragments.insert(key, FragmentPorts { seen: ports.seen.wrapping_sub(jiffies), ..ports }, 0)?;
        }
        Ok(())
    }

    /// Has who came to guests' own addresses have come so much earlier.
    pub fn age_direct(&mut self, jiffies: u32) -> Result<()> {
        let mut direct = HashMap::<_, FlowKey, u32>::try_from(self.map(maps::DIRECT)?)?;
        for (key, seen) in direct.iter().collect::<Result<Vec<_>, _>>()? {
            direct.insert(key, seen.wrapping_sub(jiffies), 0)?;
        }
        Ok(())
    }

    /// Has the stack have refused packets so much earlier.
    pub fn age_refused(&mut self, jiffies: u32) -> Result<()> {
        let mut refused = HashMap::<_, FlowKey, Sent>::try_from(self.map(maps::REFUSED)?)?;
        for (key, sent) in refused.iter().collect::<Result<Vec<_>, _>>()? {
            refused.insert(key, Sent { seen: sent.seen.wrapping_sub(jiffies), ..sent }, 0)?;
        }
        Ok(())
    }

    /// Takes a port away, as when its device goes.
    pub fn remove_port(&mut self, number: u32) -> Result<()> {
        Ok(self.array(maps::PORTS)?.set(number, Interface::default(), 0)?)
    }

    /// Makes every flow ask for its way again.
    pub fn move_epoch(&mut self) -> Result<()> {
        let config = self.config()?;
        self.set_config(Config { epoch: config.epoch + 1, ..config })
    }

    /// Ends all flows of a backend.
    pub fn end_flows(&mut self, number: u32) -> Result<()> {
        let backend = self.backend(number)?;
        self.set_backend(number, Backend { generation: backend.generation + 1, ..backend })
    }

    /// Runs the hook's program once on a frame.
    pub fn run(&mut self, frame: &Frame) -> Result<Outcome> {
        self.run_bytes(&frame.bytes())
    }

    /// Runs the egress program once on a frame, as if the stack sent it: the frame as it leaves.
    pub fn run_egress(&mut self, frame: &Frame) -> Result<Vec<u8>> {
        let (result, bytes) = self.test_run(Hook::Tc, maps::PROGRAM_EGRESS, &frame.bytes(), 1)?;
        ensure!(result.return_value == UNSPEC, "verdict {}", result.return_value);
        Ok(bytes)
    }

    /// The same by the device, of a frame that the stack forwards; false: it ends there.
    pub fn leaves(&mut self, frame: &Frame, device: &str) -> Result<bool> {
        self.came_by = ifindex("priv0")?;
        let leaves = self.leaves_as_own(frame, device);
        self.came_by = 0;
        leaves
    }

    /// The same of a frame that the stack has made.
    pub fn leaves_as_own(&mut self, frame: &Frame, device: &str) -> Result<bool> {
        let before = std::mem::replace(&mut self.device, ifindex(device)?);
        // A test run takes what is addressed to others than the device for what it is not: another host's.
        let own = self.own.iter().find(|(_, own)| *own == self.device);
        let frame = Frame { dst_mac: own.map_or(frame.dst_mac, |(mac, _)| *mac), ..frame.clone() };
        let run = self.test_run(Hook::Tc, maps::PROGRAM_EGRESS, &frame.bytes(), 1);
        self.device = before;
        match run?.0.return_value {
            UNSPEC => Ok(true),
            2 => Ok(false),
            other => bail!("verdict {other}"),
        }
    }

    /// Runs the hook's program once on these bytes, as if they came in through a device.
    pub fn run_bytes(&mut self, bytes: &[u8]) -> Result<Outcome> {
        let (result, bytes) = self.test_run(self.hook, self.program, bytes, 1)?;
        Ok(Outcome { verdict: self.verdict(result.return_value), bytes })
    }

    /// The same, and what is beside the frame afterwards.
    pub fn run_beside(&mut self, frame: &Frame) -> Result<(Outcome, Beside)> {
        self.run_with(self.hook, self.program, frame, Beside::Fields { priority: 0, mark: 0 })
    }

    /// Runs the program at the queues' end once on a frame, with this beside it; what is beside it afterwards.
    pub fn leave_queue(&mut self, frame: &Frame, beside: Beside) -> Result<(Verdict, Beside)> {
        let (outcome, beside) = self.run_with(Hook::Tc, maps::PROGRAM_QUEUE, frame, beside)?;
        Ok((outcome.verdict, beside))
    }

    /// Runs the program behind the XDP one once on a frame that was not handed over.
    pub fn run_behind(&mut self, frame: &Frame) -> Result<Verdict> {
        let (result, _) = self.test_run(Hook::Tc, maps::PROGRAM_BEHIND, &frame.bytes(), 1)?;
        Ok(self.verdict(result.return_value))
    }

    fn run_with(&mut self, hook: Hook, name: &str, frame: &Frame, beside: Beside) -> Result<(Outcome, Beside)> {
        const MARK: usize = 8;
        const PRIORITY: usize = 32;
        let bytes = frame.bytes();
        let mut context = self.context(hook, &bytes, self.way_in(name, &bytes));
        if let (Hook::Tc, Beside::Fields { priority, mark }) = (hook, beside) {
            context[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
            context[PRIORITY..PRIORITY + 4].copy_from_slice(&priority.to_ne_bytes());
        }
        let (mut out, mut context_out) = (vec![0; bytes.len() + 64], vec![0; context.len()]);
        let options = TestRunOptions {
            data_in: Some(&bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::new()
        };
        let result = match hook {
            Hook::Xdp => program::<Xdp>(&mut self.ebpf, name)?.test_run(options),
            Hook::Tc => program::<SchedClassifier>(&mut self.ebpf, name)?.test_run(options),
        }
        .context("the test run failed")?;
        out.truncate(result.data_size_out as usize);
        let number = |at: usize| u32::from_ne_bytes(context_out[at..at + 4].try_into().unwrap_or_default());
        let beside = match hook {
            // The metadata and then the frame.
            Hook::Xdp => {
                let length = out.len() - bytes.len().min(out.len());
                Beside::Metadata(out.drain(..length).collect())
            }
            Hook::Tc => Beside::Fields { priority: number(PRIORITY), mark: number(MARK) },
        };
        Ok((Outcome { verdict: self.verdict(result.return_value), bytes: out }, beside))
    }

    /// The same from several threads at once.
    pub fn run_shared(&self, frame: &Frame) -> Result<Outcome> {
        let program = self.ebpf.program(self.program).with_context(|| format!("no program {}", self.program))?;
        let bytes = frame.bytes();
        let mut out = vec![0; bytes.len() + 64];
        let context = self.context(self.hook, &bytes, self.way_in(self.program, &bytes));
        let options = TestRunOptions {
            data_in: Some(&bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = match program {
            Program::Xdp(xdp) => xdp.test_run(options),
            Program::SchedClassifier(tc) => tc.test_run(options),
            _ => bail!("{} is of another kind", self.program),
        }
        .context("the test run failed")?;
        out.truncate(result.data_size_out as usize);
        Ok(Outcome { verdict: self.verdict(result.return_value), bytes: out })
    }

    fn verdict(&self, value: u32) -> Verdict {
        match (self.hook, value) {
            (Hook::Xdp, 1) | (Hook::Tc, 2) => Verdict::Drop,
            (Hook::Xdp, 2) | (Hook::Tc, UNSPEC) => Verdict::Pass,
            (Hook::Xdp, 4) | (Hook::Tc, 7) => Verdict::Redirect,
            (_, other) => Verdict::Other(other),
        }
    }

    fn test_run(&mut self, hook: Hook, name: &str, bytes: &[u8], repeat: u32) -> Result<(TestRunResult, Vec<u8>)> {
        let mut out = vec![0; bytes.len() + 64];
        let mut options = TestRunOptions { data_in: Some(bytes), data_out: Some(&mut out), ..TestRunOptions::new() };
        let device = self.way_in(name, bytes);
        let context = self.context(hook, bytes, device);
        if device != 0 || self.segments != [0; 2] {
            options.ctx_in = Some(&context);
        }
        options.repeat = repeat;
        let result = match hook {
            Hook::Xdp => program::<Xdp>(&mut self.ebpf, name)?.test_run(options),
            Hook::Tc => program::<SchedClassifier>(&mut self.ebpf, name)?.test_run(options),
        }
        .context("the test run failed")?;
        out.truncate(result.data_size_out as usize);
        Ok((result, out))
    }

    /// The device that a frame comes in by; 0: none that the router has. What the stack sends comes by none.
    fn way_in(&self, program: &str, bytes: &[u8]) -> u32 {
        if self.device != 0 || program == maps::PROGRAM_EGRESS {
            return self.device;
        }
        self.own.iter().find(|(mac, _)| bytes.starts_with(mac)).map_or(0, |(_, device)| *device)
    }

    /// The context of a packet that comes in by the device.
    fn context(&self, hook: Hook, bytes: &[u8], device: u32) -> Vec<u8> {
        let fields = match hook {
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            Hook::Xdp => vec![0, bytes.len() as u32, 0, device, 0, 0],
            // struct __sk_buff, 48 words.
            Hook::Tc => {
                const INGRESS_IFINDEX: usize = 9;
                const IFINDEX: usize = 10;
                const GSO_SEGMENTS: usize = 41;
                const GSO_SIZE: usize = 44;
                let mut fields = vec![0; 48];
                fields[INGRESS_IFINDEX] = self.came_by;
                fields[IFINDEX] = device;
                [fields[GSO_SEGMENTS], fields[GSO_SIZE]] = self.segments;
                fields
            }
        };
        fields.iter().flat_map(|field: &u32| field.to_ne_bytes()).collect()
    }

    /// Lets packets come in by this device, instead of by the one that they are addressed to.
    pub fn arrive_by(&mut self, device: &str) -> Result<()> {
        self.device = ifindex(device)?;
        Ok(())
    }

    /// Moves every flow in the table to a state, as traffic would.
    pub fn set_states(&mut self, state: State) -> Result<u32> {
        let mut slots = Vec::new();
        let mut buckets = self.array::<Bucket>(maps::FLOW_BUCKETS)?;
        for number in 0..buckets.len() {
            let mut bucket = buckets.get(&number, 0)?;
            for (way, word) in (0u32..).zip(&mut bucket.words) {
                if Word(*word).state().is_live() {
                    *word = Word(*word).with_state(state).0;
                    slots.push((number * WAYS as u32 + way, Word(*word)));
                }
            }
            buckets.set(number, bucket, 0)?;
        }
        let mut flows = self.array::<Flow>(maps::FLOWS)?;
        for &(slot, word) in &slots {
            let flow = flows.get(&slot, 0)?;
            flows.set(slot, Flow { mark: Mark::of(word, flow.mark.flags()), ..flow }, 0)?;
        }
        Ok(u32::try_from(slots.len())?)
    }

    /// Runs `frame` and checks that it goes out as `expected`, to the last byte.
    pub fn expect_sent(&mut self, frame: &Frame, expected: &Frame) -> Result<()> {
        let outcome = self.run(frame)?;
        ensure!(outcome.verdict == Verdict::Redirect, "verdict {:?} for {frame:?}", outcome.verdict);
        ensure!(
            outcome.bytes == expected.bytes(),
            "sent      {:02x?}\nexpected  {:02x?}",
            outcome.bytes,
            expected.bytes()
        );
        Ok(())
    }

    /// Runs `frame` and checks that it goes up the stack or ends, unchanged, counted once under `reason`.
    pub fn expect_refused(&mut self, frame: &Frame, reason: Reason) -> Result<()> {
        let before = self.reason(reason)?;
        let outcome = self.run(frame)?;
        let verdict = if reason.is_drop() { Verdict::Drop } else { Verdict::Pass };
        ensure!(outcome.verdict == verdict, "verdict {:?} instead of {verdict:?} for {frame:?}", outcome.verdict);
        ensure!(outcome.bytes == frame.bytes(), "the frame was changed: {:02x?}", outcome.bytes);
        let counted = self.reason(reason)? - before;
        ensure!(counted == 1, "{} was counted {counted} times", reason.name());
        Ok(())
    }
}

/// The tables of a bench through which rings are swapped, while its program runs on other threads.
#[allow(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Swap {
    rings: Array<MapData, u32>,
    services: LpmTrie<MapData, ServiceKey, Service>,
}

impl Swap {
    /// Writes the service's ring, and then the service, as the controller does.
    pub fn set(&mut self, vip: SocketAddrV4, protocol: u8, service: Service, ring: &[u32]) -> Result<()> {
        for (index, backend) in (service.ring_base..).zip(ring) {
            self.rings.set(index, backend, 0)?;
        }
        let key = ServiceKey::new(u32::from(*vip.ip()).to_be(), protocol, vip.port().to_be());
        Ok(self.services.insert(&Key::new(ServiceKey::EXACT, key), service, 0)?)
    }
}

/// Puts the calling thread into a network namespace of its own, which ends, with all that is in it, when neither the thread is
/// in it nor the file is open.
fn make_network() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (root needed)")?;
    for words in [
        // By which test runs' packets come in that are addressed to none of the router's devices.
        "link set lo address 02:00:00:00:01:01 up",
        // Pairs whose other ends lie idle: they only have to exist and be up.
        "link add pub0 type veth peer name pub1",
        "link add priv0 type veth peer name priv1",
        "link set pub1 up",
        "link set priv1 up",
        "link set pub0 address 02:00:00:00:01:01 up",
        "link set priv0 address 02:00:00:00:02:01 up",
        "addr add 10.1.0.1/24 dev pub0",
        "addr add 10.2.0.1/24 dev priv0",
        "route add default via 10.1.0.254",
        "neigh add 10.1.0.254 lladdr 02:00:00:00:01:fe dev pub0",
    ] {
        ip(words)?;
    }
    let hosts: String = (10..=30)
        .map(|host| {
            format!(
                "neigh add 10.1.0.{host} lladdr 02:00:00:00:01:{host:02x} dev pub0\n\
                 neigh add 10.2.0.{host} lladdr 02:00:00:00:02:{host:02x} dev priv0\n"
            )
        })
        .collect();
    ip_batch(&hosts)?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot enable forwarding")?;
    File::open("/proc/thread-self/ns/net").context("cannot open the namespace")
}

fn load_program(ebpf: &mut Ebpf, hook: Hook, name: &str) -> Result<()> {
    match hook {
        Hook::Xdp => {
            let xdp = program::<Xdp>(ebpf, name)?;
            load_persistently(|| xdp.load())
        }
        Hook::Tc => {
            let tc = program::<SchedClassifier>(ebpf, name)?;
            load_persistently(|| tc.load())
        }
    }
    .with_context(|| format!("the kernel refused {name}"))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    program.try_into().ok().with_context(|| format!("{name} is of another kind"))
}

/// Seconds of processor time that the calling thread has used.
fn processor_time() -> Result<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

fn ifindex(device: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(device).with_context(|| format!("there is no device {device}"))
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split_whitespace()).output().context("cannot run ip")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn ip_batch(lines: &str) -> Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let file = std::env::temp_dir().join(format!(
        "vipgate-bench-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    fs::write(&file, lines)?;
    let result = ip(&format!("-batch {}", file.display()));
    fs::remove_file(&file)?;
    result
}
