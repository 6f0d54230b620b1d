//! Jobs: asynchronous calls that were accepted, until their result is fetched or forgotten.
//!
//! A call's rules, its writes and its job are one transaction, so that an accepted call is never lost. What is left then is
//! to bring the kernel to what is stored: a background task does it and writes the result. A job that a crash interrupts
//! is still `Applying` in the store, and is applied again at the next start: applying is level-triggered, twice does no
//! harm. Touches the store, and the kernel side through [`Apply`] only.

mod hook;

use std::{
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use serde_json::{Map, Value};
use tokio::{sync::watch, time::timeout};
use vipgate_api::{ApiError, Reply, json, resource};
use vipgate_state::{Apply, Change, NotApplied};

pub use self::hook::{BadHook, HookUrl, NoClient};
use crate::{
    model::{self, Outcome},
    query,
    store::{
        self, Store, Tx,
        job::{self, Progress},
        web_hook,
    },
};

/// What tests shorten; the defaults are the documented ones.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a result can be fetched after its job has finished.
    pub retention: Duration,
    /// So many results at most, the latest ones.
    pub most_finished: u32,
    /// How long a poll waits for its job to end. Nearly all end sooner, and the caller would look again after a second, as
    /// the SDKs do; one that looks at many jobs in turn shall not wait long for each.
    pub hold: Duration,
    /// Between two calls of a web hook that fails.
    pub hook_interval: Duration,
    /// After the first one.
    pub hook_retries: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(3 * 3600),
            most_finished: 20_000,
            hold: Duration::from_millis(100),
            hook_interval: Duration::from_secs(2),
            hook_retries: 15,
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
    /// Of the account that calls.
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

/// A job that has been applied, or could not be.
#[derive(Debug)]
struct Applied {
    job: job::Applying,
    /// The account that may have given it a web hook.
    hook_account: Option<Arc<str>>,
    error: Option<ApiError>,
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
    /// Jobs that are being applied, and where who polls one hears of its end: most polls ask for one of these, and need not
    /// ask the database.
    running: Mutex<HashMap<String, watch::Sender<Option<Poll>>>>,
    /// Those among them that have been: the first one waits for its turn to write all of their results.
    applied: Mutex<Vec<Applied>>,
    /// When expired results were forgotten last, in milliseconds since 1970.
    forgot: AtomicI64,
    /// What callers without a session are told: uuid of the job and result, the oldest first.
    turned_away: Mutex<VecDeque<(String, String)>>,
}

/// Callers without a session that find out what was wrong: the last ones.
const MOST_TURNED_AWAY: usize = 1000;

/// Milliseconds between two times that expired results are forgotten.
const FORGETTING: i64 = 1000;

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
                forgot: AtomicI64::new(0),
                turned_away: Mutex::default(),
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
        self.finish_later(job, ticket.hook_account());
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

    /// A call of somebody who has no session: its job has failed, and the caller may learn why; nothing is stored, and no hook
    /// is called, since anybody who reaches the API could have both.
    pub fn turn_away(&self, ticket: Ticket, error: &ApiError) {
        let mut turned_away = self.inner.turned_away.lock().unwrap_or_else(PoisonError::into_inner);
        if turned_away.len() == MOST_TURNED_AWAY {
            turned_away.pop_front();
        }
        turned_away.push_back((ticket.uuid, failure(error, ticket.with_schema)));
    }

    /// Makes a device carry the programs before a call that needs it is accepted.
    ///
    /// # Errors
    /// It can't carry them, which refuses the call.
    pub async fn prepare(&self, device: String) -> Result<(), ApiError> {
        self.inner.apply.prepare(device).await.map_err(|error| ApiError::operation(error.to_string()))
    }

    /// Looks a job up; waits a moment for the end of one that runs.
    ///
    /// # Errors
    /// The database fails.
    pub async fn poll(&self, uuid: &str) -> store::Result<Poll> {
        let running = self.running().get(uuid).map(watch::Sender::subscribe);
        if let Some(mut end) = running {
            return Ok(match timeout(self.inner.settings.hold, end.wait_for(Option::is_some)).await {
                Ok(Ok(result)) => result.clone().unwrap_or(Poll::Running),
                // It runs still; or its result could not be stored, and a later run takes it up.
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
        let turned_away = self.inner.turned_away.lock().unwrap_or_else(PoisonError::into_inner);
        let told = turned_away.iter().rev().find(|(job, _)| job == uuid);
        Ok(told.map_or(Poll::Unknown, |(_, body)| Poll::Finished { succeeded: false, body: body.clone() }))
    }

    /// Takes up what the last run left: changes that were stored and not reported, and web hooks that wait.
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
            self.finish_later(job, Some(Arc::clone(&nobody)));
        }
        for uuid in hooks {
            self.call_hook(uuid, Some(Arc::clone(&nobody)));
        }
        Ok(())
    }

    /// Commits, and forgets results that have expired, now and then.
    async fn commit(&self, mut tx: Tx) -> store::Result<()> {
        let forgot = self.inner.forgot.load(Ordering::Relaxed);
        if tx.now().saturating_sub(forgot) >= FORGETTING {
            self.inner.forgot.store(tx.now(), Ordering::Relaxed);
            let oldest = self.oldest(&tx);
            job::delete_finished(&mut tx, oldest, self.inner.settings.most_finished).await?;
        }
        tx.commit().await
    }

    /// Jobs that finished before this, in milliseconds since 1970, have expired.
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

    fn finish_later(&self, job: job::Applying, hook_account: Option<Arc<str>>) {
        self.running().insert(job.uuid.clone(), watch::Sender::default());
        let jobs = self.clone();
        tokio::spawn(async move {
            // A fault in there must not leave the job running for ever.
            let applied = AssertUnwindSafe(jobs.inner.apply.apply(job.change.clone())).catch_unwind().await;
            let fault = |_| Err(NotApplied::Failed("a fault of the controller, which its log describes".into()));
            let error = match applied.unwrap_or_else(fault) {
                Ok(()) => None,
                // It stays `Applying`.
                Err(NotApplied::Ending) => {
                    jobs.running().remove(&job.uuid);
                    return;
                }
                Err(NotApplied::Failed(error)) => {
                    let error = not_applied(error.as_ref());
                    tracing::warn!(job = job.uuid, %error, "a change is stored, but not applied");
                    Some(error)
                }
            };
            let is_first = {
                let mut applied = jobs.applied();
                applied.push(Applied { job, hook_account, error });
                applied.len() == 1
            };
            if is_first {
                jobs.finish_applied().await;
            }
        });
    }

    /// Writes the results of all jobs that have been applied by the time of its turn.
    async fn finish_applied(&self) {
        let turn = self.inner.store.begin().await;
        let mut applied = std::mem::take(&mut *self.applied());
        let stored = match turn {
            Ok(tx) => self.store_results(tx, &applied).await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(results) => applied.into_iter().zip(results).for_each(|(done, result)| self.ended(done, Ok(result))),
            Err(error) if applied.len() == 1 => {
                if let Some(done) = applied.pop() {
                    self.ended(done, Err(error));
                }
            }
            // What is wrong with one shall not be the others'.
            Err(_) => {
                for done in applied {
                    let stored = self.store_result(&done).await;
                    self.ended(done, stored);
                }
            }
        }
    }

    async fn store_result(&self, done: &Applied) -> store::Result<Poll> {
        let tx = self.inner.store.begin().await?;
        Ok(self.store_results(tx, std::slice::from_ref(done)).await?.pop().unwrap_or(Poll::Unknown))
    }

    /// What a poll of each finds from then on.
    async fn store_results(&self, mut tx: Tx, applied: &[Applied]) -> store::Result<Vec<Poll>> {
        let succeeded = || applied.iter().filter(|done| done.error.is_none()).map(|done| &done.job);
        let vips = succeeded().flat_map(|job| &job.change.vips).cloned().collect();
        model::applied(&mut tx, &vips).await?;
        let replies: Vec<_> = succeeded().map(|job| &job.reply).collect();
        let mut printed = query::render_all(&mut tx, &replies).await?.into_iter();
        let finished: Vec<_> = applied
            .iter()
            .map(|Applied { job, error, .. }| job::Finished {
                uuid: &job.uuid,
                succeeded: error.is_none(),
                body: match error {
                    Some(error) => failure(error, job.with_schema),
                    None => success(printed.next().unwrap_or_default(), &job.reply, job.with_schema),
                },
            })
            .collect();
        job::finish(&mut tx, &finished).await?;
        tx.commit().await?;
        let found = |job::Finished { succeeded, body, .. }| Poll::Finished { succeeded, body };
        Ok(finished.into_iter().map(found).collect())
    }

    /// Tells who waits for a job.
    fn ended(&self, done: Applied, stored: store::Result<Poll>) {
        let uuid = done.job.uuid;
        let waiting = self.running().remove(&uuid);
        match stored {
            Ok(result) => {
                tracing::debug!(job = uuid, succeeded = done.error.is_none(), "a job has finished");
                // Later polls find it in the store.
                if let Some(waiting) = waiting {
                    waiting.send_replace(Some(result));
                }
                self.call_hook(uuid, done.hook_account);
            }
            // It stays `Applying`: the next start takes it up.
            Err(error) => tracing::error!(job = uuid, %error, "the result of a job can't be stored"),
        }
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

fn not_applied(error: &dyn std::error::Error) -> ApiError {
    let mut causes = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        causes.push_str(": ");
        causes.push_str(&cause.to_string());
        source = cause.source();
    }
    ApiError::operation("the change is stored, but the packet path does not hold it yet")
        .elaborate("it is tried again until it succeeds")
        .caused_by(ApiError::internal(causes))
}

/// The body of a call that succeeded.
pub fn success(mut members: Map<String, Value>, reply: &Reply, with_schema: bool) -> String {
    if with_schema {
        let kind = match reply {
            Reply::Inventory(kind, _) | Reply::Inventories(kind, _) => Some(*kind),
            Reply::Empty | Reply::Members(_) => None,
        };
        let schema = resource::schema(&members, kind);
        members.insert("schema".to_owned(), schema.into());
    }
    json::encode(&members)
}

/// The body of a call that failed.
pub fn failure(error: &ApiError, with_schema: bool) -> String {
    // An error is plain members all through: it always has a JSON form.
    let mut error = serde_json::to_value(error).unwrap_or_default();
    cut(&mut error);
    let mut members = Map::from_iter([("error".to_owned(), error)]);
    if with_schema {
        let schema = resource::schema(&members, None);
        members.insert("schema".to_owned(), schema.into());
    }
    json::encode(&members)
}

/// The longest text in an error, in characters: it repeats what a caller sent, and is kept.
const MOST_TEXT: usize = 4096;

/// Leaves the middle of long texts out.
fn cut(value: &mut Value) {
    match value {
        Value::String(text) if text.chars().nth(MOST_TEXT).is_some() => {
            let kept = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(index, _)| index);
            let (head, tail) = (kept(MOST_TEXT / 2), kept(text.chars().count() - MOST_TEXT / 4));
            *text = format!("{} ... {}", &text[..head], &text[tail..]);
        }
        Value::Array(values) => values.iter_mut().for_each(cut),
        Value::Object(members) => members.values_mut().for_each(cut),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
