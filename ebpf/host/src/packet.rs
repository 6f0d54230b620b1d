//! Packets at the hooks. Each part of one is an allocation of its exact size, so that an address sanitizer sees whatever
//! reaches beyond.

use std::{fmt, mem::zeroed};

use aya_ebpf_bindings::bindings::{__sk_buff, xdp_md};

use crate::programs::{SkBuff, TcContext, XdpContext};

/// A frame in a driver's buffer.
#[repr(C)]
#[derive(Debug)]
pub struct XdpFrame {
    /// First, so that its address is the frame's.
    md: xdp_md,
    bytes: Box<[u8]>,
}

impl XdpFrame {
    /// A frame that came in by an interface.
    #[must_use]
    pub fn new(bytes: &[u8], ifindex: u32) -> Self {
        let md = xdp_md {
            data: 0,
            data_end: 0,
            data_meta: 0,
            ingress_ifindex: ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        Self { md, bytes: bytes.into() }
    }

    /// The context to run a program with, which must end before the frame is used again.
    pub fn context(&mut self) -> XdpContext {
        XdpContext { ctx: (&raw mut *self).cast() }
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
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

/// What a socket buffer's transport checksum says (the kernel's `ip_summed`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is the packet's whole checksum.
    #[default]
    Complete,
    /// `CHECKSUM_PARTIAL`: it is the pseudo-header's sum; the device that sends the packet adds the rest.
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

    /// The context to run a program with, which must end before the buffer is used again.
    pub fn context(&mut self) -> TcContext {
        TcContext { skb: SkBuff { skb: (&raw mut *self).cast() } }
    }

    /// All of its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [&self.linear[..], &self.pages].concat()
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

    /// Makes at least so many bytes directly readable, at another address than before; false: it is shorter.
    pub(crate) fn pull(&mut self, wanted: usize) -> bool {
        if wanted > self.linear.len() + self.pages.len() {
            return false;
        }
        let missing = wanted.saturating_sub(self.linear.len());
        self.linear = self.linear.iter().copied().chain(self.pages.drain(..missing)).collect();
        true
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
    fn a_pull_makes_bytes_readable_and_loses_none() {
        let mut buffer = SocketBuffer::new(&[1, 2, 3, 4, 5], 2, 1);
        assert!(buffer.pull(4));
        assert_eq!((buffer.linear(), buffer.bytes()), (&[1, 2, 3, 4][..], vec![1, 2, 3, 4, 5]));
        assert!(!buffer.pull(6));
        assert_eq!(buffer.linear_len(), 4);
    }
}
