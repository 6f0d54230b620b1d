//! Sends raw frames from a host's wire, which the host's kernel would not send.

use super::{Host, Lab, Result, topology::PUBLIC_DEVICE};
use crate::packet::Frame;
use anyhow::Context as _;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike as _, SockaddrStorage, bind, send, socket,
    },
};
use std::os::fd::{AsRawFd as _, OwnedFd};

#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    router: [u8; 6],
}

impl Wire {
    /// The wire of a client.
    pub fn of(lab: &Lab, client: &Host) -> Result<Self> {
        let link = lab.router.ip(&format!("-oneline link show dev {PUBLIC_DEVICE}"))?;
        let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("a MAC address")?;
        let mut bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let mut router = [0; 6];
        for byte in &mut router {
            *byte = bytes.next().context("six bytes")??;
        }
        Ok(Self { socket: client.namespace.within(|| packet_socket("eth0"))?, router })
    }

    /// The frame's bytes, addressed to the router.
    #[must_use]
    pub fn to_router(&self, frame: Frame) -> Vec<u8> {
        Frame { dst_mac: self.router, ..frame }.bytes()
    }

    /// Sends a frame; false if the queue is full.
    #[must_use]
    pub fn send(&self, frame: &[u8]) -> bool {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).is_ok()
    }
}

fn packet_socket(device: &str) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let link: SockaddrStorage = getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .filter_map(|interface| interface.address)
        .find(|address| address.family() == Some(AddressFamily::Packet))
        .with_context(|| format!("{device} has a link-layer address"))?;
    bind(socket.as_raw_fd(), &link)?;
    Ok(socket)
}
