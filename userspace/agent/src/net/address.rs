//! The addresses of the router's devices: VIPs, and those that are somebody else's.
//!
//! vipgate marks the addresses that it sets (`IFA_PROTO`, Linux 5.18; a router has 6.1 at least). An operator or another program
//! has configured those without the mark, whatever their prefix: they are never taken for VIPs, nor removed with one.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressProtocol},
};
use rtnetlink::{AddressMessageBuilder, Error};

use super::{
    Device, NetError,
    dump::dump,
    netlink::{Netlink, failed},
};

/// The mark. Shown by `ip -d address` as `proto 0x56`.
const OURS: AddressProtocol = AddressProtocol::Other(0x56);

/// A VIP is a host address. With its network's prefix it would bring a connected route of its own, stand among the
/// router's own addresses of that network as a source for the router's traffic, and take them along as their primary
/// when it goes. The route to the network comes from the router's own address there, as for any host.
const PREFIX_LEN: u8 = 32;

/// An address of a device. The kernel announces those of both families (`A` is [`IpAddr`]); VIPs, and all that asks for the
/// router's addresses, are IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldAddress<A = Ipv4Addr> {
    pub ifindex: u32,
    pub address: A,
    pub prefix_len: u8,
    /// Set by vipgate as a VIP.
    pub vip: bool,
}

impl HeldAddress {
    /// A VIP's, on the device with this interface index.
    pub fn vip(ifindex: u32, address: Ipv4Addr) -> Self {
        Self { ifindex, address, prefix_len: PREFIX_LEN, vip: true }
    }

    /// The address of all hosts of its network (RFC 919); `None` if the network is too small to have one.
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        let hosts = u32::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
        (hosts > 1).then(|| Ipv4Addr::from(u32::from(self.address) | hosts))
    }
}

impl HeldAddress<IpAddr> {
    /// The address that a message of the kernel is about; `None` if it names none.
    pub(super) fn of(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut address) = (None, None);
        let mut vip = false;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(own) => local = Some(*own),
                AddressAttribute::Address(other) => address = Some(*other),
                AddressAttribute::Protocol(protocol) => vip = *protocol == OURS,
                _ => {}
            }
        }
        // On a point-to-point link the second is the other end's. The kernel leaves the first out of other IPv6 addresses.
        let address = local.or(address)?;
        Some(Self { ifindex: message.header.index, address, prefix_len: message.header.prefix_len, vip })
    }

    /// The same as an IPv4 address; `None` if it is of another family. Here IPv4 is taken out for all that knows nothing else:
    /// reconciler, announcements by ARP, the programs' tables.
    pub(super) fn ipv4(self) -> Option<HeldAddress> {
        let Self { ifindex, address: IpAddr::V4(address), prefix_len, vip } = self else { return None };
        Some(HeldAddress { ifindex, address, prefix_len, vip })
    }
}

/// Asks for the IPv4 addresses of all devices.
pub(super) fn request() -> RouteNetlinkMessage {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    RouteNetlinkMessage::GetAddress(request)
}

impl Netlink {
    /// The IPv4 addresses of all devices.
    pub async fn addresses(&self) -> Result<Vec<HeldAddress>, NetError> {
        let answers = dump(&self.handle(), "list the addresses", request()).await?;
        let held = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewAddress(address) => HeldAddress::of(address).and_then(HeldAddress::ipv4),
            _ => None,
        };
        Ok(answers.iter().filter_map(held).collect())
    }

    /// Adds a VIP's address to a device. `false` if the device has it already, whoever set it.
    pub async fn add_vip(&self, device: &Device, vip: Ipv4Addr) -> Result<bool, NetError> {
        let mut request = self.handle().address().add(device.ifindex, IpAddr::V4(vip), PREFIX_LEN);
        request.message_mut().attributes.push(AddressAttribute::Protocol(OURS));
        match request.execute().await {
            Err(Error::NetlinkError(error)) if error.raw_code().abs() == libc::EEXIST => Ok(false),
            Err(error) => Err(failed(&format!("add {vip} to {}", device.name), &error)),
            Ok(()) => Ok(true),
        }
    }

    /// Removes an address that vipgate set from its device. The kernel does not compare the mark: the caller must. A missing
    /// address or device is no error.
    pub async fn remove_vip(&self, vip: HeldAddress) -> Result<(), NetError> {
        let HeldAddress { ifindex, address, prefix_len, .. } = vip;
        let message = AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex).address(address, prefix_len).build();
        match self.handle().address().del(message).execute().await {
            Err(Error::NetlinkError(error))
                if [libc::EADDRNOTAVAIL, libc::ENODEV].contains(&error.raw_code().abs()) =>
            {
                Ok(())
            }
            other => other.map_err(|error| failed(&format!("remove {address} from device {ifindex}"), &error)),
        }
    }

    /// Takes every address that vipgate set off its device. Tells how many.
    pub async fn remove_all_vips(&self) -> Result<usize, NetError> {
        let vips: Vec<_> = self.addresses().await?.into_iter().filter(|held| held.vip).collect();
        for held in &vips {
            self.remove_vip(*held).await?;
        }
        Ok(vips.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_hosts_has_a_broadcast_address() {
        let of = |prefix_len| HeldAddress { prefix_len, ..HeldAddress::vip(1, Ipv4Addr::new(10, 1, 2, 9)) }.broadcast();
        assert_eq!([24, 30].map(of), [Some(Ipv4Addr::new(10, 1, 2, 255)), Some(Ipv4Addr::new(10, 1, 2, 11))]);
        assert_eq!([31, 32].map(of), [None, None]);
    }
}
