//! The pin directory: where maps and links live on while no controller runs.
//!
//! ```text
//! <bpffs>/abi-<N>/<MAP>                 the maps
//! <bpffs>/abi-<N>/links/<hook>-<device> the links that hold the programs on their devices; the hook of the egress program
//!                                       is `egress`, of the TC program behind the XDP one `behind`, of the one at the
//!                                       queues' end `queue`. A TC program that is held by a filter (`filter`) is pinned
//!                                       itself, in the link's place
//! <bpffs>/abi-<N>/put-<hook>-<device>   such a program, while its filter is being put
//! <bpffs>/abi-<N>/netns                 a symbolic link that names the network namespace by its inode (`namespace`)
//! <bpffs>/clsact/<index>                an empty directory: that device's clsact was made for such filters
//! <bpffs>/settings/<inode>/<setting>    a symbolic link that names what a setting of that network namespace was, and what
//!                                       vipgate made it (`net::sysctl`)
//! ```
//! While tables get another size (`resize`) there are two such directories, and which ones shows how far it is:
//! ```text
//! abi-<N>, abi-<N>-new        the new tables are being made, nothing is in them yet
//! abi-<N>, abi-<N>-carried    connections are in both
//! abi-<N>-old, abi-<N>-carried, or abi-<N>, abi-<N>-old
//!                             all is in the new tables
//! ```
//! The tables of the version before are taken over with all that is in them (`takeover`):
//! ```text
//! abi-<N-1>, abi-<N>-new      ours are being made, nothing of the old version's is touched yet
//! abi-<N-1>, abi-<N>-taken    connections are in both, devices are coming to ours
//! abi-<N-1>, abi-<N>          all is ours
//! ```
//! Tables of any other version (`abi-<M>`) cannot be read. Their links are taken over, so that the new programs replace the old
//! ones in one step; the services come from the store again, existing connections end. An older version does the same to ours: for
//! that our directory holds nothing but pins, and one directory with links, whose names it knows.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    SchedClassifier,
    links::{FdLink, PinnedLink},
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use vipgate_abi::ABI_VERSION;

use super::{
    Hook,
    classifier::Classifier,
    error::{LoadError, causes},
    kernel,
    link::{self, Held},
};

/// How long a reader waits for a migration of flows to end: longer than one takes, unless its controller was killed.
const READERS_PATIENCE: Duration = Duration::from_secs(5);

/// A directory's part in a change of the tables' sizes, or in taking over from another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    New,
    Carried,
    Old,
    Taken,
}

/// The directory of this ABI's pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    path: PathBuf,
}

impl PinDir {
    /// Names the directory under a bpffs root; makes nothing.
    pub fn new(bpffs: &Path) -> Self {
        Self { path: bpffs.join(format!("abi-{ABI_VERSION}")) }
    }

