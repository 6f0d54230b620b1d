//! Source NAT: which VIP each guest network uses, and the networks that this depends on.

use sqlx::FromRow;

use super::{
    Result, Tx,
    number::{self, Numbers},
    vip::Vip,
};

/// An L3 network of category Public that has an IP range, with the router's device on it.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Public {
    pub uuid: String,
    pub name: String,
    pub zone_uuid: String,
    pub physical_interface: String,
    /// Its lowest range; all ranges of a network share gateway and CIDR.
    pub ip_range_uuid: String,
    pub gateway: String,
    pub netmask: String,
    pub network_cidr: String,
}

/// An L3 network with source NAT.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Guests {
    pub uuid: String,
    pub zone_uuid: String,
}

/// All public networks, ordered by uuid.
pub async fn publics(tx: &mut Tx) -> Result<Vec<Public>> {
    Ok(sqlx::query_as(
        "SELECT l.uuid, l.name, l.zone_uuid, n.physical_interface, r.uuid AS ip_range_uuid, r.gateway, r.netmask,
                r.network_cidr
         FROM l3_networks l
         JOIN l2_networks n ON n.uuid = l.l2_network_uuid
         JOIN ip_ranges r ON r.l3_network_uuid = l.uuid
         WHERE l.category = 'Public'
           AND r.first_key = (SELECT MIN(o.first_key) FROM ip_ranges o WHERE o.l3_network_uuid = l.uuid)
         ORDER BY l.uuid",
    )
    .fetch_all(tx.conn())
    .await?)
}

/// All networks with source NAT.
pub async fn guests(tx: &mut Tx) -> Result<Vec<Guests>> {
    Ok(sqlx::query_as(
        "SELECT l.uuid, l.zone_uuid FROM network_service_l3_network_refs f JOIN l3_networks l ON l.uuid = f.l3_network_uuid
         WHERE f.network_service_type = 'SNAT' ORDER BY l.uuid",
    )
    .fetch_all(tx.conn())
    .await?)
}

/// The VIPs that are the router's own addresses.
pub async fn own_vips(tx: &mut Tx) -> Result<Vec<Vip>> {
    Ok(sqlx::query_as("SELECT * FROM vips WHERE own = 1 ORDER BY uuid").fetch_all(tx.conn()).await?)
}

/// The guest networks that use the VIP for source NAT.
pub async fn guests_of(tx: &mut Tx, vip_uuid: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("SELECT l3_network_uuid FROM source_nats WHERE vip_uuid = $1 ORDER BY 1")
        .bind(vip_uuid)
        .fetch_all(tx.conn())
        .await?)
}

/// The VIPs that the network uses for source NAT.
pub async fn vips_of(tx: &mut Tx, l3_network_uuid: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("SELECT vip_uuid FROM source_nats WHERE l3_network_uuid = $1 ORDER BY 1")
        .bind(l3_network_uuid)
        .fetch_all(tx.conn())
        .await?)
}

/// Makes a network use a VIP for source NAT, with numbers of its own.
pub async fn insert(tx: &mut Tx, l3_network_uuid: &str, vip_uuid: &str) -> Result<()> {
    let (service, backend) = (number::next(tx, Numbers::Service).await?, number::next(tx, Numbers::Backend).await?);
    sqlx::query(
        "INSERT INTO source_nats (l3_network_uuid, vip_uuid, service_number, backend_number) VALUES ($1, $2, $3, $4)",
    )
    .bind(l3_network_uuid)
    .bind(vip_uuid)
    .bind(service)
    .bind(backend)
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn delete(tx: &mut Tx, l3_network_uuid: &str, vip_uuid: &str) -> Result<()> {
    sqlx::query("DELETE FROM source_nats WHERE l3_network_uuid = $1 AND vip_uuid = $2")
        .bind(l3_network_uuid)
        .bind(vip_uuid)
        .execute(tx.conn())
        .await?;
    Ok(())
}
