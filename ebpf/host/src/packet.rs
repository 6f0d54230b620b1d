//! Packets at the hooks. Each part of a packet is an allocation of its exact size, so that the address sanitizer detects
//! every access beyond it.

use std::{fmt, mem::zeroed};

use aya_ebpf_bindings::bindings::{__sk_buff, xdp_md};

use crate::programs::{TcContext, XdpContext};

/// Length of the Ethernet header, and where its type is.
const ETH_LEN: usize = 14;
const ETHERTYPE: usize = 12;
/// EtherTypes of VLAN tags (IEEE 802.1Q, 802.1ad), as read from a frame.
const TAGS: [u16; 2] = [0x8100u16.to_be(), 0x88a8u16.to_be()];

/// Whom a socket buffer is addressed to (`PACKET_*` of linux/if_packet.h).
const HOST: u32 = 0;
const BROADCAST: u32 = 1;
const MULTICAST: u32 = 2;
const OTHER_HOST: u32 = 3;

/// A frame in a driver's buffer.
#[repr(C)]
#[derive(Debug)]
pub struct XdpFrame {
    /// First, so that its address is the frame's.
    md: xdp_md,
    /// Metadata, and the first buffer.
    bytes: Box<[u8]>,
    /// Bytes of metadata.
    metadata: usize,
    /// The bytes of the other buffers, which are not directly readable.
    others: Box<[u8]>,
}

impl XdpFrame {
    /// A frame that came in by an interface, so many bytes of it in its first buffer.
    #[must_use]
    pub fn new(bytes: &[u8], first: usize, ifindex: u32) -> Self {
        let (bytes, others) = bytes.split_at(first.min(bytes.len()));
        let md = xdp_md {
            data: 0,
            data_end: 0,
            data_meta: 0,
            ingress_ifindex: ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        Self { md, bytes: bytes.into(), metadata: 0, others: others.into() }
    }

    /// The context to run a program with, which must end before the frame is used again.
    pub fn context(&mut self) -> XdpContext {
        XdpContext::new((&raw mut *self).cast())
    }

    /// All of its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [self.first_buffer(), &self.others].concat()
    }

    /// The metadata that a program wrote before the frame.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        &self.bytes[..self.metadata]
    }

    pub(crate) fn first_buffer(&self) -> &[u8] {
        &self.bytes[self.metadata..]
    }

    /// Makes room for 4 bytes of metadata, if there are none yet. False for other sizes.
    pub(crate) fn move_metadata(&mut self, delta: i32) -> bool {
        let fits = self.metadata == 0 && delta == -4;
        if fits {
            self.metadata = 4;
            self.bytes = [&[0; 4], &self.bytes[..]].concat().into();
        }
        fits
    }

    /// Moves the frame's first byte. False if there is no room, or too little would be left.
    pub(crate) fn move_head(&mut self, delta: i32) -> bool {
        const ROOM: usize = 8;
        assert_eq!(self.metadata, 0, "metadata would have to move along");
        let by = delta.unsigned_abs() as usize;
        if delta < 0 && by <= ROOM {
            self.bytes = vec![0; by].into_iter().chain(self.bytes.iter().copied()).collect();
        } else if delta >= 0 && by + ETH_LEN <= self.bytes.len() {
            self.bytes = self.bytes[by..].into();
        } else {
            return false;
        }
        true
    }

    /// The frame of a context.
    ///
    /// # Safety
    /// `ctx` is from [`Self::context`], of a frame that lives and is not referred to otherwise.
    pub(crate) unsafe fn of<'a>(ctx: *mut xdp_md) -> &'a mut Self {
        // SAFETY: as the caller promises; the first field's address is the structure's.
        unsafe { &mut *ctx.cast() }
    }
}

/// The state of a socket buffer's transport checksum (the kernel's `ip_summed`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The checksum is complete.
    #[default]
    Complete,
    /// `CHECKSUM_PARTIAL`: the field holds the pseudo-header's sum; the device that sends the packet adds the rest.
    Partial,
}

