//! The migration that turns the numbers of addresses into keys, on a database of the version before it.

use std::net::IpAddr;

use sqlx::{AssertSqlSafe, Connection, SqliteConnection, migrate::Migrator, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use vipgate_state::Source;

use super::{sound, url};
use crate::store::{AddressKey, Error, MIGRATIONS, Store, address, collation, network, resource};

/// The last version with numbers.
const BEFORE: i64 = 13;

/// A guest network with two ranges and two VMs, and a public network with a VIP for each kind of service. The addresses are on
/// both sides of the bit that would be a sign.
const CONTENT: &str = "
    INSERT INTO resources (uuid, type, account_uuid)
    SELECT value, 'AnyVO', '36c27e8ff05c4780bf6d2fa65700f22e'
    FROM json_each('[\"z\", \"d0\", \"d1\", \"public\", \"guests\", \"pr\", \"gr1\", \"gr2\", \"vm1\", \"vm2\", \"n1\", \"n2\",
                     \"v1\", \"v2\", \"v3\", \"lb\", \"web\", \"rule\", \"eip\"]');
    INSERT INTO zones VALUES ('z', 'zone', 'where it is', 'Enabled', 'zstack', 1, 2);
    INSERT INTO l2_networks VALUES ('d0', 'outside', NULL, 'z', 'eth0', 'L2NoVlanNetwork', NULL, 1, 2),
                                   ('d1', 'inside', NULL, 'z', 'eth1', 'L2VlanNetwork', 7, 1, 2);
    INSERT INTO l3_networks VALUES
        ('public', 'public', NULL, 'L3BasicNetwork', 'z', 'd0', 'Enabled', NULL, 0, 'Public', 1, 2),
        ('guests', 'guests', NULL, 'L3BasicNetwork', 'z', 'd1', 'Enabled', NULL, 0, 'Private', 1, 2);
    INSERT INTO l3_network_dns VALUES ('guests', '192.0.2.53', 1, 2);
    INSERT INTO network_service_l3_network_refs
    SELECT 'guests', network_service_provider_uuid, network_service_type FROM network_service_types;
    INSERT INTO ip_ranges VALUES
        ('gr2', 'guests', 'high', NULL, '10.0.0.200', '10.0.1.9', '255.255.254.0', '10.0.0.1', '10.0.0.0/23', 167772360, 167772425, 5, 6),
        ('gr1', 'guests', 'low', 'text', '10.0.0.2', '10.0.0.9', '255.255.254.0', '10.0.0.1', '10.0.0.0/23', 167772162, 167772169, 3, 4),
        ('pr', 'public', 'outside', NULL, '203.0.113.2', '203.0.113.9', '255.255.255.0', '203.0.113.1', '203.0.113.0/24',
         3405803778, 3405803785, 7, 8);
    INSERT INTO used_ips VALUES
        ('u5', 'pr', 'public', '203.0.113.4', 3405803780),
        ('u4', 'pr', 'public', '203.0.113.3', 3405803779),
        ('u3', 'pr', 'public', '203.0.113.2', 3405803778),
        ('u1', 'gr1', 'guests', '10.0.0.2', 167772162),
        ('u2', 'gr2', 'guests', '10.0.0.255', 167772415);
    INSERT INTO vm_instances (uuid, name, zone_uuid, platform, default_l3_network_uuid, type, hypervisor_type, memory_size,
                              cpu_num, cpu_speed, state, internal_id, create_date, last_op_date)
    VALUES ('vm1', 'one', 'z', 'Linux', 'guests', 'UserVm', 'KVM', 0, 0, 0, 'Running', 1, 1, 2),
           ('vm2', 'two', 'z', 'Linux', 'guests', 'UserVm', 'KVM', 0, 0, 0, 'Running', 2, 1, 2);
    INSERT INTO vm_nics VALUES
        ('n1', 'vm1', 'u1', 'guests', '10.0.0.2', 'fa:00:00:00:00:01', '255.255.254.0', '10.0.0.1', NULL, 'vnic1.0', 0, 1, 2),
        ('n2', 'vm2', 'u2', 'guests', '10.0.0.255', 'fa:00:00:00:00:02', '255.255.254.0', '10.0.0.1', NULL, 'vnic2.0', 0, 1, 2);
    INSERT INTO vips (uuid, name, l3_network_uuid, ip_range_uuid, used_ip_uuid, ip, state, gateway, netmask, use_for, own,
                      create_date, last_op_date)
    VALUES ('v1', 'balanced', 'public', 'pr', 'u3', '203.0.113.2', 'Enabled', '203.0.113.1', '255.255.255.0', 'LoadBalancer', 0, 1, 2),
           ('v2', 'elastic', 'public', 'pr', 'u4', '203.0.113.3', 'Enabled', '203.0.113.1', '255.255.255.0', 'Eip', 0, 1, 2),
           ('v3', 'router', 'public', 'pr', 'u5', '203.0.113.4', 'Enabled', '203.0.113.1', '255.255.255.0', 'SNAT', 1, 1, 2);
    INSERT INTO vip_peer_l3_networks VALUES ('v1', 'guests'), ('v3', 'guests');
    INSERT INTO load_balancers VALUES ('lb', 'lb', NULL, 'Enabled', 'v1', 'vrouter', 1, 2);
    INSERT INTO load_balancer_listeners VALUES ('web', 'web', NULL, 'lb', 80, 80, 'tcp', 1, 1, 2);
    INSERT INTO load_balancer_listener_vm_nic_refs (listener_uuid, vm_nic_uuid, status, number, create_date, last_op_date)
    VALUES ('web', 'n1', 'Active', 1, 1, 2), ('web', 'n2', 'Active', 2, 1, 2);
    INSERT INTO port_forwarding_rules VALUES
        ('rule', 'rule', NULL, 'v1', 2222, 2222, 22, 22, 'n2', 'TCP', 'Enabled', '0.0.0.0/0', 2, 3, 1, 2, NULL, NULL);
    INSERT INTO eips VALUES ('eip', 'eip', NULL, 'v2', 'n1', 1, 'Enabled', 3, 4, 1, 2, NULL, NULL);
    INSERT INTO source_nats VALUES ('guests', 'v3', 4, 5);
    INSERT INTO vip_qos VALUES ('q', 'v1', 80, 1000000, NULL, 'normal', 1, 1, 2);
    INSERT INTO system_tags VALUES ('t', 'web', 'AnyVO', 'balancerWeight::n1::7', 'System', 0, 1, 2);
    INSERT INTO sessions VALUES ('hash', '36c27e8ff05c4780bf6d2fa65700f22e', 1, 9);
";

/// A database of the version before, with this content.
async fn before(content: &'static str) -> (TempDir, SqliteConnection) {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(dir.path().join("vipgate.db")).create_if_missing(true);
    let options = options.foreign_keys(true).collation(collation::NAME, collation::compare);
    let mut old = SqliteConnection::connect_with(&options).await.unwrap();
    let known = MIGRATIONS.iter().filter(|migration| migration.version <= BEFORE).cloned().collect();
    Migrator::with_migrations(known).run(&mut old).await.unwrap();
    sqlx::raw_sql(content).execute(&mut old).await.unwrap();
    (dir, old)
}

async fn texts(connection: &mut SqliteConnection, sql: String) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
}

/// All rows of all tables and views, tables in the order of their rows, without what the migration changes.
async fn content(connection: &mut SqliteConnection) -> Vec<String> {
    let names = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')
                 AND name NOT LIKE 'sqlite_%' AND name <> '_sqlx_migrations' ORDER BY type, name";
    let mut content = Vec::new();
    for name in texts(connection, names.to_owned()).await {
        let columns = format!(
            "SELECT 'quote(' || name || ')' FROM pragma_table_info('{name}') WHERE NOT ('{name}' IN ('ip_ranges', 'used_ips')
             AND (name LIKE '%number' OR name LIKE '%key')) ORDER BY cid"
        );
        let columns = texts(connection, columns).await.join(" || ', ' || ");
        let rows = texts(connection, format!("SELECT {columns} FROM {name}")).await;
        content.extend(rows.into_iter().map(|row| format!("{name}: {row}")));
    }
    content
}

