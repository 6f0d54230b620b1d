//! Asynchronous calls: the reply is the URL of a job, where the result is polled.

use axum::{
    http::{HeaderMap, StatusCode, header::HOST, uri::Authority},
    response::Response,
};
use serde_json::{Map, Value};
use vipgate_api::{
    ApiError, Call,
    request::{self, BadRequest},
    unserved::Unserved,
};

use super::{
    Answer, RestState, header,
    request::Incoming,
    respond::{self, accepted, bad_request, failed, internal, plain, running},
    session,
};
use crate::{
    jobs::{Poll, Refused, Ticket},
    model::{self, Caller, Outcome},
    store::Tx,
};

impl RestState {
    pub(super) async fn poll(&self, uuid: &str) -> Answer {
        Ok(match self.jobs.poll(&uuid.to_ascii_lowercase()).await.map_err(internal)? {
            Poll::Unknown => plain(StatusCode::NOT_FOUND, "the job has been expired"),
            Poll::Running => running(),
            Poll::Finished { succeeded: true, body } => respond::json(StatusCode::OK, body),
            Poll::Finished { succeeded: false, body } => respond::json(StatusCode::SERVICE_UNAVAILABLE, body),
        })
    }

    pub(super) async fn job(&self, call: &'static Call, incoming: &Incoming) -> Answer {
        let mut arguments = incoming.arguments(call).map_err(bad_request)?;
        let (ticket, caller) = self.admit(call.api.name(), incoming).await?;
        let mut permitted = self.sessions.hash_password(&mut arguments).await.map(|()| caller);
        let uuid = ticket.uuid.clone();
        tracing::debug!(api = ticket.api, job = uuid, "an asynchronous call came in");
        let mut prepared = None;
        let (tx, outcome) = loop {
            let mut tx = self.store.begin().await.map_err(internal)?;
            let outcome = match permitted.clone() {
                Ok(caller) => self.decide(&mut tx, call, arguments.clone(), caller, incoming.session()).await,
                Err(error) => Err(error),
            };
            let needed = outcome.as_ref().ok().and_then(|outcome| outcome.needs_device.clone());
            if needed.is_none() || needed == prepared {
                break (tx, outcome);
            }
            // Other writers must not wait for the device: the call is decided again once the device is ready.
            tx.rollback().await.map_err(internal)?;
            if let Some(device) = needed.clone() {
                permitted = self.jobs.prepare(device).await.and(permitted);
            }
            prepared = needed;
        };
        self.accept(tx, ticket, outcome).await?;
        Ok(accepted(&self.base(&incoming.headers), &uuid))
    }

    /// The ticket of the call and the account of its session; an error is the reply to a call without a session.
    async fn admit(&self, api: &'static str, incoming: &Incoming) -> Result<(Ticket, Caller), Response> {
        let mut ticket = incoming.ticket(api).map_err(bad_request)?;
        let mut tx = self.store.look().await.map_err(internal)?;
        match session::caller(&mut tx, incoming.session()).await {
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
        tx: &mut Tx,
        call: &'static Call,
        mut arguments: Map<String, Value>,
        mut caller: Caller,
        session: &str,
    ) -> Result<Outcome, ApiError> {
        // The account may have been deleted while the call waited for the writer; the administrator's can't be.
        if !caller.admin {
            caller = session::caller(tx, session).await?;
        }
        request::check(call, &mut arguments)?;
        model::call(tx, &caller, self.devices.as_ref(), call.api, arguments).await
    }

    /// Replies to a documented call that is not served: the error takes the way that the result would take.
    pub(super) async fn refuse(&self, call: &'static Unserved, incoming: &Incoming) -> Answer {
        let error = ApiError::unimplemented(format!("{} is not served by this version of vipgate", call.name));
        if call.is_sync() {
            return Err(failed(&error, header::wants_schema(&incoming.headers)));
        }
        let (ticket, _) = self.admit(call.name, incoming).await?;
        let uuid = ticket.uuid.clone();
        let tx = self.store.begin().await.map_err(internal)?;
        self.accept(tx, ticket, Err(error)).await?;
        Ok(accepted(&self.base(&incoming.headers), &uuid))
    }

    async fn accept(&self, tx: Tx, ticket: Ticket, outcome: Result<Outcome, ApiError>) -> Result<(), Response> {
        self.jobs.accept(tx, ticket, outcome).await.map_err(|refused| match refused {
            Refused::Duplicate(_) => bad_request(BadRequest(refused.to_string())),
            Refused::Store(error) => internal(error),
        })
    }

    /// The `http://host:port` at which the caller reaches this API.
    fn base(&self, headers: &HeaderMap) -> String {
        self.base.clone().unwrap_or_else(|| {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            // The header is input: it becomes a part of the URL only if it is a host.
            let host = host.filter(|host| host.parse::<Authority>().is_ok()).unwrap_or("localhost");
            format!("http://{host}")
        })
    }
}
