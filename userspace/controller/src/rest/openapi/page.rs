//! The page on which the document is read and calls are tried: Swagger UI, which the binary carries.

use std::sync::Arc;

use axum::{
    Router,
    extract::Path,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    },
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa_swagger_ui::Config;

use super::respond;

const PAGE: &str = "/zstack/docs";

/// Nothing but this router is asked for anything, wherever the browser could reach. The page sets styles as it goes and
/// has its pictures in them.
const FROM_HERE: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:";

/// The page of the document at that path.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(document: &str) -> Router<S> {
    // The validator is a service of others.
    let config = Config::new([document.to_owned()]).validator_url("none").try_it_out_enabled(true);
    let config = Arc::new(config.display_operation_id(true).doc_expansion("none"));
    let index = config.clone();
    Router::new()
        // Its files are named relative to it.
        .route(PAGE, get(async || Redirect::permanent(&format!("{PAGE}/"))))
        .route(&format!("{PAGE}/"), get(async move || file("", index)))
        .route(&format!("{PAGE}/{{*file}}"), get(async move |Path(name): Path<String>| file(&name, config)))
}

fn file(name: &str, config: Arc<Config<'static>>) -> Response {
    let file = match utoipa_swagger_ui::serve(name, config) {
        Ok(Some(file)) => file,
        Ok(None) => return respond::no_api(&format!("{PAGE}/{name}")),
        Err(error) => return respond::internal(error),
    };
    let kind = HeaderValue::from_str(&file.content_type);
    let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let headers = [(CONTENT_TYPE, kind), (CONTENT_SECURITY_POLICY, HeaderValue::from_static(FROM_HERE))];
    let mut response = (StatusCode::OK, headers, file.bytes.into_owned()).into_response();
    // As the binary has it: there is no browser that could not unpack it.
    if file.gzpipped {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}
