//! The services of VIPs: the LPM trie's keys and values.
//!
//! The key is {VIP, protocol, port} in that order, so that a longest-prefix match gives the right precedence: a
//! listener is a full-length key, a port range is the port prefixes that cover it, and a rule for the whole VIP
//! is the 32-bit prefix.

use crate::{Be16, Be32};

/// The trie key's data; all bytes, because tries compare bytes from the most significant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The VIP, most significant byte first.
    pub vip: [u8; 4],
    /// IANA protocol number.
    pub protocol: u8,
    /// 0. Aligns the trie's values, which follow the key in memory.
    pub reserved: u8,
    /// The destination port, most significant byte first.
    pub port: [u8; 2],
}

impl ServiceKey {
    /// Prefix length of a key that names one port.
    pub const EXACT: u32 = 64;
    /// Prefix length of a key that names a whole VIP.
    pub const WHOLE_VIP: u32 = 32;

    /// The key that a packet to `vip` (network order) looks up.
    #[inline(always)]
    pub const fn new(vip: Be32, protocol: u8, port: Be16) -> Self {
        Self { vip: vip.to_ne_bytes(), protocol, reserved: 0, port: port.to_ne_bytes() }
    }
}

/// A service: the trie's value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// One of [`Kind`]'s values.
    pub kind: u8,
    /// One of [`Algorithm`]'s values.
    pub algorithm: u8,
    /// For [`Kind::Forward`]: added to the destination port (as a number, not as the packet carries it); wraps.
    pub port_shift: u16,
    /// The service's number: index of CURSORS and SERVICE_LOAD.
    pub number: u32,
    /// For [`Kind::Balance`]: first element of its selection table in RINGS. For [`Kind::Elastic`]: see [`Self::device`].
    pub ring_base: u32,
    /// Number of elements; 0 if there is no backend.
    pub ring_len: u32,
    /// Most connections at a time, the API's maxConnection; 0 for no limit.
    pub max_connections: u32,
    /// For [`Kind::Forward`] and [`Kind::Elastic`]: number of its only backend.
    pub backend: u32,
    /// The network that may open flows: its address.
    pub source: Be32,
    /// Its mask; 0 if every source may.
    pub source_mask: Be32,
}

const _: () = assert!(size_of::<Service>() == 32 && size_of::<ServiceKey>() == 8);

crate::pod!(Service, ServiceKey);

impl Service {
    /// True if a packet from `src` may open a flow.
    #[inline(always)]
    pub const fn admits(&self, src: Be32) -> bool {
        src & self.source_mask == self.source
    }

    /// For [`Kind::Elastic`]: interface index of the VIP's device. Guests that have an elastic IP at that device reach this one
    /// with their elastic IP as the source.
    #[inline(always)]
    pub const fn device(&self) -> u32 {
        self.ring_base
    }

    /// The destination port for a packet to `port`, if the backend's own port is `backend`.
    #[inline(always)]
    pub const fn target_port(&self, port: Be16, backend: Be16) -> Be16 {
        if self.kind == Kind::Elastic as u8 {
            port
        } else if self.kind == Kind::Forward as u8 {
            u16::from_be(port).wrapping_add(self.port_shift).to_be()
        } else {
            backend
        }
    }
}

/// What a service does with its packets.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Drops the packets: the VIP is Disabled.
    Disabled = 1,
    /// Balances new flows over the backends of a selection table.
    Balance = 2,
    /// Forwards to one backend, each port to the port that is `port_shift` higher. All keys of a range have the same value.
    Forward = 3,
    /// An elastic IP: forwards every protocol and port to one guest. The whole VIP's key.
    Elastic = 4,
    /// Leaves packets to the stack, where no socket listens. The whole VIP's key, besides those of its services.
    Closed = 5,
}

/// How a new flow's backend is chosen from the selection table.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The table is a ring of the backends; a shared cursor walks it, exact across CPUs.
    RoundRobin = 1,
    /// The table lists the backends; the one with the fewest live connections is chosen.
    LeastConnections = 2,
    /// A Maglev table, indexed by a hash of the source address.
    Source = 3,
    /// A Maglev table, indexed by a hash of the 5-tuple.
    Maglev = 4,
}

/// An element of a selection table: a backend's number, and above it the weight by which least connections divides its
/// load. The weight is 0 if all weights are equal, and for other algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member(pub u32);

impl Member {
    /// Backend numbers are below this.
    pub const NUMBERS: u32 = 1 << 24;

    #[inline(always)]
    pub const fn new(number: u32, weight: u8) -> Self {
        Self(((weight as u32) << 24) | (number % Self::NUMBERS))
    }

    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 % Self::NUMBERS
    }

    /// The backend's load with one more connection than `load`: connections per unit of weight, in 256ths.
    #[inline(always)]
    pub const fn fullness(self, load: u32) -> u32 {
        let weight = self.0 >> 24;
        // A load of more than 24 bits is drift.
        let load = (load % Self::NUMBERS + 1) << 8;
        if weight > 1 { load / weight } else { load }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_goes_to_an_equal_range_and_a_listener_to_its_backends_port() {
        let forward = |port_shift| Service { kind: Kind::Forward as u8, port_shift, ..Service::default() };
        let target = |service: Service, port: u16| u16::from_be(service.target_port(port.to_be(), 8080u16.to_be()));
        assert_eq!([8000, 8007].map(|port| target(forward(1000), port)), [9000, 9007]);
        assert_eq!(target(forward(22u16.wrapping_sub(2222)), 2222), 22);
        assert_eq!(target(Service { kind: Kind::Balance as u8, ..forward(5) }, 80), 8080);
    }

    #[test]
    fn a_source_is_admitted_by_its_prefix() {
        let of = |octets| u32::from_ne_bytes(octets);
        let narrow = Service { source: of([10, 1, 0, 0]), source_mask: of([255, 255, 255, 0]), ..Service::default() };
        assert!(narrow.admits(of([10, 1, 0, 255])) && !narrow.admits(of([10, 1, 1, 0])));
        assert!(Service::default().admits(of([10, 1, 1, 0])));
    }

    #[test]
    fn a_member_of_twice_the_weight_is_as_full_with_twice_the_connections() {
        let (light, heavy) = (Member::new(7, 50), Member::new(Member::NUMBERS - 1, 100));
        assert_eq!((light.number(), heavy.number()), (7, Member::NUMBERS - 1));
        assert_eq!(light.fullness(9), heavy.fullness(19));
        assert!(light.fullness(9) > heavy.fullness(18) && light.fullness(10) > heavy.fullness(19));
        assert_eq!(Member::new(7, 0).fullness(3), Member::new(8, 1).fullness(3));
    }
}
