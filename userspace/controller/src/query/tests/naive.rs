//! Queries against a naive implementation of the same rules: rows in memory, conditions evaluated row by row.

use std::{cmp::Ordering, collections::HashMap};

use proptest::{
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree,
    test_runner::TestRunner,
};
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Row};
use vipgate_api::{
    Date, Resource,
    query::{Condition, Query, Sort, Test},
};

use super::{
    super::{
        relation::{RELATIONS, Step},
        run, run_with,
        table::{Items, Kind, TABLES, Table},
    },
    everything, fresh,
};
use crate::store::Tx;

type Inventory = Map<String, Value>;

/// All rows as they are printed, and the pairs of every table of pairs.
struct World {
    rows: HashMap<Resource, Vec<Inventory>>,
    pairs: HashMap<&'static str, Vec<(String, String)>>,
    system_tags: Vec<(String, String)>,
    user_tags: Vec<(String, String)>,
}

impl World {
    async fn load(tx: &mut Tx) -> Self {
        let mut rows = HashMap::new();
        for table in TABLES {
            let reply = run(tx, None, table.resource, &everything()).await.unwrap();
            let inventories = reply["inventories"].as_array().unwrap();
            let inventories = inventories.iter().map(|inventory| inventory.as_object().unwrap().clone());
            rows.insert(table.resource, inventories.collect());
        }
        let mut all = HashMap::new();
        for (table, [a, b]) in RELATIONS.iter().filter_map(|relation| relation.via) {
            all.insert(table, pairs(tx, table, a, b).await);
        }
        let system_tags = pairs(tx, "system_tags", "resource_uuid", "tag").await;
        let user_tags = pairs(tx, "user_tags", "resource_uuid", "tag").await;
        Self { rows, pairs: all, system_tags, user_tags }
    }

    /// The expected reply of the query.
    fn answer(&self, table: &'static Table, query: &Query) -> (usize, Vec<Inventory>) {
        let meets = |row: &&Inventory| {
            query.conditions.iter().all(|condition| {
                let path: Vec<_> = condition.name.split('.').collect();
                self.holds(table, row, &path, &condition.test)
            })
        };
        let mut rows: Vec<_> = self.rows[&table.resource].iter().filter(meets).cloned().collect();
        if let Some(field) = &query.group_by {
            let kind = table.field(field).unwrap().kind;
            let mut firsts = Vec::<Inventory>::new();
            for row in rows {
                if firsts.iter().all(|first| order(kind, first.get(field), row.get(field)).is_ne()) {
                    firsts.push(row);
                }
            }
            rows = firsts;
        }
        if let Some(Sort { field, descending }) = &query.sort {
            let kind = table.field(field).unwrap().kind;
            if *descending {
                rows.reverse();
            }
            rows.sort_by(|a, b| {
                let order = order(kind, a.get(field), b.get(field));
                if *descending { order.reverse() } else { order }
            });
        }
        let page = rows.iter().skip(query.start as usize).take(query.limit as usize);
        (rows.len(), page.cloned().collect())
    }

    fn holds(&self, table: &'static Table, row: &Inventory, path: &[&str], test: &Test) -> bool {
        if let [first, rest @ ..] = path
            && !rest.is_empty()
        {
            let step = table.step(first).unwrap();
            let far = self.rows[&step.table.resource].iter();
            return far.filter(|far| self.reaches(row, far, &step)).any(|far| self.holds(step.table, far, rest, test));
        }
        let tagged = |tags: &[(String, String)]| {
            let mine = tags.iter().filter(|(owner, _)| row["uuid"] == owner.as_str());
            mine.map(|(_, tag)| tag.clone()).collect::<Vec<_>>()
        };
        match path[0] {
            "__systemTag__" => listed(&tagged(&self.system_tags), test),
            "__userTag__" => listed(&tagged(&self.user_tags), test),
            name => match table.field(name) {
                Some(field) => single(field.kind, row.get(name), test),
                None => {
                    let texts = row[name].as_array().unwrap().iter();
                    listed(&texts.map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>(), test)
                }
            },
        }
    }

