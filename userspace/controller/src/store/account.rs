//! Accounts, their quotas, and what is shared with them.

use sqlx::FromRow;

use super::{Result, Tx};

/// The uuid under which every installation of the real system knows its administrator.
pub const ADMIN: &str = "36c27e8ff05c4780bf6d2fa65700f22e";

/// The type of accounts that may do everything.
pub const SYSTEM_ADMIN: &str = "SystemAdmin";

/// A row of `accounts` without the password's hash.
#[derive(Clone, Debug, FromRow)]
pub struct Account {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    #[sqlx(rename = "type")]
    pub kind: String,
}

pub async fn get(tx: &mut Tx, uuid: &str) -> Result<Option<Account>> {
    Ok(sqlx::query_as("SELECT uuid, name, description, type FROM accounts WHERE uuid = $1")
        .bind(uuid)
        .fetch_optional(tx.conn())
        .await?)
}

/// The uuid of the account with that name, and its password's hash if it has a password.
pub async fn credentials(tx: &mut Tx, name: &str) -> Result<Option<(String, Option<String>)>> {
    Ok(sqlx::query_as("SELECT uuid, password_hash FROM accounts WHERE name = $1")
        .bind(name)
        .fetch_optional(tx.conn())
        .await?)
}

/// Whether the account, which exists, has a password.
pub async fn has_password(tx: &mut Tx, uuid: &str) -> Result<bool> {
    Ok(sqlx::query_scalar("SELECT password_hash IS NOT NULL FROM accounts WHERE uuid = $1")
        .bind(uuid)
        .fetch_one(tx.conn())
        .await?)
}

/// Gives an account its first password; `false` if it has one already.
pub async fn set_first_password(tx: &mut Tx, uuid: &str, password_hash: &str) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE accounts SET password_hash = $1, last_op_date = $2 WHERE uuid = $3 AND password_hash IS NULL",
    )
    .bind(password_hash)
    .bind(tx.now())
    .bind(uuid)
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Enters an account; `false` if its name is taken.
pub async fn insert(tx: &mut Tx, row: &Account, password_hash: &str) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO accounts (uuid, name, description, type, password_hash, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT (name) DO NOTHING",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.kind)
    .bind(password_hash)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Writes name and description, and the password if there is a new one; `false` if the name is taken.
pub async fn update(tx: &mut Tx, row: &Account, password_hash: Option<&str>) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE OR IGNORE accounts
         SET name = $2, description = $3, password_hash = IFNULL($4, password_hash), last_op_date = $5
         WHERE uuid = $1",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(password_hash)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Deletes an account; the administrator becomes the owner of its resources.
pub async fn delete(tx: &mut Tx, uuid: &str) -> Result<()> {
    sqlx::query("UPDATE resources SET account_uuid = $2 WHERE account_uuid = $1")
        .bind(uuid)
        .bind(ADMIN)
        .execute(tx.conn())
        .await?;
    sqlx::query("DELETE FROM accounts WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    Ok(())
}

/// Sets a quota of the account.
pub async fn set_quota(tx: &mut Tx, account_uuid: &str, name: &str, value: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO quotas (name, identity_uuid, value, create_date, last_op_date) VALUES ($1, $2, $3, $4, $4)
         ON CONFLICT (identity_uuid, name) DO UPDATE SET value = excluded.value, last_op_date = excluded.last_op_date",
    )
    .bind(name)
    .bind(account_uuid)
    .bind(value)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A quota's value; `None` if the account has no such quota.
pub async fn quota(tx: &mut Tx, account_uuid: &str, name: &str) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar("SELECT value FROM quotas WHERE identity_uuid = $1 AND name = $2")
        .bind(account_uuid)
        .bind(name)
        .fetch_optional(tx.conn())
        .await?)
}

/// How many resources of that type the account owns.
pub async fn count(tx: &mut Tx, account_uuid: &str, kind: &str) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM resources WHERE account_uuid = $1 AND type = $2")
        .bind(account_uuid)
        .bind(kind)
        .fetch_one(tx.conn())
        .await?)
}

/// Shares a resource with an account, or with all accounts (`None`).
pub async fn share(tx: &mut Tx, resource_uuid: &str, account_uuid: Option<&str>) -> Result<()> {
    sqlx::query("INSERT OR IGNORE INTO shared_resources (resource_uuid, account_uuid) VALUES ($1, $2)")
        .bind(resource_uuid)
        .bind(account_uuid)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Undoes [`share`].
pub async fn unshare(tx: &mut Tx, resource_uuid: &str, account_uuid: Option<&str>) -> Result<()> {
    sqlx::query("DELETE FROM shared_resources WHERE resource_uuid = $1 AND account_uuid IS $2")
        .bind(resource_uuid)
        .bind(account_uuid)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Ends all sharing of a resource.
pub async fn unshare_all(tx: &mut Tx, resource_uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM shared_resources WHERE resource_uuid = $1").bind(resource_uuid).execute(tx.conn()).await?;
    Ok(())
}

/// The owner of a resource, or of the resource that a tag of that uuid is on.
pub async fn owner(tx: &mut Tx, uuid: &str) -> Result<Option<String>> {
    Ok(sqlx::query_scalar(
        "SELECT account_uuid FROM resources
         WHERE uuid = $1
            OR uuid = (SELECT resource_uuid FROM system_tags WHERE uuid = $1)
            OR uuid = (SELECT resource_uuid FROM user_tags WHERE uuid = $1)",
    )
    .bind(uuid)
    .fetch_optional(tx.conn())
    .await?)
}

/// Whether the account may see and use the resource.
pub async fn sees(tx: &mut Tx, account_uuid: &str, resource_uuid: &str) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM visible_resources WHERE account_uuid = $1 AND resource_uuid = $2)",
    )
    .bind(account_uuid)
    .bind(resource_uuid)
    .fetch_one(tx.conn())
    .await?)
}
