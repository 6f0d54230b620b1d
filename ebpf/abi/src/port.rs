//! The router's devices as the packet path sees them: small numbers instead of interface indexes.
//!
//! Port 0 is no device: a flow whose port is 0 is rewritten and handed to the stack, which routes it.

use crate::Be32;

/// A device that carries a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Interface index; 0: this number is free.
    pub ifindex: u32,
    /// Largest IP packet that the device sends, in bytes.
    pub mtu: u32,
    /// The device's own MAC address: the source of what it sends.
    pub mac: [u8; 6],
    pub reserved: u16,
    /// VLAN tags that its packets leave with, the outer one first: TPID and TCI as in the frame (IEEE 802.1Q, section 9.3); 0:
    /// none. The port of a VLAN device has the index of the device below it.
    pub tags: [Be32; 2],
}

/// Port number of the network stack.
pub const STACK: u16 = 0;

const _: () = assert!(size_of::<Port>() == 24);

crate::pod!(Port);
