//! What the stages pass to each other: plain numbers. This file knows neither packets nor tables.

use vipgate_abi::{
    Be16, Be32,
    flow::{Flow, FlowKey},
    interface,
};

/// A packet without a flow, as the stages that open its connection need it. Numbers only, see
/// [`Packet::open_inbound`](crate::packet::Packet::open_inbound).
#[repr(C)]
pub struct Arrival {
    pub key: FlowKey,
    pub hash: u64,
    /// Low 32 bits of jiffies.
    pub now: u32,
    /// As in [`Headers`](crate::parse::Headers).
    pub tcp_flags: u16,
    /// Number of earlier attempts, which failed because the answers' key was another connection's.
    pub attempt: u16,
}

/// A packet's addresses and ports after its rewriting.
#[derive(Clone, Copy)]
pub struct Rewritten {
    pub src: Be32,
    pub dst: Be32,
    pub sport: Be16,
    pub dport: Be16,
}

impl Rewritten {
    /// To be filled in.
    pub const UNSET: Self = Self { src: 0, dst: 0, sport: 0, dport: 0 };

    #[inline(always)]
    pub fn by(flow: &Flow) -> Self {
        Self { src: flow.new_src, dst: flow.new_dst, sport: flow.new_sport, dport: flow.new_dport }
    }

    /// The key of the other direction, whose packets answer this one.
    #[inline(always)]
    pub fn reply_key(&self, key: &FlowKey) -> FlowKey {
        FlowKey { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*key }
    }
}

/// The route of a flow's packets: interface and next hop.
#[derive(Clone, Copy)]
pub struct Route {
    /// Index of PORTS, and whether the next hop is [`Self::DUE`].
    pub interface: u16,
    /// MAC address; all zero if it is not known yet.
    pub next_hop: [u8; 6],
}

impl Route {
    /// In [`Self::interface`]: the next packet goes by the kernel's neighbour table, which confirms the next hop.
    pub const DUE: u16 = 1 << 15;
    /// To be filled in.
    pub const UNKNOWN: Self = Self { interface: interface::STACK, next_hop: [0; 6] };

    /// Index of PORTS.
    #[inline(always)]
    pub const fn number(&self) -> u16 {
        self.interface & !Self::DUE
    }

    /// True if the next hop is to be confirmed.
    #[inline(always)]
    pub const fn is_due(&self) -> bool {
        self.interface & Self::DUE != 0
    }
}

/// A connection that is to be inserted. Without padding, because the verifier of Linux 6.1 wants all of it initialised.
#[repr(C)]
pub struct Connection {
    /// What the connection's first packet becomes.
    pub rewritten: Rewritten,
    /// Route of the first flow, and the epoch under which it was found.
    pub route: Route,
    pub epoch: u16,
    /// The backend's generation.
    pub generation: u16,
    /// Index of BACKENDS.
    pub backend: u32,
    /// The devices by which packets of the first flow and of the answers come, as in [`Flow::from`].
    pub comes_by: u16,
    pub answers_by: u16,
    /// True if a guest began it: the first flow goes outside, not the answers.
    pub is_outward: bool,
    /// True if other connections could choose the same source at the same moment (rule 9).
    pub is_exclusive: bool,
    /// True if this connection replaces a closed or half-open one whose answers have the same key. False if there was none
    /// when the source was chosen (one that is there now belongs to another CPU, which chose the same), or if another
    /// source will do.
    pub may_replace: bool,
    pub reserved: bool,
}

impl Connection {
    /// To be filled in.
    pub const UNDECIDED: Self = Self {
        rewritten: Rewritten::UNSET,
        route: Route::UNKNOWN,
        epoch: 0,
        generation: 0,
        backend: 0,
        comes_by: 0,
        answers_by: 0,
        is_outward: false,
        is_exclusive: false,
        may_replace: false,
        reserved: false,
    };
}

const _: () = assert!(size_of::<Connection>() == 36 && size_of::<Rewritten>() == 12 && size_of::<Route>() == 8);

/// The queue that a packet has to pass, as one number: device, congestion, class.
#[derive(Clone, Copy)]
pub struct Queue(pub u64);

impl Queue {
    /// No queue.
    pub const NONE: Self = Self(0);
    /// The queue is long: packets are marked (RFC 3168).
    pub const CONGESTED: u64 = 1 << 31;
    /// Major number of the queues' discipline.
    const MAJOR: u32 = 1 << 16;

    #[inline(always)]
    pub fn device(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The class, as a socket buffer's priority names it.
    #[inline(always)]
    pub fn class(self) -> u32 {
        Self::MAJOR | self.0 as u16 as u32
    }

    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.0 == Self::NONE.0
    }

    #[inline(always)]
    pub fn is_congested(self) -> bool {
        self.0 & Self::CONGESTED != 0
    }
}

/// Buffer for a header's options: as many bytes as the verifier assumes, and an end-of-options byte.
pub type OptionsBuffer = [u64; 64 / size_of::<u64>() + 1];
