//! Load balancers: each groups listeners of a VIP.

use vipgate_api::{
    ApiError, Resource,
    common::{Delete, OfUuid, Update},
    load_balancer::CreateLoadBalancer,
};

use super::{
    Caller, Outcome, Result,
    resource::{self, New, found},
    vip, vip_use,
};
use crate::store::{
    Tx,
    lb::{self, LoadBalancer},
};

/// The real system's tag that requests a separate router VM for the load balancer.
const OWN_ROUTER: &str = "separateVirtualRouterVm";

pub(super) async fn create(tx: &mut Tx, caller: &Caller, request: CreateLoadBalancer) -> Result {
    let vip = vip::get(tx, "vipUuid", &request.vip_uuid).await?;
    if request.system_tags.iter().any(|tag| tag == OWN_ROUTER) {
        return Err(ApiError::unimplemented(format!("tag[{OWN_ROUTER}]: every load balancer runs on this router")));
    }
    vip::use_for(tx, &vip, vip_use::LOAD_BALANCER, "a load balancer").await?;
    let new =
        New { resource: Resource::LoadBalancer, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    let row = LoadBalancer {
        uuid,
        name: request.name,
        description: request.description,
        vip_uuid: request.vip_uuid,
        provider_type: None,
    };
    lb::insert(tx, &row).await?;
    Ok(Outcome::inventory(Resource::LoadBalancer, row.uuid))
}

pub(super) async fn update(tx: &mut Tx, request: Update) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.name = request.name.unwrap_or(row.name);
    row.description = request.description.or(row.description);
    lb::update(tx, &row).await?;
    Ok(Outcome::inventory(Resource::LoadBalancer, row.uuid))
}

/// Deletes its listeners, too. A VIP without another load balancer is no longer used for load balancing.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    resource::delete(tx, Resource::LoadBalancer, request).await
}

/// Changes nothing in the store: the state of its VIP is applied to the kernel again.
pub(super) async fn refresh(tx: &mut Tx, request: OfUuid) -> Result {
    let row = get(tx, "uuid", &request.uuid).await?;
    Ok(Outcome::inventory(Resource::LoadBalancer, row.uuid).touching([row.vip_uuid]))
}

pub(super) async fn get(tx: &mut Tx, field: &str, uuid: &str) -> Result<LoadBalancer> {
    found(lb::get(tx, uuid).await?, field, uuid, Resource::LoadBalancer)
}
