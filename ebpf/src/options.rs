//! IPv4 options (RFC 791, section 3.1) are kept, except source routes: such a packet is dropped, as the kernel does by default
//! (`accept_source_route`; RFC 7126, section 4.3). Packets with malformed options go to the kernel, which sends an error.

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

/// Most bytes of options that a header can have.
const LONGEST: usize = 40;

/// What [`examine`] returns if the options are fine; else it returns a reason's number.
pub const KEPT: u32 = u32::MAX;

/// Checks a packet's options: `length` bytes (1 to 40) at this offset.
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
    // Each round consumes a byte at least.
    let mut round = counted(0);
    while round < LONGEST && at < length {
        round += 1;
        // SAFETY: both are within the buffer. Behind the last byte there is an END instead of a length.
        let (kind, own) = unsafe { (*options.add(at), *options.add(at + 1) as usize) };
        let length_of_this = if kind == NO_OPERATION { 1 } else { own };
        let is_short = kind != NO_OPERATION && own < 2;
        match kind {
            END => break,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return opaque(Reason::SourceRoute as u32),
            _ if is_short || at + length_of_this > length => return opaque(Reason::Malformed as u32),
            // At most 40. The mask makes the verifier forget how the value came about.
            _ => at = below_64(at + length_of_this),
        }
    }
    opaque(KEPT)
}
