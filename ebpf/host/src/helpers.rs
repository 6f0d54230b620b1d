//! The kernel's helper functions, as far as the pipeline calls them.
#![expect(clippy::missing_safety_doc, reason = "the contracts are those of the helpers that they stand for")]

use std::ffi::{c_int, c_long, c_void};

use aya_ebpf_bindings::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, TC_ACT_REDIRECT,
    bpf_fib_lookup as FibLookup, bpf_redir_neigh, bpf_sock, bpf_sock_tuple,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4Tuple, xdp_md,
};

use crate::{
    kernel::{self, Socket},
    packet::{Checksum, SocketBuffer, XdpFrame},
};

const EFAULT: c_long = -14;
const EINVAL: c_long = -22;
const ENOMEM: c_long = -12;
const AF_INET: u8 = 2;
/// The address of every route's gateway.
const GATEWAY: [u8; 4] = [10, 255, 255, 254];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// What a UDP checksum of 0 is sent as.
const CSUM_MANGLED_0: u16 = 0xffff;

pub unsafe fn bpf_jiffies64() -> u64 {
    kernel::jiffies()
}

/// The same clock: a jiffy is 4 ms here.
pub unsafe fn bpf_ktime_get_ns() -> u64 {
    kernel::jiffies().wrapping_mul(4_000_000)
}

/// `skb_do_redirect` finds the device later.
pub unsafe fn bpf_redirect(ifindex: u32, flags: u64) -> c_long {
    assert_eq!(flags, 0, "redirects go out of a device, not into it");
    kernel::redirect(ifindex);
    c_long::from(TC_ACT_REDIRECT)
}

/// The kernel looks up the next hop in its routes if the caller names none.
pub unsafe fn bpf_redirect_neigh(ifindex: u32, params: *mut bpf_redir_neigh, length: c_int, flags: u64) -> c_long {
    assert!(params.is_null() && length == 0 && flags == 0);
    kernel::redirect_by_neighbour(ifindex);
    c_long::from(TC_ACT_REDIRECT)
}

/// `bpf_ipv4_fib_lookup` over [`kernel::route`], of a kernel that knows only the oldest flags. A destination has one route.
pub unsafe fn bpf_fib_lookup(context: *mut c_void, params: *mut FibLookup, size: c_int, flags: u32) -> c_long {
    assert!(!context.is_null());
    if flags & !BPF_FIB_LOOKUP_OUTPUT != 0 {
        return EINVAL;
    }
    // SAFETY: the caller gives its own structure.
    let params = unsafe { &mut *params };
    if size as usize != size_of::<FibLookup>() || params.family != AF_INET {
        return EINVAL;
    }
    // SAFETY: of plain integers, each of which is a value.
    let destination = unsafe { params.__bindgen_anon_4.ipv4_dst }.to_ne_bytes();
    let is_by = |ifindex| flags & BPF_FIB_LOOKUP_OUTPUT == 0 || ifindex == params.ifindex;
    let Some(route) = kernel::route(destination).filter(|route| is_by(route.ifindex)) else {
        return BPF_FIB_LKUP_RET_NOT_FWDED.into();
    };
    match route.answer {
        // A packet that does not fit is reported after everything has been looked up.
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            params.ifindex = route.ifindex;
            if route.gateway.is_some() {
                params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(GATEWAY);
            }
            params.dmac = route.gateway.unwrap_or_else(|| kernel::neighbour(destination));
        }
        // The device is known before the neighbour is looked up.
        BPF_FIB_LKUP_RET_NO_NEIGH => params.ifindex = route.ifindex,
        _ => {}
    }
    route.answer.into()
}

