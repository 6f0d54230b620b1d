//! JSON as the documented system writes it, with Gson's defaults: members without a value are left out, and characters
//! with a meaning in HTML are escaped.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The text of an object, ready for the wire.
pub fn encode(members: &Map<String, Value>) -> String {
    let plain = Value::Object(without_nulls(members)).to_string();
    let mut escaped = String::with_capacity(plain.len() + plain.len() / 16);
    for letter in plain.chars() {
        // In JSON these occur only inside strings.
        if matches!(letter, '<' | '>' | '&' | '=' | '\'' | '\u{2028}' | '\u{2029}') {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "\\u{:04x}", u32::from(letter));
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

fn without_nulls(members: &Map<String, Value>) -> Map<String, Value> {
    let present = members.iter().filter(|(_, value)| !value.is_null());
    present.map(|(name, value)| (name.clone(), inside(value))).collect()
}

fn inside(value: &Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(without_nulls(members)),
        Value::Array(items) => items.iter().map(inside).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn html_characters_are_escaped_and_nulls_left_out() {
        let value = json!({"a": "<b>&'=\"\u{2028}", "n": null, "l": [{"n": null, "x": 1}]});
        assert_eq!(
            encode(value.as_object().unwrap()),
            r#"{"a":"\u003cb\u003e\u0026\u0027\u003d\"\u2028","l":[{"x":1}]}"#
        );
    }

    proptest! {
        #[test]
        fn any_text_reads_back(text: String, name: String) {
            let value = json!({name: text});
            prop_assert_eq!(serde_json::from_str::<Value>(&encode(value.as_object().unwrap())).unwrap(), value);
        }
    }
}
