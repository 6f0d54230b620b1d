//! The stages in order: parse, flow, (service, choose), meter, rewrite, forward. One copy for both hooks.

use core::ptr;

use vipgate_abi::{
    Be16, Be32,
    checksum::{delta16, delta32, update},
    config::Config,
    counters::Reason,
    flow::{Flow, FlowKey},
    hash,
    service::{Kind, Service},
};

use crate::{
    address_filter,
    clock::jiffies,
    count, fragment, hairpin, icmp, ingress,
    maps::{BACKENDS, CONFIG},
    meter::{self, Queue},
    offset, outward,
    packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address, store, store_address},
    parse::{self, ACK, DONT_FRAGMENT, Headers, RST, SYN, TCP, has_ports, parse},
    ports, refused, reset,
    route::{self, FibContext, Rewritten, Route},
    secondary, service,
    table::{self, Connection, Slot},
    tcp,
    verifier::opaque,
};

/// Runs a packet through the pipeline: the hook's verdict.
#[inline(always)]
pub fn run<P: Packet>(packet: P) -> i32 {
    run_marked(packet, false)
}

/// The same for a packet whose next hop is to be confirmed, or not.
#[inline(always)]
pub fn run_marked<P: Packet>(mut packet: P, by_neighbour: bool) -> i32 {
    // What is beside a packet may be from before.
    packet.set_queue(Queue::NONE);
    packet.set_by_neighbour(by_neighbour);
    let treated = match parse(&mut packet) {
        Ok(headers) => process(&mut packet, &headers),
        Err(reason @ (Reason::OtherProtocol | Reason::Fragment | Reason::Malformed | Reason::SourceRoute)) => {
            unparsed(&mut packet, reason)
        }
        Err(reason) => Err(reason),
    };
    let answered = treated.or_else(|reason| match reason {
        Reason::FlowReset => packet.reset(),
        Reason::OtherHost => Err(packet.resolve_other_host()),
        reason => Err(reason),
    });
    // The one place where packets end that are not sent, near the top of the stack, where there is room to tell of them.
    answered.unwrap_or_else(|reason| {
        let reason = if is_untouched(reason) { ingress::final_reason(&packet, reason) } else { reason };
        count::verdict(&packet, reason)
    })
}

/// True where the stack gets an IPv4 packet as it came, and may take it.
#[inline(always)]
fn is_untouched(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NotOurs
            | Reason::NoFlow
            | Reason::NoBackend
            | Reason::OtherProtocol
            | Reason::Fragment
            | Reason::Malformed
    )
}

/// An IPv4 packet that no service could take: the stack's, unless its destination is a VIP that carries nothing, or that is a
/// guest's.
#[inline(always)]
fn unparsed<P: Packet>(packet: &mut P, reason: Reason) -> Result<i32, Reason> {
    if reason as u32 == Reason::OtherProtocol as u32 {
        let mut outer = Rewritten::UNSET;
        let mut answer = icmp::relay(packet, &mut outer);
        if answer == icmp::IS_TRANSLATED {
            answer = icmp::send(packet, &outer);
            if answer & icmp::SENT != 0 {
                return Ok((answer & !icmp::SENT) as i32);
            }
        }
        if answer != reason as u32 {
            return Err(Reason::of(answer).unwrap_or(reason));
        }
    }
    let end = packet.data_end();
    let (data, _) = offset::behind_tag(packet.data(), end);
    if data + L4_OFFSET > end {
        return Err(reason);
    }
    // SAFETY: the addresses end at L4_OFFSET, checked just above.
    let (src, dst) = unsafe { (load_address(data + L4_OFFSET - 8), load_address(data + L4_OFFSET - 4)) };
    if reason as u32 == Reason::SourceRoute as u32 && !may_be_ours(src, dst) {
        return Err(Reason::NotOurs);
    }
    let kind = service::whole(dst).map_or(0, |service| service.kind);
    if kind == Kind::Disabled as u8 {
        return Err(Reason::Disabled);
    }
    // Else the stack would put the fragments together, and answer for the guest.
    let tells_nothing = matches!(reason, Reason::Fragment | Reason::Malformed);
    let is_guests = kind == Kind::Elastic as u8 && tells_nothing;
    Err(if is_guests { Reason::Unreadable } else { reason })
}

