//! Jobs: asynchronous calls that were accepted, until their results expire.
//!
//! A call's rules, its writes and its job are one transaction, so that an accepted call is never lost. Afterwards a
//! background task brings the kernel to the stored state and stores the result. A job that a crash interrupts is still
//! `Applying` in the store, and is applied again at the next start: applying is level-triggered, so applying twice does no
//! harm. Touches the store, and the kernel side through [`Apply`] only.

mod body;
mod finish;
mod hook;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use vipgate_api::ApiError;
use vipgate_state::{Apply, Change};

use self::finish::Applied;
pub use self::{
    body::{failure, success},
    hook::{BadHook, HookUrl, NoClient},
};
use crate::{
    model::Outcome,
    query,
    store::{
        self, Store, Tx,
        job::{self, Progress},
        web_hook,
    },
};

/// Times and limits, which tests shorten; the defaults are the documented ones.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a result can be fetched after its job has finished.
    pub retention: Duration,
    /// At most this many results are kept, the latest ones.
    pub max_finished: u32,
    /// How long a poll waits for its job to end. Nearly all jobs end sooner, while a client would poll again after a
    /// second, as the SDKs do. A client that polls many jobs in turn must not wait long for each.
    pub hold: Duration,
    /// Time between two calls of a web hook that fails.
    pub hook_interval: Duration,
    /// Calls after the first one.
    pub hook_retries: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(3 * 3600),
            max_finished: 20_000,
            hold: Duration::from_millis(100),
            hook_interval: hook::INTERVAL,
            hook_retries: hook::RETRIES,
        }
    }
}

/// An asynchronous call that came in.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// 32 hexadecimal digits: the last part of the URL to poll.
    pub uuid: String,
    /// Name of the call.
    pub api: &'static str,
    /// The caller wants the `schema` in the result.
    pub with_schema: bool,
    /// The account that calls.
    pub account_uuid: Arc<str>,
    pub web_hook: Option<HookUrl>,
}

impl Ticket {
    /// The account whose web hook is to be called.
    fn hook_account(&self) -> Option<Arc<str>> {
        self.web_hook.as_ref().map(|_| Arc::clone(&self.account_uuid))
    }
}

/// What a poll finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Poll {
    /// There never was such a job, or its result has expired.
    Unknown,
    Running,
    Finished {
        succeeded: bool,
        /// JSON.
        body: String,
    },
}

/// Why no job was made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("there is a job `{0}` already: choose another X-Job-UUID")]
    Duplicate(String),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The jobs of a store; clones share them.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    apply: Arc<dyn Apply>,
    settings: Settings,
    hooks: hook::Hooks,
    /// Jobs that are being applied, by uuid; each sender wakes the polls of its job. Most polls are for one of these, and
    /// need not ask the database.
    running: Mutex<HashMap<String, watch::Sender<Option<Poll>>>>,
    /// Jobs that are applied but not stored yet: the first one waits for the writer, and stores all of them.
    applied: Mutex<Vec<Applied>>,
    /// When expired results were deleted last, in milliseconds since 1970.
    last_cleanup: AtomicI64,
    /// Results of calls without a session, which are not stored: uuid of the job and body, the oldest first.
    rejected: Mutex<VecDeque<(String, String)>>,
}

/// At most this many results of calls without a session are kept, the latest ones.
const MAX_REJECTED: usize = 1000;

/// Milliseconds between two deletions of expired results.
const CLEANUP_INTERVAL: i64 = 1000;

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

