//! Port-forwarding rules.

use sqlx::FromRow;

use super::{Result, Tx};

/// A row of `port_forwarding_rules`.
#[derive(Clone, Debug, FromRow)]
pub struct Rule {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub vip_uuid: String,
    pub vip_port_start: u16,
    pub vip_port_end: u16,
    pub private_port_start: u16,
    pub private_port_end: u16,
    /// `None` if attached to no NIC.
    pub vm_nic_uuid: Option<String>,
    /// `TCP` or `UDP`.
    pub protocol_type: String,
    pub state: String,
    pub allowed_cidr: String,
    pub service_number: u32,
    pub backend_number: u32,
}

pub async fn insert(tx: &mut Tx, row: &Rule) -> Result<()> {
    sqlx::query(
        "INSERT INTO port_forwarding_rules
             (uuid, name, description, vip_uuid, vip_port_start, vip_port_end, private_port_start, private_port_end,
              vm_nic_uuid, protocol_type, state, allowed_cidr, service_number, backend_number, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $15)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.vip_uuid)
    .bind(row.vip_port_start)
    .bind(row.vip_port_end)
    .bind(row.private_port_start)
    .bind(row.private_port_end)
    .bind(&row.vm_nic_uuid)
    .bind(&row.protocol_type)
    .bind(&row.state)
    .bind(&row.allowed_cidr)
    .bind(row.service_number)
    .bind(row.backend_number)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn get(tx: &mut Tx, uuid: &str) -> Result<Option<Rule>> {
    Ok(sqlx::query_as("SELECT * FROM port_forwarding_rules WHERE uuid = $1")
        .bind(uuid)
        .fetch_optional(tx.conn())
        .await?)
}

/// Writes what calls can change: name, description, state and NIC.
pub async fn update(tx: &mut Tx, row: &Rule) -> Result<()> {
    sqlx::query(
        "UPDATE port_forwarding_rules SET name = $2, description = $3, state = $4, vm_nic_uuid = $5, last_op_date = $6
         WHERE uuid = $1",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.state)
    .bind(&row.vm_nic_uuid)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// How many rules the VIP has, whether attached or not.
pub async fn count_on_vip(tx: &mut Tx, vip_uuid: &str) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM port_forwarding_rules WHERE vip_uuid = $1")
        .bind(vip_uuid)
        .fetch_one(tx.conn())
        .await?)
}

/// The first and last port of every rule of that protocol on the VIP.
pub async fn ports_on_vip(tx: &mut Tx, vip_uuid: &str, protocol_type: &str) -> Result<Vec<(u16, u16)>> {
    Ok(sqlx::query_as(
        "SELECT vip_port_start, vip_port_end FROM port_forwarding_rules WHERE vip_uuid = $1 AND protocol_type = $2",
    )
    .bind(vip_uuid)
    .bind(protocol_type)
    .fetch_all(tx.conn())
    .await?)
}

/// A rule of that protocol on the VIP that has one of the ports from `start` to `end`.
pub async fn overlapping(
    tx: &mut Tx,
    vip_uuid: &str,
    protocol_type: &str,
    (start, end): (u16, u16),
) -> Result<Option<Rule>> {
    Ok(sqlx::query_as(
        "SELECT * FROM port_forwarding_rules
         WHERE vip_uuid = $1 AND protocol_type = $2 AND vip_port_start <= $4 AND vip_port_end >= $3
         ORDER BY vip_port_start LIMIT 1",
    )
    .bind(vip_uuid)
    .bind(protocol_type)
    .bind(start)
    .bind(end)
    .fetch_optional(tx.conn())
    .await?)
}

/// A rule of another VIP that leads to a NIC of the VM.
pub async fn of_other_vip(tx: &mut Tx, vm_instance_uuid: &str, vip_uuid: &str) -> Result<Option<Rule>> {
    Ok(sqlx::query_as(
        "SELECT r.* FROM vm_nics n JOIN port_forwarding_rules r ON r.vm_nic_uuid = n.uuid
         WHERE n.vm_instance_uuid = $1 AND r.vip_uuid <> $2 LIMIT 1",
    )
    .bind(vm_instance_uuid)
    .bind(vip_uuid)
    .fetch_optional(tx.conn())
    .await?)
}

/// The NICs that a rule could be attached to: NICs that its VIP reaches, without a rule for the same private ports, of VMs
/// without a rule of another VIP.
pub async fn candidates(tx: &mut Tx, row: &Rule) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT n.uuid FROM reachable_vm_nics n
         WHERE n.vip_uuid = $1 AND n.network_service_type = 'PortForwarding'
           AND NOT EXISTS (SELECT 1 FROM port_forwarding_rules r
                           WHERE r.vm_nic_uuid = n.uuid AND r.protocol_type = $2
                             AND r.private_port_start <= $4 AND r.private_port_end >= $3)
           AND NOT EXISTS (SELECT 1 FROM vm_nics o JOIN port_forwarding_rules r ON r.vm_nic_uuid = o.uuid
                           WHERE o.vm_instance_uuid = n.vm_instance_uuid AND r.vip_uuid <> $1)
         ORDER BY n.vm_instance_uuid, n.device_id",
    )
    .bind(&row.vip_uuid)
    .bind(&row.protocol_type)
    .bind(row.private_port_start)
    .bind(row.private_port_end)
    .fetch_all(tx.conn())
    .await?)
}
