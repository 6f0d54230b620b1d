//! One controller a router: two that write the same tables would undo each other's work.
//!
//! The lock is a listening socket in the abstract name space, named after the pin directory. It belongs to a network
//! namespace, as a router does, needs no file to clean up, and goes with its process, however that ends.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
};

/// The right to write the tables under one pin directory; ends on drop.
#[derive(Debug)]
pub struct Lock {
    _listener: UnixListener,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("a controller is running on the tables under {}: stop it first", bpffs.display())]
    Held { bpffs: PathBuf },
    #[error("cannot lock the tables under {}: {source}", bpffs.display())]
    Io { bpffs: PathBuf, source: io::Error },
}

impl Lock {
    /// Takes the lock, or says who holds it.
    ///
    /// # Errors
    /// [`LockError::Held`] while another process has it.
    pub fn take(bpffs: &Path) -> Result<Self, LockError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => LockError::Held { bpffs: bpffs.to_owned() },
            _ => LockError::Io { bpffs: bpffs.to_owned(), source },
        };
        let name = SocketAddr::from_abstract_name(format!("vipgate:{}", bpffs.display())).map_err(failed)?;
        UnixListener::bind_addr(&name).map(|listener| Self { _listener: listener }).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once_until_its_lock_is_dropped() {
        let directory = PathBuf::from(format!("/sys/fs/bpf/lock-test-{}", std::process::id()));
        let held = Lock::take(&directory).expect("nobody has it");
        let refused = Lock::take(&directory).expect_err("it is taken");
        assert!(matches!(&refused, LockError::Held { bpffs } if *bpffs == directory), "{refused}");
        Lock::take(&directory.join("other")).expect("another directory is another lock");
        drop(held);
        Lock::take(&directory).expect("it is free again");
    }
}
