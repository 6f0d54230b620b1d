//! Stage 6: bandwidth limits (`vipgate_abi::meter`).
//!
//! The flow's backend names the limit that the packet counts against; if there is none, that costs a load and a branch. If
//! ports of a VIP have limits of their own, services that cover several ports (a range, an elastic IP, source NAT) look up
//! the packet's port. A packet counts against one limit, before it is changed.
//!
//! TCP needs a queue: a sender whose bursts are cut off never finds the rate. So a limited packet waits in a queue that is
//! served at its limit's rate: an HTB class of a device of the router's own (`net::queue` of the agent). It comes out at
//! that device's other end, and leaves from there ([`dequeue`]). The meter keeps the queue short: its lead over the clock
//! is the packet's delay in the queue, beyond which packets are marked (RFC 3168) or dropped. Only socket buffers can be
//! queued, so XDP hands such packets over to the TC stage. Limits without a queue (because the rate needs none, or because
//! the kernel or the driver does not support it) drop what exceeds a burst that suits TCP.

use core::ptr;

use vipgate_abi::{
    Be16, Be32,
    checksum::delta16,
    counters::Reason,
    fair_share::Share,
    meter::{Binding, FragmentPass, INBOUND, MeterPort, Metered, OUTBOUND, Rate, class},
};

use crate::{
    atomic, clock, count,
    maps::{BACKENDS, CONFIG, METER_SHARES, METER_STATES, METER_TRAFFIC, METERS, PORT_METERS},
    packet::{ETH_LEN, Packet, load, store},
    parse::{FRAGMENT_OFFSET, Headers, MORE_FRAGMENTS, has_ports},
    route,
    table::Slot,
    types::Queue,
};

/// What [`charge_or_queue`] returns besides a queue.
const PASS: u64 = Queue::NONE.0;
const OVER: u64 = 1;

/// The limit that a backend's packets count against.
#[inline(always)]
fn of_backend(number: u32) -> Binding {
    BACKENDS.get(number).map_or(Binding::default(), |backend| backend.meter)
}

/// Counts a packet against its limit, and sets the queue that it has to pass. An error if the packet does not leave.
#[inline(always)]
pub fn charge<P: Packet>(packet: &mut P, headers: &Headers, slot: &Slot) -> Result<(), Reason> {
    let flow = slot.flow;
    // SAFETY: `flow` points into FLOWS.
    let binding = of_backend(unsafe { (*flow).target.backend() });
    if binding == Binding::default() {
        return Ok(());
    }
    let is_outward = slot.mark.is_outward();
    let mut number = binding.number();
    if binding.is_by_port() {
        // SAFETY: as above. Another CPU may be claiming the slot: `forward` finds out.
        let (vip, port, protocol) = unsafe {
            let protocol = (*flow).key.protocol;
            if is_outward {
                ((*flow).new_src, (*flow).new_sport, protocol)
            } else {
                ((*flow).key.dst, (*flow).key.dport, protocol)
            }
        };
        number = limit_of(number, vip, if has_ports(protocol) { port } else { 0 } as u32);
    }
    let direction = if is_outward { OUTBOUND } else { INBOUND };
    let Some(meter) = METERS.get(number) else {
        return Ok(());
    };
    let rate = &meter.rates[direction];
    if !rate.is_limited() {
        return Ok(());
    }
    let frames = packet.frames(headers.ip_len, headers.header_len as u32);
    let bytes = headers.wire_bytes(frames);
    let is_queued = rate.queue != 0;
    let fragment = fragment_bits(headers);
    if !is_queued && fragment & FIRST == 0 && charge_fast(number, direction, rate, bytes, frames) {
        return Ok(());
    }
    if is_queued && !P::QUEUES && packet.can_hand_over() {
        return Err(if packet.hand_over() { Reason::HandedOver } else { Reason::OverLimit });
    }
    let how = fragment | direction as u32 | if P::QUEUES { 0 } else { ALONE };
    // SAFETY: as above.
    match charge_or_queue(number, how, bytes, frames, unsafe { (*flow).peer }) {
        OVER => Err(Reason::OverLimit),
        queue => {
            packet.set_queue(Queue(queue));
            Ok(())
        }
    }
}

