//! Network services: which provider offers which service on an L3 network.

use serde_json::json;
use vipgate_api::{ApiError, Reply, Resource, network_service::NetworkServices};
use vipgate_state::Devices;

use super::{Outcome, Result, resource::require, source_nat, vip_use};
use crate::store::{Tx, service};

pub(super) async fn types(tx: &mut Tx) -> Result {
    let members = [("types".to_owned(), json!(service::types(tx).await?))];
    Ok(Outcome::new(Reply::Members(members.into_iter().collect())))
}

pub(super) async fn attach(tx: &mut Tx, devices: &dyn Devices, request: NetworkServices) -> Result {
    let NetworkServices { l3_network_uuid: l3, network_services } = request;
    require(tx, "l3NetworkUuid", &l3, Resource::L3Network).await?;
    if network_services.is_empty() {
        return Err(refuse("is empty: name a provider and its services"));
    }
    for (provider, services) in &network_services {
        let offered = service::offered_by(tx, provider).await?;
        if offered.is_empty() {
            return Err(refuse(&format!("there is no provider[uuid:{provider}] that offers services")));
        }
        if services.is_empty() {
            return Err(refuse(&format!("names no service of provider[uuid:{provider}]")));
        }
        for name in services {
            if !offered.contains(name) {
                return Err(refuse(&format!(
                    "provider[uuid:{provider}] does not offer `{name}`; it offers: {}",
                    offered.join(", ")
                )));
            }
            if let Some(other) = service::provider_of(tx, &l3, name).await? {
                return Err(ApiError::operation(format!(
                    "L3 network[uuid:{l3}] takes {name} from provider[uuid:{other}] already"
                )));
            }
            service::attach(tx, &l3, provider, name).await?;
        }
    }
    let mut outcome = Outcome::inventory(Resource::L3Network, &l3);
    if network_services.values().flatten().any(|name| name == vip_use::SNAT) {
        outcome = outcome.touching(source_nat::follow(tx, devices).await?);
        source_nat::check(tx, devices, &l3).await?;
    }
    Ok(outcome)
}

/// Services that are not attached are ignored.
pub(super) async fn detach(tx: &mut Tx, request: NetworkServices) -> Result {
    let NetworkServices { l3_network_uuid: l3, network_services } = request;
    require(tx, "l3NetworkUuid", &l3, Resource::L3Network).await?;
    for (provider, services) in &network_services {
        for name in services {
            service::detach(tx, &l3, provider, name).await?;
        }
    }
    Ok(Outcome::inventory(Resource::L3Network, l3))
}

/// The type of the provider of a service on a NIC's network.
///
/// # Errors
/// SYS.1006 if the network does not have the service.
pub(super) async fn provider_of(tx: &mut Tx, l3_network_uuid: &str, nic_uuid: &str, name: &str) -> Result<String> {
    let provider = match service::provider_of(tx, l3_network_uuid, name).await? {
        Some(provider) => service::provider_type(tx, &provider).await?,
        None => None,
    };
    provider.ok_or_else(|| {
        ApiError::operation(format!(
            "L3 network[uuid:{l3_network_uuid}] of VM NIC[uuid:{nic_uuid}] has no {name} service; attach it first"
        ))
    })
}

fn refuse(why: &str) -> ApiError {
    ApiError::invalid_argument(format!("field[networkServices]: {why}"))
}