/// A socket buffer: a directly readable part, and pages behind it.
#[repr(C)]
pub struct SocketBuffer {
    /// First, so that its address is the buffer's.
    skb: __sk_buff,
    linear: Box<[u8]>,
    pages: Vec<u8>,
    pub(crate) checksum: Checksum,
}

impl SocketBuffer {
    /// A packet that came in by an interface, of which so many bytes are directly readable.
    #[must_use]
    pub fn new(bytes: &[u8], linear: usize, ifindex: u32) -> Self {
        let (linear, pages) = bytes.split_at(linear.min(bytes.len()));
        // SAFETY: a plain C structure of integers, and unions of them with pointers that may be null.
        let mut skb: __sk_buff = unsafe { zeroed() };
        skb.len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        skb.ifindex = ifindex;
        skb.ingress_ifindex = ifindex;
        let ethertype = bytes.get(ETHERTYPE..ETH_LEN).map_or(0, |word| u16::from_ne_bytes([word[0], word[1]]));
        skb.protocol = ethertype.into();
        Self { skb, linear: linear.into(), pages: pages.to_vec(), checksum: Checksum::Complete }
    }

    /// Makes it a super-packet of so many segments of this size.
    #[must_use]
    pub fn segments(mut self, count: u32, size: u32) -> Self {
        self.skb.gso_segs = count;
        self.skb.gso_size = size;
        self
    }

    #[must_use]
    pub fn checksum(mut self, checksum: Checksum) -> Self {
        self.checksum = checksum;
        self
    }

    /// Makes it a packet that the router's own stack created.
    #[must_use]
    pub fn local(mut self) -> Self {
        self.skb.ingress_ifindex = 0;
        self
    }

    /// Receives it by a device with this MAC address: sets the packet type (`eth_type_trans`), and moves the first VLAN tag
    /// from the frame to the metadata (`skb_vlan_untag`).
    #[must_use]
    pub fn received(mut self, mac: [u8; 6]) -> Self {
        self.skb.pkt_type = match self.bytes().get(..mac.len()) {
            Some(to) if to == [0xff; 6] => BROADCAST,
            Some([first, ..]) if first & 1 != 0 => MULTICAST,
            Some(to) if to != mac => OTHER_HOST,
            _ => HOST,
        };
        self.pull(ETH_LEN + 4);
        if let Some([protocol, tci]) = self.take_tag() {
            self.set_tag(protocol, u16::from_be(tci));
        }
        self
    }

    /// The context to run a program with, which must end before the buffer is used again.
    pub fn context(&mut self) -> TcContext {
        TcContext::new((&raw mut *self).cast())
    }

