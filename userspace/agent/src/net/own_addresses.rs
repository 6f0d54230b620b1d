//! A cache of the router's own addresses: every call that makes a VIP needs them, and to list all addresses takes the kernel
//! longer the more VIPs there are.
//!
//! The kernel puts the announcement of a change into our socket before the change is done, so a reader that empties the socket
//! first sees addresses as they are now. VIPs do not count: they carry vipgate's mark (`address`).

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

/// How often the addresses are listed anew because they changed meanwhile.
const TRIES: u32 = 20;

#[derive(Debug)]
pub(super) struct OwnAddresses {
    /// Announces addresses that come and go, and devices, whose names they are listed with.
    announcements: Socket,
    /// As they were listed last; `None` if they must be listed anew.
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

    /// Each with its device, as they are now. Empty when the kernel does not list them.
    pub(super) fn addresses(&mut self) -> Vec<(String, Ipv4Addr)> {
        if self.changed() {
            self.addresses = None;
        }
        if self.addresses.is_none() {
            self.addresses = listed().ok();
        }
        self.addresses.clone().unwrap_or_default()
    }

    /// Reads the announcements. `true` if any concerns the addresses; one that can't be read may.
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

/// All addresses; `None` if they changed while the kernel listed them.
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
                    held.extend(HeldAddress::of(&address).and_then(HeldAddress::ipv4));
                }
                NetlinkPayload::Done(_) => return Ok((!changed).then_some(held)),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
