//! Stage 8: where a flow's packets leave, asked of the kernel's routing and neighbour tables, and how they do.

use core::{ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibLookup,
    },
    helpers::bpf_fib_lookup,
};
use vipgate_abi::{
    Be32,
    backend::{self, BackendWay},
    checksum::delta16,
    config::Config,
    flow::{Flow, Hop, Target},
    interface::{self, Interface},
    maps::NEXT_HOPS,
};

use crate::{
    atomic,
    clock::jiffies,
    ingress,
    maps::{BACKEND_ROUTES, BACKENDS, CONFIG, CONFIRMED, PORT_NUMBERS, PORTS},
    packet::{ETH_LEN, Packet, copy_mac, load, store},
    types::{Rewritten, Route},
    verifier::opaque,
};

/// AF_INET.
const INET: u8 = 2;

/// For which packet the kernel is asked: what functions that are not inlined take instead of the packet, which then need not be
/// in memory.
#[derive(Clone, Copy)]
pub struct FibContext {
    pub hook: *mut c_void,
    pub ifindex: u32,
}

impl FibContext {
    #[inline(always)]
    pub fn of<P: Packet>(packet: &P) -> Self {
        Self { hook: packet.context(), ifindex: packet.ifindex() }
    }
}

/// What `bpf_fib_lookup` is asked, and its answer.
#[repr(C)]
pub union FibQuery {
    fib: FibLookup,
    words: [u64; size_of::<FibLookup>() / 8],
}

impl FibQuery {
    /// Begins a query about a packet, in place; all else of it is 0.
    #[inline(always)]
    pub fn begin(room: &mut MaybeUninit<Self>, context: FibContext) -> &mut Self {
        let words = room.as_mut_ptr().cast::<u64>();
        let mut word = 0;
        // Word by word: `memset` would be a function, with a stack of its own.
        while word < size_of::<Self>() / 8 {
            // SAFETY: within the union, which is aligned for it.
            unsafe { words.add(word).write_volatile(0) };
            word += 1;
        }
        // SAFETY: a plain C struct of integers and unions of them, all of it written.
        let query = unsafe { room.assume_init_mut() };
        let fib = query.fib();
        fib.family = INET;
        fib.ifindex = context.ifindex;
        query
    }

    #[inline(always)]
    pub fn fib(&mut self) -> &mut FibLookup {
        // SAFETY: any bits are a value of it.
        unsafe { &mut self.fib }
    }

    /// Asks the kernel.
    #[inline(always)]
    pub fn run(&mut self, context: FibContext, flags: u32) -> u32 {
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: the context is the running program's, the parameters live on the stack.
        unsafe { bpf_fib_lookup(context.hook, self.fib(), size, flags) as u32 }
    }
}

/// The kernel's answer: the way out, and the device that leads there, known without a neighbour, too; 0: none does.
struct Answer {
    device: u32,
    route: Route,
}

/// The device to send by; None: the stack routes the packet.
#[inline(always)]
pub fn interface(number: u16) -> Option<&'static Interface> {
    PORTS.get(number as u32).filter(|interface| interface.ifindex != 0 && number != interface::STACK)
}

/// The port of the device with this interface index; None: it is none.
#[inline(always)]
pub fn interface_of(ifindex: u32) -> Option<&'static Interface> {
    interface(interface_number(ifindex)?)
}

#[inline(always)]
fn interface_number(ifindex: u32) -> Option<u16> {
    // SAFETY: a value of PORT_NUMBERS; elements are never removed while a program runs on the device.
    PORT_NUMBERS.get_ptr(&ifindex).map(|number| unsafe { *number as u16 })
}

/// Makes the frame one hop older, from the device to the next hop: what that adds to the IPv4 checksum's sum
/// (`vipgate_abi::checksum`). None: its time to live is over, and it is unchanged.
///
/// # Safety
/// The frame's Ethernet and IPv4 headers are directly readable from `data`; `next_hop` points to a MAC address at an even
/// address.
#[inline(always)]
pub unsafe fn forward_headers(data: usize, interface: &Interface, next_hop: *const [u8; 6]) -> Option<u64> {
    let ttl_at = data + ETH_LEN + 8;
    // SAFETY: as the caller promises. The word is TTL and protocol.
    unsafe {
        let old: u16 = load(ttl_at);
        if u16::from_le(old) as u8 <= 1 {
            return None;
        }
        let new = u16::to_le(u16::from_le(old) - 1);
        store(ttl_at, new);
        copy_mac(data, next_hop);
        copy_mac(data + 6, &interface.mac);
        Some(delta16(old, new))
    }
}

