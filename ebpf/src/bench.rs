//! The programs that the benchmark loads: the pipeline behind a prologue that writes a new packet for every run, because a
//! repeated test run keeps the packet that the run before has changed. `bench_empty_*` are the prologue only: their time is
//! subtracted.
#![no_std]
#![no_main]

use core::hint::black_box;

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    },
    btf_maps::{Array, LruHashMap, PerCpuArray},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use vipgate_abi::{
    checksum::{delta16, delta32, update, update_udp},
    flow::FlowKey,
    hash,
};
use vipgate_pipeline::{
    maps,
    packet::{ETH_LEN, L4_OFFSET, Packet, load, load_address, store, store_address},
    parse::{self, UDP},
    pipeline, route, table,
    tc::TcPacket,
    xdp::{NATIVE, XdpPacket},
};

/// Ethernet, IPv4 and TCP headers, 16-bit words as on the wire; the last words of a 64-byte element are unused.
type Headers = [u16; 32];
const WORDS: usize = 27;

/// Words of the headers: IPv4's and the transport's, TCP or UDP.
const PROTOCOL: usize = 11;
const IP_CHECKSUM: usize = 12;
const SOURCE: usize = 13;
const DESTINATION: usize = 15;
const SOURCE_PORT: usize = 17;
const UDP_CHECKSUM: usize = 20;
const TCP_CHECKSUM: usize = 25;

/// The packet to run. All packets are made from it: they differ only in their source, or in source port and destination. So
/// they need no memory that would compete with the measured program's tables for the caches.
#[btf_map]
static BENCH_TEMPLATE: Array<Headers, 1, 0> = Array::new();

/// The count of packets so far; the number of different packets minus one, a power of two minus one; how many bits of a
/// packet's number are added to the source port (the others are added to the source address, or with [`TO_OTHERS`] to the
/// destination address); and an odd factor from the count to the packet's number: 1 for packets in order, a large one for
/// an order that no cache predicts.
#[btf_map]
static BENCH_TURN: Array<[u32; 4], 1, 0> = Array::new();

const TO_OTHERS: u32 = 1 << 4;

/// Frames that the sink or the watcher counted.
#[btf_map]
static BENCH_SUNK: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Writes the next packet's headers. All of them, because the run before has rewritten them.
#[inline(always)]
fn renew<P: Packet>(packet: &P) -> Option<()> {
    let turn = BENCH_TURN.get_ptr_mut(0)?;
    // SAFETY: the one element; the benchmark runs on one CPU.
    let (number, port_bits, to_others) = unsafe {
        let [count, mask, port_bits, factor] = *turn;
        (*turn)[0] = count.wrapping_add(1);
        (count.wrapping_mul(factor) & mask, port_bits & 15, port_bits & TO_OTHERS != 0)
    };
    let headers = BENCH_TEMPLATE.get(0)?;
    let start = packet.data();
    if start + WORDS * 2 > packet.data_end() {
        return None;
    }
    let mut word = 0;
    while word < WORDS {
        // SAFETY: within the packet, checked above.
        unsafe { store(start + word * 2, headers[word]) };
        word += 1;
    }
    let words = if to_others {
        [headers[DESTINATION], headers[DESTINATION + 1]]
    } else {
        [headers[SOURCE], headers[SOURCE + 1]]
    };
    let old_address = words[0] as u32 | (words[1] as u32) << 16;
    let new_address = (u32::from_be(old_address) + (number >> port_bits)).to_be();
    let old_port = headers[SOURCE_PORT];
    let port = (u16::from_be(old_port) + (number & ((1 << port_bits) - 1)) as u16).to_be();
    let address = delta32(old_address, new_address);
    let whole = address + delta16(old_port, port);
    // SAFETY: as above.
    unsafe {
        store(start + IP_CHECKSUM * 2, update(headers[IP_CHECKSUM], address));
        if to_others {
            store_address(start + DESTINATION * 2, new_address);
        } else {
            store_address(start + SOURCE * 2, new_address);
        }
        store(start + SOURCE_PORT * 2, port);
        if u16::from_be(headers[PROTOCOL]) as u8 == UDP {
            store(start + UDP_CHECKSUM * 2, update_udp(headers[UDP_CHECKSUM], whole));
        } else {
            store(start + TCP_CHECKSUM * 2, update(headers[TCP_CHECKSUM], whole));
        }
    }
    Some(())
}

#[xdp(frags)]
#[inline(always)]
pub fn bench_xdp(ctx: XdpContext) -> u32 {
    let packet = XdpPacket::<NATIVE>::new(ctx);
    if renew(&packet).is_none() {
        return u32::MAX;
    }
    pipeline::run(packet) as u32
}