    fn reaches(&self, near: &Inventory, far: &Inventory, step: &Step) -> bool {
        let (Some(near), Some(far)) = (near.get(step.near), far.get(step.far)) else { return false };
        let Some((table, near_column, _)) = step.via else { return near == far };
        let relation = RELATIONS.iter().find(|relation| relation.via.is_some_and(|(name, _)| name == table)).unwrap();
        let turned = relation.via.unwrap().1[0] != near_column;
        let wanted = if turned { (far, near) } else { (near, far) };
        self.pairs[table].iter().any(|(a, b)| (&Value::from(a.as_str()), &Value::from(b.as_str())) == wanted)
    }
}

async fn pairs(tx: &mut Tx, table: &str, a: &str, b: &str) -> Vec<(String, String)> {
    let rows = sqlx::query(AssertSqlSafe(format!("SELECT {a}, {b} FROM {table}"))).fetch_all(tx.conn()).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Conditions on a list are about the whole list.
fn listed(texts: &[String], test: &Test) -> bool {
    let any = |test: &Test| texts.iter().any(|text| single(Kind::Text, Some(&text.as_str().into()), test));
    match test {
        Test::IsNull => texts.is_empty(),
        Test::NotNull => !texts.is_empty(),
        Test::NotEqual(text) => !any(&Test::Equal(text.clone())),
        Test::NotIn(texts) => !any(&Test::In(texts.clone())),
        Test::NotLike(pattern) => !any(&Test::Like(pattern.clone())),
        other => any(other),
    }
}

/// No comparison with null is true.
fn single(kind: Kind, value: Option<&Value>, test: &Test) -> bool {
    let Some(value) = value else { return *test == Test::IsNull };
    let order = |text: &str| order(kind, Some(value), Some(&typed(kind, text)));
    let like = |pattern: &str| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        alike(&folded(&text), &folded(pattern))
    };
    match test {
        Test::Equal(text) => order(text).is_eq(),
        Test::NotEqual(text) => order(text).is_ne(),
        Test::Greater(text) => order(text).is_gt(),
        Test::GreaterOrEqual(text) => order(text).is_ge(),
        Test::Less(text) => order(text).is_lt(),
        Test::LessOrEqual(text) => order(text).is_le(),
        Test::In(texts) => texts.iter().any(|text| order(text).is_eq()),
        Test::NotIn(texts) => texts.iter().all(|text| order(text).is_ne()),
        Test::Like(pattern) => like(pattern),
        Test::NotLike(pattern) => !like(pattern),
        Test::IsNull => false,
        Test::NotNull => true,
    }
}

fn typed(kind: Kind, text: &str) -> Value {
    match kind {
        Kind::Uuid | Kind::Text | Kind::Date => text.into(),
        Kind::Number => text.parse::<i64>().unwrap().into(),
        Kind::Flag => (text == "true").into(),
    }
}

/// Null sorts before everything.
fn order(kind: Kind, a: Option<&Value>, b: Option<&Value>) -> Ordering {
    let (Some(a), Some(b)) = (a, b) else { return a.is_some().cmp(&b.is_some()) };
    let text = |value: &Value| folded(value.as_str().unwrap());
    match kind {
        Kind::Uuid | Kind::Text => text(a).cmp(&text(b)),
        Kind::Number => a.as_i64().cmp(&b.as_i64()),
        Kind::Flag => a.as_bool().cmp(&b.as_bool()),
        Kind::Date => {
            let seconds = |value: &Value| value.as_str().unwrap().parse::<Date>().unwrap().millis() / 1000;
            seconds(a).cmp(&seconds(b))
        }
    }
}

/// The letters that the texts here are made of, without their cases.
fn folded(text: &str) -> Vec<char> {
    let fold = |c| match c {
        'A'..='Z' => char::from(c as u8 + 32),
        'É' => 'é',
        'Σ' | 'ς' => 'σ',
        'Ж' => 'ж',
        other => other,
    };
    text.chars().map(fold).collect()
}

fn alike(text: &[char], pattern: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['%', rest @ ..] => (0..=text.len()).any(|skipped| alike(&text[skipped..], rest)),
        ['_', rest @ ..] => !text.is_empty() && alike(&text[1..], rest),
        ['\\', literal, rest @ ..] | [literal, rest @ ..] => text.first() == Some(literal) && alike(&text[1..], rest),
    }
}

const TEXT: &str = r"[aAbBéÉΣσςжЖ%_*?\[\]\\^-]{1,3}";

