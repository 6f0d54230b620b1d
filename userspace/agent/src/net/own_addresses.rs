//! The addresses that the router has of its own, kept: to list all addresses takes the kernel longer the more VIPs there
//! are, and who makes a VIP asks each time.
//!
//! The kernel puts the announcement of a change into our socket before the change is done, so that who looks there first
//! sees addresses as they are now. VIPs do not count: they carry vipgate's mark (`address`).

use std::{io, net::Ipv4Addr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::net::if_::if_indextoname;
use rtnetlink::{
    MulticastGroup,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::{
    NetError,
    address::{HeldAddress, request},
};

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// So often the addresses are listed until they do not change meanwhile.
const TRIES: u32 = 20;

#[derive(Debug)]
pub(super) struct OwnAddresses {
    /// Announces addresses that come and go, and devices, whose names they are listed with.
    announcements: Socket,
    /// As they were listed last; `None`: they must be listed anew.
    addresses: Option<Vec<(String, Ipv4Addr)>>,
}

impl OwnAddresses {
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
                Ok((announced, _)) => changed |= messages(&announced).any(|message| message.is_none_or(concerns)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changed,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Announcements were lost: the next ones are there.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(_) => return true,
            }
        }
    }
}

/// The messages in what was received at once; the last is `None` where the rest can't be read.
fn messages(mut received: &[u8]) -> impl Iterator<Item = Option<Message>> {
    std::iter::from_fn(move || {
        if received.is_empty() {
            return None;
        }
        let message = Message::deserialize(received).ok();
        // Each begins at a multiple of four bytes.
        let length =
            message.as_ref().map_or(received.len(), |message| message.header.length.next_multiple_of(4) as usize);
        received = received.get(length..).filter(|_| length > 0).unwrap_or_default();
        Some(message)
    })
}

fn concerns(message: Message) -> bool {
    match message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
        ) => HeldAddress::of(&address).is_none_or(|held| !held.vip),
        _ => true,
    }
}

fn listed() -> io::Result<Vec<(String, Ipv4Addr)>> {
    for _ in 0..TRIES {
        if let Some(held) = dumped()? {
            let named = |held: &HeldAddress| {
                let device = if_indextoname(held.ifindex).ok()?;
                Some((device.to_string_lossy().into_owned(), held.address))
            };
            return Ok(held.iter().filter(|held| !held.vip).filter_map(named).collect());
        }
    }
    Err(io::Error::other("the addresses changed each time while the kernel told them"))
}

/// All addresses; `None`: they changed while the kernel told them.
fn dumped() -> io::Result<Option<Vec<HeldAddress>>> {
    let mut question = Message::from(request());
    question.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let (mut held, mut changed) = (Vec::new(), false);
    loop {
        let received = match socket.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?.0,
        };
        for message in messages(&received) {
            let message = message.ok_or_else(|| io::Error::other("the kernel's answer cannot be read"))?;
            changed |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                    held.extend(HeldAddress::of(&address));
                }
                NetlinkPayload::Done(_) => return Ok((!changed).then_some(held)),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol};

    use super::*;

    fn announced(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn address(prefix_len: u8, mark: u8) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = netlink_packet_route::AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
            AddressAttribute::Protocol(AddressProtocol::from(mark)),
        ];
        message
    }

    fn is_news(announced: &[u8]) -> bool {
        messages(announced).any(|message| message.is_none_or(concerns))
    }

    #[test]
    fn what_has_the_mark_is_a_vip_and_no_news_and_what_has_none_is_the_routers_own() {
        for prefix_len in [24, 32] {
            let (vip, own) = (address(prefix_len, 0x56), address(prefix_len, 0));
            assert!(!is_news(&announced(RouteNetlinkMessage::NewAddress(vip.clone()))));
            assert!(!is_news(&announced(RouteNetlinkMessage::DelAddress(vip.clone()))));
            assert!(is_news(&announced(RouteNetlinkMessage::NewAddress(own.clone()))));
            assert!(is_news(&announced(RouteNetlinkMessage::DelAddress(own.clone()))));
            let both = [vip, own].map(|address| announced(RouteNetlinkMessage::NewAddress(address))).concat();
            assert!(is_news(&both), "the second of two that come at once");
        }
        assert!(is_news(&announced(RouteNetlinkMessage::DelLink(Default::default()))));
        assert!(is_news(b"no message"));
    }

    #[test]
    fn what_is_kept_is_what_is_listed() {
        let mut own = OwnAddresses::open().unwrap();
        let first = own.addresses();
        assert_eq!(first, listed().unwrap());
        assert_eq!(own.addresses(), first);
        assert!(first.contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST)));
    }
}
