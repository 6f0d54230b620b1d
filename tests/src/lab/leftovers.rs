//! Names of what labs make on the machine, and removing what a killed one left: namespaces, pins, directories.

use super::netns::run;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

/// Where the machine's BPF file system is.
pub(super) const BPFFS: &str = "/sys/fs/bpf";
/// Where iproute2 keeps namespaces.
pub(super) const NAMESPACES: &str = "/run/netns";

const PREFIX: &str = "vglab";

/// A number that no other lab of this process has.
pub(crate) fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// `vglab-<process>-<number>-`: the start of every name in a lab.
pub(crate) fn prefix(number: u32) -> String {
    format!("{PREFIX}-{}-{number}-", std::process::id())
}

/// A name that no other namespace has.
#[must_use]
pub fn unique(name: &str) -> String {
    format!("{}{name}", prefix(next_number()))
}

/// Removes what the labs of processes that are no more left; once a process.
pub(super) fn sweep() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| remove(|process| !Path::new("/proc").join(process.to_string()).exists()));
}

/// Removes what this process's labs have made, for an end without drops. Its programs end with the process.
pub fn remove_own() {
    let own = std::process::id();
    remove(|process| process == own);
}

/// What cannot be removed is another sweep's, or is swept by the next one.
fn remove(of: impl Fn(u32) -> bool) {
    let found = |directory: PathBuf| {
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| owner(name).is_some_and(&of)).collect::<Vec<_>>()
    };
    for directory in [PathBuf::from(BPFFS), env::temp_dir()] {
        for name in found(directory.clone()) {
            let _ = fs::remove_dir_all(directory.join(name));
        }
    }
    for name in found(PathBuf::from(NAMESPACES)) {
        let _ = run(Command::new("ip").args(["netns", "del", &name]));
    }
}

/// The process that made a thing of this name; `None`: no lab made it.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}
