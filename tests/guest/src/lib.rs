//! The protocol between the host and the guest of a test VM: messages of one line of JSON, over a virtio-serial port.
//!
//! The guest sends [`Hello`] once it is up. From then on the host sends a [`Request`], and the guest answers with the
//! [`Reply`] of the same number before it reads the next one.

use serde::{Deserialize, Serialize};

/// The name of the port.
pub const PORT: &str = "agent";

/// Where the image lists the modules that init loads, one path a line, in the order to load them.
pub const MODULES: &str = "/etc/vipgate-modules";

/// If an image has this directory, the image only boots the system on a disk, and the directory's content goes to its `/run`.
pub const STAGED: &str = "/staged";

/// Most bytes of each stream in a reply; the rest is cut off, which the reply notes.
pub const LONGEST: usize = 1 << 20;

/// The guest is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// As `uname -r` prints it.
    pub kernel: String,
    /// Seconds since the kernel started.
    pub milliseconds: u64,
    /// What went wrong while booting, such as a module that did not load.
    pub complaints: Vec<String>,
}

/// A line for the guest's shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub number: u64,
    pub line: String,
    pub stdin: String,
    /// After this time, the line and all that it started in its process group are killed.
    pub seconds: u64,
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub number: u64,
    /// The exit status; 128 plus the signal's number if a signal ended it; `None` if it took too long.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}
