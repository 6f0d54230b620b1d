//! Zones: each holds the networks of one site.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, NAME, RESOURCE_UUID, UUID, delete, get, post, text},
    date::Date,
    resource::Resource,
};

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateZone,
        &[post("/zones")],
        &[NAME, DESCRIPTION, text("type", Access::Free), RESOURCE_UUID],
        Answer::Inventory(Resource::Zone),
    ),
    Call::delete(Api::DeleteZone, &[delete("/zones/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(Api::QueryZone, Resource::Zone, &[get("/zones"), get("/zones/{uuid}")]),
];

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateZone {
    pub name: String,
    pub description: Option<String>,
    /// `zstack`, the only type, when absent.
    pub r#type: Option<String>,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZoneInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub state: String,
    pub r#type: String,
    pub create_date: Date,
    pub last_op_date: Date,
}
