//! Serving the API on a socket, from the first request to the last.

use std::{io, time::Duration};

use tokio::{net::TcpListener, sync::watch, time::sleep};
use tracing::warn;

use super::{Accepting, RestState, router};

/// Requests in flight get this long to finish once the controller is told to end.
const GRACE: Duration = Duration::from_secs(10);

/// Serves requests until `stop` is true, and then lets those in flight finish.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, state: RestState, stop: watch::Receiver<bool>) -> io::Result<()> {
    let told = |mut stop: watch::Receiver<bool>| async move {
        // The sender lives until it has told.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let serving =
        axum::serve(Accepting::new(listener), router(state)).with_graceful_shutdown(told(stop.clone())).into_future();
    let too_long = async {
        told(stop).await;
        sleep(GRACE).await;
    };
    tokio::select! {
        result = serving => result,
        () = too_long => {
            warn!(seconds = GRACE.as_secs(), "requests were still running and are cut off");
            Ok(())
        }
    }
}
