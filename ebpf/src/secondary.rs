//! The other flow table: what a program that *bridges* looks in as well, while the controller moves the flows to a table of
//! another size.
//!
//! The router's devices get their new programs one after another. So first all of them get programs that know both
//! tables, and only then the first one that makes its flows in the new table; whichever table holds a flow, each of them
//! finds it, and follows it there. A flow is in one table at a time: only the controller moves it, when no program makes
//! flows in the old table any more.
//!
//! The index of a flow in the other table has the bit [`SECONDARY`]; the `peer` that is stored in a flow has not: it is of the
//! same table. In a program that does not bridge the verifier removes all of this.

use core::ptr;

use vipgate_abi::flow::{Bucket, Flow};

use crate::maps::{FLOW_BUCKETS, FLOWS, OTHER_BUCKETS, OTHER_FLOWS};

/// The other table's bucket mask, set by the loader; 0: there is no other table.
#[unsafe(no_mangle)]
static OTHER_MASK: u32 = 0;

/// 1: the flows of another version's tables, which no program of ours can read, are coming to ours. Set by the loader.
#[unsafe(no_mangle)]
static TAKES_OVER: u32 = 0;

/// True in a program that runs while flows come over from another version: what has none may yet get one.
#[inline(always)]
pub fn takes_over() -> bool {
    // SAFETY: as in `mask`.
    unsafe { ptr::read_volatile(&raw const TAKES_OVER) != 0 }
}

/// In an index: it is of the other table. No table is so large.
pub const SECONDARY: u32 = 1 << 31;

/// The other table's bucket mask; None: this program does not bridge.
#[inline(always)]
pub fn mask() -> Option<u32> {
    // SAFETY: a static of this program. Volatile, because the loader changes what the compiler sees.
    let mask = unsafe { ptr::read_volatile(&raw const OTHER_MASK) };
    if mask == 0 { None } else { Some(mask) }
}

/// True for an index of the other table.
#[inline(always)]
pub fn is_secondary(index: u32) -> bool {
    mask().is_some() && index & SECONDARY != 0
}

/// The index of the other direction of the flow at `index`, which names it as `peer`.
#[inline(always)]
pub fn peer_index(index: u32, peer: u32) -> u32 {
    peer | (index & SECONDARY)
}

/// A flow of either table.
#[inline(always)]
pub fn flow(index: u32) -> Option<*mut Flow> {
    if is_secondary(index) { OTHER_FLOWS.get_ptr_mut(index & !SECONDARY) } else { FLOWS.get_ptr_mut(index) }
}

/// A bucket of either table: its number has the bit [`SECONDARY`], too.
#[inline(always)]
pub fn bucket(number: u32) -> Option<*mut Bucket> {
    if is_secondary(number) { OTHER_BUCKETS.get_ptr_mut(number & !SECONDARY) } else { FLOW_BUCKETS.get_ptr_mut(number) }
}
