//! The controller's log, on standard error: lines for people, or one JSON object a line.

use std::{
    fmt,
    io::{IsTerminal as _, stderr},
};

use tracing_subscriber::{EnvFilter, reload};

use crate::config::{Log, LogFormat};

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
    /// Logs by these settings from now on; the format stays.
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

/// This crate logs a line for each message of the kernel, however many come at once: only a filter that names it shows them. The
/// modules that use it log what the messages mean.
const TALKATIVE: &str = "netlink_proto=off";

fn filter(log: &Log) -> EnvFilter {
    // Without directives errors are logged.
    let chosen = if log.filter.trim().is_empty() { "error" } else { &log.filter };
    // The configuration has checked the directives; of two about the same the later counts.
    EnvFilter::try_new(format!("{TALKATIVE},{chosen}")).unwrap_or_else(|_| EnvFilter::new("info"))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::{info, subscriber::with_default, warn};

    use super::*;
    use crate::config::Config;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one thread").write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_kernels_messages_are_logged_for_whom_asks_for_them() {
        let said = |chosen: &str| {
            let log = Log { filter: chosen.to_owned(), ..Config::default().log };
            let lines = Lines::default();
            let writer = lines.clone();
            let builder = tracing_subscriber::fmt().with_env_filter(filter(&log)).with_writer(move || writer.clone());
            with_default(builder.finish(), || {
                warn!(target: "netlink_proto::connection", "message");
                info!(target: "vipgate_agent::net", "ours");
                warn!(target: "netlink_proto::framed", "message");
            });
            let lines = lines.0.lock().expect("one thread").clone();
            let text = String::from_utf8(lines).expect("text");
            ["message", "ours"].map(|word| text.matches(word).count())
        };
        assert_eq!(said("info"), [0, 1]);
        assert_eq!(said("vipgate=debug,warn"), [0, 1]);
        assert_eq!(said("netlink_proto=warn,info"), [2, 1]);
        assert_eq!(said(""), [0, 0]);
    }
}
