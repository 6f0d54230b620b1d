//! Turns an HTTP request into one checked JSON object, by the call's row of the table.
//!
//! There are two steps, because their failures reach the client in two ways. [`decode`] finds the parameters and checks
//! their kinds; its failure is a plain 400. [`check`] applies the rules; its failure is an [`ApiError`] with code
//! SYS.1007, which the job of an asynchronous call returns. An object that passed both deserialises to the request
//! type.

use serde_json::{Map, Value};

use crate::{
    call::{Access, Call, Kind, Method, Mode, Param, Place, Rule},
    error::ApiError,
    number,
};

/// Why a request cannot be decoded: the body of a plain 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub String);

/// Names and values, percent-decoded, in their order.
pub type Pairs = [(String, String)];

/// More tags in one call are refused: each is a row, and other changes wait while they are written.
pub const MAX_TAGS: usize = 1000;

/// The tags that every asynchronous call accepts, inside the parameters or beside them.
pub const TAGS: [Param; 2] = [
    Param::new("systemTags", Kind::TextList, Access::Free).rule(Rule::MaxItems(MAX_TAGS)),
    Param::new("userTags", Kind::TextList, Access::Free).rule(Rule::MaxItems(MAX_TAGS)),
];

/// Collects the parameters of `call`: variables of the path first, then the body or the query string. Unknown ones are
/// ignored. Numbers come out as JSON integers, whatever they came in as.
pub fn decode(
    call: &Call,
    method: Method,
    path: &Pairs,
    query: &Pairs,
    body: &Map<String, Value>,
) -> Result<Map<String, Value>, BadRequest> {
    let empty = Map::new();
    let inner = match call.body.iter().find_map(|key| body.get(*key)) {
        None | Some(Value::Null) => &empty,
        Some(Value::Object(inner)) => inner,
        Some(other) => {
            return Err(BadRequest(format!("`{}` must be a JSON object, it is {other}", call.body.join("`/`"))));
        }
    };
    let in_body = matches!(method, Method::Post | Method::Put);

    let mut found = Map::new();
    for param in call.params {
        let variable = path.iter().find(|(name, _)| name == param.name).map(|(_, value)| value.as_str().into());
        let value = match param.place {
            _ if variable.is_some() => variable,
            Place::Path => None,
            Place::Argument if in_body => from_body(param, inner)?,
            Place::Argument => from_query(param, query)?,
        };
        if let Some(value) = value {
            found.insert(param.name.to_owned(), value);
        }
    }
    if call.mode == Mode::Async {
        for tags in TAGS {
            let beside = from_body(&tags, body)?;
            let inside = if in_body { from_body(&tags, inner)? } else { from_query(&tags, query)? };
            let all: Vec<_> = [inside, beside].into_iter().flatten().filter_map(into_array).flatten().collect();
            if !all.is_empty() {
                found.insert(tags.name.to_owned(), all.into());
            }
        }
    }
    Ok(found)
}

fn into_array(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

fn wrong(param: &Param, what: &str, value: &Value) -> BadRequest {
    BadRequest(format!("field[{}] must be {what}, it is {value}", param.name))
}

fn from_body(param: &Param, body: &Map<String, Value>) -> Result<Option<Value>, BadRequest> {
    let value = match body.get(param.name) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    match param.kind {
        Kind::Text | Kind::Int | Kind::Long | Kind::Bool => scalar(param, value),
        Kind::TextList => texts(param, value),
        Kind::ListMap => {
            let Value::Object(entries) = value else {
                return Err(wrong(param, "a map of lists", value));
            };
            let lists = entries.iter().map(|(name, list)| Ok((name.clone(), texts(param, list)?)));
            lists.collect::<Result<Map<_, _>, _>>().map(Value::Object)
        }
    }
    .map(Some)
}

fn scalar(param: &Param, value: &Value) -> Result<Value, BadRequest> {
    match (param.kind, value) {
        (Kind::Text, Value::String(_)) => Ok(value.clone()),
        (Kind::Text, Value::Number(_) | Value::Bool(_)) => Ok(value.to_string().into()),
        (Kind::Int, _) => number::whole(value)
            .and_then(|whole| i32::try_from(whole).ok())
            .map(Value::from)
            .ok_or_else(|| wrong(param, "a whole number of 32 bits", value)),
        (Kind::Long, _) => {
            number::whole(value).map(Value::from).ok_or_else(|| wrong(param, "a whole number of 64 bits", value))
        }
        (Kind::Bool, Value::Bool(_)) => Ok(value.clone()),
        (Kind::Bool, Value::String(text)) => {
            text.trim().parse().map(Value::Bool).map_err(|_| wrong(param, "true or false", value))
        }
        (Kind::Bool, _) => Err(wrong(param, "true or false", value)),
        (Kind::Text | Kind::TextList | Kind::ListMap, _) => Err(wrong(param, "a string", value)),
    }
}

/// Keeps nulls in lists: [`check`] refuses them.
fn texts(param: &Param, value: &Value) -> Result<Value, BadRequest> {
    let Value::Array(items) = value else {
        return Err(wrong(param, "a list of strings", value));
    };
    let text = |item: &Value| match item {
        Value::Null | Value::String(_) => Ok(item.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(item.to_string().into()),
        Value::Array(_) | Value::Object(_) => Err(wrong(param, "a list of strings", value)),
    };
    items.iter().map(text).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn from_query(param: &Param, query: &Pairs) -> Result<Option<Value>, BadRequest> {
    match param.kind {
        Kind::Text | Kind::Int | Kind::Long | Kind::Bool => {
            one(query, param.name)?.map(|text| scalar(param, &text.into())).transpose()
        }
        Kind::TextList => {
            let items = list(query, param.name);
            Ok((!items.is_empty()).then(|| items.into()))
        }
        Kind::ListMap => {
            let mut map = Map::new();
            for (name, _) in query {
                let Some(key) = name.strip_prefix(param.name).and_then(|rest| rest.strip_prefix('.')) else {
                    continue;
                };
                let key = match key.rsplit_once('.') {
                    Some((key, index)) if index.parse::<usize>().is_ok() => key,
                    _ => key,
                };
                map.insert(key.to_owned(), list(query, &format!("{}.{key}", param.name)).into());
            }
            Ok((!map.is_empty()).then_some(Value::Object(map)))
        }
    }
}

/// The value of a parameter that may be given at most once.
pub(crate) fn one<'a>(query: &'a Pairs, name: &str) -> Result<Option<&'a str>, BadRequest> {
    let mut values = query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let first = values.next();
    if values.next().is_some() {
        return Err(BadRequest(format!("parameter `{name}` is given more than once")));
    }
    Ok(first)
}

/// A list in either notation: `name=a&name=b`, or `name.0=a&name.1=b` in the order of the indices.
pub(crate) fn list<'a>(query: &'a Pairs, name: &str) -> Vec<&'a str> {
    let index = |key: &str| key.strip_prefix(name)?.strip_prefix('.')?.parse::<usize>().ok();
    let mut indexed: Vec<_> = query.iter().filter_map(|(key, value)| Some((index(key)?, value.as_str()))).collect();
    indexed.sort_by_key(|(index, _)| *index);
    let plain = query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
    plain.chain(indexed.into_iter().map(|(_, value)| value)).collect()
}

