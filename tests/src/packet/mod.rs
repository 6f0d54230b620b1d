//! Packet tests: the real programs run on crafted frames with BPF_PROG_TEST_RUN, without a device.
//!
//! [`Frame`] builds frames with checksums computed in full, so that an expected frame is independent of the programs'
//! incremental arithmetic. [`Bench`] holds the loaded programs and their tables in a network namespace of its own, whose
//! routes and neighbours the programs' lookups see.

mod fill;
mod frame;
mod harness;
mod reuse;
mod time;
mod watcher;

pub use fill::{Asked, Filling};
pub use frame::{Frame, Transport, tcp};
pub use harness::{Bench, Beside, Hook, Outcome, Packets, Swap, Verdict};
pub use watcher::{Order, Watcher};
