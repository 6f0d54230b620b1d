//! The stages in order: parse, flow, (service, choose), rewrite, forward. One copy for both hooks.

use core::ptr;

use vipgate_abi::{
    checksum::{delta16, delta32, update},
    config::Config,
    counters::Reason,
    flow::FLAG_REPLY,
    hash, port,
};

use crate::{
    atomic,
    clock::jiffies,
    count, icmp,
    maps::{BACKEND_LOAD, BACKENDS, CONFIG},
    packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address, store, store_address},
    parse::{DONT_FRAGMENT, Headers, parse},
    route::{self, Rewritten, Route},
    service,
    table::{self, Slot},
    tcp,
};

/// A hit stores its time only when the slot's is older than this many jiffies: the slot words stay shared, unmodified
/// cache lines. Timeouts are whole seconds, so this much error does not matter.
const TOUCH_AFTER: u32 = 256;

/// Runs a packet through the pipeline: the hook's verdict.
#[inline(always)]
pub fn run<P: Packet>(mut packet: P) -> i32 {
    match process(&mut packet) {
        Ok(verdict) => verdict,
        Err(reason @ (Reason::OtherProtocol | Reason::Fragment | Reason::IpOptions)) => unparsed(&mut packet, reason),
        Err(reason) => count::verdict::<P>(reason),
    }
}

/// An IPv4 packet that no service could take: the stack's, unless its destination is a VIP that carries nothing.
#[inline(always)]
fn unparsed<P: Packet>(packet: &mut P, reason: Reason) -> i32 {
    if reason as u32 == Reason::OtherProtocol as u32 {
        let verdict = icmp::relay(packet);
        if verdict != icmp::NOT_RELAYED {
            return verdict as i32;
        }
    }
    let data = packet.data();
    if data + L4_OFFSET > packet.data_end() {
        return count::verdict::<P>(reason);
    }
    // SAFETY: the destination address ends at L4_OFFSET, checked just above.
    let dst = unsafe { load_address(data + L4_OFFSET - 4) };
    count::verdict::<P>(if service::is_disabled(dst) { Reason::Disabled } else { reason })
}

/// A parsed packet and what every stage needs of its surroundings.
pub struct Arrival {
    pub headers: Headers,
    pub hash: u64,
    /// Low 32 bits of jiffies.
    pub now: u32,
    pub config: &'static Config,
    /// Frames and bytes on the wire.
    pub frames: u32,
    pub bytes: u32,
}

/// What remains to be done with a packet whose flow is known.
pub struct Work {
    pub rewritten: Rewritten,
    pub route: Route,
    /// The packet goes from backend to client.
    pub reply: bool,
}

/// To be filled in.
pub const NO_WORK: Work = Work {
    rewritten: Rewritten { src: 0, dst: 0, sport: 0, dport: 0 },
    route: Route { port: port::STACK, next_hop: [0; 6] },
    reply: false,
};

/// `open`'s answer where it is no verdict.
const OPENED: u32 = u32::MAX - 1;

#[inline(always)]
fn process<P: Packet>(packet: &mut P) -> Result<i32, Reason> {
    let headers = parse(packet)?;
    let Some(config) = CONFIG.get(0) else {
        return Err(Reason::NotOurs);
    };
    let frames = packet.frames();
    let arrival = Arrival {
        hash: hash::flow(&headers.key, config.flow_seed),
        now: jiffies(),
        config,
        frames,
        bytes: headers.wire_bytes(frames),
        headers,
    };
    let mut work = NO_WORK;
    let known = match table::lookup(arrival.headers.key.words(), arrival.hash, config.bucket_mask) {
        Some(slot) => hit(packet, &arrival, &slot, &mut work)?,
        None => false,
    };
    if !known {
        let verdict = open(packet, &arrival, &mut work);
        if verdict != OPENED {
            return Ok(verdict as i32);
        }
    }
    forward(packet, &arrival.headers, &work)
}

/// A packet of a known flow. False: the flow is over and the packet is treated as one without a flow.
#[inline(always)]
fn hit<P: Packet>(packet: &P, arrival: &Arrival, slot: &Slot, work: &mut Work) -> Result<bool, Reason> {
    let flow = slot.flow;
    // SAFETY: `flow` points into FLOWS. Another CPU may be claiming the slot: `holds` tells, below.
    let (epoch, generation, backend, peer, flags) = unsafe {
        work.rewritten = Rewritten::by(&*flow);
        work.route = Route { port: (*flow).port, next_hop: (*flow).next_hop };
        ((*flow).epoch, (*flow).generation, (*flow).backend, (*flow).peer, (*flow).flags)
    };
    if !slot.holds() {
        return Ok(false);
    }
    let reply = flags & FLAG_REPLY != 0;
    work.reply = reply;
    if BACKENDS.get(backend).is_none_or(|backend| backend.generation != generation) {
        table::remove(slot);
        // The client's packet meets the service that is there now; the backend's has nobody to go to.
        return if reply { Err(Reason::FlowEnded) } else { Ok(false) };
    }
    if !tcp::is_plain(&arrival.headers, slot.seen.state()) {
        if tcp::starts_anew(&arrival.headers, slot.seen.state(), reply) {
            table::remove(slot);
            return Ok(false);
        }
        tcp::follow(&arrival.headers, slot, peer, backend, reply);
    }
    if slot.seen.age(arrival.now) > TOUCH_AFTER {
        slot.touch(arrival.now);
        // A one-way flow keeps its other direction alive.
        if let Some(peer) = table::slot(peer) {
            peer.touch(arrival.now);
        }
    }
    if epoch != arrival.config.epoch as u16 {
        let Some(epoch) = route::find(packet, arrival, work) else {
            return Err(Reason::Unroutable);
        };
        // SAFETY: `flow` points into FLOWS; rule 6.
        unsafe {
            ptr::write_volatile(ptr::addr_of_mut!((*flow).port), work.route.port);
            ptr::write_volatile(ptr::addr_of_mut!((*flow).next_hop), work.route.next_hop);
            ptr::write_volatile(ptr::addr_of_mut!((*flow).epoch), epoch);
        }
    }
    // SAFETY: `flow` points into FLOWS; rule 6.
    unsafe {
        (*flow).packets = (*flow).packets.wrapping_add(arrival.frames);
        (*flow).bytes += arrival.bytes as u64;
    }
    count::traffic(backend, reply, arrival.frames, arrival.bytes);
    Ok(true)
}

