//! Incremental Internet checksums (RFC 1071, RFC 1624 equation 3).
//!
//! A change is gathered as the one's-complement sum of `~old + new` over the 16-bit words that change; sums are of
//! native-order words, which is right on any byte order (RFC 1071, section 2 B).

/// Folds a sum to 16 bits.
#[inline(always)]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What changing a 16-bit word adds to the sum.
#[inline(always)]
pub const fn delta16(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// What changing a 32-bit word adds to the sum.
#[inline(always)]
pub const fn delta32(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// The checksum field after a change: HC' = ~(~HC + sum).
#[inline(always)]
pub const fn update(checksum: u16, delta: u64) -> u16 {
    !fold(!checksum as u64 + delta)
}

/// The same for UDP, where 0 means "no checksum": 0 stays, and a result of 0 is sent as 0xffff (RFC 768).
#[inline(always)]
pub const fn update_udp(checksum: u16, delta: u64) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match update(checksum, delta) {
        0 => 0xffff,
        sum => sum,
    }
}
