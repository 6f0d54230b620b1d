//! What a call answers when it succeeded.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::resource::Resource;

/// The outcome that a rule hands to the REST layer.
///
/// Calls that change a resource name it instead of printing it: the inventory is read from SQL when the job is done, so
/// that it shows what became true while the change was applied (a reference that turned `Active`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// `{}`
    Empty,
    /// `{"inventory": <the resource of this uuid>}`
    Inventory(Resource, String),
    /// `{"inventories": [<these resources, in this order>]}`
    Inventories(Resource, Vec<String>),
    /// Members as they are.
    Members(Map<String, Value>),
}
