//! Reads a request: its path, query, headers and body, and which call it is.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use tokio::time::timeout;
use vipgate_api::{
    Call,
    call::Method,
    request::{self, BadRequest},
};

use super::{
    Peer, header,
    respond::{bad_request, plain},
    route::Match,
};
use crate::jobs::Ticket;

/// The largest body that is read, in bytes.
pub(super) const MAX_BODY: usize = 1 << 20;

/// How long a caller may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A request that was read, and its call.
pub(super) struct Incoming {
    pub(super) peer: Peer,
    pub(super) method: Method,
    pub(super) found: Match,
    pub(super) query: Vec<(String, String)>,
    pub(super) body: Map<String, Value>,
    pub(super) headers: HeaderMap,
}

impl Incoming {
    /// The uuid of the session, empty if the request has none.
    pub(super) fn session(&self) -> &str {
        header::session(&self.headers).unwrap_or_default()
    }

    pub(super) fn arguments(&self, call: &Call) -> Result<Map<String, Value>, BadRequest> {
        request::decode(call, self.method, &self.found.variables, &self.query, &self.body)
    }

    pub(super) fn ticket(&self, api: &'static str) -> Result<Ticket, BadRequest> {
        Ok(Ticket {
            uuid: header::job_uuid(&self.headers)?,
            api,
            with_schema: header::wants_schema(&self.headers),
            account_uuid: "".into(),
            web_hook: header::web_hook(&self.headers)?,
        })
    }
}

/// The segments of a path below `/zstack/v1` or `/v1`, decoded; `None` for other paths.
pub(super) fn segments(uri: &Uri) -> Option<Vec<String>> {
    let path = uri.path();
    let path = path.strip_prefix("/zstack").unwrap_or(path).strip_prefix("/v1/")?;
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').map(|part| Some(percent_decode_str(part).decode_utf8().ok()?.into_owned())).collect()
}

/// `None` for a method that the API does not use.
pub(super) fn verb(method: &str) -> Option<Method> {
    match method {
        "GET" => Some(Method::Get),
        "POST" => Some(Method::Post),
        "PUT" => Some(Method::Put),
        "DELETE" => Some(Method::Delete),
        _ => None,
    }
}

/// The parameters of the query, decoded.
pub(super) fn pairs(uri: &Uri) -> Vec<(String, String)> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}

/// Chooses the call that the body names among those that share a path.
pub(super) fn choose(method: Method, mut found: Vec<Match>, body: &Map<String, Value>) -> Result<Match, BadRequest> {
    let chosen = match method {
        Method::Put => found.iter().position(|call| call.target.keys().iter().any(|key| body.contains_key(*key))),
        Method::Get | Method::Post | Method::Delete => (!found.is_empty()).then_some(0),
    };
    match chosen {
        Some(position) => Ok(found.swap_remove(position)),
        None => {
            let known: Vec<_> =
                found.iter().flat_map(|call| call.target.keys()).map(|key| format!("`{key}`")).collect();
            Err(BadRequest(format!("the body names no action of this resource: give one of {}", known.join(", "))))
        }
    }
}

/// Reads the body as JSON; an empty body is an empty object.
pub(super) async fn read(body: Body) -> Result<Map<String, Value>, Response> {
    let bytes = match timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let text = format!("the body is cut off or has more than {MAX_BODY} bytes");
            return Err(plain(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        Err(_) => return Err(plain(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(bad_request(BadRequest("the body must be a JSON object".into()))),
        Err(error) => Err(bad_request(BadRequest(format!("the body is not JSON: {error}")))),
    }
}
