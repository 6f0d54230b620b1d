//! ABI version 8, the one before ours, as a router runs it: its programs on the lab's devices, with tables of its own layout.
//! The programs are the original ones (`fixtures/`). This module does what its controller did, as far as traffic depends on it.
//!
//! Tables whose elements are the same in both versions are shared with ours, since both controllers fill them alike. So a lab
//! has services without a controller of that version.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, MapInfo},
    programs::{
        Program, SchedClassifier, Xdp,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use vipgate_abi::{ABI_VERSION, address_filter::BITS, config::Config, flow::WAYS, maps};
use vipgate_agent::loader::load_persistently;

use super::{Lab, Result};

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/abi-8.o.gz");
const DIRECTORY: &str = "abi-8";
const FLOWS: u32 = 1 << 16;
/// Kinds of bits in its INTEREST map: the first three of ours. Its map groups bits by kind, ours by address.
const INTEREST_KINDS: u32 = 3;
const OUR_KINDS: u32 = 4;
/// Tables that version 8 creates anew: their elements differ from ours, or belong to flows.
const OWN: [&str; 9] = [
    maps::CONFIG,
    maps::FLOW_BUCKETS,
    maps::FLOWS,
    maps::INTEREST,
    maps::BACKEND_LOAD,
    maps::BACKEND_ROUTES,
    maps::SERVICE_LOAD,
    maps::METER_STATES,
    maps::FRAGMENTS,
];
/// Tables that version 8 does not have.
const LATER: [&str; 1] = [maps::CONFIRMED];

/// Replaces our version by version 8, as its controller did with any other version's tables: it takes the links over, gives the
/// devices its programs, and removes our pins by the rules that it has. Connections end. No controller of ours may
/// run.
pub fn put(lab: &Lab) -> Result<()> {
    let root = lab.bpffs.path();
    let (ours, its) = (root.join(format!("abi-{ABI_VERSION}")), root.join(DIRECTORY));
    fs::create_dir_all(its.join("links"))?;
    let shared = maps::PINNED.into_iter().filter(|name| !OWN.contains(name) && !LATER.contains(name));
    let shared: Vec<&str> = shared.collect();
    for name in &shared {
        MapData::from_pin(ours.join(name))?.pin(its.join(name)).with_context(|| format!("cannot share {name}"))?;
    }
    let mut ebpf = load(&its, &shared)?;
    configure(&ours, &mut ebpf)?;
    for link in names(&ours.join("links"))? {
        fs::rename(ours.join("links").join(&link), its.join("links").join(&link))?;
        give(&mut ebpf, &its.join("links"), &link)?;
    }
    remove(&ours)
}

fn load(its: &Path, shared: &[&str]) -> Result<Ebpf> {
    let gzip = Command::new("gzip").args(["-dc", OBJECT]).stdout(Stdio::piped()).output()?;
    ensure!(gzip.status.success(), "cannot unpack {OBJECT}");
    let elements = |name: &str| Ok::<_, anyhow::Error>(MapInfo::from_pin(its.join(name))?.max_entries());
    let (backends, services) = (elements(maps::BACKENDS)?, elements(maps::CURSORS)?);
    let mut loader = EbpfLoader::new();
    for name in shared {
        loader.map_pin_path(name, its.join(name)).map_max_entries(name, elements(name)?);
    }
    for name in OWN {
        loader.map_pin_path(name, its.join(name));
    }
    loader.map_max_entries(maps::FLOWS, FLOWS).map_max_entries(maps::FLOW_BUCKETS, FLOWS / WAYS as u32);
    loader.map_max_entries(maps::BACKEND_LOAD, backends).map_max_entries(maps::BACKEND_ROUTES, backends);
    loader.map_max_entries(maps::SERVICE_LOAD, services);
    loader.load(&gzip.stdout).context("version 8's object does not load")
}

/// Writes version 8's configuration and its set of addresses.
fn configure(ours: &Path, ebpf: &mut Ebpf) -> Result<()> {
    let held: Array<_, Config> = open(ours, maps::CONFIG)?;
    let Config { flow_seed, epoch, tick, tx_ports, .. } = held.get(&0, 0)?;
    let mut words = flow_seed.to_le_bytes().to_vec();
    for word in [FLOWS / WAYS as u32 - 1, epoch + 1, tick, tx_ports] {
        words.extend(word.to_le_bytes());
    }
    let bytes: [u8; 24] = words.try_into().map_err(|_| anyhow::anyhow!("24 bytes"))?;
    let mut config: Array<_, [u8; 24]> = ebpf.map_mut(maps::CONFIG).context("CONFIG")?.try_into()?;
    config.set(0, bytes, 0)?;
    let held: Array<_, u64> = open(ours, maps::INTEREST)?;
    let held = (0..held.len()).map(|at| held.get(&at, 0)).collect::<Result<Vec<u64>, _>>()?;
    let mut interest: Array<_, u64> = ebpf.map_mut(maps::INTEREST).context("INTEREST")?.try_into()?;
    let words = BITS / u64::BITS;
    for at in 0..INTEREST_KINDS * words {
        let (kind, first) = (at / words, at % words * u64::BITS);
        let mut word = 0;
        for bit in 0..u64::BITS {
            let ours = (first + bit) * OUR_KINDS + kind;
            word |= (held[(ours / u64::BITS) as usize] >> (ours % u64::BITS) & 1) << bit;
        }
        if word != 0 {
            interest.set(at, word, 0)?;
        }
    }
    Ok(())
}

fn open<M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(dir: &Path, name: &str) -> Result<M> {
    Ok(M::try_from(aya::maps::Map::from_map_data(MapData::from_pin(dir.join(name))?)?)?)
}

/// Replaces the program behind a pinned link by version 8's of the same kind.
fn give(ebpf: &mut Ebpf, links: &Path, link: &str) -> Result<()> {
    let program = match link.split_once('-').map(|(kind, _)| kind) {
        Some("xdp") => maps::PROGRAM_XDP,
        Some("xdpgeneric") => maps::PROGRAM_GENERIC,
        Some("tc") => maps::PROGRAM_TC,
        Some("behind") => maps::PROGRAM_BEHIND,
        Some("egress") => maps::PROGRAM_EGRESS,
        Some("queue") => maps::PROGRAM_QUEUE,
        // A tracepoint's link, which only counts.
        _ => return Ok(()),
    };
    let held = FdLink::from(PinnedLink::from_pin(links.join(link))?);
    match ebpf.program_mut(program).with_context(|| format!("no program {program}"))? {
        Program::Xdp(xdp) => {
            if xdp.fd().is_err() {
                load_persistently(|| Xdp::load(xdp))?;
            }
            let id = xdp.attach_to_link(XdpLink::try_from(held)?)?;
            // The pin keeps it alive.
            drop(xdp.take_link(id)?);
        }
        Program::SchedClassifier(tc) => {
            if tc.fd().is_err() {
                load_persistently(|| SchedClassifier::load(tc))?;
            }
            let id = tc.attach_to_link(held.try_into()?)?;
            drop(tc.take_link(id)?);
        }
        _ => anyhow::bail!("{program} is of another kind"),
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    entries.collect()
}

/// Removes pins as version 8 removes what another version left: it knows tables, and one directory of links.
fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir(dir.join("links")).context("version 8 leaves links behind")?;
    for name in names(dir)? {
        fs::remove_file(dir.join(&name)).with_context(|| format!("version 8 cannot remove {name}"))?;
    }
    Ok(fs::remove_dir(dir)?)
}
