//! Address ranges of L3 networks. These calls are for IPv4; those for IPv6 have other fields.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use vipgate_api::{
    ApiError, Resource,
    common::Delete,
    l3::{AddIpRange, AddIpRangeByNetworkCidr},
};

use super::{
    Caller, Outcome, Result,
    resource::{self, New, require},
};
use crate::store::{
    Tx,
    network::{self, IpRange},
    source_nat,
};

/// A range that is valid by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: Ipv4Addr,
    last: Ipv4Addr,
    gateway: Ipv4Addr,
    network: Ipv4Net,
}

pub(super) async fn add(tx: &mut Tx, caller: &Caller, request: AddIpRange) -> Result {
    require(tx, "l3NetworkUuid", &request.l3_network_uuid, Resource::L3Network).await?;
    let span = Span::explicit(&request)?;
    let new =
        New { resource: Resource::IpRange, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    insert(tx, span.row(uuid, request.l3_network_uuid, request.name, request.description)).await
}

pub(super) async fn add_by_cidr(tx: &mut Tx, caller: &Caller, request: AddIpRangeByNetworkCidr) -> Result {
    require(tx, "l3NetworkUuid", &request.l3_network_uuid, Resource::L3Network).await?;
    let span = Span::of_cidr(&request.network_cidr)?;
    let new =
        New { resource: Resource::IpRange, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    insert(tx, span.row(uuid, request.l3_network_uuid, request.name, request.description)).await
}

/// VIPs and NICs with an address of the range are deleted with it.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    resource::delete(tx, Resource::IpRange, request).await
}

async fn insert(tx: &mut Tx, row: IpRange) -> Result {
    for other in network::ranges_of(tx, &row.l3_network_uuid).await? {
        if row.first_key <= other.last_key && other.first_key <= row.last_key {
            return Err(ApiError::invalid_argument(format!(
                "the range {} to {} overlaps the range[uuid:{}] {} to {}",
                row.start_ip, row.end_ip, other.uuid, other.start_ip, other.end_ip
            )));
        }
        for (what, new, old) in
            [("CIDR", &row.network_cidr, &other.network_cidr), ("gateway", &row.gateway, &other.gateway)]
        {
            if new != old {
                return Err(ApiError::invalid_argument(format!(
                    "all ranges of an L3 network share one {what}: range[uuid:{}] has {old}, this one {new}",
                    other.uuid
                )));
            }
        }
    }
    network::insert_range(tx, &row).await?;
    // The first range defines which source addresses SNAT applies to.
    let snat_vips = source_nat::vips_of(tx, &row.l3_network_uuid).await?;
    Ok(Outcome::inventory(Resource::IpRange, row.uuid).touching(snat_vips))
}

impl Span {
    fn explicit(request: &AddIpRange) -> Result<Self> {
        let first = address("startIp", &request.start_ip)?;
        let last = address("endIp", &request.end_ip)?;
        let gateway = address("gateway", &request.gateway)?;
        let netmask = address("netmask", &request.netmask)?;
        let network = Ipv4Net::with_netmask(first, netmask)
            .ok()
            .filter(|network| network.prefix_len() > 0)
            .ok_or_else(|| refuse(format!("field[netmask]: {netmask} is no netmask, such as 255.255.255.0")))?
            .trunc();
        for (field, address) in [("startIp", first), ("endIp", last), ("gateway", gateway)] {
            if !network.contains(&address) {
                return Err(refuse(format!("field[{field}]: {address} is not in {network}, the network of startIp")));
            }
            if is_reserved(address) {
                return Err(refuse(format!("field[{field}]: no host can have {address}")));
            }
        }
        if first > last {
            return Err(refuse(format!("field[endIp]: {last} is below startIp {first}")));
        }
        if (first..=last).contains(&gateway) {
            return Err(refuse(format!("field[gateway]: {gateway} is inside the range {first} to {last}")));
        }
        if network.prefix_len() < 31 && (first == network.network() || last == network.broadcast()) {
            return Err(refuse(format!(
                "the range {first} to {last} holds the network or broadcast address of {network}"
            )));
        }
        Ok(Self { first, last, gateway, network })
    }

    /// The first usable address becomes the gateway, the others the range.
    fn of_cidr(text: &str) -> Result<Self> {
        let network: Ipv4Net = text
            .parse()
            .map_err(|_| refuse(format!("field[networkCidr]: `{text}` is no IPv4 network, such as 10.0.0.0/24")))?;
        let network = network.trunc();
        if !(1..=30).contains(&network.prefix_len()) {
            return Err(refuse(format!("field[networkCidr]: {network} has no room for a gateway and a range")));
        }
        if is_reserved(network.network()) || is_reserved(network.broadcast()) {
            return Err(refuse(format!("field[networkCidr]: no host can have an address of {network}")));
        }
        let at = |offset: u32| Ipv4Addr::from_bits(network.network().to_bits() + offset);
        let last = Ipv4Addr::from_bits(network.broadcast().to_bits() - 1);
        Ok(Self { first: at(2), last, gateway: at(1), network })
    }

    fn row(self, uuid: String, l3_network_uuid: String, name: String, description: Option<String>) -> IpRange {
        IpRange {
            uuid,
            l3_network_uuid,
            name,
            description,
            start_ip: self.first.to_string(),
            end_ip: self.last.to_string(),
            netmask: self.network.netmask().to_string(),
            gateway: self.gateway.to_string(),
            network_cidr: self.network.to_string(),
            first_key: IpAddr::from(self.first).into(),
            last_key: IpAddr::from(self.last).into(),
        }
    }
}

fn address(field: &str, text: &str) -> Result<Ipv4Addr> {
    text.parse().map_err(|_| refuse(format!("field[{field}]: `{text}` is no IPv4 address")))
}

/// Whether no host on a network can have the address: "this network", loopback, link-local, classes D and E.
fn is_reserved(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [0 | 127 | 224.., ..] | [169, 254, ..])
}

