//! Virtual machines with distribution kernels, and the released binary in them.
//!
//! ```text
//!  client 1 ─┐                 QEMU: a Debian kernel          ┌─ backend 1
//!  client 2 ─┼─ public switch ── tap: pub0   priv0 :tap ── private switch ─┼─ backend 2
//!            ┘                 vipgate of the package         └─
//! ```
//! The hosts around the router and their names are those of [`crate::lab`]; the router is a machine. It boots from memory: a
//! kernel from Debian's package, and a cpio archive made here (`image.rs`). The archive holds our own static init
//! (`tests/guest`), the package's tarball, the kernel's modules, and a few tools.
//!
//! Why not virtme-ng, whose guests share the host's root over 9p or virtiofs: Debian's cloud kernels have no 9p, while here one
//! image fits all kernels. The host's files are not visible, so that a test covers the package alone. Only QEMU must
//! be installed, and there is no disk to prepare. aya's own VM tests are built the same way.
//!
//! One machine boots from a disk instead, with a full Debian 13 on it (`userland.rs`).
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

pub use agent::{Agent, LineResult};
pub use kernels::Kernel;
pub use lab::{Bench, VmLab, VmLabOptions};
pub use machine::{Machine, Model, Nic, Options, Side};

use std::{
    env,
    path::{Path, PathBuf},
};

/// The path of a program of the host; a user's PATH often lacks sbin.
#[must_use]
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory: PathBuf| directory.join(program))
        .find(|candidate: &PathBuf| Path::is_file(candidate))
}
