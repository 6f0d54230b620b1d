//! Keys of the tries: an address and what else a packet is looked up by, with the number of bits that count.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use vipgate_abi::{service::ServiceKey, snat::SnatKey};
use vipgate_state::Protocol;

use super::port_prefixes;

/// A key of the services trie. Ordered by VIP first, so that one VIP's keys are one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePrefix {
    pub data: ServiceKey,
    /// Bits of `data` that count: [`ServiceKey::EXACT`], fewer for a range of ports, or [`ServiceKey::WHOLE_VIP`].
    pub prefix_len: u32,
}

impl ServicePrefix {
    /// The key of one listener.
    pub fn listener(vip: Ipv4Addr, protocol: Protocol, port: u16) -> Self {
        let data = ServiceKey { vip: vip.octets(), protocol: protocol.number(), port: port.to_be_bytes(), reserved: 0 };
        Self { data, prefix_len: ServiceKey::EXACT }
    }

    /// The keys that together are the ports of a range.
    pub fn range(vip: Ipv4Addr, protocol: Protocol, (first, last): (u16, u16)) -> impl Iterator<Item = Self> {
        port_prefixes::cover(first, last).into_iter().map(move |(port, bits)| Self {
            prefix_len: ServiceKey::EXACT - u16::BITS + bits,
            ..Self::listener(vip, protocol, port)
        })
    }

    /// The key of the whole VIP, which applies where no listener's key does.
    pub fn whole(vip: Ipv4Addr) -> Self {
        Self { data: ServiceKey { vip: vip.octets(), ..ServiceKey::default() }, prefix_len: ServiceKey::WHOLE_VIP }
    }

    pub fn vip(&self) -> Ipv4Addr {
        self.data.vip.into()
    }
}

/// A key of the trie of SNAT rules: guests, and the device by which their packets are about to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnatPrefix {
    pub data: SnatKey,
    /// Bits of `data` that count: [`SnatKey::EXACT`] for one guest, fewer for a network.
    pub prefix_len: u32,
}

impl SnatPrefix {
    /// The key of a network of guests, by the interface index of a device.
    pub fn new(device: u32, guests: Ipv4Net) -> Self {
        let data = SnatKey::new(device, u32::from(guests.network()).to_be());
        Self { data, prefix_len: SnatKey::EXACT - u32::BITS + u32::from(guests.prefix_len()) }
    }

    /// Whether both are about the same guests, whatever their devices are.
    pub fn same_guests(&self, other: &Self) -> bool {
        (self.data.addr, self.prefix_len) == (other.data.addr, other.prefix_len)
    }
}
