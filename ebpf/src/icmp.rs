//! ICMP errors about packets that the pipeline translated (RFC 5508, section 4).
//!
//! An error quotes the packet that it is about, as its sender saw it: translated. Its receiver knows the connection
//! untranslated, so the quoted packet is turned back, and the error goes to the connection's other side. The quote is
//! looked up by its own addresses and ports the other way round: that is the flow whose packets answer it.
//!
//! Errors come from outside ([`relay`]) and from the router's own stack ([`translate_error`] at egress), which answers what
//! the pipeline hands to it: packets larger than the way out's MTU, and those whose time to live is over (`refused`).

use vipgate_abi::{
    Be16,
    checksum::{delta16, delta32, update, update_udp},
    counters::Reason,
    flow::FlowKey,
    hash,
    interface::Interface,
};

use crate::{
    direct, ingress,
    maps::{BACKENDS, CONFIG},
    packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address, load_length, store, store_address},
    parse::{FRAGMENT_OFFSET, IPV4, TCP, UDP, VERSION_IHL, ethertype, has_options, has_ports},
    portless::{DCCP, UDP_LITE},
    refused, route, table,
    types::Rewritten,
    verifier::opaque,
    vlan::{self, TAG_LEN},
};

pub const ICMP: u8 = 1;

/// Length of the header, and offsets of its checksum and of a query's identifier, in bytes.
pub const HEADER_LEN: usize = 8;
pub const CHECKSUM: usize = 2;
pub const IDENTIFIER: usize = 4;

/// Sets of types (RFC 792, RFC 950), as bits: those that quote a packet, queries and what answers them.
const ERRORS: u32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 11 | 1 << 12;
const REQUESTS: u32 = 1 << 8 | 1 << 13 | 1 << 15 | 1 << 17;
const ANSWERS: u32 = 1 | 1 << 14 | 1 << 16 | 1 << 18;
/// The errors that concern a packet's sender: unreachable, time exceeded, parameter problem. Redirects are the link's.
const RELAYED: u32 = 1 << 3 | 1 << 11 | 1 << 12;

#[inline(always)]
const fn is_in(kind: u8, types: u32) -> bool {
    kind < 32 && types >> kind & 1 != 0
}

#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    is_in(kind, ERRORS)
}

#[inline(always)]
pub const fn is_request(kind: u8) -> bool {
    is_in(kind, REQUESTS)
}

#[inline(always)]
pub const fn is_answer(kind: u8) -> bool {
    is_in(kind, ANSWERS)
}

/// Both ports of what has no identifier. A query's other port is 0, so that this is none's.
const NO_IDENTIFIER: Be16 = 1u16.to_be();

/// The ports that a flow's key has for a packet of this type: a request's identifier is the source's, an answer's the
/// destination's.
#[inline(always)]
pub const fn ports(kind: u8, identifier: Be16) -> (Be16, Be16) {
    if is_request(kind) {
        (identifier, 0)
    } else if is_answer(kind) {
        (0, identifier)
    } else {
        (NO_IDENTIFIER, NO_IDENTIFIER)
    }
}

/// Which of a packet's two ports its identifier is, by its type: a request's source, an answer's destination. None: it has no
/// identifier.
#[inline(always)]
pub const fn identifier(kind: u8, sport: Be16, dport: Be16) -> Option<Be16> {
    if is_request(kind) {
        Some(sport)
    } else if is_answer(kind) {
        Some(dport)
    } else {
        None
    }
}

/// The transport bytes that every quote has, and the end of a TCP checksum in them, which most quotes have today (RFC
/// 1812, section 4.3.2.3).
const QUOTED: usize = 8;
const TCP_CHECKSUM_END: usize = 18;
/// The longest headers that are looked at: a tag, and the options of both packets, which an error may have because what
/// it quotes has them (RFC 1122, section 3.2.2).
const LONGEST: usize = ETH_LEN + TAG_LEN + 60 + HEADER_LEN + 60 + TCP_CHECKSUM_END;

