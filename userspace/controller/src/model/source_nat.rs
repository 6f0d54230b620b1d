//! Source NAT: which of the router's own addresses guest networks use.
//!
//! A network with the service uses the router's address on every public network of its zone. Each such address is a VIP
//! that the router creates when the first network needs it and removes after the last one, unless another service uses it.
//! [`follow`] brings these VIPs in line with the store and with the router's current addresses. It runs at every start,
//! after each call that may change the result, and when the router's addresses change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use tracing::warn;
use vipgate_api::{ApiError, Resource};
use vipgate_state::Devices;
use vipgate_state::Protocol;

use super::{ENABLED, PROVIDER, Result, vip, vip_use};
use crate::store::{
    self, Tx, account, address, network, resource,
    source_nat::{self, Guests, Public},
    vip::Vip,
};

/// TCP ports of the router's own services on its own address: SSH, and the agent of the real system. Where the API is served
/// on that address, its port is added.
const ROUTERS_PORTS: [u16; 2] = [22, 7272];

/// A public network, and the guest networks that use it.
#[derive(Debug)]
struct Uplink<'a> {
    public: &'a Public,
    /// The router's VIP there, if it exists already.
    held: Option<&'a Vip>,
    /// The router's address there; `None` if it has none.
    address: Option<IpAddr>,
    guests: Vec<&'a str>,
}

/// The public networks with the guest networks of each, given the router's addresses by device. Pure.
fn uplinks<'a>(
    publics: &'a [Public],
    guests: &'a [Guests],
    vips: &'a [Vip],
    addresses: &[(String, IpAddr)],
) -> Vec<Uplink<'a>> {
    let vips: BTreeMap<&str, &Vip> = vips.iter().map(|vip| (vip.l3_network_uuid.as_str(), vip)).collect();
    let uplink = |public: &'a Public| {
        let held = vips.get(public.uuid.as_str()).copied();
        let guests = guests.iter().filter(|guests| guests.zone_uuid == public.zone_uuid);
        Uplink {
            public,
            held,
            address: address_on(public, held.map(|vip| vip.ip.as_str()), addresses),
            guests: guests.map(|guests| guests.uuid.as_str()).collect(),
        }
    };
    publics.iter().map(uplink).collect()
}

/// The router's address on a public network: that of the VIP, as long as the router has it, else the lowest.
fn address_on(public: &Public, held: Option<&str>, addresses: &[(String, IpAddr)]) -> Option<IpAddr> {
    let network: IpNet = public.network_cidr.parse().ok()?;
    let there =
        addresses.iter().filter(|(device, address)| *device == public.physical_interface && network.contains(address));
    let there: BTreeSet<IpAddr> = there.map(|(_, address)| *address).collect();
    let held = held.and_then(|held| held.parse().ok()).filter(|held| there.contains(held));
    held.or(there.first().copied())
}

/// Brings the router's own VIPs, and the guest networks that use them, in line with the store and the router's current
/// addresses. Returns the uuids of the VIPs that changed, removed ones included.
///
/// # Errors
/// [`store::Error`].
pub async fn follow(tx: &mut Tx, devices: &dyn Devices) -> store::Result<BTreeSet<String>> {
    let (publics, guests) = (source_nat::publics(tx).await?, source_nat::guests(tx).await?);
    let vips = source_nat::own_vips(tx).await?;
    let mut touched = BTreeSet::new();
    for uplink in uplinks(&publics, &guests, &vips, &devices.addresses_by_device()) {
        if let Some(vip) = ensure_vip(tx, &uplink, &mut touched).await? {
            update_guests(tx, &vip, &uplink, &mut touched).await?;
        }
    }
    Ok(touched)
}

