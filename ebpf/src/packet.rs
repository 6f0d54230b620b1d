//! The interface between the pipeline and a hook's packets, so that no stage is written twice.

use core::ffi::c_void;

use vipgate_abi::{Be32, counters::Reason, interface::Interface};

use crate::{
    types::{Arrival, Connection, OptionsBuffer, Queue},
    verifier,
};

/// Length of the Ethernet header, in bytes.
pub const ETH_LEN: usize = 14;
/// Offset of the transport header: IPv4 without options.
pub const L4_OFFSET: usize = ETH_LEN + 20;

/// A frame at a hook. Offsets count from its Ethernet header.
pub trait Packet {
    /// Verdict: the packet goes up the network stack.
    const PASS: i32;
    /// Verdict: the packet is dropped.
    const DROP: i32;
    /// True if packets can be queued at this hook for their bandwidth limit.
    const QUEUES: bool;

    /// Address of the first byte that may be read directly.
    fn data(&self) -> usize;

    /// Address past the last byte that may be read directly.
    fn data_end(&self) -> usize;

    /// Makes the first `bytes` bytes, or all of a shorter packet, directly readable if the hook can. `data` must be read
    /// again afterwards.
    fn pull(&mut self, bytes: usize);

    /// True if the frame holds an IP packet of `ip_len` bytes. `data` is the frame's address plus the `shift` bytes of a tag.
    fn holds(&self, data: usize, shift: usize, ip_len: usize) -> bool;

    /// Copies `length` bytes from this offset, in whichever buffer they are. False if the frame is shorter.
    fn copy(&self, offset: u32, room: &mut OptionsBuffer, length: usize) -> bool;

    /// [`options::examine`](crate::options::examine) for this packet; a global function like [`Self::open_inbound`].
    fn examine_options(&self, offset: u32, length: u32) -> u32;

    /// False if the frame is not addressed to the device that it came by, as far as the hook knows without a lookup. `data` is
    /// the frame's address.
    ///
    /// # Safety
    /// ETH_LEN bytes are directly readable from `data`.
    unsafe fn may_be_for_device(&self, data: usize) -> bool;

    /// True if the frame is addressed to the device that it came by.
    fn is_for_device(&self) -> bool;

    /// The reason for a frame that seems to be addressed to another host. A hook that cannot be sure hands it to the one
    /// that can.
    fn resolve_other_host(&mut self) -> Reason;

    /// Number of frames on the wire that this packet stands for. The IP packet has `ip_len` bytes, `headers` of them IP and
    /// transport header.
    fn frames(&self, ip_len: u16, headers: u32) -> u32;

    /// True if the packet, or one of the frames that it stands for, is larger than this MTU (bytes of IP packet). The IP
    /// packet has `ip_len` bytes, `headers` of them IP and transport header.
    fn exceeds(&self, ip_len: u16, headers: u32, mtu: u32) -> bool;

    /// Index of the interface it arrived on.
    fn ifindex(&self) -> u32;

    /// The hook's context, for helpers.
    fn context(&self) -> *mut c_void;

    /// Updates the transport checksum at `offset`, whose directly readable address is `address`, after the
    /// pseudo-header's addresses changed by the sum `addresses` and the transport header's ports by `ports`
    /// (`vipgate_abi::checksum`). Direct addresses are invalid afterwards.
    ///
    /// # Safety
    /// `address` is that of two directly readable bytes at `offset`.
    unsafe fn update_l4_checksum(&mut self, address: usize, offset: usize, udp: bool, addresses: u64, ports: u64);

    /// True if the packet's metadata holds the tag of a VLAN. A tag in the frame itself does not count.
    fn is_in_vlan(&self) -> bool;

    /// Removes the frame's tag, over which the Ethernet header was written. Direct addresses are invalid afterwards.
    fn untag(&mut self);

    /// [`open::inbound`](crate::open::inbound) for this packet.
    ///
    /// A *global* function of each hook (see `verifier`), which takes the context and pointers to numbers.
    fn open_inbound(&self, arrival: &Arrival, new: &mut Connection) -> u64;

    /// [`open::outbound`](crate::open::outbound) for this packet; the same kind of function.
    fn open_outbound(&self, arrival: &Arrival, new: &mut Connection) -> u64;

    /// [`ingress::reverse_path`](crate::ingress::reverse_path) for this packet; the same kind of function.
    fn reverse_path(&self, src: Be32, dst: Be32) -> u32;

    /// Answers the packet, a TCP segment of a connection that the router has ended, with a reset (see [`crate::reset`]).
    /// Returns the verdict, or why there is no answer, or not at this hook. XDP leaves it to the TC stage.
    fn reset(&mut self) -> Result<i32, Reason>;

    /// True if the hook has no queues and the driver keeps the mark that [`Self::hand_over`] writes.
    fn can_hand_over(&self) -> bool;

