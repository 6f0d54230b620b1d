//! Allocates the addresses of VIPs and NICs. The schema lets an address be taken once, also where the ranges of networks
//! overlap: the router is one routing domain, and could not distinguish the two users.

use std::net::IpAddr;

use super::{AddressKey, Result, Tx, network::IpRange, new_uuid};

/// Takes the address, and returns the uuid by which its user refers to it; deleting the user frees the address. `None` if
/// the address is in use. The caller has checked that the range contains it.
pub async fn take(tx: &mut Tx, range: &IpRange, address: IpAddr) -> Result<Option<String>> {
    let (uuid, key) = (new_uuid(), AddressKey::from(address));
    let done = sqlx::query(
        "INSERT INTO used_ips (uuid, ip_range_uuid, l3_network_uuid, ip, address_key, next_key)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (address_key) DO NOTHING",
    )
    .bind(&uuid)
    .bind(&range.uuid)
    .bind(&range.l3_network_uuid)
    .bind(address.to_string())
    .bind(key)
    .bind(key.next())
    .execute(tx.conn())
    .await?;
    Ok((done.rows_affected() > 0).then_some(uuid))
}

/// Takes the lowest free address of the range that is not below `from`, as [`take`] does; `None` if there is none.
pub async fn take_first(tx: &mut Tx, range: &IpRange, from: IpAddr) -> Result<Option<(String, IpAddr)>> {
    // Either `from` itself, or the address that follows the first run of used ones.
    let free: Option<AddressKey> = sqlx::query_scalar(
        "SELECT f.address_key
         FROM (SELECT CASE
                   WHEN NOT EXISTS (SELECT 1 FROM used_ips WHERE address_key = $1) THEN $1
                   ELSE (SELECT u.next_key FROM used_ips u
                         WHERE u.address_key >= $1
                           AND NOT EXISTS (SELECT 1 FROM used_ips n WHERE n.address_key = u.next_key)
                         ORDER BY u.address_key LIMIT 1)
               END AS address_key) f
         WHERE f.address_key <= $2",
    )
    .bind(AddressKey::from(from).max(range.first_key))
    .bind(range.last_key)
    .fetch_optional(tx.conn())
    .await?;
    let Some(address) = free.map(IpAddr::from) else { return Ok(None) };
    Ok(take(tx, range, address).await?.map(|uuid| (uuid, address)))
}

/// Frees an address that was taken.
pub async fn free(tx: &mut Tx, uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM used_ips WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    Ok(())
}