/// The definitions of everything but the two tables themselves.
async fn schema(connection: &mut SqliteConnection) -> Vec<String> {
    let sql = "SELECT name || ': ' || coalesce(sql, '') FROM sqlite_schema
               WHERE name NOT IN ('ip_ranges', 'used_ips') ORDER BY name";
    texts(connection, sql.to_owned()).await
}

#[tokio::test]
async fn a_database_with_numbers_keeps_everything() {
    let (dir, mut old) = before(CONTENT).await;
    let (had, schema_had) = (content(&mut old).await, schema(&mut old).await);
    assert!(had.len() > 40, "{had:?}");
    old.close().await.unwrap();
    let store = Store::open(&url(&dir)).await.unwrap();
    assert!(sound(&store).await);
    let mut tx = store.begin().await.unwrap();
    let has = content(tx.conn()).await.into_iter().filter(|row| !row.starts_with("collations: "));
    assert_eq!(has.collect::<Vec<_>>(), had);
    assert_eq!(schema(tx.conn()).await, schema_had);
    let keys: Vec<(String, AddressKey, Option<AddressKey>)> =
        sqlx::query_as("SELECT ip, address_key, next_key FROM used_ips").fetch_all(tx.conn()).await.unwrap();
    for (ip, key, next) in keys {
        let expected = AddressKey::from(ip.parse::<IpAddr>().unwrap());
        assert_eq!((key, next), (expected, expected.next()), "{ip}");
    }
    for range in network::ranges_of(&mut tx, "guests").await.unwrap() {
        let ends = [range.first_key, range.last_key].map(|key| IpAddr::from(key).to_string());
        assert_eq!(ends, [range.start_ip, range.end_ip]);
    }
}

