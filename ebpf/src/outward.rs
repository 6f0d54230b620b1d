//! Stages 3 to 5 for connections that guests begin: their packets leave with a VIP as their source, by the device that the
//! kernel routes them to (`vipgate_abi::snat`). For a guest with an elastic IP only the address changes. A network's guests
//! share a VIP, so each of their connections gets a port of it (`ports`).
//!
//! Packets of guests that the pipeline does not translate, because they belong to no known connection, go to the stack:
//! guests reach the router itself that way. If the stack forwards such a packet by a device at which its source must not be
//! seen, it is dropped at egress ([`is_untranslated`]), unless it answers a client of the guest's own address (`direct`),
//! or is an ICMP error to one ([`icmp::DIRECT`](crate::icmp::DIRECT)).

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, bpf_sock_tuple as SocketTuple, bpf_sock_tuple__bindgen_ty_1 as SocketTuples,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as SocketTupleIpv4,
    },
    btf_maps::lpm_trie::Key,
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use vipgate_abi::{
    Be16, Be32,
    counters::Reason,
    flow::FlowKey,
    hash,
    snat::{SnatKey, SnatKind, SnatRule},
};

use crate::{
    address_filter, direct, fragment, ingress,
    maps::{BACKENDS, CONFIG, SOURCES},
    packet::{ETH_LEN, L4_OFFSET, Packet, load_address},
    parse::{IPV4, RST, TCP, UDP, ethertype, parse},
    ports,
    route::{self, FibContext},
    table,
    types::{Arrival, Connection, Rewritten},
    verifier::opaque,
    vlan,
};

/// Decides the connection of a packet without a flow, to an address without a service, whose source or destination
/// [may be translated](may_be_translated). An error if the packet is not ours.
#[inline(always)]
pub fn connect<P: Packet>(packet: &P, arrival: &Arrival, new: &mut Connection) -> Result<(), Reason> {
    let key = &arrival.key;
    let Some(config) = CONFIG.get(0) else {
        return Err(Reason::NotOurs);
    };
    if !packet.is_for_device() {
        return Err(Reason::OtherHost);
    }
    let is_direct = may_be_translated(key.dst) && direct::note(packet.ifindex(), key);
    if is_direct || !may_be_translated(key.src) {
        return Err(Reason::NotOurs);
    }
    new.rewritten = Rewritten { src: key.src, dst: key.dst, sport: key.sport, dport: key.dport };
    // If there is no route, the stack tells the guest.
    let Some((epoch, route, device)) = route::find(FibContext::of(packet), key.protocol, config, &new.rewritten) else {
        return Err(Reason::NotOurs);
    };
    (new.epoch, new.route) = (epoch, route);
    // A packet that comes by the outbound device is no guest's, whatever its source.
    let Some(rule) = snat_rule(device, key.src).filter(|_| device != packet.ifindex()) else {
        return Err(Reason::NotOurs);
    };
    if ingress::is_martian(packet, key) {
        return Err(Reason::Martian);
    }
    if direct::is_answer(key, arrival.tcp_flags) {
        return Err(Reason::NotOurs);
    }
    if !rule.comes_by(packet.ifindex()) {
        return Err(Reason::Spoofed);
    }
    if rule.kind == SnatKind::Disabled as u8 {
        return Err(Reason::Disabled);
    }
    let is_elastic = rule.kind == SnatKind::Elastic as u8;
    if !(arrival.opens() || (is_elastic && arrival.resumes())) {
        // Without an elastic IP, only the router can tell the guest that its connection is not known any more.
        let is_told = !is_elastic && key.protocol == TCP && arrival.tcp_flags as u8 & RST == 0;
        return Err(if is_told { Reason::FlowReset } else { Reason::NoFlow });
    }
    let Some(backend) = BACKENDS.get(rule.backend).filter(|backend| backend.addr != 0) else {
        return Err(Reason::NoBackend);
    };
    (new.backend, new.generation) = (rule.backend, backend.generation);
    (new.comes_by, new.answers_by) = (ingress::device(packet.ifindex()), ingress::device(device));
    (new.is_outward, new.is_exclusive, new.may_replace) = (true, !is_elastic, true);
    new.rewritten.src = rule.vip;
    if !is_elastic && ports::has_any(key.protocol) {
        let guest = if rule.shared != 0 { key.src } else { 0 };
        let port = port(packet, new.rewritten.reply_key(key).words(), guest)?;
        new.rewritten.sport = port as Be16;
        new.may_replace = port & ports::HELD != 0;
    }
    Ok(())
}

/// The network namespace of the packet's device.
const CURRENT_NETNS: u64 = BPF_F_CURRENT_NETNS as i64 as u64;
/// Number of ports that are tried until no socket of the router uses the port.
const SOCKET_TRIES: u32 = 4;

/// A source port for a connection with source NAT, which may be [`ports::HELD`]. The key words are those of the reply if
/// the connection keeps its own port; `guest` is as in [`ports::other_port`]. Ports used by the router's own sockets are
/// never assigned to guests.
#[inline(always)]
fn port<P: Packet>(packet: &P, [addresses, rest]: [u64; 2], guest: Be32) -> Result<u32, Reason> {
    let mut port = ports::port([addresses, rest], ports::OF_ROUTER, guest);
    let mut tries = 1;
    while port != ports::NONE {
        if has_socket(packet.context(), addresses, ports::answered_at(rest, port as u16)) == 0 {
            return Ok(port);
        }
        if tries == SOCKET_TRIES {
            break;
        }
        port = ports::other_port(addresses, rest, guest);
        tries += 1;
    }
    Err(Reason::NoFreePort)
}

