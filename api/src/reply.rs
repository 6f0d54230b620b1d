//! What a successful call answers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::resource::Resource;

/// The reply that a rule returns to the REST layer.
///
/// A rule names the resources instead of their inventories: those are read from SQL when the job is done, and so show
/// what changed while the job was applied (a reference that turned `Active`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// `{}`
    Empty,
    /// `{"inventory": <the resource of this uuid>}`
    Inventory(Resource, String),
    /// `{"inventories": [<these resources, in this order>]}`
    Inventories(Resource, Vec<String>),
    /// These members.
    Members(Map<String, Value>),
}
