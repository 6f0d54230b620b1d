//! One controller a router: two that write the same tables would undo each other's work.
//!
//! The lock is a listening socket in the abstract name space, named after the pin directory. It belongs to a network
//! namespace, as a router does, needs no file to clean up, and goes with its process, however that ends. Who connects to
//! it is told what the running controller alone knows.

use std::{
    io::{self, Read as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::warn;

/// How long a controller may take to answer, and how much it may say.
const ANSWER: (Duration, u64) = (Duration::from_secs(2), 1 << 16);

/// The right to write the tables under one pin directory; ends on drop.
#[derive(Debug)]
pub struct Lock {
    listener: UnixListener,
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
        let name = name(bpffs).map_err(failed)?;
        UnixListener::bind_addr(&name).map(|listener| Self { listener }).map_err(failed)
    }

    /// Gives a task that answers whoever connects with what `say` says, for as long as it runs.
    ///
    /// # Errors
    /// The socket cannot be shared, or there is no tokio runtime to serve it.
    pub fn answer(
        &self,
        say: impl Fn() -> String + Send + 'static,
    ) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(async move {
            loop {
                match listener.accept().await {
                    // A new socket's buffer holds it: nobody is waited for. Who hangs up early does not want it.
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

/// What the running controller says, see [`Lock::answer`]; `None`: there is none, or it does not answer.
#[must_use]
pub fn ask(bpffs: &Path) -> Option<String> {
    let mut stream = UnixStream::connect_addr(&name(bpffs).ok()?).ok()?;
    stream.set_read_timeout(Some(ANSWER.0)).ok()?;
    let mut said = String::new();
    stream.by_ref().take(ANSWER.1).read_to_string(&mut said).ok()?;
    Some(said)
}

fn name(bpffs: &Path) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("vipgate:{}", bpffs.display()))
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

    #[tokio::test]
    async fn who_holds_it_is_asked_through_it() {
        let directory = PathBuf::from(format!("/sys/fs/bpf/ask-test-{}", std::process::id()));
        assert_eq!(ask(&directory), None);
        let held = Lock::take(&directory).expect("nobody has it");
        let answering = tokio::spawn(held.answer(|| "all is well".to_owned()).expect("a runtime is there"));
        for _ in 0..2 {
            let directory = directory.clone();
            let said = tokio::task::spawn_blocking(move || ask(&directory)).await.expect("no panic");
            assert_eq!(said.as_deref(), Some("all is well"));
        }
        answering.abort();
    }
}