/// Texts, and choices among what is there, for the rows of one world.
#[derive(Debug)]
struct Seeds {
    texts: Vec<String>,
    choices: Vec<Index>,
}

impl Seeds {
    fn text(&mut self) -> String {
        self.texts.rotate_left(1);
        self.texts[0].clone()
    }

    /// One of the four last texts, often null.
    fn maybe(&mut self) -> Option<String> {
        (self.below(3) > 0).then(|| self.text())
    }

    fn below(&mut self, count: usize) -> usize {
        self.choices.rotate_left(1);
        self.choices[0].index(count)
    }
}

fn uuid(kind: usize, number: usize) -> String {
    format!("{kind:04x}{number:028x}")
}

/// Four of each resource, that belong to each other as the seeds say.
async fn populate(tx: &mut Tx, seeds: &mut Seeds) {
    const EACH: usize = 4;
    let kinds = [
        ("ZoneVO", "zones (uuid, name, description, state, type, create_date, last_op_date)"),
        (
            "L2NetworkVO",
            "l2_networks (uuid, name, description, zone_uuid, physical_interface, type, vlan, create_date, last_op_date)",
        ),
        (
            "L3NetworkVO",
            "l3_networks (uuid, name, description, type, zone_uuid, l2_network_uuid, state, dns_domain, system, category, create_date, last_op_date)",
        ),
        (
            "IpRangeVO",
            "ip_ranges (uuid, l3_network_uuid, name, description, start_ip, end_ip, netmask, gateway, network_cidr, first_key, last_key, create_date, last_op_date)",
        ),
        (
            "VmInstanceVO",
            "vm_instances (uuid, name, description, zone_uuid, default_l3_network_uuid, platform, type, hypervisor_type, memory_size, cpu_num, cpu_speed, state, internal_id, create_date, last_op_date)",
        ),
        (
            "VmNicVO",
            "vm_nics (uuid, vm_instance_uuid, used_ip_uuid, l3_network_uuid, ip, mac, netmask, gateway, meta_data, internal_name, device_id, create_date, last_op_date)",
        ),
        (
            "VipVO",
            "vips (uuid, name, description, l3_network_uuid, ip_range_uuid, used_ip_uuid, ip, state, gateway, netmask, use_for, create_date, last_op_date)",
        ),
        ("LoadBalancerVO", "load_balancers (uuid, name, description, state, vip_uuid, create_date, last_op_date)"),
        (
            "LoadBalancerListenerVO",
            "load_balancer_listeners (uuid, name, description, load_balancer_uuid, instance_port, load_balancer_port, protocol, number, create_date, last_op_date)",
        ),
    ];
    let literal = |text: &Option<String>| text.as_ref().map_or("NULL".to_owned(), |text| format!("'{text}'"));
    for (kind, (class, columns)) in kinds.into_iter().enumerate() {
        for number in 0..EACH {
            let me = uuid(kind, number);
            let (name, description) = (seeds.text(), literal(&seeds.maybe()));
            let (a, b) = (seeds.below(EACH), seeds.below(EACH));
            let of = uuid;
            let state = ["Enabled", "Disabled"][a % 2];
            let used = of(99, kind * EACH + number);
            if matches!(class, "VmNicVO" | "VipVO") {
                let values = format!(
                    "'{used}', '{}', '{}', '10.0.0.{number}', X'{:032x}'",
                    of(3, b),
                    of(2, a),
                    kind * EACH + number
                );
                execute(
                    tx,
                    format!(
                        "INSERT INTO used_ips (uuid, ip_range_uuid, l3_network_uuid, ip, address_key) VALUES ({values})"
                    ),
                )
                .await;
            }
            let values = match class {
                "ZoneVO" => format!("'{name}', {description}, '{state}', 'zstack'"),
                "L2NetworkVO" => {
                    let (of_type, vlan) = if a == 0 { ("L2NoVlanNetwork", "NULL") } else { ("L2VlanNetwork", "7") };
                    format!("'{name}', {description}, '{}', 'eth0', '{of_type}', {vlan}", of(0, b))
                }
                "L3NetworkVO" => {
                    let (system, category) = if a == 0 { (1, "System") } else { (0, "Private") };
                    format!(
                        "'{name}', {description}, 'B', '{}', '{}', '{state}', NULL, {system}, '{category}'",
                        of(0, a),
                        of(1, b)
                    )
                }
                "IpRangeVO" => format!(
                    "'{}', '{name}', {description}, 'a', 'b', 'c', 'd', 'e', zeroblob(16), zeroblob(16)",
                    of(2, a)
                ),
                "VmInstanceVO" => {
                    let default = literal(&seeds.maybe().map(|_| of(2, b)));
                    format!(
                        "'{name}', {description}, '{}', {default}, 'Linux', 'UserVm', 'KVM', {a}, {b}, 1, 'Running', {number}",
                        of(0, a)
                    )
                }
                "VmNicVO" => {
                    format!(
                        "'{}', '{used}', '{}', '{name}', '{number}', 'm', 'g', {description}, 'i', {number}",
                        of(4, a),
                        of(2, b)
                    )
                }
                "VipVO" => format!(
                    "'{name}', {description}, '{}', '{}', '{used}', '{name}', '{state}', 'g', 'm', {description}",
                    of(2, a),
                    of(3, b)
                ),
                "LoadBalancerVO" => format!("'{name}', {description}, '{state}', '{}'", of(6, a)),
                _ => format!("'{name}', {description}, '{}', {}, {}, 'tcp', {number}", of(7, a), a + 1, b + 1),
            };
            let date = 1_500_000_000_000_i64 + (a as i64) * 1000;
            execute(tx, format!("INSERT INTO resources SELECT '{me}', '{class}', uuid FROM accounts LIMIT 1")).await;
            execute(tx, format!("INSERT INTO {columns} VALUES ('{me}', {values}, {date}, {date})")).await;
            for (table, prefix) in [("system_tags", "5"), ("user_tags", "6")] {
                if let Some(tag) = seeds.maybe() {
                    let tag = format!("'{prefix}{}', '{me}', '{class}', '{tag}', {date}, {date}", &me[1..]);
                    execute(tx, format!("INSERT INTO {table} (uuid, resource_uuid, resource_type, tag, create_date, last_op_date) VALUES ({tag})")).await;
                }
            }
        }
    }
    for number in 0..6 {
        let (a, b) = (seeds.below(EACH), seeds.below(EACH));
        let text = seeds.text();
        for statement in [
            format!("INTO vip_peer_l3_networks VALUES ('{}', '{}')", uuid(6, a), uuid(2, b)),
            format!("INTO l3_network_dns VALUES ('{}', '{text}', 0, 0)", uuid(2, a)),
            format!(
                "INTO network_service_l3_network_refs SELECT '{}', network_service_provider_uuid, network_service_type FROM network_service_types",
                uuid(2, a)
            ),
            format!(
                "INTO load_balancer_listener_vm_nic_refs (listener_uuid, vm_nic_uuid, status, number, create_date, last_op_date) VALUES ('{}', '{}', 'Active', {number}, 0, 0)",
                uuid(8, a),
                uuid(5, b)
            ),
        ] {
            execute(tx, format!("INSERT OR IGNORE {statement}")).await;
        }
    }
}

