//! What the controller says about itself, on standard error: lines for people, or one JSON object a line.

use crate::config::{Log, LogFormat};
use std::{
    fmt,
    io::{IsTerminal as _, stderr},
};
use tracing_subscriber::{EnvFilter, reload};

/// What is logged, which may change while the process runs.
pub struct Filter(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

/// Sets the process's subscriber; a second call changes nothing.
pub fn init(log: &Log) -> Filter {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(log)).with_writer(stderr);
    // Only a second subscriber is refused, and then the first one serves.
    match log.format {
        LogFormat::Human => {
            let builder = builder.with_ansi(stderr().is_terminal()).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Filter(Box::new(move |filter| handle.reload(filter)))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Filter(Box::new(move |filter| handle.reload(filter)))
        }
    }
}

impl Filter {
    /// From now on what these settings say is logged; the format stays.
    ///
    /// # Errors
    /// The process's subscriber is another one.
    pub fn follow(&self, log: &Log) -> Result<(), reload::Error> {
        (self.0)(filter(log))
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").finish_non_exhaustive()
    }
}

fn filter(log: &Log) -> EnvFilter {
    // The configuration has checked the directives.
    EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"))
}