/// A packet without a flow: what the stages that make one need to know of it. Numbers alone, see [`Packet::open`].
#[repr(C)]
pub struct Arrival {
    pub key: FlowKey,
    pub hash: u64,
    /// Low 32 bits of jiffies.
    pub now: u32,
    /// As in [`Headers`].
    pub tcp_flags: u16,
    /// How often it was tried before: its answers would have been another connection's.
    pub attempt: u16,
}

impl Arrival {
    /// True for what opens a flow.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        parse::opens(self.key.protocol, self.tcp_flags as u8)
    }

    /// True for a segment of a connection that is under way, and for what answers.
    #[inline(always)]
    pub fn resumes(&self) -> bool {
        self.tcp_flags as u8 & (SYN | ACK | RST) == ACK
    }
}

#[inline(always)]
fn process<P: Packet>(packet: &mut P, headers: &Headers) -> Result<i32, Reason> {
    if !may_be_ours(headers.key.src, headers.key.dst) {
        return Err(Reason::NotOurs);
    }
    let Some(config) = CONFIG.get(0) else {
        return Err(Reason::NotOurs);
    };
    let hash = hash::flow(&headers.key, config.flow_seed);
    let slot = match table::lookup(headers.key.words(), hash, config.bucket_mask) {
        Some(slot) if hit(packet, headers, config, &slot)? => slot,
        _ => {
            let tcp_flags = headers.tcp_flags as u16;
            let mut arrival = Arrival { key: headers.key, hash, now: jiffies(), tcp_flags, attempt: 0 };
            let mut new = UNDECIDED;
            let mut opened = begin(packet, &arrival, &mut new);
            let mut attempt = 1;
            while opened == AGAIN && attempt < ATTEMPTS {
                arrival.attempt = attempt;
                opened = table::inserted_by_other_cpu(&arrival);
                if opened == 0 {
                    opened = begin(packet, &arrival, &mut new);
                }
                attempt += 1;
            }
            match table::opened(opened) {
                Some(slot) => {
                    if opened & table::IS_DUE != 0 {
                        packet.set_by_neighbour(true);
                    }
                    slot
                }
                None => return Err(Reason::of(opened as u32).unwrap_or(Reason::Unroutable)),
            }
        }
    };
    forward(packet, headers, &slot)
}

/// A packet without a flow: what [`open`] and [`open_outbound`] decide, `new`, is inserted. A reason's number, what [`table::opened`] takes,
/// or [`AGAIN`].
#[inline(always)]
fn begin<P: Packet>(packet: &P, arrival: &Arrival, new: &mut Connection) -> u64 {
    let mut decided = packet.open(arrival, new);
    if decided == UNSERVED {
        decided = packet.open_outbound(arrival, new);
    }
    if decided == DECIDED { insert(arrival, new) } else { decided }
}

/// False: neither a flow nor a service can be about this packet (`vipgate_abi::address_filter`).
#[inline(always)]
fn may_be_ours(src: Be32, dst: Be32) -> bool {
    address_filter::of(dst).may_be_to() || address_filter::of(src).may_be_from()
}

