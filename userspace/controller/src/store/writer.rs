//! The connection that writes, and how its transactions share commits.
//!
//! What a commit costs is the wait for the disk, whatever it holds. So transactions that wait for the writer at the same time
//! are savepoints of one transaction of the database: each is undone alone where it fails, and none has committed before the
//! disk holds all of them. The turns are fair, and the first of a group to end queues for a turn in which to commit: who
//! waited already comes before it and joins, who comes later is in the next group.

use std::{sync::Arc, time::Duration};

use sqlx::{Connection, SqliteConnection};
use tokio::{
    runtime::Handle,
    sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard, oneshot},
    time::timeout,
};

use super::{Error, Result};

/// The connection, for whose turn it is; `None` once it is closed.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    turns: Arc<Mutex<Option<Connected>>>,
}

#[derive(Debug)]
struct Connected {
    connection: SqliteConnection,
    /// A transaction of the database has begun. It has a savepoint, of the group's last transaction: the next one, or the
    /// commit, releases it on its way.
    open: bool,
    /// The last transaction has not ended.
    unfinished: bool,
    /// Somebody queues for a turn in which to commit.
    settling: bool,
    /// Those who have ended and wait for the disk.
    waiting: Vec<oneshot::Sender<Result<()>>>,
}

impl Writer {
    pub(super) fn new(connection: SqliteConnection) -> Self {
        let connected = Connected { connection, open: false, unfinished: false, settling: false, waiting: Vec::new() };
        Self { turns: Arc::new(Mutex::new(Some(connected))) }
    }

    /// Begins a transaction when it is its turn, within `patience`.
    pub(super) async fn begin(&self, patience: Duration) -> Result<Turn> {
        let turn = timeout(patience, Arc::clone(&self.turns).lock_owned()).await;
        let turn = turn.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let connected = OwnedMutexGuard::try_map(turn, Option::as_mut).map_err(|_| sqlx::Error::PoolClosed)?;
        let mut turn = Turn { connected, writer: self.clone() };
        // A task of its own: who asked for the turn may go away, and must not leave it half begun.
        let begun = tokio::spawn(async move {
            // Whom a failure concerns has been told.
            let _ = turn.connected.undo().await;
            turn.connected.join().await?;
            Ok(turn)
        });
        begun.await.unwrap_or_else(|_| Err(sqlx::Error::PoolClosed.into()))
    }

    /// Commits what has ended, and closes the connection.
    pub(super) async fn close(&self) {
        let Some(mut connected) = self.turns.lock().await.take() else { return };
        connected.settle().await;
        if let Err(error) = connected.connection.close().await {
            tracing::warn!(%error, "the database was not closed in good order");
        }
    }

    /// Has the group committed in a turn to come.
    fn settle_later(&self, connected: &mut Connected) {
        // Without a runtime whoever comes next does it.
        if connected.open
            && !connected.settling
            && let Ok(runtime) = Handle::try_current()
        {
            connected.settling = true;
            let turns = Arc::clone(&self.turns);
            runtime.spawn(async move {
                if let Some(connected) = turns.lock().await.as_mut() {
                    connected.settle().await;
                }
            });
        }
    }
}

impl Connected {
    async fn execute(&mut self, statement: &'static str) -> sqlx::Result<()> {
        sqlx::query(statement).execute(&mut self.connection).await.map(drop)
    }

    /// Begins a transaction in the group, or a group.
    async fn join(&mut self) -> Result<()> {
        let next = if self.open { "RELEASE one; SAVEPOINT one" } else { "BEGIN IMMEDIATE; SAVEPOINT one" };
        match self.execute(next).await {
            Ok(()) => {}
            Err(error) if self.open => return Err(self.fail(error).await),
            Err(error) => {
                // Its first half may have begun.
                let _ = self.execute("ROLLBACK").await;
                return Err(error.into());
            }
        }
        self.open = true;
        self.unfinished = true;
        Ok(())
    }

    /// Undoes the transaction in the group that has not ended.
    async fn undo(&mut self) -> Result<()> {
        if self.unfinished {
            if let Err(error) = self.execute("ROLLBACK TO one").await {
                // SQLite has given up the whole transaction, as on a full disk: nothing of the group is left.
                return Err(self.fail(error).await);
            }
            self.unfinished = false;
        }
        Ok(())
    }

    /// Commits the group and tells those who wait.
    async fn settle(&mut self) {
        self.settling = false;
        // Those of the group who wait are told of a failure; of the one that was dropped nobody is left.
        if self.undo().await.is_err() || !self.open {
            return;
        }
        // Releases the last savepoint, too.
        match self.execute("COMMIT").await {
            Ok(()) => {
                self.open = false;
                for waiting in self.waiting.drain(..) {
                    // Who went away does not want to know.
                    let _ = waiting.send(Ok(()));
                }
            }
            Err(error) => drop(self.fail(error).await),
        }
    }

    /// Undoes the group and tells those who wait.
    async fn fail(&mut self, error: sqlx::Error) -> Error {
        // There may be no transaction any more.
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

/// One transaction. Dropping it before it has ended undoes it, by the next turn.
#[derive(Debug)]
pub(super) struct Turn {
    connected: OwnedMappedMutexGuard<Option<Connected>, Connected>,
    writer: Writer,
}

impl Turn {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connected.connection
    }

    /// Returns when the disk holds it.
    pub(super) async fn commit(mut self) -> Result<()> {
        self.connected.unfinished = false;
        let (sender, told) = oneshot::channel();
        self.connected.waiting.push(sender);
        drop(self);
        // Who should tell is gone with the runtime.
        told.await.unwrap_or_else(|_| Err(sqlx::Error::PoolClosed.into()))
    }

    pub(super) async fn rollback(mut self) -> Result<()> {
        self.connected.undo().await
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.writer.settle_later(&mut self.connected);
    }
}
