//! Dates as the API writes them: `Jun 7, 2017 9:20:10 PM`, in UTC.
//!
//! Clients parse exactly this form (US English, an ordinary space before AM/PM) or ISO-8601 `2017-06-07T21:20:10Z`, so
//! both are read and the first is written. SQL holds milliseconds since the epoch.

use std::{borrow::Cow, fmt, str::FromStr};

use chrono::{DateTime, NaiveDateTime, SubsecRound, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

const US: &str = "%b %-d, %Y %-I:%M:%S %p";
/// The formats that are read; in the last three, a fraction of a second may follow the seconds.
const READ: [&str; 4] =
    ["%b %d, %Y %I:%M:%S %p", "%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];

/// A point in time, to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date(DateTime<Utc>);

impl Date {
    pub fn now() -> Self {
        Utc::now().into()
    }

    /// `None` if the year cannot be written.
    pub fn from_millis(millis: i64) -> Option<Self> {
        DateTime::from_timestamp_millis(millis).map(Self::from)
    }

    /// Milliseconds since the epoch.
    pub fn millis(self) -> i64 {
        self.0.timestamp_millis()
    }
}

impl From<DateTime<Utc>> for Date {
    fn from(moment: DateTime<Utc>) -> Self {
        Self(moment.trunc_subsecs(0))
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.format(US).fmt(f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no date: write `Jun 7, 2017 9:20:10 PM` or `2017-06-07T21:20:10Z`")]
pub struct BadDate(String);

impl FromStr for Date {
    type Err = BadDate;

    fn from_str(text: &str) -> Result<Self, BadDate> {
        READ.iter()
            .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
            .map(|moment| moment.and_utc().into())
            .ok_or_else(|| BadDate(text.to_owned()))
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl PartialSchema for Date {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("US English, UTC: `MMM d, yyyy h:mm:ss a`."))
            .pattern(Some("^(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [1-9][0-9]?, [0-9]{4,} [1-9][0-2]?(:[0-5][0-9]){2} [AP]M$"))
            .examples(["Jun 7, 2017 9:20:10 PM"])
            .into()
    }
}

impl ToSchema for Date {
    fn name() -> Cow<'static, str> {
        "Date".into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_as_java_8_writes_it() {
        let evening: Date = "2017-06-07T21:20:10Z".parse().unwrap();
        assert_eq!(evening.to_string(), "Jun 7, 2017 9:20:10 PM");
        let midnight: Date = "2017-11-14 00:00:05.9".parse().unwrap();
        assert_eq!(midnight.to_string(), "Nov 14, 2017 12:00:05 AM");
    }

    #[test]
    fn what_is_no_date_is_named() {
        let error = "yesterday".parse::<Date>().unwrap_err();
        assert!(error.to_string().contains("`yesterday`"), "{error}");
    }

    proptest! {
        #[test]
        fn every_date_reads_back(seconds in -2_000_000_000_i64..4_000_000_000) {
            let date = Date::from_millis(seconds * 1000).unwrap();
            prop_assert_eq!(date.to_string().parse::<Date>().unwrap(), date);
        }
    }
}
