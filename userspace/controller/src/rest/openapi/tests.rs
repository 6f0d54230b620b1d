//! The document against what it is made of.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use vipgate_api::{
    Call, Code, Resource,
    call::{Method, Mode, Route},
    calls,
    request::TAGS,
    unserved,
};

use super::document;
use crate::query;

fn written() -> Value {
    serde_json::to_value(document()).unwrap()
}

const fn verb(method: Method) -> &'static str {
    match method {
        Method::Get => "get",
        Method::Post => "post",
        Method::Put => "put",
        Method::Delete => "delete",
    }
}

fn list<'a>(value: &'a Value, member: &str) -> &'a [Value] {
    value[member].as_array().map_or(&[], Vec::as_slice)
}

/// Whether each parameter in that place is required, by name.
fn parameters<'a>(operation: &'a Value, place: &str) -> BTreeMap<&'a str, bool> {
    let parameters = list(operation, "parameters").iter().filter(|parameter| parameter["in"] == place);
    parameters.map(|parameter| (parameter["name"].as_str().unwrap(), parameter["required"] == true)).collect()
}

/// All values below this one, itself included.
fn all(value: &Value) -> Vec<&Value> {
    let below: Vec<_> = match value {
        Value::Object(members) => members.values().flat_map(all).collect(),
        Value::Array(items) => items.iter().flat_map(all).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    [value].into_iter().chain(below).collect()
}

fn each_route() -> impl Iterator<Item = (&'static Call, Route)> {
    calls::all().flat_map(|call| call.routes.iter().map(move |route| (call, *route)))
}

#[test]
fn every_served_call_is_there_under_all_its_routes_and_no_other() {
    let document = written();
    assert_eq!(document["openapi"], "3.1.0");
    let mut wanted = BTreeSet::from([("/api-jobs/{uuid}".to_owned(), "get")]);
    for (call, route) in each_route() {
        let name = call.api.name();
        let operation = &document["paths"][route.path][verb(route.method)];
        assert!(
            operation["summary"].as_str().is_some_and(|summary| summary.split(" or ").any(|one| one == name)),
            "{name}"
        );
        wanted.insert((route.path.to_owned(), verb(route.method)));
    }
    let paths = document["paths"].as_object().unwrap().iter();
    let found =
        paths.flat_map(|(path, item)| item.as_object().unwrap().keys().map(|verb| (path.clone(), verb.as_str())));
    assert_eq!(found.collect::<BTreeSet<_>>(), wanted.iter().map(|(path, verb)| (path.clone(), *verb)).collect());
    let text = document["paths"].to_string();
    for call in unserved::CALLS {
        assert!(!text.contains(&format!("\"{}\"", call.name)), "{} is not served", call.name);
    }
}

#[test]
fn parameters_stand_where_they_are_read_and_are_required_as_they_are_checked() {
    let document = written();
    for (call, route) in each_route() {
        let name = call.api.name();
        let operation = &document["paths"][route.path][verb(route.method)];
        let in_path = parameters(operation, "path");
        assert_eq!(in_path.len(), route.path.matches('{').count(), "{name}");
        let tags = TAGS.iter().filter(|_| call.mode == Mode::Async);
        for param in call.params.iter().chain(tags) {
            if route.path.contains(&format!("{{{}}}", param.name)) {
                assert_eq!(in_path.get(param.name), Some(&true), "{} of {name}", param.name);
                continue;
            }
            if matches!(route.method, Method::Get | Method::Delete) {
                assert_eq!(
                    parameters(operation, "query").get(param.name),
                    Some(&param.required),
                    "{} of {name}",
                    param.name
                );
                continue;
            }
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            for key in call.body {
                let body = list(body, "oneOf").iter().find(|body| body["required"][0] == *key).unwrap_or(body);
                let inner = &body["properties"][*key];
                assert!(inner["properties"][param.name].is_object(), "{} of {name}", param.name);
                let required = list(inner, "required").iter().any(|required| required == param.name);
                assert_eq!(required, param.required, "{} of {name}", param.name);
            }
        }
    }
}

#[test]
fn inventories_have_the_members_that_queries_print() {
    let queried = calls::all().filter_map(|call| match call.mode {
        Mode::Query(resource) => Some(resource),
        Mode::Sync | Mode::Async => None,
    });
    let nested = |resource: Resource| resource.nested().iter().map(|(_, nested)| *nested);
    let printed: Vec<_> = queried.flat_map(|resource| nested(resource).chain([resource])).collect();
    for resource in printed {
        // Of certificates of listeners none is printed yet.
        let Some(names) = query::names(resource) else { continue };
        let schema = serde_json::to_value(resource.inventory_schema().schema).unwrap();
        let members: BTreeSet<_> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, names.members.into_iter().collect(), "{resource:?}");
    }
}

#[test]
fn members_are_never_null_and_errors_name_every_code() {
    let document = written();
    let schemas = &document["components"]["schemas"];
    let null = |value: &&Value| value["type"] == "null" || list(value, "type").iter().any(|one| one == "null");
    assert_eq!(all(schemas).into_iter().find(null), None);
    assert_eq!(list(&schemas["Code"], "enum").len(), Code::ALL.len());
    assert_eq!(schemas["ErrorCode"]["required"], serde_json::json!(["code", "description", "details"]));
}

#[test]
fn whatever_is_referred_to_is_there() {
    let document = written();
    for reference in all(&document).into_iter().filter_map(|value| value["$ref"].as_str()) {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}

#[test]
fn operations_have_names_of_their_own_and_paths_differ_in_more_than_their_variables() {
    let document = written();
    let names: Vec<_> = all(&document["paths"]).into_iter().filter_map(|value| value["operationId"].as_str()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    let paths = document["paths"].as_object().unwrap();
    let bare = |path: &String| {
        path.split('/').map(|part| if part.starts_with('{') { "" } else { part }).collect::<Vec<_>>().join("/")
    };
    assert_eq!(paths.keys().map(bare).collect::<BTreeSet<_>>().len(), paths.len());
}
