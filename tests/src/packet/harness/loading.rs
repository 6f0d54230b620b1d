//! Loads an object file into a namespace, with tables of given sizes.

use std::{
    borrow::Cow,
    fs::{self, File},
    sync::LazyLock,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{Program, SchedClassifier, Xdp},
};
use vipgate_abi::{config::Config, flow::WAYS, maps};
use vipgate_agent::loader::load_persistently;

use crate::packet::reuse::{Kind as Reusable, Loaded};

use super::{
    Bench, Hook,
    network::{ifindex, make_network},
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

/// The object of `cargo xtask build`, or the one whose path is in `VIPGATE_TEST_PROGRAMS`: for example one with a fault, to see
/// whether tests notice it.
pub(super) static PROGRAMS: LazyLock<Cow<'static, [u8]>> =
    LazyLock::new(|| match std::env::var_os("VIPGATE_TEST_PROGRAMS") {
        Some(path) => fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into(),
        None => object!("vipgate-ebpf").into(),
    });

pub(in crate::packet) static BENCHMARK: &[u8] = object!("vipgate-bench");

impl Bench {
    /// The programs that the controller loads, with a small flow table.
    pub fn new(hook: Hook) -> Result<Self> {
        Self::with_buckets(hook, Self::BUCKETS)
    }

    /// [`Self::new`] with this number of flow buckets, a power of two.
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

    /// [`Self::new`] with a secondary flow table of the same size.
    pub fn with_secondary_table(hook: Hook) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let mask = Self::BUCKETS - 1;
        loader
            .override_global(maps::OTHER_MASK, &mask, true)
            .map_max_entries(maps::OTHER_BUCKETS, Self::BUCKETS)
            .map_max_entries(maps::OTHER_FLOWS, Self::BUCKETS * WAYS as u32);
        Self::alone(hook, loader)
    }

    /// [`Self::new`], while connections are migrated from another version's tables.
    pub fn taking_over(hook: Hook) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global(maps::TAKES_OVER, &1u32, true);
        Self::alone(hook, loader)
    }

    /// The hook's program as this loader makes it, not shared with other benches.
    pub(super) fn alone(hook: Hook, loader: EbpfLoader<'_>) -> Result<Self> {
        let network = make_network()?;
        let mut bench = Self::load_with(hook, &PROGRAMS, Self::BUCKETS, loader)?;
        bench.enter(network)?;
        bench.program = hook.program();
        bench.load_program(hook, bench.program)?;
        Ok(bench)
    }

    /// Loads every program of every object. Each gets its own tables, since programs that share a table must be of one type.
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

    pub(super) fn open(hook: Hook, object: &[u8], buckets: u32) -> Result<Self> {
        let network = make_network()?;
        let mut bench = Self::load_object(hook, object, buckets)?;
        bench.enter(network)?;
        Ok(bench)
    }

    /// Notes the devices of the namespace that was made for this bench.
    fn enter(&mut self, network: File) -> Result<()> {
        self._network = Some(network);
        self.own = vec![(Self::PUBLIC_MAC, ifindex("pub0")?), (Self::PRIVATE_MAC, ifindex("priv0")?)];
        self.set_interface(1, "pub0", Self::PUBLIC_MAC)?;
        self.set_interface(2, "priv0", Self::PRIVATE_MAC)
    }

    pub(super) fn load_object(hook: Hook, object: &[u8], buckets: u32) -> Result<Self> {
        Self::load_sized(hook, object, buckets, None)
    }

    pub(super) fn load_sized(hook: Hook, object: &[u8], buckets: u32, size: Option<(&str, u32)>) -> Result<Self> {
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

    pub(super) fn around(hook: Hook, ebpf: Loaded, buckets: u32) -> Result<Self> {
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

    pub(super) fn load_program(&mut self, hook: Hook, name: &str) -> Result<()> {
        load_program(&mut self.ebpf, hook, name)
    }
}

pub(super) fn load_program(ebpf: &mut Ebpf, hook: Hook, name: &str) -> Result<()> {
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

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    program.try_into().ok().with_context(|| format!("{name} is of another kind"))
}
