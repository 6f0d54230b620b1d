//! Load balancers, listeners and the NICs behind them.

use std::collections::BTreeSet;

use serde_json::json;
use sqlx::FromRow;

use super::{
    Result, Tx,
    number::{self, Numbers},
};

/// A row of `load_balancers`.
#[derive(Clone, Debug, FromRow)]
pub struct LoadBalancer {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub vip_uuid: String,
    /// Set by the first backend; `None` until then.
    pub provider_type: Option<String>,
}

/// A row of `load_balancer_listeners`.
#[derive(Clone, Debug, FromRow)]
pub struct Listener {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub load_balancer_uuid: String,
    pub instance_port: u16,
    pub load_balancer_port: u16,
    pub protocol: String,
    pub number: u32,
}

pub async fn insert(tx: &mut Tx, row: &LoadBalancer) -> Result<()> {
    sqlx::query(
        "INSERT INTO load_balancers
             (uuid, name, description, state, vip_uuid, provider_type, create_date, last_op_date)
         VALUES ($1, $2, $3, 'Enabled', $4, $5, $6, $6)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.vip_uuid)
    .bind(&row.provider_type)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn get(tx: &mut Tx, uuid: &str) -> Result<Option<LoadBalancer>> {
    Ok(sqlx::query_as("SELECT * FROM load_balancers WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// Writes what calls can change: name, description and provider type.
pub async fn update(tx: &mut Tx, row: &LoadBalancer) -> Result<()> {
    sqlx::query(
        "UPDATE load_balancers SET name = $2, description = $3, provider_type = $4, last_op_date = $5 WHERE uuid = $1",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.provider_type)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// How many load balancers the VIP has.
pub async fn count_on_vip(tx: &mut Tx, vip_uuid: &str) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM load_balancers WHERE vip_uuid = $1")
        .bind(vip_uuid)
        .fetch_one(tx.conn())
        .await?)
}

pub async fn insert_listener(tx: &mut Tx, row: &Listener) -> Result<()> {
    sqlx::query(
        "INSERT INTO load_balancer_listeners
             (uuid, name, description, load_balancer_uuid, instance_port, load_balancer_port, protocol, number,
              create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.load_balancer_uuid)
    .bind(row.instance_port)
    .bind(row.load_balancer_port)
    .bind(&row.protocol)
    .bind(row.number)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn listener(tx: &mut Tx, uuid: &str) -> Result<Option<Listener>> {
    Ok(sqlx::query_as("SELECT * FROM load_balancer_listeners WHERE uuid = $1")
        .bind(uuid)
        .fetch_optional(tx.conn())
        .await?)
}

/// Writes what calls can change: name and description.
pub async fn update_listener(tx: &mut Tx, row: &Listener) -> Result<()> {
    sqlx::query("UPDATE load_balancer_listeners SET name = $2, description = $3, last_op_date = $4 WHERE uuid = $1")
        .bind(&row.uuid)
        .bind(&row.name)
        .bind(&row.description)
        .bind(tx.now())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// The ports of all listeners on the VIP, ascending: of udp, or of the protocols over TCP.
pub async fn ports_on_vip(tx: &mut Tx, vip_uuid: &str, udp: bool) -> Result<Vec<u16>> {
    Ok(sqlx::query_scalar(
        "SELECT s.load_balancer_port FROM load_balancer_listeners s
         JOIN load_balancers b ON b.uuid = s.load_balancer_uuid
         WHERE b.vip_uuid = $1 AND (s.protocol = 'udp') = $2 ORDER BY s.load_balancer_port",
    )
    .bind(vip_uuid)
    .bind(udp)
    .fetch_all(tx.conn())
    .await?)
}

/// The VIP's listener on that port: of udp, or of the protocols over TCP, which share one port space.
pub async fn listener_at(tx: &mut Tx, vip_uuid: &str, port: u16, udp: bool) -> Result<Option<Listener>> {
    Ok(sqlx::query_as(
        "SELECT s.* FROM load_balancer_listeners s JOIN load_balancers b ON b.uuid = s.load_balancer_uuid
         WHERE b.vip_uuid = $1 AND s.load_balancer_port = $2 AND (s.protocol = 'udp') = $3",
    )
    .bind(vip_uuid)
    .bind(port)
    .bind(udp)
    .fetch_optional(tx.conn())
    .await?)
}

/// Makes a NIC a backend of a listener; `false` if it is one already.
pub async fn add_nic(tx: &mut Tx, listener_uuid: &str, vm_nic_uuid: &str, status: &str) -> Result<bool> {
    let number = number::next(tx, Numbers::Backend).await?;
    let done = sqlx::query(
        "INSERT INTO load_balancer_listener_vm_nic_refs
             (listener_uuid, vm_nic_uuid, status, number, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $5)
         ON CONFLICT (listener_uuid, vm_nic_uuid) DO NOTHING",
    )
    .bind(listener_uuid)
    .bind(vm_nic_uuid)
    .bind(status)
    .bind(number)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Whether the NIC is a backend of the listener.
pub async fn has_nic(tx: &mut Tx, listener_uuid: &str, vm_nic_uuid: &str) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM load_balancer_listener_vm_nic_refs
                        WHERE listener_uuid = $1 AND vm_nic_uuid = $2)",
    )
    .bind(listener_uuid)
    .bind(vm_nic_uuid)
    .fetch_one(tx.conn())
    .await?)
}

/// How many backends the listener has.
pub async fn count_nics(tx: &mut Tx, listener_uuid: &str) -> Result<u32> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM load_balancer_listener_vm_nic_refs WHERE listener_uuid = $1")
        .bind(listener_uuid)
        .fetch_one(tx.conn())
        .await?)
}

/// Removes a backend of a listener; `false` if the NIC is none.
pub async fn remove_nic(tx: &mut Tx, listener_uuid: &str, vm_nic_uuid: &str) -> Result<bool> {
    let done =
        sqlx::query("DELETE FROM load_balancer_listener_vm_nic_refs WHERE listener_uuid = $1 AND vm_nic_uuid = $2")
            .bind(listener_uuid)
            .bind(vm_nic_uuid)
            .execute(tx.conn())
            .await?;
    Ok(done.rows_affected() > 0)
}

/// Updates the backends that are NICs of a VM instance to its state: Pending if the VM is running and the backend is
/// healthy, else Inactive.
pub async fn follow_instance(tx: &mut Tx, vm_instance_uuid: &str, running: bool) -> Result<()> {
    sqlx::query(
        "UPDATE load_balancer_listener_vm_nic_refs
         SET status = CASE WHEN $2 AND healthy THEN 'Pending' ELSE 'Inactive' END, last_op_date = $3
         WHERE vm_nic_uuid IN (SELECT uuid FROM vm_nics WHERE vm_instance_uuid = $1)",
    )
    .bind(vm_instance_uuid)
    .bind(running)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Stores the result of a backend's health checks. Returns the VIP that this changes; `None` if the result was known or the
/// backend is gone.
pub async fn set_healthy(tx: &mut Tx, backend: u32, healthy: bool) -> Result<Option<String>> {
    Ok(sqlx::query_scalar(
        "UPDATE load_balancer_listener_vm_nic_refs AS r
         SET healthy = $2, last_op_date = $3, status = CASE
             WHEN $2 AND 'Running' = (SELECT i.state FROM vm_nics n JOIN vm_instances i ON i.uuid = n.vm_instance_uuid
                                      WHERE n.uuid = r.vm_nic_uuid)
             THEN 'Pending' ELSE 'Inactive' END
         WHERE number = $1 AND healthy <> $2
         RETURNING (SELECT b.vip_uuid FROM load_balancer_listeners s JOIN load_balancers b ON b.uuid = s.load_balancer_uuid
                    WHERE s.uuid = listener_uuid)",
    )
    .bind(backend)
    .bind(healthy)
    .bind(tx.now())
    .fetch_optional(tx.conn())
    .await?)
}

/// The VIPs with backends that are Pending.
pub async fn pending_vips(tx: &mut Tx) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT b.vip_uuid FROM load_balancer_listener_vm_nic_refs r
         JOIN load_balancer_listeners s ON s.uuid = r.listener_uuid
         JOIN load_balancers b ON b.uuid = s.load_balancer_uuid
         WHERE r.status = 'Pending'",
    )
    .fetch_all(tx.conn())
    .await?)
}

