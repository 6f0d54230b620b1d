//! Brings the kernel programs and their tables into the kernel, and onto the router's devices.
//!
//! Maps and links are pinned under a directory named after the ABI version, so that they outlive the controller: a
//! restart finds tables and flows as they were and swaps each device's program in place. Everything here blocks (it
//! makes system calls); callers on the async runtime use `spawn_blocking`.
//!
//! The only module of the agent with unsafe code, all of it in `mapping` (shared memory), `syscall`, `link`, `link_on_device`,
//! `own_programs`, `kernel` (bpf(2)), `rcu` and `ethtool` (a system call or two each that no crate here has a safe way for),
//! `packet_records` (a descriptor to wait for).
#![allow(
    unsafe_code,
    reason = "shared memory, a descriptor, bare bpf(2), membarrier(2) and ioctl(2) calls; see each SAFETY comment"
)]

mod abi8;
mod address_filter;
mod addresses;
mod attach;
mod bpffs;
mod classifier;
mod detach;
mod error;
mod ethtool;
mod fill;
mod filter;
mod flow_migration;
mod flow_reader;
mod flow_table;
mod hook_choice;
mod interfaces;
mod kernel;
mod link;
mod link_on_device;
mod loads;
mod mapping;
mod missing;
mod namespace;
mod object;
mod own_programs;
mod packet_records;
mod rcu;
mod redirect_errors;
mod resize;
mod rtnl;
mod socket_lookup;
pub mod status;
mod syscall;
mod tables;
mod takeover;
mod trial;
mod virtio;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tracing::warn;
use vipgate_abi::{flow, maps, service::Member};

pub use self::{
    addresses::Addresses,
    attach::Target,
    bpffs::PinDir,
    classifier::TcMode,
    detach::{Detached, detach},
    error::{AttachError, LoadError, TableError, causes},
    ethtool::{Driver, driver, drivers},
    fill::{Crowding, Fill, percent},
    filter::{FilterError, PRIORITY as FILTER_PRIORITY},
    flow_reader::{Connection, FlowReader, address, hz, read_connections},
    flow_table::FlowTable,
    hook_choice::{hook_for, why, why_tc},
    interfaces::Interfaces,
    kernel::release,
    loads::{BackendLoads, ServiceLoads},
    mapping::Mapping,
    missing::{MissingProgram, missing_programs},
    namespace::{check_namespace, forget_settings, kept_settings},
    object::load_persistently,
    packet_records::{PacketRecord, PacketRecords},
    status::Reasons,
    tables::{Epoch, Tables},
    trial::{Trial, try_programs},
};
use self::{classifier::Way, object::Programs};

/// Where the programs sit on a device.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// TC where native XDP costs offloads (`hook_choice`), else native XDP where it is to be had, else TC.
    #[default]
    Auto,
    /// Native XDP; a device whose driver lacks it is an error.
    Xdp,
    /// XDP in the generic network stack: any driver, slower than TC.
    XdpGeneric,
    /// TC ingress: by a TCX link, or a filter of clsact where the kernel has none.
    Tc,
}

impl Hook {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Auto, Self::Xdp, Self::XdpGeneric, Self::Tc]
            .into_iter()
            .find(|hook| hook.name() == text)
            .ok_or_else(|| format!("`{text}` is no hook: use auto, xdp, xdp-generic or tc"))
    }
}

/// How long after its last packet a TCP connection that was ended is remembered: a side that sends on it gets a reset.
pub const ENDED: Duration = Duration::from_secs(600);

/// Numbers of elements of the tables. Tables of other sizes are carried over when the plane opens (`resize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sizes {
    /// Flow entries, two a connection; a power of two. 72 bytes each. Where a configuration names them: how many the table may
    /// come to have.
    pub flows: u32,
    /// Listeners, port-forwarding rules, elastic IPs and networks with source NAT; the services trie has room for the keys
    /// of each.
    pub services: u32,
    /// Backends, over all listeners and rules; of an elastic IP and of a network with source NAT one each.
    pub backends: u32,
    /// Ring elements, over all listeners. 8 bytes each.
    pub ring_elements: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            flows: maps::DEFAULT_FLOWS,
            services: maps::DEFAULT_SERVICES,
            backends: maps::DEFAULT_BACKENDS,
            ring_elements: maps::DEFAULT_RING_ELEMENTS,
        }
    }
}

