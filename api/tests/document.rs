//! The tables of calls against the API document: `tests/apis.json` is the document as data.

use serde_json::Value;
use vipgate_api::{
    Call, Resource,
    call::{Kind, Method, Mode, Param, Place, Route, Rule},
    calls, unserved,
};

/// The document's calls.
fn document() -> Vec<Value> {
    serde_json::from_str(include_str!("../../tests/apis.json")).expect("the document is JSON")
}

fn list<'a>(value: &'a Value, member: &str) -> &'a [Value] {
    value[member].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

fn documented_routes(call: &Value) -> Vec<(Method, &str)> {
    let method = |url| match text(url, "method") {
        "GET" => Method::Get,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        other => panic!("{other} is no verb of the document"),
    };
    list(call, "urls").iter().map(|url| (method(url), text(url, "url").trim_start_matches("/zstack/v1"))).collect()
}

fn routes(routes: &[Route]) -> Vec<(Method, &'static str)> {
    routes.iter().map(|route| (route.method, route.path)).collect()
}

fn served(call: &Value) -> Option<&'static Call> {
    calls::all().find(|row| row.api.name() == text(call, "api"))
}

#[test]
fn every_documented_call_has_a_row_in_one_of_the_two_tables_with_its_urls() {
    for call in document() {
        let name = text(&call, "api");
        let unserved = unserved::CALLS.iter().find(|row| row.name == name);
        let found = match (served(&call), unserved) {
            (Some(row), None) => routes(row.routes),
            (None, Some(row)) => routes(row.routes),
            (found, other) => panic!("{name} is served: {}, is unserved: {}", found.is_some(), other.is_some()),
        };
        for route in documented_routes(&call) {
            assert!(found.contains(&route), "{name} lacks {route:?}: it has {found:?}");
        }
    }
}

#[test]
fn bodies_have_their_documented_keys() {
    for call in document() {
        if let Some(row) = served(&call) {
            assert_eq!(row.body.first().copied(), call["body"].as_str(), "{}", row.api.name());
        }
    }
}

/// What the document lists and no call takes: the uuid of an update is in its path.
const MEANINGLESS: [(&str, &str); 1] = [("UpdateLoadBalancer", "resourceUuid")];

#[test]
fn parameters_are_known_with_their_kind_need_and_choices() {
    for call in document() {
        let Some(row) = served(&call) else { continue };
        for documented in list(&call, "params") {
            let names = (row.api.name(), text(documented, "name"));
            if MEANINGLESS.contains(&names) {
                continue;
            }
            let param = row.params.iter().find(|param| param.name == names.1);
            let param = param.unwrap_or_else(|| panic!("{names:?} is unknown"));
            assert_eq!(kind(text(documented, "type")), param.kind, "{names:?}");
            // Without what is in its path there is no call, whatever the document says.
            if param.place == Place::Argument {
                assert_eq!(documented["optional"], !param.required, "{names:?}");
            }
            choices(param, list(documented, "choices"), names);
        }
    }
}

fn kind(documented: &str) -> Kind {
    match documented {
        "String" => Kind::Text,
        "int" | "Integer" => Kind::Int,
        "Long" => Kind::Long,
        "Boolean" => Kind::Bool,
        "List" => Kind::TextList,
        "Map" => Kind::ListMap,
        other => panic!("{other} is no type of the document"),
    }
}

fn choices(param: &Param, documented: &[Value], names: (&str, &str)) {
    for choice in documented {
        let choice = choice.as_str().unwrap_or_default();
        let taken = match param.rule {
            Some(Rule::OneOf(valid)) => valid.contains(&choice),
            Some(Rule::OneOfAnyCase(valid)) => valid.iter().any(|known| known.eq_ignore_ascii_case(choice)),
            _ => false,
        };
        assert!(taken, "{names:?} refuses `{choice}`");
    }
}

#[test]
fn inventories_have_every_documented_field_with_its_type() {
    for call in document() {
        let Some(row) = served(&call) else { continue };
        for (object, fields) in call["replyObjects"].as_object().into_iter().flatten() {
            let names = (row.api.name(), object.as_str());
            let whole = row.resource().unwrap_or_else(|| panic!("{names:?} is answered by no inventory"));
            let resource = match object.as_str() {
                "inventory" | "inventories" => whole,
                member => nested(whole, member).unwrap_or_else(|| panic!("{names:?} is not answered")),
            };
            let schema = serde_json::to_value(resource.inventory_schema().schema).expect("a schema is JSON");
            for (field, documented) in fields.as_object().into_iter().flatten() {
                let found = form(&schema["properties"][field]);
                let wanted = form_of(documented.as_str().unwrap_or_default());
                assert_eq!(found.as_deref(), Some(wanted), "{field} of {names:?}");
            }
        }
    }
}

/// What is in the member of that name, however deep.
fn nested(resource: Resource, member: &str) -> Option<Resource> {
    let mut members = resource.nested().iter();
    members.find_map(|(name, inner)| if *name == member { Some(*inner) } else { nested(*inner, member) })
}

/// What a schema says that a value is; one that can be absent may be null as well.
fn form(schema: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return reference.rsplit('/').next().map(str::to_owned);
    }
    let types = schema["type"].as_array().map_or(std::slice::from_ref(&schema["type"]), Vec::as_slice);
    types.iter().filter_map(Value::as_str).find(|one| *one != "null").map(str::to_owned)
}

fn form_of(documented: &str) -> &'static str {
    match documented {
        "String" => "string",
        "Timestamp" => "Date",
        "Integer" | "Long" => "integer",
        "List" | "Set" => "array",
        other => panic!("{other} is no type of the document"),
    }
}

#[test]
fn no_parameter_in_a_path_is_asked_for_elsewhere() {
    for row in calls::all() {
        for param in row.params.iter().filter(|param| param.place == Place::Path) {
            assert!(param.required, "{} of {}", param.name, row.api.name());
        }
    }
}

#[test]
fn reads_are_synchronous_and_changes_are_not() {
    let sessions = ["LogInByAccount", "LogOut", "RenewSession"];
    for row in calls::all() {
        let read = row.routes.iter().all(|route| route.method == Method::Get);
        let asynchronous = row.mode == Mode::Async;
        assert_eq!(asynchronous, !read && !sessions.contains(&row.api.name()), "{}", row.api.name());
    }
}