    /// HealthChecks that the directory is, or comes to lie, on a BPF file system.
    pub fn check(bpffs: &Path) -> Result<Self, LoadError> {
        let existing = bpffs.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let kind =
            statfs(existing).map_err(|error| LoadError::io(format!("look at {}", existing.display()), error.into()))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            if !kernel::knows_bpffs() {
                let why = "it has no BPF file system (CONFIG_BPF_SYSCALL)".to_owned();
                return Err(LoadError::Unsupported { release: kernel::release(), why });
            }
            return Err(LoadError::NotBpffs { path: bpffs.to_owned() });
        }
        Ok(Self::new(bpffs))
    }

    /// Makes the directory for links, and so that which it is in.
    pub fn create(&self) -> Result<(), LoadError> {
        let links = self.links();
        fs::create_dir_all(&links).map_err(|error| LoadError::io(format!("make {}", links.display()), error))
    }

    /// This directory in a stage of a change of the tables' sizes.
    pub(super) fn at(&self, stage: Stage) -> Self {
        let mut name = self.path.clone().into_os_string();
        name.push(match stage {
            Stage::New => "-new",
            Stage::Carried => "-carried",
            Stage::Old => "-old",
            Stage::Taken => "-taken",
        });
        Self { path: name.into() }
    }

    /// The same root's directory of another version.
    pub(super) fn of_version(&self, version: u32) -> Self {
        Self { path: self.path.with_file_name(format!("abi-{version}")) }
    }

    /// Whether the directory is there, for readers; an error if they lack the permission to look. While flows are migrated to another
    /// table, each of the two holds a part of them: waits for the end of that.
    pub(super) fn is_there(&self) -> Result<bool, LoadError> {
        let carried = self.at(Stage::Carried);
        let patience = Instant::now() + READERS_PATIENCE;
        while carried.exists() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(10));
        }
        let looked = self.path.try_exists();
        looked.map_err(|error| LoadError::io(format!("look at {}", self.path.display()), error))
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Makes the directory itself.
    pub(super) fn make(&self) -> Result<(), LoadError> {
        fs::create_dir_all(&self.path).map_err(|error| LoadError::io(format!("make {}", self.path.display()), error))
    }

    /// Gives the directory the name of another, which is not there.
    pub(super) fn rename(&self, to: &Self) -> Result<(), LoadError> {
        let failed = |error| LoadError::io(format!("rename {} to {}", self.path.display(), to.path.display()), error);
        fs::rename(&self.path, &to.path).map_err(failed)
    }

    /// The names of all pinned links.
    pub(super) fn link_names(&self) -> Result<Vec<String>, LoadError> {
        names(&self.links())
    }

    /// Pins the links of another directory here as well.
    pub(super) fn share_links(&self, of: &Self) -> Result<(), LoadError> {
        let links = self.links();
        fs::create_dir_all(&links).map_err(|error| LoadError::io(format!("make {}", links.display()), error))?;
        let held = names(&links)?;
        for name in of.link_names()?.into_iter().filter(|name| !held.contains(name)) {
            let failed = |reason: String| LoadError::Link { path: links.join(&name), reason };
            let link = PinnedLink::from_pin(of.links().join(&name)).map_err(|error| failed(causes(&error)))?;
            FdLink::from(link).pin(links.join(&name)).map_err(|error| failed(causes(&error)))?;
        }
        Ok(())
    }

    /// The directories of other ABI versions.
    pub(super) fn others(&self) -> Result<Vec<Self>, LoadError> {
        let (Some(root), Some(own)) = (self.path.parent(), self.path.file_name().and_then(OsStr::to_str)) else {
            return Ok(Vec::new());
        };
        let is_own = |name: &str| name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        let mut others = names(root)?;
        others.retain(|name| name.starts_with("abi-") && !is_own(name));
        Ok(others.into_iter().map(|name| Self { path: root.join(name) }).collect())
    }

    /// Takes the links of another version's directory over, and removes it with what else is pinned there.
    pub(super) fn succeed(&self, other: &Self) -> Result<(), LoadError> {
        let held = self.link_names()?;
        for name in other.link_names()?.into_iter().filter(|name| !held.contains(name)) {
            let (from, to) = (other.links().join(&name), self.links().join(&name));
            fs::rename(&from, &to).map_err(|error| LoadError::io(format!("move {}", from.display()), error))?;
        }
        other.remove()
    }

    /// Removes the directory and the pins in it. What is pinned elsewhere, or runs, stays.
    pub(super) fn remove(&self) -> Result<(), LoadError> {
        let links = self.links();
        for name in names(&links)? {
            remove_file(&links.join(name))?;
        }
        remove_dir(&links)?;
        for name in names(&self.path)? {
            remove_file(&self.path.join(name))?;
        }
        remove_dir(&self.path)
    }

    /// Removes the directory, and the one that it is in with it, unless a device has its program by it.
    pub(super) fn remove_unused(&self) -> Result<(), LoadError> {
        if !self.link_names()?.is_empty() {
            return Ok(());
        }
        self.remove()?;
        // Others may be in there, such as an operator's.
        let _ = self.path.parent().map(fs::remove_dir);
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.path.join("links")
    }

    pub fn link(&self, hook: Hook, device: &str) -> PathBuf {
        self.links().join(link_name(hook, device))
    }

    /// Where what holds a device's TC program is pinned.
    pub(super) fn classifier(&self, which: Classifier, device: &str) -> PathBuf {
        self.links().join(format!("{}-{}", which.pin(), escaped(device)))
    }

    /// Pins a program that a filter is about to hold: what is pinned is ours (`own_programs`), so that a controller that is
    /// killed before [`Self::stand_in`] leaves no filter without an owner.
    pub(super) fn announce(
        &self,
        program: &mut SchedClassifier,
        which: Classifier,
        device: &str,
    ) -> Result<(), String> {
        // One that a controller left which was killed just here.
        self.unannounce(which, device).map_err(|error| error.to_string())?;
        program.pin(self.announced(which, device)).map_err(|error| causes(&error))
    }

    /// None there is no error.
    pub(super) fn unannounce(&self, which: Classifier, device: &str) -> io::Result<()> {
        match fs::remove_file(self.announced(which, device)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn announced(&self, which: Classifier, device: &str) -> PathBuf {
        self.path.join(format!("put-{}-{}", which.pin(), escaped(device)))
    }

    /// Puts what was announced in the place of a link, in one step: it stands for the filter that holds it.
    pub(super) fn stand_in(&self, which: Classifier, device: &str) -> io::Result<()> {
        fs::rename(self.announced(which, device), self.classifier(which, device))
    }

    /// The filters that programs stand for: of those whose device is there, its index and the program.
    pub(super) fn stand_ins(&self) -> io::Result<BTreeSet<(u32, Classifier)>> {
        let names = self.link_names().map_err(io::Error::other)?;
        let mut found = BTreeSet::new();
        for (which, device, name) in names.iter().filter_map(|name| {
            let (hook, device) = split(name)?;
            Some((Classifier::of_pin(hook)?, device, name))
        }) {
            if link::held(&self.links().join(name))? == Held::Program
                && let Ok(ifindex) = nix::net::if_::if_nametoindex(device.as_str())
            {
                found.insert((ifindex, which));
            }
        }
        Ok(found)
    }

    /// The devices whose clsact was made for filters.
    pub(super) fn marks(&self) -> Marks {
        Marks::new(self.path.parent().unwrap_or(Path::new("/")))
    }

    /// Where that of the program which counts redirects that failed is. It is no device's.
    pub fn redirects_link(&self) -> PathBuf {
        self.links().join("redirects")
    }

    /// Where that of the program which keeps the router's sockets from VIPs is. It is no device's either.
    pub fn sockets_link(&self) -> PathBuf {
        self.links().join("sockets")
    }

    /// The hook and device of every pinned ingress link.
    pub fn pinned_links(&self) -> Result<Vec<(Hook, String)>, LoadError> {
        Ok(names(&self.links())?.iter().filter_map(|name| parse_link_name(name)).collect())
    }
}

/// The devices whose clsact was made for our filters, by their index; one list for all ABI versions.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    path: PathBuf,
}

