//! Bandwidth limits of VIPs.

use super::{Result, Tx};

/// A row of `vip_qos`.
#[derive(Clone, Debug)]
pub struct VipQos {
    pub uuid: String,
    pub vip_uuid: String,
    /// `None` for a limit of the whole VIP.
    pub port: Option<u16>,
    /// Bits per second; `None` if not limited.
    pub inbound_bandwidth: Option<i64>,
    pub outbound_bandwidth: Option<i64>,
    /// Type of the provider.
    pub kind: String,
    pub number: u32,
}

pub async fn insert(tx: &mut Tx, row: &VipQos) -> Result<()> {
    sqlx::query(
        "INSERT INTO vip_qos
             (uuid, vip_uuid, port, inbound_bandwidth, outbound_bandwidth, type, number, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
    )
    .bind(&row.uuid)
    .bind(&row.vip_uuid)
    .bind(row.port)
    .bind(row.inbound_bandwidth)
    .bind(row.outbound_bandwidth)
    .bind(&row.kind)
    .bind(row.number)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The uuid of the limit of that port, or of the whole VIP (`None`), if there is one; `None` if there is no such VIP.
pub async fn of_port(tx: &mut Tx, vip_uuid: &str, port: Option<u16>) -> Result<Option<Option<String>>> {
    Ok(sqlx::query_scalar(
        "SELECT q.uuid FROM vips v LEFT JOIN vip_qos q ON q.vip_uuid = v.uuid AND IFNULL(q.port, 0) = $2 WHERE v.uuid = $1",
    )
    .bind(vip_uuid)
    .bind(port.unwrap_or(0))
    .fetch_optional(tx.conn())
    .await?)
}

/// The uuids of the VIP's limits: that of the whole VIP first, then those of ports, ascending.
pub async fn on_vip(tx: &mut Tx, vip_uuid: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("SELECT uuid FROM vip_qos WHERE vip_uuid = $1 ORDER BY IFNULL(port, 0)")
        .bind(vip_uuid)
        .fetch_all(tx.conn())
        .await?)
}

pub async fn delete(tx: &mut Tx, uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM vip_qos WHERE uuid = $1").bind(uuid).execute(tx.conn()).await?;
    Ok(())
}