/// The router's VIP on a public network, created or moved to another address if necessary. `None` if there is none.
async fn ensure_vip(tx: &mut Tx, uplink: &Uplink<'_>, touched: &mut BTreeSet<String>) -> store::Result<Option<Vip>> {
    let public = uplink.public;
    match (uplink.held, uplink.address) {
        (Some(held), Some(address)) if held.ip != address.to_string() && !uplink.guests.is_empty() => {
            let Some(used_ip_uuid) = take(tx, public, address).await? else { return Ok(Some(held.clone())) };
            warn!(vip = held.uuid, from = held.ip, to = %address, "the router's address changed, and its VIP with it");
            store::vip::set_address(tx, &held.uuid, &used_ip_uuid, address).await?;
            touched.insert(held.uuid.clone());
            store::vip::get(tx, &held.uuid).await
        }
        // A missing address may come back: the services on the VIP must not be lost meanwhile.
        (Some(held), address) => {
            if address.is_none() && !uplink.guests.is_empty() {
                let network = &public.network_cidr;
                warn!(
                    vip = held.uuid,
                    address = held.ip,
                    network,
                    "the router lost its address on a public network: source NAT gets no replies there"
                );
            }
            Ok(Some(held.clone()))
        }
        (None, Some(address)) if !uplink.guests.is_empty() => {
            let Some(used_ip_uuid) = take(tx, public, address).await? else { return Ok(None) };
            let row = Vip {
                uuid: store::new_uuid(),
                name: format!("router on {}", public.name),
                description: Some(
                    "The router's own address: its source NAT's way out, made and removed by it".to_owned(),
                ),
                l3_network_uuid: public.uuid.clone(),
                ip_range_uuid: public.ip_range_uuid.clone(),
                used_ip_uuid,
                ip: address.to_string(),
                state: ENABLED.to_owned(),
                gateway: public.gateway.clone(),
                netmask: public.netmask.clone(),
                service_provider: Some(PROVIDER.to_owned()),
                use_for: Some(vip_use::SNAT.to_owned()),
                own: true,
            };
            resource::register(tx, Resource::Vip.kind(), &row.uuid, account::ADMIN).await?;
            store::vip::insert(tx, &row).await?;
            touched.insert(row.uuid.clone());
            Ok(Some(row))
        }
        (None, _) => Ok(None),
    }
}

/// Takes the router's address, so that no VIP or NIC gets it. `None` if one has it already.
async fn take(tx: &mut Tx, public: &Public, address: IpAddr) -> store::Result<Option<String>> {
    let Some(range) = network::range(tx, &public.ip_range_uuid).await? else { return Ok(None) };
    let taken = address::take(tx, &range, address).await?;
    if taken.is_none() {
        warn!(%address, network = public.uuid, "a VIP or a VM has the router's address: there is no source NAT by it");
    }
    Ok(taken)
}

/// Updates the guest networks of the VIP, and its use. A VIP that nothing uses any more is deleted.
async fn update_guests(
    tx: &mut Tx,
    row: &Vip,
    uplink: &Uplink<'_>,
    touched: &mut BTreeSet<String>,
) -> store::Result<()> {
    let held: BTreeSet<String> = source_nat::guests_of(tx, &row.uuid).await?.into_iter().collect();
    let wanted: BTreeSet<String> = uplink.guests.iter().map(ToString::to_string).collect();
    for guests in held.difference(&wanted) {
        source_nat::delete(tx, guests, &row.uuid).await?;
    }
    for guests in wanted.difference(&held) {
        source_nat::insert(tx, guests, &row.uuid).await?;
        store::vip::add_peer(tx, &row.uuid, guests).await?;
    }
    if held != wanted {
        touched.insert(row.uuid.clone());
        vip::update_use(tx, &row.uuid).await?;
    }
    Ok(())
}

