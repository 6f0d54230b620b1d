//! Replies: bodies, statuses and content types.

use std::fmt::Display;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};
use vipgate_api::{ApiError, Reply, call::Method, json as wire, request::BadRequest};

use crate::jobs;

/// A reply in plain text, for everything but results and error objects.
pub(super) fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into()).into_response()
}

pub(super) fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json;charset=UTF-8")], body).into_response()
}

/// The result of a synchronous call.
pub(super) fn succeeded(members: Map<String, Value>, reply: &Reply, with_schema: bool) -> Response {
    json(StatusCode::OK, jobs::success(members, reply, with_schema))
}

/// The error of a synchronous call.
pub(super) fn failed(error: &ApiError, with_schema: bool) -> Response {
    json(StatusCode::SERVICE_UNAVAILABLE, jobs::failure(error, with_schema))
}

/// The reply with the URL to poll.
pub(super) fn accepted(base: &str, job_uuid: &str) -> Response {
    let location = format!("{base}/zstack/v1/api-jobs/{job_uuid}");
    let members = Map::from_iter([("location".to_owned(), Value::from(location))]);
    json(StatusCode::ACCEPTED, wire::encode(&members))
}

pub(super) fn running() -> Response {
    StatusCode::ACCEPTED.into_response()
}

#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
pub(super) fn bad_request(error: BadRequest) -> Response {
    plain(StatusCode::BAD_REQUEST, error.0)
}

pub(super) fn no_api(path: &str) -> Response {
    plain(StatusCode::NOT_FOUND, format!("no api mapping to {path}"))
}

/// Names the allowed methods (RFC 9110, section 15.5.6).
pub(super) fn method_not_allowed(method: &str, allowed: &[Method]) -> Response {
    let allowed: Vec<_> = allowed.iter().map(|method| name(*method)).collect();
    let allowed = allowed.join(", ");
    let mut response = plain(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not a method of this URL; its methods are {allowed}"),
    );
    if let Ok(allowed) = HeaderValue::from_str(&allowed) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

/// An internal error, which is also logged.
#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
pub(super) fn internal(error: impl Display) -> Response {
    tracing::error!(%error, "a request failed");
    plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

const fn name(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
    }
}
