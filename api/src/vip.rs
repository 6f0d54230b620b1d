//! Virtual IPs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{
        Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, NAME, NEW_NAME, READ_UUID, RESOURCE_UUID, Rule,
        STATE_EVENT, UUID, delete, get, post, put, text,
    },
    date::Date,
    resource::Resource,
};

const VIP: Answer = Answer::Inventory(Resource::Vip);

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateVip,
        &[post("/vips")],
        &[
            NAME,
            DESCRIPTION,
            text("l3NetworkUuid", Access::Visible).required(),
            text("allocatorStrategy", Access::Free),
            text("requiredIp", Access::Free),
            RESOURCE_UUID,
        ],
        VIP,
    ),
    Call::delete(Api::DeleteVip, &[delete("/vips/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(Api::QueryVip, Resource::Vip, &[get("/vips"), get("/vips/{uuid}")]),
    Call::action(Api::UpdateVip, &[put("/vips/{uuid}/actions")], &["updateVip"], &[UUID, NEW_NAME, DESCRIPTION], VIP),
    Call::action(Api::ChangeVipState, &[put("/vips/{uuid}/actions")], &["changeVipState"], &[UUID, STATE_EVENT], VIP),
    Call::read(
        Api::GetVipUsedPorts,
        &[get("/vips/{uuid}/usedports")],
        &[READ_UUID, text("protocol", Access::Free).required().rule(Rule::OneOfAnyCase(&["TCP", "UDP"]))],
        Answer::Inventories(Resource::VipUsedPorts),
    ),
];

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVip {
    pub name: String,
    pub description: Option<String>,
    pub l3_network_uuid: String,
    /// `RandomIpAllocatorStrategy` when absent.
    pub allocator_strategy: Option<String>,
    /// Dotted quad.
    pub required_ip: Option<String>,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct GetVipUsedPorts {
    pub uuid: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VipInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub l3_network_uuid: String,
    pub ip: String,
    /// `Enabled` or `Disabled`.
    pub state: String,
    pub gateway: String,
    pub netmask: String,
    pub service_provider: Option<String>,
    /// The list's name in the document ...
    pub peer_l3_network_uuid: Vec<String>,
    /// ... and the name that clients know.
    pub peer_l3_network_uuids: Vec<String>,
    /// Comma-separated services; absent: unused.
    pub use_for: Option<String>,
    pub ip_range_uuid: Option<String>,
    pub used_ip_uuid: Option<String>,
    pub create_date: Date,
    pub last_op_date: Date,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VipUsedPortsInventory {
    pub uuid: String,
    pub protocol: String,
    /// Every single port, in ascending order.
    pub used_ports: Vec<String>,
}
