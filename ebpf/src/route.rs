//! Stage 8: by which interface and to which next hop a flow's packets leave, according to the kernel's routing and
//! neighbour tables.

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

/// What a lookup in the kernel's routes (FIB) needs of a packet. Functions that are not inlined take this instead of the
/// packet, which then need not be in memory.
#[derive(Clone, Copy)]
pub struct FibContext {
    /// The hook's context.
    pub hook: *mut c_void,
    pub ifindex: u32,
}

impl FibContext {
    #[inline(always)]
    pub fn of<P: Packet>(packet: &P) -> Self {
        Self { hook: packet.context(), ifindex: packet.ifindex() }
    }
}

/// The parameters of `bpf_fib_lookup`, which also receive the result.
#[repr(C)]
pub union FibQuery {
    fib: FibLookup,
    words: [u64; size_of::<FibLookup>() / 8],
}

impl FibQuery {
    /// Initialises a query for a packet in place.
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

    /// Runs the lookup. Returns one of `BPF_FIB_LKUP_RET_*`.
    #[inline(always)]
    pub fn run(&mut self, context: FibContext, flags: u32) -> u32 {
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: the context is the running program's, the parameters live on the stack.
        unsafe { bpf_fib_lookup(context.hook, self.fib(), size, flags) as u32 }
    }
}

/// The kernel's answer: the route, and the device, which is known even if the neighbour is not; 0 if there is none.
struct Answer {
    device: u32,
    route: Route,
}

/// The interface with this number; `None` if the stack routes the packet.
#[inline(always)]
pub fn interface(number: u16) -> Option<&'static Interface> {
    PORTS.get(number as u32).filter(|interface| interface.ifindex != 0 && number != interface::STACK)
}

/// The interface with this index; `None` if it carries no program.
#[inline(always)]
pub fn interface_of(ifindex: u32) -> Option<&'static Interface> {
    interface(interface_number(ifindex)?)
}

#[inline(always)]
fn interface_number(ifindex: u32) -> Option<u16> {
    // SAFETY: a value of PORT_NUMBERS; elements are never removed while a program runs on the device.
    PORT_NUMBERS.get_ptr(&ifindex).map(|number| unsafe { *number as u16 })
}

/// Writes the headers as a router does: decrements the time to live, and sets the MAC addresses of interface and next hop.
/// Returns the change of the IPv4 checksum's sum (`vipgate_abi::checksum`); `None` if the time to live is over, and the
/// packet unchanged.
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

/// Stores the route of a flow whose `old` hop was read (rule 6).
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

/// True if the next hop with this address has not been confirmed for [`Config::confirm`]. True once in that time, so that
/// one packet goes by the kernel's neighbour table. A next hop without an entry was just found by the kernel, and is not
/// due.
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

/// Looks up the route of a rewritten packet. Returns the epoch to store with it (0, which is always old, if the answer may
/// soon change), the route, and the device's interface index (0 if the packet is for the router itself, or no device is
/// known). `None` if there is no route, or the kernel forbids it.
///
/// Without a neighbour entry the next hop has no MAC address: the kernel resolves it, and the next packet looks it up
/// again. If the device carries no program, the stack sends the packet.
#[inline(always)]
pub fn find(context: FibContext, protocol: u8, config: &Config, rewritten: &Rewritten) -> Option<(u16, Route, u32)> {
    let mut answer = NOWHERE;
    // Read before the lookup: a change during the lookup makes the answer old.
    // SAFETY: aligned word of CONFIG.
    let epoch = unsafe { ptr::read_volatile(&raw const config.epoch) } as u16;
    match ask(context, protocol, rewritten, &mut answer) {
        NO_WAY => None,
        LASTING => Some((epoch, answer.route, answer.device)),
        _ => Some((0, answer.route, answer.device)),
    }
}

/// Looks up the route of a flow again, whose `old` hop may be outdated. `what` is the protocol and [`IS_OUTWARD`].
#[inline(never)]
pub(crate) fn renew(context: FibContext, flow: *mut Flow, old: Hop, what: u32) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return opaque(UNROUTABLE);
    };
    // SAFETY: `flow` points into FLOWS. Another CPU may be claiming the slot: `pipeline::forward` finds out.
    let (rewritten, backend) = unsafe { (Rewritten::by(&*flow), (*flow).target.backend()) };
    let Some((epoch, route, device)) = find(context, what as u8, config, &rewritten) else {
        // SAFETY: `flow` points into FLOWS.
        let is_guests = what & IS_OUTWARD != 0 && unsafe { !(*flow).mark.is_reply() };
        return opaque(if is_guests { FORBIDDEN } else { UNROUTABLE });
    };
    if what & IS_OUTWARD == 0 && BACKENDS.get(backend).is_none_or(|backend| !backend.is_by(ingress::device(device))) {
        return opaque(ELSEWHERE);
    }
    // SAFETY: `flow` points into FLOWS; rule 6.
    unsafe { store_route(flow, old, Hop::new(route.next_hop, epoch, route.number()), route.number()) };
    opaque(if route.is_due() { RENEWED_DUE } else { RENEWED })
}

/// In [`renew`]'s `what`, above the protocol: the flow goes outside, not to a backend.
pub const IS_OUTWARD: u32 = 1 << 8;
/// What [`renew`] returns.
pub const RENEWED: u32 = 0;
pub const RENEWED_DUE: u32 = 1;
pub const UNROUTABLE: u32 = 2;
pub const ELSEWHERE: u32 = 3;
/// The kernel forbids the way, and the stack tells the guest, as it does for a new connection. Its ICMP error about the
/// translated packet would go to the VIP.
pub const FORBIDDEN: u32 = 4;

/// [`find`] for a backend's new flow. The answer is cached for all flows of the backend, if the device carries a program.
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
    // Read before everything that it vouches for.
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

/// [`find`] for a single packet that has no flow.
#[inline(always)]
pub fn find_once<P: Packet>(packet: &P, protocol: u8, rewritten: &Rewritten) -> Option<Route> {
    let mut answer = NOWHERE;
    if ask(FibContext::of(packet), protocol, rewritten, &mut answer) == NO_WAY { None } else { Some(answer.route) }
}

/// The interface by which the stack would send a rewritten packet, even if the neighbour is not known. `None` if it carries
/// no program.
#[inline(always)]
pub fn interface_towards<P: Packet>(packet: &P, protocol: u8, rewritten: &Rewritten) -> Option<&'static Interface> {
    let mut answer = NOWHERE;
    ask(FibContext::of(packet), protocol, rewritten, &mut answer);
    interface_of(answer.device)
}

/// What [`ask`] returns: there is no route, or the kernel forbids it.
const NO_WAY: u32 = 0;
/// The route is valid until the epoch changes.
const LASTING: u32 = 1;
/// The route may change soon.
const PASSING: u32 = 2;

/// To be filled in.
const NOWHERE: Answer = Answer { device: 0, route: Route::UNKNOWN };

/// Looks up a route. Returns [`NO_WAY`], [`LASTING`] or [`PASSING`].
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
        // FRAG_NEEDED: the route is known, but the packet does not fit its MTU, which is checked for each packet anyway.
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
