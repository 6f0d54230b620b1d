//! L3 networks and their name servers.

use std::net::Ipv4Addr;

use vipgate_api::{
    ApiError, Resource,
    common::Delete,
    l3::{CreateL3Network, DnsOfL3Network},
};

use super::{
    Caller, Outcome, Result,
    resource::{self, New, found, require},
};
use crate::store::{
    Tx,
    network::{self, L3Network},
};

const TYPE: &str = "L3BasicNetwork";

pub(super) async fn create(tx: &mut Tx, caller: &Caller, request: CreateL3Network) -> Result {
    let kind = request.r#type.unwrap_or_else(|| TYPE.to_owned());
    if kind != TYPE {
        return Err(ApiError::invalid_argument(format!(
            "field[type]: no L3 network type `{kind}`; the only one is {TYPE}"
        )));
    }
    let (category, system) = category(request.category, request.system)?;
    let l2 = network::l2(tx, &request.l2_network_uuid).await?;
    let l2 = found(l2, "l2NetworkUuid", &request.l2_network_uuid, Resource::L2Network)?;
    let new =
        New { resource: Resource::L3Network, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    let network = L3Network {
        uuid,
        name: request.name,
        description: request.description,
        kind,
        zone_uuid: l2.zone_uuid,
        l2_network_uuid: l2.uuid,
        dns_domain: request.dns_domain,
        system,
        category,
    };
    network::insert_l3(tx, &network).await?;
    Ok(Outcome::inventory(Resource::L3Network, network.uuid).needing_device(l2.physical_interface))
}

/// Category and system flag; an absent one follows from the other, and both must agree.
fn category(category: Option<String>, system: Option<bool>) -> Result<(String, bool)> {
    let category = category.unwrap_or_else(|| if system == Some(true) { "System" } else { "Private" }.to_owned());
    let is_system = category == "System";
    match system {
        Some(system) if system != is_system => Err(ApiError::invalid_argument(format!(
            "field[system] {system} and field[category] {category} contradict each other: category System is of \
             system=true, Public and Private are of system=false"
        ))),
        _ => Ok((category, is_system)),
    }
}

pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    Ok(resource::delete(tx, Resource::L3Network, request).await?.changing_devices())
}

pub(super) async fn add_dns(tx: &mut Tx, request: DnsOfL3Network) -> Result {
    let DnsOfL3Network { l3_network_uuid, dns } = request;
    require(tx, "l3NetworkUuid", &l3_network_uuid, Resource::L3Network).await?;
    let dns: Ipv4Addr =
        dns.parse().map_err(|_| ApiError::invalid_argument(format!("field[dns]: `{dns}` is no IPv4 address")))?;
    if !network::insert_dns(tx, &l3_network_uuid, &dns.to_string()).await? {
        return Err(ApiError::operation(format!("L3 network[uuid:{l3_network_uuid}] has DNS {dns} already")));
    }
    Ok(Outcome::inventory(Resource::L3Network, l3_network_uuid))
}

/// Removing an unknown name server changes nothing.
pub(super) async fn remove_dns(tx: &mut Tx, request: DnsOfL3Network) -> Result {
    require(tx, "l3NetworkUuid", &request.l3_network_uuid, Resource::L3Network).await?;
    network::delete_dns(tx, &request.l3_network_uuid, &request.dns).await?;
    Ok(Outcome::inventory(Resource::L3Network, request.l3_network_uuid))
}
