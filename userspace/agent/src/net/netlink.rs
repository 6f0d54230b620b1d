//! Requests to rtnetlink (RFC 3549): devices, neighbours. Those about addresses are in `address`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

use super::{Device, Link, NetError, dump::dump};

/// Whether packets to a host get onto the link of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// As far as the router knows.
    Open,
    /// Nobody on the link answers for the host, or for the router that leads to it: packets to it are being dropped.
    Unresolved,
    /// The router has no way there that works: why.
    Missing(String),
}

/// A netlink socket; clones share it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace; needs a tokio runtime.
    pub fn open() -> Result<Self, NetError> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Open)?;
        // For `dump`.
        connection.set_forward_done(true);
        // Ends when the last handle goes.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The router's devices.
    pub async fn devices(&self) -> Result<Vec<Device>, NetError> {
        Ok(self.messages().await?.iter().map(device).collect())
    }

    /// The router's devices with all that is known of them.
    pub async fn links(&self) -> Result<Vec<Link>, NetError> {
        Ok(self.messages().await?.iter().map(link).collect())
    }

    /// For the requests of other modules.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    async fn messages(&self) -> Result<Vec<LinkMessage>, NetError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = dump(&self.handle, "list the devices", request).await?;
        let link = |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// Has the kernel resolve the next hop towards an address, or confirm what it knows, as if a packet had been sent:
    /// the fast path does not use the stack, so nobody else would. Without a route there is nothing to do.
    pub async fn confirm_neighbour(&self, address: IpAddr) -> Result<(), NetError> {
        let Some((ifindex, neighbour)) = self.next_hop(address).await else {
            return Ok(());
        };
        // The kernel would make an entry that an operator set for good an ordinary one.
        if let Some(NeighbourState::Permanent | NeighbourState::Noarp) = self.neighbour(ifindex, neighbour).await {
            return Ok(());
        }
        let request = self.handle.neighbours().add(ifindex, neighbour).replace();
        let request = request.flags(NeighbourFlags::Use).state(NeighbourState::None);
        let confirmed = request.execute().await;
        confirmed.map_err(|error| failed(&format!("confirm the neighbour {neighbour}"), &error))
    }

    /// Whether packets to a host get onto the link of its network, which is by this device.
    pub async fn reach(&self, address: IpAddr, device: &str) -> Reach {
        let route = match self.route(address).await {
            Ok(Some(route)) => route,
            Err(Error::NetlinkError(error)) => return Reach::Missing(format!("no route to it: {}", error.to_io())),
            Ok(None) | Err(_) => return Reach::Open,
        };
        if route.header.kind == RouteType::Local {
            return Reach::Open;
        }
        let Some((ifindex, neighbour)) = next_hop(&route, address) else {
            return Reach::Missing(format!("the route to it is of the kind {:?}", route.header.kind));
        };
        if let Some(link_problem) = self.link(ifindex).await.and_then(|link| link_problem(&link, device)) {
            return Reach::Missing(link_problem);
        }
        match self.neighbour(ifindex, neighbour).await {
            Some(NeighbourState::Incomplete | NeighbourState::Failed) => Reach::Unresolved,
            _ => Reach::Open,
        }
    }

    /// The device and neighbour through which packets to an address go, if they go to another host.
    async fn next_hop(&self, address: IpAddr) -> Option<(u32, IpAddr)> {
        next_hop(&self.route(address).await.ok()??, address)
    }

    /// How packets to an address go.
    async fn route(&self, address: IpAddr) -> Result<Option<RouteMessage>, Error> {
        let query = match address {
            IpAddr::V4(host) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(host, 32).build(),
            IpAddr::V6(host) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(host, 128).build(),
        };
        self.handle.route().get(query).execute().try_next().await
    }

    /// The device of this index, if there is one.
    async fn link(&self, ifindex: u32) -> Option<LinkMessage> {
        self.handle.link().get().match_index(ifindex).execute().try_next().await.ok()?
    }

    /// The state of one neighbour entry, if there is one.
    async fn neighbour(&self, ifindex: u32, address: IpAddr) -> Option<NeighbourState> {
        let mut query = NeighbourMessage::default();
        query.header.family = family(address);
        query.header.ifindex = ifindex;
        query.attributes.push(NeighbourAttribute::Destination(address.into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(query));
        request.header.flags = NLM_F_REQUEST;
        let answer = self.handle.clone().request(request).ok()?.next().await?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => Some(entry.header.state),
            _ => None,
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The device and neighbour through which a route leads to `address`, when it leads to another host. The neighbour may be of
/// the other family (RFC 8950).
fn next_hop(route: &RouteMessage, address: IpAddr) -> Option<(u32, IpAddr)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let ifindex = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })?;
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) | RouteAttribute::Via(RouteVia::Inet(gateway)) => {
            Some(IpAddr::V4(*gateway))
        }
        RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) | RouteAttribute::Via(RouteVia::Inet6(gateway)) => {
            Some(IpAddr::V6(*gateway))
        }
        _ => None,
    });
    Some((ifindex, gateway.unwrap_or(address)))
}

/// Why packets do not get onto the link of `wanted`, where the route to it leads out by this device.
fn link_problem(link: &LinkMessage, wanted: &str) -> Option<String> {
    let Device { name, up, .. } = device(link);
    if name != wanted {
        return Some(format!("the route to it leads out by {name}, not by {wanted}"));
    }
    if !up {
        return Some(format!("{wanted} is down"));
    }
    let carrier = link.header.flags.contains(LinkFlags::LowerUp);
    (!carrier).then(|| format!("{wanted} has no carrier"))
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device {
        name: String::new(),
        ifindex: link.header.index,
        mtu: 0,
        mac: [0; 6],
        ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        veth: false,
        up: link.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Address(address) => device.mac = address.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => device.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => {}
        }
    }
    device
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link { device: device(message), rx_queues: 0, peer: None, xdp: false, enslaved: false };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::NumRxQueues(queues) => link.rx_queues = *queues,
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(master) => link.enslaved = *master != 0,
            LinkAttribute::Xdp(about) => {
                let attached = |one: &LinkXdp| matches!(one, LinkXdp::Attached(how) if *how != XdpAttached::None);
                link.xdp = about.iter().any(attached);
            }
            _ => {}
        }
    }
    // An index of another namespace means nothing here.
    link.peer = link.peer.filter(|_| !elsewhere);
    link
}

pub(super) fn failed(what: &str, error: &Error) -> NetError {
    let reason = match error {
        Error::NetlinkError(error) => match error.raw_code().abs() {
            libc::EPERM => "not permitted; vipgate needs root or CAP_NET_ADMIN".to_owned(),
            _ => error.to_io().to_string(),
        },
        other => other.to_string(),
    };
    NetError::Netlink { what: what.to_owned(), reason }
}
