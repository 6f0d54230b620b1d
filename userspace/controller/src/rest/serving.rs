//! Serves the API on a socket, until a graceful shutdown.

use std::{io, time::Duration};

use tokio::{net::TcpListener, sync::watch, time::sleep};
use tracing::warn;

use super::{Accepting, RestState, router};

/// How long requests in flight may take once the controller stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves requests until `stop` is true, and then lets those in flight finish.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, state: RestState, stop: watch::Receiver<bool>) -> io::Result<()> {
    let stopped = |mut stop: watch::Receiver<bool>| async move {
        // The sender lives until it has sent.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let serving = axum::serve(Accepting::new(listener), router(state))
        .with_graceful_shutdown(stopped(stop.clone()))
        .into_future();
    let too_long = async {
        stopped(stop).await;
        sleep(SHUTDOWN_TIMEOUT).await;
    };
    tokio::select! {
        result = serving => result,
        () = too_long => {
            warn!(seconds = SHUTDOWN_TIMEOUT.as_secs(), "requests in flight did not finish in time and are aborted");
            Ok(())
        }
    }
}
