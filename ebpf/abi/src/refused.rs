//! Packets that the stack refuses with an ICMP error: the sender must recognise its own packet in the quote.

use crate::{Be16, Be32};

/// The original destination of such a packet, by the [key](crate::flow::FlowKey) that the stack saw.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginalDestination {
    pub dst: Be32,
    pub dport: Be16,
    pub reserved: u16,
    /// Low 32 bits of jiffies when it came; the stack answers at once.
    pub seen: u32,
}

const _: () = assert!(size_of::<OriginalDestination>() == 12);

crate::pod!(OriginalDestination);

/// Number of connections whose refused packets are remembered; the oldest are forgotten first.
pub const REFUSED_CONNECTIONS: u32 = 1 << 12;