impl Sizes {
    /// Whether the tables can be made so.
    pub fn check(&self) -> Result<(), LoadError> {
        let Self { flows, services, backends, ring_elements } = *self;
        let wrong = |name, value, rule| Err(LoadError::Size { name, value, rule });
        if !flows.is_power_of_two() || flows < 16 * flow::WAYS as u32 || flows > 1 << 28 {
            return wrong("flows", flows, "a power of two from 128 to 268435456");
        }
        if !(1..=Member::NUMBERS).contains(&backends) {
            return wrong("backends", backends, "from 1 to 16777216");
        }
        for (name, value) in [("services", services), ("ring_elements", ring_elements)] {
            if !(1..=1 << 28).contains(&value) {
                return wrong(name, value, "from 1 to 268435456");
            }
        }
        Ok(())
    }
}

/// How to open the plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory on a BPF file system for the pins; made when missing.
    pub bpffs: PathBuf,
    pub hook: Hook,
    /// How TC programs are put on devices.
    pub tc: TcMode,
    /// Of the flow table the largest size.
    pub sizes: Sizes,
    /// Flow entries that the table begins with, and has at least.
    pub least_flows: u32,
    /// Programs that are taken for refused by the kernel: for tests of what becomes of the others.
    pub refused: &'static [&'static str],
}

/// The packet plane of this router: loaded programs and pinned tables. Dropping it leaves the traffic running.
#[derive(Debug)]
pub struct Plane {
    dir: PinDir,
    hook: Hook,
    way: Way,
    /// Those of now.
    sizes: Mutex<Sizes>,
    /// How many flow entries there may be at least, and at most.
    flows: (u32, u32),
    refused: &'static [&'static str],
    programs: Mutex<Programs>,
    /// Set when the kernel has refused what [`Hook::Auto`] tried.
    xdp_refused: OnceLock<()>,
}

impl Plane {
    /// Sees whether the kernel takes our programs, before anything that belongs to another version is changed, its store among it:
    /// so that where it does not, that version can be started again. Where ours has run it is known already.
    pub fn rehearse(options: &Options) -> Result<(), LoadError> {
        let dir = PinDir::check(&options.bpffs)?;
        if dir.exists() || dir.others()?.is_empty() {
            return Ok(());
        }
        object::lift_memlock();
        let mut programs = object::prepare_apart().map_err(kernel::explain)?;
        programs.refuse(options.refused);
        programs.load_for(options.hook).map_err(kernel::explain)
    }

    /// Opens the pinned tables, makes those that are missing, and loads the hook's programs. No device is touched yet.
    pub fn open(options: &Options) -> Result<Arc<Self>, LoadError> {
        options.sizes.check()?;
        object::lift_memlock();
        let dir = PinDir::check(&options.bpffs)?;
        takeover::take_over(&dir, options)?;
        resize::resume(&dir)?;
        let is_new = !dir.exists();
        let opened = Self::bring_up(dir.clone(), options);
        if is_new
            && opened.is_err()
            && let Err(error) = dir.remove_unused()
        {
            warn!(%error, "tables that nothing uses stay");
        }
        opened
    }

    fn bring_up(dir: PinDir, options: &Options) -> Result<Arc<Self>, LoadError> {
        dir.create()?;
        let (most, least) = (options.sizes.flows, options.least_flows.min(options.sizes.flows));
        let held = object::sizes_of_pins(&dir, Sizes { flows: least, ..options.sizes })?;
        let wanted = Sizes { flows: held.flows.clamp(least, most), ..options.sizes };
        resize::resize(&dir, wanted)?;
        let (mut programs, sizes) = object::prepare(&dir, wanted).map_err(kernel::explain)?;
        programs.refuse(options.refused);
        programs.load_for(options.hook).map_err(kernel::explain)?;
        let others = dir.others()?;
        attach::load_queues(&others, &mut programs).map_err(kernel::explain)?;
        let way = Way::find(options.tc, &mut programs)?;
        tables::initialise(&dir, sizes)?;
        // Only now that all of this version works: until then the other one's traffic, and its way back, is as it was.
        for other in &others {
            dir.succeed(other)?;
            warn!(tables = %other.path().display(), "tables of another version cannot be read: the connections in them end");
        }
        if way == Way::Filter {
            // What a controller left that was killed between two steps, and on devices that were renamed since.
            classifier::sweep(&dir).map_err(|error| LoadError::io("look for TC filters", error))?;
        }
        namespace::remember(&dir)?;
        redirect_errors::watch(&mut programs, &dir);
        socket_lookup::keep(&mut programs, &dir);
        Ok(Arc::new(Self {
            dir,
            hook: options.hook,
            way,
            sizes: Mutex::new(sizes),
            flows: (least, most),
            refused: options.refused,
            programs: Mutex::new(programs),
            xdp_refused: OnceLock::new(),
        }))
    }

    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// The sizes that the tables really have.
    pub fn sizes(&self) -> Sizes {
        *lock(&self.sizes)
    }

