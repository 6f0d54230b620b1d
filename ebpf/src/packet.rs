//! What the pipeline asks of a packet, so that no stage is written twice for the two hooks.

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
    /// Verdict: up the network stack.
    const PASS: i32;
    /// Verdict: the packet ends here.
    const DROP: i32;
    /// Packets can be held back at this hook: they can meet the queue of their limit.
    const QUEUES: bool;

    /// Address of the first byte that may be read directly.
    fn data(&self) -> usize;

    /// Address past the last byte that may be read directly.
    fn data_end(&self) -> usize;

    /// Makes the first `bytes` bytes, or all of a shorter packet, directly readable where the hook can; `data` must be
    /// read again after it.
    fn pull(&mut self, bytes: usize);

    /// True when the frame holds an IP packet of `ip_len` bytes; `data` is the frame's address, moved on by a tag of `shift`
    /// bytes.
    fn holds(&self, data: usize, shift: usize, ip_len: usize) -> bool;

    /// Copies so many bytes from this offset, wherever they are; false: the frame has not all of them.
    fn copy(&self, offset: u32, room: &mut OptionsBuffer, length: usize) -> bool;

    /// [`options::examine`] for this packet; a global function as [`Self::open_inbound`] is.
    fn examine_options(&self, offset: u32, length: u32) -> u32;

    /// False: the frame is not addressed to the device that it came by, as far as the hook knows without asking a
    /// table. `data` is the frame's address.
    ///
    /// # Safety
    /// ETH_LEN bytes are directly readable from `data`.
    unsafe fn may_be_for_device(&self, data: usize) -> bool;

    /// [`Self::may_be_for_device`] in full.
    fn is_for_device(&self) -> bool;

    /// What becomes of a frame that seems to be addressed to another host: a hook that cannot be sure leaves it to the one that is.
    fn resolve_other_host(&mut self) -> Reason;

    /// Number of frames on the wire that this packet stands for: an IP packet of `ip_len` bytes, `headers` of them IP and
    /// transport header.
    fn frames(&self, ip_len: u16, headers: u32) -> u32;

    /// True when a way out with this MTU (bytes of IP packet) cannot send an IP packet of `ip_len` bytes, `headers` of
    /// them IP and transport header, in one piece; of a packet that stands for several frames, one of those.
    fn exceeds(&self, ip_len: u16, headers: u32, mtu: u32) -> bool;

    /// Index of the interface it arrived on.
    fn ifindex(&self) -> u32;

    /// The hook's context, for helpers.
    fn context(&self) -> *mut c_void;

    /// Updates the transport checksum at `offset`, whose directly readable address is `address`, after the
    /// pseudo-header's addresses changed by the sum `addresses` and the transport header's ports by `ports`
    /// (`vipgate_abi::checksum`). Last access to the packet: direct addresses are void after it.
    ///
    /// # Safety
    /// `address` is that of two directly readable bytes at `offset`.
    unsafe fn update_l4_checksum(&mut self, address: usize, offset: usize, udp: bool, addresses: u64, ports: u64);

    /// False: the frame is of no VLAN, as far as the hook is told of one beside it.
    fn is_in_vlan(&self) -> bool;

    /// Removes the frame's tag, over which the Ethernet header was written: direct addresses are void after it.
    fn untag(&mut self);

    /// [`open::inbound`](crate::open::inbound) for this packet.
    ///
    /// A *global* function of the hook's own (see `verifier`): one that also takes the context and pointers to numbers.
    fn open_inbound(&self, arrival: &Arrival, new: &mut Connection) -> u64;

    /// [`open::outbound`](crate::open::outbound) for this packet; the same kind of function.
    fn open_outbound(&self, arrival: &Arrival, new: &mut Connection) -> u64;

    /// [`ingress::reverse_path`](crate::ingress::reverse_path) for this packet; the same kind of function.
    fn reverse_path(&self, src: Be32, dst: Be32) -> u32;

    /// Answers the packet, a TCP segment of a connection that the router has ended, with a reset (see [`crate::reset`]): the
    /// verdict, or why it is not answered, or not here. XDP leaves that to the TC stage.
    fn reset(&mut self) -> Result<i32, Reason>;

    /// Where the hook has no queues: whether the driver keeps what [`Self::hand_over`] writes.
    fn can_hand_over(&self) -> bool;

    /// Marks the packet, which is as it came, for the TC stage, which then does all of it, by the neighbour table if that was
    /// noted; false: there is no room for the mark. Direct addresses are void after it.
    fn hand_over(&mut self) -> bool;

    /// Notes beside the packet that the kernel's neighbour table is to find or confirm its next hop, or not.
    fn set_by_neighbour(&mut self, by_neighbour: bool);

    /// What was noted.
    fn is_by_neighbour(&self) -> bool;

    /// Where it has them: notes beside the packet which one it has to meet.
    fn set_queue(&mut self, queue: Queue);

    /// What was noted.
    fn queue(&self) -> Queue;

    /// Sends it through this queue out of the port of this number; its Ethernet header is ready.
    fn enqueue(&mut self, number: u16, queue: Queue) -> i32;

    /// Where the hook has queues: sends it out of the port by the kernel's neighbour table, which finds or confirms the next
    /// hop: it needs no rule of the stack's that forwards it.
    fn send_by_neighbour(&mut self, interface: &Interface) -> i32;

    /// Sends it out of the port of this number, which this hook can send by; its Ethernet header is ready.
    fn send(&mut self, number: u16, interface: &Interface) -> i32;
}

/// Types that packets are read and written in: bytes and 16-bit words.
///
/// Drivers place frames at even addresses, and every header field that the pipeline touches is at an even offset, but
/// 32-bit fields are not at multiples of four: IPv4 addresses start at 26. So wider fields are moved word by word, which
/// is right on every architecture, and needs no byte-wise access.
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

/// Reads a length, which the packet has in network byte order: the one way to read a number that offsets or bounds are
/// made of, since the verifier is told here that it is of 16 bits.
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

/// Writes a MAC address from memory that is no packet's.
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

/// True when the packet has this MAC address there.
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
