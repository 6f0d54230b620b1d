//! A packet at the TC hook: a socket buffer, which may be a GSO super-packet with a partial checksum.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_OK, TC_ACT_SHOT},
    helpers::{bpf_l4_csum_replace, bpf_redirect, bpf_skb_pull_data},
    programs::TcContext,
};
use vipgate_abi::checksum::fold;

use crate::packet::{ETH_LEN, Packet};

pub struct TcPacket(pub TcContext);

impl Packet for TcPacket {
    const PASS: i32 = TC_ACT_OK;
    const DROP: i32 = TC_ACT_SHOT;

    #[inline(always)]
    fn data(&self) -> usize {
        self.0.data()
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        self.0.data_end()
    }

    #[inline(always)]
    fn pull(&mut self, bytes: usize) {
        if self.0.data() + bytes > self.0.data_end() {
            // SAFETY: the context is the running program's. Failure leaves the buffer as it was; the bounds check
            // that follows sees it.
            unsafe { bpf_skb_pull_data(self.0.skb.skb, bytes as u32) };
        }
    }

    #[inline(always)]
    fn holds(&self, _data: usize, ip_len: usize) -> bool {
        ETH_LEN + ip_len <= self.0.len() as usize
    }

    #[inline(always)]
    fn frames(&self) -> u32 {
        // SAFETY: reading a field of the running program's context.
        let segments = unsafe { (*self.0.skb.skb).gso_segs };
        if segments == 0 { 1 } else { segments }
    }

    #[inline(always)]
    fn exceeds(&self, ip_len: u16, headers: u32, mtu: u32) -> bool {
        // SAFETY: reading a field of the running program's context.
        let gso_size = unsafe { (*self.0.skb.skb).gso_size };
        // A super-packet goes out in frames of its sender's segment size.
        let largest = if gso_size == 0 { ip_len as u32 } else { headers + gso_size };
        largest > mtu
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: reading a field of the running program's context.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// The helper knows whether the checksum is complete or still partial, where only the pseudo-header counts.
    #[inline(always)]
    unsafe fn update_l4_checksum(&mut self, _address: usize, offset: usize, udp: bool, addresses: u64, ports: u64) {
        let mangled = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        // SAFETY: the context is the running program's, the offset lies in the packet; a size of 0 in the flags means
        // that `to` is a difference.
        unsafe {
            bpf_l4_csum_replace(
                self.0.skb.skb,
                offset as u32,
                0,
                fold(addresses) as u64,
                BPF_F_PSEUDO_HDR as u64 | mangled,
            );
            if ports != 0 {
                bpf_l4_csum_replace(self.0.skb.skb, offset as u32, 0, fold(ports) as u64, mangled);
            }
        }
    }

    #[inline(always)]
    fn send(&self, _port: u16, ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}
