//! Web hooks: the result of a job is posted to the URL that its caller gave.
//!
//! A post that fails (no connection, no 2xx) is repeated. The number of failures is stored, so that a restart continues where
//! the last run stopped. Each account has a queue of its own: hooks that do not answer delay only those of their account.

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

/// Time between two posts of a hook that fails.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

/// Posts after the first one.
pub(super) const RETRIES: u32 = 15;

/// Of one post, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Hooks of an account that are posted to at the same time.
const MAX_CONCURRENT: usize = 32;

/// Hooks of an account that wait or are posted to; further ones are dropped.
const MAX_QUEUED: usize = 1000;

/// The longest URL, in bytes.
const MAX_URL: usize = 2048;

/// The URL of a web hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookUrl(Url);

/// The text is no URL of a web hook.
#[derive(Debug, thiserror::Error)]
#[error("X-Web-Hook `{0}` can't be called: give http://host:port/path, at most {most} bytes of it", most = MAX_URL)]
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
            Ok(url) if url.scheme() == "http" && url.has_host() && url.as_str().len() <= MAX_URL => Ok(Self(url)),
            _ => Err(BadHook(text.chars().take(MAX_URL).collect())),
        }
    }
}

/// The HTTP client of web hooks can't be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the client of web hooks: {0}")]
pub struct NoClient(#[source] reqwest::Error);

/// Posts results to web hooks.
pub(super) struct Hooks {
    client: Client,
    /// Account -> the queue that each of its hooks holds.
    queues: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    settings: Settings,
}

impl Hooks {
    pub(super) fn new(settings: Settings) -> Result<Self, NoClient> {
        let client = Client::builder().timeout(TIMEOUT).redirect(redirect::Policy::none()).no_proxy().build();
        let client = client.map_err(NoClient)?;
        Ok(Self { client, queues: Mutex::default(), settings })
    }

    /// The queue of an account's hooks; `None` if it is full.
    fn queue(&self, account: &Arc<str>) -> Option<Arc<Semaphore>> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| Arc::strong_count(queue) > 1);
        let queue = queues.entry(Arc::clone(account)).or_insert_with(|| Arc::new(Semaphore::new(MAX_CONCURRENT)));
        (Arc::strong_count(queue) <= MAX_QUEUED).then(|| Arc::clone(queue))
    }

    /// Posts the result of a finished job to its hook, if it has one, until that succeeds or has failed too often.
    pub(super) async fn deliver(&self, store: &Store, job_uuid: &str, account: &Arc<str>) -> store::Result<()> {
        match self.queue(account) {
            Some(queue) => self.call(store, job_uuid, &queue).await?,
            None => tracing::warn!(
                job = job_uuid,
                account = &**account,
                "a web hook is dropped: {MAX_QUEUED} of this account wait for an answer"
            ),
        }
        let mut tx = store.begin().await?;
        web_hook::delete(&mut tx, job_uuid).await?;
        tx.commit().await
    }

    async fn call(&self, store: &Store, job_uuid: &str, queue: &Semaphore) -> store::Result<()> {
        let Some(hook) = web_hook::get(&mut store.look().await?, job_uuid).await? else {
            return Ok(());
        };
        for failures in hook.failures..=self.settings.hook_retries {
            if failures > 0 {
                tokio::time::sleep(self.settings.hook_interval).await;
            }
            match self.post(job_uuid, &hook, queue).await {
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

    async fn post(&self, job_uuid: &str, hook: &WebHook, queue: &Semaphore) -> Result<(), String> {
        // The semaphore is never closed, so the permit is always granted.
        let _permit = queue.acquire().await;
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
        let mut waiting: Vec<_> = std::iter::from_fn(|| hooks.queue(&one)).take(2 * MAX_QUEUED).collect();
        assert_eq!(waiting.len(), MAX_QUEUED);
        let queue = hooks.queue(&other).unwrap();
        assert_eq!(queue.available_permits(), MAX_CONCURRENT);
        assert!(!Arc::ptr_eq(&queue, &waiting[0]));
        waiting.pop();
        assert!(hooks.queue(&one).is_some());
        drop((waiting, queue));
        hooks.queue(&other).unwrap();
        assert!(hooks.queues.lock().unwrap().len() <= 1);
    }
}
