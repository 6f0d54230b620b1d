//! The SQL store: schema, connections, transactions and typed row access. It knows no rule of the API. Nothing else of
//! the controller runs SQL.
//!
//! SQLite in WAL mode with foreign keys and `synchronous=FULL`: committed transactions survive a power cut. SQLite lets one
//! connection write at a time, so there is exactly one such connection: writers wait for it in memory, in a fair order and
//! without busy errors. Readers see the last commit and never wait. All changes of a call are one [`Tx`]; dropping it
//! unfinished rolls it back. Transactions that wait for the writer at the same time share one commit.
//!
//! SQL texts are constants, but for what [`statement`] runs for queries, and every value is bound. Tables and columns: `userspace/controller/migrations/sqlite/`.

pub mod account;
pub mod address;
mod address_key;
mod balancing;
pub mod collation;
mod desired_state;
pub mod eip;
pub mod error;
pub mod job;
pub mod lb;
pub mod network;
pub mod number;
pub mod packet_names;
pub mod port_forwarding;
pub mod resource;
pub mod service;
pub mod session;
pub mod source_nat;
pub mod statement;
pub mod tag;
pub mod vip;
pub mod vip_qos;
pub mod vm;
pub mod web_hook;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    Connection, Sqlite, SqliteConnection, SqlitePool, Transaction,
    migrate::Migrator,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use vipgate_state::Capacity;
use writer::{Writer, Writing};

pub use address_key::AddressKey;
pub use error::Error;

/// Result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Connections for readers.
const READERS: u32 = 4;

/// How long a call waits for its connection before it fails: far above any transaction here.
const PATIENCE: Duration = Duration::from_secs(30);

/// The open database; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    writer: Writer,
    readers: SqlitePool,
    capacity: Capacity,
}

impl Store {
    /// Opens `sqlite:///absolute/path` (or `sqlite://relative/path`), creates the file if it is missing, and migrates its
    /// tables to this version.
    ///
    /// # Errors
    /// [`Error::Url`] for another kind of URL, [`Error::Open`] where the file can't be opened or written,
    /// [`Error::Migrate`] where it is not ours or from a newer version.
    pub async fn open(url: &str) -> Result<Self> {
        let path = path_of(url)?;
        let open_error = |source| Error::Open { path: path.clone(), source };
        make_private(&path).await.map_err(|error| open_error(error.into()))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(PATIENCE)
            .collation(collation::NAME, collation::compare);
        migrate(&path, &options).await?;
        let mut writer = SqliteConnection::connect_with(&options).await.map_err(open_error)?;
        collation::rebuild_indexes(&mut writer).await.map_err(open_error)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(PATIENCE)
            // Connections to a file don't break while they are idle.
            .test_before_acquire(false)
            .connect_with(options.read_only(true))
            .await
            .map_err(open_error)?;
        Ok(Self { writer: Writer::new(writer), readers, capacity: Capacity::default() })
    }

    /// The same store for kernel tables of these sizes instead of the default ones.
    #[must_use]
    pub fn with_capacity(self, capacity: Capacity) -> Self {
        Self { capacity, ..self }
    }

    /// Begins a write transaction; waits until the one before it has ended.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn begin(&self) -> Result<Tx> {
        let writing = self.writer.begin(PATIENCE).await?;
        Ok(Tx { inner: Inner::Writing(writing), now: now(), capacity: self.capacity })
    }

    /// Begins a read-only transaction: one consistent view of what is committed. Writes fail.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn read(&self) -> Result<Tx> {
        Ok(Tx { inner: Inner::Reading(self.readers.begin().await?), now: now(), capacity: self.capacity })
    }

    /// For a single statement that reads, or several that need not see the same state: begins no transaction.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn look(&self) -> Result<Tx> {
        Ok(Tx { inner: Inner::Looking(self.readers.acquire().await?), now: now(), capacity: self.capacity })
    }

    /// Checkpoints the write-ahead log and closes the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// One transaction, at one instant.
#[derive(Debug)]
pub struct Tx {
    inner: Inner,
    now: i64,
    capacity: Capacity,
}

#[derive(Debug)]
enum Inner {
    Looking(PoolConnection<Sqlite>),
    Reading(Transaction<'static, Sqlite>),
    Writing(Writing),
}

impl Tx {
    /// The connection, for SQL.
    pub fn conn(&mut self) -> &mut SqliteConnection {
        match &mut self.inner {
            Inner::Looking(connection) => connection,
            Inner::Reading(transaction) => transaction,
            Inner::Writing(writing) => writing.connection(),
        }
    }

    /// When the transaction began, in milliseconds since 1970; all rows that it writes have this date.
    #[must_use]
    pub const fn now(&self) -> i64 {
        self.now
    }

    /// The capacities of the kernel's tables.
    #[must_use]
    pub const fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Commits, and returns once the disk holds the changes; the next writer may begin before that.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Commit`] if nothing of the transaction is stored.
    pub async fn commit(self) -> Result<()> {
        match self.inner {
            Inner::Looking(_) => Ok(()),
            Inner::Reading(transaction) => Ok(transaction.commit().await?),
            Inner::Writing(writing) => writing.commit().await,
        }
    }

    /// Rolls back now; a dropped transaction is rolled back later.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn rollback(self) -> Result<()> {
        match self.inner {
            Inner::Looking(_) => Ok(()),
            Inner::Reading(transaction) => Ok(transaction.rollback().await?),
            Inner::Writing(writing) => writing.rollback().await,
        }
    }
}

/// Now, in milliseconds since 1970-01-01T00:00:00Z.
#[must_use]
pub fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// A new random uuid as the API writes it: 32 lower-case hexadecimal digits.
#[must_use]
pub fn new_uuid() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Brings the tables to this version, on a connection of its own: a migration may make a table anew while others refer to it,
/// and foreign keys can't be switched off within its transaction.
async fn migrate(path: &Path, options: &SqliteConnectOptions) -> Result<()> {
    let open_error = |source| Error::Open { path: path.to_owned(), source };
    let options = options.clone().foreign_keys(false);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(open_error)?;
    MIGRATIONS.run(&mut connection).await.map_err(|source| Error::Migrate { path: path.to_owned(), source })?;
    connection.close().await.map_err(open_error)
}

/// Creates the file if it is missing, readable by its owner only: it holds password hashes and sessions. SQLite gives its
/// other files the same mode.
async fn make_private(path: &Path) -> std::io::Result<()> {
    tokio::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).await.map(drop)
}

fn path_of(url: &str) -> Result<PathBuf> {
    match url.strip_prefix("sqlite://") {
        Some(path) if !path.is_empty() && !path.contains('?') => Ok(PathBuf::from(path)),
        _ => Err(Error::Url { url: url.to_owned() }),
    }
}
