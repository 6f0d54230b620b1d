//! A SYN flood from forged sources, as fast as the wire takes it.

use super::{Lab, Result, Wire};
use crate::packet::{Frame, tcp};
use anyhow::Context as _;
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

/// Networks 11.0.0.0/16 to 11.15.0.0/16: a million sources.
const NETWORKS: u8 = 16;
/// The flood ends after this many packets, some minutes' worth, even if a test hangs.
const MOST: u64 = 100_000_000;

#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// Starts to send SYNs from the first client's wire to the VIP, each from another source.
    pub fn start(lab: &Lab, vip: SocketAddrV4) -> Result<Self> {
        let wire = Wire::of(lab, lab.client())?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || flood(&wire, vip, &stopped, &counted));
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// SYNs sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the flood; returns the number of SYNs sent.
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

fn flood(wire: &Wire, vip: SocketAddrV4, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let mut frames: Vec<Vec<u8>> = (0..NETWORKS)
        .map(|network| {
            let client = SocketAddrV4::new(Ipv4Addr::new(11, network, 0, 0), u16::MAX);
            wire.to_router(Frame { id: u16::MAX, ..Frame::tcp(client, vip, tcp::SYN) })
        })
        .collect();
    for number in 0..MOST {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let frame = &mut frames[usize::try_from(number % u64::from(NETWORKS))?];
        let [.., high, low] = (number / u64::from(NETWORKS)).to_be_bytes();
        // The source's lower half, and its complement as the IP header's id and the source port: the checksums stay the same.
        frame[28..30].copy_from_slice(&[high, low]);
        frame[18..20].copy_from_slice(&[!high, !low]);
        frame[34..36].copy_from_slice(&[!high, !low]);
        // A full queue drops one packet of a million.
        if wire.send(frame) {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}
