//! Where a service sends its flows: the elements of the BACKENDS map. A backend's number is its index there.

use crate::{Be16, Be32, meter::Binding};

/// One backend of one listener. All zero: the number is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// IPv4 address; 0: this number is free.
    pub addr: Be32,
    /// 0: it takes every protocol and port, see [`Self::takes_all`].
    pub port: Be16,
    /// A flow remembers the generation it was made under; once they differ the flow is over. The controller bumps it
    /// to end a backend's flows at once, and whenever the number is given to another backend.
    pub generation: u16,
    /// Number of the service (listener) it belongs to.
    pub service: u32,
    /// Flows idle for longer, in seconds, are swept ([`Self::idle_timeout_of`]). [`DOWN`]: it fails its health checks, has no place in a ring, and
    /// whatever flow it still has is over.
    pub idle_timeout: u32,
    /// Whose limit the packets of its flows count against. No part of what a flow was made under: a limit comes, changes and
    /// goes while connections go on.
    pub meter: Binding,
    /// Keeps an element within a cache line.
    pub reserved: [u32; 3],
}

/// The idle timeout of a backend that is down.
pub const DOWN: u32 = 0;

/// Seconds without a packet after which a translated flow is over: the least that a NAT may take for an established TCP
/// connection (RFC 5382, section 5), what is recommended for UDP (RFC 4787, section 4.3), the least for ICMP queries (RFC
/// 5508, section 3.2), and Linux's own for all others.
pub const TCP_IDLE: u32 = 2 * 60 * 60 + 4 * 60;
pub const UDP_IDLE: u32 = 5 * 60;
pub const ICMP_IDLE: u32 = 60;
pub const OTHER_IDLE: u32 = 10 * 60;

impl Backend {
    #[inline(always)]
    pub const fn is_down(&self) -> bool {
        self.addr != 0 && self.idle_timeout == DOWN
    }

    /// True for a backend that takes flows of every protocol: an elastic IP's guest, or a network with source NAT.
    #[inline(always)]
    pub const fn takes_all(&self) -> bool {
        self.addr != 0 && self.port == 0
    }

    /// Seconds without a packet after which its flow of an IANA protocol is over.
    pub const fn idle_timeout_of(&self, protocol: u8) -> u32 {
        if !self.takes_all() || self.is_down() {
            return self.idle_timeout;
        }
        match protocol {
            6 => TCP_IDLE,
            17 => UDP_IDLE,
            1 => ICMP_IDLE,
            _ => OTHER_IDLE,
        }
    }
}

/// The way to a backend, as the last new flow found it: an element of the BACKEND_ROUTES map, which only the programs write.
/// Who stores one stores the epoch last, so that a torn one is not believed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendRoute {
    /// [`crate::config::Config::epoch`] under which it was found; 0: never.
    pub epoch: u16,
    /// Index of PORTS.
    pub port: u16,
    pub next_hop: [u8; 6],
    /// [`Backend::generation`] of the backend that it leads to.
    pub generation: u16,
    pub reserved: [u16; 2],
}

const _: () = assert!(size_of::<Backend>() == 32 && size_of::<BackendRoute>() == 16);

crate::pod!(Backend, BackendRoute);