/// Checks that a network that got the service has an address to use.
///
/// # Errors
/// SYS.1007 if the network is not private, SYS.1006 if the router has no address of its own on a public network of the
/// zone.
pub(super) async fn check(tx: &mut Tx, devices: &dyn Devices, l3_network_uuid: &str) -> Result<()> {
    let Some(guests) = network::l3(tx, l3_network_uuid).await? else { return Ok(()) };
    if guests.category != "Private" {
        return Err(ApiError::invalid_argument(format!(
            "field[l3NetworkUuid]: L3 network[uuid:{l3_network_uuid}] is of category {}; SNAT is for Private ones, which \
             leave by the Public ones of their zone",
            guests.category
        )));
    }
    if !source_nat::vips_of(tx, l3_network_uuid).await?.is_empty() {
        return Ok(());
    }
    let addresses = devices.addresses_by_device();
    let publics = source_nat::publics(tx).await?;
    let looked: Vec<String> = publics
        .iter()
        .filter(|public| public.zone_uuid == guests.zone_uuid)
        .map(|public| {
            let found = match address_on(public, None, &addresses) {
                Some(address) => format!("{address}, which a VIP or a VM has"),
                None => "none".to_owned(),
            };
            format!(
                "{} [uuid:{}]: {} on {} has {found}",
                public.name, public.uuid, public.network_cidr, public.physical_interface
            )
        })
        .collect();
    Err(ApiError::operation(match looked.as_slice() {
        [] => format!(
            "zone[uuid:{}] has no L3 network of category Public with an IP range, by which L3 network[uuid:{l3_network_uuid}] \
             could leave; create one",
            guests.zone_uuid
        ),
        looked => format!(
            "the router has no address of its own by which L3 network[uuid:{l3_network_uuid}] could leave; looked at: {}; give \
             a device one that nobody has (ip address add)",
            looked.join(", ")
        ),
    }))
}

/// Checks that a service may use these ports of the VIP: on its own address the router needs some itself.
///
/// # Errors
/// SYS.1007 with the name of the field.
pub(super) fn check_ports(
    devices: &dyn Devices,
    row: &Vip,
    field: &str,
    protocol: Protocol,
    (first, last): (u16, u16),
) -> Result<()> {
    let api = devices.api().filter(|api| api.ip().is_unspecified() || api.ip().to_string() == row.ip);
    let mut ports = ROUTERS_PORTS.into_iter().chain(api.map(|api| api.port()));
    let taken = ports.find(|port| (first..=last).contains(port));
    match taken.filter(|_| row.own && protocol == Protocol::Tcp) {
        Some(port) => Err(ApiError::invalid_argument(format!(
            "field[{field}]: VIP[uuid:{}, ip:{}] is the router's own address, on which TCP port {port} is the router's; \
             take another port or another VIP",
            row.uuid, row.ip
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(uuid: &str, zone: &str, device: &str, cidr: &str) -> Public {
        Public {
            uuid: uuid.into(),
            name: uuid.into(),
            zone_uuid: zone.into(),
            physical_interface: device.into(),
            ip_range_uuid: "range".into(),
            gateway: "gateway".into(),
            netmask: "netmask".into(),
            network_cidr: cidr.into(),
        }
    }

    fn address(device: &str, address: [u8; 4]) -> (String, IpAddr) {
        (device.to_owned(), address.into())
    }

    #[test]
    fn a_network_leaves_by_every_public_network_of_its_zone_on_which_the_router_is() {
        let publics = [
            public("a", "zone1", "eth0", "192.0.2.0/24"),
            public("b", "zone1", "eth1", "198.51.100.0/24"),
            public("c", "zone2", "eth0", "192.0.2.0/24"),
        ];
        let guests = ["x", "y"].map(|uuid| Guests { uuid: uuid.into(), zone_uuid: "zone1".into() });
        let addresses =
            [address("eth0", [192, 0, 2, 9]), address("eth0", [192, 0, 2, 1]), address("eth0", [198, 51, 100, 1])];
        let uplinks = uplinks(&publics, &guests, &[], &addresses);
        let seen: Vec<_> = uplinks.iter().map(|uplink| (uplink.address, uplink.guests.as_slice())).collect();
        let lowest = Some(IpAddr::from([192, 0, 2, 1]));
        let expected: [(_, &[&str]); 3] = [(lowest, &["x", "y"]), (None, &["x", "y"]), (lowest, &[])];
        assert_eq!(seen, expected, "b's address is on another device");
    }

    #[test]
    fn the_address_that_is_held_stays_as_long_as_the_router_has_it() {
        let public = public("a", "zone", "eth0", "192.0.2.0/24");
        let both = [address("eth0", [192, 0, 2, 1]), address("eth0", [192, 0, 2, 9])];
        assert_eq!(address_on(&public, Some("192.0.2.9"), &both), Some(IpAddr::from([192, 0, 2, 9])));
        assert_eq!(address_on(&public, Some("192.0.2.9"), &both[..1]), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(address_on(&public, Some("192.0.2.9"), &[]), None);
    }
}