/// Stores the way out of a flow whose `old` hop was read (rule 6).
///
/// # Safety
/// `flow` points into FLOWS.
#[inline(always)]
unsafe fn store_route(flow: *mut Flow, old: Hop, new: Hop, interface: u16) {
    // SAFETY: as the caller promises; a byte and an aligned word of a flow.
    unsafe {
        ptr::write_volatile(
            ptr::addr_of_mut!((*flow).target).cast::<u8>().add(Target::INTERFACE_OFFSET),
            interface as u8,
        );
        atomic::compare_and_swap(ptr::addr_of_mut!((*flow).hop).cast(), old.0, new.0);
    }
}

/// Whether the next hop with this address was not confirmed for a while: asked once in [`Config::confirm`], so that one packet in
/// that time goes another way. What has not been asked for before has been found by the kernel just now.
#[inline(always)]
fn is_due(next_hop: Be32) -> bool {
    let Some(config) = CONFIG.get(0).filter(|config| config.confirm != 0) else {
        return false;
    };
    let place = next_hop.wrapping_mul(0x9e37_79b1) >> (u32::BITS - NEXT_HOPS.ilog2());
    let Some(confirmed) = CONFIRMED.get_ptr_mut(place) else {
        return false;
    };
    let now = jiffies();
    // SAFETY: aligned element of CONFIRMED.
    let before = unsafe { ptr::read_volatile(confirmed) };
    if before != 0 && now.wrapping_sub(before) < config.confirm {
        return false;
    }
    // SAFETY: as above.
    unsafe { atomic::compare_and_swap32(confirmed, before, now) && before != 0 }
}

/// Finds the way out for what a packet becomes, the epoch to store with it: one that is always old when the answer may soon
/// change; and the device, by its interface index; 0: the packet is for the router itself, or the kernel knows none. None: the
/// kernel has no route, or forbids it.
///
/// Without a neighbour entry the next hop has no address: the kernel finds it, and the next packet asks again. Where the way out
/// carries no program, the way is the stack.
#[inline(always)]
pub fn find(context: FibContext, protocol: u8, config: &Config, rewritten: &Rewritten) -> Option<(u16, Route, u32)> {
    let mut answer = NOWHERE;
    // Read before the kernel is asked: what changes meanwhile makes the answer old.
    // SAFETY: aligned word of CONFIG.
    let epoch = unsafe { ptr::read_volatile(&raw const config.epoch) } as u16;
    match ask(context, protocol, rewritten, &mut answer) {
        NO_WAY => None,
        LASTING => Some((epoch, answer.route, answer.device)),
        _ => Some((0, answer.route, answer.device)),
    }
}

/// Asks once more for the way out of a flow, of this protocol, whose `old` one may be no more.
#[inline(never)]
pub(crate) fn renew(context: FibContext, flow: *mut Flow, old: Hop, what: u32) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return opaque(UNROUTABLE);
    };
    // SAFETY: `flow` points into FLOWS. Another CPU may be claiming the slot: `pipeline::forward` finds out.
    let (rewritten, backend) = unsafe { (Rewritten::by(&*flow), (*flow).target.backend()) };
    let Some((epoch, route, device)) = find(context, what as u8, config, &rewritten) else {
        return opaque(UNROUTABLE);
    };
    if what & IS_OUTWARD == 0 && BACKENDS.get(backend).is_none_or(|backend| !backend.is_by(ingress::device(device))) {
        return opaque(ELSEWHERE);
    }
    // SAFETY: `flow` points into FLOWS; rule 6.
    unsafe { store_route(flow, old, Hop::new(route.next_hop, epoch, route.number()), route.number()) };
    opaque(if route.is_due() { RENEWED_DUE } else { RENEWED })
}

/// Above the protocol: the flow goes outside, not to a backend.
pub const IS_OUTWARD: u32 = 1 << 8;
/// [`renew`]'s answers.
pub const RENEWED: u32 = 0;
pub const RENEWED_DUE: u32 = 1;
pub const UNROUTABLE: u32 = 2;
pub const ELSEWHERE: u32 = 3;

