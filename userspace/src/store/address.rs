//! Addresses in use: which are free, and taking one. The schema makes taking one twice impossible, also for networks whose
//! ranges overlap: the router is one routing domain, and could not tell the two users apart.

use std::net::Ipv4Addr;

use super::{Result, Tx, network::IpRange, new_uuid};

/// Takes the address for a user that refers to the returned uuid; deleting that user frees it.
/// `None`: it is in use. The caller has checked that the range holds it.
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

/// The lowest free address of the range that is not below `from`.
pub async fn first_free(tx: &mut Tx, range: &IpRange, from: Ipv4Addr) -> Result<Option<Ipv4Addr>> {
    // Either `from` itself, or the address that follows the first run of used ones.
    let free: i64 = sqlx::query_scalar(
        "SELECT CASE
             WHEN NOT EXISTS (SELECT 1 FROM used_ips WHERE number = $1) THEN $1
             ELSE (SELECT u.number + 1 FROM used_ips u
                   WHERE u.number >= $1 AND NOT EXISTS (SELECT 1 FROM used_ips n WHERE n.number = u.number + 1)
                   ORDER BY u.number LIMIT 1)
         END",
    )
    .bind(from.to_bits().max(range.first_number))
    .fetch_one(tx.conn())
    .await?;
    Ok(u32::try_from(free).ok().map(Ipv4Addr::from_bits).filter(|free| range.contains(*free)))
}
