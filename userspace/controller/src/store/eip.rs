//! Elastic IPs.

use sqlx::FromRow;

use super::{Result, Tx, vm::VmNic};

/// A row of `eips`.
#[derive(Clone, Debug, FromRow)]
pub struct Eip {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub vip_uuid: String,
    /// `None` if attached to no NIC.
    pub vm_nic_uuid: Option<String>,
    /// Among the elastic IPs of a NIC, the one that was attached first has the lowest number.
    pub attach_order: i64,
    pub state: String,
    pub service_number: u32,
    pub backend_number: u32,
}

pub async fn insert(tx: &mut Tx, row: &Eip) -> Result<()> {
    sqlx::query(
        "INSERT INTO eips
             (uuid, name, description, vip_uuid, vm_nic_uuid, attach_order, state, service_number, backend_number,
              create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.vip_uuid)
    .bind(&row.vm_nic_uuid)
    .bind(row.attach_order)
    .bind(&row.state)
    .bind(row.service_number)
    .bind(row.backend_number)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn get(tx: &mut Tx, uuid: &str) -> Result<Option<Eip>> {
    Ok(sqlx::query_as("SELECT * FROM eips WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// Writes what calls can change: name, description, state, NIC and its order there.
pub async fn update(tx: &mut Tx, row: &Eip) -> Result<()> {
    sqlx::query(
        "UPDATE eips SET name = $2, description = $3, state = $4, vm_nic_uuid = $5, attach_order = $6, last_op_date = $7
         WHERE uuid = $1",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.state)
    .bind(&row.vm_nic_uuid)
    .bind(row.attach_order)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The attach order of the next elastic IP of the NIC.
pub async fn next_order(tx: &mut Tx, vm_nic_uuid: &str) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT IFNULL(MAX(attach_order), 0) + 1 FROM eips WHERE vm_nic_uuid = $1")
        .bind(vm_nic_uuid)
        .fetch_one(tx.conn())
        .await?)
}

/// Whether the VIP is an elastic IP, attached or not.
pub async fn is_on_vip(tx: &mut Tx, vip_uuid: &str) -> Result<bool> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM eips WHERE vip_uuid = $1)")
        .bind(vip_uuid)
        .fetch_one(tx.conn())
        .await?)
}

/// The NICs that an elastic IP on the VIP could be attached to, by networks and services: NICs that the VIP reaches, of VMs
/// without a NIC on the VIP's network.
pub async fn candidates(tx: &mut Tx, vip_uuid: &str) -> Result<Vec<VmNic>> {
    Ok(sqlx::query_as(
        "SELECT n.* FROM reachable_vm_nics n
         WHERE n.vip_uuid = $1 AND n.network_service_type = 'Eip'
           AND NOT EXISTS (SELECT 1 FROM vm_nics o
                           WHERE o.vm_instance_uuid = n.vm_instance_uuid AND o.l3_network_uuid = n.vip_l3_network_uuid)
         ORDER BY n.vm_instance_uuid, n.device_id",
    )
    .bind(vip_uuid)
    .fetch_all(tx.conn())
    .await?)
}