    /// The smallest and the largest size that the flow table may have.
    pub fn flows(&self) -> (u32, u32) {
        self.flows
    }

    /// Gives the flow table another size while traffic goes on; `false` if it stays as it was. Nobody else may have the flow table
    /// open, or attach programs, meanwhile.
    ///
    /// # Errors
    /// What came when there was no way back. Then the plane is to be opened anew, which goes on from there.
    pub fn resize_flows(&self, flows: u32, epoch: &Mutex<Epoch>) -> Result<bool, LoadError> {
        let mut programs = self.programs();
        let resized = resize::resize_flows(&self.dir, self.sizes(), flows, self.refused, epoch)?;
        let Some(new) = resized else { return Ok(false) };
        *programs = new;
        lock(&self.sizes).flows = flows;
        Ok(true)
    }

    pub fn pins(&self) -> &Path {
        self.dir.path()
    }

    /// Where the settings of this network namespace are kept as they were before.
    pub fn kept_settings(&self) -> Result<PathBuf, LoadError> {
        kept_settings(self.dir.marks().root())
    }

    /// Services, sources, rings and backends.
    pub fn tables(&self) -> Result<Tables, LoadError> {
        Tables::open(&self.dir)
    }

    /// The flow table, for the sweeper.
    pub fn flow_table(&self) -> Result<FlowTable, LoadError> {
        FlowTable::open(&self.dir)
    }

    /// The flow table, for readers.
    pub fn flow_reader(&self) -> Result<FlowReader, LoadError> {
        FlowReader::open(&self.dir)
    }

    /// The router's devices as the programs know them.
    pub fn interfaces(&self) -> Result<Interfaces, LoadError> {
        Interfaces::open(&self.dir)
    }

    /// Counters of packets that were not simply forwarded.
    pub fn reasons(&self) -> Result<Reasons, LoadError> {
        Reasons::open(&self.dir)
    }

    /// The epoch under which flows remember their next hop.
    pub fn epoch(&self) -> Result<Epoch, LoadError> {
        Epoch::open(&self.dir)
    }

    /// The router's own addresses as the programs know them.
    pub fn addresses(&self) -> Result<Addresses, LoadError> {
        Addresses::open(&self.dir)
    }

    /// Low 32 bits of the kernel's jiffies: the time of the flow table.
    pub fn jiffies(&self) -> Result<u32, LoadError> {
        self.programs().jiffies()
    }

    /// From now on these programs are taken for refused, as those of [`Options::refused`] from the start: for tests of what becomes
    /// of who needs them.
    pub fn refuse(&self, names: &'static [&'static str]) {
        self.programs().refuse(names);
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        lock(&self.programs)
    }
}

/// A panic while the lock was held leaves no half state: what is behind one here changes in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_read_as_they_are_written() {
        for hook in [Hook::Auto, Hook::Xdp, Hook::XdpGeneric, Hook::Tc] {
            assert_eq!(hook.to_string().parse(), Ok(hook));
        }
        assert!("XDP".parse::<Hook>().expect_err("refused").contains("xdp-generic"));
    }

    #[test]
    fn sizes_that_no_table_can_have_are_refused_by_name() {
        Sizes::default().check().expect("the defaults are fine");
        for (sizes, name) in [
            (Sizes { flows: 1000, ..Sizes::default() }, "flows"),
            (Sizes { flows: 64, ..Sizes::default() }, "flows"),
            (Sizes { services: 0, ..Sizes::default() }, "services"),
            (Sizes { backends: u32::MAX, ..Sizes::default() }, "backends"),
            (Sizes { ring_elements: 0, ..Sizes::default() }, "ring_elements"),
        ] {
            assert!(sizes.check().expect_err("refused").to_string().contains(name));
        }
    }
}
