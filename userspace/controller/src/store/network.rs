//! Zones, L2 and L3 networks, address ranges and name servers.

use std::net::IpAddr;

use sqlx::FromRow;

use super::{AddressKey, Result, Tx};

/// A row of `zones`.
#[derive(Clone, Debug, FromRow)]
pub struct Zone {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    #[sqlx(rename = "type")]
    pub kind: String,
}

/// A row of `l2_networks`.
#[derive(Clone, Debug, FromRow)]
pub struct L2Network {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub zone_uuid: String,
    pub physical_interface: String,
    #[sqlx(rename = "type")]
    pub kind: String,
    pub vlan: Option<u16>,
}

/// A row of `l3_networks`.
#[derive(Clone, Debug, FromRow)]
pub struct L3Network {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    #[sqlx(rename = "type")]
    pub kind: String,
    pub zone_uuid: String,
    pub l2_network_uuid: String,
    pub dns_domain: Option<String>,
    pub system: bool,
    pub category: String,
}

/// A row of `ip_ranges`. Addresses are stored as text; `first_key` and `last_key` are start and end as keys.
#[derive(Clone, Debug, FromRow)]
pub struct IpRange {
    pub uuid: String,
    pub l3_network_uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub start_ip: String,
    pub end_ip: String,
    pub netmask: String,
    pub gateway: String,
    pub network_cidr: String,
    pub first_key: AddressKey,
    pub last_key: AddressKey,
}

impl IpRange {
    /// Whether the address lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        (self.first_key..=self.last_key).contains(&address.into())
    }
}

pub async fn insert_zone(tx: &mut Tx, row: &Zone) -> Result<()> {
    sqlx::query(
        "INSERT INTO zones (uuid, name, description, state, type, create_date, last_op_date)
         VALUES ($1, $2, $3, 'Enabled', $4, $5, $5)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.kind)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn insert_l2(tx: &mut Tx, row: &L2Network) -> Result<()> {
    sqlx::query(
        "INSERT INTO l2_networks
             (uuid, name, description, zone_uuid, physical_interface, type, vlan, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.zone_uuid)
    .bind(&row.physical_interface)
    .bind(&row.kind)
    .bind(row.vlan)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn l2(tx: &mut Tx, uuid: &str) -> Result<Option<L2Network>> {
    Ok(sqlx::query_as("SELECT * FROM l2_networks WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

pub async fn insert_l3(tx: &mut Tx, row: &L3Network) -> Result<()> {
    sqlx::query(
        "INSERT INTO l3_networks
             (uuid, name, description, type, zone_uuid, l2_network_uuid, state, dns_domain, system, category,
              create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, 'Enabled', $7, $8, $9, $10, $10)",
    )
    .bind(&row.uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.kind)
    .bind(&row.zone_uuid)
    .bind(&row.l2_network_uuid)
    .bind(&row.dns_domain)
    .bind(row.system)
    .bind(&row.category)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn l3(tx: &mut Tx, uuid: &str) -> Result<Option<L3Network>> {
    Ok(sqlx::query_as("SELECT * FROM l3_networks WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// Enters a name server; `false` if the network has it already.
pub async fn insert_dns(tx: &mut Tx, l3_network_uuid: &str, dns: &str) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO l3_network_dns (l3_network_uuid, dns, create_date, last_op_date) VALUES ($1, $2, $3, $3)
         ON CONFLICT DO NOTHING",
    )
    .bind(l3_network_uuid)
    .bind(dns)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() > 0)
}

pub async fn delete_dns(tx: &mut Tx, l3_network_uuid: &str, dns: &str) -> Result<()> {
    sqlx::query("DELETE FROM l3_network_dns WHERE l3_network_uuid = $1 AND dns = $2")
        .bind(l3_network_uuid)
        .bind(dns)
        .execute(tx.conn())
        .await?;
    Ok(())
}

pub async fn insert_range(tx: &mut Tx, row: &IpRange) -> Result<()> {
    sqlx::query(
        "INSERT INTO ip_ranges
             (uuid, l3_network_uuid, name, description, start_ip, end_ip, netmask, gateway, network_cidr,
              first_key, last_key, create_date, last_op_date)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)",
    )
    .bind(&row.uuid)
    .bind(&row.l3_network_uuid)
    .bind(&row.name)
    .bind(&row.description)
    .bind(&row.start_ip)
    .bind(&row.end_ip)
    .bind(&row.netmask)
    .bind(&row.gateway)
    .bind(&row.network_cidr)
    .bind(row.first_key)
    .bind(row.last_key)
    .bind(tx.now())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn range(tx: &mut Tx, uuid: &str) -> Result<Option<IpRange>> {
    Ok(sqlx::query_as("SELECT * FROM ip_ranges WHERE uuid = $1").bind(uuid).fetch_optional(tx.conn()).await?)
}

/// The network's ranges, lowest addresses first.
pub async fn ranges_of(tx: &mut Tx, l3_network_uuid: &str) -> Result<Vec<IpRange>> {
    Ok(sqlx::query_as("SELECT * FROM ip_ranges WHERE l3_network_uuid = $1 ORDER BY first_key")
        .bind(l3_network_uuid)
        .fetch_all(tx.conn())
        .await?)
}
