//! The table of resources against the real schema, and conditions against each other.

mod naive;

use std::collections::BTreeSet;

use proptest::prelude::*;
use tempfile::TempDir;
use vipgate_api::{
    Resource,
    query::{Condition, Query, Sort, Test},
};

use super::{
    relation::RELATIONS,
    run, select,
    table::{Items, Kind, TABLES, Table},
};
use crate::store::Store;

async fn fresh() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite://{}/vipgate.db", dir.path().display())).await.unwrap();
    (dir, store)
}

fn everything() -> Query {
    Query { conditions: Vec::new(), ..Query::by_uuid("") }
}

#[tokio::test]
async fn every_field_can_be_tested_sorted_by_and_chosen() {
    let (_dir, store) = fresh().await;
    let mut tx = store.read().await.unwrap();
    for table in TABLES {
        for field in table.fields {
            let value = match field.kind {
                Kind::Uuid | Kind::Text => "a",
                Kind::Number | Kind::Flag => "1",
                Kind::Date => "Jun 7, 2017 9:20:10 PM",
            };
            let value = || value.to_owned();
            let mut tests = vec![
                Test::Equal(value()),
                Test::NotEqual(value()),
                Test::Greater(value()),
                Test::GreaterOrEqual(value()),
                Test::Less(value()),
                Test::LessOrEqual(value()),
                Test::In(vec![value(), value()]),
                Test::NotIn(vec![value()]),
                Test::IsNull,
                Test::NotNull,
            ];
            if matches!(field.kind, Kind::Uuid | Kind::Text | Kind::Number) {
                tests.extend([Test::Like(value()), Test::NotLike(value())]);
            }
            for test in tests {
                let query = Query {
                    conditions: vec![Condition { name: field.name.to_owned(), test }],
                    sort: Some(Sort { field: field.name.to_owned(), descending: true }),
                    fields: vec![field.name.to_owned()],
                    reply_with_count: true,
                    ..everything()
                };
                let reply = run(&mut tx, None, table.resource, &query).await;
                assert!(reply.is_ok(), "{:?}.{}: {reply:?}", table.resource, field.name);
            }
        }
    }
}

#[test]
fn keys_and_lists_name_fields_that_there_are() {
    for table in TABLES {
        assert!(table.field(table.key).is_some(), "{:?} has no {}", table.resource, table.key);
        for list in table.lists {
            if let Items::Inventories { resource, field } = list.of {
                let items = Table::of(resource).unwrap();
                assert!(items.field(field).is_some(), "{resource:?} has no {field}");
            }
        }
    }
}

#[test]
fn relations_name_fields_that_there_are() {
    for end in RELATIONS.iter().flat_map(|relation| &relation.ends) {
        let table = Table::of(end.resource).unwrap();
        assert!(table.field(end.field).is_some(), "{:?} has no {}", end.resource, end.field);
    }
}

/// Of something that this router does not keep, or cannot say the type of.
const FOREIGN: [&str; 2] = ["usedIpUuid", "resourceUuid"];

#[test]
fn every_field_that_names_a_resource_is_a_relation() {
    for table in TABLES {
        let known: BTreeSet<_> = table.steps().map(|step| step.near).collect();
        for field in table.fields.iter().filter(|field| field.kind == Kind::Uuid && field.name != "uuid") {
            let known = known.contains(field.name) || FOREIGN.contains(&field.name);
            assert!(known, "give {:?}.{} a row in relation.rs", table.resource, field.name);
        }
    }
}

#[test]
fn a_name_in_a_condition_means_one_thing() {
    for table in TABLES {
        let texts = table.lists.iter().filter(|list| matches!(list.of, Items::Texts { .. })).map(|list| list.name);
        let names = table.fields.iter().map(|field| field.name).chain(texts);
        let mut seen = BTreeSet::new();
        for name in names.chain(table.steps().flat_map(|step| step.names).copied()) {
            assert!(seen.insert(name), "{:?} has two of {name}", table.resource);
        }
        for list in table.lists.iter().filter(|list| matches!(list.of, Items::Inventories { .. })) {
            assert!(
                table.step(list.name).is_some(),
                "{:?} prints {} and can't be asked for it",
                table.resource,
                list.name
            );
        }
    }
}

