//! Bandwidth limits of whole VIPs and of single ports. The traffic of a port with a limit of its own does not count for the
//! VIP's.
//!
//! This router carries the traffic of every VIP, so that it can limit each, unused ones and its own addresses included. A
//! limit is never changed: a caller that wants another deletes it first.

use vipgate_api::{
    ApiError, Reply, Resource,
    common::OfUuid,
    vip_qos::{DeleteVipQos, SetVipQos},
};

use super::{
    Outcome, PROVIDER, Result,
    resource::{found, require},
};
use crate::store::{
    self, Tx,
    number::{self, Numbers},
    vip_qos::{self, VipQos},
};

pub(super) async fn set(tx: &mut Tx, request: SetVipQos) -> Result {
    if let Some(other) = of_port(tx, &request.uuid, request.port).await? {
        return Err(ApiError::operation(format!(
            "{} has a bandwidth limit[uuid:{other}] already; delete it first",
            label(&request.uuid, request.port)
        )));
    }
    if request.inbound_bandwidth.is_none() && request.outbound_bandwidth.is_none() {
        return Err(ApiError::invalid_argument(
            "field[inboundBandwidth] and field[outboundBandwidth] are both missing: give one or both",
        ));
    }
    let row = VipQos {
        uuid: store::new_uuid(),
        vip_uuid: request.uuid,
        port: request.port,
        inbound_bandwidth: request.inbound_bandwidth,
        outbound_bandwidth: request.outbound_bandwidth,
        kind: PROVIDER.to_owned(),
        number: number::next(tx, Numbers::Limit).await?,
    };
    vip_qos::insert(tx, &row).await?;
    Ok(Outcome::inventory(Resource::VipQos, row.uuid).touching([row.vip_uuid]))
}

pub(super) async fn get(tx: &mut Tx, request: OfUuid) -> Result {
    require(tx, "uuid", &request.uuid, Resource::Vip).await?;
    Ok(Outcome::new(Reply::Inventories(Resource::VipQos, vip_qos::on_vip(tx, &request.uuid).await?)))
}

pub(super) async fn delete(tx: &mut Tx, request: DeleteVipQos) -> Result {
    let Some(uuid) = of_port(tx, &request.uuid, request.port).await? else {
        return Err(ApiError::operation(format!(
            "{} has no bandwidth limit; GetVipQos lists those that there are",
            label(&request.uuid, request.port)
        )));
    };
    vip_qos::delete(tx, &uuid).await?;
    Ok(Outcome::empty().touching([request.uuid]))
}

/// The uuid of the limit of a port, or of the whole VIP (`None`), if there is one.
async fn of_port(tx: &mut Tx, vip_uuid: &str, port: Option<u16>) -> Result<Option<String>> {
    found(vip_qos::of_port(tx, vip_uuid, port).await?, "uuid", vip_uuid, Resource::Vip)
}

/// Its name in errors.
fn label(vip_uuid: &str, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("port[{port}] of VIP[uuid:{vip_uuid}]"),
        None => format!("VIP[uuid:{vip_uuid}] as a whole"),
    }
}
