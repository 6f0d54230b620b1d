//! Sessions: each is known by a hash of its uuid.

use sqlx::FromRow;

use super::{Result, Tx, account::Account};

/// A row of `sessions`. Dates are in milliseconds since 1970.
#[derive(Clone, Debug, FromRow)]
pub struct Session {
    pub uuid_hash: String,
    pub account_uuid: String,
    pub create_date: i64,
    pub expired_date: i64,
}

pub async fn insert(tx: &mut Tx, row: &Session) -> Result<()> {
    sqlx::query("INSERT INTO sessions (uuid_hash, account_uuid, create_date, expired_date) VALUES ($1, $2, $3, $4)")
        .bind(&row.uuid_hash)
        .bind(&row.account_uuid)
        .bind(row.create_date)
        .bind(row.expired_date)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Sets the date until which a session is valid; `None` if it does not exist or has expired.
pub async fn renew(tx: &mut Tx, uuid_hash: &str, expired_date: i64) -> Result<Option<Session>> {
    Ok(sqlx::query_as("UPDATE sessions SET expired_date = $1 WHERE uuid_hash = $2 AND expired_date > $3 RETURNING *")
        .bind(expired_date)
        .bind(uuid_hash)
        .bind(tx.now())
        .fetch_optional(tx.conn())
        .await?)
}

/// The account of a session; `None` if the session does not exist or has expired.
pub async fn account(tx: &mut Tx, uuid_hash: &str) -> Result<Option<Account>> {
    Ok(sqlx::query_as(
        "SELECT a.uuid, a.name, a.description, a.type FROM sessions s JOIN accounts a ON a.uuid = s.account_uuid
         WHERE s.uuid_hash = $1 AND s.expired_date > $2",
    )
    .bind(uuid_hash)
    .bind(tx.now())
    .fetch_optional(tx.conn())
    .await?)
}

pub async fn delete(tx: &mut Tx, uuid_hash: &str) -> Result<()> {
    sqlx::query("DELETE FROM sessions WHERE uuid_hash = $1").bind(uuid_hash).execute(tx.conn()).await?;
    Ok(())
}

pub async fn delete_expired(tx: &mut Tx) -> Result<()> {
    sqlx::query("DELETE FROM sessions WHERE expired_date <= $1").bind(tx.now()).execute(tx.conn()).await?;
    Ok(())
}

/// Deletes the sessions of an account except the `kept` ones that expire last.
pub async fn delete_surplus(tx: &mut Tx, account_uuid: &str, kept: i64) -> Result<()> {
    sqlx::query(
        "DELETE FROM sessions WHERE uuid_hash IN (SELECT uuid_hash FROM sessions WHERE account_uuid = $1
             ORDER BY expired_date DESC, create_date DESC LIMIT -1 OFFSET $2)",
    )
    .bind(account_uuid)
    .bind(kept)
    .execute(tx.conn())
    .await?;
    Ok(())
}
