//! The agent: brings this router to the desired state that it gets from a [`vipgate_state::Source`], and keeps it there.
//!
//! Knows no SQL and no HTTP. `reconcile` decides what to do, `loader` and `net` do it, `health` asks the backends.

pub mod health;
pub mod loader;
mod log_pacing;
pub mod net;
pub mod reconcile;
