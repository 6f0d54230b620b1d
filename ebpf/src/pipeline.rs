//! The stages in order: parse, find the flow, open one if there is none (`open`), then meter, rewrite and send (`forward`).
//! One copy for both hooks.

use core::ptr;

use vipgate_abi::{Be32, config::Config, counters::Reason, hash, service::Kind};

use crate::{
    address_filter,
    clock::jiffies,
    count,
    forward::forward,
    icmp, ingress,
    maps::{BACKENDS, CONFIG},
    open,
    packet::{L4_OFFSET, Packet, load_address},
    parse::{Headers, parse},
    reset,
    route::{self, FibContext},
    secondary, service,
    table::{self, Slot},
    tcp,
    types::{Arrival, Queue, Rewritten},
    vlan,
};

/// Runs a packet through the pipeline. Returns the hook's verdict.
#[inline(always)]
pub fn run<P: Packet>(packet: P) -> i32 {
    run_marked(packet, false)
}

/// [`run`] for a packet that goes by the kernel's neighbour table if `by_neighbour`.
#[inline(always)]
pub fn run_marked<P: Packet>(mut packet: P, by_neighbour: bool) -> i32 {
    // The per-packet scratch field may hold an older value: clear it.
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
    // Every packet that is not sent ends here, near the top of the stack, where there is room to log it.
    answered.unwrap_or_else(|reason| {
        let reason = if is_untouched(reason) { ingress::final_reason(&packet, reason) } else { reason };
        count::verdict(&packet, reason)
    })
}

/// True if the stack gets an IPv4 packet as it came, and may accept it.
#[inline(always)]
fn is_untouched(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NotOurs
            | Reason::NoFlow
            | Reason::NoBackend
            | Reason::Forbidden
            | Reason::OtherProtocol
            | Reason::Fragment
            | Reason::Malformed
    )
}

/// An IPv4 packet that no service can take. The stack gets it, unless it is for a VIP that is Disabled or an elastic IP.
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
    let (data, _) = vlan::behind_tag(packet.data(), end);
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
    // The stack would reassemble the fragments, and answer for the guest.
    let tells_nothing = matches!(reason, Reason::Fragment | Reason::Malformed);
    let is_guests = kind == Kind::Elastic as u8 && tells_nothing;
    Err(if is_guests { Reason::Unreadable } else { reason })
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
            open::connection(packet, &mut arrival)?
        }
    };
    forward(packet, headers, &slot)
}

/// False if the packet belongs to no flow and no service for sure (`vipgate_abi::address_filter`).
#[inline(always)]
fn may_be_ours(src: Be32, dst: Be32) -> bool {
    address_filter::of(dst).may_be_to() || address_filter::of(src).may_be_from()
}

/// A packet that has a flow. Returns false if the flow is over and the packet is to be treated as one without a flow.
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
        // The client's packet may open a connection to the service that is there now. The backend's packet has no destination.
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
            tcp::NEW_CONNECTION => {
                table::remove(slot);
                return Ok(false);
            }
            tcp::OVER => return Err(Reason::FlowEnded),
            _ => return Err(Reason::TooManyConnections),
        }
    }
    let now = jiffies();
    let mut is_old = !hop.is_of(config.epoch as u16, target.interface());
    if slot.mark.is_stale(now) {
        // Without the controller, nothing else checks that the next hop is still there.
        is_old |= config.confirm != 0;
        table::touch(slot.index, now);
        // The sweeper looks at both directions. Eviction, which takes the flows of idle datagrams, looks at one.
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
            route::FORBIDDEN => return Err(Reason::Forbidden),
            _ => return Err(Reason::Unroutable),
        }
    }
    Ok(true)
}
