//! VM instances and their NICs.

use std::net::IpAddr;

use ipnet::IpNet;
use sqlx::FromRow;

use super::{Error, Result, Tx, error::parse};

/// A row of `vm_instances`.
#[derive(Clone, Debug, FromRow)]
pub struct VmInstance {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub zone_uuid: String,
    pub cluster_uuid: Option<String>,
    pub host_uuid: Option<String>,
    pub image_uuid: Option<String>,
    pub instance_offering_uuid: Option<String>,
    pub default_l3_network_uuid: Option<String>,
    #[sqlx(rename = "type")]
    pub kind: String,
    pub state: String,
    pub internal_id: i64,
}

/// A row of `vm_nics`.
#[derive(Clone, Debug, FromRow)]
pub struct VmNic {
    pub uuid: String,
    pub vm_instance_uuid: String,
    pub used_ip_uuid: String,
    pub l3_network_uuid: String,
    pub ip: String,
    pub mac: String,
    pub netmask: String,
    pub gateway: String,
    pub internal_name: String,
    pub device_id: i64,
}

impl VmNic {
    /// Whether the address is in the NIC's subnet.
    ///
    /// # Errors
    /// [`super::Error::Corrupt`] if an address can't be parsed.
    pub fn subnet_holds(&self, ip: &str) -> Result<bool> {
        let address = |text| parse::<IpAddr>("address", text, &self.uuid);
        let netmask = parse("netmask", &self.netmask, &self.uuid)?;
        let subnet = IpNet::with_netmask(address(&self.ip)?, netmask)
            .map_err(|_| Error::corrupt("netmask", &self.netmask, &self.uuid))?;
        Ok(subnet.contains(&address(ip)?))
    }
}

pub async fn insert(tx: &mut Tx, row: &VmInstance) -> Result<()> {
    sqlx::query(
        "INSERT INTO vm_instances
             (uuid, name, description, zone_uuid, cluster_uuid, host_uuid, image_uuid, instance_offering_uuid, platform,
              default_l3_network_uuid, type, hypervisor_type, memory_size, cpu_num, cpu_speed, state, internal_id,
              create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'Linux', $9, $10, 'KVM', 0, 0, 0, $11, $12, $13, $13)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.zone_uuid)
    .bind(&row.cluster_uuid)
    .bind(&row.host_uuid)
    .bind(&row.image_uuid)
    .bind(&row.instance_offering_uuid)
    .bind(&row.default_l3_network_uuid)
    .bind(&row.kind)
    .bind(&row.state)
    .bind(row.internal_id)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn get(tx: &mut Tx, uuid: &str) -> Result<Option<VmInstance>> {
    Ok(sqlx::query_as("SELECT * FROM vm_instances WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

pub async fn set_state(tx: &mut Tx, uuid: &str, state: &str) -> Result<()> {
    sqlx::query("UPDATE vm_instances SET state = $2, last_op_date = $3 WHERE uuid = $1")
        .bind(uuid)
        .bind(state)
        .bind(tx.now())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Enters a NIC; `false` if its MAC is in use.
pub async fn insert_nic(tx: &mut Tx, row: &VmNic) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO vm_nics
             (uuid, vm_instance_uuid, used_ip_uuid, l3_network_uuid, ip, mac, netmask, gateway, internal_name, device_id,
              create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)
         ON CONFLICT (mac) DO NOTHING",
    )
    .bind(&row.uuid)
    .bind(&row.vm_instance_uuid)
    .bind(&row.used_ip_uuid)
    .bind(&row.l3_network_uuid)
    .bind(&row.ip)
    .bind(&row.mac)
    .bind(&row.netmask)
    .bind(&row.gateway)
    .bind(&row.internal_name)
    .bind(row.device_id)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

pub async fn nic(tx: &mut Tx, uuid: &str) -> Result<Option<VmNic>> {
    Ok(sqlx::query_as("SELECT * FROM vm_nics WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// The uuid of a NIC that the VM has on the L3 network.
pub async fn nic_on(tx: &mut Tx, vm_instance_uuid: &str, l3_network_uuid: &str) -> Result<Option<String>> {
    Ok(sqlx::query_scalar("SELECT uuid FROM vm_nics WHERE vm_instance_uuid = $1 AND l3_network_uuid = $2 LIMIT 1")
        .bind(vm_instance_uuid)
        .bind(l3_network_uuid)
        .fetch_optional(tx.conn())
        .await?)
}
