//! Addresses in use: which are free, and taking one. The schema makes taking one twice impossible.

use std::net::Ipv4Addr;

use super::{Result, Tx, network::IpRange, new_uuid};

/// Takes the address for a user that refers to the returned uuid; deleting that user frees it.
/// `None`: it is in use. The caller has checked that the range holds it.
pub async fn take(tx: &mut Tx, range: &IpRange, address: Ipv4Addr) -> Result<Option<String>> {
    let uuid = new_uuid();
    let done = sqlx::query(
        "INSERT INTO used_ips (uuid, ip_range_uuid, l3_network_uuid, ip, number) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (l3_network_uuid, number) DO NOTHING",
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

/// The lowest free address of the range that is not below `from`.
pub async fn first_free(tx: &mut Tx, range: &IpRange, from: Ipv4Addr) -> Result<Option<Ipv4Addr>> {
    let from = from.to_bits().max(range.first_number);
    // Either `from` itself, or the address that follows the first run of used ones.
    let free: Option<i64> = sqlx::query_scalar(
        "SELECT CASE
             WHEN NOT EXISTS (SELECT 1 FROM used_ips WHERE l3_network_uuid = $1 AND number = $2) THEN $2
             ELSE (SELECT u.number + 1 FROM used_ips u
                   WHERE u.l3_network_uuid = $1 AND u.number >= $2 AND NOT EXISTS
                         (SELECT 1 FROM used_ips n WHERE n.l3_network_uuid = $1 AND n.number = u.number + 1)
                   ORDER BY u.number LIMIT 1)
         END",
    )
    .bind(&range.l3_network_uuid)
    .bind(from)
    .fetch_one(tx.conn())
    .await?;
    Ok(free.and_then(|number| u32::try_from(number).ok()).map(Ipv4Addr::from_bits).filter(|free| range.contains(*free)))
}

/// The free addresses of the range that are not below `from`, lowest first, at most `limit`.
pub async fn free(tx: &mut Tx, range: &IpRange, from: Ipv4Addr, limit: usize) -> Result<Vec<Ipv4Addr>> {
    let used: Vec<u32> = sqlx::query_scalar(
        "SELECT number FROM used_ips WHERE l3_network_uuid = $1 AND number BETWEEN $2 AND $3 ORDER BY number",
    )
    .bind(&range.l3_network_uuid)
    .bind(from.to_bits().max(range.first_number))
    .bind(range.last_number)
    .fetch_all(tx.conn())
    .await?;
    let mut used = used.into_iter().peekable();
    Ok((from.to_bits().max(range.first_number)..=range.last_number)
        .filter(|number| used.next_if_eq(number).is_none())
        .take(limit)
        .map(Ipv4Addr::from_bits)
        .collect())
}
