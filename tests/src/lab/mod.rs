//! The lab: a router, its clients and its backends in network namespaces of their own, with real traffic.
//!
//! ```text
//!  client 1 ─┐                    router                     ┌─ backend 1
//!  client 2 ─┼─ public switch ── pub0   priv0 ── private switch ─┼─ backend 2
//!            ┘  10.1.0.0/24                     10.2.0.0/24  └─
//! ```
//! Each switch is a bridge in a namespace of its own, so that many hosts share one router device as they do on a
//! cloud's L2 network. Names hold the process's id and a number: labs run side by side, and what a killed run left
//! behind is swept by the next one. Everything is undone on drop, and the programs that a lab started end with its process.

pub mod api;
pub mod bpffs;
pub mod capture;
pub mod cloud;
pub mod controller;
pub mod flood;
pub mod host;
pub mod leftovers;
pub mod load;
pub mod netns;
pub mod process;
pub mod running;
pub mod shell;
pub mod standing;
pub mod topology;
pub mod traffic;
pub mod version8;
pub mod wait;
pub mod wire;

pub use api::{Api, Failure, Reply};
pub use bpffs::BpfDirectory;
pub use capture::Capture;
pub use cloud::{CHECKED_BY_WEB, Cloud, ECHO, Listener, UDP, WEB};
pub use controller::{Controller, SIZES, vipgate_binary};
pub use flood::Flood;
pub use host::{Host, Origin};
pub use load::{DatagramReport, Datagrams, Load, LoadReport};
pub use netns::Namespace;
pub use process::{Process, with_program_output};
pub use running::Running;
pub use shell::Shell;
pub use standing::{Counts, Standing, report, wait_for_resets};
pub use topology::{Hook, Lab, LabOptions};
pub use traffic::Traffic;
pub use wait::wait_until;
pub use wire::Wire;

/// Result of a lab's function: its error is read in the output of a failed test.
pub type Result<T, E = anyhow::Error> = std::result::Result<T, E>;