/// [`relay`]'s answer where it is no reason.
pub const IS_TRANSLATED: u32 = 1 << 31;

/// At ingress: an error about a translated packet, which is to go to its connection's other side, is `IS_TRANSLATED` back, and
/// `outer` has its own new addresses, for [`send`]. Else a reason's number; that of [`Reason::OtherProtocol`]: it is none, and
/// unchanged.
#[inline(never)]
pub fn relay<P: Packet>(packet: &mut P, outer: &mut Rewritten) -> u32 {
    if !packet.is_for_device() {
        return Reason::OtherHost as u32;
    }
    match translate_error(packet, false, outer) {
        TRANSLATED => IS_TRANSLATED,
        FORGED => Reason::WrongSide as u32,
        _ => Reason::OtherProtocol as u32,
    }
}

/// In [`send`]'s answer: the rest is the verdict.
pub const SENT: u32 = 1 << 31;

/// Sends a turned-back error to its receiver: [`SENT`] with the verdict, or a reason's number. Beside [`relay`], not within:
/// together they would need a stack that is too deep.
#[inline(never)]
pub fn send<P: Packet>(packet: &mut P, outer: &Rewritten) -> u32 {
    match try_send(packet, outer) {
        Ok(verdict) => SENT | verdict as u32,
        Err(reason) => reason as u32,
    }
}

#[inline(always)]
fn try_send<P: Packet>(packet: &mut P, outer: &Rewritten) -> Result<i32, Reason> {
    let Some(route) = route::find_once(packet, ICMP, outer) else {
        return Err(Reason::Unroutable);
    };
    // What is rewritten already cannot be handed over: without a neighbour the stack sends it, at either hook.
    let can_send = |interface: &&Interface| route.next_hop != [0; 6] && (P::QUEUES || interface.takes_frames());
    let Some(egress) = route::interface(route.number()).filter(can_send) else {
        return Err(Reason::NoNeighbour);
    };
    let end = packet.data_end();
    let (data, shift) = vlan::behind_tag(packet.data(), end);
    if data + L4_OFFSET > end {
        return Err(Reason::Malformed);
    }
    // SAFETY: both headers' bounds are checked just above; a route's MAC address is at an even address.
    unsafe {
        if packet.exceeds(load_length(data + ETH_LEN + 2), 20 + HEADER_LEN as u32, egress.mtu) {
            return Err(Reason::OverMtu);
        }
        let Some(delta) = route::forward_headers(data, egress, &route.next_hop) else {
            return Err(Reason::TtlExpired);
        };
        update_checksum(data + ETH_LEN + 10, delta);
    }
    if shift != 0 {
        packet.untag();
    }
    Ok(packet.send(route.number(), egress))
}

/// [`translate_error`]'s answers: the packet is no such error, it was one, and what it is instead, unchanged: somebody else than who
/// could know sent it ([`ingress::is_forged`]), or it tells its receiver of what came to a guest's own address (`direct`).
const NONE: u32 = 0;
pub const TRANSLATED: u32 = 1;
const FORGED: u32 = 2;
pub const DIRECT: u32 = 3;