/// A packet of a known flow: false when the flow is over and the packet is to be treated as one without a flow.
#[inline(always)]
fn hit<P: Packet>(packet: &mut P, headers: &Headers, config: &Config, slot: &Slot) -> Result<bool, Reason> {
    let flow = slot.flow;
    // SAFETY: `flow` points into FLOWS. Another CPU may be claiming the slot: `forward` finds out.
    let (hop, target, from, generation, peer) = unsafe {
        (
            ptr::read_volatile(ptr::addr_of!((*flow).hop)),
            ptr::read_volatile(ptr::addr_of!((*flow).target)),
            (*flow).from,
            (*flow).generation,
            (*flow).peer,
        )
    };
    let backend = target.backend();
    let reply = slot.mark.is_reply();
    if BACKENDS.get(backend).is_none_or(|backend| backend.generation != generation) {
        if reset::answers(headers, reply) {
            return Err(Reason::FlowReset);
        }
        table::remove(slot);
        // The client's packet meets the service that is there now; the backend's has nobody to go to.
        return if reply { Err(Reason::FlowEnded) } else { Ok(false) };
    }
    if ingress::is_unexpected_device(packet, from, reply)
        && ingress::has_moved(FibContext::of(packet), flow, headers.key.src) == 0
    {
        return Err(Reason::WrongSide);
    }
    if !tcp::is_plain(headers, slot.mark.state(), reply) {
        let mut followed = tcp::follow(headers, slot, peer, backend, reply);
        if followed == tcp::CROWDED {
            followed = tcp::follow_crowded(slot, peer, backend);
        }
        match followed {
            tcp::FOLLOWED => {}
            tcp::REFUSED | tcp::CROWDED => return Err(Reason::TooManyConnections),
            _ => {
                table::remove(slot);
                return Ok(false);
            }
        }
    }
    let now = jiffies();
    let mut is_old = !hop.is_of(config.epoch as u16, target.interface());
    if slot.mark.is_stale(now) {
        // Without the controller nobody else asks whether the next hop is where it was.
        is_old |= config.confirm != 0;
        table::touch(slot.index, now);
        // The sweeper asks both directions; eviction, which takes idle datagrams' flows, asks one.
        if headers.is_datagram() {
            table::touch_peer(secondary::peer_index(slot.index, peer), now);
        }
    }
    if is_old {
        let outward = if slot.mark.is_outward() { route::IS_OUTWARD } else { 0 };
        match route::renew(FibContext::of(packet), flow, hop, headers.key.protocol as u32 | outward) {
            route::RENEWED => {}
            route::RENEWED_DUE => packet.set_by_neighbour(true),
            route::ELSEWHERE => return Err(Reason::Elsewhere),
            _ => return Err(Reason::Unroutable),
        }
    }
    Ok(true)
}

/// To be filled in: as it is a client's.
const UNDECIDED: Connection = Connection {
    rewritten: Rewritten::UNSET,
    route: Route::UNKNOWN,
    epoch: 0,
    generation: 0,
    backend: 0,
    comes_by: 0,
    answers_by: 0,
    is_outward: false,
    is_exclusive: false,
    may_replace: false,
    reserved: false,
};

/// [`open`]'s answer where no service takes what a guest may have begun, or what may be to a guest's own address: no reason.
const UNSERVED: u64 = 1 << 62;
/// [`open`]'s and [`open_outbound`]'s answer where the connection is decided: no reason.
const DECIDED: u64 = 1 << 63;
/// [`insert`]'s answer where the answers would have been another connection's: with another port, or backend, they need not be.
const AGAIN: u64 = 1 << 60;
/// How often is tried.
const ATTEMPTS: u16 = 4;

/// A packet without a flow: the service that it is for decides what connection it begins. A reason's number, [`DECIDED`] or
/// [`UNSERVED`].
#[inline(always)]
pub fn open<P: Packet>(packet: &P, arrival: &Arrival, new: &mut Connection) -> u64 {
    let decided = match service::lookup(arrival) {
        Err(Reason::NotOurs)
            if outward::may_be_translated(arrival.key.src) || outward::may_be_translated(arrival.key.dst) =>
        {
            return UNSERVED;
        }
        Err(reason) => Err(reason),
        Ok(_) if ingress::is_martian(packet, &arrival.key) => Err(Reason::Martian),
        Ok(service) => connect(packet, arrival, service, new),
    };
    answer(packet, arrival, decided)
}

