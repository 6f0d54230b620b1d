//! The page to read the document and to try calls: Swagger UI, which the binary contains.

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

/// Limits the browser to resources of this router. The page sets inline styles, with images in them.
const CONTENT_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:";

/// Serves the page for the document at that path.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(document: &str) -> Router<S> {
    // The default validator is a third-party service.
    let config = Config::new([document.to_owned()]).validator_url("none").try_it_out_enabled(true);
    let config = Arc::new(config.display_operation_id(true).doc_expansion("none"));
    let index = config.clone();
    Router::new()
        // The page refers to its files by relative paths.
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
    let headers = [(CONTENT_TYPE, kind), (CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_POLICY))];
    let mut response = (StatusCode::OK, headers, file.bytes.into_owned()).into_response();
    // Compressed, as the binary contains it: all browsers can decompress it.
    if file.gzpipped {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}
