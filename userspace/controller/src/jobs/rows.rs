//! The rows of jobs and web hooks.

use serde::Serialize;
use sqlx::FromRow;

use super::{Applying, Poll, Refused, Ticket};
use crate::store::{Error, Result, Tx};

/// Enters a job with its result, and its hook.
pub(super) async fn insert_finished(
    tx: &mut Tx,
    ticket: &Ticket,
    succeeded: bool,
    body: &str,
) -> std::result::Result<(), Refused> {
    let now = tx.now();
    let done = sqlx::query(
        "INSERT INTO jobs (uuid, api, state, result, with_schema, create_date, finish_date)
         VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT DO NOTHING",
    )
    .bind(&ticket.uuid)
    .bind(ticket.api)
    .bind(state(succeeded))
    .bind(body)
    .bind(ticket.with_schema)
    .bind(now)
    .execute(tx.conn())
    .await
    .map_err(Error::from)?;
    entered(tx, ticket, done.rows_affected()).await
}

/// Enters a job that is to be applied, and its hook.
pub(super) async fn insert_applying(tx: &mut Tx, ticket: &Ticket, job: &Applying) -> std::result::Result<(), Refused> {
    let now = tx.now();
    let done = sqlx::query(
        "INSERT INTO jobs (uuid, api, state, change, reply, with_schema, create_date)
         VALUES ($1, $2, 'Applying', $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(&ticket.uuid)
    .bind(ticket.api)
    .bind(json(&job.change)?)
    .bind(json(&job.reply)?)
    .bind(ticket.with_schema)
    .bind(now)
    .execute(tx.conn())
    .await
    .map_err(Error::from)?;
    entered(tx, ticket, done.rows_affected()).await
}

async fn entered(tx: &mut Tx, ticket: &Ticket, rows: u64) -> std::result::Result<(), Refused> {
    if rows == 0 {
        return Err(Refused::Duplicate(ticket.uuid.clone()));
    }
    if let Some(url) = &ticket.web_hook {
        sqlx::query("INSERT INTO web_hooks (job_uuid, url, failures) VALUES ($1, $2, 0)")
            .bind(&ticket.uuid)
            .bind(url.as_str())
            .execute(tx.conn())
            .await
            .map_err(Error::from)?;
    }
    Ok(())
}

/// The result of a job.
#[derive(Serialize)]
pub(super) struct Finished<'a> {
    pub(super) uuid: &'a str,
    pub(super) succeeded: bool,
    /// JSON.
    pub(super) body: String,
}

/// Writes the results of jobs that were `Applying`.
pub(super) async fn finish(tx: &mut Tx, jobs: &[Finished<'_>]) -> Result<()> {
    let now = tx.now();
    sqlx::query(
        "UPDATE jobs SET state = CASE j.value ->> 'succeeded' WHEN 1 THEN $2 ELSE $3 END, result = j.value ->> 'body',
                         finish_date = $4, change = NULL, reply = NULL
         FROM json_each($1) j WHERE jobs.uuid = j.value ->> 'uuid' AND jobs.state = 'Applying'",
    )
    .bind(json(&jobs)?)
    .bind(state(true))
    .bind(state(false))
    .bind(now)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// What is known of a job; one that finished before `oldest` (milliseconds since 1970) is unknown.
pub(super) async fn poll(tx: &mut Tx, uuid: &str, oldest: i64) -> Result<Poll> {
    let row: Option<(String, Option<String>)> =
        sqlx::query_as("SELECT state, result FROM jobs WHERE uuid = $1 AND (finish_date IS NULL OR finish_date >= $2)")
            .bind(uuid)
            .bind(oldest)
            .fetch_optional(tx.conn())
            .await?;
    Ok(match row {
        None => Poll::Unknown,
        Some((_, None)) => Poll::Running,
        Some((found, Some(body))) => Poll::Finished { succeeded: found == state(true), body },
    })
}

/// The jobs that are to be applied still, oldest first.
pub(super) async fn applying(tx: &mut Tx) -> Result<Vec<Applying>> {
    let rows: Vec<(String, String, String, bool)> = sqlx::query_as(
        "SELECT uuid, change, reply, with_schema FROM jobs WHERE state = 'Applying' ORDER BY create_date, uuid",
    )
    .fetch_all(tx.conn())
    .await?;
    rows.into_iter()
        .map(|(uuid, change, reply, with_schema)| {
            let change = parsed("change", &change, &uuid)?;
            let reply = parsed("reply", &reply, &uuid)?;
            Ok(Applying { uuid, change, reply, with_schema, hook_of: Some(super::nobody()) })
        })
        .collect()
}

/// Deletes the jobs that finished before `oldest` (milliseconds since 1970), and of the others all but the latest.
pub(super) async fn forget(tx: &mut Tx, oldest: i64, most: u32) -> Result<()> {
    sqlx::query("DELETE FROM jobs WHERE finish_date < $1").bind(oldest).execute(tx.conn()).await?;
    sqlx::query(
        "DELETE FROM jobs WHERE finish_date <=
             (SELECT finish_date FROM jobs WHERE finish_date IS NOT NULL ORDER BY finish_date DESC LIMIT 1 OFFSET $1)",
    )
    .bind(most)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The uuids of finished jobs whose hook was not called yet.
pub(super) async fn waiting_hooks(tx: &mut Tx) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT h.job_uuid FROM web_hooks h JOIN jobs j ON j.uuid = h.job_uuid WHERE j.finish_date IS NOT NULL",
    )
    .fetch_all(tx.conn())
    .await?)
}

/// A hook to call, with what is posted.
#[derive(FromRow)]
pub(super) struct Hook {
    pub(super) url: String,
    pub(super) failures: u32,
    pub(super) succeeded: bool,
    pub(super) body: String,
}

/// The hook of a finished job; `None`: it has none, or needs no call any more.
pub(super) async fn hook(tx: &mut Tx, job_uuid: &str) -> Result<Option<Hook>> {
    Ok(sqlx::query_as(
        "SELECT h.url, h.failures, j.state = 'Succeeded' AS succeeded, j.result AS body
         FROM web_hooks h JOIN jobs j ON j.uuid = h.job_uuid WHERE h.job_uuid = $1 AND j.result IS NOT NULL",
    )
    .bind(job_uuid)
    .fetch_optional(tx.conn())
    .await?)
}

pub(super) async fn hook_failed(tx: &mut Tx, job_uuid: &str, failures: u32) -> Result<()> {
    sqlx::query("UPDATE web_hooks SET failures = $2 WHERE job_uuid = $1")
        .bind(job_uuid)
        .bind(failures)
        .execute(tx.conn())
        .await?;
    Ok(())
}

pub(super) async fn delete_hook(tx: &mut Tx, job_uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM web_hooks WHERE job_uuid = $1").bind(job_uuid).execute(tx.conn()).await?;
    Ok(())
}

const fn state(succeeded: bool) -> &'static str {
    if succeeded { "Succeeded" } else { "Failed" }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt {
        what: "a value without a JSON form",
        value: error.to_string(),
        place: "jobs".to_owned(),
    })
}

fn parsed<T: serde::de::DeserializeOwned>(what: &'static str, text: &str, uuid: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|_| Error::Corrupt {
        what,
        value: text.to_owned(),
        place: format!("job {uuid}"),
    })
}
