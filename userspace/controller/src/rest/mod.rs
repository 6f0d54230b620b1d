//! The REST API over HTTP: finds the call, reads the request, asks for the session, and turns results into replies.
//!
//! Routing, decoding and checking follow the table of calls (`vipgate_api::calls`); nothing here knows a resource. What it
//! decides is which way a failure is told: what can't be read is a plain 400, 404 or 405 at once; everything else is an
//! error object, with 503 for a synchronous call and through the job for an asynchronous one. Touches the store, the
//! rules and the jobs; never the kernel.

mod attempts;
mod connection;
mod hashing;
mod header;
mod openapi;

mod respond;
mod route;
mod serving;
mod session;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request, State, connect_info::IntoMakeServiceWithConnectInfo},
    http::{HeaderMap, StatusCode, Uri, header::HOST, uri::Authority},
    response::Response,
};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;
use vipgate_api::{
    Api, ApiError, Call, Reply, Resource,
    calls::{Method, Mode},
    query::{self as grammar, Query},
    request::{self, BadRequest},
    session::SessionInventory,
    unserved::Unserved,
};
use vipgate_state::{Apply, Devices};

pub use self::{
    connection::{Accepting, Peer},
    serving::serve,
    session::{LIFETIME, set_first_password},
};
use self::{
    respond::{accepted, bad_request, failed, internal, method_not_allowed, no_api, plain, running, succeeded},
    route::{Found, Match, Target},
    session::Sessions,
};
use crate::{
    jobs::{self, Jobs, NoClient, Poll, Refused, Ticket},
    model::{self, Caller, Outcome},
    query,
    store::{self, Store},
};

/// The largest body that is read, in bytes.
const MOST_BODY: usize = 1 << 20;

/// How long a caller may take to send a body.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can be set; the defaults are the documented ones.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://host:port` of the URLs to poll; `None`: the caller's own `Host` header.
    pub base: Option<String>,
    pub session_lifetime: Duration,
    pub jobs: jobs::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self { base: None, session_lifetime: LIFETIME, jobs: jobs::Settings::default() }
    }
}

/// What the API serves from; clones share it.
#[derive(Clone)]
pub struct RestState {
    store: Store,
    devices: Arc<dyn Devices>,
    jobs: Jobs,
    sessions: Sessions,
    base: Option<String>,
}

impl std::fmt::Debug for RestState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestState").field("jobs", &self.jobs).field("base", &self.base).finish_non_exhaustive()
    }
}

impl RestState {
    /// # Errors
    /// The HTTP client for web hooks can't be made.
    pub fn new(
        store: Store,
        devices: Arc<dyn Devices>,
        apply: Arc<dyn Apply>,
        settings: Settings,
    ) -> Result<Self, NoClient> {
        let jobs = Jobs::new(store.clone(), apply, settings.jobs)?;
        let sessions = Sessions::new(store.clone(), settings.session_lifetime);
        Ok(Self { store, devices, jobs, sessions, base: settings.base })
    }

    /// The jobs, for [`Jobs::recover`] once the reconciler has started.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }
}

/// The whole API, under `/zstack/v1` and `/v1`, and what tells of it, for an [`Accepting`] listener.
pub fn router(state: RestState) -> IntoMakeServiceWithConnectInfo<Router, Peer> {
    openapi::routes().fallback(answer).with_state(state).into_make_service_with_connect_info()
}

/// Each request runs in a task of its own: a caller that hangs up can't stop it between a commit and what follows, and
/// a fault of ours costs one reply only.
async fn answer(State(state): State<RestState>, ConnectInfo(peer): ConnectInfo<Peer>, request: Request) -> Response {
    match tokio::spawn(async move { state.answer(peer, request).await }).await {
        Ok(Ok(response) | Err(response)) => response,
        Err(_) => internal("the request met a fault of the controller, which its log describes"),
    }
}

