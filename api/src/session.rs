//! Sessions: log in, log out, ask whether a session is valid, renew it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{Access, Answer, Api, Call, Kind, Param, Rule, delete, get, in_path, put, text},
    date::Date,
    resource::Resource,
};

pub(crate) const CALLS: &[Call] = &[
    Call::action(
        Api::LogInByAccount,
        &[put("/accounts/login")],
        &["logInByAccount", "loginByAccount"],
        &[text("accountName", Access::Free).required(), text("password", Access::Free).required()],
        Answer::Inventory(Resource::Session),
    )
    .sync()
    .without_session(),
    Call::delete(
        Api::LogOut,
        &[delete("/accounts/sessions/{sessionUuid}")],
        &[in_path("sessionUuid", Access::Free)],
        Answer::Empty,
    )
    .sync()
    .without_session(),
    Call::read(
        Api::ValidateSession,
        &[get("/accounts/sessions/{sessionUuid}/valid")],
        &[in_path("sessionUuid", Access::Free)],
        Answer::Members(&[Param::new("valid", Kind::Bool, Access::Free).required()]),
    )
    .without_session(),
    Call::action(
        Api::RenewSession,
        &[put("/accounts/sessions/{sessionUuid}/renew")],
        &["renewSession"],
        &[
            in_path("sessionUuid", Access::Free),
            Param::new("duration", Kind::Long, Access::Free).rule(Rule::Range(60, 31_536_000)),
        ],
        Answer::Inventory(Resource::Session),
    )
    .sync(),
];

/// Holds a secret: it has no `Debug`, so that it cannot reach a log.
#[allow(missing_debug_implementations, reason = "the password must not reach a log")]
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogInByAccount {
    pub account_name: String,
    /// SHA-512 of the password, 128 hexadecimal digits.
    pub password: String,
}

/// The request to log out and the one to validate a session. The uuid is a secret, too.
#[allow(missing_debug_implementations, reason = "the session must not reach a log")]
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionUuid {
    pub session_uuid: String,
}

/// The uuid is a secret, too.
#[allow(missing_debug_implementations, reason = "the session must not reach a log")]
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewSession {
    pub session_uuid: String,
    /// Seconds from now; the duration of a new session if absent.
    pub duration: Option<u64>,
}

/// Its `uuid` is what `Authorization: OAuth` carries.
#[allow(missing_debug_implementations, reason = "the session must not reach a log")]
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionInventory {
    pub uuid: String,
    pub account_uuid: String,
    pub user_uuid: String,
    pub expired_date: Date,
    pub create_date: Date,
}
