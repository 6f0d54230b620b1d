//! Allocates the addresses of VIPs and NICs. The schema lets an address be taken once, also where the ranges of networks
//! overlap: the router is one routing domain, and could not distinguish the two users.

use std::net::Ipv4Addr;

use super::{Result, Tx, network::IpRange, new_uuid};

/// Takes the address, and returns the uuid by which its user refers to it; deleting the user frees the address. `None` if
/// the address is in use. The caller has checked that the range contains it.
pub async fn take(tx: &mut Tx, range: &IpRange, address: Ipv4Addr) -> Result<Option<String>> {
    let uuid = new_uuid();
    let done = sqlx::query(
        "INSERT INTO used_ips (uuid, ip_range_uuid, l3_network_uuid, ip, number) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (number) DO NOTHING",
    )
    .bind(&uuid)
    .bind(&range.uuid)
    .bind(&range.l3_network_uuid)
    .bind(address.to_string())
    .bind(address.to_bits())
    .execute(tx.conn())
    .await?;
    Ok((done.rows_affected() > 0).then_some(uuid))
}

/// Takes the lowest free address of the range that is not below `from`, as [`take`] does; `None` if there is none.
pub async fn take_first(tx: &mut Tx, range: &IpRange, from: Ipv4Addr) -> Result<Option<(String, Ipv4Addr)>> {
    let uuid = new_uuid();
    // Either `from` itself, or the address that follows the first run of used ones.
    let number: Option<u32> = sqlx::query_scalar(
        "INSERT INTO used_ips (uuid, ip_range_uuid, l3_network_uuid, ip, number)
         SELECT $1, $2, $3,
                (f.number >> 24) || '.' || (f.number >> 16 & 255) || '.' || (f.number >> 8 & 255) || '.' || (f.number & 255),
                f.number
         FROM (SELECT CASE
                   WHEN NOT EXISTS (SELECT 1 FROM used_ips WHERE number = $4) THEN $4
                   ELSE (SELECT u.number + 1 FROM used_ips u
                         WHERE u.number >= $4 AND NOT EXISTS (SELECT 1 FROM used_ips n WHERE n.number = u.number + 1)
                         ORDER BY u.number LIMIT 1)
               END AS number) f
         WHERE f.number <= $5 RETURNING number",
    )
    .bind(&uuid)
    .bind(&range.uuid)
    .bind(&range.l3_network_uuid)
    .bind(from.to_bits().max(range.first_number))
    .bind(range.last_number)
    .fetch_optional(tx.conn())
    .await?;
    Ok(number.map(|number| (uuid, Ipv4Addr::from_bits(number))))
}

/// Frees an address that was taken.
pub async fn free(tx: &mut Tx, uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM used_ips WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    Ok(())
}