/// A request that was found in the table and read.
struct Incoming {
    peer: Peer,
    method: Method,
    found: Match,
    query: Vec<(String, String)>,
    body: Map<String, Value>,
    headers: HeaderMap,
}

/// An `Err` is a reply as well: the one that ends the request early.
type Answer = Result<Response, Response>;

impl RestState {
    async fn answer(&self, peer: Peer, request: Request) -> Answer {
        let (parts, body) = request.into_parts();
        let path = segments(&parts.uri).ok_or_else(|| no_api(parts.uri.path()))?;
        let method = verb(parts.method.as_str());
        if let [jobs, uuid] = path.as_slice()
            && jobs == "api-jobs"
        {
            return match method {
                Some(Method::Get) => self.poll(uuid).await,
                _ => Err(method_not_allowed(parts.method.as_str(), &[Method::Get])),
            };
        }
        let (method, found) = match (method, route::find(method, &path)) {
            (Some(method), Found::Calls(found)) => (method, found),
            (_, Found::WrongVerb(verbs)) => return Err(method_not_allowed(parts.method.as_str(), &verbs)),
            (_, Found::NoPath | Found::Calls(_)) => return Err(no_api(parts.uri.path())),
        };
        if found.iter().all(|call| call.target.needs_session()) {
            header::session(&parts.headers).map_err(bad_request)?;
        }
        let query = pairs(&parts.uri);
        let body = match method {
            Method::Post | Method::Put => read(body).await?,
            Method::Get | Method::Delete => Map::new(),
        };
        let found = choose(method, found, &body).map_err(bad_request)?;
        let incoming = Incoming { peer, method, found, query, body, headers: parts.headers };
        match incoming.found.target {
            Target::Unserved(call) => self.refuse(call, &incoming).await,
            Target::Served(call) => match call.mode {
                Mode::Query(resource) => self.query(resource, &incoming).await,
                Mode::Sync => self.sync(call, &incoming).await,
                Mode::Async => self.job(call, &incoming).await,
            },
        }
    }

    async fn poll(&self, uuid: &str) -> Answer {
        Ok(match self.jobs.poll(&uuid.to_ascii_lowercase()).await.map_err(internal)? {
            Poll::Unknown => plain(StatusCode::NOT_FOUND, "the job has been expired"),
            Poll::Running => running(),
            Poll::Finished { succeeded: true, body } => respond::json(StatusCode::OK, body),
            Poll::Finished { succeeded: false, body } => respond::json(StatusCode::SERVICE_UNAVAILABLE, body),
        })
    }

    async fn query(&self, resource: Resource, incoming: &Incoming) -> Answer {
        let query = match incoming.found.variables.first() {
            Some((_, uuid)) => Query::by_uuid(uuid.as_str()),
            None => grammar::parse(&incoming.query).map_err(bad_request)?,
        };
        let members = self.run_query(resource, &query, &incoming.headers).await;
        let members = members.map_err(|error| failed(&error, true))?;
        let reply = Reply::Inventories(resource, Vec::new());
        Ok(succeeded(members, &reply, true))
    }