#[tokio::test]
async fn a_migrated_database_works_as_before() {
    let (dir, old) = before(CONTENT).await;
    old.close().await.unwrap();
    let store = Store::open(&url(&dir)).await.unwrap();
    let vips = store.vips().await.unwrap();
    assert_eq!(
        vips.iter().map(|vip| vip.address.to_string()).collect::<Vec<_>>(),
        ["203.0.113.2", "203.0.113.3", "203.0.113.4"]
    );
    assert_eq!(vips[0].listeners[0].backends.len(), 2);
    let mut tx = store.begin().await.unwrap();
    let ranges = network::ranges_of(&mut tx, "guests").await.unwrap();
    assert_eq!(ranges.iter().map(|range| range.uuid.as_str()).collect::<Vec<_>>(), ["gr1", "gr2"]);
    let public = network::range(&mut tx, "pr").await.unwrap().unwrap();
    let at = |last| IpAddr::from([203, 0, 113, last]);
    assert!(address::take(&mut tx, &public, at(3)).await.unwrap().is_none());
    let first = address::take_first(&mut tx, &public, at(2)).await.unwrap();
    assert_eq!(first.map(|(_, address)| address), Some(at(5)));
    // An address is free once its user is gone.
    resource::delete(&mut tx, "v2").await.unwrap();
    let first = address::take_first(&mut tx, &public, at(2)).await.unwrap();
    assert_eq!(first.map(|(_, address)| address), Some(at(3)));
    // 10.0.1.0 follows the address that a NIC has.
    let first = address::take_first(&mut tx, &ranges[1], IpAddr::from([10, 0, 0, 255])).await.unwrap();
    assert_eq!(first.map(|(_, address)| address), Some(IpAddr::from([10, 0, 1, 0])));
    resource::delete(&mut tx, "pr").await.unwrap();
    resource::delete(&mut tx, "z").await.unwrap();
    for uuid in ["pr", "v1", "v3", "gr1", "n1"] {
        assert_eq!(resource::kind_of(&mut tx, uuid).await.unwrap(), None, "{uuid}");
    }
    assert_eq!(texts(tx.conn(), "SELECT ip FROM used_ips".to_owned()).await, [""; 0]);
}

#[tokio::test]
async fn a_database_with_dangling_references_stays_as_it_is() {
    let (dir, mut old) = before(CONTENT).await;
    sqlx::raw_sql("PRAGMA foreign_keys = OFF; DELETE FROM used_ips WHERE uuid = 'u1'").execute(&mut old).await.unwrap();
    let had = content(&mut old).await;
    let error = Store::open(&url(&dir)).await.unwrap_err();
    assert!(matches!(error, Error::Migrate { .. }), "{error}");
    assert_eq!(content(&mut old).await, had);
    assert_eq!(texts(&mut old, "SELECT number || '' FROM used_ips WHERE uuid = 'u2'".to_owned()).await, ["167772415"]);
}
