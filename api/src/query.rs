//! The grammar of the query API: `q=name~=web%&q=state!=Enabled&sort=-createDate&limit=50&replyWithCount=true`.
//!
//! Turns text into structure and knows no fields: the code that makes the SQL does. A refusal is a plain 400.

use crate::{
    number,
    request::{BadRequest, Pairs, list, one},
};

/// The number of records in a reply if `limit` is absent.
pub const DEFAULT_LIMIT: u64 = 1000;

/// More conditions, or more values in one list, are refused: SQLite limits how deep SQL is nested and how many values
/// are bound.
pub const MAX_CONDITIONS: usize = 256;
pub const MAX_VALUES: usize = 10_000;

/// A parsed query. A record must meet all conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub conditions: Vec<Condition>,
    pub start: u64,
    pub limit: u64,
    /// The reply holds only `total`.
    pub count: bool,
    /// The reply holds `total` besides its inventories.
    pub reply_with_count: bool,
    /// Only the first of the records that have the same value in this field.
    pub group_by: Option<String>,
    pub sort: Option<Sort>,
    /// Every field if empty.
    pub fields: Vec<String>,
}

impl Query {
    /// The query of `GET /x/{uuid}`.
    pub fn by_uuid(uuid: impl Into<String>) -> Self {
        let uuid = Condition { name: "uuid".into(), test: Test::Equal(uuid.into()) };
        Self {
            conditions: vec![uuid],
            start: 0,
            limit: DEFAULT_LIMIT,
            count: false,
            reply_with_count: false,
            group_by: None,
            sort: None,
            fields: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// A field, or the fields on the way to one of a related resource, joined by dots.
    pub name: String,
    pub test: Test,
}

/// The test of a condition. Values are texts: their types are not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    Equal(String),
    NotEqual(String),
    Greater(String),
    GreaterOrEqual(String),
    Less(String),
    LessOrEqual(String),
    In(Vec<String>),
    NotIn(Vec<String>),
    /// A pattern with `%` and `_`.
    Like(String),
    NotLike(String),
    IsNull,
    NotNull,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sort {
    pub field: String,
    pub descending: bool,
}

type Make = fn(&str) -> Test;

fn split(values: &str) -> Vec<String> {
    values.split(',').map(str::to_owned).collect()
}

/// The operators that are words.
const WORDS: [&str; 2] = ["is null", "not null"];

/// The operators in the order in which they are tried. As in the documented system, the first that occurs anywhere in
/// the condition wins, even inside the value.
const OPERATORS: [(&str, Make); 12] = [
    ("!=", |value| if value == "null" { Test::NotNull } else { Test::NotEqual(value.into()) }),
    (">=", |value| Test::GreaterOrEqual(value.into())),
    ("<=", |value| Test::LessOrEqual(value.into())),
    ("!?=", |values| Test::NotIn(split(values))),
    ("!~=", |pattern| Test::NotLike(pattern.into())),
    ("~=", |pattern| Test::Like(pattern.into())),
    ("?=", |values| Test::In(split(values))),
    ("=", |value| if value == "null" { Test::IsNull } else { Test::Equal(value.into()) }),
    (">", |value| Test::Greater(value.into())),
    ("<", |value| Test::Less(value.into())),
    ("is null", |_| Test::IsNull),
    ("not null", |_| Test::NotNull),
];

/// Reads the query string of a query call and ignores unknown parameters.
pub fn parse(pairs: &Pairs) -> Result<Query, BadRequest> {
    let mut conditions = list(pairs, "q");
    // The document's older examples say `condition`.
    conditions.extend(list(pairs, "condition"));
    if conditions.len() > MAX_CONDITIONS {
        return Err(BadRequest(format!("{} conditions are more than {MAX_CONDITIONS}", conditions.len())));
    }
    Ok(Query {
        conditions: conditions.into_iter().map(condition).collect::<Result<_, _>>()?,
        start: natural(pairs, "start")?.unwrap_or(0),
        limit: natural(pairs, "limit")?.unwrap_or(DEFAULT_LIMIT),
        count: truth(pairs, "count")?,
        reply_with_count: truth(pairs, "replyWithCount")?,
        group_by: one(pairs, "groupBy")?.map(str::to_owned),
        sort: one(pairs, "sort")?.and_then(sort),
        fields: fields(pairs),
    })
}

fn condition(text: &str) -> Result<Condition, BadRequest> {
    let (operator, name, value, make) = OPERATORS
        .iter()
        .find_map(|(operator, make)| text.split_once(operator).map(|(name, value)| (*operator, name, value, make)))
        .ok_or_else(|| BadRequest(format!("condition `{text}` has no operator; the operators are {}", operators())))?;
    let bare = name.trim();
    if bare.is_empty() {
        return Err(BadRequest(format!("condition `{text}` has no field before its operator")));
    }
    let test = make(value);
    // Words need a space before them; signs must have none around them.
    if !WORDS.contains(&operator) && (name.ends_with(' ') || value.starts_with(' ')) {
        return Err(BadRequest(format!(
            "condition `{text}` has a space beside its operator; write `{bare}{operator}{}`",
            value.trim_start()
        )));
    }
    let name = bare;
    if let Test::In(values) | Test::NotIn(values) = &test
        && values.len() > MAX_VALUES
    {
        return Err(BadRequest(format!("the list of `{name}` has {} values, more than {MAX_VALUES}", values.len())));
    }
    Ok(Condition { name: name.to_owned(), test })
}

fn operators() -> String {
    OPERATORS.map(|(operator, _)| format!("`{operator}`")).join(" ")
}

fn natural(pairs: &Pairs, name: &str) -> Result<Option<u64>, BadRequest> {
    one(pairs, name)?
        .map(|text| {
            number::parse(text)
                .and_then(|number| u64::try_from(number).ok())
                .ok_or_else(|| BadRequest(format!("parameter `{name}` must be a whole number from 0, it is `{text}`")))
        })
        .transpose()
}

fn truth(pairs: &Pairs, name: &str) -> Result<bool, BadRequest> {
    match one(pairs, name)?.map(str::trim) {
        None | Some("") => Ok(false),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(text) => Err(BadRequest(format!("parameter `{name}` must be true or false, it is `{text}`"))),
    }
}

/// `+field`, `-field` or `field`; a bare `+` in a URL arrives as a space.
fn sort(text: &str) -> Option<Sort> {
    let text = text.trim();
    let (field, descending) = match text.strip_prefix('-') {
        Some(field) => (field, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    let field = field.trim();
    (!field.is_empty()).then(|| Sort { field: field.to_owned(), descending })
}

fn fields(pairs: &Pairs) -> Vec<String> {
    let given = list(pairs, "fields");
    let names = given.iter().flat_map(|names| names.split(',')).map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Result<Query, BadRequest> {
        parse(&pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect::<Vec<_>>())
    }

    fn test_of(text: &str) -> (String, Test) {
        let condition = condition(text).unwrap();
        (condition.name, condition.test)
    }

    #[test]
    fn every_operator_is_read() {
        let cases = [
            ("a=1", Test::Equal("1".into())),
            ("a!=1", Test::NotEqual("1".into())),
            ("a>1", Test::Greater("1".into())),
            ("a>=1", Test::GreaterOrEqual("1".into())),
            ("a<1", Test::Less("1".into())),
            ("a<=1", Test::LessOrEqual("1".into())),
            ("a?=1,2", Test::In(vec!["1".into(), "2".into()])),
            ("a!?=1,2", Test::NotIn(vec!["1".into(), "2".into()])),
            ("a~=w%", Test::Like("w%".into())),
            ("a!~=w_", Test::NotLike("w_".into())),
            ("a is null", Test::IsNull),
            ("a not null", Test::NotNull),
            ("a=null", Test::IsNull),
            ("a!=null", Test::NotNull),
        ];
        for (text, test) in cases {
            assert_eq!(test_of(text), ("a".to_owned(), test), "{text}");
        }
    }

    #[test]
    fn names_are_trimmed_and_values_are_not() {
        assert_eq!(test_of(" name=we b "), ("name".into(), Test::Equal("we b ".into())));
        assert_eq!(test_of(" name is null"), ("name".into(), Test::IsNull));
    }

    #[test]
    fn a_space_beside_an_operator_is_refused() {
        for text in ["name =web", "name= web", "name = web", "name ?=a,b", "name!~= %"] {
            let error = condition(text).unwrap_err().0;
            assert!(error.contains("space") && error.contains("write `name"), "{error}");
        }
    }

    #[test]
    fn the_first_operator_of_the_list_wins_even_inside_the_value() {
        assert_eq!(test_of("name=a!=b"), ("name=a".into(), Test::NotEqual("b".into())));
    }

    #[test]
    fn a_condition_needs_an_operator_and_a_field() {
        assert!(query(&[("q", "name")]).unwrap_err().0.contains("no operator"));
        assert!(query(&[("q", "=x")]).unwrap_err().0.contains("no field"));
    }

    #[test]
    fn too_many_conditions_or_values_are_refused() {
        let many = |count| query(&vec![("q", "a=1"); count]);
        assert!(many(MAX_CONDITIONS).is_ok());
        assert!(many(MAX_CONDITIONS + 1).unwrap_err().0.contains("conditions"));
        let values = |count: usize| query(&[("q", &format!("a?={}", vec!["1"; count].join(",")))]);
        assert!(values(MAX_VALUES).is_ok());
        assert!(values(MAX_VALUES + 1).unwrap_err().0.contains("values"));
    }

    #[test]
    fn defaults_are_those_of_the_document() {
        let query = query(&[("unknown", "x")]).unwrap();
        assert_eq!((query.start, query.limit, query.count, query.reply_with_count), (0, 1000, false, false));
        assert!(query.conditions.is_empty() && query.sort.is_none() && query.fields.is_empty());
    }

    #[test]
    fn paging_sorting_and_fields_are_read() {
        let query = query(&[
            ("start", "10"),
            ("limit", "5.0"),
            ("replyWithCount", "true"),
            ("sort", "-createDate"),
            ("fields", "name,uuid"),
            ("fields", "state"),
            ("groupBy", "type"),
        ])
        .unwrap();
        assert_eq!((query.start, query.limit, query.reply_with_count), (10, 5, true));
        assert_eq!(query.sort, Some(Sort { field: "createDate".into(), descending: true }));
        assert_eq!(query.fields, ["name", "uuid", "state"]);
        assert_eq!(query.group_by.as_deref(), Some("type"));
    }

    #[test]
    fn a_plus_that_became_a_space_sorts_upwards() {
        for text in ["+name", " name", "name"] {
            assert_eq!(sort(text), Some(Sort { field: "name".into(), descending: false }));
        }
    }

    #[test]
    fn a_limit_that_is_no_natural_number_is_refused() {
        for text in ["ten", "-1", "1.5", ""] {
            assert!(query(&[("limit", text)]).unwrap_err().0.contains("`limit`"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = query(&[("q", &text), ("sort", &text), ("fields", &text)]);
        }

        #[test]
        fn plain_names_and_values_come_back_whole(name in "[a-zA-Z_.]{1,20}", value in "[^=<>!?~]{0,30}") {
            prop_assume!(value != "null" && !value.starts_with(' '));
            prop_assert_eq!(test_of(&format!("{name}={value}")), (name, Test::Equal(value)));
        }
    }
}
