//! Network service providers, the services that they offer, and the services of each L3 network.

use std::collections::BTreeMap;

use super::{Result, Tx};

/// All service types, each with the uuids of the providers that offer it.
pub async fn types(tx: &mut Tx) -> Result<BTreeMap<String, Vec<String>>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT network_service_type, network_service_provider_uuid FROM network_service_types ORDER BY 1, 2",
    )
    .fetch_all(tx.conn())
    .await?;
    let mut types = BTreeMap::<_, Vec<_>>::new();
    for (kind, provider) in rows {
        types.entry(kind).or_default().push(provider);
    }
    Ok(types)
}

/// The type name of a provider; `None` if there is no such provider.
pub async fn provider_type(tx: &mut Tx, uuid: &str) -> Result<Option<String>> {
    Ok(sqlx::query_scalar("SELECT type FROM network_service_providers WHERE uuid = $1")
        .bind(uuid)
        .fetch_optional(tx.conn())
        .await?)
}

/// The service types that a provider offers.
pub async fn offered_by(tx: &mut Tx, provider_uuid: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT network_service_type FROM network_service_types WHERE network_service_provider_uuid = $1 ORDER BY 1",
    )
    .bind(provider_uuid)
    .fetch_all(tx.conn())
    .await?)
}

/// The uuid of the provider of a service on the L3 network; `None` if the service is not attached.
pub async fn provider_of(tx: &mut Tx, l3_network_uuid: &str, service: &str) -> Result<Option<String>> {
    Ok(sqlx::query_scalar(
        "SELECT network_service_provider_uuid FROM network_service_l3_network_refs
         WHERE l3_network_uuid = $1 AND network_service_type = $2",
    )
    .bind(l3_network_uuid)
    .bind(service)
    .fetch_optional(tx.conn())
    .await?)
}

pub async fn attach(tx: &mut Tx, l3_network_uuid: &str, provider_uuid: &str, service: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO network_service_l3_network_refs
             (l3_network_uuid, network_service_provider_uuid, network_service_type)
         VALUES ($1, $2, $3)",
    )
    .bind(l3_network_uuid)
    .bind(provider_uuid)
    .bind(service)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Does nothing where it is not attached.
pub async fn detach(tx: &mut Tx, l3_network_uuid: &str, provider_uuid: &str, service: &str) -> Result<()> {
    sqlx::query(
        "DELETE FROM network_service_l3_network_refs
         WHERE l3_network_uuid = $1 AND network_service_provider_uuid = $2 AND network_service_type = $3",
    )
    .bind(l3_network_uuid)
    .bind(provider_uuid)
    .bind(service)
    .execute(tx.conn())
    .await?;
    Ok(())
}