    async fn run_query(
        &self,
        resource: Resource,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Map<String, Value>, ApiError> {
        let mut tx = self.store.read().await?;
        let caller = session::caller(&mut tx, header::session(headers).unwrap_or_default()).await?;
        let viewer = (!caller.admin).then_some(caller.account_uuid.as_str());
        query::run(&mut tx, viewer, resource, query).await
    }

    async fn sync(&self, call: &'static Call, incoming: &Incoming) -> Answer {
        let arguments = incoming.arguments(call).map_err(bad_request)?;
        let with_schema = header::wants_schema(&incoming.headers);
        match self.run_sync(call, arguments, incoming).await {
            Ok((members, reply)) => Ok(succeeded(members, &reply, with_schema)),
            Err(error) => Err(failed(&error, with_schema)),
        }
    }

    async fn run_sync(
        &self,
        call: &'static Call,
        mut arguments: Map<String, Value>,
        incoming: &Incoming,
    ) -> Result<(Map<String, Value>, Reply), ApiError> {
        request::check(call, &mut arguments)?;
        match call.api {
            Api::LogInByAccount => opened(&self.sessions.log_in(typed(arguments)?, incoming.peer.0).await?),
            Api::RenewSession => {
                let session = header::session(&incoming.headers).unwrap_or_default();
                session::caller(&mut self.store.look().await?, session).await?;
                opened(&self.sessions.renew(&typed(arguments)?).await?)
            }
            Api::LogOut => {
                self.sessions.log_out(&typed(arguments)?).await?;
                Ok((Map::new(), Reply::Empty))
            }
            Api::ValidateSession => Ok((self.sessions.validity(&typed(arguments)?).await?, Reply::Empty)),
            api => {
                let mut tx = self.store.read().await?;
                let session = header::session(&incoming.headers).unwrap_or_default();
                let caller = session::caller(&mut tx, session).await?;
                let outcome = model::call(&mut tx, &caller, self.devices.as_ref(), api, arguments).await?;
                let members = query::render(&mut tx, &outcome.reply).await?;
                // Members that are inventories by what the table says of the call.
                let reply = match (outcome.reply, call.resource()) {
                    (Reply::Members(_), Some(resource)) => Reply::Inventories(resource, Vec::new()),
                    (reply, _) => reply,
                };
                Ok((members, reply))
            }
        }
    }

    async fn job(&self, call: &'static Call, incoming: &Incoming) -> Answer {
        let mut arguments = incoming.arguments(call).map_err(bad_request)?;
        let session = header::session(&incoming.headers).unwrap_or_default();
        let (ticket, caller) = self.admitted(call.api.name(), session, incoming).await?;
        let mut possible = self.sessions.hash_password(&mut arguments).await.map(|()| caller);
        let uuid = ticket.uuid.clone();
        tracing::debug!(api = ticket.api, job = uuid, "an asynchronous call came in");
        let mut prepared = None;
        let (tx, outcome) = loop {
            let mut tx = self.store.begin().await.map_err(internal)?;
            let outcome = match possible.clone() {
                Ok(caller) => self.decide(&mut tx, call, arguments.clone(), caller, session).await,
                Err(error) => Err(error),
            };
            let needed = outcome.as_ref().ok().and_then(|outcome| outcome.needs_device.clone());
            if needed.is_none() || needed == prepared {
                break (tx, outcome);
            }
            // Other writers need not wait for a device: the call is decided anew when it is ready.
            tx.rollback().await.map_err(internal)?;
            if let Some(device) = needed.clone() {
                possible = self.jobs.prepare(device).await.and(possible);
            }
            prepared = needed;
        };
        self.accept(tx, ticket, outcome).await?;
        Ok(accepted(&self.base(&incoming.headers), &uuid))
    }

    /// The ticket of a call that has a session, and whose that is; else what the caller is answered.
    async fn admitted(
        &self,
        api: &'static str,
        session: &str,
        incoming: &Incoming,
    ) -> Result<(Ticket, Caller), Response> {
        let mut ticket = incoming.ticket(api).map_err(bad_request)?;
        let mut tx = self.store.look().await.map_err(internal)?;
        match session::caller(&mut tx, session).await {
            Ok(caller) => {
                ticket.account_uuid = caller.account_uuid.as_str().into();
                Ok((ticket, caller))
            }
            Err(error) => {
                let reply = accepted(&self.base(&incoming.headers), &ticket.uuid);
                self.jobs.reject(ticket, &error);
                Err(reply)
            }
        }
    }

    async fn decide(
        &self,
        tx: &mut store::Tx,
        call: &'static Call,
        mut arguments: Map<String, Value>,
        mut caller: Caller,
        session: &str,
    ) -> Result<Outcome, ApiError> {
        // Before its turn an account may have gone, but for the administrator's.
        if !caller.admin {
            caller = session::caller(tx, session).await?;
        }
        request::check(call, &mut arguments)?;
        model::call(tx, &caller, self.devices.as_ref(), call.api, arguments).await
    }

    /// A documented call that is not served: the error comes the way in which its result would.
    async fn refuse(&self, call: &'static Unserved, incoming: &Incoming) -> Answer {
        let error = ApiError::unimplemented(format!("{} is not served by this version of vipgate", call.name));
        if call.is_sync() {
            return Err(failed(&error, header::wants_schema(&incoming.headers)));
        }
        let session = header::session(&incoming.headers).unwrap_or_default();
        let (ticket, _) = self.admitted(call.name, session, incoming).await?;
        let uuid = ticket.uuid.clone();
        let tx = self.store.begin().await.map_err(internal)?;
        self.accept(tx, ticket, Err(error)).await?;
        Ok(accepted(&self.base(&incoming.headers), &uuid))
    }

    async fn accept(&self, tx: store::Tx, ticket: Ticket, outcome: Result<Outcome, ApiError>) -> Result<(), Response> {
        self.jobs.accept(tx, ticket, outcome).await.map_err(|refused| match refused {
            Refused::Duplicate(_) => bad_request(BadRequest(refused.to_string())),
            Refused::Store(error) => internal(error),
        })
    }

    /// Where the caller reaches us: `http://host:port`.
    fn base(&self, headers: &HeaderMap) -> String {
        self.base.clone().unwrap_or_else(|| {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            // What came over the network goes into a URL only if it is a host.
            let host = host.filter(|host| host.parse::<Authority>().is_ok()).unwrap_or("localhost");
            format!("http://{host}")
        })
    }
}

impl Incoming {
    fn arguments(&self, call: &Call) -> Result<Map<String, Value>, BadRequest> {
        request::decode(call, self.method, &self.found.variables, &self.query, &self.body)
    }