impl Marks {
    pub(super) fn new(bpffs: &Path) -> Self {
        Self { path: bpffs.join("clsact") }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The bpffs root that they are in.
    pub(super) fn root(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    pub(super) fn add(&self, ifindex: u32) -> io::Result<()> {
        fs::create_dir_all(self.path.join(ifindex.to_string()))
    }

    /// One that is not there is no error.
    pub(super) fn remove(&self, ifindex: u32) -> io::Result<()> {
        let mut left = Vec::new();
        remove_tree(&self.path.join(ifindex.to_string()), &mut left);
        if left.is_empty() { Ok(()) } else { Err(io::Error::other(left.join("; "))) }
    }

    pub(super) fn list(&self) -> io::Result<BTreeSet<u32>> {
        let names = names(&self.path).map_err(io::Error::other)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

/// Removes what is at `path`, whatever it is, with all that is under it. Adds what cannot be removed to `left`, and removes
/// the rest all the same. Follows no symbolic link.
pub(super) fn remove_tree(path: &Path, left: &mut Vec<String>) {
    let before = left.len();
    let removed = fs::symlink_metadata(path).and_then(|found| match found.is_dir() {
        true => {
            let entries: Vec<_> = fs::read_dir(path)?.flatten().collect();
            entries.iter().for_each(|entry| remove_tree(&entry.path(), left));
            fs::remove_dir(path)
        }
        false => fs::remove_file(path),
    });
    // A directory stays with its content, which is in `left` already.
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
        && left.len() == before
    {
        left.push(format!("{}: {error}", path.display()));
    }
}

fn remove_file(path: &Path) -> Result<(), LoadError> {
    fs::remove_file(path).map_err(|error| LoadError::io(format!("remove {}", path.display()), error))
}

fn remove_dir(path: &Path) -> Result<(), LoadError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LoadError::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Names in a directory; none when it is not there.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, LoadError> {
    let failed = |error| LoadError::io(format!("list {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// How a hook is written in a link's name: without a dash, so that the first dash ends it.
const LINK_HOOKS: [(Hook, &str); 3] = [(Hook::Xdp, "xdp"), (Hook::XdpGeneric, "xdpgeneric"), (Hook::Tc, "tc")];

fn link_name(hook: Hook, device: &str) -> String {
    let hook = LINK_HOOKS.iter().find(|(known, _)| *known == hook).map_or("auto", |(_, name)| name);
    format!("{hook}-{}", escaped(device))
}

/// bpffs refuses names with dots, which VLAN devices have: they are written `%2e`, and so `%` as `%25`.
fn escaped(device: &str) -> String {
    device.replace('%', "%25").replace('.', "%2e")
}

/// A link's name as what holds it is called there, and the device.
pub(super) fn split(name: &str) -> Option<(&str, String)> {
    let (hook, device) = name.split_once('-')?;
    Some((hook, device.replace("%2e", ".").replace("%25", "%")))
}

pub(super) fn parse_link_name(name: &str) -> Option<(Hook, String)> {
    let (hook, device) = split(name)?;
    let (hook, _) = LINK_HOOKS.iter().find(|(_, known)| *known == hook)?;
    Some((*hook, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_keep_hook_and_device_apart_and_have_no_dots() {
        for hook in [Hook::Xdp, Hook::XdpGeneric, Hook::Tc] {
            for device in ["eth0", "eth0.100", "generic-eth0", "a%2eb", "100%"] {
                let name = link_name(hook, device);
                assert!(!name.contains('.'), "{name}");
                assert_eq!(parse_link_name(&name), Some((hook, device.to_owned())));
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_on_a_bpffs_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = PinDir::check(&dir.path().join("vipgate")).expect_err("refused");
        assert!(matches!(error, LoadError::NotBpffs { .. }), "{error}");
        assert!(!dir.path().join("vipgate").exists());
    }

    #[test]
    fn what_cannot_be_removed_is_told() {
        let mut left = Vec::new();
        remove_tree(Path::new("/proc/version"), &mut left);
        assert!(left.len() == 1 && left[0].starts_with("/proc/version: "), "{left:?}");
    }
}
