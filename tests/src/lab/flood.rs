//! A SYN flood from forged sources, at the speed of the wire.

use super::{Lab, Result, topology::PUBLIC_DEVICE};
use crate::packet::{Frame, tcp};
use anyhow::Context as _;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike as _, SockaddrStorage, bind, send, socket,
    },
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

/// Networks 11.0.0.0/16 to 11.15.0.0/16: a million sources.
const NETWORKS: u8 = 16;
/// However long a test takes, the flood ends: some minutes' worth.
const MOST: u64 = 100_000_000;

#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// From the first client's wire to the VIP, each SYN from another source in turn.
    pub fn start(lab: &Lab, vip: SocketAddrV4) -> Result<Self> {
        let link = lab.router.ip(&format!("-oneline link show dev {PUBLIC_DEVICE}"))?;
        let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("a MAC address")?;
        let mut bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let mut router = [0; 6];
        for byte in &mut router {
            *byte = bytes.next().context("six bytes")??;
        }
        let socket = lab.client().namespace.within(|| packet_socket("eth0"))?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || flood(&socket, router, vip, &stopped, &counted));
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// SYNs sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it; how many it has sent.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a flood is stopped once")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(self.sent())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
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

fn flood(socket: &OwnedFd, router: [u8; 6], vip: SocketAddrV4, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let mut frames: Vec<Vec<u8>> = (0..NETWORKS)
        .map(|network| {
            let client = SocketAddrV4::new(Ipv4Addr::new(11, network, 0, 0), u16::MAX);
            let frame = Frame { dst_mac: router, id: u16::MAX, ..Frame::tcp(client, vip, tcp::SYN) };
            frame.bytes()
        })
        .collect();
    for number in 0..MOST {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let frame = &mut frames[usize::try_from(number % u64::from(NETWORKS))?];
        let [.., high, low] = (number / u64::from(NETWORKS)).to_be_bytes();
        // The source's lower half, and its complement in the IP header's id and as the source port: no checksum changes.
        frame[28..30].copy_from_slice(&[high, low]);
        frame[18..20].copy_from_slice(&[!high, !low]);
        frame[34..36].copy_from_slice(&[!high, !low]);
        // A full queue drops one of a million.
        if send(socket.as_raw_fd(), frame, MsgFlags::empty()).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}