    fn ticket(&self, api: &'static str) -> Result<Ticket, BadRequest> {
        Ok(Ticket {
            uuid: header::job_uuid(&self.headers)?,
            api,
            with_schema: header::wants_schema(&self.headers),
            account_uuid: "".into(),
            web_hook: header::web_hook(&self.headers)?,
        })
    }
}

/// The segments of a path below `/zstack/v1` or `/v1`, decoded.
fn segments(uri: &Uri) -> Option<Vec<String>> {
    let path = uri.path();
    let path = path.strip_prefix("/zstack").unwrap_or(path).strip_prefix("/v1/")?;
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').map(|part| Some(percent_decode_str(part).decode_utf8().ok()?.into_owned())).collect()
}

fn verb(method: &str) -> Option<Method> {
    match method {
        "GET" => Some(Method::Get),
        "POST" => Some(Method::Post),
        "PUT" => Some(Method::Put),
        "DELETE" => Some(Method::Delete),
        _ => None,
    }
}

fn pairs(uri: &Uri) -> Vec<(String, String)> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}

/// The call that the body names, of those that share a path.
fn choose(method: Method, mut found: Vec<Match>, body: &Map<String, Value>) -> Result<Match, BadRequest> {
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

/// A body as JSON; an empty one is an empty object.
async fn read(body: Body) -> Result<Map<String, Value>, Response> {
    let bytes = match timeout(PATIENCE, to_bytes(body, MOST_BODY)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let text = format!("the body is cut off or has more than {MOST_BODY} bytes");
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

/// Arguments that passed the checks have the request's form.
fn typed<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, ApiError> {
    serde_json::from_value(arguments.into()).map_err(|error| ApiError::invalid_argument(error.to_string()))
}

/// The reply that hands over a session.
fn opened(session: &SessionInventory) -> Result<(Map<String, Value>, Reply), ApiError> {
    let printed = serde_json::to_value(session).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok((Map::from_iter([("inventory".to_owned(), printed)]), Reply::Inventory(Resource::Session, String::new())))
}
