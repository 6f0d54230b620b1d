//! L2 networks: each names an interface of the router.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{
        Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, Kind, NAME, Param, RESOURCE_UUID, Rule, UUID, delete, get,
        post, text,
    },
    date::Date,
    resource::Resource,
};

const ZONE: Param = text("zoneUuid", Access::Visible).required();
/// Linux allows 15 bytes for the name of a device.
const PHYSICAL_INTERFACE: Param = text("physicalInterface", Access::Free).required().rule(Rule::MaxLength(15));

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateL2NoVlanNetwork,
        &[post("/l2-networks/no-vlan")],
        &[NAME, DESCRIPTION, ZONE, PHYSICAL_INTERFACE, text("type", Access::Free), RESOURCE_UUID],
        Answer::Inventory(Resource::L2Network),
    ),
    Call::create(
        Api::CreateL2VlanNetwork,
        &[post("/l2-networks/vlan")],
        &[
            NAME,
            DESCRIPTION,
            ZONE,
            PHYSICAL_INTERFACE,
            Param::new("vlan", Kind::Int, Access::Free).required().rule(Rule::Range(1, 4094)),
            text("type", Access::Free),
            RESOURCE_UUID,
        ],
        Answer::Inventory(Resource::L2Network),
    ),
    Call::delete(Api::DeleteL2Network, &[delete("/l2-networks/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(Api::QueryL2Network, Resource::L2Network, &[get("/l2-networks"), get("/l2-networks/{uuid}")]),
    Call::query(
        Api::QueryL2VlanNetwork,
        Resource::L2VlanNetwork,
        &[get("/l2-networks/vlan"), get("/l2-networks/vlan/{uuid}")],
    ),
];

/// Both kinds of L2 network; `vlan` is absent for the untagged one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateL2Network {
    pub name: String,
    pub description: Option<String>,
    pub zone_uuid: String,
    pub physical_interface: String,
    pub vlan: Option<u16>,
    pub r#type: Option<String>,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct L2NetworkInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub zone_uuid: String,
    pub physical_interface: String,
    /// `L2NoVlanNetwork` or `L2VlanNetwork`.
    pub r#type: String,
    pub vlan: Option<u16>,
    pub create_date: Date,
    pub last_op_date: Date,
    pub attached_cluster_uuids: Vec<String>,
}