/// The limit of a port of a VIP, or `number`, that of the VIP, if the port has none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn limit_of(number: u32, vip: Be32, port: u32) -> u32 {
    let key = MeterPort { vip, port: port as Be16, reserved: 0 };
    match PORT_METERS.get_ptr(&key) {
        // SAFETY: a value of PORT_METERS.
        Some(own) => unsafe { *own },
        None => number,
    }
}

/// In [`charge_or_queue`]'s `how`, above the direction: the packet cannot be queued at this hook.
const ALONE: u32 = 2;
/// The packet is a fragment, whose identification is in the upper 16 bits.
const FRAGMENT: u32 = 4;
/// It is its packet's first fragment.
const FIRST: u32 = 8;

/// The bits of `how` for the packet's fragmentation.
#[inline(always)]
fn fragment_bits(headers: &Headers) -> u32 {
    let ip = headers.data + ETH_LEN;
    // SAFETY: parse checked the header's bounds.
    let (id, fragment) = unsafe { (load::<u16>(ip + 4) as u32, load::<u16>(ip + 6)) };
    if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == 0 {
        0
    } else {
        id << 16 | FRAGMENT | if fragment & FRAGMENT_OFFSET == 0 { FIRST } else { 0 }
    }
}

/// The clock of limits without a queue.
#[inline(always)]
fn coarse_nanoseconds() -> u64 {
    let tick = CONFIG.get(0).map_or(0, |config| config.tick);
    clock::jiffies64() * tick as u64
}

/// Counts a packet of a limit without a queue, if the limit is far away; else returns false, and [`charge_or_queue`] has to
/// count it. Inlined, because a function call costs as much.
#[inline(always)]
fn charge_fast(number: u32, direction: usize, rate: &Rate, bytes: u32, frames: u32) -> bool {
    let now = rate.clock(coarse_nanoseconds());
    let Some((word, _, counters)) = state_of(number, direction) else {
        return true;
    };
    // SAFETY: aligned word of METER_STATES.
    let held = unsafe { ptr::read_volatile(word) };
    let lead = rate.lead(held, now);
    if lead > rate.congested {
        return false;
    }
    let next = now.wrapping_add(lead + rate.cost(bytes));
    // SAFETY: as above.
    let passes = unsafe { atomic::compare_and_swap(word, held, next) };
    if passes {
        count_passed(counters, bytes, frames);
    }
    passes
}

/// Counts a packet against its limit. Returns the queue that it has to pass, or [`OVER`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn charge_or_queue(number: u32, how: u32, bytes: u32, frames: u32, flow: u32) -> u64 {
    let Some(meter) = METERS.get(number) else {
        return PASS;
    };
    let direction = (how & 1) as usize;
    let rate = &meter.rates[direction];
    let packet = Charge { number, direction, bytes, frames, flow, fragment: how };
    let has_queue = rate.queue != 0 && how & ALONE == 0;
    let now = rate.clock(if rate.queue == 0 { coarse_nanoseconds() } else { clock::nanoseconds() });
    let rate = if rate.queue == 0 || has_queue { *rate } else { rate.without_queue() };
    match advance(&rate, now, &packet) {
        None => OVER,
        Some(_) if !has_queue => PASS,
        Some(lead) => {
            let congested = if lead > rate.congested { Queue::CONGESTED } else { 0 };
            ((rate.queue as u64) << 32) | congested | class(number, direction) as u64
        }
    }
}

/// How a packet counts, and against which limit.
struct Charge {
    number: u32,
    direction: usize,
    bytes: u32,
    frames: u32,
    /// The packet's flow: its peer's index, which no other flow has.
    flow: u32,
    /// [`FRAGMENT`], [`FIRST`] and the identification.
    fragment: u32,
}

impl Charge {
    /// Names the packet that this is a fragment of.
    #[inline(always)]
    fn fragmented_packet(&self) -> u64 {
        (self.flow as u64) << 32 | (self.fragment & !0xffff | FRAGMENT) as u64
    }
}

/// A meter's word, the fragmented packet that it lets pass as a whole, and this CPU's counters.
#[inline(always)]
fn state_of(number: u32, direction: usize) -> Option<(*mut u64, *mut FragmentPass, &'static mut Metered)> {
    let state = METER_STATES.get_ptr_mut(number)?;
    let traffic = METER_TRAFFIC.get_ptr_mut(number)?;
    // SAFETY: projects within the elements.
    Some(unsafe {
        (
            ptr::addr_of_mut!((*state).words[direction]),
            ptr::addr_of_mut!((*state).fragment_passes[direction]),
            &mut *ptr::addr_of_mut!((*traffic).directions[direction]),
        )
    })
}

