//! What the stack gets of packets that it is to refuse with an ICMP error: the sender is to see his own packet in that.

use crate::{Be16, Be32};

/// Where such a packet was sent, by the [key](crate::flow::FlowKey) of what the stack got.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginalDestination {
    pub dst: Be32,
    pub dport: Be16,
    pub reserved: u16,
    /// Low 32 bits of jiffies when it came: the stack answers at once.
    pub seen: u32,
}

const _: () = assert!(size_of::<OriginalDestination>() == 12);

crate::pod!(OriginalDestination);

/// Connections whose refused packets are remembered; the oldest are forgotten first.
pub const REFUSED_CONNECTIONS: u32 = 1 << 12;