impl Jobs {
    /// # Errors
    /// The client for web hooks can't be made.
    pub fn new(store: Store, apply: Arc<dyn Apply>, settings: Settings) -> Result<Self, NoClient> {
        let hooks = hook::Hooks::new(settings)?;
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                apply,
                settings,
                hooks,
                running: Mutex::default(),
                applied: Mutex::default(),
                last_cleanup: AtomicI64::new(0),
                rejected: Mutex::default(),
            }),
        })
    }

    /// Ends the transaction of a call and makes its job. With an `outcome` both are committed together, and a task
    /// begins to apply it; with an error nothing of the transaction stays, and the job has failed already.
    ///
    /// # Errors
    /// The uuid is taken or the database fails; then nothing has happened.
    pub async fn accept(&self, mut tx: Tx, ticket: Ticket, outcome: Result<Outcome, ApiError>) -> Result<(), Refused> {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                tx.rollback().await?;
                let tx = self.inner.store.begin().await?;
                let body = failure(&error, ticket.with_schema);
                return self.enter_finished(tx, ticket, false, body).await;
            }
        };
        let change = Change { vips: outcome.vips, devices: outcome.devices };
        if change.is_empty() {
            let body = success(query::render(&mut tx, &outcome.reply).await?, &outcome.reply, ticket.with_schema);
            return self.enter_finished(tx, ticket, true, body).await;
        }
        let job =
            job::Applying { uuid: ticket.uuid.clone(), change, reply: outcome.reply, with_schema: ticket.with_schema };
        let is_new = job::insert_applying(&mut tx, ticket.api, &job).await?;
        enter_hook(&mut tx, &ticket, is_new).await?;
        self.commit(tx).await?;
        self.apply_in_background(job, ticket.hook_account());
        Ok(())
    }

    /// Commits the transaction with a job that has finished already, and calls its web hook.
    async fn enter_finished(&self, mut tx: Tx, ticket: Ticket, succeeded: bool, body: String) -> Result<(), Refused> {
        let hook_account = ticket.hook_account();
        let result = job::Finished { uuid: &ticket.uuid, succeeded, body };
        let is_new = job::insert_finished(&mut tx, ticket.api, ticket.with_schema, &result).await?;
        enter_hook(&mut tx, &ticket, is_new).await?;
        self.commit(tx).await?;
        self.call_hook(ticket.uuid, hook_account);
        Ok(())
    }

    /// Makes a failed job for a call without a session, so that its caller can fetch the error. Nothing is stored and no
    /// web hook is called, since anybody who reaches the API can send such a call.
    pub fn reject(&self, ticket: Ticket, error: &ApiError) {
        let mut rejected = self.inner.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        if rejected.len() == MAX_REJECTED {
            rejected.pop_front();
        }
        rejected.push_back((ticket.uuid, failure(error, ticket.with_schema)));
    }

    /// Makes a device carry the programs before a call that needs it is accepted.
    ///
    /// # Errors
    /// The device can't carry them; the call is to be refused then.
    pub async fn prepare(&self, device: String) -> Result<(), ApiError> {
        self.inner.apply.prepare(device).await.map_err(|error| ApiError::operation(error.to_string()))
    }

    /// Returns what is known of a job; waits up to [`Settings::hold`] for the end of one that runs.
    ///
    /// # Errors
    /// The database fails.
    pub async fn poll(&self, uuid: &str) -> store::Result<Poll> {
        let running = self.running().get(uuid).map(watch::Sender::subscribe);
        if let Some(mut end) = running {
            return Ok(match timeout(self.inner.settings.hold, end.wait_for(Option::is_some)).await {
                Ok(Ok(result)) => result.clone().unwrap_or(Poll::Running),
                // The job is still running, or its result could not be stored and the next start applies it again.
                Ok(Err(_)) | Err(_) => Poll::Running,
            });
        }
        let mut tx = self.inner.store.look().await?;
        let oldest = self.oldest(&tx);
        match job::progress(&mut tx, uuid, oldest).await? {
            Some(Progress::Applying) => return Ok(Poll::Running),
            Some(Progress::Finished { succeeded, body }) => return Ok(Poll::Finished { succeeded, body }),
            None => {}
        }
        let rejected = self.inner.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        let found = rejected.iter().rev().find(|(job, _)| job == uuid);
        Ok(found.map_or(Poll::Unknown, |(_, body)| Poll::Finished { succeeded: false, body: body.clone() }))
    }

    /// Continues what the last run left: applies jobs that have no result yet, and calls pending web hooks.
    ///
    /// # Errors
    /// The database fails.
    pub async fn recover(&self) -> store::Result<()> {
        let mut tx = self.inner.store.begin().await?;
        let applying = job::applying(&mut tx).await?;
        let hooks = web_hook::pending(&mut tx).await?;
        self.commit(tx).await?;
        if !applying.is_empty() {
            tracing::info!(jobs = applying.len(), "finishing the jobs that the last run left");
        }
        // The account of a job is not stored.
        let nobody: Arc<str> = Arc::from("");
        for job in applying {
            self.apply_in_background(job, Some(Arc::clone(&nobody)));
        }
        for uuid in hooks {
            self.call_hook(uuid, Some(Arc::clone(&nobody)));
        }
        Ok(())
    }

    /// Commits, and deletes expired results every [`CLEANUP_INTERVAL`].
    async fn commit(&self, mut tx: Tx) -> store::Result<()> {
        let last = self.inner.last_cleanup.load(Ordering::Relaxed);
        if tx.now().saturating_sub(last) >= CLEANUP_INTERVAL {
            self.inner.last_cleanup.store(tx.now(), Ordering::Relaxed);
            let oldest = self.oldest(&tx);
            job::delete_finished(&mut tx, oldest, self.inner.settings.max_finished).await?;
        }
        tx.commit().await
    }

    /// Jobs that finished before this time, in milliseconds since 1970, have expired.
    fn oldest(&self, tx: &Tx) -> i64 {
        let retention = i64::try_from(self.inner.settings.retention.as_millis()).unwrap_or(i64::MAX);
        tx.now().saturating_sub(retention)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Option<Poll>>>> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied(&self) -> MutexGuard<'_, Vec<Applied>> {
        self.inner.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call_hook(&self, uuid: String, hook_account: Option<Arc<str>>) {
        let Some(account) = hook_account else { return };
        let jobs = self.clone();
        tokio::spawn(async move {
            if let Err(error) = jobs.inner.hooks.deliver(&jobs.inner.store, &uuid, &account).await {
                tracing::error!(job = uuid, %error, "the state of a web hook can't be stored");
            }
        });
    }
}

/// Refuses a job whose uuid is taken; otherwise enters its web hook.
async fn enter_hook(tx: &mut Tx, ticket: &Ticket, is_new: bool) -> Result<(), Refused> {
    if !is_new {
        return Err(Refused::Duplicate(ticket.uuid.clone()));
    }
    if let Some(url) = &ticket.web_hook {
        web_hook::insert(tx, &ticket.uuid, url.as_str()).await?;
    }
    Ok(())
}
