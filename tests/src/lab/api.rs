//! A client of the REST API: sends JSON, polls the job, returns JSON or an error.

use super::{Namespace, Result, wait_until};
use anyhow::{Context as _, bail};
use reqwest::{
    Method,
    blocking::{Client, RequestBuilder, Response},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};
use std::{fmt, time::Duration};

/// A job is done when the kernel holds its change: usually after milliseconds, on a busy machine after some seconds.
const JOB: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Api {
    http: Client,
    base: String,
    session: Option<String>,
    narrated: bool,
}

/// A reply, unparsed.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
}

/// A call that was refused, immediately or by its job.
#[derive(Clone, Debug)]
pub struct Failure {
    pub status: u16,
    /// The error object; null where the reply was plain text.
    pub error: Value,
    pub text: String,
}

impl Failure {
    /// The error code, such as `SYS.1007`.
    #[must_use]
    pub fn code(&self) -> &str {
        self.error["code"].as_str().unwrap_or_default()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.status, self.text)
    }
}

impl std::error::Error for Failure {}

impl Reply {
    /// The body as JSON; an empty one is null.
    pub fn json(&self) -> Result<Value> {
        if self.text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.text).with_context(|| format!("not JSON: {}", self.text))
    }

    fn failure(self) -> Failure {
        let error = self.json().map(|body| body["error"].clone()).unwrap_or_default();
        Failure { status: self.status, error, text: self.text }
    }
}

impl Api {
    /// A client inside `namespace`, not logged in.
    pub fn new(namespace: &Namespace, base: &str) -> Result<Self> {
        // Each request on a new connection: a connection would not survive a controller that is killed between two requests.
        let http = namespace.within(|| {
            let builder = Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(20));
            builder.build().context("cannot make an HTTP client")
        })?;
        Ok(Self { http, base: base.to_owned(), session: None, narrated: false })
    }

    /// Prints each call as the equivalent curl command.
    #[must_use]
    pub fn narrated(mut self) -> Self {
        self.narrated = true;
        self
    }

    #[must_use]
    pub fn without_session(mut self) -> Self {
        self.session = None;
        self
    }

    #[must_use]
    pub fn with_session(mut self, session: &str) -> Self {
        self.session = Some(session.to_owned());
        self
    }

    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Logs in; returns a client that uses the new session.
    pub fn log_in(self, account: &str, password: &str) -> Result<Self> {
        let digest = hex::encode(Sha512::digest(password));
        let body = json!({ "logInByAccount": { "accountName": account, "password": digest } });
        let reply = self.put("/accounts/login", &body)?;
        let session = reply["inventory"]["uuid"].as_str().context("a session has a uuid")?;
        let session = session.to_owned();
        Ok(self.with_session(&session))
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body))
    }

    pub fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::PUT, path, Some(body))
    }

    pub fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, None)
    }

    /// A create call: takes the parameters, returns the inventory.
    pub fn create(&self, path: &str, parameters: &Value) -> Result<Value> {
        let mut reply = self.post(path, &json!({ "params": parameters }))?;
        Ok(reply["inventory"].take())
    }

    /// The inventories that a query finds.
    pub fn query(&self, path: &str) -> Result<Vec<Value>> {
        let mut reply = self.get(path)?;
        match reply["inventories"].take() {
            Value::Array(inventories) => Ok(inventories),
            _ => bail!("{path} answers {reply}"),
        }
    }

    /// Makes a call that must fail; returns its failure.
    pub fn refused(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Failure> {
        match self.call(method.clone(), path, body) {
            Ok(reply) => bail!("{method} {path} was not refused: {reply}"),
            Err(error) => error.downcast::<Failure>(),
        }
    }

    /// Makes one call and follows its job to the end.
    ///
    /// # Errors
    /// A [`Failure`] if the call was refused; another error if there was no answer.
    pub fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let reply = self.send(method, path, body)?;
        let reply = if reply.status == 202 { self.follow(&reply)? } else { reply };
        if reply.status == 200 { reply.json() } else { Err(reply.failure().into()) }
    }

    /// Sends one request and returns its reply, whatever the status. `path` is below `/zstack/v1`.
    pub fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Reply> {
        let url = format!("{}/zstack/v1{path}", self.base);
        if self.narrated {
            self.narrate(&method, &url, body);
        }
        let mut request = self.request(method, &url);
        if let Some(body) = body {
            request = request.json(body);
        }
        reply(request.send())
    }

    /// A request to build by hand: headers, bodies that are not JSON. `url` is absolute.
    pub fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.session {
            Some(session) => request.header("Authorization", format!("OAuth {session}")),
            None => request,
        }
    }

    /// Sends a request built by hand.
    pub fn finish(&self, request: RequestBuilder) -> Result<Reply> {
        reply(request.send())
    }

    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Polls an accepted call's job until it is done.
    pub fn follow(&self, accepted: &Reply) -> Result<Reply> {
        let body = accepted.json()?;
        let location = body["location"].as_str().with_context(|| format!("no location in {body}"))?;
        wait_until(&format!("job {location}"), JOB, || {
            let reply = reply(self.http.get(location).send())?;
            anyhow::ensure!(reply.status != 202, "it is still running");
            Ok(reply)
        })
    }

    fn narrate(&self, method: &Method, url: &str, body: Option<&Value>) {
        let session = if self.session.is_some() { " -H \"Authorization: OAuth $SESSION\"" } else { "" };
        let body = body.map(|body| format!(" -d '{body}'")).unwrap_or_default();
        println!("  r curl -s -X {method}{session} '{url}'{body}");
    }
}

fn reply(response: reqwest::Result<Response>) -> Result<Reply> {
    let response = response.context("no answer from the API")?;
    let status = response.status().as_u16();
    let text = response.text().context("the API's answer broke off")?;
    Ok(Reply { status, text })
}
