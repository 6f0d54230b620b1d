//! A packet at the XDP hook: a raw frame in the driver's buffer.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS},
        xdp_md,
    },
    helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use vipgate_abi::{Be32, checksum, counters::Reason, interface::Interface};

use crate::{
    ingress,
    maps::TX_PORTS,
    open, options,
    packet::{ETH_LEN, Packet, is_mac, load, store, store_address},
    route,
    types::{Arrival, Connection, OptionsBuffer, Queue},
    verifier::opaque,
    vlan::TAG_LEN,
};

/// Metadata of a packet that is handed over to the TC stage: "vgtc".
pub const HANDED_OVER: u32 = u32::from_be_bytes(*b"vgtc").to_be();
/// The same for a packet that goes by the kernel's neighbour table: "vgtn".
pub const BY_NEIGHBOUR: u32 = u32::from_be_bytes(*b"vgtn").to_be();

/// Native XDP is run by the driver, generic XDP by the kernel's stack.
pub const NATIVE: bool = false;
pub const GENERIC: bool = true;

/// The kind is a constant parameter, so it costs nothing at run time.
pub struct XdpPacket<const KIND: bool> {
    context: XdpContext,
    by_neighbour: bool,
}

impl<const KIND: bool> Packet for XdpPacket<KIND> {
    const PASS: i32 = XDP_PASS as i32;
    const DROP: i32 = XDP_DROP as i32;
    const QUEUES: bool = false;

    #[inline(always)]
    fn data(&self) -> usize {
        self.context.data()
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        self.context.data_end()
    }

    #[inline(always)]
    fn pull(&mut self, _bytes: usize) {}

    #[inline(always)]
    fn holds(&self, data: usize, shift: usize, ip_len: usize) -> bool {
        // Of a frame in several buffers, the first holds the headers.
        data + ETH_LEN + ip_len <= self.data_end() || shift + ETH_LEN + ip_len <= self.buffers()
    }

    #[inline(always)]
    fn copy(&self, offset: u32, room: &mut OptionsBuffer, length: usize) -> bool {
        // SAFETY: the context is the running program's, the memory the caller's.
        unsafe { bpf_xdp_load_bytes(self.context.ctx, offset, room.as_mut_ptr().cast(), length as u32) == 0 }
    }

    #[inline(always)]
    fn examine_options(&self, offset: u32, length: u32) -> u32 {
        examine_xdp(self.context.ctx, offset, length)
    }

    /// Checks the group bit only (IEEE 802, section 8.2): the device's own address would take two lookups.
    #[inline(always)]
    unsafe fn may_be_for_device(&self, data: usize) -> bool {
        // SAFETY: as the caller promises.
        unsafe { load::<u8>(data) & 1 == 0 }
    }

    /// Asked before a connection is opened, not for each of its packets: what a bridge floods of another host's
    /// connections never gets a flow here, so that all of it comes to this. Only of connections that this router had before
    /// another took their VIP does it carry on what is flooded.
    #[inline(always)]
    fn is_for_device(&self) -> bool {
        let data = self.data();
        if data + ETH_LEN > self.data_end() {
            return false;
        }
        // SAFETY: checked just above; a port's address is at an even address.
        route::interface_of(self.ifindex()).is_none_or(|interface| unsafe { is_mac(data, &interface.mac) })
    }

    /// The device may have another address by now, and only the controller updates the table. The TC stage knows the
    /// current address.
    #[inline(always)]
    fn resolve_other_host(&mut self) -> Reason {
        let data = self.data();
        // SAFETY: checked here.
        let may_be_ours = data + ETH_LEN <= self.data_end() && unsafe { self.may_be_for_device(data) };
        if may_be_ours && self.can_hand_over() && self.hand_over() { Reason::HandedOver } else { Reason::OtherHost }
    }

    #[inline(always)]
    fn frames(&self, _ip_len: u16, _headers: u32) -> u32 {
        1
    }

