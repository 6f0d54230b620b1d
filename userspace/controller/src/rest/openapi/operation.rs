//! Operations: each method of a path with its parameters, body and replies.

use utoipa::openapi::{
    ArrayBuilder, Content, HttpMethod, KnownFormat, ObjectBuilder, OneOfBuilder, PathItem, RefOr, Required,
    ResponseBuilder, Schema,
    path::{Callback, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
    request_body::{RequestBody, RequestBodyBuilder},
};
use vipgate_api::{
    Call, Resource,
    call::{Kind, Method, Mode, Param},
    query::{DEFAULT_LIMIT, MAX_CONDITIONS},
    request::TAGS,
};

use super::{
    schema::{Schemas, flag, number, text, value, with},
    shared::{any_of, failures, headers, json},
};
use crate::query;

/// The tag that groups operations: the first segment of their path.
pub(super) fn family(path: &'static str) -> &'static str {
    path.split('/').nth(1).unwrap_or_default()
}

/// The operation of the calls that share a path and a method.
pub(super) fn of(path: &'static str, method: Method, calls: &[&'static Call], schemas: &mut Schemas) -> Operation {
    let names: Vec<_> = calls.iter().map(|call| call.api.name()).collect();
    let by_uuid = path.ends_with("/{uuid}");
    let (with_job, at_once): (Vec<_>, Vec<_>) = calls.iter().copied().partition(|call| call.mode == Mode::Async);
    let has_body = matches!(method, Method::Post | Method::Put);

    let mut operation = OperationBuilder::new()
        .tag(family(path))
        .summary(Some(names.join(" or ")))
        .parameters(Some(variables(path).map(in_path)));
    for call in calls {
        operation = match call.mode {
            Mode::Query(_) if by_uuid => operation,
            Mode::Query(resource) => operation.parameters(Some(of_query(resource))),
            Mode::Sync | Mode::Async if has_body => operation,
            Mode::Sync | Mode::Async => operation.parameters(Some(arguments(call, path).map(|param| in_query(&param)))),
        };
    }
    for header in headers(!with_job.is_empty()) {
        operation = operation.parameter_ref(header);
    }

    let mut responses = failures(!at_once.is_empty(), has_body, schemas);
    if !at_once.is_empty() {
        let replies: Vec<_> =
            at_once.iter().map(|call| schemas.reply(call, matches!(call.mode, Mode::Query(_)) && !by_uuid)).collect();
        responses = responses.response("200", json("What the call answers.", any_of(replies)));
    }
    if !with_job.is_empty() {
        let results: Vec<_> = with_job.iter().map(|call| schemas.reply(call, false)).collect();
        responses = responses.response("202", json("The call is accepted.", schemas.accepted()));
        operation = operation.callback("result", hooked(any_of(results.into_iter().chain([schemas.error()]))));
    }
    if !calls.iter().all(|call| call.session) {
        operation = operation.securities(Some([]));
    }
    let body = body(path, method, calls);
    operation.operation_id(Some(id(path, calls))).request_body(body).responses(responses).build()
}

/// The id of the operation: the names of its calls, and the variables that distinguish this path from their other paths.
fn id(path: &'static str, calls: &[&'static Call]) -> String {
    let mut id = calls.iter().map(|call| call.api.name()).collect::<Vec<_>>().join("Or");
    let routes = || calls.iter().flat_map(|call| call.routes);
    for name in variables(path).filter(|name| !routes().all(|route| has_variable(route.path, name))) {
        id.push_str("By");
        id.extend(name.char_indices().map(|(at, letter)| if at == 0 { letter.to_ascii_uppercase() } else { letter }));
    }
    id
}

/// The names of the variables of a path.
fn variables(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn has_variable(path: &'static str, name: &str) -> bool {
    variables(path).any(|variable| variable == name)
}

pub(super) fn in_path(name: &str) -> Parameter {
    let value = text().min_length(Some(1));
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .schema(Some(value))
        .build()
}

/// The parameters of a call that are not in its path.
fn arguments(call: &'static Call, path: &'static str) -> impl Iterator<Item = Param> {
    let own = call.params.iter().copied().filter(move |param| !has_variable(path, param.name));
    own.chain(TAGS.into_iter().filter(|_| call.mode == Mode::Async))
}

fn in_query(param: &Param) -> Parameter {
    let parameter = optional(param.name);
    if param.kind != Kind::ListMap {
        return parameter.required(required(param.required)).schema(Some(value(param))).build();
    }
    // The name of the parameter precedes each key, and a key is repeated for every text of its list.
    let keys = text().pattern(Some(format!(r"^{}\.", param.name)));
    let pairs =
        ObjectBuilder::new().property_names(Some(keys)).additional_properties(Some(RefOr::T(Schema::from(text()))));
    let about = format!("`{0}.<key>=<text>`, as often as there are texts in the list of the key.", param.name);
    parameter.required(required(param.required)).description(Some(about)).schema(Some(pairs)).build()
}

const fn required(is: bool) -> Required {
    if is { Required::True } else { Required::False }
}

fn optional(name: &str) -> ParameterBuilder {
    ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query).required(Required::False)
}