/// [`find`] for a backend's new flow: asked once for all its flows while nothing changes, if
/// the way out carries a program.
#[inline(always)]
pub fn to_backend<P: Packet>(
    packet: &P,
    number: u32,
    generation: u16,
    protocol: u8,
    config: &Config,
    rewritten: &Rewritten,
) -> Option<(u16, Route, u32)> {
    let known = BACKEND_ROUTES.get_ptr_mut(number)?;
    // The epoch before all that it vouches for.
    let epoch = config.epoch as u16;
    // SAFETY: `known` points into BACKEND_ROUTES; aligned words.
    let (hop, way) =
        unsafe { (ptr::read_volatile(ptr::addr_of!((*known).hop)), ptr::read_volatile(ptr::addr_of!((*known).way))) };
    let now = jiffies();
    // SAFETY: as above.
    let age = now.wrapping_sub(unsafe { ptr::read_volatile(ptr::addr_of!((*known).found)) });
    let is_young = config.confirm == 0 || age < config.confirm;
    if is_young
        && way.generation() == generation
        && way.matches(hop, epoch)
        && let Some(interface) = interface(way.interface())
    {
        return Some((
            epoch,
            Route { interface: way.interface(), next_hop: backend::next_hop(hop) },
            interface.ifindex,
        ));
    }
    let (epoch, route, device) = find(FibContext::of(packet), protocol, config, rewritten)?;
    let way = BackendWay::new(route.number(), generation);
    // SAFETY: as above.
    unsafe {
        ptr::write_volatile(ptr::addr_of_mut!((*known).way), way);
        ptr::write_volatile(ptr::addr_of_mut!((*known).found), now);
        ptr::write_volatile(ptr::addr_of_mut!((*known).hop), way.hop(route.next_hop, epoch));
    }
    Some((epoch, route, device))
}

/// [`find`] for a packet without a flow.
#[inline(always)]
pub fn find_once<P: Packet>(packet: &P, protocol: u8, rewritten: &Rewritten) -> Option<Route> {
    let mut answer = NOWHERE;
    if ask(FibContext::of(packet), protocol, rewritten, &mut answer) == NO_WAY { None } else { Some(answer.route) }
}

/// The device by which the stack would send what a packet becomes, known without a neighbour, too. None: it is none of
/// ours.
#[inline(always)]
pub fn interface_towards<P: Packet>(packet: &P, protocol: u8, rewritten: &Rewritten) -> Option<&'static Interface> {
    let mut answer = NOWHERE;
    ask(FibContext::of(packet), protocol, rewritten, &mut answer);
    interface_of(answer.device)
}

const NO_WAY: u32 = 0;
const LASTING: u32 = 1;
const PASSING: u32 = 2;

/// To be filled in.
const NOWHERE: Answer = Answer { device: 0, route: Route::UNKNOWN };

/// Asks the kernel.
#[inline(never)]
fn ask(context: FibContext, protocol: u8, rewritten: &Rewritten, known: &mut Answer) -> u32 {
    let mut room = MaybeUninit::uninit();
    let query = FibQuery::begin(&mut room, context);
    let fib = query.fib();
    fib.l4_protocol = protocol;
    fib.sport = rewritten.sport;
    fib.dport = rewritten.dport;
    fib.__bindgen_anon_3.ipv4_src = rewritten.src;
    fib.__bindgen_anon_4.ipv4_dst = rewritten.dst;
    let answer = query.run(context, 0);
    let fib = query.fib();
    if let BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_NO_NEIGH = answer {
        known.device = fib.ifindex;
    }
    match answer {
        // FRAG_NEEDED: the way out is known, the packet does not fit it; that is checked for each packet anyway.
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            let mut interface = interface_number(fib.ifindex).unwrap_or(interface::STACK);
            // SAFETY: a union of plain integers; the kernel has put the next hop there.
            if interface != interface::STACK && is_due(unsafe { fib.__bindgen_anon_4.ipv4_dst }) {
                interface |= Route::DUE;
            }
            known.route = Route { interface, next_hop: fib.dmac };
            LASTING
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            known.route.interface = interface_number(fib.ifindex).unwrap_or(interface::STACK);
            PASSING
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => NO_WAY,
        _ => PASSING,
    }
}
