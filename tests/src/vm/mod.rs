//! Virtual machines that run distribution kernels, and the released binary in them.
//!
//! ```text
//!  client 1 ─┐                 QEMU: a Debian kernel          ┌─ backend 1
//!  client 2 ─┼─ public switch ── tap: pub0   priv0 :tap ── private switch ─┼─ backend 2
//!            ┘                 vipgate of the package         └─
//! ```
//! The hosts around the router are those of [`crate::lab`], and so are their names; the router is a machine. It boots
//! from memory: a kernel out of Debian's package, and a cpio archive made here, whose init is our own static program
//! (`tests/guest`), with the package's tarball, the kernel's modules, and a few tools (`image.rs`).
//!
//! Why so, and not virtme-ng, whose guests have the host's root over 9p or virtiofs: Debian's cloud kernels have no 9p,
//! here one image fits all kernels; nothing of the host shines through, so a test tells of the package alone; nothing
//! but QEMU must be installed, and there is no disk to prepare. aya's own VM tests are built the same way.
//!
//! One machine boots from a disk instead, with a whole Debian 13 on it (`userland.rs`).
//!
//! May touch: namespaces, QEMU, the cache of kernels (`archive.rs`).

pub mod accel;
pub mod agent;
pub mod archive;
pub mod cost;
pub mod image;
pub mod kernel_table;
pub mod kernels;
pub mod lab;
pub mod layers;
pub mod machine;
pub mod modules;
mod router;
pub mod scenarios;
pub mod suite;
pub mod userland;

pub use agent::{Agent, Said};
pub use kernels::Kernel;
pub use lab::{Bench, VmLab, VmLabOptions};
pub use machine::{Machine, Model, Nic, Options, Side};

use std::{
    env,
    path::{Path, PathBuf},
};

/// Where a program of the host is; a user's PATH often lacks sbin.
#[must_use]
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory: PathBuf| directory.join(program))
        .find(|candidate: &PathBuf| Path::is_file(candidate))
}
