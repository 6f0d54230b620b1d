//! Ports of fragmented packets: only a packet's first fragment carries them.

use crate::{Be16, Be32};

/// What the fragments of one packet have in common (RFC 791, section 3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentKey {
    pub src: Be32,
    pub dst: Be32,
    /// The identification field.
    pub id: Be16,
    /// Routing domain, as in a flow's key.
    pub domain: u16,
    /// IANA protocol number.
    pub protocol: u8,
    pub reserved: [u8; 3],
}

/// The ports in its first fragment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    pub sport: Be16,
    pub dport: Be16,
    /// Low 32 bits of jiffies when it came, because identifications are reused.
    pub seen: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 16 && size_of::<FragmentPorts>() == 8);

crate::pod!(FragmentKey, FragmentPorts);

/// Number of fragmented packets that are remembered at a time; the oldest are forgotten first.
pub const FRAGMENTED_PACKETS: u32 = 1 << 14;
