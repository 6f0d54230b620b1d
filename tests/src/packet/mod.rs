//! Packet tests: run the real programs on crafted frames with BPF_PROG_TEST_RUN, without devices.
//!
//! [`Frame`] builds frames with fully computed checksums, so that an expected frame does not depend on the programs' incremental
//! arithmetic. [`Bench`] holds the loaded programs and their tables in a network namespace of its own; the programs' lookups
//! use its routes and neighbours.

mod fill;
mod frame;
mod harness;
mod reuse;
mod time;
mod watcher;

pub use fill::{Asked, Filling};
pub use frame::{Frame, Transport, tcp};
pub use harness::{Bench, Hook, Outcome, Packets, Scratch, Swap, Verdict};
pub use watcher::{Order, Watcher};