    #[inline(always)]
    fn exceeds(&self, ip_len: u16, _headers: u32, mtu: u32) -> bool {
        ip_len as u32 > mtu
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.context.as_ptr()
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

    /// Tags are in the frame. XDP does not see tags that the device has stripped.
    #[inline(always)]
    fn is_in_vlan(&self) -> bool {
        false
    }

    #[inline(always)]
    fn untag(&mut self) {
        // SAFETY: the context is the running program's. It only fails for frames that parse rejects.
        unsafe { bpf_xdp_adjust_head(self.context.ctx, TAG_LEN as i32) };
    }

    #[inline(always)]
    fn open_inbound(&self, arrival: &Arrival, new: &mut Connection) -> u64 {
        open_inbound_xdp(self.context.ctx, arrival, new)
    }

    #[inline(always)]
    fn open_outbound(&self, arrival: &Arrival, new: &mut Connection) -> u64 {
        open_outbound_xdp(self.context.ctx, arrival, new)
    }

    #[inline(always)]
    fn reverse_path(&self, src: Be32, dst: Be32) -> u32 {
        reverse_path_xdp(self.context.ctx, src, dst)
    }

    #[inline(always)]
    fn reset(&mut self) -> Result<i32, Reason> {
        let is_handed_over = self.can_hand_over() && self.hand_over();
        Err(if is_handed_over { Reason::HandedOver } else { Reason::FlowEnded })
    }

    /// For drivers without metadata support, the metadata begin beyond the packet.
    #[inline(always)]
    fn can_hand_over(&self) -> bool {
        self.context.metadata() <= self.context.data()
    }

    #[inline(always)]
    fn hand_over(&mut self) -> bool {
        self.mark(if self.is_by_neighbour() { BY_NEIGHBOUR } else { HANDED_OVER }) != 0
    }

    #[inline(always)]
    fn set_by_neighbour(&mut self, by_neighbour: bool) {
        self.by_neighbour = by_neighbour;
    }

    #[inline(always)]
    fn is_by_neighbour(&self) -> bool {
        self.by_neighbour
    }

    #[inline(always)]
    fn set_queue(&mut self, _queue: Queue) {}

    #[inline(always)]
    fn queue(&self) -> Queue {
        Queue::NONE
    }

    #[inline(always)]
    fn enqueue(&mut self, _number: u16, _queue: Queue) -> i32 {
        XDP_DROP as i32
    }

    #[inline(always)]
    fn send_by_neighbour(&mut self, _interface: &Interface) -> i32 {
        XDP_DROP as i32
    }

    #[inline(always)]
    fn send(&mut self, number: u16, interface: &Interface) -> i32 {
        if KIND == GENERIC {
            // The kernel lets only one kind of program use a DEVMAP: native XDP has it.
            // SAFETY: no memory is involved.
            return unsafe { bpf_redirect(interface.ifindex, 0) as i32 };
        }
        // If the interface has just gone, the lower flag bits are the verdict.
        match TX_PORTS.redirect(number as u32, XDP_DROP as u64) {
            Ok(verdict) | Err(verdict) => verdict as i32,
        }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_inbound_xdp(context: *mut xdp_md, arrival: *const Arrival, new: *mut Connection) -> u64 {
    // SAFETY: the caller's pointers are to its own values, but the verifier looks at this function alone.
    match unsafe { (arrival.as_ref(), new.as_mut()) } {
        (Some(arrival), Some(new)) => open::inbound(&XdpPacket::<NATIVE>::new(XdpContext::new(context)), arrival, new),
        _ => Reason::Unroutable as u64,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_outbound_xdp(context: *mut xdp_md, arrival: *const Arrival, new: *mut Connection) -> u64 {
    // SAFETY: as above.
    match unsafe { (arrival.as_ref(), new.as_mut()) } {
        (Some(arrival), Some(new)) => open::outbound(&XdpPacket::<NATIVE>::new(XdpContext::new(context)), arrival, new),
        _ => Reason::Unroutable as u64,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn examine_xdp(context: *mut xdp_md, offset: u32, length: u32) -> u32 {
    options::examine(&XdpPacket::<NATIVE>::new(XdpContext::new(context)), offset, length)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reverse_path_xdp(context: *mut xdp_md, src: Be32, dst: Be32) -> u32 {
    ingress::reverse_path(&XdpPacket::<NATIVE>::new(XdpContext::new(context)), src, dst)
}

impl<const KIND: bool> XdpPacket<KIND> {
    #[inline(always)]
    pub fn new(context: XdpContext) -> Self {
        Self { context, by_neighbour: false }
    }

    /// Writes a mark into the packet's metadata. 0 if there is no room.
    #[inline(never)]
    fn mark(&mut self, mark: u32) -> u32 {
        // SAFETY: the context is the running program's.
        if unsafe { bpf_xdp_adjust_meta(self.context.ctx, -(size_of_val(&HANDED_OVER) as i32)) } != 0 {
            return opaque(0);
        }
        let at = self.context.metadata();
        if at + size_of_val(&HANDED_OVER) > self.data() {
            return opaque(0);
        }
        // SAFETY: checked just above.
        unsafe { store_address(at, mark) };
        opaque(1)
    }

    /// Length of the frame in all its buffers, in bytes.
    #[inline(never)]
    fn buffers(&self) -> usize {
        // SAFETY: the context is the running program's.
        unsafe { bpf_xdp_get_buff_len(self.context.ctx) as usize }
    }
}
