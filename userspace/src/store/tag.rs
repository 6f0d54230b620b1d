//! System tags and user tags.

use sqlx::FromRow;

use super::{Result, Tx, new_uuid};

/// A row of `system_tags`.
#[derive(Clone, Debug, FromRow)]
pub struct SystemTag {
    pub uuid: String,
    pub resource_uuid: String,
    pub resource_type: String,
    pub tag: String,
    /// Made by the system itself: not to be deleted by calls.
    pub inherent: bool,
}

/// Enters a system tag and returns its uuid; `None`: the resource has this very tag already.
pub async fn insert_system(tx: &mut Tx, row: &SystemTag) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO system_tags (uuid, resource_uuid, resource_type, tag, inherent, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $6)
         ON CONFLICT (resource_uuid, tag) DO NOTHING",
    )
    .bind(&row.uuid)
    .bind(&row.resource_uuid)
    .bind(&row.resource_type)
    .bind(&row.tag)
    .bind(row.inherent)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

pub async fn system(tx: &mut Tx, uuid: &str) -> Result<Option<SystemTag>> {
    Ok(sqlx::query_as("SELECT * FROM system_tags WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// The system tags of a resource, in the order in which they were made.
pub async fn system_of(tx: &mut Tx, resource_uuid: &str) -> Result<Vec<SystemTag>> {
    Ok(sqlx::query_as("SELECT * FROM system_tags WHERE resource_uuid = $1 ORDER BY rowid")
        .bind(resource_uuid)
        .fetch_all(tx.conn())
        .await?)
}

pub async fn update_system(tx: &mut Tx, uuid: &str, tag: &str) -> Result<()> {
    sqlx::query("UPDATE system_tags SET tag = $2, last_op_date = $3 WHERE uuid = $1")
        .bind(uuid)
        .bind(tag)
        .bind(tx.now())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Enters a user tag, if the resource has not got it yet; returns the uuid of the one it has now.
pub async fn insert_user(tx: &mut Tx, resource_uuid: &str, resource_type: &str, tag: &str) -> Result<String> {
    Ok(sqlx::query_scalar(
        "INSERT INTO user_tags (uuid, resource_uuid, resource_type, tag, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $5)
         ON CONFLICT (resource_uuid, tag) DO UPDATE SET last_op_date = excluded.last_op_date
         RETURNING uuid",
    )
    .bind(new_uuid())
    .bind(resource_uuid)
    .bind(resource_type)
    .bind(tag)
    .bind(tx.now())
    .fetch_one(tx.conn())
    .await?)
}

/// Deletes a tag of either kind; `false`: there is none of that uuid.
pub async fn delete(tx: &mut Tx, uuid: &str) -> Result<bool> {
    let system = sqlx::query("DELETE FROM system_tags WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    let user = sqlx::query("DELETE FROM user_tags WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    Ok(system.rows_affected() + user.rows_affected() > 0)
}