async fn execute(tx: &mut Tx, sql: String) {
    sqlx::query(AssertSqlSafe(sql.clone())).execute(tx.conn()).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A test that fits the kind.
fn test(kind: Kind) -> BoxedStrategy<Test> {
    let value = match kind {
        Kind::Uuid => (0_usize..9, 0_usize..4).prop_map(|(kind, number)| uuid(kind, number).to_uppercase()).boxed(),
        Kind::Text => prop_oneof![4 => TEXT, 1 => select(vec!["enabled", "zstack", "LOADBALANCER", "tcp"]).prop_map(str::to_owned)].boxed(),
        Kind::Number => (0_i64..6).prop_map(|number| number.to_string()).boxed(),
        Kind::Flag => any::<bool>().prop_map(|flag| flag.to_string()).boxed(),
        Kind::Date => (0_i64..4)
            .prop_map(|second| Date::from_millis(1_500_000_000_000 + second * 1000).unwrap().to_string())
            .boxed(),
    };
    let values = || prop::collection::vec(value.clone(), 1..4);
    let mut tests = vec![
        value.clone().prop_map(Test::Equal).boxed(),
        value.clone().prop_map(Test::NotEqual).boxed(),
        value.clone().prop_map(Test::Greater).boxed(),
        value.clone().prop_map(Test::GreaterOrEqual).boxed(),
        value.clone().prop_map(Test::Less).boxed(),
        value.clone().prop_map(Test::LessOrEqual).boxed(),
        values().prop_map(Test::In).boxed(),
        values().prop_map(Test::NotIn).boxed(),
        Just(Test::IsNull).boxed(),
        Just(Test::NotNull).boxed(),
    ];
    if matches!(kind, Kind::Uuid | Kind::Text | Kind::Number) {
        // A pattern that ends in the middle of an escape means the backslash.
        let pattern = (value, "[%_]?").prop_map(|(value, more)| format!("{}{more}", value.trim_end_matches('\\')));
        tests.push(pattern.clone().prop_map(Test::Like).boxed());
        tests.push(pattern.prop_map(Test::NotLike).boxed());
    }
    prop::strategy::Union::new(tests).boxed()
}

/// A condition that starts at `table` and takes so many steps.
fn condition(table: &'static Table, steps: usize) -> BoxedStrategy<Condition> {
    let ways: Vec<_> = table.steps().collect();
    if steps > 0 && !ways.is_empty() {
        let way = select(ways).prop_flat_map(|step| (Just(step), select(step.names)));
        return way
            .prop_flat_map(move |(step, name)| {
                condition(step.table, steps - 1)
                    .prop_map(move |rest| Condition { name: format!("{name}.{}", rest.name), ..rest })
            })
            .boxed();
    }
    let lists = table.lists.iter().filter(|list| matches!(list.of, Items::Texts { .. })).map(|list| list.name);
    let tags = ["__systemTag__", "__userTag__"].into_iter().filter(|_| table.has_tags());
    let texts = lists.chain(tags).map(|name| (name, Kind::Text));
    let names: Vec<_> = table.fields.iter().map(|field| (field.name, field.kind)).chain(texts).collect();
    select(names)
        .prop_flat_map(|(name, kind)| test(kind).prop_map(move |test| Condition { name: name.to_owned(), test }))
        .boxed()
}

fn query() -> impl Strategy<Value = (&'static Table, Query)> {
    select(TABLES.iter().collect::<Vec<&'static Table>>()).prop_flat_map(|table| {
        let fields: Vec<_> = table.fields.iter().map(|field| field.name.to_owned()).collect();
        let conditions = prop::collection::vec((0_usize..5).prop_flat_map(|steps| condition(table, steps)), 0..3);
        let sort = (select(fields.clone()), any::<bool>()).prop_map(|(field, descending)| Sort { field, descending });
        let group = prop::option::weighted(0.2, select(fields));
        (conditions, prop::option::of(sort), group, 0_u64..3, 0_u64..20).prop_map(
            move |(conditions, sort, group_by, start, limit)| {
                let query = Query { conditions, sort, group_by, start, limit, reply_with_count: true, ..everything() };
                (table, query)
            },
        )
    })
}

/// Queries of each world: what costs time is the world.
const QUERIES: usize = 250;

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn every_query_answers_what_following_it_row_by_row_finds(
        texts in prop::collection::vec(TEXT, 7),
        choices in prop::collection::vec(any::<Index>(), 97),
        few in 0_usize..4,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, store) = fresh().await;
            let mut tx = store.begin().await.unwrap();
            populate(&mut tx, &mut Seeds { texts, choices }).await;
            let world = World::load(&mut tx).await;
            let mut runner = TestRunner::default();
            let mut found = 0;
            for _ in 0..QUERIES {
                let (table, query) = query().new_tree(&mut runner).unwrap().current();
                let mut reply = run_with(&mut tx, None, table.resource, &query, few).await.unwrap_or_else(|error| panic!("{query:?}: {error}"));
                let (total, inventories) = world.answer(table, &query);
                let inventories: Value = inventories.into_iter().map(Value::Object).collect();
                assert_eq!(reply["inventories"].take(), inventories, "{:?} {query:?}", table.resource);
                assert_eq!(reply["total"], total, "{:?} {query:?}", table.resource);
                found += usize::from(total > 0);
            }
            assert!(found > QUERIES / 10, "hardly any query finds something: {found}");
        });
    }
}
