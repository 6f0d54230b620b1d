//! A flow's route: the next hop with the epoch under which it was found, and the interface.

use crate::interface;

/// The next hop's MAC address in the lower 48 bits (in memory the first six bytes); above them the low 16 bits of the
/// [`crate::config::Config::epoch`] under which it was found, XORed with the interface's number.
///
/// One word, so that it is never torn. There is no room for the interface: the XOR makes a hop count as old if another
/// interface was written next to it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop(pub u64);

impl Hop {
    const EPOCH: u32 = 48;

    /// A next hop by an interface, found under an epoch. Under epoch 0 it is always old.
    #[inline(always)]
    pub const fn new(next_hop: [u8; 6], epoch: u16, interface: u16) -> Self {
        let [a, b, c, d, e, f] = next_hop;
        let address = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        Self(address | (crossed(epoch, interface) as u64) << Self::EPOCH)
    }

    /// A flow's hop before its first packet, by [`interface::STACK`]: always old, and different for each flow that a slot has
    /// held recently.
    #[inline(always)]
    pub const fn unknown(version: u8, now: u32) -> Self {
        Self((version as u64) << 32 | now as u64)
    }

    /// True if the interface is known and the next hop's MAC address is not: the kernel has to resolve it.
    #[inline(always)]
    pub const fn is_unresolved(self) -> bool {
        self.0 << (64 - Self::EPOCH) == 0
    }

    /// True for a hop that was found under this epoch (the low 16 bits of the controller's), by this interface.
    #[inline(always)]
    pub const fn is_of(self, epoch: u16, interface: u16) -> bool {
        (self.0 >> Self::EPOCH) as u16 == crossed(epoch, interface)
    }
}

#[inline(always)]
const fn crossed(epoch: u16, interface: u16) -> u16 {
    epoch ^ (interface << 8)
}

/// The epoch after this one. Its lowest 8 bits are never 0: so no epoch XORed with an interface is 0, as in an unknown hop.
pub const fn next_epoch(epoch: u32) -> u32 {
    let next = epoch.wrapping_add(1);
    if next & 0xff == 0 { next + 1 } else { next }
}

/// Index of BACKENDS in the lower 24 bits, above them the interface: index of PORTS, or [`interface::STACK`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target(pub u32);

impl Target {
    const INTERFACE: u32 = 24;
    /// Offset of the interface's byte.
    pub const INTERFACE_OFFSET: usize = 3;

    #[inline(always)]
    pub const fn new(backend: u32, interface: u16) -> Self {
        Self((backend % crate::service::Member::NUMBERS) | (interface as u32) << Self::INTERFACE)
    }

    /// The target of a flow whose interface is not known.
    #[inline(always)]
    pub const fn of(backend: u32) -> Self {
        Self::new(backend, interface::STACK)
    }

    #[inline(always)]
    pub const fn backend(self) -> u32 {
        self.0 % crate::service::Member::NUMBERS
    }

    #[inline(always)]
    pub const fn interface(self) -> u16 {
        (self.0 >> Self::INTERFACE) as u16
    }
}

const _: () =
    assert!(crate::maps::MAX_INTERFACES <= 1 << 8 && crate::service::Member::NUMBERS == 1 << Target::INTERFACE);

crate::pod!(Hop, Target);

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0xab, 0xcd, 0xef];

    #[test]
    fn a_hop_is_of_its_epoch_and_port_alone() {
        let hop = Hop::new(MAC, 0x1234, 7);
        assert_eq!(hop.0.to_le_bytes()[..6], MAC);
        assert!(hop.is_of(0x1234, 7));
        for (epoch, interface) in [(0x1235, 7), (0x1334, 7), (0x1234, 6), (0x1234, 0)] {
            assert!(!hop.is_of(epoch, interface));
        }
    }

    #[test]
    fn an_unknown_hop_and_one_of_epoch_zero_are_old_under_every_epoch() {
        let mut epoch = 0;
        for _ in 0..1 << 17 {
            epoch = next_epoch(epoch);
            assert!(!Hop::unknown(255, u32::MAX).is_of(epoch as u16, interface::STACK));
            assert!(!Hop::new(MAC, 0, interface::STACK).is_of(epoch as u16, interface::STACK));
            // Whichever interface is stored with an unknown hop.
            assert!((1..256).all(|port| !Hop::unknown(1, 1).is_of(epoch as u16, port)));
        }
    }

    #[test]
    fn an_epoch_never_has_low_bits_of_zero() {
        assert_eq!(next_epoch(0), 1);
        assert_eq!(next_epoch(0xff), 0x101);
        assert_eq!(next_epoch(u32::MAX), 1);
    }

    #[test]
    fn a_target_keeps_backend_and_port_apart() {
        let target = Target::new(0xab_cdef, 0x12);
        assert_eq!((target.backend(), target.interface()), (0xab_cdef, 0x12));
        assert_eq!(target.0.to_le_bytes()[Target::INTERFACE_OFFSET], 0x12);
        assert_eq!(Target::of(5), Target::new(5, interface::STACK));
    }
}
