//! Stages 3 to 5 for what guests begin themselves: their packets leave with a VIP as their source, by the device that the
//! kernel routes them to (`vipgate_abi::source`). Of an elastic IP's guest only the address changes; a network's guests
//! share a VIP, so that each of their connections gets a port of it (`ports`).
//!
//! What such a guest sends and the pipeline does not translate, because it belongs to nothing that is known, goes to the
//! stack, which may well have it: the router itself is reached so. Should the stack send it on to where its source may not
//! be seen, it ends at egress ([`is_untranslated`]).

use aya_ebpf::btf_maps::lpm_trie::Key;
use vipgate_abi::{
    Be16, Be32,
    counters::Reason,
    flow::FlowKey,
    interest::Bit,
    source::{Source, SourceKey, SourceKind},
};

use crate::{
    icmp::ICMP,
    maps::{BACKENDS, CONFIG, INTEREST, SOURCES},
    offset,
    packet::{ETH_LEN, L4_OFFSET, Packet, load_address},
    parse::{IPV4, ethertype, has_ports},
    pipeline::Arrival,
    ports,
    route::{self, Rewritten},
    table::{self, Connection},
    verifier::opaque,
};

/// A packet without a flow, to an address without a service: what [`table::opened`] takes, or why it is not ours.
#[inline(always)]
pub fn connect<P: Packet>(packet: &P, arrival: &Arrival) -> Result<u64, Reason> {
    let key = &arrival.key;
    if !may_be_translated(key.src) {
        return Err(Reason::NotOurs);
    }
    let Some(config) = CONFIG.get(0) else {
        return Err(Reason::NotOurs);
    };
    if !packet.is_for_port() {
        return Err(Reason::OtherHost);
    }
    let mut rewritten = Rewritten { src: key.src, dst: key.dst, sport: key.sport, dport: key.dport };
    // Without a way the stack says so to the guest.
    let Some((epoch, route, device)) = route::find_device(packet, key.protocol, config, &rewritten) else {
        return Err(Reason::NotOurs);
    };
    // Who comes by the device that leads out is no guest, whatever source it claims.
    let Some(source) = source(device, key.src).filter(|_| device != packet.ifindex()) else {
        return Err(Reason::NotOurs);
    };
    if source.kind == SourceKind::Disabled as u8 {
        return Err(Reason::Disabled);
    }
    let is_elastic = source.kind == SourceKind::Elastic as u8;
    if !(arrival.opens() || (is_elastic && arrival.resumes())) {
        return Err(Reason::NoFlow);
    }
    let Some(backend) = BACKENDS.get(source.backend).filter(|backend| backend.addr != 0) else {
        return Err(Reason::NoBackend);
    };
    rewritten.src = source.vip;
    let mut may_replace = true;
    if !is_elastic && (has_ports(key.protocol) || key.protocol == ICMP) {
        let port = port(key, &rewritten, source.shared as u32)?;
        rewritten.sport = port as Be16;
        may_replace = port & ports::HELD != 0;
    }
    table::insert(
        arrival,
        config,
        &Connection {
            rewritten: &rewritten,
            route: &route,
            epoch,
            backend: source.backend,
            generation: backend.generation,
            is_outward: true,
            is_exclusive: !is_elastic,
            may_replace,
        },
    )
}

/// A source port for a connection of many guests', perhaps one that is [`ports::HELD`]. What has none is one guest's for each destination: who inserts it finds
/// out.
#[inline(always)]
fn port(key: &FlowKey, rewritten: &Rewritten, shared: u32) -> Result<u32, Reason> {
    let [addresses, rest] = rewritten.reply_key(key).words();
    match ports::free_port(addresses, rest, shared) {
        ports::NONE => Err(Reason::NoFreePort),
        port => Ok(port),
    }
}

/// Gives a guest that has an elastic IP by the same device as the one that it connects to, its own perhaps, that IP as its
/// source: so answers come back through the router, wherever both guests are. True: done.
#[inline(always)]
pub fn meet(device: u32, key: &FlowKey, rewritten: &mut Rewritten) -> bool {
    may_be_translated(key.src) && opaque(take_identity(device, key, rewritten)) != 0
}

#[inline(never)]
fn take_identity(device: u32, key: &FlowKey, rewritten: &mut Rewritten) -> u32 {
    let Some(source) = source(device, key.src).filter(|source| source.kind == SourceKind::Elastic as u8) else {
        return 0;
    };
    rewritten.src = source.vip;
    let reply = rewritten.reply_key(key);
    if reply == *key {
        // A guest that asks its own elastic IP from the port that it asks: both directions would look the same.
        let [addresses, rest] = FlowKey { dport: 0, ..reply }.words();
        rewritten.sport = ports::free_port(addresses, rest, 0) as Be16;
    }
    1
}

/// How packets from this address change when they leave by the device.
#[inline(always)]
fn source(device: u32, src: Be32) -> Option<&'static Source> {
    SOURCES.get(&Key::new(SourceKey::EXACT, SourceKey::new(device, src)))
}

/// False: no device's packets from this address change.
#[inline(always)]
fn may_be_translated(src: Be32) -> bool {
    let bit = Bit::out(src);
    INTEREST.get(bit.word()).is_some_and(|word| word & bit.mask() != 0)
}

/// At egress: true for a packet whose source should have been another one by this device. Its headers are readable.
#[inline(always)]
pub fn is_untranslated<P: Packet>(packet: &P) -> bool {
    let end = packet.data_end();
    let (data, _) = offset::behind_tags(packet.data(), end);
    if data + L4_OFFSET > end || ethertype(data) != IPV4 {
        return false;
    }
    // SAFETY: within the IPv4 header's fixed part, checked just above.
    let src = unsafe { load_address(data + ETH_LEN + 12) };
    may_be_translated(src) && source(packet.ifindex(), src).is_some()
}
