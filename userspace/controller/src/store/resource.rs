//! The register of resources: which uuid is of which type, and who owns it.

use super::{Result, Tx};

/// Enters a new resource; `kind` is its type as errors and tags show it, e.g. `VipVO`. The caller inserts the row in the
/// table of that type next, in the same transaction.
pub async fn register(tx: &mut Tx, kind: &str, uuid: &str, account_uuid: &str) -> Result<()> {
    sqlx::query("INSERT INTO resources (uuid, type, account_uuid) VALUES ($1, $2, $3)")
        .bind(uuid)
        .bind(kind)
        .bind(account_uuid)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// The type of the resource; `None` if there is none with that uuid.
pub async fn kind_of(tx: &mut Tx, uuid: &str) -> Result<Option<String>> {
    Ok(sqlx::query_scalar("SELECT type FROM resources WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// Deletes a resource and everything that depends on it, by the cascades of the schema.
pub async fn delete(tx: &mut Tx, uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM resources WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    Ok(())
}
