//! The shared parts of operations: the session, the API's own headers, the failures, and the jobs.

use utoipa::openapi::{
    Components, ComponentsBuilder, Content, Ref, RefOr, Required, Response, ResponseBuilder, ResponsesBuilder, Schema,
    path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn},
    schema::AnyOfBuilder,
    security::{ApiKey, ApiKeyValue, SecurityScheme},
};
use vipgate_api::{call::Mode, calls};

use super::{
    operation,
    schema::{Schemas, text},
};

/// The tag of the operations on jobs, which are not in the table of calls.
pub(super) const JOBS: &str = "api-jobs";

/// The security scheme.
pub(super) const SESSION: &str = "session";

/// One of the API's own headers.
struct Header {
    /// Its name among the components.
    component: &'static str,
    name: &'static str,
    pattern: &'static str,
    about: &'static str,
}

/// The headers of asynchronous calls only ...
const OF_JOBS: [Header; 2] = [
    Header {
        component: "JobUuid",
        name: "X-Job-UUID",
        pattern: "^[0-9a-fA-F]{12}4[0-9a-fA-F]{3}[89abAB][0-9a-fA-F]{15}$",
        about: "The uuid that the job shall have: a version 4 UUID without dashes that no other job has.",
    },
    Header {
        component: "WebHook",
        name: "X-Web-Hook",
        pattern: "^http://[!-~]+$",
        about: "A URL to which the job's result is posted, as the callback `result` describes it.",
    },
];

/// ... and of all calls.
const OF_ALL: [Header; 1] = [Header {
    component: "JsonSchema",
    name: "X-JSON-Schema",
    // The values that any header can have.
    pattern: "^[!-~]([ -~]*[!-~])?$",
    about: "With this header, whatever its value, the reply has a `schema`.",
}];

/// A reply in plain text.
struct Refusal {
    status: &'static str,
    component: &'static str,
    about: &'static str,
}

/// The replies of all calls in plain text ...
const OF_CALLS: [Refusal; 3] = [
    Refusal {
        status: "400",
        component: "BadRequest",
        about: "The request can't be read: its body, a header, the type of a value, or the query.",
    },
    Refusal { status: "404", component: "NoSuchUrl", about: "There is nothing at this URL." },
    Refusal {
        status: "405",
        component: "NoSuchMethod",
        about: "The URL has other methods, which the header `Allow` names.",
    },
];

/// ... and those of calls with a body.
const OF_BODIES: [Refusal; 2] = [
    Refusal { status: "408", component: "TooSlow", about: "The body did not come in time." },
    Refusal { status: "413", component: "TooLarge", about: "The body is larger than 1 MiB, or was cut off." },
];

/// The replies of the HTTP server to invalid requests, without a text.
const OF_HTTP: [Refusal; 2] = [
    Refusal { status: "414", component: "UrlTooLong", about: "The URL is longer than 64 KiB." },
    Refusal {
        status: "431",
        component: "HeadersTooLarge",
        about: "There are more than 100 headers, or too large ones.",
    },
];

pub(super) fn components(schemas: Schemas) -> Components {
    let session = ApiKeyValue::with_description("Authorization", "`OAuth `, and the `uuid` of a session.");
    let mut components = ComponentsBuilder::new()
        .security_scheme(SESSION, SecurityScheme::ApiKey(ApiKey::Header(session)))
        .schemas_from_iter(schemas.0);
    for Header { component, name, pattern, about } in OF_JOBS.into_iter().chain(OF_ALL) {
        let header = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(about))
            .schema(Some(text().pattern(Some(pattern))));
        components = components.parameter(component, header.build());
    }
    for Refusal { component, about, .. } in OF_CALLS.into_iter().chain(OF_BODIES) {
        let response = ResponseBuilder::new().description(about).content("text/plain", Content::new(Some(text())));
        components = components.response(component, response);
    }
    for Refusal { component, about, .. } in OF_HTTP {
        components = components.response(component, ResponseBuilder::new().description(about));
    }
    components.build()
}

/// The headers of a call.
pub(super) fn headers(with_job: bool) -> impl Iterator<Item = Ref> {
    let of_jobs = OF_JOBS.iter().filter(move |_| with_job);
    of_jobs.chain(&OF_ALL).map(|header| Ref::new(format!("#/components/parameters/{}", header.component)))
}

/// The failures of a call before it is accepted, and all failures of a synchronous call.
pub(super) fn failures(at_once: bool, has_body: bool, schemas: &mut Schemas) -> ResponsesBuilder {
    let refusals = OF_CALLS.iter().chain(OF_BODIES.iter().filter(|_| has_body)).chain(&OF_HTTP);
    let refusals = refusals.map(|one| (one.status, RefOr::Ref(Ref::from_response_name(one.component))));
    let failed = at_once.then(|| ("503", json("The call failed.", schemas.error())));
    ResponsesBuilder::new().responses_from_iter(refusals.chain(failed))
}

/// A reply in JSON.
pub(super) fn json(about: &str, schema: impl Into<RefOr<Schema>>) -> RefOr<Response> {
    ResponseBuilder::new().description(about).content("application/json", Content::new(Some(schema))).into()
}

/// Any of these schemas, without repetitions.
pub(super) fn any_of(schemas: impl IntoIterator<Item = Ref>) -> RefOr<Schema> {
    let mut distinct: Vec<Ref> = Vec::new();
    for schema in schemas {
        if !distinct.contains(&schema) {
            distinct.push(schema);
        }
    }
    match <[Ref; 1]>::try_from(distinct) {
        Ok([only]) => only.into(),
        Err(several) => several.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item).into(),
    }
}

/// The operation that polls a job, which needs no session.
pub(super) fn poll(schemas: &mut Schemas) -> Operation {
    let with_job = calls::all().filter(|call| call.mode == Mode::Async);
    let results: Vec<_> = with_job.map(|call| schemas.reply(call, false)).collect();
    let responses = failures(true, false, schemas)
        .response("200", json("What the call answers.", any_of(results)))
        .response("202", ResponseBuilder::new().description("It is still running: ask again."));
    OperationBuilder::new()
        .tag(JOBS)
        .operation_id(Some("PollJob"))
        .summary(Some("Ask for the result of an accepted call"))
        .description(Some(
            "The answer waits a moment for the end of a job that runs. 404: there is no such job, or its result has expired.",
        ))
        .parameter(operation::in_path("uuid"))
        .responses(responses)
        .securities(Some([]))
        .build()
}
