//! Sends one call over HTTP, by its row of the table, and follows the job that it may start.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    thread,
    time::{Duration, Instant},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Method, StatusCode, Url,
    blocking::{Client, RequestBuilder, Response},
    redirect,
};
use serde_json::{Map, Value, json};
use vipgate_api::{
    Call, Code,
    call::{self, Mode, Route},
};

use super::{ClientError, render::sanitized, session::Session};

/// The timeout of one request. The API answers at once; long work is done in jobs.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The time between two polls of a job: short at first, since most jobs take milliseconds, then longer.
const FIRST_POLL: Duration = Duration::from_millis(10);
const LATER_POLLS: Duration = Duration::from_secs(1);

/// A job that takes longer is shown as progress.
const SHOWN_AFTER: Duration = Duration::from_millis(200);

/// The tags that every asynchronous call accepts.
pub(super) const TAGS: [&str; 2] = ["systemTags", "userTags"];

/// What a call answers.
pub(super) enum Answer {
    /// The reply.
    Done(Value),
    /// The URL of its job.
    Job(String),
}

/// The API of a server, with or without a session.
pub(super) struct Api {
    http: Client,
    base: String,
    session: Option<String>,
}

impl Api {
    /// Without a session.
    pub(super) fn new(base: &str, timeout: Duration) -> Result<Self, ClientError> {
        match Url::parse(base) {
            Ok(url) if url.scheme() == "http" && url.has_host() => {}
            _ => return Err(ClientError::BadUrl { url: base.to_owned() }),
        }
        let http = Client::builder().timeout(timeout).redirect(redirect::Policy::none()).no_proxy().build();
        let http = http.map_err(|source| unreachable(base, source))?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), session: None })
    }

    /// With the saved session.
    pub(super) fn of_session() -> Result<Self, ClientError> {
        Self::of(&Session::load()?, TIMEOUT)
    }

    pub(super) fn of(session: &Session, timeout: Duration) -> Result<Self, ClientError> {
        Ok(Self { session: Some(session.uuid.clone()), ..Self::new(&session.api, timeout)? })
    }

    pub(super) fn without_session(base: &str) -> Result<Self, ClientError> {
        Self::new(base, TIMEOUT)
    }

    pub(super) fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Sends one call with its arguments.
    pub(super) fn send(&self, call: &Call, arguments: &Map<String, Value>) -> Result<Answer, ClientError> {
        let Request { method, path, query, body } = request(call, arguments);
        let request = self.request(method, &format!("/zstack/v1{path}")).query(&query);
        let request = body.iter().fold(request, RequestBuilder::json);
        let reply = self.reply(request)?;
        if call.mode != Mode::Async {
            return Ok(Answer::Done(reply));
        }
        match reply["location"].as_str() {
            Some(location) => Ok(Answer::Job(location.to_owned())),
            None => Err(ClientError::NoJob { api: call.api.name() }),
        }
    }

    /// The inventories of a query with these parameters.
    pub(super) fn query(&self, call: &Call, parameters: &[(&str, &str)]) -> Result<Value, ClientError> {
        self.reply(self.request(Method::GET, &format!("/zstack/v1{}", call.routes[0].path)).query(parameters))
    }

    /// Waits until a job has ended. `job` is its URL or uuid.
    pub(super) fn follow(&self, job: &str) -> Result<Value, ClientError> {
        // A given URL is never used as it is: the session is sent only to its own server.
        let uuid = job.rsplit('/').next().unwrap_or(job);
        let path = format!("/zstack/v1/api-jobs/{}", utf8_percent_encode(uuid, NON_ALPHANUMERIC));
        let (begin, mut pause) = (Instant::now(), FIRST_POLL);
        let mut progress = Progress::default();
        loop {
            let response = self.response(self.request(Method::GET, &path))?;
            if response.status() != StatusCode::ACCEPTED {
                drop(progress);
                return read(response, &self.base);
            }
            let waited = begin.elapsed();
            if waited >= SHOWN_AFTER {
                progress.show(&format!("job {uuid} is running, {} s", waited.as_secs()));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LATER_POLLS);
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.session {
            Some(session) => request.header("Authorization", format!("OAuth {session}")),
            None => request,
        }
    }

    fn response(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        request.send().map_err(|source| unreachable(&self.base, source))
    }

    fn reply(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        read(self.response(request)?, &self.base)
    }
}

/// Removes the URL from an error: it may hold a session.
fn unreachable(api: &str, source: reqwest::Error) -> ClientError {
    ClientError::Unreachable { api: api.to_owned(), source: Box::new(source.without_url()) }
}

fn read(response: Response, base: &str) -> Result<Value, ClientError> {
    let status = response.status();
    let text = response.text().map_err(|source| unreachable(base, source))?;
    let mut body = serde_json::from_str::<Value>(&text).ok();
    if let Some(Value::Object(members)) = &mut body {
        // It names Java classes, for the real system's clients.
        members.shift_remove("schema");
    }
    if status.is_success() {
        return body.ok_or_else(|| ClientError::NoJson { api: base.to_owned(), status: status.as_u16() });
    }
    let error = body.as_ref().map(|body| &body["error"]).filter(|error| error.is_object());
    let Some(error) = error else {
        return Err(ClientError::Refused { what: format!("{}: {}", status.as_u16(), sanitized(text.trim())) });
    };
    let what = described(error);
    match error["code"].as_str() {
        Some(code) if code == Code::InvalidSession.as_str() => Err(ClientError::SessionOver { what }),
        Some(code) if code == Code::Authentication.as_str() => Err(ClientError::Denied { what }),
        _ => Err(ClientError::Refused { what }),
    }
}

