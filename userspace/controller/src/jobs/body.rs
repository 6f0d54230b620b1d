//! The bodies of replies, as jobs keep them and synchronous calls send them.

use serde_json::{Map, Value};
use vipgate_api::{ApiError, Reply, json, resource};

/// The body of a call that succeeded.
pub fn success(mut members: Map<String, Value>, reply: &Reply, with_schema: bool) -> String {
    if with_schema {
        let kind = match reply {
            Reply::Inventory(kind, _) | Reply::Inventories(kind, _) => Some(*kind),
            Reply::Empty | Reply::Members(_) => None,
        };
        let schema = resource::schema(&members, kind);
        members.insert("schema".to_owned(), schema.into());
    }
    json::encode(&members)
}

/// The body of a call that failed.
pub fn failure(error: &ApiError, with_schema: bool) -> String {
    // An error has string keys only, so that it always has a JSON form.
    let mut error = serde_json::to_value(error).unwrap_or_default();
    shorten(&mut error);
    let mut members = Map::from_iter([("error".to_owned(), error)]);
    if with_schema {
        let schema = resource::schema(&members, None);
        members.insert("schema".to_owned(), schema.into());
    }
    json::encode(&members)
}

/// The longest text in an error, in characters: errors repeat what a caller sent, and are stored.
const MAX_TEXT: usize = 4096;

/// Removes the middle of long texts.
fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.chars().nth(MAX_TEXT).is_some() => {
            let kept = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(index, _)| index);
            let (head, tail) = (kept(MAX_TEXT / 2), kept(text.chars().count() - MAX_TEXT / 4));
            *text = format!("{} ... {}", &text[..head], &text[tail..]);
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(members) => members.values_mut().for_each(shorten),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
