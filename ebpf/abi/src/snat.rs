//! Whose packets get another source on their way out: the LPM trie's keys and values.
//!
//! The key is {device, source address}: the device by which the kernel would send the packet, as a whole, and a guest
//! (an elastic IP's) or a network (source NAT). So the longest match prefers a guest's elastic IP to its network's way
//! out, and what leaves by another device keeps its source.

use crate::Be32;

/// The trie key's data; all bytes, because tries compare bytes from the most significant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnatKey {
    /// Interface index of the device, in the machine's byte order: it always counts whole.
    pub device: [u8; 4],
    /// The guest, or its network, most significant byte first.
    pub addr: [u8; 4],
}

impl SnatKey {
    /// Prefix length of a key that names one guest; less for the bits that a network's hosts have.
    pub const EXACT: u32 = 64;

    /// The key that a packet from `addr` (network order), about to leave by the device, looks up.
    #[inline(always)]
    pub const fn new(device: u32, addr: Be32) -> Self {
        Self { device: device.to_ne_bytes(), addr: addr.to_ne_bytes() }
    }
}

/// What such packets become.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnatRule {
    /// The VIP that they get as their source.
    pub vip: Be32,
    /// Index of BACKENDS: whose generation their flows have, and whose traffic they are.
    pub backend: u32,
    /// Interface index of the device by which such packets come; 0: by any.
    pub device: u32,
    /// One of [`SnatKind`]'s values.
    pub kind: u8,
    /// Of [`SnatKind::Masquerade`], 1: the VIP has services, whose ports are not given away.
    pub shared: u8,
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<SnatRule>() == 16 && size_of::<SnatKey>() == 8);

crate::pod!(SnatRule, SnatKey);

impl SnatRule {
    /// Whether packets that come by a device may be such guests'.
    #[inline(always)]
    pub const fn comes_by(&self, device: u32) -> bool {
        self.device == 0 || self.device == device
    }
}

/// How a source is translated.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnatKind {
    /// Not at all, the packets are dropped: the VIP is Disabled.
    Disabled = 1,
    /// One guest, one VIP: ports stay as they are.
    Elastic = 2,
    /// Many guests, one VIP: the port is the guest's own where that is free, and another one where it is not.
    Masquerade = 3,
}

/// The ports that are given to masqueraded connections from such ports: from the first registered one (RFC 6335, section 6) to
/// those of the router's own.
pub const FIRST_PORT: u16 = 1024;
pub const PORTS: u32 = (OWN_PORTS - FIRST_PORT) as u32;

/// The ports below them, without 0, which are given to connections from such ports alone.
pub const SYSTEM_PORTS: u32 = FIRST_PORT as u32 - 1;

/// The first of the ports that the router's stack gives to connections of its own, up to the last one there is: while
/// there is source NAT the controller has it choose among them. Most guests choose others (Linux 32768 to 60999).
pub const OWN_PORTS: u16 = 61_440;

/// Connections to guests' own addresses that are remembered, so that answers to them keep their source: those that were quiet
/// for longest are forgotten first.
pub const DIRECT_CONNECTIONS: u32 = 1 << 14;

/// Elements of the PORT_CURSORS map; a power of two.
pub const CURSORS: u32 = 4096;
