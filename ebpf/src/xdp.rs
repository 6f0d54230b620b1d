//! A packet at the XDP hook: a raw frame in the driver's buffer.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    programs::XdpContext,
};
use vipgate_abi::checksum;

use crate::{
    maps::TX_PORTS,
    packet::{ETH_LEN, Packet, load, store},
};

pub struct XdpPacket(pub XdpContext);

impl Packet for XdpPacket {
    const PASS: i32 = XDP_PASS as i32;
    const DROP: i32 = XDP_DROP as i32;

    #[inline(always)]
    fn data(&self) -> usize {
        self.0.data()
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        self.0.data_end()
    }

    #[inline(always)]
    fn pull(&mut self, _bytes: usize) {}

    #[inline(always)]
    fn holds(&self, data: usize, ip_len: usize) -> bool {
        data + ETH_LEN + ip_len <= self.data_end()
    }

    #[inline(always)]
    fn frames(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn exceeds(&self, ip_len: u16, _headers: u32, mtu: u32) -> bool {
        ip_len as u32 > mtu
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    #[inline(always)]
    unsafe fn update_l4_checksum(&mut self, address: usize, _offset: usize, udp: bool, addresses: u64, ports: u64) {
        // SAFETY: the caller gives the address of two readable bytes.
        let old: u16 = unsafe { load(address) };
        let delta = addresses + ports;
        let new = if udp { checksum::update_udp(old, delta) } else { checksum::update(old, delta) };
        // SAFETY: as above.
        unsafe { store(address, new) };
    }

    #[inline(always)]
    fn send(&self, port: u16, _ifindex: u32) -> i32 {
        // A port that has just gone reads as a miss: the lower flag bits give the verdict for it.
        match TX_PORTS.redirect(port as u32, XDP_DROP as u64) {
            Ok(verdict) | Err(verdict) => verdict as i32,
        }
    }
}
