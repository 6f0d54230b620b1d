//! What passes a host's device, written down by tcpdump.

use super::{Host, Process, Result, leftovers::next_number, wait_until};
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The discard service's port, and what a capture ends with.
const MARK_PORT: u16 = 9;
const MARK: &[u8] = b"the end of the capture";

/// Of packets that wait for tcpdump, in KiB, and of each of them, in bytes: more than a host's device takes or sends.
const BUFFER: &str = "8192";
const WHOLE: &str = "2048";

#[derive(Debug)]
pub struct Capture<'a> {
    host: &'a Host,
    file: PathBuf,
    tcpdump: Process,
}

impl<'a> Capture<'a> {
    /// Begins to write down the packets of the host's device that the filter names; it does so when this returns.
    pub fn start(host: &'a Host, filter: &str, directory: &Path) -> Result<Self> {
        let name = format!("capture-{}", next_number());
        let file = directory.join(&name).with_extension("pcap");
        let mut tcpdump = host.namespace.command("tcpdump");
        // As root: the directory is root's alone. With room for a busy machine's pauses.
        tcpdump.args(["-n", "-U", "--immediate-mode", "-Z", "root", "-B", BUFFER, "-s", WHOLE, "-i", "eth0", "-w"]);
        tcpdump.arg(&file);
        tcpdump.arg(format!("({filter}) or udp dst port {MARK_PORT}"));
        let mut tcpdump = Process::start(&name, &tcpdump, directory)?;
        tcpdump.until("tcpdump to listen", PATIENCE, |tcpdump| {
            ensure!(tcpdump.said().contains("listening on"), "it has said: {}", tcpdump.said());
            Ok(())
        })?;
        Ok(Self { host, file, tcpdump })
    }

    /// What has been written down so far, a packet a line, with its Ethernet header.
    pub fn printed(&self) -> Result<String> {
        self.host.namespace.run("tcpdump", &format!("-n -e -r {}", self.file.display()))
    }

    /// The file with all that has passed until now: a last packet is sent, which comes after all others. A capture that
    /// missed one is an error.
    pub fn end(mut self) -> Result<PathBuf> {
        self.host.namespace.within(|| {
            let socket = UdpSocket::bind((self.host.address, 0)).context("cannot open a UDP socket")?;
            socket.set_broadcast(true)?;
            socket.send_to(MARK, (Ipv4Addr::BROADCAST, MARK_PORT)).context("cannot send the mark")?;
            Ok(())
        })?;
        wait_until("the capture's end", PATIENCE, || {
            let captured = fs::read(&self.file)?;
            ensure!(captured.windows(MARK.len()).any(|bytes| bytes == MARK), "{} bytes so far", captured.len());
            Ok(())
        })?;
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(PATIENCE)?;
        let said = self.tcpdump.said();
        ensure!(said.contains("\n0 packets dropped by kernel"), "{said}");
        Ok(self.file)
    }
}
