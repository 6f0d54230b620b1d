//! Accounts: they own resources, up to a quota, and share them with other accounts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{
        Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, Kind, NAME, NEW_NAME, Param, Rule, UUID, delete, get,
        post, put, text,
    },
    date::Date,
    resource::Resource,
};

const ACCOUNT: Answer = Answer::Inventory(Resource::Account);

const RESOURCES: Param = Param::new("resourceUuids", Kind::TextList, Access::Owner).required().rule(Rule::NotEmpty);
const ACCOUNTS: Param = Param::new("accountUuids", Kind::TextList, Access::Visible);
const TO_PUBLIC: Param = Param::new("toPublic", Kind::Bool, Access::Free);

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateAccount,
        &[post("/accounts")],
        &[
            NAME,
            text("password", Access::Free).required().rule(Rule::MaxLength(255)),
            text("type", Access::Free).rule(Rule::OneOf(&["SystemAdmin", "Normal"])),
            DESCRIPTION,
        ],
        ACCOUNT,
    ),
    Call::action(
        Api::UpdateAccount,
        &[put("/accounts/{uuid}")],
        &["updateAccount"],
        &[UUID, text("password", Access::Free).rule(Rule::MaxLength(255)), NEW_NAME, DESCRIPTION],
        ACCOUNT,
    ),
    Call::delete(Api::DeleteAccount, &[delete("/accounts/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(Api::QueryAccount, Resource::Account, &[get("/accounts"), get("/accounts/{uuid}")]),
    Call::query(Api::QueryQuota, Resource::Quota, &[get("/accounts/quotas")]),
    Call::action(
        Api::UpdateQuota,
        &[put("/accounts/quotas/actions")],
        &["updateQuota"],
        &[
            text("identityUuid", Access::Visible).required(),
            text("name", Access::Free).required(),
            Param::new("value", Kind::Long, Access::Free).required().rule(Rule::Range(0, i64::MAX)),
        ],
        Answer::Inventory(Resource::Quota),
    ),
    Call::action(
        Api::ShareResource,
        &[put("/accounts/resources/actions")],
        &["shareResource"],
        &[RESOURCES, ACCOUNTS, TO_PUBLIC],
        Answer::Empty,
    ),
    Call::action(
        Api::RevokeResourceSharing,
        &[put("/accounts/resources/actions")],
        &["revokeResourceSharing"],
        &[RESOURCES, ACCOUNTS, TO_PUBLIC, Param::new("all", Kind::Bool, Access::Free)],
        Answer::Empty,
    ),
];

/// Holds a secret: it has no `Debug`, so that it cannot reach a log.
#[allow(missing_debug_implementations, reason = "the password must not reach a log")]
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct CreateAccount {
    pub name: String,
    /// On the wire SHA-512, 128 hexadecimal digits; the rules get the hash that is stored.
    pub password: String,
    /// `Normal` when absent.
    pub r#type: Option<String>,
    pub description: Option<String>,
}

/// An absent member stays as it is.
#[allow(missing_debug_implementations, reason = "the password must not reach a log")]
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct UpdateAccount {
    pub uuid: String,
    pub password: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateQuota {
    pub identity_uuid: String,
    pub name: String,
    pub value: i64,
}

/// The request to share resources and the one to revoke that.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sharing {
    pub resource_uuids: Vec<String>,
    #[serde(default)]
    pub account_uuids: Vec<String>,
    #[serde(default)]
    pub to_public: bool,
    /// Revokes it for all accounts.
    #[serde(default)]
    pub all: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccountInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    /// `SystemAdmin` or `Normal`.
    pub r#type: String,
    pub create_date: Date,
    pub last_op_date: Date,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaInventory {
    pub name: String,
    pub identity_uuid: String,
    pub identity_type: String,
    pub value: i64,
    pub create_date: Date,
    pub last_op_date: Date,
}