    /// Marks the packet, which must be unchanged, for the TC stage, which then does all the work. The mark also says
    /// whether the packet is [by neighbour](Self::is_by_neighbour). False if there is no room for the mark. Direct
    /// addresses are invalid afterwards.
    fn hand_over(&mut self) -> bool;

    /// Sets in the per-packet scratch field whether the kernel's neighbour table is to find or confirm the next hop.
    fn set_by_neighbour(&mut self, by_neighbour: bool);

    /// The flag that [`Self::set_by_neighbour`] set.
    fn is_by_neighbour(&self) -> bool;

    /// Sets in the per-packet scratch field which queue the packet has to pass, if the hook has queues.
    fn set_queue(&mut self, queue: Queue);

    /// The queue that [`Self::set_queue`] set.
    fn queue(&self) -> Queue;

    /// Sends the packet through this queue and out of the interface with this number. Its Ethernet header is complete.
    fn enqueue(&mut self, number: u16, queue: Queue) -> i32;

    /// At a hook with queues: sends the packet out of the interface by the kernel's neighbour table, which finds or
    /// confirms the next hop. The packet bypasses the stack's forwarding rules.
    fn send_by_neighbour(&mut self, interface: &Interface) -> i32;

    /// Sends the packet out of the interface with this number, which this hook can use. Its Ethernet header is complete.
    fn send(&mut self, number: u16, interface: &Interface) -> i32;
}

/// The types by which packets are read and written: bytes and 16-bit words.
///
/// Drivers place frames at even addresses, and every header field that the pipeline uses is at an even offset. But 32-bit
/// fields are not at multiples of four: IPv4 addresses start at 26. Wider fields are therefore moved word by word, which is
/// correct on every architecture.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}

/// Reads a field.
///
/// # Safety
/// `address..address + size_of::<T>()` is within the packet, at an even offset for words.
#[inline(always)]
pub unsafe fn load<T: Word>(address: usize) -> T {
    // SAFETY: as the caller promises.
    unsafe { (address as *const T).read() }
}

/// Reads a length, which is in network byte order. Every number that becomes an offset or a bound must be read by this
/// function: it shows the verifier that the number has 16 bits.
///
/// # Safety
/// As [`load`] for a word.
#[inline(always)]
pub unsafe fn load_length(address: usize) -> u16 {
    // SAFETY: as the caller promises.
    verifier::bounded(u16::from_be(unsafe { load(address) }))
}

/// Writes a field.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub unsafe fn store<T: Word>(address: usize, value: T) {
    // SAFETY: as the caller promises.
    unsafe { (address as *mut T).write(value) }
}

/// Reads an IPv4 address.
///
/// # Safety
/// As [`load`] for its two words.
#[inline(always)]
pub unsafe fn load_address(address: usize) -> Be32 {
    // SAFETY: as the caller promises.
    let (low, high) = unsafe { (load::<u16>(address), load::<u16>(address + 2)) };
    low as u32 | (high as u32) << 16
}

/// Writes an IPv4 address.
///
/// # Safety
/// As [`load`] for its two words.
#[inline(always)]
pub unsafe fn store_address(address: usize, value: Be32) {
    // SAFETY: as the caller promises.
    unsafe {
        store(address, value as u16);
        store(address + 2, (value >> 16) as u16);
    }
}

/// Writes a MAC address.
///
/// # Safety
/// As [`load`] for its three words.
#[inline(always)]
pub unsafe fn store_mac(address: usize, mac: [u8; 6]) {
    // SAFETY: as the caller promises.
    unsafe {
        store(address, u16::from_ne_bytes([mac[0], mac[1]]));
        store(address + 2, u16::from_ne_bytes([mac[2], mac[3]]));
        store(address + 4, u16::from_ne_bytes([mac[4], mac[5]]));
    }
}

/// Writes a MAC address that is not in packet memory.
///
/// # Safety
/// As [`load`] for the three words at `address`; `mac` points to a MAC address at an even address.
#[inline(always)]
pub unsafe fn copy_mac(address: usize, mac: *const [u8; 6]) {
    let words = mac.cast::<u16>();
    // SAFETY: as the caller promises.
    unsafe {
        store(address, *words);
        store(address + 2, *words.add(1));
        store(address + 4, *words.add(2));
    }
}

/// True if the packet has this MAC address at `address`.
///
/// # Safety
/// As [`copy_mac`].
#[inline(always)]
pub unsafe fn is_mac(address: usize, mac: *const [u8; 6]) -> bool {
    let words = mac.cast::<u16>();
    // SAFETY: as the caller promises.
    unsafe {
        let differs = load::<u16>(address) ^ *words
            | load::<u16>(address + 2) ^ *words.add(1)
            | load::<u16>(address + 4) ^ *words.add(2);
        differs == 0
    }
}
