//! One controller a router: two that write the same tables would undo each other's work.
//!
//! The lock is an flock(2) on the pin directory itself, whatever path leads to it and from whichever network namespace; it needs
//! no file to clean up, and goes with its process, however that ends. Commands that only read take none. What is not in the tables (VIPs'
//! addresses, queues, settings) belongs to the network namespace: that is locked as well, so that a controller with another
//! directory does not take it for its own.
//!
//! What only the running controller knows it answers through a socket in the abstract name space, which belongs to its network
//! namespace, as a router does, and is named after the same directory.

use std::{
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io::{self, Read as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{MetadataExt as _, OpenOptionsExt as _},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::warn;
use vipgate_agent::loader::LoadError;

/// How long a controller may take to answer, and how long the answer may be.
const ANSWER: (Duration, u64) = (Duration::from_secs(2), 1 << 16);

/// The right to write the tables under one pin directory; ends on drop.
#[derive(Debug)]
pub struct Lock {
    /// `None` if it is not there, so nothing is to be written.
    directory: Option<File>,
    /// The directory, if it was made for this.
    made: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "a controller is running on the tables under {}, or they are being detached: stop it first (`systemctl stop vipgate`), \
         in whichever network namespace it is",
        bpffs.display()
    )]
    Held { bpffs: PathBuf },
    #[error(
        "a controller is running in this network namespace, or is being detached, with other tables than {}: stop it first, or \
         set bpffs to where its tables are",
        bpffs.display()
    )]
    Router { bpffs: PathBuf },
    #[error(transparent)]
    Kernel(#[from] LoadError),
}

/// What the kernel shows of the network namespace: one inode, as long as somebody has it open.
const NAMESPACE: &str = "/proc/self/ns/net";

/// Takes the network namespace, of which a router is one, until the file is dropped. `bpffs`: the caller's directory.
///
/// # Errors
/// [`LockError::Router`] while another has it.
pub fn namespace(bpffs: &Path) -> Result<File, LockError> {
    let namespace = File::open(NAMESPACE).map_err(|error| failed(bpffs, error))?;
    namespace.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => LockError::Router { bpffs: bpffs.to_owned() },
        TryLockError::Error(error) => failed(bpffs, error),
    })?;
    Ok(namespace)
}

impl Lock {
    /// Takes the lock; an error if another process has it. Without the directory there is nothing to lock.
    ///
    /// # Errors
    /// [`LockError::Held`] while another process has it.
    pub fn take(bpffs: &Path) -> Result<Self, LockError> {
        let failed = |source| failed(bpffs, source);
        let held = || LockError::Held { bpffs: bpffs.to_owned() };
        let directory = match OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(bpffs) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { directory: None, made: None }),
            opened => opened.map_err(failed)?,
        };
        directory.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => held(),
            TryLockError::Error(error) => failed(error),
        })?;
        // The process that had the lock may have removed the directory before it was locked here, and another may have made it again.
        let locked = directory.metadata().map_err(failed)?;
        match fs::metadata(bpffs) {
            Ok(now) if identity(&now) == identity(&locked) => Ok(Self { directory: Some(directory), made: None }),
            _ => Err(held()),
        }
    }

    /// The same for a command that writes: a missing directory is made, and removed again if nothing came into it.
    ///
    /// # Errors
    /// Those of [`Lock::take`], or the directory cannot be made.
    pub fn make(bpffs: &Path) -> Result<Self, LockError> {
        let is_new = !bpffs.exists();
        fs::create_dir_all(bpffs).map_err(|error| failed(bpffs, error))?;
        let mut lock = Self::take(bpffs)?;
        if lock.directory.is_none() {
            return Err(LockError::Held { bpffs: bpffs.to_owned() });
        }
        lock.made = is_new.then(|| bpffs.to_owned());
        Ok(lock)
    }

    /// Returns a task that answers every connection with what `say` returns, as long as it runs.
    ///
    /// # Errors
    /// Another has the socket's name, or there is no tokio runtime to serve it.
    pub fn answer(
        &self,
        say: impl Fn() -> String + Send + 'static,
    ) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let directory = self.directory.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let listener = UnixListener::bind_addr(&name(&directory.metadata()?)?)?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(async move {
            loop {
                match listener.accept().await {
                    // A new socket's buffer holds the answer, so this never waits. A client may hang up early.
                    Ok((stream, _)) => drop(stream.writable().await.and_then(|()| stream.try_write(say().as_bytes()))),
                    Err(error) => {
                        warn!(%error, "cannot tell a `vipgate status` about the checks");
                        tokio::time::sleep(ANSWER.0).await;
                    }
                }
            }
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(made) = &self.made {
            // Fails where something is in it, as it shall.
            let _ = fs::remove_dir(made);
        }
    }
}

/// The running controller's answer, see [`Lock::answer`]; `None` if there is none, or it does not answer.
#[must_use]
pub fn ask(bpffs: &Path) -> Option<String> {
    let mut stream = UnixStream::connect_addr(&name(&fs::metadata(bpffs).ok()?).ok()?).ok()?;
    stream.set_read_timeout(Some(ANSWER.0)).ok()?;
    let mut said = String::new();
    stream.by_ref().take(ANSWER.1).read_to_string(&mut said).ok()?;
    Some(said)
}

fn name(directory: &Metadata) -> io::Result<SocketAddr> {
    let (device, inode) = identity(directory);
    SocketAddr::from_abstract_name(format!("vipgate:{device}:{inode}"))
}

/// What a directory is known by, whichever path leads to it.
fn identity(directory: &Metadata) -> (u64, u64) {
    (directory.dev(), directory.ino())
}

fn failed(bpffs: &Path, source: io::Error) -> LockError {
    LoadError::io(format!("lock the tables under {}", bpffs.display()), source).into()
}

#[cfg(test)]
mod tests;
