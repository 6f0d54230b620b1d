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
    /// Made by the system itself: calls can't delete it.
    pub inherent: bool,
}

/// Enters a system tag, unless the resource has it already.
pub async fn insert_system(tx: &mut Tx, row: &SystemTag) -> Result<()> {
    sqlx::query(
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
    Ok(())
}

pub async fn system(tx: &mut Tx, uuid: &str) -> Result<Option<SystemTag>> {
    Ok(sqlx::query_as("SELECT * FROM system_tags WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// The resource's system tag with that prefix.
pub async fn system_with_prefix(tx: &mut Tx, resource_uuid: &str, prefix: &str) -> Result<Option<SystemTag>> {
    Ok(sqlx::query_as("SELECT * FROM system_tags WHERE resource_uuid = $1 AND substr(tag, 1, length($2)) = $2")
        .bind(resource_uuid)
        .bind(prefix)
        .fetch_optional(tx.conn())
        .await?)
}

pub async fn delete_system(tx: &mut Tx, uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM system_tags WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    Ok(())
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

/// Enters a user tag, unless the resource has it already; returns its uuid.
pub async fn insert_user(tx: &mut Tx, resource_uuid: &str, resource_type: &str, tag: &str) -> Result<String> {
    Ok(sqlx::query_scalar(
        "INSERT INTO user_tags (uuid, resource_uuid, resource_type, tag, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $5)
         ON CONFLICT (resource_uuid, tag) DO UPDATE SET tag = excluded.tag
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

/// Deletes a user tag; `false` if there is none with that uuid.
pub async fn delete_user(tx: &mut Tx, uuid: &str) -> Result<bool> {
    let done = sqlx::query("DELETE FROM user_tags WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    Ok(done.rows_affected() > 0)
}
