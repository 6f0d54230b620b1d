//! Requests to rtnetlink (RFC 3549): devices, addresses, neighbours.

use std::net::{IpAddr, Ipv4Addr};

use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressProtocol},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::{AddressMessageBuilder, Error, Handle, RouteMessageBuilder};

use super::{Device, Link, NetError, dump::dump};

/// Marks the addresses that vipgate set (`IFA_PROTO`, Linux 5.18), so that a later start finds those that no VIP has
/// any more. Shown by `ip -d address` as `proto 0x56`.
const OURS: AddressProtocol = AddressProtocol::Other(0x56);

/// A VIP is a host address. With its network's prefix it would bring a connected route of its own, stand among the
/// router's own addresses of that network as a source for the router's traffic, and take them along as their primary
/// when it goes. The route to the network comes from the router's own address there, as for any host.
const PREFIX_LEN: u8 = 32;

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldAddress {
    pub ifindex: u32,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// Set by vipgate as a VIP.
    pub vip: bool,
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

    /// The IPv4 addresses of all devices.
    pub async fn addresses(&self) -> Result<Vec<HeldAddress>, NetError> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let answers = dump(&self.handle, "list the addresses", RouteNetlinkMessage::GetAddress(request)).await?;
        let held = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewAddress(address) => held_address(address),
            _ => None,
        };
        Ok(answers.iter().filter_map(held).collect())
    }

    /// Gives a device a VIP's address. False: it had it already.
    pub async fn add_vip(&self, device: &Device, vip: Ipv4Addr) -> Result<bool, NetError> {
        let mut request = self.handle.address().add(device.ifindex, IpAddr::V4(vip), PREFIX_LEN);
        request.message_mut().attributes.push(AddressAttribute::Protocol(OURS));
        match request.execute().await {
            Err(Error::NetlinkError(error)) if error.raw_code().abs() == libc::EEXIST => Ok(false),
            Err(error) => Err(failed(&format!("add {vip} to {}", device.name), &error)),
            Ok(()) => Ok(true),
        }
    }

    /// Takes a VIP's address off a device. One that it has not, or a device that is gone, is no error.
    pub async fn remove_vip(&self, ifindex: u32, vip: Ipv4Addr) -> Result<(), NetError> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex).address(vip, PREFIX_LEN).build();
        match self.handle.address().del(message).execute().await {
            Err(Error::NetlinkError(error))
                if [libc::EADDRNOTAVAIL, libc::ENODEV].contains(&error.raw_code().abs()) =>
            {
                Ok(())
            }
            other => other.map_err(|error| failed(&format!("remove {vip} from device {ifindex}"), &error)),
        }
    }

    /// Takes every VIP's address off its device: those that carry vipgate's mark. Tells how many.
    pub async fn remove_all_vips(&self) -> Result<usize, NetError> {
        let vips: Vec<_> = self.addresses().await?.into_iter().filter(|held| held.vip).collect();
        for held in &vips {
            self.remove_vip(held.ifindex, held.address).await?;
        }
        Ok(vips.len())
    }

    /// Has the kernel resolve the next hop towards an address, or confirm what it knows, as if a packet had been sent:
    /// the fast path does not use the stack, so nobody else would. Without a route there is nothing to do.
    pub async fn confirm_neighbour(&self, address: Ipv4Addr) -> Result<(), NetError> {
        let Some((ifindex, neighbour)) = self.next_hop(address).await else {
            return Ok(());
        };
        // The kernel would make an entry that an operator set for good an ordinary one.
        if let Some(NeighbourState::Permanent | NeighbourState::Noarp) = self.neighbour(ifindex, neighbour).await {
            return Ok(());
        }
        let request = self.handle.neighbours().add(ifindex, IpAddr::V4(neighbour)).replace();
        let request = request.flags(NeighbourFlags::Use).state(NeighbourState::None);
        let confirmed = request.execute().await;
        confirmed.map_err(|error| failed(&format!("confirm the neighbour {neighbour}"), &error))
    }

    /// Whether nobody answers on the link for an address, or for the router that leads to it: packets to it are being
    /// dropped.
    pub async fn is_unresolved(&self, address: Ipv4Addr) -> bool {
        let Some((ifindex, neighbour)) = self.next_hop(address).await else {
            return false;
        };
        let state = self.neighbour(ifindex, neighbour).await;
        matches!(state, Some(NeighbourState::Incomplete | NeighbourState::Failed))
    }

    /// The device and neighbour through which packets to an address go, if they go to another host.
    async fn next_hop(&self, address: Ipv4Addr) -> Option<(u32, Ipv4Addr)> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build();
        let routes = self.handle.route().get(query).execute().try_collect::<Vec<_>>().await;
        next_hop(routes.ok()?.first()?, address)
    }

    /// The state of one neighbour entry, if there is one.
    async fn neighbour(&self, ifindex: u32, address: Ipv4Addr) -> Option<NeighbourState> {
        let mut query = NeighbourMessage::default();
        query.header.family = AddressFamily::Inet;
        query.header.ifindex = ifindex;
        query.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(query));
        request.header.flags = NLM_F_REQUEST;
        let answer = self.handle.clone().request(request).ok()?.next().await?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => Some(entry.header.state),
            _ => None,
        }
    }
}

/// The device and neighbour through which a route leads to `address`, when it leads to another host.
fn next_hop(route: &RouteMessage, address: Ipv4Addr) -> Option<(u32, Ipv4Addr)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let ifindex = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })?;
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    });
    Some((ifindex, gateway.unwrap_or(address)))
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device {
        name: String::new(),
        ifindex: link.header.index,
        mtu: 0,
        mac: [0; 6],
        ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        veth: false,
        shares: None,
        up: link.header.flags.contains(LinkFlags::Up),
    };
    let (mut below, mut elsewhere, mut macvlan) = (None, false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Address(address) => device.mac = address.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => {
                device.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                macvlan = infos.contains(&LinkInfo::Kind(InfoKind::MacVlan));
            }
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            _ => {}
        }
    }
    // An index of another namespace means nothing here.
    device.shares = below.filter(|_| macvlan && !elsewhere);
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

fn held_address(message: &AddressMessage) -> Option<HeldAddress> {
    let mut address = None;
    let mut vip = false;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(local)) => address = Some(*local),
            AddressAttribute::Protocol(protocol) => vip = *protocol == OURS,
            _ => {}
        }
    }
    let prefix_len = message.header.prefix_len;
    Some(HeldAddress {
        ifindex: message.header.index,
        address: address?,
        prefix_len,
        vip: vip && prefix_len == PREFIX_LEN,
    })
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
