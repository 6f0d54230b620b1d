//! What must not come in, whatever it is for. All of it is asked when a flow opens, or where a packet is not as it was then:
//! what goes on as it began costs a comparison.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS};
use vipgate_abi::{Be32, flow::FlowKey, interest::Bit};

use crate::{
    maps::INTEREST,
    packet::Packet,
    route::{Asker, Question},
};

/// True for a packet whose source no host can have (RFC 1812, section 5.3.7), or whose source is the router's: a VIP, that it is
/// for or another, or an address of its own. The kernel is asked about those alone that may be.
#[inline(always)]
pub fn is_martian<P: Packet>(packet: &P, key: &FlowKey) -> bool {
    is_nobodys(key.src)
        || key.src == key.dst
        || (may_be_own(key.src) && device_towards(Asker::of(packet), key.src) == NOWHERE)
}

/// True for 0.0.0.0/8, 127.0.0.0/8, and 224.0.0.0 to 255.255.255.255.
#[inline(always)]
fn is_nobodys(src: Be32) -> bool {
    let [first, ..] = src.to_ne_bytes();
    first == 0 || first == 127 || first >= 224
}

/// False: it is none of the router's addresses.
#[inline(always)]
fn may_be_own(src: Be32) -> bool {
    let is_set = |bit: Bit| INTEREST.get(bit.word()).is_some_and(|word| word & bit.mask() != 0);
    is_set(Bit::own(src)) || is_set(Bit::to(src))
}

/// No device.
const NOWHERE: u32 = 0;

/// The device by which the kernel would send to a host, known without a neighbour, too; [`NOWHERE`]: by none, as to the
/// router itself.
#[inline(never)]
fn device_towards(asker: Asker, host: Be32) -> u32 {
    let mut room = MaybeUninit::uninit();
    let question = Question::begin(&mut room, asker);
    question.fib().__bindgen_anon_4.ipv4_dst = host;
    match question.ask(asker, 0) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_NO_NEIGH => question.fib().ifindex,
        _ => NOWHERE,
    }
}
