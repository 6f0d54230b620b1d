//! VLAN tags (IEEE 802.1Q).
//!
//! A frame of a VLAN does not belong to the device that it came by: the stack takes the tag off and gives the frame to its
//! VLAN device, which has programs of its own, if it is to have any. A priority tag names no VLAN (section 6.8): a frame
//! that has one is treated as if it had none.

use crate::{
    packet::{ETH_LEN, load},
    parse::ethertype,
};

/// EtherTypes of VLAN tags, as read from the frame.
pub const CUSTOMER_TAG: u16 = 0x8100u16.to_be();
const SERVICE_TAG: u16 = 0x88a8u16.to_be();
/// Length of a VLAN tag, in bytes.
pub const TAG_LEN: usize = 4;

/// True for the EtherType of a VLAN tag.
#[inline(always)]
pub fn is_tag(ethertype: u16) -> bool {
    ethertype == CUSTOMER_TAG || ethertype == SERVICE_TAG
}

/// The bits of a tag's TCI that hold the VLAN's number, as read from the frame. A priority tag has 0.
const VLAN: u16 = 0x0fffu16.to_be();

/// True for a TCI, as a number, that names a VLAN.
#[inline(always)]
pub fn names_vlan(tci: u32) -> bool {
    tci as u16 & u16::from_be(VLAN) != 0
}

/// The address that a frame's Ethernet header would have without its priority tag, and that tag's length.
#[inline(always)]
pub fn behind_tag(data: usize, end: usize) -> (usize, usize) {
    if data + ETH_LEN + TAG_LEN > end || !is_tag(ethertype(data)) {
        return (data, 0);
    }
    // SAFETY: checked just above.
    let tci: u16 = unsafe { load(data + ETH_LEN) };
    if tci & VLAN != 0 || is_tag(ethertype(data + TAG_LEN)) { (data, 0) } else { (data + TAG_LEN, TAG_LEN) }
}
