//! The test bench: the programs loaded with small tables, and run on frames.

mod counters;
mod flows;
mod loading;
mod network;
mod router;
mod running;
mod services;
mod timing;

use std::{fs::File, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, Map, MapData},
    programs::{tc::SchedClassifierLink, xdp::XdpLink},
};
use vipgate_abi::maps;

pub(super) use self::loading::BENCHMARK;
pub use self::services::Swap;
use super::{Frame, reuse::Loaded};

/// The hook whose program a bench runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

/// TC_ACT_UNSPEC: the packet goes on to the device's other programs.
const UNSPEC: u32 = u32::MAX;

impl Hook {
    /// Name of the program that the controller attaches at this hook.
    fn program(self) -> &'static str {
        match self {
            Self::Xdp => maps::PROGRAM_XDP,
            Self::Tc => maps::PROGRAM_TC,
        }
    }
}

/// A program that is attached to a device until it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "only kept")]
enum Attached {
    Xdp(XdpLink),
    Tc(SchedClassifierLink),
}

/// A program's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Up to the kernel's stack.
    Pass,
    Drop,
    /// Out of a device.
    Redirect,
    Other(u32),
}

/// Data that a program leaves with a packet for the next program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scratch {
    /// At XDP: in the metadata before the frame.
    Metadata(Vec<u8>),
    /// At TC: in fields of the socket buffer.
    Fields { priority: u32, mark: u32 },
}

/// A run's verdict, and the frame after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

/// Packets of many flows: the first one, and others that differ from it in their source, or in source port and
/// destination.
#[derive(Clone, Debug)]
pub struct Packets {
    pub first: Frame,
    /// A power of two.
    pub count: u32,
    /// Consecutive packets use 2^`port_bits` consecutive source ports before the address changes.
    pub port_bits: u32,
    /// The address that changes is the destination's, not the source's.
    pub to_others: bool,
    /// Packets come in an order that no cache predicts, not in the order of their sources.
    pub scattered: bool,
}

/// Loaded programs with their tables, in the calling thread's network namespace.
///
/// ```text
/// clients 10.1.0.0/24 - pub0 (interface 1) [router] priv0 (interface 2) - backends 10.2.0.0/24
/// ```
/// Hosts 10 to 30 of both networks are neighbours; all other addresses are behind 10.1.0.254.
#[derive(Debug)]
pub struct Bench {
    ebpf: Loaded,
    /// Programs that it has attached to devices.
    attached: Vec<Attached>,
    /// Keeps the bench's own namespace alive while the thread is in another bench's.
    _network: Option<File>,
    hook: Hook,
    /// Name of the program that runs.
    program: &'static str,
    /// Name of the benchmark program that only has the prologue.
    empty: &'static str,
    /// The device that packets come in by, or that a generator sends by; 0: the device with the packet's destination MAC.
    device: u32,
    /// The devices of the bench's own namespace, by their MACs.
    own: Vec<([u8; 6], u32)>,
    /// The device by which packets at the egress program had come in; 0: the stack has made them.
    came_by: u32,
    /// At TC, segments per packet and bytes per segment; 0: packets are not GSO packets.
    segments: [u32; 2],
    next_backend: u32,
    next_service: u32,
    next_ring: u32,
}

impl Bench {
    pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);

    pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 100);

    pub const PUBLIC_MAC: [u8; 6] = Frame::ROUTER_MAC;

    pub const PRIVATE_MAC: [u8; 6] = Frame::INSIDE_MAC;

    pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 0xfe];

    /// Nanoseconds of a jiffy, as the programs are configured.
    pub const TICK: u32 = 4_000_000;

    /// Size of the flow table in buckets.
    pub const BUCKETS: u32 = 128;

    /// Size of the backend tables, and their size where programs are reused.
    const NUMBERS: u32 = 1 << 15;

    const FEW_NUMBERS: u32 = 1 << 10;

    /// The MAC of a client, 10.1.0.`host`.
    #[must_use]
    pub const fn client_mac(host: u8) -> [u8; 6] {
        [0x02, 0, 0, 0, 1, host]
    }

    /// The MAC of a backend, 10.2.0.`host`.
    #[must_use]
    pub const fn backend_mac(host: u8) -> [u8; 6] {
        [0x02, 0, 0, 0, 2, host]
    }

    pub(super) fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
    }

    pub(in crate::packet) fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Array::try_from(self.map(name)?).with_context(|| format!("{name} is no array of this value"))
    }

    /// The hook whose program runs.
    #[must_use]
    pub fn hook(&self) -> Hook {
        self.hook
    }
}
