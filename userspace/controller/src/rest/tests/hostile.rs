//! Hostile requests: every reply is one of the documented kinds, and a refused request has changed nothing.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use reqwest::{Method, Response, header::HeaderValue};
use serde_json::{Map, Value, json};
use sqlx::AssertSqlSafe;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use vipgate_api::{
    Api, Call,
    call::{self, Kind, Mode},
    calls,
    query::{MAX_CONDITIONS, MAX_VALUES},
    request::TAGS,
};

use super::support::{Server, Site, eventually};
use crate::rest::request::MAX_BODY;

/// Bodies for each call.
const BODIES: usize = 12;

/// Texts that break what is not built for them: they end strings of SQL, lines of headers and strings of C, are patterns,
/// paths or markup, need more than a byte a character, or stand for more than 64 bits.
const HOSTILE: [&str; 14] = [
    "'; DROP TABLE vips; --",
    "\" OR \"\"=\"",
    "x'||randomblob(1000000000)||'",
    "%_[a-z]*?",
    "a\r\nX-Injected: yes",
    "nul\0nul",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "网络 é \u{1F980}",
    "\u{202E}\u{FEFF}\u{200B}",
    "9223372036854775808",
    "-1",
    "1e400",
    "NaN",
];

/// Numbers at the edges of what has edges.
const EDGES: [i64; 11] = [
    0,
    -1,
    65_535,
    65_536,
    i32::MAX as i64,
    i32::MAX as i64 + 1,
    i32::MIN as i64 - 1,
    u32::MAX as i64 + 1,
    1 << 53,
    i64::MAX,
    i64::MIN,
];

/// Lists in lists, deeper than a reader may follow without regard to its stack.
const DEEPEST: usize = 200;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,20}", prop::sample::select(&HOSTILE[..]).prop_map(str::to_owned)]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::sample::select(&EDGES[..]).prop_map(Value::from),
        (1_i64..65536).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
        prop_oneof!["10.0.0.[0-9]{1,3}", "10.0.0.0/[0-9]{1,2}", "tcp|udp", "eth0"].prop_map(Value::from),
        (0..DEEPEST).prop_map(|depth| (0..depth).fold(Value::Null, |inner, _| json!([inner]))),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map(text(), inner, 0..3).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// A variable of a path: a uuid that exists, or anything that is not another path.
fn variable(known: Vec<String>) -> impl Strategy<Value = String> {
    let anything = text().prop_filter("it is empty", |text| !text.is_empty());
    prop_oneof![3 => prop::sample::select(known), 1 => anything]
}

/// A body for the call: each parameter absent, a uuid that exists, or anything.
fn body(call: &'static Call, known: Vec<String>) -> impl Strategy<Value = Value> {
    let known = prop::sample::select(known).prop_map(Value::from);
    let listed = known.clone().prop_map(|uuid| json!([uuid]));
    let argument = prop_oneof![1 => Just(None), 4 => value().prop_map(Some), 2 => known.prop_map(Some), 1 => listed.prop_map(Some)];
    prop::collection::vec(argument, call.params.len()).prop_map(move |values| {
        let members = call.params.iter().zip(values);
        let members = members.filter_map(|(param, value)| Some((param.name.to_owned(), value?)));
        json!({ call.body[0]: members.collect::<Map<_, _>>() })
    })
}

/// All stored rows except sessions, and jobs with their results.
async fn stored(server: &Server) -> BTreeSet<String> {
    let mut tx = server.store.read().await.unwrap();
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c
         WHERE t.type = 'table' AND t.name NOT IN ('sessions', 'jobs', 'web_hooks')",
    )
    .fetch_all(tx.conn())
    .await
    .unwrap();
    let mut tables = BTreeMap::<_, Vec<_>>::new();
    for (table, column) in columns {
        tables.entry(table).or_default().push(format!("quote({column})"));
    }
    let mut rows = BTreeSet::new();
    for (table, columns) in tables {
        let sql = format!("SELECT {} FROM {table}", columns.join("||','||"));
        let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(tx.conn()).await.unwrap();
        rows.extend(found.into_iter().map(|row| format!("{table}: {row}")));
    }
    rows
}