/// `sk_lookup` for IPv4 in the packet's own network namespace; a socket that is found must be released.
unsafe fn sk_lookup(
    context: *mut c_void,
    tuple: *mut bpf_sock_tuple,
    size: u32,
    netns: u64,
    protocol: u8,
) -> *mut bpf_sock {
    assert!(!context.is_null() && netns == u64::MAX);
    if size as usize != size_of::<Ipv4Tuple>() {
        return std::ptr::null_mut();
    }
    // SAFETY: the caller gives its own structure, of plain integers.
    let port = u16::from_be(unsafe { (*tuple).__bindgen_anon_1.ipv4.dport });
    if kernel::has_socket(Socket { protocol, port }) { std::ptr::dangling_mut() } else { std::ptr::null_mut() }
}

pub unsafe fn bpf_skc_lookup_tcp(
    context: *mut c_void,
    tuple: *mut bpf_sock_tuple,
    size: u32,
    netns: u64,
    _flags: u64,
) -> *mut bpf_sock {
    // SAFETY: as the caller promises.
    unsafe { sk_lookup(context, tuple, size, netns, TCP) }
}

pub unsafe fn bpf_sk_lookup_udp(
    context: *mut c_void,
    tuple: *mut bpf_sock_tuple,
    size: u32,
    netns: u64,
    _flags: u64,
) -> *mut bpf_sock {
    // SAFETY: as above.
    unsafe { sk_lookup(context, tuple, size, netns, UDP) }
}

pub unsafe fn bpf_sk_release(socket: *mut c_void) -> c_long {
    assert!(!socket.is_null());
    0
}

/// `bpf_try_make_writable`: the buffer may move in memory even if all was readable before, so here it always does.
pub unsafe fn bpf_skb_pull_data(skb: *mut __sk_buff, len: u32) -> c_long {
    // SAFETY: programs get their buffers from `SocketBuffer::context` only.
    let buffer = unsafe { SocketBuffer::of(skb) };
    let wanted = if len == 0 { buffer.linear_len() } else { len as usize };
    if buffer.pull(wanted) { 0 } else { ENOMEM }
}

/// A frame here has room for two VLAN tags before it.
pub unsafe fn bpf_xdp_adjust_head(ctx: *mut xdp_md, delta: c_int) -> c_long {
    // SAFETY: programs get their frames from `XdpFrame::context` only.
    let frame = unsafe { XdpFrame::of(ctx) };
    if frame.move_head(delta) { 0 } else { EINVAL }
}

/// A frame here has room for 4 bytes of metadata.
pub unsafe fn bpf_xdp_adjust_meta(ctx: *mut xdp_md, delta: c_int) -> c_long {
    // SAFETY: as above.
    let frame = unsafe { XdpFrame::of(ctx) };
    if frame.move_metadata(delta) { 0 } else { EINVAL }
}

pub unsafe fn bpf_xdp_get_buff_len(ctx: *mut xdp_md) -> u64 {
    // SAFETY: as above.
    unsafe { XdpFrame::of(ctx) }.bytes().len() as u64
}

/// `____bpf_skb_load_bytes` and its like for XDP: all of them, or none.
fn load_bytes(from: &[u8], offset: u32, to: *mut c_void, len: u32) -> c_long {
    let (offset, len) = (offset as usize, len as usize);
    let Some(bytes) = from.get(offset..offset + len).filter(|bytes| !bytes.is_empty()) else {
        return EFAULT;
    };
    // SAFETY: the caller gives its own memory of this length.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), len) };
    0
}

pub unsafe fn bpf_skb_load_bytes(skb: *const c_void, offset: u32, to: *mut c_void, len: u32) -> c_long {
    // SAFETY: as above.
    load_bytes(&unsafe { SocketBuffer::of(skb.cast_mut().cast()) }.bytes(), offset, to, len)
}

pub unsafe fn bpf_xdp_load_bytes(ctx: *mut xdp_md, offset: u32, to: *mut c_void, len: u32) -> c_long {
    // SAFETY: as above.
    load_bytes(&unsafe { XdpFrame::of(ctx) }.bytes(), offset, to, len)
}

