//! The connection that writes, and how its transactions share commits.
//!
//! The wait for the disk dominates the cost of a commit. So transactions that wait for the writer at the same time become
//! savepoints of one database transaction, a group: each is rolled back alone if it fails, and none has committed before
//! the disk holds all of them. The lock is fair, and the first transaction of a group that ends queues for it again to
//! commit: those that waited already come first and join the group, later ones are in the next group.

use std::{sync::Arc, time::Duration};

use sqlx::{Connection, SqliteConnection};
use tokio::{
    runtime::Handle,
    sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard, oneshot},
    time::timeout,
};

use super::{Error, Result};

/// The connection, which one transaction at a time locks; `None` once it is closed.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    connection: Arc<Mutex<Option<Connected>>>,
}

#[derive(Debug)]
struct Connected {
    connection: SqliteConnection,
    /// The group's database transaction has begun. The savepoint in it is that of the group's last transaction; the next
    /// one, or the commit, releases it.
    open: bool,
    /// The group's last transaction has not ended.
    unfinished: bool,
    /// A task queues for the connection to commit the group.
    commit_is_queued: bool,
    /// Transactions that have ended and wait for the commit.
    waiting: Vec<oneshot::Sender<Result<()>>>,
}

impl Writer {
    pub(super) fn new(connection: SqliteConnection) -> Self {
        let connected =
            Connected { connection, open: false, unfinished: false, commit_is_queued: false, waiting: Vec::new() };
        Self { connection: Arc::new(Mutex::new(Some(connected))) }
    }

    /// Waits up to `patience` for the connection, and begins a transaction.
    pub(super) async fn begin(&self, patience: Duration) -> Result<Writing> {
        let locked = timeout(patience, Arc::clone(&self.connection).lock_owned()).await;
        let locked = locked.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let connected = OwnedMutexGuard::try_map(locked, Option::as_mut).map_err(|_| sqlx::Error::PoolClosed)?;
        let mut writing = Writing { connected, writer: self.clone() };
        // In a task of its own: if the caller is cancelled, the transaction must not stay half begun.
        let begun = tokio::spawn(async move {
            // A failure has been reported to the transactions of the group.
            let _ = writing.connected.undo().await;
            writing.connected.join().await?;
            Ok(writing)
        });
        begun.await.unwrap_or_else(|_| Err(sqlx::Error::PoolClosed.into()))
    }

    /// Commits the group, and closes the connection.
    pub(super) async fn close(&self) {
        let Some(mut connected) = self.connection.lock().await.take() else { return };
        connected.commit().await;
        if let Err(error) = connected.connection.close().await {
            tracing::warn!(%error, "closing the database failed");
        }
    }

    /// Queues for the connection to commit the group, unless a task does already.
    fn queue_commit(&self, connected: &mut Connected) {
        // Without a runtime the next transaction, or `close`, commits the group.
        if connected.open
            && !connected.commit_is_queued
            && let Ok(runtime) = Handle::try_current()
        {
            connected.commit_is_queued = true;
            let connection = Arc::clone(&self.connection);
            runtime.spawn(async move {
                if let Some(connected) = connection.lock().await.as_mut() {
                    connected.commit().await;
                }
            });
        }
    }
}

impl Connected {
    async fn execute(&mut self, statement: &'static str) -> sqlx::Result<()> {
        sqlx::query(statement).execute(&mut self.connection).await.map(drop)
    }

    /// Begins a transaction in the group, or a new group.
    async fn join(&mut self) -> Result<()> {
        let next = if self.open { "RELEASE one; SAVEPOINT one" } else { "BEGIN IMMEDIATE; SAVEPOINT one" };
        match self.execute(next).await {
            Ok(()) => {}
            Err(error) if self.open => return Err(self.fail(error).await),
            Err(error) => {
                // The first of the two statements may have succeeded.
                let _ = self.execute("ROLLBACK").await;
                return Err(error.into());
            }
        }
        self.open = true;
        self.unfinished = true;
        Ok(())
    }

    /// Rolls the group's last transaction back if it has not ended.
    async fn undo(&mut self) -> Result<()> {
        if self.unfinished {
            if let Err(error) = self.execute("ROLLBACK TO one").await {
                // SQLite has rolled the whole database transaction back, as on a full disk: the group is lost.
                return Err(self.fail(error).await);
            }
            self.unfinished = false;
        }
        Ok(())
    }

    /// Commits the group, and reports that to the transactions that wait.
    async fn commit(&mut self) {
        self.commit_is_queued = false;
        // A failure is reported to the transactions that wait; the owner of the one that is undone has dropped it.
        if self.undo().await.is_err() || !self.open {
            return;
        }
        // This releases the last savepoint, too.
        match self.execute("COMMIT").await {
            Ok(()) => {
                self.open = false;
                for waiting in self.waiting.drain(..) {
                    // The receiver is gone if its call was cancelled.
                    let _ = waiting.send(Ok(()));
                }
            }
            Err(error) => drop(self.fail(error).await),
        }
    }

    /// Rolls the group back, and reports the error to the transactions that wait.
    async fn fail(&mut self, error: sqlx::Error) -> Error {
        // SQLite may have rolled back already.
        let _ = self.execute("ROLLBACK").await;
        self.open = false;
        self.unfinished = false;
        let error = Arc::new(error);
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(Error::Commit(Arc::clone(&error))));
        }
        Error::Commit(error)
    }
}

/// A transaction that writes. If it is dropped before it has ended, the next one rolls it back.
#[derive(Debug)]
pub(super) struct Writing {
    connected: OwnedMappedMutexGuard<Option<Connected>, Connected>,
    writer: Writer,
}

impl Writing {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connected.connection
    }

    /// Returns once the disk holds the transaction.
    pub(super) async fn commit(mut self) -> Result<()> {
        self.connected.unfinished = false;
        let (sender, committed) = oneshot::channel();
        self.connected.waiting.push(sender);
        drop(self);
        // The sender is dropped if the runtime ends.
        committed.await.unwrap_or_else(|_| Err(sqlx::Error::PoolClosed.into()))
    }

    pub(super) async fn rollback(mut self) -> Result<()> {
        self.connected.undo().await
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.writer.queue_commit(&mut self.connected);
    }
}
