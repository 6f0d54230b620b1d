//! Web hooks: the result of a job is posted to the URL that its caller gave.
//!
//! A call that fails (no connection, no 2xx) is repeated; how often it failed is stored, so that a restart goes on where
//! the last run stopped. Each account's hooks wait for its own only: whose hooks do not answer holds up nobody else's.

use std::{
    collections::HashMap,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Client, Url, redirect};
use tokio::sync::Semaphore;

use super::Settings;
use crate::store::{
    self, Store,
    web_hook::{self, WebHook},
};

/// Of one call, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Hooks of an account that are called at the same time.
const AT_ONCE: usize = 32;

/// Hooks of an account that wait, or are called; further ones are not.
const MOST_WAITING: usize = 1000;

/// The longest URL, in bytes.
const MOST_URL: usize = 2048;

/// Where a result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookUrl(Url);

/// A URL that can't be called.
#[derive(Debug, thiserror::Error)]
#[error("X-Web-Hook `{0}` can't be called: give http://host:port/path, at most {most} bytes of it", most = MOST_URL)]
pub struct BadHook(String);

impl HookUrl {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for HookUrl {
    type Err = BadHook;

    fn from_str(text: &str) -> Result<Self, BadHook> {
        match Url::parse(text) {
            Ok(url) if url.scheme() == "http" && url.has_host() && url.as_str().len() <= MOST_URL => Ok(Self(url)),
            _ => Err(BadHook(text.chars().take(MOST_URL).collect())),
        }
    }
}

/// The client of web hooks can't be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the client of web hooks: {0}")]
pub struct NoClient(#[source] reqwest::Error);

/// Delivers results.
pub(super) struct Hooks {
    client: Client,
    /// Account -> its permits, held by each of its hooks.
    lines: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    settings: Settings,
}

impl Hooks {
    pub(super) fn new(settings: Settings) -> Result<Self, NoClient> {
        let client = Client::builder().timeout(TIMEOUT).redirect(redirect::Policy::none()).no_proxy().build();
        let client = client.map_err(NoClient)?;
        Ok(Self { client, lines: Mutex::default(), settings })
    }

    /// The line of an account's hooks; `None`: too many stand in it.
    fn line(&self, account: &Arc<str>) -> Option<Arc<Semaphore>> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|_, line| Arc::strong_count(line) > 1);
        let line = lines.entry(Arc::clone(account)).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
        (Arc::strong_count(line) <= MOST_WAITING).then(|| Arc::clone(line))
    }

    /// Calls the hook of an account's finished job, if it has one, until it answers or has failed too often.
    pub(super) async fn deliver(&self, store: &Store, job_uuid: &str, account: &Arc<str>) -> store::Result<()> {
        match self.line(account) {
            Some(line) => self.call(store, job_uuid, &line).await?,
            None => tracing::warn!(
                job = job_uuid,
                account = &**account,
                "a web hook is not called: {MOST_WAITING} of this account wait for an answer"
            ),
        }
        let mut tx = store.begin().await?;
        web_hook::delete(&mut tx, job_uuid).await?;
        tx.commit().await
    }

    async fn call(&self, store: &Store, job_uuid: &str, line: &Semaphore) -> store::Result<()> {
        let Some(hook) = web_hook::get(&mut store.look().await?, job_uuid).await? else {
            return Ok(());
        };
        for failures in hook.failures..=self.settings.hook_retries {
            if failures > 0 {
                tokio::time::sleep(self.settings.hook_interval).await;
            }
            match self.post(job_uuid, &hook, line).await {
                Ok(()) => break,
                Err(reason) => {
                    tracing::debug!(job = job_uuid, failures, reason, "a web hook failed");
                    let mut tx = store.begin().await?;
                    web_hook::set_failures(&mut tx, job_uuid, failures + 1).await?;
                    tx.commit().await?;
                }
            }
        }
        Ok(())
    }

    async fn post(&self, job_uuid: &str, hook: &WebHook, line: &Semaphore) -> Result<(), String> {
        // Never closed, so the permit is always granted.
        let _permit = line.acquire().await;
        let answer = self
            .client
            .post(&hook.url)
            .header("Content-Type", "application/json")
            .header("X-Job-UUID", job_uuid)
            .header("X-Job-Success", hook.succeeded.to_string())
            .body(hook.body.clone())
            .send()
            .await
            .map_err(|error| error.without_url().to_string())?;
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_with_many_hooks_that_wait_has_no_place_for_more_and_others_have_theirs() {
        let hooks = Hooks::new(Settings::default()).unwrap();
        let [one, other] = ["one", "other"].map(Arc::from);
        let mut waiting: Vec<_> = std::iter::from_fn(|| hooks.line(&one)).take(2 * MOST_WAITING).collect();
        assert_eq!(waiting.len(), MOST_WAITING);
        let line = hooks.line(&other).unwrap();
        assert_eq!(line.available_permits(), AT_ONCE);
        assert!(!Arc::ptr_eq(&line, &waiting[0]));
        waiting.pop();
        assert!(hooks.line(&one).is_some());
        drop((waiting, line));
        hooks.line(&other).unwrap();
        assert!(hooks.lines.lock().unwrap().len() <= 1);
    }
}
