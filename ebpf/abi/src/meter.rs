//! Bandwidth limits: the elements of the METERS map, their running state, and the arithmetic of both.
//!
//! A meter is the generic cell rate algorithm in its virtual-scheduling form (ITU-T I.371, annex A). Its whole state is
//! one 64-bit word, the *theoretical arrival time*: when what has passed so far will have used its time at the rate.
//! A packet [is admitted](Rate::admit) unless that lies further ahead of the clock than the tolerance, and then
//! moves it on by its own time at the rate, its [cost](Rate::cost). How far it is [ahead](Rate::lead) is the delay of a
//! queue that is served at exactly the rate, whether or not there is such a queue.
//!
//! A word is advanced by compare-and-swap: so a meter is exact however many CPUs share it, and needs no lock. The
//! configuration is in another map than the words, so that neither writer overwrites the other.
//!
//! # Fragments
//! A fragmented packet is lost if any fragment is lost. A packet larger than the tolerance, of which there are many at low
//! rates, would never come through. So if a packet's first fragment finds the meter idle, its other fragments are admitted,
//! too, until the word is as far ahead as the largest packet would move it ([`Rate::admit_rest`]). That is a point in time,
//! which passes: neither repeated first fragments nor repeated later ones get more than one such packet out of an idle
//! meter, and the rate still holds.
//!
//! # Units
//! Time is counted in fractions of a nanosecond, [`Rate::fraction_bits`] binary digits of them, as many as the rate needs:
//! a byte is at least 2^14 such units long, so that rounding a 64-byte frame's cost to one is off by less than one part
//! in 2^20, and all larger ones by less. From 8 kbit/s to 400 Gbit/s that takes 0 to 20 digits.
//!
//! # The clock's end
//! Words and clock count modulo 2^64 units: 584 years without fractions, 146 years at 1 Mbit/s, 52 days at 1 Gbit/s, 5
//! hours at 400 Gbit/s. Only their difference matters, so a wrap does not affect a meter in use. No admitted packet moves
//! the word further ahead than the [horizon](Rate::horizon): a word beyond that is outdated, and the meter idle. The same
//! holds for a word in another rate's units. An idle meter's old word can look as if it were ahead for the horizon's part
//! of the period, less than 2^-14 of it at any rate. So a wrapped clock can make a meter stricter for that time, but never
//! laxer.

/// Both directions of one limit, by [`INBOUND`] and [`OUTBOUND`]: an element of the METERS map, whose index is the limit's
/// number. Element 0 is no limit.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    pub rates: [Rate; 2],
}

/// Index of the direction towards guests.
pub const INBOUND: usize = 0;
/// Index of the direction from guests.
pub const OUTBOUND: usize = 1;

/// One direction's rate. All zero if it is not limited.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Units of time that 2^[`BYTES_SHIFT`] bytes take; 0 if the direction is not limited.
    pub multiplier: u64,
    /// Units that the theoretical arrival time may be ahead of the clock when a packet comes.
    pub tolerance: u64,
    /// Units that it may be ahead before queued packets are marked (RFC 3168), and flows have to
    /// [share](crate::fair_share) the rest of the queue; at most the tolerance.
    pub congested: u64,
    /// Binary digits after the nanosecond's point.
    pub fraction_bits: u32,
    /// Interface index of the device that queues the packets; 0 if there is no queue, and packets beyond the tolerance are
    /// dropped.
    pub queue: u32,
}

/// Running state of a meter, by direction: an element of the METER_STATES map. Only the programs write it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterState {
    pub words: [u64; 2],
    pub fragment_passes: [FragmentPass; 2],
}

/// The packet whose fragments all pass: the last one whose first fragment found the meter idle. Written without
/// synchronisation: at worst a packet loses its fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPass {
    /// Its flow and identification; 0 if there is none.
    pub packet: u64,
    /// How far its fragments may move the word.
    pub until: u64,
}

/// What a meter let pass and what it dropped, by direction: an element of the METER_TRAFFIC map. Bytes are those on the
/// wire, from the Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterTraffic {
    pub directions: [Metered; 2],
}

/// One direction of a [`MeterTraffic`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    pub passed_packets: u64,
    pub passed_bytes: u64,
    pub dropped_packets: u64,
    pub dropped_bytes: u64,
}

