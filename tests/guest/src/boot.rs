//! The first things to set up: file systems and drivers.

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
};
use std::{
    fs::{self, File},
    process::Command,
};
use vipgate_guest::MODULES;

/// File system types and mount points, in the order to mount them.
const MOUNTS: [(&str, &str); 10] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tracefs", "/sys/kernel/tracing"),
];

/// Mounts, loads modules, names the machine. Returns the errors that still leave a machine which can report them.
pub(crate) fn boot() -> Result<Vec<String>> {
    mount_all(&MOUNTS)?;
    let mut complaints = load_modules()?;
    // The program that the kernel starts to load a module must be the one that the image has.
    fs::write("/proc/sys/kernel/modprobe", "/sbin/modprobe").context("cannot set the path of modprobe")?;
    fs::write("/proc/sys/kernel/hostname", "router").context("cannot name the machine")?;
    match Command::new("/sbin/ip").args(["link", "set", "lo", "up"]).status() {
        Ok(status) if status.success() => {}
        other => complaints.push(format!("lo does not come up: {other:?}")),
    }
    Ok(complaints)
}

pub(crate) fn mount_all(mounts: &[(&str, &str)]) -> Result<()> {
    for (kind, place) in mounts {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        mount(Some(*kind), *place, Some(*kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} at {place}"))?;
    }
    Ok(())
}

/// Loads the modules that the image lists; returns an error message for each that did not load.
pub(crate) fn load_modules() -> Result<Vec<String>> {
    let modules = fs::read_to_string(MODULES).with_context(|| format!("cannot read {MODULES}"))?;
    Ok(modules.lines().filter_map(|path| load(path).err()).map(|error| format!("{error:#}")).collect())
}

fn load(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot load {path}")),
    }
}
