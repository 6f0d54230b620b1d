//! ICMP errors about packets that the pipeline translated (RFC 5508, section 4).
//!
//! An error quotes a packet as the error's sender saw it: translated. The error's receiver knows the connection
//! untranslated, so the quote is translated back, and the error goes to the connection's other side. The flow is looked up
//! by the quote's addresses and ports reversed: it is the one whose packets answer the quoted packet.
//!
//! Errors come from other hosts ([`relay`]) and from the router's own stack ([`translate_error`] at egress). The stack
//! answers packets that the pipeline hands to it: those larger than the MTU, and those whose time to live is over
//! (`refused`).

use vipgate_abi::{
    Be16, Be32,
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

/// Sets of types (RFC 792, RFC 950), as bits: errors, which quote a packet; requests; and their answers.
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

/// Both ports of messages without an identifier. No query has them: one of a query's ports is 0.
const NO_IDENTIFIER: Be16 = 1u16.to_be();

/// The ports in the flow key of a message of this type: a request's identifier is its source port, an answer's its destination
/// port.
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

/// The port that is the message's identifier: a request's source port, an answer's destination port. `None` if messages of
/// this type have no identifier.
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
/// The longest headers that are parsed: with a tag, and with options in both packets, since an error may copy the options
/// of the packet that it quotes (RFC 1122, section 3.2.2).
const LONGEST: usize = ETH_LEN + TAG_LEN + 60 + HEADER_LEN + 60 + TCP_CHECKSUM_END;

/// What [`relay`] returns for a translated error; else it returns a reason.
pub const IS_TRANSLATED: u32 = 1 << 31;

/// Translates an error about a translated packet, at ingress. Returns [`IS_TRANSLATED`] and in `outer` the error's own new
/// addresses, for [`send`]; else a reason's number. [`Reason::OtherProtocol`] means that the packet is no such error, and
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

/// In what [`send`] returns: the other bits are the verdict.
pub const SENT: u32 = 1 << 31;

/// Sends a translated error to its receiver. Returns [`SENT`] with the verdict, or a reason's number. [`relay`] does not
/// call this function: together they would need too deep a stack.
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
    // A rewritten packet cannot be handed over to TC: if no neighbour is known, the stack sends it, at either hook.
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

/// What [`translate_error`] returns: the packet is no such error.
const NONE: u32 = 0;
/// The error was translated.
pub const TRANSLATED: u32 = 1;
/// The error is unchanged: its sender cannot have seen the packet ([`ingress::is_forged`]).
const FORGED: u32 = 2;
/// The error is unchanged: it goes to a client of a guest's own address (`direct`).
pub const DIRECT: u32 = 3;

/// Translates an error about a translated packet, in place. `is_own` at egress, where no error is `FORGED`; at ingress none
/// is `DIRECT`. `outer` receives the error's own new addresses.
#[inline(always)]
pub fn translate_error<P: Packet>(packet: &mut P, is_own: bool, outer: &mut Rewritten) -> u32 {
    // At egress every packet of the stack comes here, so the first header is checked before more is pulled.
    packet.pull(ETH_LEN + TAG_LEN + 20);
    if !is_icmp(packet) {
        return NONE;
    }
    packet.pull(LONGEST);
    let Some(error) = Error::read(packet) else {
        return NONE;
    };
    let Error { data, end, icmp, quote, quote_l4, quote_l4_offset, ip_len, src, dst, quoted } = error;
    let quoted_protocol = quoted.protocol;
    let answer = FlowKey { src: quoted.dst, dst: quoted.src, sport: quoted.dport, dport: quoted.sport, ..quoted };
    let refused = if is_own { refused::original(&quoted) } else { None };
    // The quoted packet as its sender sent it: as it came, if the stack refused it; else the reverse of what the answering
    // flow's packets become.
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
        // One of a query's two ports is 0.
        Some(identifier) => delta16(quoted.sport | quoted.dport, identifier),
        None if has_ports(quoted_protocol) => delta16(quoted.sport, sent.sport) + delta16(quoted.dport, sent.dport),
        None => 0,
    };
    // An error about an inbound packet gets the address that the connection's other side knows, whether the packet's
    // receiver sent it or a router inside, whose address is unknown outside (RFC 5508, section 4.2). Our own address is
    // known there.
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

/// An ICMP error in a packet: what it quotes, and where its parts are.
struct Error {
    /// Address of the Ethernet header, as in [`Headers::data`](crate::parse::Headers::data), and past the last readable byte.
    data: usize,
    end: usize,
    /// Addresses of the ICMP header, of the quoted packet, and of the quoted transport header.
    icmp: usize,
    quote: usize,
    quote_l4: usize,
    /// Offset of the quoted transport header in the IP packet, and the length of that.
    quote_l4_offset: usize,
    ip_len: usize,
    src: Be32,
    dst: Be32,
    quoted: FlowKey,
}

impl Error {
    /// `None` if the packet is no error that is relayed.
    #[inline(always)]
    fn read<P: Packet>(packet: &P) -> Option<Self> {
        let end = packet.data_end();
        let (data, shift) = vlan::behind_tag(packet.data(), end);
        if data + L4_OFFSET > end {
            return None;
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
            return None;
        }
        // SAFETY: within the ICMP header and the quoted IPv4 header's fixed part, checked just above.
        let (kind, quoted_version_ihl, quoted_fragment, quoted_protocol) =
            unsafe { (load::<u8>(icmp), load::<u8>(quote), load::<u16>(quote + 6), load::<u8>(quote + 9)) };
        let quoted_header_len = self::header_len(quoted_version_ihl);
        let quote_l4 = quote + quoted_header_len;
        let quote_l4_offset = header_len + HEADER_LEN + quoted_header_len;
        if quote_l4 + QUOTED > end
            || !is_header(version_ihl)
            // The checksum does not cover what follows the packet in its frame.
            || ip_len < quote_l4_offset + QUOTED
            || !packet.holds(data, shift, ip_len)
            || !is_in(kind, RELAYED)
            || !is_header(quoted_version_ihl)
            // Only a first fragment has an ICMP header, or ports.
            || (fragment | quoted_fragment) & FRAGMENT_OFFSET != 0
        {
            return None;
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
        Some(Self { data, end, icmp, quote, quote_l4, quote_l4_offset, ip_len, src, dst, quoted })
    }
}

/// True for an IPv4 packet that carries ICMP.
#[inline(always)]
fn is_icmp<P: Packet>(packet: &P) -> bool {
    let end = packet.data_end();
    let (data, _) = vlan::behind_tag(packet.data(), end);
    // SAFETY: within the IPv4 header's fixed part, which is checked first.
    data + L4_OFFSET <= end && ethertype(data) == IPV4 && unsafe { load::<u8>(data + ETH_LEN + 9) } == ICMP
}

/// The ports of a quoted packet, as in a flow's key.
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

/// Updates a checksum by `delta`. Returns the change for an outer checksum that covers this one.
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

/// What the packets of this flow become; `None` if there is no such flow, or it is over.
#[inline(always)]
fn flow_of(key: &FlowKey) -> Option<Rewritten> {
    let config = CONFIG.get(0)?;
    let words = key.words();
    let slot = table::lookup(words, hash::words(words, config.flow_seed), config.bucket_mask)?;
    // SAFETY: `flow` points into FLOWS. Another CPU may be claiming the slot: `holds` finds out.
    let (rewritten, backend, generation) =
        unsafe { (Rewritten::by(&*slot.flow), (*slot.flow).target.backend(), (*slot.flow).generation) };
    (slot.holds() && BACKENDS.get(backend)?.generation == generation).then_some(rewritten)
}
