//! Watches the kernel for changes that concern the fast path: what its flows remember, and what its devices are.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteMessage, RouteType},
};
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::{
    MulticastGroup,
    sys::{AsyncSocket, SocketAddr},
};
use tokio::task::AbortHandle;
use tracing::warn;

use super::{NetError, address::HeldAddress, dump::dump};

/// Events within this time are reported together, so that a storm of them costs few table writes.
const BATCH: Duration = Duration::from_millis(3);
/// Rest between attempts to open a socket that broke.
const REOPEN: Duration = Duration::from_millis(200);
/// Between two log lines about lost announcements.
const TELL: Duration = Duration::from_secs(1);
/// Bytes of announcements that the kernel keeps for us: what a routing daemon sets when it starts comes within a moment.
const ROOM: usize = 8 << 20;

/// Those that have no family announce both. IPv6 addresses, routes and rules are not asked for: they change nothing.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Nexthop,
];

/// What changed since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A neighbour, a route or a link: remembered next hops may be wrong.
    pub next_hops: bool,
    /// A device changed, or an address that VIPs need or may not have: ports and VIP addresses may have to be set again.
    pub devices: bool,
    /// An address of the router's own came or went, or its device has another name.
    pub own_addresses: bool,
}

impl Changes {
    const ALL: Self = Self { next_hops: true, devices: true, own_addresses: true };

    fn is_none(self) -> bool {
        self == Self::default()
    }

    fn add(&mut self, other: Self) {
        self.next_hops |= other.next_hops;
        self.devices |= other.devices;
        self.own_addresses |= other.own_addresses;
    }
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A subscription to the kernel's announcements.
#[derive(Debug)]
pub struct Watcher {
    messages: Messages,
    neighbours: Neighbours,
    /// Noted and not reported yet.
    pending: Changes,
    /// Announcements were lost.
    lost: bool,
    /// When that was last logged.
    told: Option<Instant>,
    _reading: Reading,
}

/// What reads the socket; it ends with this, and so does what it has not handed over yet.
#[derive(Debug)]
struct Reading(AbortHandle);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watcher {
    /// Subscribes in the calling thread's network namespace.
    pub async fn open() -> Result<Self, NetError> {
        let (messages, neighbours, reading) = subscribe().await?;
        Ok(Self { messages, neighbours, pending: Changes::default(), lost: false, told: None, _reading: reading })
    }

    /// Waits until something changed. Announcements that were lost count as a change of everything. Dropping the
    /// future loses nothing: the next one tells it.
    pub async fn changed(&mut self) -> Changes {
        while self.pending.is_none() && !self.lost {
            let next = self.messages.next().await;
            self.take_in(next.map(|(message, _)| message));
        }
        tokio::time::sleep(BATCH).await;
        while let Ok((message, _)) = self.messages.try_recv() {
            self.take_in(Some(message));
        }
        if self.lost {
            self.reopen().await;
        }
        std::mem::take(&mut self.pending)
    }

    /// Starts over.
    async fn reopen(&mut self) {
        if self.is_to_tell() {
            warn!("more of the kernel's network changed at once than could be followed; looking at all of it");
        }
        loop {
            match Self::open().await {
                Ok(watcher) => {
                    *self = Self { pending: Changes::ALL, told: self.told, ..watcher };
                    return;
                }
                Err(error) if self.is_to_tell() => warn!(%error, "cannot watch the kernel's network; trying again"),
                Err(_) => {}
            }
            tokio::time::sleep(REOPEN).await;
        }
    }

    /// Not again within [`TELL`].
    fn is_to_tell(&mut self) -> bool {
        let is_due = self.told.is_none_or(|told| told.elapsed() >= TELL);
        if is_due {
            self.told = Some(Instant::now());
        }
        is_due
    }