/// The code, description and details of an error object and its causes.
fn described(error: &Value) -> String {
    let part = |name: &str| sanitized(error[name].as_str().unwrap_or_default());
    let own = format!("{} {}: {}", part("code"), part("description"), part("details"));
    if error["cause"].is_object() { format!("{own}\n  because {}", described(&error["cause"])) } else { own }
}

/// An HTTP request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    body: Option<Value>,
}

fn request(call: &Call, arguments: &Map<String, Value>) -> Request {
    let variables = |route: &Route| {
        let named = call.params.iter().map(|param| param.name);
        named.filter(|name| route.path.contains(&format!("{{{name}}}"))).collect::<Vec<_>>()
    };
    // The first route with an argument for each of its variables.
    let fits = |route: &&Route| variables(route).iter().all(|name| arguments.contains_key(*name));
    let route = call.routes.iter().find(fits).unwrap_or(&call.routes[0]);
    let mut rest = arguments.clone();
    let mut path = route.path.to_owned();
    for name in variables(route) {
        if let Some(value) = rest.shift_remove(name) {
            let value = utf8_percent_encode(&plain(&value), NON_ALPHANUMERIC).to_string();
            path = path.replace(&format!("{{{name}}}"), &value);
        }
    }
    let (method, in_body) = match route.method {
        call::Method::Get => (Method::GET, false),
        call::Method::Delete => (Method::DELETE, false),
        call::Method::Post => (Method::POST, true),
        call::Method::Put => (Method::PUT, true),
    };
    if !in_body {
        return Request {
            method,
            path,
            query: rest.iter().flat_map(|(name, value)| pairs(name, value)).collect(),
            body: None,
        };
    }
    let mut body: Map<String, Value> =
        TAGS.iter().filter_map(|name| Some(((*name).to_owned(), rest.shift_remove(*name)?))).collect();
    if let Some(key) = call.body.first() {
        body.insert((*key).to_owned(), json!(rest));
    }
    Request { method, path, query: Vec::new(), body: Some(Value::Object(body)) }
}

/// A value in a query string: a list repeats the name, a map of lists appends its keys to it.
fn pairs(name: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Array(items) => items.iter().map(|item| (name.to_owned(), plain(item))).collect(),
        Value::Object(lists) => lists.iter().flat_map(|(key, list)| pairs(&format!("{name}.{key}"), list)).collect(),
        scalar => vec![(name.to_owned(), plain(scalar))],
    }
}

/// A scalar as a text.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// One line on a terminal that shows what the client waits for. It is erased on drop.
#[derive(Debug, Default)]
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    pub(super) fn show(&mut self, line: &str) {
        // A terminal that cannot be written to needs no progress.
        if stderr().is_terminal() {
            let _ = write!(stderr(), "\r{}\x1b[K", sanitized(line));
            self.shown = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use vipgate_api::{Api as Name, calls};

    use super::*;

    fn made(api: Name, arguments: Value) -> Request {
        let call = calls::of(api).unwrap();
        let Value::Object(arguments) = arguments else { panic!("no object") };
        request(call, &arguments)
    }

    #[test]
    fn a_post_has_its_parameters_in_its_body_and_its_tags_beside_them() {
        let arguments =
            json!({ "loadBalancerUuid": "ab", "name": "web", "loadBalancerPort": 80, "systemTags": ["a::b"] });
        let expected = Request {
            method: Method::POST,
            path: "/load-balancers/ab/listeners".to_owned(),
            query: Vec::new(),
            body: Some(json!({ "systemTags": ["a::b"], "params": { "name": "web", "loadBalancerPort": 80 } })),
        };
        assert_eq!(made(Name::CreateLoadBalancerListener, arguments), expected);
    }

    #[test]
    fn a_delete_has_them_in_its_query_string() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let nics = made(Name::RemoveVmNicFromLoadBalancer, json!({ "listenerUuid": "ab", "vmNicUuids": ["c", "d"] }));
        assert_eq!(nics.query, [pair("vmNicUuids", "c"), pair("vmNicUuids", "d")]);
        let services = json!({ "l3NetworkUuid": "ab", "networkServices": { "p": ["LoadBalancer"] } });
        let services = made(Name::DetachNetworkServiceFromL3Network, services);
        assert_eq!((services.query, services.body), (vec![pair("networkServices.p", "LoadBalancer")], None));
    }

    #[test]
    fn a_path_is_the_first_whose_variables_are_there_and_keeps_no_sign_of_a_url() {
        let path = |arguments| made(Name::GetEipAttachableVmNics, arguments).path;
        assert_eq!(path(json!({ "vipUuid": "ab" })), "/eips/vm-instances/candidate-nics");
        assert_eq!(path(json!({ "eipUuid": "a/b" })), "/eips/a%2Fb/vm-instances/candidate-nics");
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = json!({ "code": "A", "description": "b", "details": "c",
            "cause": { "code": "D", "description": "e", "details": "f" } });
        assert_eq!(described(&error), "A b: c\n  because D e: f");
    }
}
