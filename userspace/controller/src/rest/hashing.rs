//! Threads for Argon2id, which takes 19 MiB and tens of milliseconds each time. Their number bounds what callers without a
//! password can make the router spend. A large thread pool would keep such a block in the allocator's arena of each thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use tokio::sync::oneshot;
use vipgate_api::ApiError;

const THREADS: usize = 2;

type Work = Box<dyn FnOnce() + Send>;

/// The threads; they end when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Hashing(mpsc::Sender<Work>);

impl Hashing {
    pub(super) fn start() -> Self {
        let (sender, receiver) = mpsc::channel::<Work>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            let spawned = thread::Builder::new().name("vipgate-hashing".to_owned()).spawn(move || {
                loop {
                    let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = next else { return };
                    // After a panic the caller gets an error, since the sender of the result is dropped.
                    let _ = catch_unwind(AssertUnwindSafe(work));
                }
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "cannot start a thread to hash passwords");
            }
        }
        Self(sender)
    }

    /// Runs `work` in one of the threads.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (sender, result) = oneshot::channel();
        // The receiver is gone if the request was cancelled; without threads the work is dropped here.
        let _ = self.0.send(Box::new(move || drop(sender.send(work()))));
        result.await.map_err(|_| ApiError::internal("a password could not be hashed"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[tokio::test]
    async fn however_many_hash_at_a_time_two_threads_do_it() {
        let hashing = Hashing::start();
        let ids = futures::future::join_all((0..200).map(|_| hashing.run(|| thread::current().id()))).await;
        let ids: HashSet<_> = ids.into_iter().map(Result::unwrap).collect();
        assert!(ids.len() <= THREADS && !ids.contains(&thread::current().id()), "{ids:?}");
    }

    #[tokio::test]
    async fn a_fault_costs_one_caller_only() {
        let hashing = Hashing::start();
        for _ in 0..2 * THREADS {
            hashing.run::<()>(|| panic!("a fault that a test asked for")).await.unwrap_err();
        }
        assert_eq!(hashing.run(|| 7).await.unwrap(), 7);
    }
}