/// `__bpf_skb_change_tail`, which makes all of the buffer readable, and one frame of a super-packet. Shrinks only.
pub unsafe fn bpf_skb_change_tail(skb: *mut __sk_buff, len: u32, flags: u64) -> c_long {
    // SAFETY: as above.
    if flags == 0 && unsafe { SocketBuffer::of(skb) }.trim(len as usize) { 0 } else { EINVAL }
}

pub unsafe fn bpf_skb_vlan_pop(skb: *mut __sk_buff) -> c_long {
    // SAFETY: as above.
    unsafe { SocketBuffer::of(skb) }.pop_tag();
    0
}

pub unsafe fn bpf_skb_vlan_push(skb: *mut __sk_buff, protocol: u16, tci: u16) -> c_long {
    // SAFETY: as above.
    unsafe { SocketBuffer::of(skb) }.push_tag(protocol, tci);
    0
}

/// `inet_proto_csum_replace_by_diff` under the flags that a size of 0 allows.
pub unsafe fn bpf_l4_csum_replace(skb: *mut __sk_buff, offset: u32, from: u64, to: u64, flags: u64) -> c_long {
    if offset > 0xffff || offset & 1 != 0 {
        return EFAULT;
    }
    let known = u64::from(BPF_F_MARK_MANGLED_0 | BPF_F_PSEUDO_HDR);
    if flags & !known != 0 || from != 0 {
        return EINVAL;
    }
    // SAFETY: as above.
    let buffer = unsafe { SocketBuffer::of(skb) };
    let offset = offset as usize;
    if !buffer.pull((offset + 2).max(buffer.linear_len())) {
        return EFAULT;
    }
    let checksum = buffer.checksum;
    let bytes = &mut buffer.linear_mut()[offset..offset + 2];
    let mut sum = u16::from_ne_bytes([bytes[0], bytes[1]]);
    let none_as_zero = flags & u64::from(BPF_F_MARK_MANGLED_0) != 0;
    if none_as_zero && sum == 0 {
        return 0;
    }
    match checksum {
        Checksum::Complete => sum = !folded(to + u64::from(!sum)),
        // The field holds the pseudo-header's sum, not its complement; the device adds the rest.
        Checksum::Partial if flags & u64::from(BPF_F_PSEUDO_HDR) != 0 => sum = folded(to + u64::from(sum)),
        Checksum::Partial => {}
    }
    if none_as_zero && sum == 0 {
        sum = CSUM_MANGLED_0;
    }
    bytes.copy_from_slice(&sum.to_ne_bytes());
    0
}

/// `csum_fold` without its complement.
fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(bytes: [u8; 4], checksum: Checksum, flags: u32) -> Vec<u8> {
        let mut buffer = SocketBuffer::new(&bytes, 0, 1).checksum(checksum);
        let context = buffer.context();
        // SAFETY: the buffer lives.
        assert_eq!(unsafe { bpf_l4_csum_replace(context.skb.skb, 2, 0, 1, flags.into()) }, 0);
        buffer.bytes()
    }

    #[test]
    fn a_complete_checksum_follows_every_change_and_a_partial_one_the_pseudo_header() {
        let word = |value: u16| [[9, 9], value.to_ne_bytes()].concat();
        let bytes = |value: u16| word(value).try_into().unwrap_or_default();
        let pseudo = BPF_F_PSEUDO_HDR;
        for (before, checksum, flags, after) in [
            (0x1234, Checksum::Complete, 0, 0x1233),
            (0x1234, Checksum::Complete, pseudo, 0x1233),
            (0x1234, Checksum::Partial, 0, 0x1234),
            (0x1234, Checksum::Partial, pseudo, 0x1235),
            (0, Checksum::Complete, BPF_F_MARK_MANGLED_0, 0),
            (1, Checksum::Complete, BPF_F_MARK_MANGLED_0, 0xffff),
            (1, Checksum::Complete, 0, 0),
        ] {
            assert_eq!(replaced(bytes(before), checksum, flags), word(after), "{before:04x} {checksum:?} {flags:x}");
        }
    }
}
