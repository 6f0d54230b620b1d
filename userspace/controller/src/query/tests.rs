//! The table of resources against the real schema, and conditions against each other.

mod naive;

use std::collections::BTreeSet;

use proptest::prelude::*;
use sea_query::{Asterisk, Expr, ExprTrait, Query as Sql, SelectStatement, SqliteQueryBuilder};
use sea_query_sqlx::SqlxBinder;
use sqlx::{AssertSqlSafe, Row};
use tempfile::TempDir;
use vipgate_api::{
    Resource,
    query::{Condition, Query, Sort, Test},
};

use super::{
    condition,
    relation::RELATIONS,
    run,
    search::{self, Search},
    select,
    table::{self, Items, Kind, ORDERS, TABLES, Table},
};
use crate::store::{Store, Tx};

async fn fresh() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite://{}/vipgate.db", dir.path().display())).await.unwrap();
    (dir, store)
}

fn everything() -> Query {
    Query { conditions: Vec::new(), ..Query::by_uuid("") }
}

/// The statement of a page, to which fewer rows than `few` are few.
async fn page(tx: &mut Tx, resource: Resource, query: &Query, few: usize) -> SelectStatement {
    let table = Table::of(resource).unwrap();
    let conditions = condition::all(Search { tx, few }, table, &query.conditions, None).await.unwrap();
    select::page(table, query, &conditions).unwrap()
}

/// How SQLite goes about it.
async fn plan(tx: &mut Tx, statement: &SelectStatement) -> Vec<String> {
    let (sql, values) = statement.build_sqlx(SqliteQueryBuilder);
    let steps = sqlx::query_with(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")), values).fetch_all(tx.conn()).await;
    steps.unwrap().iter().map(|step| step.get("detail")).collect()
}

#[tokio::test]
async fn rows_that_many_conditions_hold_for_are_read_in_their_order() {
    let (_dir, store) = fresh().await;
    let mut tx = store.read().await.unwrap();
    for (resource, orders) in ORDERS {
        let table = Table::of(resource).unwrap();
        let own = table.fields.iter().map(|field| field.name.to_owned());
        let related = table
            .steps()
            .flat_map(|step| step.table.fields.iter().map(move |field| format!("{}.{}", step.names[0], field.name)));
        let test = Test::In(vec!["1".to_owned()]);
        let conditions: Vec<_> = own
            .chain(related)
            .filter(|name| !name.ends_with("Date"))
            .map(|name| Condition { name, test: test.clone() })
            .collect();
        let sorts = orders.iter().flat_map(|field| [false, true].map(|descending| (Some(*field), descending)));
        for (field, descending) in sorts.chain([(None, false)]) {
            let sort = field.map(|field| Sort { field: field.to_owned(), descending });
            for conditions in conditions.chunks(3) {
                let query = Query { conditions: conditions.to_vec(), sort: sort.clone(), ..everything() };
                let statement = page(&mut tx, resource, &query, 0).await;
                let plan = plan(&mut tx, &statement).await;
                assert!(plan[0].starts_with("SCAN t0"), "{resource:?} {query:?}: {plan:#?}");
                let slow = |step: &String| step.starts_with("SCAN t") || step.contains("TEMP B-TREE");
                assert!(!plan[1..].iter().any(slow), "{resource:?} {query:?}: {plan:#?}");
            }
        }
    }
}

#[tokio::test]
async fn few_rows_are_where_a_query_starts() {
    let (_dir, store) = fresh().await;
    let mut tx = store.read().await.unwrap();
    for name in ["name", "uuid", "loadBalancer.vip.name", "vmNic.__userTag__"] {
        let conditions = vec![Condition { name: name.to_owned(), test: Test::Like("a%".to_owned()) }];
        let query = Query { conditions, ..everything() };
        let statement = page(&mut tx, Resource::Listener, &query, search::FEW).await;
        let plan = plan(&mut tx, &statement).await;
        assert!(plan[0].starts_with("SEARCH t0 USING INTEGER PRIMARY KEY"), "{name}: {plan:#?}");
    }
}

#[tokio::test]
async fn every_way_between_resources_has_its_index() {
    let (_dir, store) = fresh().await;
    let mut tx = store.read().await.unwrap();
    let mut columns = BTreeSet::new();
    for relation in RELATIONS {
        for end in &relation.ends {
            columns.insert((Table::of(end.resource).unwrap().name, table::column(end.field)));
        }
        let pairs = relation.via.into_iter().flat_map(|(pairs, columns)| columns.map(|column| (pairs, column)));
        columns.extend(pairs.map(|(pairs, column)| (pairs, column.to_owned())));
    }
    for (table, column) in columns {
        let statement = Sql::select().column(Asterisk).from(table).and_where(Expr::col(column.clone()).eq("a")).take();
        let plan = plan(&mut tx, &statement).await;
        assert!(plan.iter().any(|step| step.starts_with("SEARCH")), "{table}.{column}: {plan:?}");
    }
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

#[tokio::test]
async fn no_value_is_ever_part_of_the_statement() {
    let (_dir, store) = fresh().await;
    let mut tx = store.read().await.unwrap();
    let text = "'; DROP TABLE zones --".to_owned();
    let tests = [
        Test::Equal(text.clone()),
        Test::In(vec![text.clone()]),
        Test::Like(text.clone()),
        Test::Greater(text.clone()),
    ];
    for test in tests {
        let query = Query { conditions: vec![Condition { name: "name".to_owned(), test }], ..everything() };
        let statement = page(&mut tx, Resource::Zone, &query, 0).await;
        let (sql, values) = statement.build(SqliteQueryBuilder);
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
