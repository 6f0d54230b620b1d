//! Requests that nobody would send on purpose: whatever comes, the reply is one of the documented kinds.

use http::StatusCode;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use vipgate_api::{
    Call,
    calls::{self, Mode},
    query::{MOST_CONDITIONS, MOST_VALUES},
};

use super::support::{Server, Site, eventually};

/// Bodies for each call.
const BODIES: usize = 12;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (1_i64..65536).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        prop_oneof!["10.0.0.[0-9]{1,3}", "10.0.0.0/[0-9]{1,2}", "tcp|udp", "eth0"].prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map(".{0,5}", inner, 0..3).prop_map(|map| map.into_iter().collect()),
        ]
    })
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

#[tokio::test]
async fn no_body_brings_a_call_off_its_documented_replies() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let known = vec![site.zone, site.public, site.guest, site.vip, site.balancer.clone(), site.listener, site.nic];
    let mut runner = TestRunner::new(Config::default());
    for call in calls::all().filter(|call| call.mode == Mode::Async && !call.body.is_empty()) {
        for _ in 0..BODIES {
            let body = body(call, known.clone()).new_tree(&mut runner).unwrap().current();
            let route = call.routes[0];
            let path =
                route.path.split('/').map(|part| if part.starts_with('{') { site.balancer.as_str() } else { part });
            let path = path.collect::<Vec<_>>().join("/");
            let method = if call.body[0] == "params" { Method::POST } else { Method::PUT };
            let reply = server.request(method, &path).json(&body).send().await.unwrap();
            match reply.status() {
                StatusCode::BAD_REQUEST => {}
                StatusCode::ACCEPTED => {
                    let (status, reply) = server.wait_for(reply).await;
                    let fine = status == StatusCode::OK
                        || (status == StatusCode::SERVICE_UNAVAILABLE && reply["error"]["code"] != "SYS.1000");
                    assert!(fine, "{} {body}: {status} {reply}", call.api.name());
                }
                other => panic!("{} {body}: {other}", call.api.name()),
            }
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
    for query in [conditions(MOST_CONDITIONS), values(MOST_VALUES)] {
        assert_eq!(server.query(&format!("/zones?{query}")).await["inventories"][0]["name"], "a");
    }
    for query in [conditions(MOST_CONDITIONS + 1), conditions(6000), values(MOST_VALUES + 1), values(60_000)] {
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