/// Where the call is sent to, with `variable` for each variable of its path.
fn target(call: &Call, variable: &str) -> (Method, String) {
    let route = call.routes[0];
    let variable = utf8_percent_encode(variable, NON_ALPHANUMERIC).to_string();
    let path = route.path.split('/').map(|part| if part.starts_with('{') { &variable } else { part });
    let method = if route.method == call::Method::Post { Method::POST } else { Method::PUT };
    (method, path.collect::<Vec<_>>().join("/"))
}

/// Calls with a job whose parameters are in a body.
fn changes() -> impl Iterator<Item = &'static Call> {
    calls::all().filter(|call| call.mode == Mode::Async && !call.body.is_empty())
}

/// Whether the call succeeded. Asserts that its reply, and that of its job, are of the documented kinds.
async fn carried_out(server: &Server, reply: Response, what: &str) -> bool {
    match reply.status() {
        StatusCode::BAD_REQUEST => false,
        StatusCode::ACCEPTED => {
            let (status, reply) = server.wait_for(reply).await;
            let refused = status == StatusCode::SERVICE_UNAVAILABLE && reply["error"]["code"] != "SYS.1000";
            assert!(status == StatusCode::OK || refused, "{what}: {status} {reply}");
            status == StatusCode::OK
        }
        other => panic!("{what}: {other}"),
    }
}

#[tokio::test]
async fn no_body_brings_a_call_off_its_documented_replies_and_what_is_refused_changes_nothing() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let known = vec![site.zone, site.public, site.guest, site.vip, site.balancer, site.listener, site.nic];
    let variables = variable(known.clone());
    let mut runner = TestRunner::new(Config::default());
    let mut before = stored(&server).await;
    for call in changes() {
        for _ in 0..BODIES {
            let body = body(call, known.clone()).new_tree(&mut runner).unwrap().current();
            let (method, path) = target(call, &variables.new_tree(&mut runner).unwrap().current());
            let what = format!("{} at {path} with {body}", call.api.name());
            let reply = server.request(method, &path).json(&body).send().await.unwrap();
            let done = carried_out(&server, reply, &what).await;
            let after = stored(&server).await;
            assert!(done || after == before, "{what} was refused, and changed something");
            before = after;
        }
    }
}

#[tokio::test]
async fn lists_as_long_as_a_body_can_be_are_documented_failures_at_worst() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    // More than one statement binds, by far.
    let many: Vec<String> = (0..100_000).map(|number| format!("{number:x}")).collect();
    for call in changes() {
        // Tags are read alike for all.
        let tags = TAGS.iter().filter(|_| call.api == Api::CreateZone);
        for param in call.params.iter().chain(tags) {
            let long = match param.kind {
                Kind::TextList => json!(many),
                Kind::ListMap => many[..60_000].iter().map(|key| (key.clone(), json!(["a"]))).collect(),
                Kind::Text | Kind::Int | Kind::Long | Kind::Bool => continue,
            };
            let mut arguments = json!({"name": "long", "stateEvent": "enable"});
            arguments[param.name] = long;
            let (method, path) = target(call, &site.listener);
            let reply = server.request(method, &path).json(&json!({ call.body[0]: arguments })).send().await.unwrap();
            carried_out(&server, reply, &format!("{} with many {}", call.api.name(), param.name)).await;
        }
    }
}

#[tokio::test]
async fn bodies_of_a_mebibyte_are_read_to_their_end_or_refused() {
    let server = Server::start().await;
    let before = stored(&server).await;
    let around = json!({"params": {"name": ""}}).to_string().len();
    let longest = json!({"params": {"name": "é".repeat((MAX_BODY - around) / 2)}});
    let error = server.refused(Method::POST, "/zones", longest).await;
    assert_eq!(error["code"], "SYS.1007", "{error}");
    for piece in ["[", "{\"a\":", "\"", "9", "\u{1}", "é"] {
        let body = piece.repeat(MAX_BODY / piece.len());
        let reply = server.request(Method::POST, "/zones").body(body).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{piece}");
    }
    assert_eq!(stored(&server).await, before);
}

