//! Takes everything out of the kernel again: programs, tables, and whatever else is in the directories that are vipgate's.
//!
//! May remove what is under the bpffs root in directories of its own names, and filters of its own (`filter`). Somebody may have
//! put something in there: that goes too, and what stays for another reason keeps nothing else.

use std::path::Path;

use vipgate_abi::maps;

use super::{
    bpffs::{Marks, names, parse_link_name, remove_tree},
    error::LoadError,
    filter::Filters,
    link,
};

/// What [`detach`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// The devices that lost their programs.
    pub devices: Vec<String>,
    pub maps: usize,
    /// What could not be removed, and why.
    pub left: Vec<String>,
}

/// Takes the programs off all devices and removes every map: all flows end. Pins of other ABI versions under the same
/// root go as well. Nothing there is no error. VIP addresses are not the loader's: see `Netlink::remove_all_vips`.
pub fn detach(bpffs: &Path) -> Result<Detached, LoadError> {
    let mut detached = Detached::default();
    let marks = Marks::new(bpffs);
    let versions: Vec<_> = names(bpffs)?.into_iter().filter(|name| name.starts_with("abi-")).collect();
    // Without the pins nobody would know whose the filters are: where they cannot be removed all stays.
    let swept = Filters::open(marks.clone()).and_then(|filters| filters.sweep(|_, _| false));
    let swept = swept.map_err(|error| LoadError::io("remove the TC filters", error))?;
    let swept = swept.into_iter().filter_map(|ifindex| nix::net::if_::if_indextoname(ifindex).ok());
    detached.devices.extend(swept.map(|name| name.to_string_lossy().into_owned()));
    remove_tree(marks.path(), &mut detached.left);
    for version in versions {
        detached.remove(&bpffs.join(version));
    }
    detached.devices.sort();
    // In the middle of a change of sizes a link may be pinned twice, and a filter is where a program stands for it.
    detached.devices.dedup();
    Ok(detached)
}

impl Detached {
    /// Removes one version's directory.
    fn remove(&mut self, dir: &Path) {
        let links = dir.join("links");
        // Programs first: none runs on tables that are half gone. What is no directory of pins, or no pin, goes with the rest.
        for name in names(&links).unwrap_or_default() {
            if link::remove(&links.join(&name)).is_ok_and(|was_there| was_there) {
                self.devices.extend(parse_link_name(&name).map(|(_, device)| device));
            }
        }
        let tables = || maps::PINNED.iter().filter(|name| dir.join(name).exists()).count();
        let before = tables();
        remove_tree(dir, &mut self.left);
        self.maps += before.saturating_sub(tables());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn detaching_nothing_is_no_error() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(detach(&dir.path().join("none")).expect("works"), Detached::default());
    }

    #[test]
    fn what_somebody_put_among_the_pins_goes_with_them_and_what_is_beside_them_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |path: &str| root.path().join(path);
        for path in ["clsact/abc", "clsact/4294967295/x", "abi-8/sub/dir", "abi-8/links/sub", "abi-7/links", "others/x"]
        {
            fs::create_dir_all(at(path)).expect("a directory");
        }
        for path in ["abi-6", "clsact/4294967294"] {
            fs::write(at(path), "").expect("a file");
        }
        std::os::unix::fs::symlink(at("others"), at("abi-8/link")).expect("a link");
        let detached = detach(root.path()).expect("works");
        assert_eq!(detached.left, Vec::<String>::new());
        assert_eq!(names(root.path()).expect("a directory"), ["others"]);
        assert!(at("others/x").exists(), "a link was followed");
    }
}
