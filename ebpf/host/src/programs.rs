//! The contexts that programs are called with.

use std::ffi::c_void;

use aya_ebpf_bindings::bindings::{__sk_buff, xdp_md};

use crate::{
    EbpfContext,
    packet::{SocketBuffer, XdpFrame},
};

/// The context of an XDP program.
#[derive(Debug)]
pub struct XdpContext {
    pub ctx: *mut xdp_md,
}

impl XdpContext {
    #[must_use]
    pub fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    #[must_use]
    pub fn data(&self) -> usize {
        self.frame().first_buffer().as_ptr() as usize
    }

    #[must_use]
    pub fn data_end(&self) -> usize {
        self.data() + self.frame().first_buffer().len()
    }

    #[must_use]
    pub fn metadata(&self) -> usize {
        self.data() - self.frame().metadata().len()
    }

    #[must_use]
    pub fn ingress_ifindex(&self) -> usize {
        // SAFETY: `ctx` is that of a frame which outlives the program's run.
        unsafe { (*self.ctx).ingress_ifindex as usize }
    }

    fn frame(&self) -> &XdpFrame {
        // SAFETY: as above; a program has no other reference to its frame.
        unsafe { XdpFrame::of(self.ctx) }
    }
}

impl EbpfContext for XdpContext {
    fn as_ptr(&self) -> *mut c_void {
        self.ctx.cast()
    }
}

/// The context of a TC program.
#[derive(Debug)]
pub struct TcContext {
    pub skb: SkBuff,
}

/// A socket buffer as programs see it.
#[derive(Debug)]
pub struct SkBuff {
    pub skb: *mut __sk_buff,
}

impl TcContext {
    #[must_use]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self { skb: SkBuff { skb } }
    }

    #[must_use]
    pub fn data(&self) -> usize {
        self.buffer().linear().as_ptr() as usize
    }

    #[must_use]
    pub fn data_end(&self) -> usize {
        self.data() + self.buffer().linear_len()
    }

    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the name is that of the context it stands for")]
    pub fn len(&self) -> u32 {
        // SAFETY: `skb` is that of a buffer which outlives the program's run.
        unsafe { (*self.skb.skb).len }
    }

    fn buffer(&self) -> &SocketBuffer {
        // SAFETY: as above; a program has no other reference to its buffer.
        unsafe { SocketBuffer::of(self.skb.skb) }
    }
}

impl EbpfContext for TcContext {
    fn as_ptr(&self) -> *mut c_void {
        self.skb.skb.cast()
    }
}
