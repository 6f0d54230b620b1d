//! Numbers as clients send them: `80`, `80.0`, `"80"`, `"80.0"` are all eighty; `22.5` is no whole number.

use serde_json::Value;

/// 2^63, the first float above `i64::MAX`.
const PAST_I64: f64 = 9_223_372_036_854_775_808.0;

/// The whole number that `value` stands for; `None` if it is not one, or does not fit 64 bits.
pub fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| whole_float(number.as_f64()?)),
        Value::String(text) => parse(text),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Does the same for a value of a query string.
pub fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    text.parse().ok().or_else(|| whole_float(text.parse().ok()?))
}

fn whole_float(float: f64) -> Option<i64> {
    // The bounds make the cast exact: it can neither wrap nor saturate, and a NaN fails both.
    (float.fract() == 0.0 && (-PAST_I64..PAST_I64).contains(&float)).then_some(float as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_floats_and_texts_count() {
        for value in [json!(80), json!(80.0), json!("80"), json!(" 80.0 "), json!(8e1)] {
            assert_eq!(whole(&value), Some(80), "{value}");
        }
    }

    #[test]
    fn fractions_words_and_giants_do_not() {
        for value in [
            json!(22.5),
            json!("22.5"),
            json!("eighty"),
            json!(""),
            json!("NaN"),
            json!("inf"),
            json!(1e19),
            json!(u64::MAX),
            json!(true),
            json!(null),
            json!([80]),
        ] {
            assert_eq!(whole(&value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn every_int_survives_as_number_and_text(n: i64) {
            prop_assert_eq!(whole(&json!(n)), Some(n));
            prop_assert_eq!(parse(&n.to_string()), Some(n));
        }

        #[test]
        fn every_float_of_an_i32_is_whole(n: i32) {
            prop_assert_eq!(whole(&json!(f64::from(n))), Some(i64::from(n)));
        }
    }
}