/// The same for what a guest may have begun, on its way out. A reason's number or [`DECIDED`].
#[inline(always)]
pub fn open_outbound<P: Packet>(packet: &P, arrival: &Arrival, new: &mut Connection) -> u64 {
    answer(packet, arrival, outward::connect(packet, arrival, new))
}

#[inline(always)]
fn answer<P: Packet>(packet: &P, arrival: &Arrival, decided: Result<(), Reason>) -> u64 {
    match decided {
        Ok(()) if ingress::is_off_path(packet, arrival.key.src, arrival.key.dst) => Reason::ReversePath as u64,
        Ok(()) => DECIDED,
        Err(reason) => refusal(arrival, reason),
    }
}

/// Inserts what [`open`] or [`open_outbound`] decided: what [`table::opened`] takes, [`AGAIN`], or a reason's number. Beside them, not within:
/// together they would need a stack that is too deep.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn insert(arrival: *const Arrival, new: *const Connection) -> u64 {
    // SAFETY: the caller's pointers are to what it has, but the verifier looks at this function alone.
    let (Some(arrival), Some(new), Some(config)) =
        (unsafe { arrival.as_ref() }, unsafe { new.as_ref() }, CONFIG.get(0))
    else {
        return Reason::Unroutable as u64;
    };
    if !new.is_outward && BACKENDS.get(new.backend).is_none_or(|backend| !backend.is_by(new.answers_by)) {
        return Reason::Elsewhere as u64;
    }
    table::insert(arrival, config, new).unwrap_or_else(|reason| {
        if reason as u32 == Reason::ReplyInUse as u32 && arrival.attempt + 1 < ATTEMPTS {
            return AGAIN;
        }
        reason as u64
    })
}

/// The reason of a packet that makes no flow, as a number.
#[inline(always)]
fn refusal(arrival: &Arrival, reason: Reason) -> u64 {
    let is_unknown = matches!(reason, Reason::NotOurs | Reason::NoFlow | Reason::FlowReset);
    if secondary::takes_over() && is_unknown && arrival.key.protocol == TCP && !arrival.opens() {
        return Reason::ComingOver as u32 as u64;
    }
    let is_portless = reason as u32 == Reason::NotOurs as u32 && !has_ports(arrival.key.protocol);
    (if is_portless { Reason::OtherProtocol } else { reason }) as u32 as u64
}

/// A packet for a service.
#[inline(always)]
fn connect<P: Packet>(packet: &P, arrival: &Arrival, service: &Service, new: &mut Connection) -> Result<(), Reason> {
    let key = &arrival.key;
    let Some(config) = CONFIG.get(0) else {
        return Err(Reason::NotOurs);
    };
    if !packet.is_for_device() {
        return Err(Reason::OtherHost);
    }
    let Some(backend) = service::choose(service, key) else {
        return Err(Reason::NoBackend);
    };
    (new.backend, new.generation) = (backend.number, backend.generation);
    let dport = service.target_port(key.dport, backend.port);
    new.rewritten = Rewritten { src: key.src, dst: backend.addr, sport: key.sport, dport };
    let way = route::to_backend(packet, backend.number, backend.generation, key.protocol, config, &new.rewritten);
    let Some((epoch, route, device)) = way else {
        return Err(Reason::Unroutable);
    };
    (new.epoch, new.route, new.answers_by) = (epoch, route, ingress::device(device));
    let is_elastic = service.kind == Kind::Elastic as u8;
    let is_eip_hairpin = is_elastic && outward::hairpin_eip(packet, service.device(), key, &mut new.rewritten)?;
    let is_hairpin = !is_eip_hairpin && hairpin::translate(packet, key, route.number(), &mut new.rewritten);
    // A datagram's connection counts, and may have another one's place, from its first answer on.
    if key.protocol == TCP && !service::has_room(service.number, service.max_connections) {
        return Err(Reason::TooManyConnections);
    }
    let has_port = ports::has_any(key.protocol);
    // Who can have another port takes that, rather than the place of what may still be alive.
    (new.comes_by, new.is_outward, new.may_replace) = (0, false, !has_port);
    if has_port && (is_hairpin || arrival.attempt > 0) {
        let own = if is_hairpin { ports::OF_ROUTER } else { ports::OF_CLIENT };
        let port = ports::port(new.rewritten.reply_key(key).words(), own, 0);
        // Should all that are tried be taken, who inserts the flow finds out.
        new.may_replace = port & ports::HELD != 0;
        new.rewritten.sport = port as Be16;
    }
    new.is_exclusive = new.rewritten.src != key.src || new.rewritten.sport != key.sport;
    Ok(())
}

