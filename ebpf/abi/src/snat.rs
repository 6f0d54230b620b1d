//! SNAT rules for packets of guests on their way out: the LPM trie's keys and values.
//!
//! The key is {device, source address}: the device by which the kernel would send the packet, and a guest
//! (elastic IP) or a network (source NAT). So the longest match prefers a guest's elastic IP to its network's source NAT,
//! and packets that leave by another device keep their source.

use crate::Be32;

/// The trie key's data; all bytes, because tries compare bytes from the most significant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnatKey {
    /// Interface index of the device, in the machine's byte order: no prefix ends within it.
    pub device: [u8; 4],
    /// The guest, or its network, most significant byte first.
    pub addr: [u8; 4],
}

impl SnatKey {
    /// Prefix length of a key for one guest; a network's key is shorter by its number of host bits.
    pub const EXACT: u32 = 64;

    /// The key that a packet from `addr` (network order), about to leave by the device, looks up.
    #[inline(always)]
    pub const fn new(device: u32, addr: Be32) -> Self {
        Self { device: device.to_ne_bytes(), addr: addr.to_ne_bytes() }
    }
}

/// An SNAT rule: the trie's value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnatRule {
    /// The VIP that packets get as their source.
    pub vip: Be32,
    /// Index of BACKENDS: the flows have its generation, and count as its traffic.
    pub backend: u32,
    /// Interface index of the device by which such packets come; 0 for any.
    pub device: u32,
    /// One of [`SnatKind`]'s values.
    pub kind: u8,
    /// For [`SnatKind::Masquerade`]: 1 if the VIP has services, whose ports must not be assigned.
    pub shared: u8,
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<SnatRule>() == 16 && size_of::<SnatKey>() == 8);

crate::pod!(SnatRule, SnatKey);

impl SnatRule {
    /// True if the rule's guests may send packets by this device.
    #[inline(always)]
    pub const fn comes_by(&self, device: u32) -> bool {
        self.device == 0 || self.device == device
    }
}

/// How a source is translated.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnatKind {
    /// The packets are dropped: the VIP is Disabled.
    Disabled = 1,
    /// One guest, one VIP: ports stay as they are.
    Elastic = 2,
    /// Many guests, one VIP: a connection keeps its port if that is free, and gets another one if not.
    Masquerade = 3,
}

/// The ports that masqueraded connections get, but for those from system ports: from the first registered port (RFC 6335,
/// section 6) up to the router's own ports.
pub const FIRST_PORT: u16 = 1024;
pub const PORTS: u32 = (OWN_PORTS - FIRST_PORT) as u32;

/// Number of system ports: those below, without 0. Only connections from system ports get them.
pub const SYSTEM_PORTS: u32 = FIRST_PORT as u32 - 1;

/// The router's stack chooses ports from here to 65535 for its own connections: the controller configures that while
/// there is source NAT. Most guests choose others (Linux 32768 to 60999).
pub const OWN_PORTS: u16 = 61_440;

/// Number of connections to guests' own addresses that are remembered, so that answers keep their source. Those that were
/// idle for longest are forgotten first.
pub const DIRECT_CONNECTIONS: u32 = 1 << 14;

/// Elements of the PORT_CURSORS map; a power of two.
pub const CURSORS: u32 = 4096;
