//! Chooses a guest's modules: those named here and their dependencies, from the kernel's own lists.
//!
//! Reads the cache, and runs the programs that decompress modules.

use super::archive::Unpacked;
use crate::lab::Result;
use anyhow::{Context as _, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

/// Loaded by the guest's init, since nothing there detects devices: the drivers of the machine's own devices.
const AT_BOOT: [&str; 7] = ["virtio_pci", "virtio_console", "virtio_rng", "virtio_net", "e1000", "e1000e", "igb"];

/// Loaded by an init that only mounts a disk: the system on the disk loads everything else.
const FOR_DISK: [&str; 5] = ["virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_intel", "ext4"];

/// Modules without which a virtual machine has no devices.
const INDISPENSABLE: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_rng", "virtio_blk"];

/// Loaded on demand, by name or by the kernel: what routers use and what tests need.
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
    // What routers run besides vipgate.
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
    // Checksum algorithms that other modules need.
    "crc32c_generic",
    "crc32c_intel",
];

/// Modules for an image.
#[derive(Debug)]
pub struct Modules {
    /// Paths below `lib/modules/<release>` without the suffix of their compression, and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Paths of the modules that init loads, in order.
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

    /// Only the modules for mounting a disk.
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

/// The content of a kernel's `modules.dep` and `modules.builtin`.
struct Index {
    /// By the module's name: its path, and the paths of its dependencies in the order to unload them.
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

    /// Appends the module's dependencies and the module to `order`, unless they are in it or built in. A module that this kernel
    /// does not have is skipped: tests must do without it, as users do.
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

/// The module's name: `kernel/net/sched/sch-htb.ko.xz` is `sch_htb`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// The path without the suffix of its compression.
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
    fn dependencies_come_before_a_module_and_once() -> Result<()> {
        let (index, mut order) = (index()?, Vec::new());
        index.add("virtio_net", &mut order)?;
        index.add("net_failover", &mut order)?;
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
        Ok(())
    }

    #[test]
    fn built_in_modules_are_skipped_and_a_missing_one_that_is_essential_is_an_error() -> Result<()> {
        let (index, mut order) = (index()?, Vec::new());
        index.add("virtio_pci", &mut order)?;
        index.add("tcp_bbr", &mut order)?;
        assert!(order.is_empty());
        assert!(index.add("virtio_console", &mut order).is_err());
        Ok(())
    }
}
