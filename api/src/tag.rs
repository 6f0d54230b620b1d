//! System tags (settings that are not fields) and user tags.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{Access, Answer, Api, Call, DELETE_MODE, Param, Rule, UUID, delete, get, post, put, text},
    date::Date,
    resource::Resource,
};

const TAG: Param = text("tag", Access::Free).required().rule(Rule::MaxLength(2048));

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateSystemTag,
        &[post("/system-tags")],
        &[text("resourceType", Access::Free).required(), text("resourceUuid", Access::Owner).required(), TAG],
        Answer::Inventory(Resource::SystemTag),
    ),
    Call::action(
        Api::UpdateSystemTag,
        &[put("/system-tags/{uuid}/actions")],
        &["updateSystemTag"],
        &[UUID, TAG],
        Answer::Inventory(Resource::SystemTag),
    ),
    Call::create(
        Api::CreateUserTag,
        &[post("/user-tags")],
        &[text("resourceType", Access::Free).required(), text("resourceUuid", Access::Owner).required(), TAG],
        Answer::Inventory(Resource::UserTag),
    ),
    Call::delete(Api::DeleteTag, &[delete("/tags/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(Api::QuerySystemTag, Resource::SystemTag, &[get("/system-tags"), get("/system-tags/{uuid}")]),
    Call::query(Api::QueryUserTag, Resource::UserTag, &[get("/user-tags"), get("/user-tags/{uuid}")]),
];

/// The request for a system tag and the one for a user tag. `resource_uuid` is the tagged resource.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateTag {
    pub resource_type: String,
    pub resource_uuid: String,
    pub tag: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct UpdateSystemTag {
    pub uuid: String,
    pub tag: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SystemTagInventory {
    pub uuid: String,
    pub resource_uuid: String,
    pub resource_type: String,
    pub tag: String,
    /// `System`.
    pub r#type: String,
    /// Set by the system itself.
    pub inherent: bool,
    pub create_date: Date,
    pub last_op_date: Date,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserTagInventory {
    pub uuid: String,
    pub resource_uuid: String,
    pub resource_type: String,
    pub tag: String,
    /// `User`.
    pub r#type: String,
    pub create_date: Date,
    pub last_op_date: Date,
}
