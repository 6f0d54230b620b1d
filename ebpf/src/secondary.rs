//! The secondary flow table: a program that *bridges* searches it as well, while the controller moves the flows to a table of
//! another size.
//!
//! The router's devices get their new programs one after another. So all of them first get programs that know both
//! tables; only then the first device gets a program that makes its flows in the new table. Whichever table holds a flow, each
//! program finds it there. A flow is in one table at a time: only the controller moves it, once no program makes
//! flows in the old table any more.
//!
//! The index of a flow in the secondary table has the bit [`SECONDARY`]. The `peer` in a flow does not have it: both
//! directions are in the same table. The verifier removes all of this from programs that do not bridge.

use core::ptr;

use vipgate_abi::flow::{Bucket, Flow};

use crate::maps::{FLOW_BUCKETS, FLOWS, OTHER_BUCKETS, OTHER_FLOWS};

/// The secondary table's bucket mask, set by the loader; 0 if there is none.
#[unsafe(no_mangle)]
static OTHER_MASK: u32 = 0;

/// 1 while flows are migrated from the tables of another version, which this program cannot read. Set by the loader.
#[unsafe(no_mangle)]
static TAKES_OVER: u32 = 0;

/// True while flows are migrated from another version: a packet without a flow may get one soon.
#[inline(always)]
pub fn takes_over() -> bool {
    // SAFETY: as in `mask`.
    unsafe { ptr::read_volatile(&raw const TAKES_OVER) != 0 }
}

/// In an index: it is in the secondary table. No table is so large.
pub const SECONDARY: u32 = 1 << 31;

/// The secondary table's bucket mask; `None` if this program does not bridge.
#[inline(always)]
pub fn mask() -> Option<u32> {
    // SAFETY: a static of this program. Volatile, because the loader changes the value that the compiler sees.
    let mask = unsafe { ptr::read_volatile(&raw const OTHER_MASK) };
    if mask == 0 { None } else { Some(mask) }
}

/// True for an index in the secondary table.
#[inline(always)]
pub fn is_secondary(index: u32) -> bool {
    mask().is_some() && index & SECONDARY != 0
}

/// The index of the other direction of the flow at `index`, which stores it as `peer`.
#[inline(always)]
pub fn peer_index(index: u32, peer: u32) -> u32 {
    peer | (index & SECONDARY)
}

/// A flow of either table.
#[inline(always)]
pub fn flow(index: u32) -> Option<*mut Flow> {
    if is_secondary(index) { OTHER_FLOWS.get_ptr_mut(index & !SECONDARY) } else { FLOWS.get_ptr_mut(index) }
}

/// A bucket of either table. Its number has the bit [`SECONDARY`], too.
#[inline(always)]
pub fn bucket(number: u32) -> Option<*mut Bucket> {
    if is_secondary(number) { OTHER_BUCKETS.get_ptr_mut(number & !SECONDARY) } else { FLOW_BUCKETS.get_ptr_mut(number) }
}
