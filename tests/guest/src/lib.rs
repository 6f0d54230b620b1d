//! What the host and the guest of a test VM say to each other: a line of JSON each, over a virtio-serial port.
//!
//! The guest says [`Hello`] once it is up. From then on the host sends a [`Request`], and the guest answers with the
//! [`Reply`] of the same number before it reads the next one.

use serde::{Deserialize, Serialize};

/// The name of the port.
pub const PORT: &str = "agent";

/// Where the image lists the modules that init loads, one path a line, in the order to load them.
pub const MODULES: &str = "/etc/vipgate-modules";

/// An image that has this directory is only the way to the system on a disk, whose `/run` gets what is in it.
pub const STAGED: &str = "/staged";

/// Bytes of each stream that a reply holds at most; the rest is cut off, and the reply says so.
pub const LONGEST: usize = 1 << 20;

/// The guest is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// As `uname -r` prints it.
    pub kernel: String,
    /// Since the kernel started.
    pub milliseconds: u64,
    /// What went wrong on the way, such as a module that did not load.
    pub complaints: Vec<String>,
}

/// A line for the guest's shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub number: u64,
    pub line: String,
    pub stdin: String,
    /// The line and all that it started in its process group are killed after that.
    pub seconds: u64,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub number: u64,
    /// The exit status, 128 and the signal's number for one that a signal ended; `None`: it took too long.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}
