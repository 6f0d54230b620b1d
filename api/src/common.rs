//! Requests that many resources share.

use serde::Deserialize;

/// Of a call that names a resource and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct OfUuid {
    pub uuid: String,
}

/// Of every delete.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delete {
    pub uuid: String,
    #[serde(default)]
    pub delete_mode: DeleteMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum DeleteMode {
    /// What still uses the resource may veto.
    #[default]
    Permissive,
    /// No veto counts.
    Enforcing,
}

/// Of every update of name and description; what is absent stays.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Update {
    pub uuid: String,
    pub name: Option<String>,
    pub description: Option<String>,
}

/// Of every change of state.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeState {
    pub uuid: String,
    pub state_event: StateEvent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StateEvent {
    Enable,
    Disable,
}