    /// Notes what a message changes. No message, or none that is an announcement: the socket broke or overran.
    fn take_in(&mut self, message: Option<NetlinkMessage<RouteNetlinkMessage>>) {
        match message.map(|message| message.payload) {
            Some(NetlinkPayload::InnerMessage(message)) => {
                let changes = note(&mut self.neighbours, message);
                self.pending.add(changes);
            }
            _ => self.lost = true,
        }
    }
}

/// What a message changes.
fn note(neighbours: &mut Neighbours, message: RouteNetlinkMessage) -> Changes {
    let mut changes = Changes::default();
    match message {
        RouteNetlinkMessage::NewNeighbour(neighbour) => changes.next_hops = neighbours.learn(&neighbour),
        RouteNetlinkMessage::DelNeighbour(neighbour) => changes.next_hops = neighbours.forget(&neighbour),
        RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => changes = Changes::ALL,
        RouteNetlinkMessage::DelAddress(address) => changes = of_address(&address, true),
        RouteNetlinkMessage::NewAddress(address) => changes = of_address(&address, false),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            changes.next_hops = may_lead_flows(&route);
        }
        RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => {
            changes.next_hops = rule.header.family != AddressFamily::Inet6;
        }
        _ => changes.next_hops = true,
    }
    changes
}

/// What it changes that an address has come, or is gone. VIPs come by ourselves. An IPv6 address changes nothing: VIPs, and the
/// router's own addresses that the programs and source NAT know, are IPv4.
fn of_address(message: &AddressMessage, is_gone: bool) -> Changes {
    let Some(held) = HeldAddress::of(message).and_then(HeldAddress::ipv4) else {
        return Changes::default();
    };
    Changes { devices: !held.vip || is_gone, own_addresses: !held.vip, ..Changes::default() }
}

/// Whether a flow may remember a next hop by this route. None does by one to the router's own addresses, among them VIPs as they
/// come and go. Flows are IPv4, and the kernel finds their routes in its IPv4 tables alone, even those by an IPv6 neighbour.
fn may_lead_flows(route: &RouteMessage) -> bool {
    route.header.address_family != AddressFamily::Inet6
        && !matches!(route.header.kind, RouteType::Local | RouteType::Broadcast)
}

async fn subscribe() -> Result<(Messages, Neighbours, Reading), NetError> {
    let (mut connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS).map_err(NetError::Open)?;
    // For `dump`.
    connection.set_forward_done(true);
    // Where the kernel grants no more, the default size serves.
    let _ = setsockopt(connection.socket_mut().socket_mut(), sockopt::RcvBufForce, &ROOM);
    let reading = Reading(tokio::spawn(connection).abort_handle());
    // Asked after subscribing: what changes in between is announced.
    let mut request = NeighbourMessage::default();
    // Of all families.
    request.header.family = AddressFamily::Unspec;
    let known = dump(&handle, "list the neighbours", RouteNetlinkMessage::GetNeighbour(request)).await;
    let mut neighbours = Neighbours::default();
    match known {
        Ok(known) => {
            for answer in &known {
                if let RouteNetlinkMessage::NewNeighbour(neighbour) = answer {
                    neighbours.learn(neighbour);
                }
            }
        }
        Err(error) => warn!(%error, "cannot list the neighbours; some changes may be seen twice"),
    }
    Ok((messages, neighbours, reading))
}

/// The neighbours that flows may remember: most announcements only tell that an entry was confirmed or grew stale,
/// and those must not make every flow look its next hop up again.
///
/// IPv6 neighbours are among them: an IPv4 route may lead by one (RFC 8950, `ip route add 10.0.0.0/8 via inet6 fe80::1`), and
/// flows remember its MAC address.
#[derive(Debug, Default)]
struct Neighbours {
    known: HashMap<(u32, IpAddr), Vec<u8>>,
}

impl Neighbours {
    /// True when the entry says otherwise than before. A neighbour that was not known is no change: no flow
    /// remembers it.
    fn learn(&mut self, message: &NeighbourMessage) -> bool {
        let Some(key) = key(message) else {
            return false;
        };
        if matches!(message.header.state, NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None) {
            return self.known.remove(&key).is_some();
        }
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
            _ => None,
        });
        let mac = mac.unwrap_or_default();
        let before = self.known.insert(key, mac);
        before.is_some_and(|before| Some(&before) != self.known.get(&key))
    }

    /// True when the entry was known.
    fn forget(&mut self, message: &NeighbourMessage) -> bool {
        key(message).is_some_and(|key| self.known.remove(&key).is_some())
    }
}

/// Device and address of a neighbour; `None` if no route leads by it: a multicast group has an entry, too, and a bridge's
/// entries are of another family.
fn key(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    (!address.is_multicast()).then_some((message.header.ifindex, address))
}

#[cfg(test)]
mod tests;