/// Stages 6 to 8: the packet counts against its limit, becomes what its flow says, is counted, and is sent out of its port,
/// or handed to the stack, which routes it.
///
/// Where the stack shall answer with an ICMP error, the sender must recognise its own packet in it: what the stack gets of it
/// `refused` says.
///
/// All is read from the flow as it is needed. A packet during whose rewriting another CPU claimed the slot may be of
/// both flows, and is dropped: only an embryo, a closed or an idle flow can lose its slot.
#[inline(always)]
fn forward<P: Packet>(packet: &mut P, headers: &Headers, slot: &Slot) -> Result<i32, Reason> {
    if headers.is_first != 0 {
        // Before another hook gets it: those that follow may come to this one.
        fragment::remember(headers);
    }
    let flow = slot.flow;
    // SAFETY: `flow` points into FLOWS; rule 6.
    let (way_out, is_unresolved) = unsafe { ((*flow).target.interface(), (*flow).hop.is_unresolved()) };
    let mut port = route::interface(way_out);
    if is_unresolved {
        packet.set_by_neighbour(true);
    }
    if !P::QUEUES && port.is_some_and(|port| packet.is_by_neighbour() || !port.takes_frames()) {
        if packet.can_hand_over() {
            return Err(if packet.hand_over() { Reason::HandedOver } else { Reason::Unroutable });
        }
        if is_unresolved || port.is_some_and(|port| !port.takes_frames()) {
            // The stack can do it, too.
            port = None;
        }
    }
    meter::charge(packet, headers, slot)?;
    let data = headers.data;
    let outward = slot.mark.is_outward();
    let frames = packet.frames(headers.ip_len, headers.header_len as u32);
    let bytes = headers.wire_bytes(frames);
    // SAFETY: `flow` points into FLOWS; rule 6.
    let backend = unsafe {
        (*flow).packets = (*flow).packets.wrapping_add(frames);
        (*flow).volume = (*flow).volume.plus(bytes as u64);
        (*flow).target.backend()
    };
    count::traffic(backend, outward, frames, bytes);
    let mut leave = Err(Reason::NoNeighbour);
    let mut refusal = None;
    let mut ip_delta = 0;
    if let Some(port) = port {
        if packet.exceeds(headers.ip_len, headers.header_len as u32, port.mtu) {
            // SAFETY: parse checked the headers' bounds.
            let (is_over, may_be_cut) = unsafe { (is_over(data), may_be_cut(data)) };
            leave = Err(Reason::OverMtu);
            if is_over {
                refusal = Some(Reason::TtlExpired);
            } else if !may_be_cut {
                refusal = Some(Reason::OverMtu);
            }
        // SAFETY: parse checked the headers' bounds, `flow` points into FLOWS.
        } else if let Some(delta) = unsafe { route::forward_headers(data, port, ptr::addr_of!((*flow).hop).cast()) } {
            ip_delta = delta;
            leave = Ok(port);
        } else {
            refusal = Some(Reason::TtlExpired);
        }
    // SAFETY: `flow` points into FLOWS.
    } else if unsafe { (*flow).new_src } != headers.key.src {
        refusal = stack_reject_reason(packet, data, headers.ip_len, headers.header_len as u32, flow);
    }
    // SAFETY: `flow` points into FLOWS.
    let mut new = unsafe { Rewritten::by(&*flow) };
    if !slot.holds() {
        return Err(Reason::FlowEnded);
    }
    if let Some(reason) = refusal {
        leave = Err(reason);
        if !refused::remember_destination(slot) {
            return Err(reason);
        }
        (new.src, new.sport) = (headers.key.src, headers.key.sport);
    }
    if leave.is_ok() && packet.queue().is_congested() {
        // SAFETY: parse checked the headers' bounds.
        ip_delta += unsafe { meter::mark_ce(data) };
    }
    rewrite(packet, headers, &new, ip_delta, leave.is_ok());
    let port = leave?;
    if P::QUEUES && packet.is_by_neighbour() {
        return Ok(packet.send_by_neighbour(port));
    }
    let queue = packet.queue();
    Ok(if queue.is_none() { packet.send(way_out, port) } else { packet.enqueue(way_out, queue) })
}

