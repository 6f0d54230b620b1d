//! The errors of the store.

use std::{path::PathBuf, str::FromStr, sync::Arc};

/// An error of the store. None of them is the caller's fault: to a client they are all internal errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store's URL names no SQLite file.
    #[error("store {url:?} is not understood: give sqlite:///path/of/the/file")]
    Url { url: String },
    /// The file can't be opened, made or written.
    #[error("can't open the database {}: {source}; check that its directory exists and that this user may write there", path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    /// Its tables can't be brought to this version.
    #[error(
        "can't bring the tables of {} to this version: {source}; is the file another program's, or from a newer vipgate?",
        path.display()
    )]
    Migrate { path: PathBuf, source: sqlx::migrate::MigrateError },
    /// A statement failed.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The commit of a group of transactions failed.
    #[error("the changes can't be stored: {0}; is there room on the disk?")]
    Commit(Arc<sqlx::Error>),
    /// A row holds a value that this program never writes.
    #[error("the database holds {what} {value:?} in {location}: it was changed by other means")]
    Corrupt { what: &'static str, value: String, location: String },
    /// All indexes of one of the kernel's tables are in use.
    #[error("all {limit} {name} numbers are in use")]
    Exhausted { name: &'static str, limit: u32 },
}

impl Error {
    pub(crate) fn corrupt(what: &'static str, value: &str, location: impl Into<String>) -> Self {
        Self::Corrupt { what, value: value.to_owned(), location: location.into() }
    }
}

/// Parses a stored value; `uuid` is that of its row.
pub(super) fn parse<T: FromStr>(what: &'static str, value: &str, uuid: &str) -> super::Result<T> {
    value.parse().map_err(|_| Error::corrupt(what, value, uuid))
}
