//! Jobs: calls that were accepted, with their results.

use serde::{Serialize, de::DeserializeOwned};
use vipgate_api::Reply;
use vipgate_state::Change;

use super::{Error, Result, Tx};

/// A job whose changes are stored and have still to be applied.
#[derive(Debug)]
pub struct Applying {
    pub uuid: String,
    pub change: Change,
    /// The reply once the change has been applied.
    pub reply: Reply,
    /// The caller wants the `schema` in the result.
    pub with_schema: bool,
}

/// Enters a job that is to be applied; `false` if its uuid is taken. `api` is the name of the call.
pub async fn insert_applying(tx: &mut Tx, api: &str, job: &Applying) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO jobs (uuid, api, state, change, reply, with_schema, create_date)
         VALUES ($1, $2, 'Applying', $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(&job.uuid)
    .bind(api)
    .bind(json(&job.change)?)
    .bind(json(&job.reply)?)
    .bind(job.with_schema)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Enters a job that has finished already; `false` if its uuid is taken. `api` is the name of the call.
pub async fn insert_finished(tx: &mut Tx, api: &str, with_schema: bool, result: &Finished<'_>) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO jobs (uuid, api, state, result, with_schema, create_date, finish_date)
         VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT DO NOTHING",
    )
    .bind(result.uuid)
    .bind(api)
    .bind(state(result.succeeded))
    .bind(&result.body)
    .bind(with_schema)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The result of a job.
#[derive(Debug, Serialize)]
pub struct Finished<'a> {
    pub uuid: &'a str,
    pub succeeded: bool,
    /// JSON.
    pub body: String,
}

/// Writes the results of jobs that were `Applying`.
pub async fn finish(tx: &mut Tx, jobs: &[Finished<'_>]) -> Result<()> {
    sqlx::query(
        "UPDATE jobs SET state = CASE j.value ->> 'succeeded' WHEN 1 THEN $2 ELSE $3 END, result = j.value ->> 'body',
                         finish_date = $4, change = NULL, reply = NULL
         FROM json_each($1) j WHERE jobs.uuid = j.value ->> 'uuid' AND jobs.state = 'Applying'",
    )
    .bind(json(&jobs)?)
    .bind(state(true))
    .bind(state(false))
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Applying,
    Finished {
        succeeded: bool,
        /// JSON.
        body: String,
    },
}

/// How far a job is; `None` if it is unknown, or finished before `oldest` (milliseconds since 1970).
pub async fn progress(tx: &mut Tx, uuid: &str, oldest: i64) -> Result<Option<Progress>> {
    let row: Option<(String, Option<String>)> =
        sqlx::query_as("SELECT state, result FROM jobs WHERE uuid = $1 AND (finish_date IS NULL OR finish_date >= $2)")
            .bind(uuid)
            .bind(oldest)
            .fetch_optional(tx.conn())
            .await?;
    Ok(row.map(|(found, result)| match result {
        None => Progress::Applying,
        Some(body) => Progress::Finished { succeeded: found == state(true), body },
    }))
}

/// The jobs that are still to be applied, the oldest first.
pub async fn applying(tx: &mut Tx) -> Result<Vec<Applying>> {
    let rows: Vec<(String, String, String, bool)> = sqlx::query_as(
        "SELECT uuid, change, reply, with_schema FROM jobs WHERE state = 'Applying' ORDER BY create_date, uuid",
    )
    .fetch_all(tx.conn())
    .await?;
    rows.into_iter()
        .map(|(uuid, change, reply, with_schema)| {
            let change = parsed("change", &change, &uuid)?;
            let reply = parsed("reply", &reply, &uuid)?;
            Ok(Applying { uuid, change, reply, with_schema })
        })
        .collect()
}

/// Deletes the jobs that finished before `oldest` (milliseconds since 1970), and the oldest of more than `most` finished ones.
pub async fn delete_finished(tx: &mut Tx, oldest: i64, most: u32) -> Result<()> {
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

const fn state(succeeded: bool) -> &'static str {
    if succeeded { "Succeeded" } else { "Failed" }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::corrupt("a value without a JSON form", &error.to_string(), "jobs"))
}

fn parsed<T: DeserializeOwned>(what: &'static str, text: &str, uuid: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|_| Error::corrupt(what, text, format!("job {uuid}")))
}
