//! SIGHUP: the settings are read again, and those that may change while the controller runs are followed. What is wrong in them
//! changes nothing.

use std::{fmt, io, sync::Arc};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
};
use tracing::{info, warn};
use vipgate_agent::reconcile::Reconciler;

use crate::{
    config::{Config, ConfigError},
    logging::Filter,
};

/// Reads the settings as they were read at the start.
type Read = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Where settings come from, and the log, which follows them.
pub struct Source {
    read: Read,
    filter: Filter,
}

impl Source {
    pub fn new(read: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static, filter: Filter) -> Self {
        Self { read: Arc::new(read), filter }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

/// From here on SIGHUP does not end the process.
///
/// # Errors
/// It cannot be caught.
pub fn caught() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Follows the settings at each signal; `started` are those that the controller was started with. Does not end.
pub async fn follow(mut signals: Signal, source: Source, started: Config, reconciler: Reconciler) {
    while signals.recv().await.is_some() {
        let read = Arc::clone(&source.read);
        match spawn_blocking(move || read()).await {
            Ok(Ok(settings)) => take_over(&settings, &source.filter, &started, &reconciler).await,
            Ok(Err(error)) => warn!(%error, "the settings stay as they were"),
            Err(error) => warn!(%error, "the settings cannot be read again"),
        }
    }
}

async fn take_over(settings: &Config, filter: &Filter, started: &Config, reconciler: &Reconciler) {
    if let Err(error) = filter.follow(&settings.log) {
        warn!(%error, "log.filter stays as it was");
    }
    if let Err(error) = reconciler.log_reasons(settings.log.packets.reasons()).await {
        warn!(%error, "log.packets stays as it was");
    }
    info!(filter = settings.log.filter, packets = %settings.log.packets, "the settings were read again");
    let others = started.changed_for_a_start(settings);
    if !others.is_empty() {
        warn!(settings = others.join(", "), "these have changed, too, and hold from the next start on");
    }
}
