//! A YAML document as it was written. Duplicate keys are kept, so that errors can name them, and every node can be
//! located in the text, for the line of an error.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::super::yaml;

/// The place of a node: at each level from the top, the index in its list or mapping.
pub(super) type Place = Vec<usize>;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// A text, number, boolean or null.
    Scalar(Value),
    List(Vec<Self>),
    Mapping(Vec<(String, Self)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Node;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text, a number, a list or a mapping")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        // A key such as 80 is read as text.
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Mapping(entries))
    }
}

/// The line of a node, from 1. In a mapping it is the line of the key.
pub(super) fn line(text: &str, place: &[usize]) -> Option<u64> {
    let location = if place.is_empty() {
        yaml::read::<Spanned<IgnoredAny>>(text).ok()?.referenced
    } else {
        // The walk always fails: the error holds where the parser was.
        yaml::read_with(text, Walk(place)).err()?.location()?
    };
    Some(location.line())
}

/// Goes to a place and fails there.
struct Walk<'a>(&'a [usize]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

const HERE: &str = "here";

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(HERE)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let Some((index, rest)) = self.0.split_first() else { return Err(A::Error::custom(HERE)) };
        for _ in 0..*index {
            access.next_element::<IgnoredAny>()?;
        }
        access.next_element_seed(Walk(rest)).map(|_| ())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let Some((index, rest)) = self.0.split_first() else { return Err(A::Error::custom(HERE)) };
        for _ in 0..*index {
            access.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        if rest.is_empty() {
            return access.next_key_seed(Walk(rest)).map(|_| ());
        }
        access.next_key::<IgnoredAny>()?;
        access.next_value_seed(Walk(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
zones:
  north: {l2s: {}}
  south:
    l2s:
      inside: {physicalInterface: priv0}

vms: {web1: {nics: {}}}
list:
- one
- two
";

    #[test]
    fn nodes_are_found_again_by_their_place() {
        for (place, expected) in [
            (&[][..], 2),
            (&[0], 2),
            (&[0, 0], 3),
            (&[0, 1], 4),
            (&[0, 1, 0, 0], 6),
            (&[0, 1, 0, 0, 0], 6),
            (&[1], 8),
            (&[1, 0], 8),
            (&[2, 1], 11),
        ] {
            assert_eq!(line(TEXT, place), Some(expected), "{place:?}");
        }
    }

    #[test]
    fn doubled_keys_and_numbers_as_keys_are_kept_as_they_are_written() {
        let Node::Mapping(entries) = yaml::read("{80: a, 080: b, 80: c, no: d}").unwrap() else { panic!("no mapping") };
        assert_eq!(entries.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["80", "080", "80", "no"]);
    }
}