fn refuse(details: String) -> ApiError {
    ApiError::invalid_argument(details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explicit(start_ip: &str, end_ip: &str, netmask: &str, gateway: &str) -> Result<Span> {
        Span::explicit(&AddIpRange {
            l3_network_uuid: "l3".into(),
            name: "range".into(),
            description: None,
            start_ip: start_ip.into(),
            end_ip: end_ip.into(),
            netmask: netmask.into(),
            gateway: gateway.into(),
            resource_uuid: None,
            system_tags: vec![],
            user_tags: vec![],
        })
    }

    #[test]
    fn a_sound_range_is_accepted() {
        let span = explicit("10.1.2.10", "10.1.2.20", "255.255.255.0", "10.1.2.1").unwrap();
        assert_eq!(span.network, "10.1.2.0/24".parse().unwrap());
        explicit("10.1.2.10", "10.1.2.10", "255.255.255.0", "10.1.2.1").unwrap();
    }

    #[test]
    fn unsound_ranges_are_refused_with_the_field() {
        for (start, end, mask, gateway, field) in [
            ("10.1.2", "10.1.2.20", "255.255.255.0", "10.1.2.1", "startIp"),
            ("10.1.2.10", "fe80::1", "255.255.255.0", "10.1.2.1", "endIp"),
            ("10.1.2.10", "10.1.2.20", "0.0.0.0", "10.1.2.1", "netmask"),
            ("10.1.2.10", "10.1.2.20", "255.0.255.0", "10.1.2.1", "netmask"),
            ("10.1.2.20", "10.1.2.10", "255.255.255.0", "10.1.2.1", "endIp"),
            ("10.1.2.10", "10.1.3.20", "255.255.255.0", "10.1.2.1", "endIp"),
            ("10.1.2.10", "10.1.2.20", "255.255.255.0", "10.1.3.1", "gateway"),
            ("10.1.2.10", "10.1.2.20", "255.255.255.0", "10.1.2.15", "gateway"),
            ("224.1.2.10", "224.1.2.20", "255.255.255.0", "224.1.2.1", "startIp"),
            ("250.1.2.10", "250.1.2.20", "255.255.255.0", "250.1.2.1", "startIp"),
            ("169.254.2.10", "169.254.2.20", "255.255.255.0", "169.254.2.1", "startIp"),
            ("10.1.2.0", "10.1.2.20", "255.255.255.0", "10.1.2.21", "network"),
            ("10.1.2.10", "10.1.2.255", "255.255.255.0", "10.1.2.1", "broadcast"),
        ] {
            let error = explicit(start, end, mask, gateway).unwrap_err();
            assert_eq!(error.code.as_str(), "SYS.1007");
            assert!(error.details.contains(field), "{error}");
        }
    }

    #[test]
    fn a_cidr_gives_its_first_address_to_the_gateway_and_the_rest_to_the_range() {
        let span = Span::of_cidr("10.1.2.77/29").unwrap();
        let row = span.row("r".into(), "l3".into(), "range".into(), None);
        assert_eq!([&row.gateway, &row.start_ip, &row.end_ip], ["10.1.2.73", "10.1.2.74", "10.1.2.78"]);
        assert_eq!([&row.network_cidr, &row.netmask], ["10.1.2.72/29", "255.255.255.248"]);
        assert_eq!(Span::of_cidr("10.1.2.0/30").unwrap().last, Ipv4Addr::new(10, 1, 2, 2));
    }

    #[test]
    fn unsound_cidrs_are_refused() {
        for text in ["10.1.2.0/31", "10.1.2.0/32", "0.0.0.0/0", "10.1.2.0", "::/64", "224.0.0.0/8", "169.254.0.0/16"] {
            let error = Span::of_cidr(text).unwrap_err();
            assert_eq!(error.code.as_str(), "SYS.1007");
            assert!(error.details.contains("networkCidr"), "{error}");
        }
    }
}
