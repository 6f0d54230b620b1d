//! IPv4 options (RFC 791, section 3.1) are kept, whatever they are, but for those by which a packet names its own way: such a
//! packet is refused, as the kernel does that nobody told to take them (`accept_source_route`; RFC 7126, section 4.3). Options
//! that nobody can read are the kernel's to refuse, which tells their sender.

use vipgate_abi::counters::Reason;

use crate::{
    packet::Packet,
    types::OptionsBuffer,
    verifier::{below_64, counted, opaque},
};

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Bytes of options that a header has at most.
const LONGEST: usize = 40;

/// [`examine`]'s answer where there is nothing to refuse; else it is a reason's number.
pub const KEPT: u32 = u32::MAX;

/// What a packet's options, so many bytes (a header's: 1 to 40) at this offset, make of it.
#[inline(always)]
pub fn examine<P: Packet>(packet: &P, offset: u32, length: u32) -> u32 {
    let mut room: OptionsBuffer = [END as u64; _];
    // 1 to 64, as the verifier sees it.
    let length = below_64((length as usize).wrapping_sub(1)) + 1;
    if !packet.copy(offset, &mut room, length) {
        return opaque(Reason::Malformed as u32);
    }
    let options: *const u8 = room.as_ptr().cast();
    let mut at = 0;
    // Each round is a byte at least.
    let mut round = counted(0);
    while round < LONGEST && at < length {
        round += 1;
        // SAFETY: both are within the room. Of the last byte the second is an END, no length.
        let (kind, own) = unsafe { (*options.add(at), *options.add(at + 1) as usize) };
        let length_of_this = if kind == NO_OPERATION { 1 } else { own };
        let is_short = kind != NO_OPERATION && own < 2;
        match kind {
            END => break,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return opaque(Reason::SourceRoute as u32),
            _ if is_short || at + length_of_this > length => return opaque(Reason::Malformed as u32),
            // No more than 40; the verifier need not remember by which way it came to be that.
            _ => at = below_64(at + length_of_this),
        }
    }
    opaque(KEPT)
}