/// Number of attempts to advance a word that other CPUs advance as well.
const TRIES: u32 = 4;

/// Advances a meter by a packet, and counts the packet. Returns the meter's lead; `None` if the packet is over the limit or
/// over its flow's fair share.
#[inline(always)]
fn advance(rate: &Rate, now: u64, packet: &Charge) -> Option<u64> {
    let cost = rate.cost(packet.bytes);
    let (word, pass, counters) = state_of(packet.number, packet.direction)?;
    let mut tries = 0;
    while tries < TRIES {
        // SAFETY: aligned word of METER_STATES.
        let held = unsafe { ptr::read_volatile(word) };
        let lead = rate.lead(held, now);
        if lead == 0 && packet.fragment & FIRST != 0 {
            // SAFETY: an element of METER_STATES.
            unsafe { *pass = FragmentPass { packet: packet.fragmented_packet(), until: rate.fragment_limit(now) } };
        }
        let is_refused = lead > rate.congested && tries == 0 && !has_room(rate, lead, now, cost, packet.flow);
        let mut next = if is_refused { None } else { rate.admit(held, now, cost) };
        if next.is_none() && packet.fragment & FRAGMENT != 0 {
            // SAFETY: as above. If another CPU is writing it, it names another packet, or a time that is as good.
            let FragmentPass { packet: admitted, until } = unsafe { *pass };
            if admitted == packet.fragmented_packet() {
                next = rate.admit_rest(held, now, cost, until);
            }
        }
        let Some(next) = next else {
            break;
        };
        // SAFETY: as above.
        if unsafe { atomic::compare_and_swap(word, held, next) } {
            count_passed(counters, packet.bytes, packet.frames);
            return Some(lead);
        }
        tries += 1;
    }
    if tries == TRIES {
        // Other CPUs have just advanced the word, so the meter is not idle: adding is exact, and cannot fail.
        // SAFETY: as above.
        let held = unsafe { atomic::fetch_add(word, cost) };
        count_passed(counters, packet.bytes, packet.frames);
        return Some(rate.lead(held, now));
    }
    counters.dropped_packets += packet.frames as u64;
    counters.dropped_bytes += packet.bytes as u64;
    None
}

/// True if a flow's packet still fits into its fair share of a long queue. Counts the packet for the flow's share.
#[inline(always)]
fn has_room(rate: &Rate, lead: u64, now: u64, cost: u64, flow: u32) -> bool {
    let Some(place) = METER_SHARES.get_ptr_mut(Share::place(flow)) else {
        return true;
    };
    // SAFETY: an element of METER_SHARES. Concurrent writes of other CPUs make the estimate less exact.
    let held = unsafe { *place };
    let Some(share) = held.of(flow, rate, now).admit(rate, lead, cost) else {
        return false;
    };
    // SAFETY: as above.
    unsafe { *place = share };
    true
}

#[inline(always)]
fn count_passed(counters: &mut Metered, bytes: u32, frames: u32) {
    counters.passed_packets += frames as u64;
    counters.passed_bytes += bytes as u64;
}

/// Marks the packet as having experienced congestion (CE), if its sender supports that (RFC 3168, section 5). Returns the
/// change of the IPv4 checksum's sum (`vipgate_abi::checksum`).
///
/// # Safety
/// The frame's Ethernet and IPv4 headers are directly readable from `data`.
#[inline(always)]
pub unsafe fn mark_ce(data: usize) -> u64 {
    const BITS: u16 = 3u16.to_be();
    // The word is version, header length and type of service.
    let at = data + ETH_LEN;
    // SAFETY: as the caller promises.
    unsafe {
        let old: u16 = load(at);
        if old & BITS == 0 {
            return 0;
        }
        store(at, old | BITS);
        delta16(old, old | BITS)
    }
}

/// Sends a packet that comes out of its queue out of the interface with this number.
#[inline(always)]
pub fn dequeue<P: Packet>(packet: &mut P, number: u16) -> i32 {
    match route::interface(number) {
        Some(port) => packet.send(number, port),
        // The interface has just gone.
        None => count::verdict(packet, Reason::Unroutable),
    }
}