#[xdp]
#[inline(always)]
pub fn bench_empty_xdp(ctx: XdpContext) -> u32 {
    if renew(&XdpPacket::<NATIVE>::new(ctx)).is_none() {
        return u32::MAX;
    }
    XDP_DROP
}

#[classifier]
#[inline(always)]
pub fn bench_tc(ctx: TcContext) -> i32 {
    let packet = TcPacket(ctx);
    if renew(&packet).is_none() {
        return i32::MAX;
    }
    pipeline::run(packet)
}

#[classifier]
#[inline(always)]
pub fn bench_empty_tc(ctx: TcContext) -> i32 {
    if renew(&TcPacket(ctx)).is_none() {
        return i32::MAX;
    }
    TC_ACT_SHOT as i32
}

/// The flow table is compared with this map: the value has as many bytes as a flow has besides its key.
#[btf_map]
static BENCH_LRU: LruHashMap<FlowKey, [u64; 6], 8> = LruHashMap::new();

/// A lookup only: parsing and the flow table.
#[xdp]
#[inline(always)]
pub fn bench_table(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<NATIVE>::new(ctx);
    let (Some(()), Ok(headers), Some(config)) = (renew(&packet), parse::parse(&mut packet), maps::CONFIG.get(0)) else {
        return u32::MAX;
    };
    // All of the result counts as used: else the compiler drops half of the parsing, and the verifier rejects the rest.
    black_box(&headers);
    let hash = hash::flow(&headers.key, config.flow_seed);
    if table::lookup(headers.key.words(), hash, config.bucket_mask).is_some() { XDP_TX } else { XDP_PASS }
}

/// The same with the kernel's LRU hash table, which this program also fills.
#[xdp]
#[inline(always)]
pub fn bench_lru(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<NATIVE>::new(ctx);
    if renew(&packet).is_none() {
        return u32::MAX;
    }
    let Ok(headers) = parse::parse(&mut packet) else {
        return u32::MAX;
    };
    black_box(&headers);
    if BENCH_LRU.get_ptr(&headers.key).is_some() {
        return XDP_TX;
    }
    if BENCH_LRU.insert(&headers.key, &[0; 6], 0).is_err() { u32::MAX } else { XDP_PASS }
}

/// The least work to forward a packet: one fixed destination, no table. The upper bound of its hook.
#[inline(always)]
fn bare<P: Packet>(packet: &mut P) -> Option<i32> {
    let data = packet.data();
    if data + L4_OFFSET + 8 > packet.data_end() {
        return None;
    }
    let interface = route::interface(OUT)?;
    let sink = Mac(SINK);
    // SAFETY: within the packet, checked above; UDP's checksum is 0, or wrong, which no receiver here checks.
    unsafe {
        let old = load_address(data + ETH_LEN + 16);
        let delta = route::forward_headers(data, interface, &sink.0)? + delta32(old, TARGET);
        store(data + ETH_LEN + 10, update(load(data + ETH_LEN + 10), delta));
        store_address(data + ETH_LEN + 16, TARGET);
    }
    Some(packet.send(OUT, interface))
}

/// The interface that [`bare`] sends by, and the next hop.
const OUT: u16 = 2;
const SINK: [u8; 6] = [0x02, 0, 0, 0, 2, 11];
const TARGET: u32 = u32::from_ne_bytes([10, 2, 0, 11]);

/// At an even address, as `forward_headers` takes it.
#[repr(align(2))]
struct Mac([u8; 6]);

#[xdp]
#[inline(always)]
pub fn bench_bare_xdp(ctx: XdpContext) -> u32 {
    bare(&mut XdpPacket::<NATIVE>::new(ctx)).map_or(XDP_DROP, |verdict| verdict as u32)
}

#[classifier]
#[inline(always)]
pub fn bench_bare_tc(ctx: TcContext) -> i32 {
    bare(&mut TcPacket(ctx)).unwrap_or(TC_ACT_SHOT as i32)
}

/// The generator: a live test run sends each packet out of the device by which it pretends to have come. Its buffers
/// come back as the router left them.
#[xdp]
#[inline(always)]
pub fn bench_send(ctx: XdpContext) -> u32 {
    if renew(&XdpPacket::<NATIVE>::new(ctx)).is_some() { XDP_TX } else { XDP_DROP }
}

#[inline(always)]
fn sink() {
    if let Some(counter) = BENCH_SUNK.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// The sink: counts and drops.
#[xdp]
#[inline(always)]
pub fn bench_sink(_ctx: XdpContext) -> u32 {
    sink();
    XDP_DROP
}

/// Another vendor's program on the same device: counts packets and lets them pass.
#[classifier]
#[inline(always)]
pub fn bench_watch(_ctx: TcContext) -> i32 {
    sink();
    TC_ACT_UNSPEC
}
