//! Waits for a condition, with a deadline and a name; never a fixed sleep.

use super::Result;
use anyhow::bail;
use std::{
    thread,
    time::{Duration, Instant},
};

const PAUSE: Duration = Duration::from_millis(20);

/// Calls `probe` until it succeeds.
///
/// # Errors
/// `patience` is over; the message contains `what` was awaited and the probe's last error.
pub fn wait_until<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                bail!("waited {} s for {what}: {error:#}", patience.as_secs_f32())
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
