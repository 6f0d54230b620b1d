//! Which programs are ours among all that the kernel has: those that are pinned under our directory, and those that use the
//! tables which are pinned there. Two routers with directories of their own may be on one machine, and the names of their
//! programs are the same.
//!
//! To look at the tables of a program that is pinned nowhere takes CAP_SYS_ADMIN, which a controller need not have: so what it
//! puts somewhere is pinned before (`bpffs`). `vipgate detach` by an administrator finds what older versions left, too.

use std::{collections::BTreeSet, fs, io, os::fd::AsRawFd, path::Path};

use super::{
    link,
    syscall::{bpf, bpf_fd},
};

/// `BPF_PROG_GET_FD_BY_ID` and `BPF_OBJ_GET_INFO_BY_FD` of linux/bpf.h.
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `MAX_USED_MAPS` of the kernel: no program has more.
const MAPS: usize = 64;

/// Arguments of the first: the start of `union bpf_attr`.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The same of the second.
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    before: [u32; 13],
    nr_map_ids: u32,
    map_ids: u64,
}

/// The kernel's numbers of what is pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OwnPrograms {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl OwnPrograms {
    /// What is pinned under a bpffs root, of all versions of the tables.
    pub(super) fn read(root: &Path) -> io::Result<Self> {
        let mut owned = Self::default();
        for version in entries(root)?.into_iter().filter(|name| name.starts_with("abi-")) {
            let dir = root.join(version);
            for name in entries(&dir)?.into_iter().filter(|name| name != "links") {
                owned.note(&dir.join(name))?;
            }
            let links = dir.join("links");
            for name in entries(&links)? {
                owned.note(&links.join(name))?;
            }
        }
        Ok(owned)
    }

    fn note(&mut self, pin: &Path) -> io::Result<()> {
        // Whatever else somebody made there, such as a directory, the kernel would not let be opened.
        if !fs::symlink_metadata(pin).is_ok_and(|found| found.is_file()) {
            return Ok(());
        }
        if let Some(description) = link::describe(pin)? {
            self.programs.extend(number(&description, "prog_id:"));
            self.maps.extend(number(&description, "map_id:"));
        }
        Ok(())
    }

    pub(super) fn has(&self, program: u32) -> bool {
        // One of which nothing is known is not ours.
        self.programs.contains(&program)
            || maps_of(program).is_ok_and(|maps| maps.iter().any(|map| self.maps.contains(map)))
    }
}

fn number(description: &str, field: &str) -> Option<u32> {
    link::field(description, field)?.parse().ok()
}

/// Names in a directory; none when it is not there, or is none.
fn entries(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
}

/// The numbers of the maps that a program uses.
fn maps_of(program: u32) -> io::Result<Vec<u32>> {
    let mut attr = ById { id: program, next_id: 0, open_flags: 0 };
    // SAFETY: the kernel reads `attr` of the size given, alive during the call.
    let program = unsafe { bpf_fd(PROG_GET_FD_BY_ID, &mut attr) }?;
    let mut maps = [0_u32; MAPS];
    let mut info = Info { nr_map_ids: MAPS as u32, map_ids: maps.as_mut_ptr() as u64, ..Info::default() };
    let mut attr = InfoByFd {
        bpf_fd: program.as_raw_fd().cast_unsigned(),
        info_len: size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: the kernel reads `attr`, and writes `info` and `maps` of the sizes given, all alive during the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(maps.into_iter().take(info.nr_map_ids as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_number_is_read_from_the_kernels_description() {
        assert_eq!(number("pos:\t0\nmap_type:\t2\nmap_id:\t17\n", "map_id:"), Some(17));
        assert_eq!(number("prog_type:\t3\nprog_id:\t9\n", "prog_id:"), Some(9));
        assert_eq!(number("prog_type:\t3\nprog_id:\t9\n", "map_id:"), None);
    }

    #[test]
    fn what_is_not_pinned_and_uses_nothing_that_is_is_not_ours() {
        assert_eq!(OwnPrograms::read(Path::new("/nowhere")).expect("nothing is pinned there"), OwnPrograms::default());
        assert!(!OwnPrograms { programs: BTreeSet::from([7]), maps: BTreeSet::new() }.has(u32::MAX));
        assert!(OwnPrograms { programs: BTreeSet::from([7]), maps: BTreeSet::new() }.has(7));
    }
}