/// The parameters of a query, with the names that they accept.
fn of_query(resource: Resource) -> Vec<Parameter> {
    let Some(names) = query::names(resource) else { return Vec::new() };
    let listed = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut about = format!("A condition. There are {}.", listed(&names.conditions));
    if !names.related.is_empty() {
        about.push_str(&format!(" Before a dot, for fields of related resources: {}.", listed(&names.related)));
    }
    let conditions =
        text().pattern(Some(r"^ *[A-Za-z0-9_.]+((!=|>=|<=|!\?=|!~=|~=|\?=|=|>|<)([^ ].*)?| +(is|not) null)$"));
    let conditions = ArrayBuilder::new().items(RefOr::T(conditions.into())).max_items(Some(MAX_CONDITIONS));
    let order = text().pattern(Some(format!("^[+-]?({})$", names.fields.join("|"))));
    let members = text().enum_values(Some(names.members.iter().copied()));
    let from_zero = || number(KnownFormat::Int64).minimum(Some(0));
    let parameters = [
        optional("q").description(Some(about)).schema(Some(conditions)),
        optional("limit").schema(Some(from_zero().default(Some(DEFAULT_LIMIT.into())))),
        optional("start").schema(Some(from_zero().default(Some(0.into())))),
        optional("sort").schema(Some(order)),
        optional("fields").explode(Some(false)).schema(Some(ArrayBuilder::new().items(RefOr::T(members.into())))),
        optional("groupBy").schema(Some(text().enum_values(Some(names.fields.iter().copied())))),
        optional("count").schema(Some(flag())),
        optional("replyWithCount").schema(Some(flag())),
    ];
    parameters.into_iter().map(ParameterBuilder::build).collect()
}

/// A body with the name of one of the calls and its arguments.
fn body(path: &'static str, method: Method, calls: &[&'static Call]) -> Option<RequestBody> {
    let mut bodies: Vec<Schema> = Vec::new();
    let mut one_is_needed = false;
    for call in calls {
        // A create whose parameters are all optional may have no body; an action is selected by its body.
        let needed = method == Method::Put || arguments(call, path).any(|param| param.required);
        one_is_needed |= needed;
        for key in call.body {
            let inner = with(ObjectBuilder::new(), arguments(call, path));
            let tags = TAGS.into_iter().filter(|_| call.mode == Mode::Async);
            let outer = with(ObjectBuilder::new().property(*key, inner), tags);
            bodies.push(if needed { outer.required(*key) } else { outer }.into());
        }
    }
    let schema = match <[Schema; 1]>::try_from(bodies) {
        Ok([only]) => only,
        Err(several) if several.is_empty() => return None,
        Err(several) => several.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item).into(),
    };
    let content = Content::new(Some(schema));
    Some(RequestBodyBuilder::new().content("application/json", content).required(Some(required(one_is_needed))).build())
}

/// The request to a web hook: the result of a job.
fn hooked(result: RefOr<Schema>) -> Callback {
    let headers = [
        ("X-Job-UUID", text(), "The job's uuid."),
        ("X-Job-Success", text().enum_values(Some(["true", "false"])), "Whether the body is no error."),
    ];
    let headers = headers.map(|(name, value, about)| {
        let header = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header).required(Required::True);
        header.description(Some(about)).schema(Some(value)).build()
    });
    let body = RequestBodyBuilder::new().content("application/json", Content::new(Some(result)));
    let taken = ResponseBuilder::new().description("The result is taken; it is sent again after any other answer.");
    let operation = OperationBuilder::new()
        .summary(Some("The job's result"))
        .parameters(Some(headers))
        .request_body(Some(body.build()))
        .response("2XX", taken)
        .securities(Some([]));
    Callback::from([("{$request.header.X-Web-Hook}".to_owned(), PathItem::new(HttpMethod::Post, operation).into())])
}
