//! What the controller says about itself, on standard error: lines for people, or one JSON object a line.

use crate::config::{Log, LogFormat};
use std::io::{IsTerminal as _, stderr};
use tracing_subscriber::EnvFilter;

/// Sets the process's subscriber; a second call changes nothing.
pub fn init(log: &Log) {
    // The configuration has checked the directives.
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // Only a second subscriber is refused, and then the first one serves.
    let _ = match log.format {
        LogFormat::Human => builder.with_ansi(stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
