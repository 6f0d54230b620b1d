//! What elastic IPs and port-forwarding rules share: whether one may be attached to a NIC, and whether its VIP can reach
//! the NIC.

use vipgate_api::ApiError;

use super::{ENABLED, Result, network_service};
use crate::store::{Tx, network, vip::Vip, vm::VmNic};

/// SYS.1006 if it is attached already, or not enabled. `what` names it in errors, here and below.
pub(super) fn require_attachable(what: &str, vm_nic_uuid: Option<&str>, state: &str) -> Result<()> {
    match vm_nic_uuid {
        Some(other) => {
            Err(ApiError::operation(format!("{what} is attached to VM NIC[uuid:{other}] already; detach it first")))
        }
        None => require_enabled(what, state),
    }
}

pub(super) fn require_enabled(what: &str, state: &str) -> Result<()> {
    if state == ENABLED {
        return Ok(());
    }
    Err(ApiError::operation(format!("{what} is {state}; enable it before it is attached")))
}

/// SYS.1006 if it is not attached.
pub(super) fn require_attached(what: &str, vm_nic_uuid: Option<&str>) -> Result<()> {
    match vm_nic_uuid {
        Some(_) => Ok(()),
        None => Err(ApiError::operation(format!("{what} is attached to no VM NIC"))),
    }
}

/// The type of the provider whose service connects the VIP with the NIC.
///
/// # Errors
/// SYS.1007 if the NIC is on the VIP's own network, SYS.1006 if its network lacks the service or is in another zone.
pub(super) async fn provider_between(tx: &mut Tx, vip: &Vip, nic: &VmNic, service: &str) -> Result<String> {
    if nic.l3_network_uuid == vip.l3_network_uuid {
        return Err(ApiError::invalid_argument(format!(
            "field[vmNicUuid]: VM NIC[uuid:{}] is on the L3 network of VIP[uuid:{}] itself; take one of another",
            nic.uuid, vip.uuid
        )));
    }
    let provider = network_service::provider_of(tx, &nic.l3_network_uuid, &nic.uuid, service).await?;
    if zone_of(tx, &nic.l3_network_uuid).await? != zone_of(tx, &vip.l3_network_uuid).await? {
        return Err(ApiError::operation(format!(
            "VM NIC[uuid:{}] is in another zone than VIP[uuid:{}], which can't reach it",
            nic.uuid, vip.uuid
        )));
    }
    Ok(provider)
}

async fn zone_of(tx: &mut Tx, l3_network_uuid: &str) -> Result<Option<String>> {
    Ok(network::l3(tx, l3_network_uuid).await?.map(|network| network.zone_uuid))
}