/// The ways that the document and real clients take.
#[tokio::test]
async fn documented_ways_lead_somewhere() {
    let (_dir, store) = fresh().await;
    let mut tx = store.read().await.unwrap();
    for (resource, name) in [
        (Resource::VmInstance, "vmNics.ip"),
        (Resource::VmInstance, "vmNics.loadBalancerListener.loadBalancer.vip.name"),
        (Resource::VmInstance, "zone.l2Network.l3Network.ipRanges.name"),
        (Resource::L3Network, "networkServices.networkServiceType"),
        (Resource::L3Network, "serviceProvider.type"),
        (Resource::L3Network, "vmNic.__userTag__"),
        (Resource::VmNic, "vmInstance.name"),
        (Resource::VmNic, "l3Network.l2Network.zone.name"),
        (Resource::LoadBalancer, "listeners.vmNic.vmInstance.name"),
        (Resource::Listener, "loadBalancer.vip.peerL3Network.vmNic.vmInstance.state"),
        (Resource::Listener, "vmNicRefs.status"),
        (Resource::Vip, "loadBalancer.listeners.loadBalancerPort"),
        (Resource::NetworkServiceProvider, "l3Network.l2Network.zone.name"),
        (Resource::VmInstance, "vmNics.portForwarding.allowedCidr"),
        (Resource::VmInstance, "vmNics.eip.ip"),
        (Resource::Vip, "eip.guestIp"),
        (Resource::Vip, "vipQos.port"),
        (Resource::Eip, "vip.l3Network.name"),
        (Resource::Eip, "vmNic.vmInstance.name"),
    ] {
        let condition = Condition { name: name.to_owned(), test: Test::NotNull };
        let query = Query { conditions: vec![condition], ..everything() };
        let reply = run(&mut tx, None, resource, &query).await;
        assert!(reply.is_ok(), "{resource:?} {name}: {reply:?}");
    }
}

#[test]
fn lists_that_are_printed_are_described_in_the_schema() {
    for table in TABLES {
        let nested = table.resource.nested();
        for list in table.lists {
            if let Items::Inventories { resource, .. } = list.of {
                assert!(nested.contains(&(list.name, resource)), "{:?}.{}", table.resource, list.name);
            }
        }
    }
}

#[test]
fn no_value_is_ever_part_of_the_statement() {
    let text = "'; DROP TABLE zones --".to_owned();
    let tests = [
        Test::Equal(text.clone()),
        Test::In(vec![text.clone()]),
        Test::Like(text.clone()),
        Test::Greater(text.clone()),
    ];
    for test in tests {
        let query = Query { conditions: vec![Condition { name: "name".to_owned(), test }], ..everything() };
        let statement = select::page(Table::of(Resource::Zone).unwrap(), &query, None).unwrap();
        let (sql, values) = statement.build(sea_query::SqliteQueryBuilder);
        assert!(!sql.to_lowercase().contains("drop"), "{sql}");
        assert!(format!("{values:?}").contains("\"'; "), "{values:?}");
    }
}

/// Names of the zones that a test selects.
async fn selected(store: &Store, test: Test) -> Vec<String> {
    let query = Query { conditions: vec![Condition { name: "name".to_owned(), test }], ..everything() };
    let reply = run(&mut store.read().await.unwrap(), None, Resource::Zone, &query).await.unwrap();
    let inventories = reply["inventories"].as_array().unwrap();
    inventories.iter().map(|zone| zone["name"].as_str().unwrap().to_owned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Of any two complementary tests each row meets exactly one, whatever the texts hold.
    #[test]
    fn a_test_and_its_opposite_share_out_the_rows(
        names in prop::collection::vec("[a-cA-C%_\\\\'é ]{1,3}", 1..6),
        value in "[a-cA-C%_\\\\'é ]{1,3}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, store) = fresh().await;
            let mut tx = store.begin().await.unwrap();
            for (number, name) in names.iter().enumerate() {
                let uuid = format!("{number:032x}");
                sqlx::query("INSERT INTO resources SELECT $1, 'ZoneVO', uuid FROM accounts LIMIT 1")
                    .bind(&uuid).execute(tx.conn()).await.unwrap();
                sqlx::query("INSERT INTO zones VALUES ($1, $2, NULL, 'Enabled', 'zstack', $3, 0)")
                    .bind(&uuid).bind(name).bind(i64::try_from(number).unwrap()).execute(tx.conn()).await.unwrap();
            }
            tx.commit().await.unwrap();
            let value = || value.clone();
            for (test, opposite) in [
                (Test::Equal(value()), Test::NotEqual(value())),
                (Test::Less(value()), Test::GreaterOrEqual(value())),
                (Test::Greater(value()), Test::LessOrEqual(value())),
                (Test::Like(value()), Test::NotLike(value())),
                (Test::In(vec![value()]), Test::NotIn(vec![value()])),
            ] {
                let mut all = selected(&store, test).await;
                all.extend(selected(&store, opposite).await);
                all.sort();
                let mut expected = names.clone();
                expected.sort();
                assert_eq!(all, expected);
            }
            let equal = names.iter().filter(|name| name.eq_ignore_ascii_case(&value())).cloned().collect::<Vec<_>>();
            assert_eq!(selected(&store, Test::Equal(value())).await, equal);
        });
    }
}
