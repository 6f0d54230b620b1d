//! Captures a host's packets with tcpdump.

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

/// The discard service's port, and the payload of the packet that ends a capture.
const MARK_PORT: u16 = 9;
const MARK: &[u8] = b"the end of the capture";

/// tcpdump's buffer in KiB, and the captured length of a packet in bytes: more than a host's device takes or sends.
const BUFFER: &str = "8192";
const WHOLE: &str = "2048";

#[derive(Debug)]
pub struct Capture<'a> {
    host: &'a Host,
    file: PathBuf,
    tcpdump: Process,
}

impl<'a> Capture<'a> {
    /// Starts to capture the packets of the host's device that match the filter; returns once tcpdump listens.
    pub fn start(host: &'a Host, filter: &str, directory: &Path) -> Result<Self> {
        let name = format!("capture-{}", next_number());
        let file = directory.join(&name).with_extension("pcap");
        let mut tcpdump = host.namespace.command("tcpdump");
        // As root: only root may write to the directory. The buffer lasts for a busy machine's pauses.
        tcpdump.args(["-n", "-U", "--immediate-mode", "-Z", "root", "-B", BUFFER, "-s", WHOLE, "-i", "eth0", "-w"]);
        tcpdump.arg(&file);
        tcpdump.arg(format!("({filter}) or udp dst port {MARK_PORT}"));
        let mut tcpdump = Process::start(&name, &tcpdump, directory)?;
        tcpdump.until("tcpdump to listen", PATIENCE, |tcpdump| {
            ensure!(tcpdump.said().contains("listening on"), "its output so far: {}", tcpdump.said());
            Ok(())
        })?;
        Ok(Self { host, file, tcpdump })
    }

    /// The packets captured so far, one a line, with their Ethernet headers.
    pub fn printed(&self) -> Result<String> {
        self.host.namespace.run("tcpdump", &format!("-n -e -r {}", self.file.display()))
    }

    /// Ends the capture and returns its file. A last packet is sent first, so that all earlier ones are in the file.
    /// Fails if tcpdump missed a packet.
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
