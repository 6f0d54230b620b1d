//! The programs on the bench: loaded with small tables, fed with frames.

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

/// Which program a bench runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

/// TC_ACT_UNSPEC: what is beside our program on the device goes on with the packet.
const UNSPEC: u32 = u32::MAX;

impl Hook {
    /// The program that the controller attaches there.
    fn program(self) -> &'static str {
        match self {
            Self::Xdp => maps::PROGRAM_XDP,
            Self::Tc => maps::PROGRAM_TC,
        }
    }
}

/// A program on a device, until it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "only kept")]
enum Attached {
    Xdp(XdpLink),
    Tc(SchedClassifierLink),
}

/// What a program decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Up the stack.
    Pass,
    Drop,
    /// Out of a device.
    Redirect,
    Other(u32),
}

/// What a program left beside a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// At XDP: before it.
    Metadata(Vec<u8>),
    /// At TC: in its socket buffer.
    Fields { priority: u32, mark: u32 },
}

/// A run's verdict and the frame it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

/// Packets of many flows: the first one, and those that differ from it in their source, or in its port and their
/// destination.
#[derive(Clone, Debug)]
pub struct Packets {
    pub first: Frame,
    /// A power of two.
    pub count: u32,
    /// Consecutive packets have consecutive source ports, two to the power of this many, before the next address' turn.
    pub port_bits: u32,
    /// It is the destination's address that the other bits count.
    pub to_others: bool,
    /// They come in an order that no cache foresees, not in that of their sources.
    pub scattered: bool,
}

/// Loaded programs with their tables, in a network namespace of the calling thread.
///
/// ```text
/// clients 10.1.0.0/24 - pub0 (port 1) [router] priv0 (port 2) - backends 10.2.0.0/24
/// ```
/// Hosts 10 to 30 of both networks are neighbours; everything else is behind 10.1.0.254.
#[derive(Debug)]
pub struct Bench {
    ebpf: Loaded,
    /// What it has attached to devices.
    attached: Vec<Attached>,
    /// Keeps the namespace that was made for it when the thread goes on to another bench's.
    _network: Option<File>,
    hook: Hook,
    /// The program that runs.
    program: &'static str,
    /// The benchmark's prologue alone.
    empty: &'static str,
    /// The device that packets come in by, or leave by from a generator; 0: the one that they are addressed to.
    device: u32,
    /// The devices of the network that was made for it, by their addresses.
    own: Vec<([u8; 6], u32)>,
    /// The device that those came by which a program sees on their way out; 0: the stack has made them.
    came_by: u32,
    /// At TC, how many segments of how many bytes each packet stands for; 0: it is one.
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

    /// Nanoseconds of a jiffy, as the programs are told.
    pub const TICK: u32 = 4_000_000;

    /// In buckets.
    pub const BUCKETS: u32 = 128;

    /// Of backends, and of those where programs are used again.
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
