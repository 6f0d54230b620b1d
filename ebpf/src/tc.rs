//! A packet at the TC hook: a socket buffer, which may be a GSO super-packet with a partial checksum.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{
        bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use vipgate_abi::{Be32, checksum::fold, counters::Reason, interface::Interface};

use crate::{
    count, ingress, open, options,
    packet::{ETH_LEN, Packet, load, load_address, store},
    reset,
    types::{Arrival, Connection, OptionsBuffer, Queue},
    verifier::opaque,
    vlan::{self, TAG_LEN},
    xdp::{BY_NEIGHBOUR, HANDED_OVER},
};

/// `GSO_BY_FRAGS`: no common segment size, each segment has its own, as in SCTP's super-packets.
const BY_FRAGMENTS: u32 = 0xffff;

pub struct TcPacket(pub TcContext);

impl Packet for TcPacket {
    /// Other programs and filters on the device still get the packets that go up: OK would end the chain.
    const PASS: i32 = TC_ACT_UNSPEC;
    const DROP: i32 = TC_ACT_SHOT;
    const QUEUES: bool = true;

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
            unsafe { bpf_skb_pull_data(self.0.skb.skb, self.0.len().min(bytes as u32)) };
        }
    }

    #[inline(always)]
    fn holds(&self, _data: usize, shift: usize, ip_len: usize) -> bool {
        shift + ETH_LEN + ip_len <= self.0.len() as usize
    }

    #[inline(always)]
    fn copy(&self, offset: u32, room: &mut OptionsBuffer, length: usize) -> bool {
        // SAFETY: the context is the running program's, the memory the caller's.
        unsafe { bpf_skb_load_bytes(self.0.skb.skb.cast(), offset, room.as_mut_ptr().cast(), length as u32) == 0 }
    }

    #[inline(always)]
    fn examine_options(&self, offset: u32, length: u32) -> u32 {
        examine_tc(self.0.skb.skb, offset, length)
    }

    /// The kernel has compared the address with the device's.
    #[inline(always)]
    unsafe fn may_be_for_device(&self, _data: usize) -> bool {
        const PACKET_HOST: u32 = 0;
        // SAFETY: reading a field of the running program's context.
        unsafe { (*self.0.skb.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn resolve_other_host(&mut self) -> Reason {
        Reason::OtherHost
    }

    #[inline(always)]
    fn is_for_device(&self) -> bool {
        true
    }

    #[inline(always)]
    fn frames(&self, ip_len: u16, headers: u32) -> u32 {
        // SAFETY: reading fields of the running program's context.
        let (segments, size) = unsafe { ((*self.0.skb.skb).gso_segs, (*self.0.skb.skb).gso_size) };
        if segments != 0 {
            return segments;
        }
        // Packets from a virtio device have a segment size, but no number of segments.
        let data = (ip_len as u32).saturating_sub(headers);
        if size == 0 || data == 0 { 1 } else { data.div_ceil(size) }
    }

    #[inline(always)]
    fn exceeds(&self, ip_len: u16, headers: u32, mtu: u32) -> bool {
        // SAFETY: reading a field of the running program's context.
        let gso_size = unsafe { (*self.0.skb.skb).gso_size };
        let largest = match gso_size {
            0 => ip_len as u32,
            // The sizes of the segments are not known.
            BY_FRAGMENTS => 0,
            // A super-packet goes out in frames of its sender's segment size.
            size => headers + size,
        };
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

    /// The helper knows whether the checksum is complete, or partial and covers the pseudo-header only.
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

    /// The first tag is in the metadata. A frame with another tag behind a priority tag belongs to the stack, too.
    #[inline(always)]
    fn is_in_vlan(&self) -> bool {
        // SAFETY: reading fields of the running program's context.
        unsafe {
            (*self.0.skb.skb).vlan_present != 0
                && (vlan::names_vlan((*self.0.skb.skb).vlan_tci) || vlan::is_tag((*self.0.skb.skb).protocol as u16))
        }
    }

    /// The helper moves the old Ethernet header, so that the new one is written again after it.
    #[inline(always)]
    fn untag(&mut self) {
        let data = self.data();
        if data + ETH_LEN + TAG_LEN > self.data_end() {
            return;
        }
        let mut addresses = [0u16; 6];
        // SAFETY: checked just above.
        unsafe { read_addresses(data + TAG_LEN, &mut addresses) };
        self.pop();
        let data = self.data();
        if data + ETH_LEN > self.data_end() {
            return;
        }
        let mut word = 0;
        while word < addresses.len() {
            // SAFETY: within the Ethernet header, checked just above.
            unsafe { store(data + 2 * word, addresses[word]) };
            word += 1;
        }
    }

    #[inline(always)]
    fn open_inbound(&self, arrival: &Arrival, new: &mut Connection) -> u64 {
        open_inbound_tc(self.0.skb.skb, arrival, new)
    }

    #[inline(always)]
    fn open_outbound(&self, arrival: &Arrival, new: &mut Connection) -> u64 {
        open_outbound_tc(self.0.skb.skb, arrival, new)
    }

    #[inline(always)]
    fn reverse_path(&self, src: Be32, dst: Be32) -> u32 {
        reverse_path_tc(self.0.skb.skb, src, dst)
    }

    #[inline(always)]
    fn reset(&mut self) -> Result<i32, Reason> {
        match Reason::of(reset_tc(self.0.skb.skb)) {
            Some(Reason::FlowReset) => {
                count::reason_only(Reason::FlowReset);
                Ok(self.send_back())
            }
            reason => Err(reason.unwrap_or(Reason::FlowEnded)),
        }
    }

    #[inline(always)]
    fn can_hand_over(&self) -> bool {
        false
    }

    #[inline(always)]
    fn hand_over(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn set_by_neighbour(&mut self, by_neighbour: bool) {
        // SAFETY: writing a field of the running program's context.
        unsafe { (*self.0.skb.skb).cb[2] = by_neighbour as u32 };
    }

    #[inline(always)]
    fn is_by_neighbour(&self) -> bool {
        // SAFETY: reading a field of the running program's context.
        unsafe { (*self.0.skb.skb).cb[2] != 0 }
    }

    #[inline(always)]
    fn set_queue(&mut self, queue: Queue) {
        // SAFETY: writing fields of the running program's context.
        unsafe {
            (*self.0.skb.skb).cb[0] = queue.0 as u32;
            (*self.0.skb.skb).cb[1] = (queue.0 >> 32) as u32;
        }
    }

    #[inline(always)]
    fn queue(&self) -> Queue {
        // SAFETY: reading fields of the running program's context.
        unsafe { Queue((*self.0.skb.skb).cb[0] as u64 | ((*self.0.skb.skb).cb[1] as u64) << 32) }
    }

    /// The priority names the class. The mark, which stays with the packet, is the interface's number for [`Self::released`].
    #[inline(always)]
    fn enqueue(&mut self, number: u16, queue: Queue) -> i32 {
        // SAFETY: writing fields of the running program's context; the helper takes numbers only.
        unsafe {
            (*self.0.skb.skb).priority = queue.class();
            (*self.0.skb.skb).mark = number as u32;
            bpf_redirect(queue.device(), 0) as i32
        }
    }

    #[inline(always)]
    fn send_by_neighbour(&mut self, interface: &Interface) -> i32 {
        self.leave_tag();
        // SAFETY: takes numbers only: the kernel looks up the next hop in its routes.
        unsafe { bpf_redirect_neigh(interface.ifindex, ptr::null_mut(), 0, 0) as i32 }
    }

    #[inline(always)]
    fn send(&mut self, _number: u16, interface: &Interface) -> i32 {
        self.leave_tag();
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(interface.ifindex, 0) as i32 }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_inbound_tc(context: *mut __sk_buff, arrival: *const Arrival, new: *mut Connection) -> u64 {
    // SAFETY: the caller's pointers are to its own values, but the verifier looks at this function alone.
    match unsafe { (arrival.as_ref(), new.as_mut()) } {
        (Some(arrival), Some(new)) => open::inbound(&TcPacket(TcContext::new(context)), arrival, new),
        _ => Reason::Unroutable as u64,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_outbound_tc(context: *mut __sk_buff, arrival: *const Arrival, new: *mut Connection) -> u64 {
    // SAFETY: as above.
    match unsafe { (arrival.as_ref(), new.as_mut()) } {
        (Some(arrival), Some(new)) => open::outbound(&TcPacket(TcContext::new(context)), arrival, new),
        _ => Reason::Unroutable as u64,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn examine_tc(context: *mut __sk_buff, offset: u32, length: u32) -> u32 {
    options::examine(&TcPacket(TcContext::new(context)), offset, length)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reverse_path_tc(context: *mut __sk_buff, src: Be32, dst: Be32) -> u32 {
    ingress::reverse_path(&TcPacket(TcContext::new(context)), src, dst)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reset_tc(context: *mut __sk_buff) -> u32 {
    reset::answer_with_reset(&mut TcPacket(TcContext::new(context))) as u32
}

/// Reads an Ethernet header's addresses.
///
/// # Safety
/// 12 bytes at `at` are directly readable.
#[inline(always)]
unsafe fn read_addresses(at: usize, addresses: &mut [u16; 6]) {
    let mut word = 0;
    while word < addresses.len() {
        // SAFETY: as the caller promises.
        addresses[word] = unsafe { load(at + 2 * word) };
        word += 1;
    }
}

impl TcPacket {
    /// Writes the transport checksum of a new transport header, from the sums of the pseudo-header and of the rest. The
    /// checksum is at `offset`, and `address` is its directly readable address. Direct addresses are invalid afterwards.
    ///
    /// A partial checksum's field holds the pseudo-header's sum, which the helper does not change without the flag for it.
    ///
    /// # Safety
    /// As [`Packet::update_l4_checksum`].
    #[inline(always)]
    pub unsafe fn write_l4_checksum(&mut self, address: usize, offset: usize, pseudo_header: u64, rest: u64) {
        let pseudo_header = fold(pseudo_header);
        // SAFETY: as the caller promises.
        unsafe { store(address, pseudo_header) };
        // The helper stores !(!field + difference) if the checksum is complete.
        let difference = fold(2 * pseudo_header as u64 + rest);
        // SAFETY: as in `update_l4_checksum`.
        unsafe { bpf_l4_csum_replace(self.0.skb.skb, offset as u32, 0, difference as u64, 0) };
    }

    /// Cuts the packet to `length` bytes, which are all directly readable then, at new addresses. False on failure.
    #[inline(always)]
    pub fn trim(&mut self, length: usize) -> bool {
        // SAFETY: the context is the running program's.
        unsafe { bpf_skb_change_tail(self.0.skb.skb, length as u32, 0) == 0 }
    }

    /// Sends the packet out of the device that it came by, with the tag in its metadata. Its Ethernet header is complete.
    #[inline(always)]
    pub fn send_back(&mut self) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(self.ifindex(), 0) as i32 }
    }

    /// Removes the priority tag that the kernel keeps in the packet's metadata.
    #[inline(always)]
    fn leave_tag(&mut self) {
        // SAFETY: reading a field of the running program's context.
        if unsafe { (*self.0.skb.skb).vlan_present } != 0 {
            self.pop();
        }
    }

    /// At egress: true for packets that the router's own stack created, false for those that it forwards.
    #[inline(always)]
    pub fn is_local(&self) -> bool {
        // SAFETY: reading a field of the running program's context.
        unsafe { (*self.0.skb.skb).ingress_ifindex == 0 }
    }

    /// The mark of a packet that the XDP stage handed over; 0 if it did not.
    #[inline(always)]
    pub fn handed_over(&self) -> u32 {
        // SAFETY: reading a field of the running program's context.
        let at = unsafe { (*self.0.skb.skb).data_meta } as usize;
        if at + size_of_val(&HANDED_OVER) > self.data() {
            return 0;
        }
        // SAFETY: checked just before.
        let mark = unsafe { load_address(at) };
        if mark == HANDED_OVER || mark == BY_NEIGHBOUR { mark } else { 0 }
    }

    /// The interface that a packet was queued for. Clears the fields that stored it.
    #[inline(always)]
    pub fn released(&mut self) -> u16 {
        // SAFETY: fields of the running program's context.
        unsafe {
            let number = (*self.0.skb.skb).mark as u16;
            (*self.0.skb.skb).mark = 0;
            (*self.0.skb.skb).priority = 0;
            number
        }
    }

    /// Removes the tag.
    #[inline(never)]
    fn pop(&mut self) -> u32 {
        // SAFETY: the context is the running program's. Failure leaves the tag where it is.
        unsafe { bpf_skb_vlan_pop(self.0.skb.skb) };
        opaque(0)
    }
}