/// A packet without a flow: the service decides, and a new connection is inserted.
///
/// A function of its own, as the other rare paths are: it keeps the hit's code and stack small.
#[inline(never)]
fn open<P: Packet>(packet: &P, arrival: &Arrival, work: &mut Work) -> u32 {
    match connect(packet, arrival, work) {
        Ok(()) => OPENED,
        Err(reason) => count::verdict::<P>(reason) as u32,
    }
}

#[inline(always)]
fn connect<P: Packet>(packet: &P, arrival: &Arrival, work: &mut Work) -> Result<(), Reason> {
    let key = arrival.headers.key;
    let service = service::lookup(&arrival.headers)?;
    let Some((number, backend)) = service::choose(service, &key) else {
        return Err(Reason::NoBackend);
    };
    work.rewritten = Rewritten { src: key.src, dst: backend.addr, sport: key.sport, dport: backend.port };
    let Some(epoch) = route::find(packet, arrival, work) else {
        return Err(Reason::Unroutable);
    };
    table::insert(arrival, work, epoch, number, backend.generation)?;
    if let Some(load) = BACKEND_LOAD.get_ptr_mut(number) {
        // SAFETY: aligned element of BACKEND_LOAD.
        unsafe { atomic::add32(load, 1) };
    }
    count::connection(number);
    count::traffic(number, false, arrival.frames, arrival.bytes);
    Ok(())
}

/// The packet is rewritten and sent out of its port, or handed to the stack, which routes it.
///
/// Where the stack shall answer with an ICMP error, the sender must recognise its own packet in it. So a backend's
/// packet is handed over as it came; a client's, whose destination is the stack's own address, is translated, and its
/// error is turned back at egress (`icmp`).
#[inline(always)]
fn forward<P: Packet>(packet: &mut P, headers: &Headers, work: &Work) -> Result<i32, Reason> {
    let data = headers.data;
    // SAFETY: parse checked the headers' bounds.
    let fragment: u16 = unsafe { load(data + ETH_LEN + 6) };
    let mut to_stack = None;
    let mut ifindex = 0;
    let mut ttl_delta = 0;
    if let Some(port) = work.route.way_out() {
        if packet.exceeds(headers.ip_len, 20 + headers.l4_len as u32, port.mtu) {
            if work.reply && fragment & DONT_FRAGMENT != 0 {
                return Err(Reason::OverMtu);
            }
            to_stack = Some(Reason::OverMtu);
        // SAFETY: parse checked the headers' bounds.
        } else if let Some(delta) = unsafe { work.route.depart(data, port) } {
            ttl_delta = delta;
            ifindex = port.ifindex;
        } else {
            if work.reply {
                return Err(Reason::TtlExpired);
            }
            to_stack = Some(Reason::TtlExpired);
        }
    } else {
        to_stack = Some(Reason::NoNeighbour);
    }
    rewrite(packet, headers, &work.rewritten, ttl_delta);
    match to_stack {
        Some(reason) => Err(reason),
        None => Ok(packet.send(work.route.port, ifindex)),
    }
}

/// Stage 7: addresses, ports and both checksums, incrementally (RFC 1624).
#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, headers: &Headers, new: &Rewritten, ttl_delta: u64) {
    let data = headers.data;
    let key = &headers.key;
    let addresses = delta32(key.src, new.src) + delta32(key.dst, new.dst);
    let ports = delta16(key.sport, new.sport) + delta16(key.dport, new.dport);
    // SAFETY: parse checked the headers' bounds.
    unsafe {
        let checksum_at = data + ETH_LEN + 10;
        store(checksum_at, update(load(checksum_at), addresses + ttl_delta));
        store_address(data + ETH_LEN + 12, new.src);
        store_address(data + ETH_LEN + 16, new.dst);
        if headers.l4_len == 0 {
            return;
        }
        store(data + L4_OFFSET, new.sport);
        store(data + L4_OFFSET + 2, new.dport);
        let offset = headers.checksum_offset();
        packet.update_l4_checksum(data + offset, offset, headers.is_udp(), addresses, ports);
    }
}
