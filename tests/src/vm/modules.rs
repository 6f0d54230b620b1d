//! Which modules a guest gets: those that are named here and all that they need, out of a kernel's own lists.
//!
//! Touches the cache, by reading, and runs the programs that take modules out of their compression.

use super::archive::Unpacked;
use crate::lab::Result;
use anyhow::{Context as _, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

/// Loaded by the guest's init, since nothing there plugs and plays: the machine's own devices.
const AT_BOOT: [&str; 7] = ["virtio_pci", "virtio_console", "virtio_rng", "virtio_net", "e1000", "e1000e", "igb"];

/// Loaded by the init that only looks for a disk: the system there loads all else by itself.
const FOR_DISK: [&str; 5] = ["virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_intel", "ext4"];

/// Without these a virtual machine has no devices.
const INDISPENSABLE: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_rng", "virtio_blk"];

/// Loaded when they are asked for, by name or by the kernel: what routers have and what tests look at.
const ON_DEMAND: [&str; 43] = [
    // Devices.
    "veth",
    "ifb",
    "dummy",
    "tun",
    "bridge",
    "bonding",
    "macvlan",
    "8021q",
    "vxlan",
    "team",
    "net_failover",
    // Queueing, classifiers, actions.
    "sch_htb",
    "sch_ingress",
    "sch_tbf",
    "sch_fq",
    "sch_fq_codel",
    "sch_netem",
    "sch_prio",
    "sch_mqprio",
    "cls_bpf",
    "cls_matchall",
    "cls_u32",
    "cls_flower",
    "act_bpf",
    "act_mirred",
    "act_gact",
    "act_police",
    // What a router has beside vipgate.
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "ip_tables",
    "af_packet",
    "tcp_bbr",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_mh",
    "esp4",
    // What checksums of modules are computed by.
    "crc32c_generic",
    "crc32c_intel",
];

/// Modules for an image.
#[derive(Debug)]
pub struct Modules {
    /// Path below `lib/modules/<release>` without the compression's ending, and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Paths of those that init loads, in order.
    pub at_boot: Vec<String>,
}

impl Modules {
    pub fn collect(kernel: &Unpacked) -> Result<Self> {
        let index = Index::read(&kernel.modules)?;
        let mut at_boot = Vec::new();
        for name in AT_BOOT {
            index.add(name, &mut at_boot)?;
        }
        let mut all = at_boot.clone();
        for name in ON_DEMAND {
            index.add(name, &mut all)?;
        }
        Self::read(kernel, &all, &at_boot)
    }

    /// Only those that lead to a disk.
    pub fn for_disk(kernel: &Unpacked) -> Result<Self> {
        let index = Index::read(&kernel.modules)?;
        let mut all = Vec::new();
        for name in FOR_DISK {
            index.add(name, &mut all)?;
        }
        Self::read(kernel, &all, &all)
    }

    fn read(kernel: &Unpacked, all: &[String], at_boot: &[String]) -> Result<Self> {
        let files = all.iter().map(|path| Ok((plain(path).to_owned(), contents(&kernel.modules.join(path))?)));
        Ok(Self {
            files: files.collect::<Result<_>>()?,
            at_boot: at_boot.iter().map(|path| plain(path).to_owned()).collect(),
        })
    }
}

/// What a kernel's `modules.dep` and `modules.builtin` say.
struct Index {
    /// By the module's name: its path, and the paths of all that it needs, the first to load last.
    modules: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Index {
    fn read(directory: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut modules = BTreeMap::new();
        for line in text("modules.dep")?.lines() {
            let (path, needs) = line.split_once(':').with_context(|| format!("no dependencies: {line}"))?;
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            modules.insert(module_name(path), (path.to_owned(), needs));
        }
        ensure!(!modules.is_empty(), "{} knows no modules: depmod failed", directory.display());
        let builtin = text("modules.builtin")?.lines().map(module_name).collect();
        Ok(Self { modules, builtin })
    }

    /// Appends the module and what it needs to `order`, unless they are there or built in. What a kernel does not have
    /// at all its tests have to do without, as its users do.
    fn add(&self, name: &str, order: &mut Vec<String>) -> Result<()> {
        let Some((path, needs)) = self.modules.get(name) else {
            if INDISPENSABLE.contains(&name) && !self.builtin.contains(name) {
                bail!("this kernel has no {name}, without which it has no devices in a virtual machine");
            }
            return Ok(());
        };
        for path in needs.iter().rev().chain([path]) {
            if !order.contains(path) {
                order.push(path.clone());
            }
        }
        Ok(())
    }
}

/// `kernel/net/sched/sch-htb.ko.xz` is `sch_htb`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// The path without the ending of its compression.
fn plain(path: &str) -> &str {
    path.strip_suffix(".xz").or_else(|| path.strip_suffix(".zst")).unwrap_or(path)
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(program).args(["--decompress", "--stdout"]).arg(path).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{program} cannot decompress {}: {}", path.display(), output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Result<Index> {
        let directory = tempfile::tempdir()?;
        let dependencies = "kernel/drivers/net/virtio_net.ko.xz: kernel/net/core/net_failover.ko.xz kernel/net/core/failover.ko.xz\n\
            kernel/net/core/net_failover.ko.xz: kernel/net/core/failover.ko.xz\n\
            kernel/net/core/failover.ko.xz:\n";
        fs::write(directory.path().join("modules.dep"), dependencies)?;
        fs::write(directory.path().join("modules.builtin"), "kernel/drivers/virtio/virtio-pci.ko\n")?;
        Index::read(directory.path())
    }

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() -> Result<()> {
        let (index, mut order) = (index()?, Vec::new());
        index.add("virtio_net", &mut order)?;
        index.add("net_failover", &mut order)?;
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
        Ok(())
    }

    #[test]
    fn what_is_built_in_is_passed_over_and_what_a_machine_cannot_miss_is_an_error() -> Result<()> {
        let (index, mut order) = (index()?, Vec::new());
        index.add("virtio_pci", &mut order)?;
        index.add("tcp_bbr", &mut order)?;
        assert!(order.is_empty());
        assert!(index.add("virtio_console", &mut order).is_err());
        Ok(())
    }
}
