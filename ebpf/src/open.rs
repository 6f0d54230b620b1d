//! Stages 3 to 5: a packet without a flow opens a connection, or is refused.
//!
//! [`inbound`] (for services) and [`outbound`] (for guests) decide what the connection becomes, and [`insert`] writes it.
//! None of these functions calls another one: nested, they would need too deep a stack.

use vipgate_abi::{
    Be16,
    counters::Reason,
    service::{Kind, Service},
};

use crate::{
    hairpin, ingress,
    maps::{BACKENDS, CONFIG},
    outward,
    packet::Packet,
    parse::{TCP, has_ports},
    ports, route, secondary, service,
    table::{self, Slot},
    types::{Arrival, Connection, Rewritten},
};

/// [`inbound`]'s answer if no service takes the packet, but a guest may have sent it, or it may be for a guest's own
/// address. Not a reason.
const UNSERVED: u64 = 1 << 62;
/// The answer of [`inbound`] and [`outbound`] if the connection is decided. Not a reason.
const DECIDED: u64 = 1 << 63;
/// [`insert`]'s answer if the key of the answers belongs to another connection: with another port or backend it need not.
const AGAIN: u64 = 1 << 60;
/// How often a packet tries to open its connection.
const ATTEMPTS: u16 = 4;

/// Opens a connection for a packet without a flow: the slot of its first flow, or why there is none.
#[inline(always)]
pub fn connection<P: Packet>(packet: &mut P, arrival: &mut Arrival) -> Result<Slot, Reason> {
    let mut new = Connection::UNDECIDED;
    let mut opened = decide_and_insert(packet, arrival, &mut new);
    let mut attempt = 1;
    while opened == AGAIN && attempt < ATTEMPTS {
        arrival.attempt = attempt;
        opened = table::inserted_by_other_cpu(arrival);
        if opened == 0 {
            opened = decide_and_insert(packet, arrival, &mut new);
        }
        attempt += 1;
    }
    match table::opened(opened) {
        Some(slot) => {
            if opened & table::IS_DUE != 0 {
                packet.set_by_neighbour(true);
            }
            Ok(slot)
        }
        None => Err(Reason::of(opened as u32).unwrap_or(Reason::Unroutable)),
    }
}

/// Returns what [`table::opened`] takes, [`AGAIN`], or a reason's number.
#[inline(always)]
fn decide_and_insert<P: Packet>(packet: &P, arrival: &Arrival, new: &mut Connection) -> u64 {
    let mut decided = packet.open_inbound(arrival, new);
    if decided == UNSERVED {
        decided = packet.open_outbound(arrival, new);
    }
    if decided == DECIDED { insert(arrival, new) } else { decided }
}

/// Decides the connection to a service. Returns a reason's number, [`DECIDED`] or [`UNSERVED`].
#[inline(always)]
pub fn inbound<P: Packet>(packet: &P, arrival: &Arrival, new: &mut Connection) -> u64 {
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

/// Decides the connection that a guest may begin. Returns a reason's number or [`DECIDED`].
#[inline(always)]
pub fn outbound<P: Packet>(packet: &P, arrival: &Arrival, new: &mut Connection) -> u64 {
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

/// Inserts the connection that [`inbound`] or [`outbound`] decided. Returns what [`table::opened`] takes, [`AGAIN`], or a
/// reason's number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn insert(arrival: *const Arrival, new: *const Connection) -> u64 {
    // SAFETY: the caller's pointers are to its own values, but the verifier looks at this function alone.
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

/// The reason's number for a packet that opens no connection.
#[inline(always)]
fn refusal(arrival: &Arrival, reason: Reason) -> u64 {
    let is_unknown = matches!(reason, Reason::NotOurs | Reason::NoFlow | Reason::FlowReset);
    if secondary::takes_over() && is_unknown && arrival.key.protocol == TCP && !arrival.opens() {
        return Reason::ComingOver as u32 as u64;
    }
    let is_portless = reason as u32 == Reason::NotOurs as u32 && !has_ports(arrival.key.protocol);
    (if is_portless { Reason::OtherProtocol } else { reason }) as u32 as u64
}

/// Chooses the backend, its route, and the source that it sees.
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
    // A datagram's connection counts, and may take another one's place, only from its first answer on.
    if key.protocol == TCP && !service::has_room(service.number, service.max_connections) {
        return Err(Reason::TooManyConnections);
    }
    let has_port = ports::has_any(key.protocol);
    // A connection that can have another port takes that, and does not replace one that may still be alive.
    (new.comes_by, new.is_outward, new.may_replace) = (0, false, !has_port);
    if has_port && (is_hairpin || arrival.attempt > 0) {
        let own = if is_hairpin { ports::OF_ROUTER } else { ports::OF_CLIENT };
        let port = ports::port(new.rewritten.reply_key(key).words(), own, 0);
        // If every port that was tried is taken, `table::insert` finds that out.
        new.may_replace = port & ports::HELD != 0;
        new.rewritten.sport = port as Be16;
    }
    new.is_exclusive = new.rewritten.src != key.src || new.rewritten.sport != key.sport;
    Ok(())
}
