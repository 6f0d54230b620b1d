//! Names of what labs create on the machine, and removal of what a killed lab left: namespaces, pins, directories.

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

/// Mount point of the machine's BPF file system.
pub(super) const BPFFS: &str = "/sys/fs/bpf";
/// Directory in which iproute2 keeps namespaces.
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

/// Removes what labs of ended processes left; runs once a process.
pub(super) fn sweep() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| remove(|process| !Path::new("/proc").join(process.to_string()).exists()));
}

/// Removes what this process's labs have created, for an exit without drops. The labs' programs end with the process.
pub fn remove_own() {
    let own = std::process::id();
    remove(|process| process == own);
}

/// Ignores errors: another sweep may remove the same, and the next sweep tries again.
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

/// The id of the process that created a thing of this name; `None` if it is not a lab's.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}
