//! L2 networks: each names a device of the router.

use vipgate_api::{ApiError, Resource, common::Delete, l2::CreateL2Network};
use vipgate_state::Devices;

use super::{
    Caller, Outcome, Result,
    resource::{self, New},
};
use crate::store::{
    Tx,
    network::{self, L2Network},
};

const NO_VLAN: &str = "L2NoVlanNetwork";
const VLAN: &str = "L2VlanNetwork";

pub(super) async fn create_no_vlan(
    tx: &mut Tx,
    caller: &Caller,
    devices: &dyn Devices,
    request: CreateL2Network,
) -> Result {
    check(tx, devices, &request, NO_VLAN).await?;
    let new =
        New { resource: Resource::L2Network, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    let network = L2Network {
        uuid,
        name: request.name,
        description: request.description,
        zone_uuid: request.zone_uuid,
        physical_interface: request.physical_interface,
        kind: NO_VLAN.to_owned(),
        vlan: None,
    };
    network::insert_l2(tx, &network).await?;
    Ok(Outcome::inventory(Resource::L2Network, network.uuid))
}

/// Always an error: about the request if it is invalid, otherwise that the router creates no VLAN devices, with the
/// workaround.
pub(super) async fn create_vlan(tx: &mut Tx, devices: &dyn Devices, request: CreateL2Network) -> Result {
    check(tx, devices, &request, VLAN).await?;
    let device = request.physical_interface;
    let vlan = request.vlan.unwrap_or_default();
    Err(ApiError::unimplemented(format!(
        "an {VLAN} is not served yet: make the VLAN device on the router (ip link add link {device} name {device}.{vlan} \
         type vlan id {vlan}) and create an {NO_VLAN} with physicalInterface {device}.{vlan}"
    )))
}

async fn check(tx: &mut Tx, devices: &dyn Devices, request: &CreateL2Network, kind: &str) -> Result<()> {
    if let Some(other) = request.r#type.as_deref().filter(|other| *other != kind) {
        return Err(ApiError::invalid_argument(format!("field[type]: it is `{other}`, at this URL it is {kind}")));
    }
    resource::require(tx, "zoneUuid", &request.zone_uuid, Resource::Zone).await?;
    let device = &request.physical_interface;
    let names = devices.list();
    if !names.contains(device) {
        return Err(ApiError::invalid_argument(format!(
            "field[physicalInterface]: the router has no device `{device}`; it has: {}",
            names.join(", ")
        )));
    }
    Ok(())
}

pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    Ok(resource::delete(tx, Resource::L2Network, request).await?.changing_devices())
}
