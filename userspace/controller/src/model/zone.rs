//! Zones.

use vipgate_api::{ApiError, Resource, common::Delete, zone::CreateZone};

use super::{
    Caller, Outcome, Result,
    resource::{self, New},
};
use crate::store::{
    Tx,
    network::{self, Zone},
};

const TYPE: &str = "zstack";

pub(super) async fn create(tx: &mut Tx, caller: &Caller, request: CreateZone) -> Result {
    let kind = request.r#type.unwrap_or_else(|| TYPE.to_owned());
    if kind != TYPE {
        return Err(ApiError::invalid_argument(format!("field[type]: no zone type `{kind}`; the only one is {TYPE}")));
    }
    let new = New { resource: Resource::Zone, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    let zone = Zone { uuid, name: request.name, description: request.description, kind };
    network::insert_zone(tx, &zone).await?;
    Ok(Outcome::inventory(Resource::Zone, zone.uuid))
}

pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    Ok(resource::delete(tx, Resource::Zone, request).await?.changing_devices())
}