/// Rewrites an error about a translated packet, in place: one of the answers above. At egress, as `is_own` says, none is forged,
/// at ingress none `DIRECT`. `outer` gets the error's own new addresses.
#[inline(always)]
pub fn translate_error<P: Packet>(packet: &mut P, is_own: bool, outer: &mut Rewritten) -> u32 {
    // At egress this is about every packet of the stack's: what else it is shows in its first header.
    packet.pull(ETH_LEN + TAG_LEN + 20);
    if !is_icmp(packet) {
        return NONE;
    }
    packet.pull(LONGEST);
    let end = packet.data_end();
    let (data, shift) = vlan::behind_tag(packet.data(), end);
    if data + L4_OFFSET > end {
        return NONE;
    }
    // SAFETY: within the IPv4 header's fixed part, checked just above.
    let (version_ihl, ip_len, fragment) = unsafe {
        let ip_len = load_length(data + ETH_LEN + 2) as usize;
        (load::<u8>(data + ETH_LEN), ip_len, load::<u16>(data + ETH_LEN + 6))
    };
    let header_len = header_len(version_ihl);
    let icmp = data + ETH_LEN + header_len;
    let quote = icmp + HEADER_LEN;
    if quote + 20 > end {
        return NONE;
    }
    // SAFETY: within the ICMP header and the quoted IPv4 header's fixed part, checked just above.
    let (kind, quoted_version_ihl, quoted_fragment, quoted_protocol) =
        unsafe { (load::<u8>(icmp), load::<u8>(quote), load::<u16>(quote + 6), load::<u8>(quote + 9)) };
    let quoted_header_len = self::header_len(quoted_version_ihl);
    let quote_l4 = quote + quoted_header_len;
    let quote_l4_offset = header_len + HEADER_LEN + quoted_header_len;
    if quote_l4 + QUOTED > end
        || !is_header(version_ihl)
        // What follows the packet in its frame is not its checksum's to cover.
        || ip_len < quote_l4_offset + QUOTED
        || !packet.holds(data, shift, ip_len)
        || !is_in(kind, RELAYED)
        || !is_header(quoted_version_ihl)
        // Only a first fragment has an ICMP header, or ports.
        || (fragment | quoted_fragment) & FRAGMENT_OFFSET != 0
    {
        return NONE;
    }
    // SAFETY: within the bytes that every quote has.
    let (sport, dport) = unsafe { quoted_ports(quoted_protocol, quote_l4) };
    // SAFETY: as above.
    let (src, dst, quoted) = unsafe {
        let quoted = FlowKey {
            src: load_address(quote + 12),
            dst: load_address(quote + 16),
            sport,
            dport,
            protocol: quoted_protocol,
            reserved: 0,
            domain: 0,
        };
        (load_address(data + ETH_LEN + 12), load_address(data + ETH_LEN + 16), quoted)
    };
    let answer = FlowKey { src: quoted.dst, dst: quoted.src, sport: quoted.dport, dport: quoted.sport, ..quoted };
    let refused = if is_own { refused::original(&quoted) } else { None };
    // The quote as its sender had it: where the stack refused it, as that came; else what the answering flow's packets become,
    // the other way round.
    let sent = if let Some(sent) = refused {
        sent
    } else if let Some(answers) = flow_of(&answer) {
        Rewritten { src: answers.dst, dst: answers.src, sport: answers.dport, dport: answers.sport }
    } else {
        return if is_own && dst == answer.dst && direct::is_known(&answer) { DIRECT } else { NONE };
    };
    if !is_own && ingress::is_forged(packet, src, quoted.src, quoted.dst) {
        return FORGED;
    }
    let addresses = delta32(quoted.src, sent.src) + delta32(quoted.dst, sent.dst);
    // SAFETY: within the bytes that every quote has.
    let quoted_kind: u8 = unsafe { load(quote_l4) };
    let identifier = if quoted_protocol == ICMP { identifier(quoted_kind, sent.sport, sent.dport) } else { None };
    let ports = match identifier {
        // Of a quoted query's two ports one is 0.
        Some(identifier) => delta16(quoted.sport | quoted.dport, identifier),
        None if has_ports(quoted_protocol) => delta16(quoted.sport, sent.sport) + delta16(quoted.dport, sent.dport),
        None => 0,
    };
    // An error about a packet on its way in comes from where the connection's other side knows that: one from the packet's
    // receiver, and one from a router before that, whose address is nobody's outside (RFC 5508, section 4.2). Our own
    // is known there.
    let is_from_inside = sent.dst != quoted.dst && (src == quoted.dst || !is_own);
    outer.src = if is_from_inside { sent.dst } else { src };
    outer.dst = sent.src;
    // SAFETY: as above; the TCP checksum is checked apart.
    unsafe {
        let mut changed = addresses + ports;
        changed += update_checksum(quote + 10, addresses);
        if let Some(identifier) = identifier {
            changed += update_checksum(quote_l4 + CHECKSUM, ports);
            store(quote_l4 + IDENTIFIER, identifier);
        } else if quoted_protocol == UDP || quoted_protocol == UDP_LITE {
            let old: u16 = load(quote_l4 + 6);
            let new = update_udp(old, addresses + ports);
            store(quote_l4 + 6, new);
            changed += delta16(old, new);
        } else if quoted_protocol == DCCP {
            changed += update_checksum(quote_l4 + 6, addresses);
        // Opaque, or the compiler infers the second condition from the first, which the verifier cannot.
        } else if quoted_protocol == TCP
            && opaque(ip_len as u32) as usize >= quote_l4_offset + TCP_CHECKSUM_END
            && quote_l4 + TCP_CHECKSUM_END <= end
        {
            changed += update_checksum(quote_l4 + 16, addresses + ports);
        }
        store_address(quote + 12, sent.src);
        store_address(quote + 16, sent.dst);
        if has_ports(quoted_protocol) {
            store(quote_l4, sent.sport);
            store(quote_l4 + 2, sent.dport);
        }
        update_checksum(icmp + CHECKSUM, changed);
        update_checksum(data + ETH_LEN + 10, delta32(src, outer.src) + delta32(dst, outer.dst));
        store_address(data + ETH_LEN + 12, outer.src);
        store_address(data + ETH_LEN + 16, outer.dst);
    }
    TRANSLATED
}