/// Trims the texts of `found` and checks its values against the rules of `call`.
pub fn check(call: &Call, found: &mut Map<String, Value>) -> Result<(), ApiError> {
    for param in call.params.iter().chain(&TAGS) {
        let fail = |what: String| {
            Err(ApiError::invalid_argument(format!("field[{}] of {} {what}", param.name, call.api.name())))
        };
        match found.get_mut(param.name) {
            None if param.required => return fail("is mandatory, can not be null".into()),
            None => {}
            Some(value) => {
                if let Err(what) = check_value(param, value) {
                    return fail(what);
                }
            }
        }
    }
    Ok(())
}

/// Trims one value and checks it against the rule of its parameter. The error completes a sentence that begins with the
/// parameter's name.
pub fn check_value(param: &Param, value: &mut Value) -> Result<(), String> {
    match value {
        Value::String(text) => {
            *text = text.trim().to_owned();
            if param.required && text.is_empty() {
                return Err("is mandatory, can not be empty".into());
            }
            check_text(param.rule, text)
        }
        Value::Number(number) => match (param.rule, number.as_i64()) {
            (Some(Rule::Range(low, high)), Some(n)) if !(low..=high).contains(&n) => {
                Err(format!("must be from {low} to {high}, it is {n}"))
            }
            _ => Ok(()),
        },
        Value::Array(items) => check_list(param.rule, items),
        Value::Object(lists) => {
            if lists.is_empty() && param.rule == Some(Rule::NotEmpty) {
                return Err("must not be empty".into());
            }
            for (name, list) in lists {
                if let Value::Array(items) = list {
                    check_list(param.rule, items).map_err(|what| format!("{what} (at `{name}`)"))?;
                }
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

fn check_list(rule: Option<Rule>, items: &mut [Value]) -> Result<(), String> {
    if items.is_empty() && rule == Some(Rule::NotEmpty) {
        return Err("must not be an empty list".into());
    }
    if let Some(Rule::MaxItems(most)) = rule
        && items.len() > most
    {
        return Err(format!("may have at most {most} elements, it has {}", items.len()));
    }
    for item in items {
        match item {
            Value::String(text) if !text.trim().is_empty() => *text = text.trim().to_owned(),
            _ => return Err("must not hold null or empty elements".into()),
        }
    }
    Ok(())
}

fn check_text(rule: Option<Rule>, text: &mut String) -> Result<(), String> {
    match rule {
        Some(Rule::MaxLength(most)) => {
            let length = text.chars().count();
            if length > most {
                return Err(format!("may have at most {most} characters, it has {length}"));
            }
        }
        Some(Rule::OneOf(valid)) if !valid.contains(&text.as_str()) => {
            return Err(format!("must be one of {valid:?}, it is `{text}`"));
        }
        Some(Rule::OneOfAnyCase(valid)) => match valid.iter().find(|known| known.eq_ignore_ascii_case(text)) {
            Some(known) => (*known).clone_into(text),
            None => return Err(format!("must be one of {valid:?}, it is `{text}`")),
        },
        Some(Rule::Uuid) => {
            if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("must be a uuid of 32 hexadecimal digits without dashes, it is `{text}`"));
            }
            text.make_ascii_lowercase();
        }
        Some(Rule::OneOf(_) | Rule::Range(..) | Rule::NotEmpty | Rule::MaxItems(_)) | None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
