//! Threads of their own for Argon2id, which takes 19 MiB and tens of milliseconds a time: callers without a password can make
//! us spend no more than these. Each thread's block of memory goes to the same allocator's arena every time, where those of a
//! pool would each keep one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use tokio::sync::oneshot;
use vipgate_api::ApiError;

const THREADS: usize = 2;

type Work = Box<dyn FnOnce() + Send>;

/// The threads, which end with the last clone.
#[derive(Clone, Debug)]
pub(super) struct Hashing(mpsc::Sender<Work>);

impl Hashing {
    pub(super) fn start() -> Self {
        let (give, take) = mpsc::channel::<Work>();
        let take = Arc::new(Mutex::new(take));
        for _ in 0..THREADS {
            let take = Arc::clone(&take);
            let spawned = thread::Builder::new().name("vipgate-hashing".to_owned()).spawn(move || {
                loop {
                    let next = take.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = next else { return };
                    // Who waits for it hears that it did not come to its end.
                    let _ = catch_unwind(AssertUnwindSafe(work));
                }
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "no thread to hash passwords");
            }
        }
        Self(give)
    }

    /// Does it in one of the threads.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (tell, told) = oneshot::channel();
        // Nobody may want the result any more; without threads nobody tells one.
        let _ = self.0.send(Box::new(move || drop(tell.send(work()))));
        told.await.map_err(|_| ApiError::internal("a password could not be hashed"))
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
