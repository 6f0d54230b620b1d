//! The REST API over HTTP: finds the call, reads the request, checks the session, and turns results into replies.
//!
//! Routing, decoding and checking follow the table of calls (`vipgate_api::calls`); nothing here knows a resource. A
//! request that can't be read gets a plain 400, 404 or 405. Every other failure is an error object: with 503 for a
//! synchronous call, in the result of the job for an asynchronous one. Touches the store, the rules and the jobs; never
//! the kernel.

mod connection;
mod hashing;
mod header;
mod job;
mod login_attempts;
mod openapi;
mod request;
mod respond;
mod route;
mod serving;
mod session;
mod sync;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State, connect_info::IntoMakeServiceWithConnectInfo},
    response::Response,
};
use serde_json::Map;
use vipgate_api::call::{Method, Mode};
use vipgate_state::{Apply, Devices};

pub use self::{
    connection::{Accepting, Peer},
    serving::serve,
    session::{LIFETIME, set_first_password},
};
use self::{
    request::{Incoming, choose, pairs, read, segments, verb},
    respond::{bad_request, internal, method_not_allowed, no_api},
    route::{Found, Target},
    session::Sessions,
};
use crate::{
    jobs::{self, Jobs, NoClient},
    store::Store,
};

/// The API's settings; the defaults are the documented ones.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://host:port` of the URLs to poll; `None` takes the `Host` header of the request.
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

/// The whole API, under `/zstack/v1` and `/v1`, and its OpenAPI document, for an [`Accepting`] listener.
pub fn router(state: RestState) -> IntoMakeServiceWithConnectInfo<Router, Peer> {
    openapi::routes().fallback(answer).with_state(state).into_make_service_with_connect_info()
}

/// Runs each request in a task of its own: a client that disconnects can't stop it between a commit and what follows, and
/// a panic costs one reply only.
async fn answer(State(state): State<RestState>, ConnectInfo(peer): ConnectInfo<Peer>, request: Request) -> Response {
    match tokio::spawn(async move { state.answer(peer, request).await }).await {
        Ok(Ok(response) | Err(response)) => response,
        Err(_) => internal("the controller panicked; its log has the details"),
    }
}

/// The reply; an `Err` is the one that ends the request early.
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
}
