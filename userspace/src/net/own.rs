//! The addresses that the router has of its own, kept: to list all addresses takes the kernel longer the more VIPs there
//! are, and who makes a VIP asks each time.
//!
//! The kernel puts the announcement of a change into our socket before the change is done, so that who looks there first
//! sees addresses as they are now. VIPs are told by their prefix: they are alone in it, and so do not count.

use std::{io, net::Ipv4Addr};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::SockaddrStorage;
use rtnetlink::{
    MulticastGroup,
    sys::{Socket, protocols::NETLINK_ROUTE},
};

use super::NetError;

/// The prefix of a VIP.
const ALONE: u8 = 32;

#[derive(Debug)]
pub(super) struct Own {
    /// Announces addresses that come and go, and devices, whose names they are listed with.
    announcements: Socket,
    /// As they were listed last; `None`: they must be listed anew.
    addresses: Option<Vec<(String, Ipv4Addr)>>,
}

impl Own {
    /// Listens in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, NetError> {
        let listen = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            for group in [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr] {
                socket.add_membership(group as u32)?;
            }
            Ok(socket)
        };
        Ok(Self { announcements: listen().map_err(NetError::Open)?, addresses: None })
    }

    /// Each with its device, as they are now. Empty when the kernel does not tell.
    pub(super) fn addresses(&mut self) -> Vec<(String, Ipv4Addr)> {
        if self.changed() {
            self.addresses = None;
        }
        if self.addresses.is_none() {
            self.addresses = listed().ok();
        }
        self.addresses.clone().unwrap_or_default()
    }

    /// Takes in what was announced; whether any of it concerns what was listed. What can't be read may do so.
    fn changed(&self) -> bool {
        let mut changed = false;
        loop {
            match self.announcements.recv_from_full() {
                Ok((announced, _)) => changed |= concerns(&announced),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changed,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Announcements were lost: the next ones are there.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(_) => return true,
            }
        }
    }
}

fn concerns(announced: &[u8]) -> bool {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(announced).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
        )) => address.header.prefix_len != ALONE,
        _ => true,
    }
}

fn listed() -> nix::Result<Vec<(String, Ipv4Addr)>> {
    let ipv4 = |address: Option<SockaddrStorage>| Some(address?.as_sockaddr_in()?.ip());
    let own = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let (address, netmask) = (ipv4(interface.address)?, ipv4(interface.netmask)?);
        (!netmask.is_broadcast()).then_some((interface.interface_name, address))
    });
    Ok(own.collect())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::address::{AddressAttribute, AddressMessage};

    use super::*;

    fn announced(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn address(prefix_len: u8) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = netlink_packet_route::AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.attributes = vec![AddressAttribute::Local(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)))];
        message
    }

    #[test]
    fn vips_that_come_and_go_are_no_news() {
        assert!(!concerns(&announced(RouteNetlinkMessage::NewAddress(address(32)))));
        assert!(!concerns(&announced(RouteNetlinkMessage::DelAddress(address(32)))));
        assert!(concerns(&announced(RouteNetlinkMessage::NewAddress(address(24)))));
        assert!(concerns(&announced(RouteNetlinkMessage::DelAddress(address(24)))));
        assert!(concerns(&announced(RouteNetlinkMessage::DelLink(Default::default()))));
        assert!(concerns(b"no message"));
    }

    #[test]
    fn what_is_kept_is_what_is_listed() {
        let mut own = Own::open().unwrap();
        let first = own.addresses();
        assert_eq!(first, listed().unwrap());
        assert_eq!(own.addresses(), first);
        assert!(first.contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST)));
    }
}
