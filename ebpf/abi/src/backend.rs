//! The backends of services: the elements of the BACKENDS map. A backend's number is its index there.

use crate::{Be16, Be32, meter::Binding};

/// One backend of one listener. All zero if the number is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// IPv4 address; 0 if this number is free.
    pub addr: Be32,
    /// 0 if it takes every protocol and port, see [`Self::takes_all`].
    pub port: Be16,
    /// A flow stores the generation under which it was made; once they differ, the flow is over. The controller increments it
    /// to end a backend's flows at once, and whenever another backend gets the number.
    pub generation: u16,
    /// Number of the service (listener) it belongs to.
    pub service: u32,
    /// Seconds after which idle flows are swept ([`Self::idle_timeout_of`]). [`DOWN`] if the backend fails its health
    /// checks: then it is in no selection table, and its flows are over.
    pub idle_timeout: u32,
    /// The bandwidth limit that its flows' packets count against. It can change while connections go on.
    pub meter: Binding,
    /// Interface index of the device that leads to the backend's network; 0 for any.
    pub device: u32,
    /// 1 if it takes no new connections, but those that it has go on.
    pub drains: u32,
    /// Keeps an element within a cache line.
    pub reserved: u32,
}

/// The idle timeout of a backend that is down.
pub const DOWN: u32 = 0;

/// Seconds without a packet after which a translated flow is over: the minimum for established TCP
/// connections (RFC 5382, section 5), the recommendation for UDP (RFC 4787, section 4.3), the minimum for ICMP queries (RFC
/// 5508, section 3.2), and Linux's default for all others.
pub const TCP_IDLE: u32 = 2 * 60 * 60 + 4 * 60;
pub const UDP_IDLE: u32 = 5 * 60;
pub const ICMP_IDLE: u32 = 60;
pub const OTHER_IDLE: u32 = 10 * 60;

impl Backend {
    /// True if the device by which the kernel routes to its address leads to its network, and not to another one with the
    /// same address. The device is as in [`crate::flow::Flow::from`]; 0 if there is none.
    #[inline(always)]
    pub const fn is_by(&self, device: u16) -> bool {
        self.device == 0 || self.device as u16 == device
    }

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
        idle_timeout_of(protocol)
    }
}

/// Seconds without a packet after which a translated flow of an IANA protocol is over.
pub const fn idle_timeout_of(protocol: u8) -> u32 {
    match protocol {
        6 => TCP_IDLE,
        17 => UDP_IDLE,
        1 => ICMP_IDLE,
        _ => OTHER_IDLE,
    }
}

/// The route to a backend, cached by its last new flow: an element of the BACKEND_ROUTES map, which only the programs write.
///
/// Two CPUs may write it at once, or while another one reads it. So the hop vouches for the other fields, as in a flow: a
/// hop with fields of another write counts as old.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendRoute {
    /// The next hop, and the epoch under which it was found, combined with a hash of `way`.
    pub hop: u64,
    pub way: BackendWay,
    /// Low 32 bits of jiffies when it was found.
    pub found: u32,
}

/// The interface (index of PORTS) in the lower 16 bits, above them the [`Backend::generation`] of the backend.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendWay(pub u32);

impl BackendWay {
    #[inline(always)]
    pub const fn new(interface: u16, generation: u16) -> Self {
        Self((generation as u32) << 16 | interface as u32)
    }

    #[inline(always)]
    pub const fn interface(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The [`BackendRoute::hop`] for this way.
    #[inline(always)]
    pub const fn hop(self, next_hop: [u8; 6], epoch: u16) -> u64 {
        let [a, b, c, d, e, f] = next_hop;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) | (self.crossed(epoch) as u64) << 48
    }

    /// True for the hop that was stored with this way under this epoch.
    #[inline(always)]
    pub const fn matches(self, hop: u64, epoch: u16) -> bool {
        (hop >> 48) as u16 == self.crossed(epoch)
    }

    #[inline(always)]
    const fn crossed(self, epoch: u16) -> u16 {
        epoch ^ (self.0.wrapping_mul(0x9e37_79b1) >> 16) as u16
    }
}

/// The next hop's MAC address in a [`BackendRoute::hop`].
#[inline(always)]
pub const fn next_hop(hop: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, _, _] = hop.to_le_bytes();
    [a, b, c, d, e, f]
}

const _: () = assert!(size_of::<Backend>() == 32 && size_of::<BackendRoute>() == 16);

crate::pod!(Backend, BackendRoute, BackendWay);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_is_believed_beside_its_own_way_and_epoch_alone() {
        let way = BackendWay::new(3, 9);
        let hop = way.hop([2, 0, 0, 0, 0, 7], 0x101);
        assert!(way.matches(hop, 0x101));
        assert_eq!((next_hop(hop), way.interface(), way.generation()), ([2, 0, 0, 0, 0, 7], 3, 9));
        assert!(!way.matches(hop, 0x102));
        assert!(!BackendWay::new(4, 9).matches(hop, 0x101) && !BackendWay::new(3, 10).matches(hop, 0x101));
    }
}