/// Key of the PORT_METERS map, whose value is a limit's number: a port of a VIP that has a limit of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterPort {
    pub vip: crate::Be32,
    pub port: crate::Be16,
    pub reserved: u16,
}

const _: () = assert!(size_of::<Meter>() == 64 && size_of::<MeterState>() == 48);
const _: () = assert!(size_of::<MeterTraffic>() == 64 && size_of::<MeterPort>() == 8);

crate::pod!(Meter, Rate, MeterState, FragmentPass, MeterTraffic, Metered, MeterPort);

/// The limit that the packets of a backend's flows count against: [`crate::backend::Backend::meter`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding(pub u32);

impl Binding {
    const BY_PORT: u32 = 1 << 31;

    /// `number` is the limit, 0 for none. If `by_port`, ports of the VIP that have limits of their own (PORT_METERS) count
    /// against those.
    #[inline(always)]
    pub const fn new(number: u32, by_port: bool) -> Self {
        Self(number | if by_port { Self::BY_PORT } else { 0 })
    }

    /// The limit for ports without one of their own; 0 for none.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & !Self::BY_PORT
    }

    #[inline(always)]
    pub const fn is_by_port(self) -> bool {
        self.0 & Self::BY_PORT != 0
    }
}

/// The class in which a limit's queue holds one direction's packets: its minor number.
#[inline(always)]
pub const fn class(number: u32, direction: usize) -> u32 {
    2 * number + direction as u32
}

/// The limit whose queue has this class.
#[inline(always)]
pub const fn limit_of(class: u32) -> u32 {
    class / 2
}

/// Binary logarithm of the number of bytes for [`Rate::multiplier`].
pub const BYTES_SHIFT: u32 = 24;
/// Most bytes that a packet is charged for. An IPv4 super-packet stands for fewer, unless its segments have less than 20 bytes.
pub const LONGEST: u32 = 1 << 18;
/// Bytes on the wire of the largest IPv4 packet, in fragments of 576 bytes or more, which every host takes (RFC 791, section
/// 3.1).
const LARGEST: u32 = 65_535 + 120 * 34;
/// The rates, in bits per second, between which costs are exact. A lower rate is raised to the lowest; a higher one has
/// coarser costs.
pub const LOWEST: u64 = 8_000;
pub const HIGHEST: u64 = 400_000_000_000;
/// Digits of the nanosecond at [`HIGHEST`] and above.
const MOST_FRACTION_BITS: u32 = 20;
/// Binary logarithm of the least units of a byte, while [`MOST_FRACTION_BITS`] allow.
const BYTE_BITS: u32 = 14;

/// Nanoseconds that a queue may hold a packet. Longer delays are noticeable; with shorter ones TCP cannot fill the line
/// after it has backed off. A single flow gets 60 ms of them.
pub const QUEUE_TIME: u64 = 75_000_000;
/// The burst of a limit without a queue, in nanoseconds at its rate: a TCP sender that lost the end of a burst waits at
/// least 200 ms (RFC 6298: a second) before it sends again, and then has to catch up. A single flow gets 300 ms of them.
pub const BURST_TIME: u64 = 375_000_000;
/// Least bytes of any burst or queue: enough full frames for the initial window (RFC 6928) of a single flow.
const LEAST_BURST: u32 = 12 * FRAME;
/// Bytes of a full frame, from the Ethernet header.
pub(crate) const FRAME: u32 = 1514;

/// Units that a byte takes, rounded, with so many digits.
const fn byte(bits_per_second: u64, fraction_bits: u32) -> u64 {
    let whole = 8_000_000_000u128 << fraction_bits;
    ((whole + bits_per_second as u128 / 2) / bits_per_second as u128) as u64
}

impl Rate {
    /// A rate, in bits per second, whose packets meet the queue of this device.
    pub const fn queued(bits_per_second: u64, queue: u32) -> Self {
        Self::new(bits_per_second, QUEUE_TIME, queue)
    }

    /// A rate, in bits per second, that drops what exceeds it.
    pub const fn policed(bits_per_second: u64) -> Self {
        Self::new(bits_per_second, BURST_TIME, 0)
    }