#[tokio::test]
async fn no_header_brings_a_call_off_its_documented_replies() {
    let server = Server::start().await;
    let names = ["authorization", "x-job-uuid", "x-web-hook", "x-json-schema", "content-type", "accept"];
    let starts = prop::sample::select(vec!["", "OAuth ", "Bearer ", "http://", "https://"]);
    // All that can be in a header: RFC 9110, section 5.5.
    let bytes = prop::collection::vec(prop_oneof![Just(b'\t'), b' '..=b'~', 0x80..=0xff_u8], 0..40);
    let value = (starts, bytes).prop_map(|(start, bytes)| [start.as_bytes(), &bytes].concat());
    let headers = prop::collection::vec((prop::sample::select(names.to_vec()), value), 0..4);
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..20 * BODIES {
        let headers = headers.new_tree(&mut runner).unwrap().current();
        for (method, good) in [(Method::GET, StatusCode::OK), (Method::POST, StatusCode::ACCEPTED)] {
            let mut request = server.request(method, "/zones");
            for (name, value) in &headers {
                request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
            }
            let status = request.send().await.unwrap().status();
            let told = status == StatusCode::SERVICE_UNAVAILABLE && good == StatusCode::OK;
            assert!(status == good || status == StatusCode::BAD_REQUEST || told, "{headers:?}: {status}");
        }
    }
}

#[tokio::test]
async fn no_query_string_brings_a_query_off_its_documented_replies() {
    let server = Server::start().await;
    Site::build(&server).await;
    let names = prop::sample::select(vec!["q", "q.0", "limit", "start", "sort", "fields", "count", "replyWithCount"]);
    let condition = ("uuid|name|createDate|system|vlan|[a-z]{1,4}", "(=|!=|>|<|~=|!~=|[?]=|!?[?]=)", ".{0,9}");
    let condition = condition.prop_map(|(name, operator, value)| format!("{name}{operator}{value}"));
    let value = prop_oneof![condition, "-?[0-9]{1,20}", ".{0,9}", "[+-]?(name|uuid)"];
    let pairs = prop::collection::vec((names, value), 0..4);
    let mut runner = TestRunner::new(Config::default());
    for call in calls::all().filter(|call| matches!(call.mode, Mode::Query(_))) {
        for _ in 0..BODIES {
            let pairs = pairs.new_tree(&mut runner).unwrap().current();
            let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
            let status = server.get(&format!("{}?{query}", call.routes[0].path)).await.status();
            let documented = [StatusCode::OK, StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE];
            assert!(documented.contains(&status), "{} {pairs:?}: {status}", call.api.name());
        }
    }
}

#[tokio::test]
async fn the_longest_queries_are_answered_and_longer_ones_refused() {
    let server = Server::start().await;
    server.create("/zones", json!({"name": "a"})).await;
    let conditions = |count| "q=name=a&".repeat(count);
    let values = |count| format!("q=name?=a{}", ",".repeat(count - 1));
    for query in [conditions(MAX_CONDITIONS), values(MAX_VALUES)] {
        assert_eq!(server.query(&format!("/zones?{query}")).await["inventories"][0]["name"], "a");
    }
    for query in [conditions(MAX_CONDITIONS + 1), conditions(6000), values(MAX_VALUES + 1), values(60_000)] {
        assert_eq!(server.get(&format!("/zones?{query}")).await.status(), StatusCode::BAD_REQUEST);
    }
    let pattern = server.get(&format!("/zones?q=name~={}", "%25".repeat(20_000))).await;
    assert_eq!(pattern.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_caller_that_hangs_up_at_once_has_called_all_the_same() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let address = server.base.strip_prefix("http://").unwrap();
    let body = json!({"updateVip": {"name": "left"}}).to_string();
    let request = format!(
        "PUT /v1/vips/{}/actions HTTP/1.1\r\nHost: {address}\r\nAuthorization: OAuth {}\r\nContent-Length: {}\r\n\r\n{body}",
        site.vip,
        server.session(),
        body.len(),
    );
    TcpStream::connect(address).await.unwrap().write_all(request.as_bytes()).await.unwrap();
    eventually(async || {
        let vips = server.query("/vips?q=name=left&count=true").await;
        (vips["total"] == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_no_http_end_their_own_connection_only() {
    let server = Server::start().await;
    let address = server.base.strip_prefix("http://").unwrap();
    for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"\r\n\r\n\0\0\0\0", b"GET / HTTP/9.9\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Whether it answers or resets is its own business.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    server.query("/zones").await;
}
