//! The error object of the API and its codes.
//!
//! `description` is fixed by the code; `details` describes this failure: what was wrong, with which value, what to do.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $description:literal;)*) => {
        /// An error code, as clients compare it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $code)] $name,)*
        }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// The fixed text of the code.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => $description),* }
            }
        }
    };
}

codes! {
    Internal = "SYS.1000", "An internal error happened in the system";
    Timeout = "SYS.1001", "The operation timed out";
    Create = "SYS.1002", "The resource could not be created";
    NotFound = "SYS.1003", "The resource could not be found";
    Delete = "SYS.1004", "The resource could not be deleted";
    StateChange = "SYS.1005", "The state could not be changed";
    Operation = "SYS.1006", "The operation failed";
    InvalidArgument = "SYS.1007", "One or more API argument is invalid";
    Unimplemented = "SYS.1014", "The operation is not implemented";
    Http = "SYS.1015", "An HTTP error happened";
    Io = "SYS.1016", "An IO error happened";
    Authentication = "ID.1000", "The authentication failed";
    InvalidSession = "ID.1001", "The session is invalid or has expired";
    PermissionDenied = "ID.1002", "Permission denied";
    Quota = "ID.1003", "The quota is exceeded";
    IpAllocation = "L3.1000", "Unable to allocate an ip address from L3Network";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let codes = Self::ALL.iter().map(|code| format!("- `{code}`: {}", code.description()));
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(codes.collect::<Vec<_>>().join("\n")))
            .enum_values(Some(Self::ALL.iter().map(|code| code.as_str())))
            .into()
    }
}

impl ToSchema for Code {}

/// `{"code","description","details","elaboration","cause","opaque"}`; absent members are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {details}")]
#[serde(into = "Wire", from = "Wire")]
pub struct ApiError {
    pub code: Code,
    pub details: String,
    pub elaboration: Option<Box<str>>,
    #[source]
    pub cause: Option<Box<ApiError>>,
    pub opaque: Option<Box<Map<String, Value>>>,
}

/// The JSON form, which repeats the fixed text of the code.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(description = "Why a call failed.")]
struct Wire {
    code: Code,
    /// The fixed text of the code.
    #[serde(default)]
    #[schema(required, value_type = String)]
    description: Cow<'static, str>,
    /// This one failure: what was wrong, with which value, what to do.
    details: String,
    /// Advice for the person who reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    elaboration: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    cause: Option<Box<ApiError>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    opaque: Option<Box<Map<String, Value>>>,
}

impl PartialSchema for ApiError {
    fn schema() -> RefOr<Schema> {
        Wire::schema()
    }
}

impl ToSchema for ApiError {
    fn name() -> Cow<'static, str> {
        "ErrorCode".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Wire::schemas(schemas);
    }
}

impl From<ApiError> for Wire {
    fn from(error: ApiError) -> Self {
        let ApiError { code, details, elaboration, cause, opaque } = error;
        Self { code, description: code.description().into(), details, elaboration, cause, opaque }
    }
}

impl From<Wire> for ApiError {
    fn from(wire: Wire) -> Self {
        let Wire { code, description: _, details, elaboration, cause, opaque } = wire;
        Self { code, details, elaboration, cause, opaque }
    }
}

impl ApiError {
    pub fn new(code: Code, details: impl Into<String>) -> Self {
        Self { code, details: details.into(), elaboration: None, cause: None, opaque: None }
    }

    /// SYS.1000: our own fault (a full disk, a broken database), never the caller's.
    pub fn internal(details: impl Into<String>) -> Self {
        Self::new(Code::Internal, details)
    }

    /// SYS.1003 for `field`, which names a `kind` (such as `VipVO`) that does not exist.
    pub fn not_found(field: &str, uuid: &str, kind: &str) -> Self {
        Self::new(Code::NotFound, format!("invalid field[{field}], resource[uuid:{uuid}, type:{kind}] not found"))
    }

    /// SYS.1004, with the reason as its cause.
    pub fn delete(details: impl Into<String>, cause: Self) -> Self {
        Self::new(Code::Delete, details).caused_by(cause)
    }

    /// SYS.1006: the arguments are valid, but the state of the resources forbids the call.
    pub fn operation(details: impl Into<String>) -> Self {
        Self::new(Code::Operation, details)
    }

    /// SYS.1007: an argument is invalid in itself.
    pub fn invalid_argument(details: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, details)
    }

    /// SYS.1014: the API document has the call, but this router does not serve it.
    pub fn unimplemented(details: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, details)
    }

    /// ID.1000. The text is the same for an unknown account and a wrong password, so that it reveals neither.
    pub fn authentication() -> Self {
        Self::new(Code::Authentication, "wrong account name or password")
    }

    /// ID.1001. The text leaves out the session's id, which is a secret.
    pub fn invalid_session() -> Self {
        Self::new(Code::InvalidSession, "the session is unknown or has expired; log in again")
    }

    /// ID.1002.
    pub fn permission_denied(details: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, details)
    }

    /// ID.1003.
    pub fn quota(details: impl Into<String>) -> Self {
        Self::new(Code::Quota, details)
    }

    /// L3.1000: no address is free, or the wanted one is taken or outside every range.
    pub fn ip_allocation(details: impl Into<String>) -> Self {
        Self::new(Code::IpAllocation, details)
    }

    #[must_use]
    pub fn caused_by(mut self, cause: Self) -> Self {
        self.cause = Some(Box::new(cause));
        self
    }

    /// Adds advice for the person who reads the error.
    #[must_use]
    pub fn elaborate(mut self, advice: impl Into<String>) -> Self {
        self.elaboration = Some(advice.into().into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_members_are_left_out() {
        let json = serde_json::to_value(ApiError::operation("the port is taken")).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"code": "SYS.1006", "description": "The operation failed", "details": "the port is taken"})
        );
    }

    #[test]
    fn a_delete_veto_carries_its_reason_as_cause() {
        let json =
            serde_json::to_value(ApiError::delete("zone[z] stays", ApiError::operation("it has L2 networks"))).unwrap();
        assert_eq!(json["code"], "SYS.1004");
        assert_eq!(json["cause"]["code"], "SYS.1006");
    }

    #[test]
    fn every_code_reads_back() {
        for code in Code::ALL {
            let json = serde_json::to_value(code).unwrap();
            assert_eq!(json, code.as_str());
            assert_eq!(serde_json::from_value::<Code>(json).unwrap(), *code);
        }
    }
}
