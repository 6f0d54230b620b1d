//! VIPs and the guest networks that they reach.

use std::net::IpAddr;

use sqlx::FromRow;

use super::{Result, Tx, address};

/// A row of `vips`.
#[derive(Clone, Debug, FromRow)]
pub struct Vip {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub l3_network_uuid: String,
    pub ip_range_uuid: String,
    pub used_ip_uuid: String,
    pub ip: String,
    pub state: String,
    pub gateway: String,
    pub netmask: String,
    pub service_provider: Option<String>,
    /// Separated by commas; `None` if the VIP is unused.
    pub use_for: Option<String>,
    /// The address is one of the router itself.
    pub own: bool,
}

pub async fn insert(tx: &mut Tx, row: &Vip) -> Result<()> {
    sqlx::query(
        "INSERT INTO vips
             (uuid, name, description, l3_network_uuid, ip_range_uuid, used_ip_uuid, ip, state, gateway, netmask,
              service_provider, use_for, own, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.l3_network_uuid)
    .bind(&row.ip_range_uuid)
    .bind(&row.used_ip_uuid)
    .bind(&row.ip)
    .bind(&row.state)
    .bind(&row.gateway)
    .bind(&row.netmask)
    .bind(&row.service_provider)
    .bind(&row.use_for)
    .bind(row.own)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn get(tx: &mut Tx, uuid: &str) -> Result<Option<Vip>> {
    Ok(sqlx::query_as("SELECT * FROM vips WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// The uuid of the VIP with that address on that L3 network.
pub async fn by_address(tx: &mut Tx, l3_network_uuid: &str, ip: &str) -> Result<Option<String>> {
    Ok(sqlx::query_scalar("SELECT uuid FROM vips WHERE l3_network_uuid = $1 AND ip = $2")
        .bind(l3_network_uuid)
        .bind(ip)
        .fetch_optional(tx.conn())
        .await?)
}

/// Writes what calls can change: name, description, state, service provider and use.
pub async fn update(tx: &mut Tx, row: &Vip) -> Result<()> {
    sqlx::query(
        "UPDATE vips SET name = $2, description = $3, state = $4, service_provider = $5, use_for = $6, last_op_date = $7
         WHERE uuid = $1",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.state)
    .bind(&row.service_provider)
    .bind(&row.use_for)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Gives the VIP another address of its network, which was taken for it, and frees the previous one.
pub async fn set_address(tx: &mut Tx, uuid: &str, used_ip_uuid: &str, ip: IpAddr) -> Result<()> {
    let before: String =
        sqlx::query_scalar("SELECT used_ip_uuid FROM vips WHERE uuid = $1").bind(uuid).fetch_one(tx.conn()).await?;
    sqlx::query("UPDATE vips SET used_ip_uuid = $2, ip = $3, last_op_date = $4 WHERE uuid = $1")
        .bind(uuid)
        .bind(used_ip_uuid)
        .bind(ip.to_string())
        .bind(tx.now())
        .execute(tx.conn())
        .await?;
    address::free(tx, &before).await
}

/// The guest networks that the VIP reaches.
pub async fn peers(tx: &mut Tx, vip_uuid: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("SELECT l3_network_uuid FROM vip_peer_l3_networks WHERE vip_uuid = $1 ORDER BY 1")
        .bind(vip_uuid)
        .fetch_all(tx.conn())
        .await?)
}

/// Adds a guest network, if it is not there yet.
pub async fn add_peer(tx: &mut Tx, vip_uuid: &str, l3_network_uuid: &str) -> Result<()> {
    sqlx::query("INSERT INTO vip_peer_l3_networks (vip_uuid, l3_network_uuid) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(vip_uuid)
        .bind(l3_network_uuid)
        .execute(tx.conn())
        .await?;
    Ok(())
}

pub async fn clear_peers(tx: &mut Tx, vip_uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM vip_peer_l3_networks WHERE vip_uuid = $1").bind(vip_uuid).execute(tx.conn()).await?;
    Ok(())
}

/// The VIPs that a change of a resource affects: VIPs in or below it, VIPs that lead to a NIC of it, VIPs that networks of
/// it use for source NAT, and VIPs whose elastic IP is on the same NIC as one of these, since only one of them is the
/// source of the guest's own connections. `resource_uuid` is that of a zone, network, range, VM instance, NIC, VIP, load
/// balancer, listener, rule or elastic IP. Branches for other types find nothing by their index, so the cost is
/// proportional to what the resource holds.
pub async fn touched_by(tx: &mut Tx, resource_uuid: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "WITH networks (uuid) AS (
             SELECT uuid FROM l3_networks WHERE uuid = $1
             UNION SELECT uuid FROM l3_networks WHERE l2_network_uuid = $1
             UNION SELECT uuid FROM l3_networks WHERE zone_uuid = $1),
         nics (uuid) AS (
             SELECT uuid FROM vm_nics WHERE uuid = $1
             UNION SELECT uuid FROM vm_nics WHERE vm_instance_uuid = $1
             UNION SELECT uuid FROM vm_nics WHERE l3_network_uuid IN networks
             UNION SELECT n.uuid FROM used_ips a JOIN vm_nics n ON n.used_ip_uuid = a.uuid WHERE a.ip_range_uuid = $1),
         listeners (uuid) AS (
             SELECT uuid FROM load_balancer_listeners WHERE uuid = $1
             UNION SELECT listener_uuid FROM load_balancer_listener_vm_nic_refs WHERE vm_nic_uuid IN nics),
         balancers (uuid) AS (
             SELECT uuid FROM load_balancers WHERE uuid = $1
             UNION SELECT load_balancer_uuid FROM load_balancer_listeners WHERE uuid IN listeners),
         own (uuid) AS (
             SELECT uuid FROM vips WHERE uuid = $1
             UNION SELECT uuid FROM vips WHERE ip_range_uuid = $1
             UNION SELECT uuid FROM vips WHERE l3_network_uuid IN networks
             UNION SELECT vip_uuid FROM eips WHERE uuid = $1),
         elastic (nic) AS (
             SELECT uuid FROM nics
             UNION SELECT vm_nic_uuid FROM eips WHERE vip_uuid IN own)
         SELECT uuid FROM own
         UNION SELECT vip_uuid FROM eips WHERE vm_nic_uuid IN elastic
         UNION SELECT vip_uuid FROM load_balancers WHERE uuid IN balancers
         UNION SELECT vip_uuid FROM source_nats WHERE l3_network_uuid IN networks
         UNION SELECT s.vip_uuid FROM ip_ranges r JOIN source_nats s ON s.l3_network_uuid = r.l3_network_uuid WHERE r.uuid = $1
         UNION SELECT vip_uuid FROM port_forwarding_rules WHERE uuid = $1
         UNION SELECT vip_uuid FROM port_forwarding_rules WHERE vm_nic_uuid IN nics",
    )
    .bind(resource_uuid)
    .fetch_all(tx.conn())
    .await?)
}