/// True for an IPv4 packet that carries ICMP.
#[inline(always)]
fn is_icmp<P: Packet>(packet: &P) -> bool {
    let end = packet.data_end();
    let (data, _) = vlan::behind_tag(packet.data(), end);
    // SAFETY: within the IPv4 header's fixed part, which is checked first.
    data + L4_OFFSET <= end && ethertype(data) == IPV4 && unsafe { load::<u8>(data + ETH_LEN + 9) } == ICMP
}

/// The ports of a quoted packet, as they are in a flow's key.
///
/// # Safety
/// `l4` is the address of QUOTED readable bytes.
#[inline(always)]
unsafe fn quoted_ports(protocol: u8, l4: usize) -> (Be16, Be16) {
    // SAFETY: as the caller promises.
    unsafe {
        match protocol {
            TCP | UDP => (load(l4), load(l4 + 2)),
            ICMP => ports(load(l4), load(l4 + IDENTIFIER)),
            _ => (0, 0),
        }
    }
}

/// The length of an IPv4 header that begins with this byte, in bytes.
#[inline(always)]
fn header_len(version_ihl: u8) -> usize {
    (version_ihl & 15) as usize * 4
}

/// True for the first byte of an IPv4 header.
#[inline(always)]
fn is_header(version_ihl: u8) -> bool {
    version_ihl == VERSION_IHL || has_options(version_ihl)
}

/// Updates a checksum by `delta`; what that itself changes for a checksum around it.
///
/// # Safety
/// `address` is that of two bytes of the packet, at an even offset.
#[inline(always)]
pub unsafe fn update_checksum(address: usize, delta: u64) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        let old: u16 = load(address);
        let new = update(old, delta);
        store(address, new);
        delta16(old, new)
    }
}

/// What the packets of this flow become; None: there is no such flow, or it is over.
#[inline(always)]
fn flow_of(key: &FlowKey) -> Option<Rewritten> {
    let config = CONFIG.get(0)?;
    let words = key.words();
    let slot = table::lookup(words, hash::words(words, config.flow_seed), config.bucket_mask)?;
    // SAFETY: `flow` points into FLOWS. Another CPU may be claiming the slot: `holds` tells.
    let (rewritten, backend, generation) =
        unsafe { (Rewritten::by(&*slot.flow), (*slot.flow).target.backend(), (*slot.flow).generation) };
    (slot.holds() && BACKENDS.get(backend)?.generation == generation).then_some(rewritten)
}