/// 1 if the router itself has a socket for packets with these key words.
#[inline(never)]
fn has_socket(context: *mut c_void, addresses: u64, rest: u64) -> u32 {
    let ipv4 = SocketTupleIpv4 {
        saddr: addresses as u32,
        daddr: (addresses >> 32) as u32,
        sport: rest as u16,
        dport: ports::port_of(rest),
    };
    let mut tuple = SocketTuple { __bindgen_anon_1: SocketTuples { ipv4 } };
    let length = size_of::<SocketTupleIpv4>() as u32;
    // SAFETY: the context is the running program's, the tuple lives on the stack; a socket that is found is given back.
    unsafe {
        let socket = match (rest >> 32) as u8 {
            TCP => bpf_skc_lookup_tcp(context, &mut tuple, length, CURRENT_NETNS, 0),
            UDP => bpf_sk_lookup_udp(context, &mut tuple, length, CURRENT_NETNS, 0),
            _ => return opaque(0),
        };
        if socket.is_null() {
            return opaque(0);
        }
        bpf_sk_release(socket.cast());
    }
    opaque(1)
}

/// At egress, for a packet that the router's stack created: ends a guest's connection that uses the same port to the same
/// destination, so that the router gets the answers. This is only for sockets that are bound to a port that a guest has:
/// guests get neither the ports that the stack chooses itself nor ports with a socket.
#[inline(always)]
pub fn reclaim_port<P: Packet>(packet: &mut P) {
    let Ok(headers) = parse(packet) else {
        return;
    };
    let key = headers.key;
    if !address_filter::of(key.src).may_be_vip() {
        return;
    }
    let Some(config) = CONFIG.get(0) else {
        return;
    };
    let answers = FlowKey { src: key.dst, dst: key.src, sport: key.dport, dport: key.sport, ..key }.words();
    let hash = hash::words(answers, config.flow_seed);
    let Some(slot) = table::lookup(answers, hash, config.bucket_mask) else {
        return;
    };
    // SAFETY: `flow` points into FLOWS. Another CPU may be claiming the slot: `remove` finds out.
    let backend = unsafe { (*slot.flow).target.backend() };
    let is_masked = BACKENDS.get(backend).is_some_and(|backend| backend.addr == key.src);
    if slot.mark.is_reply() && !slot.mark.is_outward() && is_masked {
        table::remove(&slot);
    }
}

/// A guest that has an elastic IP connects to an elastic IP at the same device, perhaps its own: the connection gets the
/// guest's elastic IP as its source, so that answers come back through the router. Returns true if so.
#[inline(always)]
pub fn hairpin_eip<P: Packet>(
    packet: &P,
    device: u32,
    key: &FlowKey,
    rewritten: &mut Rewritten,
) -> Result<bool, Reason> {
    if !may_be_translated(key.src) {
        return Ok(false);
    }
    let Some(rule) = snat_rule(device, key.src).filter(|rule| rule.kind == SnatKind::Elastic as u8) else {
        return Ok(false);
    };
    if !rule.comes_by(packet.ifindex()) {
        return Err(Reason::Spoofed);
    }
    rewritten.src = rule.vip;
    let reply = rewritten.reply_key(key);
    if reply == *key {
        // The guest connects to its own elastic IP with equal ports: both directions would have the same key.
        let [addresses, rest] = reply.words();
        rewritten.sport = ports::other_port(addresses, rest, 0) as Be16;
    }
    Ok(true)
}

/// The SNAT rule for packets from this address that leave by the device.
#[inline(always)]
pub fn snat_rule(device: u32, src: Be32) -> Option<&'static SnatRule> {
    SOURCES.get(&Key::new(SnatKey::EXACT, SnatKey::new(device, src)))
}

/// False if no SNAT rule applies to this address, at any device.
#[inline(always)]
pub fn may_be_translated(src: Be32) -> bool {
    address_filter::of(src).may_be_translated()
}

/// At egress, for a packet that the stack forwards or the pipeline sent: true if the source should have been translated at
/// this device. The headers are readable.
#[inline(always)]
pub fn is_untranslated<P: Packet>(packet: &mut P) -> bool {
    let end = packet.data_end();
    let (data, _) = vlan::behind_tag(packet.data(), end);
    if data + L4_OFFSET > end || ethertype(data) != IPV4 {
        return false;
    }
    // SAFETY: within the IPv4 header's fixed part, checked just above.
    let src = unsafe { load_address(data + ETH_LEN + 12) };
    if !may_be_translated(src) || snat_rule(packet.ifindex(), src).is_none() {
        return false;
    }
    // A VIP may lie in a guests' network without belonging to a guest.
    if ingress::is_own(packet, src) {
        return false;
    }
    let Ok(headers) = parse(packet) else {
        return true;
    };
    if !direct::is_answer(&headers.key, headers.tcp_flags.into()) {
        return true;
    }
    if headers.is_first != 0 {
        // The fragments that follow come here, too.
        fragment::remember(&headers);
    }
    false
}
