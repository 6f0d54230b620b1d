//! Which network namespace the tables are used in: its inode is remembered beside them, as what a symbolic link names, which
//! needs no file system but the pins' own. So are the namespace's settings of before.
//!
//! Links go with their pins from anywhere. Filters, queues and addresses do not: from another namespace they cannot be seen.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use super::{
    bpffs::{PinDir, names, remove_tree},
    error::LoadError,
};

const LINK: &str = "netns";
/// What the kernel's settings were before vipgate changed them is in here, a directory for each namespace.
const SETTINGS: &str = "settings";
/// Where `ip netns` keeps namespaces.
const NAMED: &str = "/run/netns";

/// Remembers the namespace of the calling thread.
pub(super) fn remember(dir: &PinDir) -> Result<(), LoadError> {
    let link = dir.path().join(LINK);
    let remembered = own().and_then(|(_, inode)| match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(inode.to_string(), &link),
    });
    remembered.map_err(|error| LoadError::io(format!("remember the network namespace in {}", link.display()), error))
}

/// Refuses where the tables are those of another namespace than the calling thread's. Older versions remembered none.
///
/// # Errors
/// [`LoadError::Elsewhere`], with the way there if it is known.
pub fn check_namespace(bpffs: &Path) -> Result<(), LoadError> {
    let (device, here) = own().map_err(|error| LoadError::io("look at the network namespace", error))?;
    for version in names(bpffs)?.into_iter().filter(|name| name.starts_with("abi-")) {
        let remembered = fs::read_link(bpffs.join(version).join(LINK)).ok();
        let remembered: Option<u64> = remembered.and_then(|inode| inode.to_str()?.parse().ok());
        if let Some(inode) = remembered.filter(|inode| *inode != here) {
            let remedy = match find((device, inode)) {
                Some(path) => format!("use `nsenter --net={} vipgate detach`", path.display()),
                None => {
                    "no process is in that one: if it is gone, `vipgate detach --force` removes the rest".to_owned()
                }
            };
            return Err(LoadError::Elsewhere { path: bpffs.to_owned(), inode, remedy });
        }
    }
    Ok(())
}

/// Where the settings of the calling thread's namespace are kept as they were before (`net::sysctl`): beside the pins, which live
/// as long as they do. Other versions of vipgate find them there.
pub fn kept_settings(bpffs: &Path) -> Result<PathBuf, LoadError> {
    let (_, inode) = own().map_err(|error| LoadError::io("look at the network namespace", error))?;
    Ok(bpffs.join(SETTINGS).join(inode.to_string()))
}

/// Forgets the settings of all namespaces. What cannot be removed is logged.
pub fn forget_settings(bpffs: &Path) -> Vec<String> {
    let mut left = Vec::new();
    remove_tree(&bpffs.join(SETTINGS), &mut left);
    left
}

fn own() -> io::Result<(u64, u64)> {
    fs::metadata("/proc/thread-self/ns/net").map(|found| (found.dev(), found.ino()))
}

/// A path that leads into a namespace: its name, or a process in it.
fn find(wanted: (u64, u64)) -> Option<PathBuf> {
    let list = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten();
    let processes = list("/proc").map(|process| process.path().join("ns/net"));
    let mut paths = list(NAMED).map(|name| name.path()).chain(processes);
    paths.find(|path| fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_a_namespace_that_is_gone_are_refused_with_the_way_on() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = PinDir::new(root.path());
        dir.make().expect("a directory");
        check_namespace(root.path()).expect("none is remembered");
        for _ in 0..2 {
            remember(&dir).expect("remembers");
            check_namespace(root.path()).expect("it is this one");
        }
        let link = dir.path().join(LINK);
        fs::remove_file(&link).expect("removed");
        symlink("1", &link).expect("a link");
        let refused = check_namespace(root.path()).expect_err("another").to_string();
        assert!(refused.contains("net:[1]") && refused.contains("--force"), "{refused}");
        assert!(find(own().expect("it is known")).is_some(), "this process is in it");
    }
}