/// Whether a packet's time to live is over.
///
/// # Safety
/// The IPv4 header's fixed part is directly readable behind the Ethernet header at `data`.
#[inline(always)]
unsafe fn is_over(data: usize) -> bool {
    // SAFETY: as the caller promises. The word is TTL and protocol.
    unsafe { u16::from_le(load(data + ETH_LEN + 8)) as u8 <= 1 }
}

/// Whether a packet that does not fit may be sent in fragments.
///
/// # Safety
/// As [`is_over`].
#[inline(always)]
unsafe fn may_be_cut(data: usize) -> bool {
    // SAFETY: as the caller promises.
    unsafe { load::<u16>(data + ETH_LEN + 6) & DONT_FRAGMENT == 0 }
}

/// Why the stack would refuse a packet that it gets for want of a neighbour, whose source becomes the router's: it would tell
/// itself.
#[inline(never)]
fn stack_reject_reason<P: Packet>(
    packet: &P,
    data: usize,
    ip_len: u16,
    header_len: u32,
    flow: *const Flow,
) -> Option<Reason> {
    // SAFETY: parse checked the headers' bounds.
    let (is_over, may_be_cut, protocol) = unsafe { (is_over(data), may_be_cut(data), load(data + ETH_LEN + 9)) };
    if is_over {
        return Some(Reason::TtlExpired);
    }
    if may_be_cut {
        return None;
    }
    // SAFETY: `flow` points into FLOWS.
    let new = unsafe { Rewritten::by(&*flow) };
    let port = route::interface_towards(packet, protocol, &new)?;
    packet.exceeds(ip_len, header_len, port.mtu).then_some(Reason::OverMtu)
}

/// Addresses, ports and both checksums, incrementally (RFC 1624), of a packet that `leaves` or goes up the stack; `ip_delta` is
/// what the IPv4 header changed by so far.
#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, headers: &Headers, new: &Rewritten, ip_delta: u64, leaves: bool) {
    let data = headers.data;
    let key = &headers.key;
    let addresses = delta32(key.src, new.src) + delta32(key.dst, new.dst);
    let ports = delta16(key.sport, new.sport) + delta16(key.dport, new.dport);
    // SAFETY: parse checked the headers' bounds.
    unsafe {
        let checksum_at = data + ETH_LEN + 10;
        store(checksum_at, update(load(checksum_at), addresses + ip_delta));
        store_address(data + ETH_LEN + 12, new.src);
        store_address(data + ETH_LEN + 16, new.dst);
        if headers.l4_len == 0 {
            let ports = new.sport as u32 | (new.dport as u32) << 16;
            opaque(offset::rewrite(packet, data, ports, addresses, leaves));
            return;
        }
        store(data + L4_OFFSET, new.sport);
        store(data + L4_OFFSET + 2, new.dport);
        let offset = headers.checksum_offset();
        packet.update_l4_checksum(data + offset, offset, headers.is_udp(), addresses, ports);
    }
}