    /// All of its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [&self.linear[..], &self.pages].concat()
    }

    /// All of its bytes as on the wire: with the VLAN tag in the metadata.
    #[must_use]
    pub fn on_wire(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        if self.skb.vlan_present != 0 {
            bytes.splice(ETHERTYPE..ETHERTYPE, self.tag_beside().map(u16::to_ne_bytes).concat());
        }
        bytes
    }

    pub(crate) fn linear(&self) -> &[u8] {
        &self.linear
    }

    pub(crate) fn linear_mut(&mut self) -> &mut [u8] {
        &mut self.linear
    }

    pub(crate) fn linear_len(&self) -> usize {
        self.linear.len()
    }

    /// Makes at least so many bytes directly readable, at another address than before. False if it is shorter.
    pub(crate) fn pull(&mut self, wanted: usize) -> bool {
        if wanted > self.linear.len() + self.pages.len() {
            return false;
        }
        let missing = wanted.saturating_sub(self.linear.len());
        self.linear = self.linear.iter().copied().chain(self.pages.drain(..missing)).collect();
        true
    }

    /// Cuts it to so many bytes. False if it is shorter.
    pub(crate) fn trim(&mut self, length: usize) -> bool {
        if !self.pull(self.linear.len() + self.pages.len()) || length < ETH_LEN || length > self.linear.len() {
            return false;
        }
        self.linear = self.linear[..length].into();
        self.skb.len = length as u32;
        (self.skb.gso_segs, self.skb.gso_size) = (0, 0);
        true
    }

    /// `skb_vlan_pop`: removes the tag in the metadata, else the first one in the frame. The next tag in the frame goes to
    /// the metadata.
    pub(crate) fn pop_tag(&mut self) {
        if self.skb.vlan_present != 0 {
            self.skb.vlan_present = 0;
        } else if self.take_tag().is_none() {
            return;
        }
        if let Some([protocol, tci]) = self.take_tag() {
            self.set_tag(protocol, u16::from_be(tci));
        }
    }

    /// `skb_vlan_push`: a tag in the metadata goes into the frame.
    pub(crate) fn push_tag(&mut self, protocol: u16, tci: u16) {
        if self.skb.vlan_present != 0 {
            let inner = self.tag_beside();
            let (head, tail) = self.linear.split_at(ETHERTYPE);
            self.linear = [head, &inner.map(u16::to_ne_bytes).concat(), tail].concat().into();
            self.skb.len += 4;
            self.skb.protocol = u32::from(inner[0]);
        }
        self.set_tag(protocol, tci);
    }

    /// The tag in the metadata: type and TCI as they would be in the frame.
    fn tag_beside(&self) -> [u16; 2] {
        [self.skb.vlan_proto as u16, (self.skb.vlan_tci as u16).to_be()]
    }

    fn set_tag(&mut self, protocol: u16, tci: u16) {
        self.skb.vlan_present = 1;
        self.skb.vlan_proto = protocol.into();
        self.skb.vlan_tci = tci.into();
    }

    /// Takes the first tag out of the frame, if the protocol field says that there is one: type and TCI as they were in the
    /// frame.
    fn take_tag(&mut self) -> Option<[u16; 2]> {
        let protocol = self.skb.protocol as u16;
        if !TAGS.contains(&protocol) || self.linear.len() < ETH_LEN + 4 {
            return None;
        }
        let word = |at: usize| u16::from_ne_bytes([self.linear[at], self.linear[at + 1]]);
        let (tci, next) = (word(ETH_LEN), word(ETH_LEN + 2));
        self.linear = [&self.linear[..ETHERTYPE], &self.linear[ETHERTYPE + 4..]].concat().into();
        self.skb.len -= 4;
        self.skb.protocol = next.into();
        Some([protocol, tci])
    }

    /// The buffer of a context.
    ///
    /// # Safety
    /// `skb` is from [`Self::context`], of a buffer that lives and is not referred to otherwise.
    pub(crate) unsafe fn of<'a>(skb: *mut __sk_buff) -> &'a mut Self {
        // SAFETY: as the caller promises; the first field's address is the structure's.
        unsafe { &mut *skb.cast() }
    }
}

impl fmt::Debug for SocketBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketBuffer")
            .field("segments", &(self.skb.gso_segs, self.skb.gso_size))
            .field("linear", &self.linear)
            .field("pages", &self.pages)
            .field("checksum", &self.checksum)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_off_as_the_kernel_takes_them() {
        let frame = |tags: &[u8]| [&[1; 12][..], tags, &[8, 0, 9, 9]].concat();
        let mut buffer = SocketBuffer::new(&frame(&[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2]), 64, 1);
        buffer.pop_tag();
        assert_eq!((buffer.bytes(), buffer.skb.vlan_present, buffer.skb.vlan_tci), (frame(&[]), 1, 2));
        buffer.pop_tag();
        assert_eq!((buffer.bytes(), buffer.skb.vlan_present), (frame(&[]), 0));
        buffer.push_tag(TAGS[0], 5);
        buffer.push_tag(TAGS[1], 6);
        assert_eq!((buffer.bytes(), buffer.skb.vlan_tci), (frame(&[0x81, 0, 0, 5]), 6));
    }

    #[test]
    fn a_pull_makes_bytes_readable_and_loses_none() {
        let mut buffer = SocketBuffer::new(&[1, 2, 3, 4, 5], 2, 1);
        assert!(buffer.pull(4));
        assert_eq!((buffer.linear(), buffer.bytes()), (&[1, 2, 3, 4][..], vec![1, 2, 3, 4, 5]));
        assert!(!buffer.pull(6));
        assert_eq!(buffer.linear_len(), 4);
    }
}
