//! The YAML that the client reads and writes: version 1.2, in which `no` and `off` are texts. Texts that mean something else
//! in version 1.1 are written in quotes.

use std::marker::PhantomData;

use serde::{
    Serialize,
    de::{DeserializeOwned, DeserializeSeed},
};
use serde_saphyr::{
    Error, MergeKeyPolicy, Options, SerializeError, options::DuplicateKeyPolicy,
    with_deserializer_from_str_with_options,
};

/// A document whose aliases expand to more events than this is refused: a few lines could fill the memory.
const MOST_ALIASED: usize = 100_000;

fn dialect() -> Options {
    serde_saphyr::options! {
        // The visitor refuses them, with the name of what has the key twice.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        null_as_string: true,
        reject_unsupported_tags: true,
        ignore_binary_tag_for_string: true,
        with_snippet: false,
        // A router may hold any number of things.
        budget: None,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_ALIASED },
    }
}

pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    read_with(text, PhantomData)
}

pub(super) fn read_with<'de, S: DeserializeSeed<'de>>(text: &'de str, seed: S) -> Result<S::Value, Error> {
    with_deserializer_from_str_with_options(text, dialect(), |deserializer| seed.deserialize(deserializer))
}

/// The text of an error, with the line and column where it is known.
pub(super) fn described(error: &Error) -> String {
    match error {
        Error::MultipleDocuments { location, .. } => {
            format!("a second document begins at line {}: write one", location.line())
        }
        other => other.to_string(),
    }
}

pub(super) fn write<T: Serialize>(value: &T) -> Result<String, SerializeError> {
    serde_saphyr::to_string_with_options(value, serde_saphyr::ser_options! { prefer_block_scalars: false })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn texts_that_look_like_something_else_are_texts_again() {
        for text in [
            "no", "off", "080", "1_000", "0x10", "10:20", "~", "null", "true", "", " ", "<<", "1e3", ".inf", "a: b",
            "#",
        ] {
            let value = json!({ "k": text, text: [text] });
            assert_eq!(read::<Value>(&write(&value).unwrap()).unwrap(), value, "{text}");
        }
        assert_eq!(
            read::<Value>("[no, off, 080, 10:20, 80, true, ~]").unwrap(),
            json!(["no", "off", "080", "10:20", 80, true, null])
        );
    }

    #[test]
    fn what_no_file_needs_is_refused_at_its_line() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        let deep = "[".repeat(100_000);
        for (text, words) in [
            (bomb.as_str(), &["alias", "line 1"][..]),
            (&deep, &["limit", "line 1"]),
            ("a: *x", &["unknown anchor", "line 1"]),
            ("a: &a [*a]", &["line 1"]),
            ("a: b\n---\nc: d", &["second document", "line 3"]),
            ("a: b\nc: !bash x", &["!bash", "line 2"]),
            ("a: b\nc: 'd", &["quote", "line 2"]),
            ("a:\n\tb: c", &["tab", "line 2"]),
        ] {
            let error = described(&read::<Value>(text).unwrap_err());
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} are not in: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text: String, key: String) {
            let value = json!({ key: [text] });
            prop_assert_eq!(read::<Value>(&write(&value).unwrap()).unwrap(), value);
        }
    }
}
