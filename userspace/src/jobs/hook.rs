//! Web hooks: the result of a job is posted to the URL that its caller gave.
//!
//! A call that fails (no connection, no 2xx) is repeated; how often it failed is stored, so that a restart goes on where
//! the last run stopped.

use std::{str::FromStr, time::Duration};

use reqwest::{Client, Url, redirect};
use tokio::sync::Semaphore;

use super::{Settings, rows};
use crate::store::{self, Store};

/// Of one call, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Hooks that are called at the same time.
const AT_ONCE: usize = 32;

/// Where a result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookUrl(Url);

/// A URL that can't be called.
#[derive(Debug, thiserror::Error)]
#[error("X-Web-Hook `{0}` can't be called: give http://host:port/path")]
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
            Ok(url) if url.scheme() == "http" && url.has_host() => Ok(Self(url)),
            _ => Err(BadHook(text.to_owned())),
        }
    }
}

/// Delivers results.
pub(super) struct Hooks {
    client: Client,
    permits: Semaphore,
    settings: Settings,
}

impl Hooks {
    pub(super) fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let client = Client::builder().timeout(TIMEOUT).redirect(redirect::Policy::none()).no_proxy().build()?;
        Ok(Self { client, permits: Semaphore::new(AT_ONCE), settings })
    }

    /// Calls the hook of a finished job, if it has one, until it answers or has failed too often.
    pub(super) async fn deliver(&self, store: &Store, job_uuid: &str) -> store::Result<()> {
        let Some(hook) = rows::hook(&mut store.look().await?, job_uuid).await? else {
            return Ok(());
        };
        for failures in hook.failures..=self.settings.hook_retries {
            if failures > 0 {
                tokio::time::sleep(self.settings.hook_interval).await;
            }
            match self.post(job_uuid, &hook).await {
                Ok(()) => break,
                Err(reason) => {
                    tracing::debug!(job = job_uuid, failures, reason, "a web hook failed");
                    let mut tx = store.begin().await?;
                    rows::hook_failed(&mut tx, job_uuid, failures + 1).await?;
                    tx.commit().await?;
                }
            }
        }
        let mut tx = store.begin().await?;
        rows::delete_hook(&mut tx, job_uuid).await?;
        tx.commit().await
    }

    async fn post(&self, job_uuid: &str, hook: &rows::Hook) -> Result<(), String> {
        // Never closed, so the permit is always granted.
        let _permit = self.permits.acquire().await;
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
