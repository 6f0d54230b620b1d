//! What small numbers name: hosts, services, devices.

use super::{OTHER, OWN, PRIVATE, PUBLIC};
use crate::wire::{TCP, UDP};

/// A host's address. The upper bits name the network, 10.1.0.0/24 to 10.8.0.0/24.
pub(crate) fn address(host: u8) -> [u8; 4] {
    [10, 1 + (host >> 5), 0, host & 31]
}

/// The destination of a connection that a host begins: a host of the first seven networks, or a VIP.
pub(crate) fn destination(to: u8) -> [u8; 4] {
    if to < 0xe0 { address(to) } else { service(to).0 }
}

/// A service's VIP, protocol and port.
pub(crate) fn service(number: u8) -> ([u8; 4], u8, u16) {
    let vip = [10, 1, 0, 100 + (number & 3)];
    (vip, if number & 8 == 0 { TCP } else { UDP }, 80 + u16::from(number >> 2 & 1))
}

/// The public or the private device.
pub(crate) fn device(what: u8) -> u32 {
    if what & 2 == 0 { PUBLIC } else { PRIVATE }
}

/// A source that no host has: invalid, the router's own, or a VIP.
pub(crate) fn forged(what: u8) -> Option<[u8; 4]> {
    let forged = match what & 15 {
        1 => [0, 0, 0, 0],
        2 => [127, 0, 0, 1],
        3 => [224, 0, 0, 5],
        4 => [240, 1, 2, 3],
        5 => [255; 4],
        6 => OWN[0],
        7 => OWN[1],
        8 => service(0).0,
        9 => service(1).0,
        _ => return None,
    };
    Some(forged)
}

/// A device that a packet comes by, wherever its sender is.
pub(crate) fn device_astray(what: u8) -> Option<u32> {
    Some(device_of(what >> 4)).filter(|device| *device != 0)
}

/// The device of a guest's or backend's network (0x03); 0 for any.
pub(super) fn device_of(what: u8) -> u32 {
    [0, PUBLIC, PRIVATE, OTHER][usize::from(what & 3)]
}

/// The network mask with so many bits, modulo 33.
pub(super) fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits % 33)).unwrap_or(0)
}

/// A device's MAC address.
pub(crate) fn mac(ifindex: u32) -> [u8; 6] {
    [0x02, 0xff, 0, 0, 0, (ifindex - 10) as u8]
}
