//! Bandwidth limits of a VIP: of the whole VIP, or of one of its ports.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{Access, Answer, Api, Call, Kind, Param, READ_UUID, Rule, UUID, delete, get, put},
    date::Date,
    resource::Resource,
};

/// If absent, the limits are those of the whole VIP, but for ports with limits of their own.
const PORT: Param = Param::new("port", Kind::Int, Access::Free).rule(Rule::Range(1, 65535));

/// In bits per second. The real system's minimum is one less than 2^20, which it calls a megabit.
const fn bandwidth(name: &'static str) -> Param {
    Param::new(name, Kind::Long, Access::Free).rule(Rule::Range((1 << 20) - 1, i64::MAX))
}

pub(crate) const CALLS: &[Call] = &[
    Call::action(
        Api::SetVipQos,
        &[put("/vips/{uuid}/actions")],
        &["setVipQos"],
        &[UUID, PORT, bandwidth("outboundBandwidth"), bandwidth("inboundBandwidth")],
        Answer::Inventory(Resource::VipQos),
    ),
    // The document spells these two paths differently; the router accepts both spellings of each.
    Call::read(Api::GetVipQos, &[get("/vip/{uuid}/vip-qos")], &[READ_UUID], Answer::Inventories(Resource::VipQos)),
    Call::delete(Api::DeleteVipQos, &[delete("/vips/{uuid}/vip-qos")], &[UUID, PORT], Answer::Empty),
];

/// At least one of the two bandwidths must be given.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetVipQos {
    /// Of the VIP.
    pub uuid: String,
    pub port: Option<u16>,
    /// From the guests, in bits per second.
    pub outbound_bandwidth: Option<i64>,
    /// Towards the guests, in bits per second.
    pub inbound_bandwidth: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DeleteVipQos {
    /// Of the VIP.
    pub uuid: String,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VipQosInventory {
    pub uuid: String,
    pub vip_uuid: String,
    /// Absent: of the whole VIP, but for ports with limits of their own.
    pub port: Option<u16>,
    /// Towards the guests, in bits per second; absent: not limited.
    pub inbound_bandwidth: Option<i64>,
    /// The same from the guests.
    pub outbound_bandwidth: Option<i64>,
    /// Type of the provider that keeps the limit.
    pub r#type: String,
    pub create_date: Date,
    pub last_op_date: Date,
}
