//! Queries and synchronous calls: the reply is the result.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use vipgate_api::{
    Api, ApiError, Call, Reply, Resource,
    query::{self as grammar, Query},
    request,
    session::SessionInventory,
};

use super::{
    Answer, RestState, header,
    request::Incoming,
    respond::{bad_request, failed, succeeded},
    session,
};
use crate::{model, query};

impl RestState {
    pub(super) async fn query(&self, resource: Resource, incoming: &Incoming) -> Answer {
        let query = match incoming.found.variables.first() {
            Some((_, uuid)) => Query::by_uuid(uuid.as_str()),
            None => grammar::parse(&incoming.query).map_err(bad_request)?,
        };
        let members = self.run_query(resource, &query, incoming.session()).await;
        let members = members.map_err(|error| failed(&error, true))?;
        let reply = Reply::Inventories(resource, Vec::new());
        Ok(succeeded(members, &reply, true))
    }

    async fn run_query(
        &self,
        resource: Resource,
        query: &Query,
        session: &str,
    ) -> Result<Map<String, Value>, ApiError> {
        let mut tx = self.store.read().await?;
        let caller = session::caller(&mut tx, session).await?;
        let viewer = (!caller.admin).then_some(caller.account_uuid.as_str());
        query::run(&mut tx, viewer, resource, query).await
    }

    pub(super) async fn sync(&self, call: &'static Call, incoming: &Incoming) -> Answer {
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
                session::caller(&mut self.store.look().await?, incoming.session()).await?;
                opened(&self.sessions.renew(&typed(arguments)?).await?)
            }
            Api::LogOut => {
                self.sessions.log_out(&typed(arguments)?).await?;
                Ok((Map::new(), Reply::Empty))
            }
            Api::ValidateSession => Ok((self.sessions.validity(&typed(arguments)?).await?, Reply::Empty)),
            api => {
                let mut tx = self.store.read().await?;
                let caller = session::caller(&mut tx, incoming.session()).await?;
                let outcome = model::call(&mut tx, &caller, self.devices.as_ref(), api, arguments).await?;
                let members = query::render(&mut tx, &outcome.reply).await?;
                // Such members are inventories if the table of calls says so.
                let reply = match (outcome.reply, call.resource()) {
                    (Reply::Members(_), Some(resource)) => Reply::Inventories(resource, Vec::new()),
                    (reply, _) => reply,
                };
                Ok((members, reply))
            }
        }
    }
}

/// The arguments, which passed the checks, as the type of the request.
fn typed<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, ApiError> {
    serde_json::from_value(arguments.into()).map_err(|error| ApiError::invalid_argument(error.to_string()))
}

/// The reply that holds a session.
fn opened(session: &SessionInventory) -> Result<(Map<String, Value>, Reply), ApiError> {
    let printed = serde_json::to_value(session).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok((Map::from_iter([("inventory".to_owned(), printed)]), Reply::Inventory(Resource::Session, String::new())))
}