    const fn new(bits_per_second: u64, nanoseconds: u64, queue: u32) -> Self {
        let rate = if bits_per_second < LOWEST { LOWEST } else { bits_per_second };
        let mut fraction_bits = 0;
        while fraction_bits < MOST_FRACTION_BITS && byte(rate, fraction_bits) < 1 << BYTE_BITS {
            fraction_bits += 1;
        }
        let multiplier = byte(rate, fraction_bits + BYTES_SHIFT);
        let multiplier = if multiplier == 0 { 1 } else { multiplier };
        let rate = Self { multiplier, tolerance: 0, congested: 0, fraction_bits, queue };
        let (time, frames) = (rate.clock(nanoseconds), rate.cost(LEAST_BURST));
        rate.tolerating(if time > frames { time } else { frames })
    }

    #[inline(always)]
    const fn tolerating(self, tolerance: u64) -> Self {
        Self { tolerance, congested: tolerance / 2, ..self }
    }

    /// The rate in bits per second; `None` if the direction is not limited.
    pub const fn bits_per_second(&self) -> Option<u64> {
        if !self.is_limited() {
            return None;
        }
        let whole = 8_000_000_000u128 << (self.fraction_bits + BYTES_SHIFT);
        Some(((whole + self.multiplier as u128 / 2) / self.multiplier as u128) as u64)
    }

    /// The same rate for packets that cannot be queued.
    #[inline(always)]
    pub const fn without_queue(self) -> Self {
        let time = self.clock(BURST_TIME);
        self.tolerating(if time > self.tolerance { time } else { self.tolerance })
    }

    /// True if the direction has a limit.
    #[inline(always)]
    pub const fn is_limited(&self) -> bool {
        self.multiplier != 0
    }

    /// A time in this rate's units.
    #[inline(always)]
    pub const fn clock(&self, nanoseconds: u64) -> u64 {
        nanoseconds << (self.fraction_bits & 63)
    }

    /// Units of time that so many bytes on the wire take, rounded.
    #[inline(always)]
    pub const fn cost(&self, bytes: u32) -> u64 {
        let bytes = if bytes < LONGEST { bytes } else { LONGEST };
        (bytes as u64 * self.multiplier + (1 << (BYTES_SHIFT - 1))) >> BYTES_SHIFT
    }

    /// The furthest that the meter can move a word ahead of the clock, in units.
    #[inline(always)]
    pub const fn horizon(&self) -> u64 {
        self.tolerance + self.cost(LONGEST)
    }

    /// How far the theoretical arrival time is ahead of the clock, in units; 0 if the meter is idle.
    #[inline(always)]
    pub const fn lead(&self, word: u64, now: u64) -> u64 {
        let lead = word.wrapping_sub(now);
        if lead <= self.horizon() { lead } else { 0 }
    }

    /// The word after a packet of this cost; `None` if the packet is over the limit, and the word stays as it is.
    ///
    /// ```
    /// use vipgate_abi::meter::Rate;
    ///
    /// // 12 Mbit/s are a frame of 1,500 bytes each millisecond: a burst of 375 ms passes at once, and one more.
    /// let rate = Rate::policed(12_000_000);
    /// let (now, cost) = (rate.clock(5_000_000_000), rate.cost(1500));
    /// let (mut word, mut passed) = (0, 0);
    /// while let Some(next) = rate.admit(word, now, cost) {
    ///     (word, passed) = (next, passed + 1);
    /// }
    /// assert_eq!(passed, 376);
    /// ```
    #[inline(always)]
    pub const fn admit(&self, word: u64, now: u64, cost: u64) -> Option<u64> {
        let lead = self.lead(word, now);
        if lead > self.tolerance { None } else { Some(now.wrapping_add(lead + cost)) }
    }

    /// How far the fragments of a packet may move the word of a meter that is idle now.
    #[inline(always)]
    pub const fn fragment_limit(&self, now: u64) -> u64 {
        now.wrapping_add(self.cost(LARGEST))
    }

    /// The word after a fragment that is over the limit, if its packet's first fragment found the meter idle and the packet may
    /// move the word up to `until`; `None` if that is exceeded.
    #[inline(always)]
    pub const fn admit_rest(&self, word: u64, now: u64, cost: u64, until: u64) -> Option<u64> {
        let left = until.wrapping_sub(now);
        let after = self.lead(word, now) + cost;
        // A time that is further away was written under another rate, or before the clock wrapped.
        if left > self.cost(LARGEST) || after > left { None } else { Some(now.wrapping_add(after)) }
    }
}

#[cfg(test)]
mod tests;
