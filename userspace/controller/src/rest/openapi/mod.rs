//! The OpenAPI 3.1 document of the API, and the page that shows it.
//!
//! It is built from the data that the API itself uses, so that the two can't differ. Paths, parameters and bodies come from
//! the table of calls, which also routes, decodes and checks requests: it has the location of each parameter, whether it is
//! required, and its values. utoipa's derive for paths needs a handler with annotations for each call, and there are no such
//! handlers. Replies come from the types of the inventories, by utoipa's derive beside serde's, and the names in queries
//! from the table of the query API. A call is in the document as soon as it has its row.

mod operation;
mod page;
mod schema;
mod shared;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::LazyLock};

use axum::{Router, http::StatusCode, response::Response, routing::get};
use schema::Schemas;
use utoipa::openapi::{
    HttpMethod, InfoBuilder, License, OpenApi, OpenApiBuilder, PathItem, Paths, SecurityRequirement, Server, Tag,
};
use vipgate_api::{Call, call::Method, calls};

use super::respond;

/// The path of the document, with and without `/zstack` before it, like the whole API.
const PATH: &str = "/v1/openapi.json";

/// The description at the top of the document.
const ABOUT: &str = include_str!("about.md");

/// Serves the document and its page. Neither needs a session, since a client reads them before it can log in.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let document = || get(async || written());
    let whole = format!("/zstack{PATH}");
    page::routes(&whole).route(PATH, document()).route(&whole, document())
}

fn written() -> Response {
    static WRITTEN: LazyLock<Result<String, serde_json::Error>> = LazyLock::new(|| document().to_json());
    match &*WRITTEN {
        Ok(document) => respond::json(StatusCode::OK, document.clone()),
        Err(error) => respond::internal(error),
    }
}

/// The document of all served calls.
fn document() -> OpenApi {
    let mut operations = BTreeMap::<(&str, Method), Vec<&'static Call>>::new();
    for call in calls::all() {
        for route in call.routes {
            operations.entry((route.path, route.method)).or_default().push(call);
        }
    }
    let mut schemas = Schemas::default();
    let mut paths = Paths::new();
    let mut families = Vec::new();
    for ((path, method), calls) in operations {
        paths.add_path_operation(path, vec![http(method)], operation::of(path, method, &calls, &mut schemas));
        families.push(operation::family(path));
    }
    let polled = PathItem::new(HttpMethod::Get, shared::poll(&mut schemas));
    paths.paths.insert(format!("/{}/{{uuid}}", shared::JOBS), polled);
    families.push(shared::JOBS);
    families.dedup();
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("vipgate")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(ABOUT))
                .license(Some(License::builder().name("Apache License 2.0").identifier(Some("Apache-2.0")).build())),
        )
        .servers(Some([Server::new("/zstack/v1")]))
        .paths(paths)
        .security(Some([SecurityRequirement::new(shared::SESSION, [""; 0])]))
        .tags(Some(families.into_iter().map(Tag::new)))
        .components(Some(shared::components(schemas)))
        .build()
}

const fn http(method: Method) -> HttpMethod {
    match method {
        Method::Get => HttpMethod::Get,
        Method::Post => HttpMethod::Post,
        Method::Put => HttpMethod::Put,
        Method::Delete => HttpMethod::Delete,
    }
}