/// The kernel holds these VIPs now: makes their Pending backends Active.
pub async fn activate(tx: &mut Tx, vips: &BTreeSet<String>) -> Result<()> {
    sqlx::query(
        "UPDATE load_balancer_listener_vm_nic_refs SET status = 'Active', last_op_date = $2
         WHERE status = 'Pending' AND listener_uuid IN
               (SELECT s.uuid FROM load_balancer_listeners s JOIN load_balancers b ON b.uuid = s.load_balancer_uuid
                WHERE b.vip_uuid IN (SELECT value FROM json_each($1)))",
    )
    .bind(json!(vips).to_string())
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The NICs of user VMs on networks with load balancing, except those that are backends of the listener already.
pub async fn candidates(tx: &mut Tx, listener_uuid: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT n.uuid FROM vm_nics n
         JOIN vm_instances i ON i.uuid = n.vm_instance_uuid
         JOIN network_service_l3_network_refs f
              ON f.l3_network_uuid = n.l3_network_uuid AND f.network_service_type = 'LoadBalancer'
         WHERE i.type = 'UserVm' AND i.state IN ('Running', 'Stopped')
           AND NOT EXISTS (SELECT 1 FROM load_balancer_listener_vm_nic_refs r
                           WHERE r.listener_uuid = $1 AND r.vm_nic_uuid = n.uuid)
         ORDER BY n.vm_instance_uuid, n.device_id",
    )
    .bind(listener_uuid)
    .fetch_all(tx.conn())
    .await?)
}
