//! Web hooks of jobs: URLs that are still to be called with the job's result.

use sqlx::FromRow;

use super::{Result, Tx};

pub async fn insert(tx: &mut Tx, job_uuid: &str, url: &str) -> Result<()> {
    sqlx::query("INSERT INTO web_hooks (job_uuid, url, failures) VALUES ($1, $2, 0)")
        .bind(job_uuid)
        .bind(url)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// The uuids of finished jobs whose web hooks are still to be called.
pub async fn pending(tx: &mut Tx) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT h.job_uuid FROM web_hooks h JOIN jobs j ON j.uuid = h.job_uuid WHERE j.finish_date IS NOT NULL",
    )
    .fetch_all(tx.conn())
    .await?)
}

/// A web hook to call, with the result to post.
#[derive(Debug, FromRow)]
pub struct WebHook {
    pub url: String,
    /// How often calling it has failed.
    pub failures: u32,
    pub succeeded: bool,
    /// JSON.
    pub body: String,
}

/// The web hook of a finished job; `None` if it has none that is still to be called.
pub async fn get(tx: &mut Tx, job_uuid: &str) -> Result<Option<WebHook>> {
    Ok(sqlx::query_as(
        "SELECT h.url, h.failures, j.state = 'Succeeded' AS succeeded, j.result AS body
         FROM web_hooks h JOIN jobs j ON j.uuid = h.job_uuid WHERE h.job_uuid = $1 AND j.result IS NOT NULL",
    )
    .bind(job_uuid)
    .fetch_optional(tx.conn())
    .await?)
}

pub async fn set_failures(tx: &mut Tx, job_uuid: &str, failures: u32) -> Result<()> {
    sqlx::query("UPDATE web_hooks SET failures = $2 WHERE job_uuid = $1")
        .bind(job_uuid)
        .bind(failures)
        .execute(tx.conn())
        .await?;
    Ok(())
}

pub async fn delete(tx: &mut Tx, job_uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM web_hooks WHERE job_uuid = $1").bind(job_uuid).execute(tx.conn()).await?;
    Ok(())
}
