//! Applies the changes of accepted jobs and stores the results.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use tokio::sync::watch;
use vipgate_api::ApiError;
use vipgate_state::NotApplied;

use super::{
    Jobs, Poll,
    body::{failure, success},
};
use crate::{
    model, query,
    store::{self, Tx, job},
};

/// A job that has been applied, or could not be.
#[derive(Debug)]
pub(super) struct Applied {
    job: job::Applying,
    /// The account that may have given it a web hook.
    hook_account: Option<Arc<str>>,
    error: Option<ApiError>,
}

impl Jobs {
    /// Applies a job in a task of its own, which then stores its result.
    pub(super) fn apply_in_background(&self, job: job::Applying, hook_account: Option<Arc<str>>) {
        self.running().insert(job.uuid.clone(), watch::Sender::default());
        let jobs = self.clone();
        tokio::spawn(async move {
            // A panic must not leave the job running for ever.
            let applied = AssertUnwindSafe(jobs.inner.apply.apply(job.change.clone())).catch_unwind().await;
            let panicked = |_| Err(NotApplied::Failed("the controller panicked; its log has the details".into()));
            let error = match applied.unwrap_or_else(panicked) {
                Ok(()) => None,
                // The job stays `Applying`: the next start applies it.
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
                jobs.store_applied().await;
            }
        });
    }

    /// Waits for the writer, and stores the results of all jobs that have been applied until then.
    async fn store_applied(&self) {
        let begun = self.inner.store.begin().await;
        let mut applied = std::mem::take(&mut *self.applied());
        let stored = match begun {
            Ok(tx) => self.store_results(tx, &applied).await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(results) => applied.into_iter().zip(results).for_each(|(done, result)| self.report(done, Ok(result))),
            Err(error) if applied.len() == 1 => {
                if let Some(done) = applied.pop() {
                    self.report(done, Err(error));
                }
            }
            // An error about one job must not fail the others.
            Err(_) => {
                for done in applied {
                    let stored = self.store_result(&done).await;
                    self.report(done, stored);
                }
            }
        }
    }

    async fn store_result(&self, done: &Applied) -> store::Result<Poll> {
        let tx = self.inner.store.begin().await?;
        Ok(self.store_results(tx, std::slice::from_ref(done)).await?.pop().unwrap_or(Poll::Unknown))
    }

    /// Stores the results, and returns for each job what polls find from then on.
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

    /// Answers the polls that wait for the job, and calls its web hook.
    fn report(&self, done: Applied, stored: store::Result<Poll>) {
        let uuid = done.job.uuid;
        let polls = self.running().remove(&uuid);
        match stored {
            Ok(result) => {
                tracing::debug!(job = uuid, succeeded = done.error.is_none(), "a job has finished");
                // Later polls find it in the store.
                if let Some(polls) = polls {
                    polls.send_replace(Some(result));
                }
                self.call_hook(uuid, done.hook_account);
            }
            // The job stays `Applying`: the next start applies it again.
            Err(error) => tracing::error!(job = uuid, %error, "the result of a job can't be stored"),
        }
    }
}

/// The error of a job whose change is stored and not applied.
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
