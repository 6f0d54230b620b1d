//! Sections 3.x of the API document: URLs, verbs, headers, bodies, and the plain replies where they are wrong.

use std::fmt::Write as _;

use http::StatusCode;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::support::{Server, Site, json_of, uuid_of};

/// Status and text of a plain reply.
async fn plain(reply: Response) -> (StatusCode, String) {
    let kind = reply.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("text/plain"), "{kind}");
    (reply.status(), reply.text().await.unwrap())
}

#[tokio::test]
async fn both_bases_serve_and_nothing_else_does() {
    let server = Server::start().await;
    let session = format!("OAuth {}", server.session());
    for path in ["/zstack/v1/zones", "/v1/zones", "/v1/zones/", "/v1/%7aones"] {
        let reply = server.bare(Method::GET, path).header("Authorization", &session).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK, "{path}");
    }
    for path in ["/", "/zones", "/zstack/zones", "/zstack/v1", "/zstack/v2/zones", "/zstack/v1/nothing", "/v1/%ff"] {
        let reply = server.bare(Method::GET, path).header("Authorization", &session).send().await.unwrap();
        assert_eq!(plain(reply).await, (StatusCode::NOT_FOUND, format!("no api mapping to {path}")));
    }
}

/// Clients percent-encode what the grammar of URLs forbids, or they don't.
#[tokio::test]
async fn characters_that_urls_forbid_are_taken_as_they_are() {
    let server = Server::start().await;
    for name in ["a", "b|\"é\"", "c"] {
        server.create("/zones", json!({ "name": name })).await;
    }
    let address = server.base.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut requests = String::new();
    for (target, connection) in [
        ("/v1/zones?q=name>a&q=name<c&fields=name", "keep-alive"),
        ("/v1/zones?q=name~=b|\"é%22&fields=name&count=false", "close"),
    ] {
        let session = server.session();
        let headers = format!("Host: {address}\r\nConnection: {connection}\r\nAuthorization: OAuth {session}");
        write!(requests, "GET {target} HTTP/1.1\r\n{headers}\r\n\r\n").unwrap();
    }
    // Both at once: the second is read from the same connection.
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    assert_eq!(answers.matches(r#"[{"name":"b|\"é\""}]"#).count(), 2, "{answers}");
}

/// Clients that keep a connection send bodies of both framings before a query.
#[tokio::test]
async fn characters_that_urls_forbid_are_taken_behind_bodies_of_either_framing() {
    let server = Server::start().await;
    let address = server.base.strip_prefix("http://").unwrap();
    let session = server.session();
    let body = r#"{"params":{"name":"<a>"}}"#;
    let with_length = format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let mut requests = String::new();
    for (framed, connection) in [(with_length, "keep-alive"), (chunked, "close")] {
        let headers = format!("Host: {address}\r\nAuthorization: OAuth {session}");
        write!(requests, "POST /v1/zones HTTP/1.1\r\n{headers}\r\n{framed}").unwrap();
        let query = "/v1/zones?q=name>=<a>&count=true";
        write!(requests, "GET {query} HTTP/1.1\r\n{headers}\r\nConnection: {connection}\r\n\r\n").unwrap();
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let count = |status: &str| answers.matches(status).count();
    assert_eq!((count("HTTP/1.1 202"), count("HTTP/1.1 200")), (2, 2), "{answers}");
}

#[tokio::test]
async fn a_wrong_verb_is_told_with_the_right_ones() {
    let server = Server::start().await;
    for (method, path, allowed) in [
        (Method::DELETE, "/vips", "GET, POST"),
        (Method::PATCH, "/vips/u/actions", "PUT"),
        (Method::POST, "/api-jobs/u", "GET"),
        (Method::GET, "/accounts/sessions/u", "DELETE"),
    ] {
        let reply = server.request(method, path).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(reply.headers()["allow"], allowed, "{path}");
    }
}

#[tokio::test]
async fn a_missing_or_foreign_authorization_is_a_plain_400() {
    let server = Server::start().await;
    for method in [Method::GET, Method::POST] {
        let reply = server.bare(method.clone(), "/zstack/v1/zones").send().await.unwrap();
        let (status, text) = plain(reply).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(text.starts_with("missing header 'Authorization'"), "{text}");
        let reply = server.bare(method, "/zstack/v1/zones").header("Authorization", "Bearer x").send().await.unwrap();
        let (status, text) = plain(reply).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(text.starts_with("Authorization type must be 'OAuth'"), "{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_plain_400_and_makes_no_job() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let changes = server.kernel.changes.lock().unwrap().len();
    let listeners = format!("/load-balancers/{}/listeners", site.balancer);
    let update = format!("/vips/{}/actions", site.vip);
    let deep = format!("{{\"params\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    for (method, path, body, names) in [
        (Method::POST, "/zones", "{", "not JSON"),
        (Method::POST, "/zones", "[1]", "JSON object"),
        (Method::POST, "/zones", "{\"params\": 1}", "`params`"),
        (Method::POST, "/zones", "{\"params\": {\"name\": [1]}}", "field[name]"),
        (Method::POST, "/zones", "{\"params\": {\"name\": \"z\"}, \"systemTags\": \"x\"}", "field[systemTags]"),
        (Method::POST, "/zones", &deep, "not JSON"),
        (Method::POST, &listeners, "{\"params\": {\"loadBalancerPort\": 22.5}}", "field[loadBalancerPort]"),
        (Method::POST, "/l3-networks", "{\"params\": {\"system\": \"maybe\"}}", "field[system]"),
        (Method::PUT, &update, "{}", "`updateVip`"),
        (Method::PUT, &update, "{\"explodeVip\": {}}", "`changeVipState`"),
        (Method::PUT, &update, "", "`updateVip`"),
    ] {
        let reply = server.request(method, path).body(body.to_owned()).send().await.unwrap();
        let (status, text) = plain(reply).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {text}");
        assert!(text.contains(names), "{path} {body}: {text}");
    }
    assert_eq!(server.kernel.changes.lock().unwrap().len(), changes, "a refused call reached the kernel side");
}

#[tokio::test]
async fn a_body_over_one_mebibyte_is_refused() {
    let server = Server::start().await;
    let body = json!({"params": {"name": "z", "description": "x".repeat(1 << 20)}});
    let reply = server.request(Method::POST, "/zones").json(&body).send().await.unwrap();
    assert_eq!(plain(reply).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(server.query("/zones").await["inventories"], json!([]));
}

#[tokio::test]
async fn a_missing_mandatory_parameter_comes_through_the_job() {
    let server = Server::start().await;
    for body in [Value::Null, json!({}), json!({"params": {}}), json!({"params": {"name": null}})] {
        let error = server.refused(Method::POST, "/zones", body).await;
        assert_eq!(error["code"], "SYS.1007");
        assert_eq!(error["description"], "One or more API argument is invalid");
        assert!(error["details"].as_str().unwrap().contains("field[name]"), "{error}");
    }
}

#[tokio::test]
async fn a_create_takes_a_wanted_uuid_and_tags_in_both_places() {
    let server = Server::start().await;
    let uuid = "D825B1A26F4E474B8C59306081920FF2";
    let body = json!({
        "params": {"name": "z", "resourceUuid": uuid, "userTags": ["inside"], "unknown": {"x": 1}},
        "userTags": ["beside"],
    });
    let zone = server.made(Method::POST, "/zones", body).await;
    assert_eq!(uuid_of(&zone), uuid.to_lowercase());
    let tags = server.query(&format!("/user-tags?q=resourceUuid={uuid}&sort=tag&fields=tag")).await;
    assert_eq!(tags["inventories"], json!([{"tag": "beside"}, {"tag": "inside"}]));
}

#[tokio::test]
async fn updates_work_with_and_without_actions() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    for (path, key) in [
        (format!("/vips/{}", site.vip), "updateVip"),
        (format!("/vips/{}/actions", site.vip), "updateVip"),
        (format!("/load-balancers/listeners/{}", site.listener), "updateLoadBalancerListener"),
        (format!("/load-balancers/listeners/{}/actions", site.listener), "updateLoadBalancerListener"),
    ] {
        let updated = server.made(Method::PUT, &path, json!({key: {"name": path, "uuid": "not this one"}})).await;
        assert_eq!(updated["name"], path);
    }
}

#[tokio::test]
async fn lists_and_maps_in_a_query_string_come_in_both_forms() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let path = site.nics();
    for form in ["vmNicUuids", "vmNicUuids.0"] {
        let added = server.create(&path, json!({"vmNicUuids": [site.nic]})).await;
        assert_eq!(added["vmNicRefs"][0]["vmNicUuid"], site.nic.as_str());
        let balancer = server.made(Method::DELETE, &format!("{path}?{form}={}", site.nic), Value::Null).await;
        assert_eq!(balancer["listeners"][0]["vmNicRefs"], json!([]));
    }
    let services = format!("/l3-networks/{}/network-services", site.guest);
    let refs = server.query("/l3-networks/network-services/refs").await;
    let provider = refs["inventories"][0]["networkServiceProviderUuid"].as_str().unwrap();
    for form in [format!("networkServices.{provider}"), format!("networkServices.{provider}.0")] {
        let network = server.made(Method::DELETE, &format!("{services}?{form}=LoadBalancer"), Value::Null).await;
        assert_eq!(network["networkServices"], json!([]));
        server.create(&services, json!({"networkServices": {provider: ["LoadBalancer"]}})).await;
    }
}

#[tokio::test]
async fn nics_for_an_elastic_ip_are_asked_for_by_its_uuid_or_its_vips() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let vip = server.create("/vips", json!({"name": "v", "l3NetworkUuid": site.public})).await;
    let eip = server.create("/eips", json!({"name": "e", "vipUuid": uuid_of(&vip)})).await;
    for path in [
        format!("/{}/vm-instances/candidate-nics", uuid_of(&eip)),
        format!("/vm-instances/candidate-nics?vipUuid={}", site.vip),
    ] {
        // No network has the service.
        assert_eq!(server.query(&format!("/eips{path}")).await["inventories"], json!([]), "{path}");
    }
    let reply = server.get("/eips/vm-instances/candidate-nics").await;
    assert_eq!(json_of(reply).await["error"]["code"], "SYS.1007");
}

#[tokio::test]
async fn html_characters_are_escaped_and_nulls_are_left_out() {
    let server = Server::start().await;
    server.create("/zones", json!({"name": "<a>&'='"})).await;
    let text = server.get("/zones").await.text().await.unwrap();
    assert!(text.contains(r#""name":"\u003ca\u003e\u0026\u0027\u003d\u0027""#), "{text}");
    assert!(!text.contains("description") && !text.contains("null"), "{text}");
}

#[tokio::test]
async fn a_schema_comes_with_every_query_and_on_demand_with_the_rest() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    server.create(&site.nics(), json!({"vmNicUuids": [site.nic]})).await;
    let reply = server.query("/load-balancers").await;
    let paths: Vec<_> = reply["schema"].as_object().unwrap().iter().collect();
    let lb = |name: &str| json!(format!("org.zstack.network.service.lb.LoadBalancer{name}Inventory"));
    assert_eq!(
        paths,
        [
            (&"inventories[0]".to_owned(), &lb("")),
            (&"inventories[0].listeners[0]".to_owned(), &lb("Listener")),
            (&"inventories[0].listeners[0].vmNicRefs[0]".to_owned(), &lb("ListenerVmNicRef")),
        ]
    );

    let used = format!("/vips/{}/usedports?protocol=tcp", site.vip);
    assert_eq!(server.query(&used).await.get("schema"), None);
    let reply = json_of(server.request(Method::GET, &used).header("X-JSON-Schema", "true").send().await.unwrap()).await;
    assert_eq!(reply["inventories"][0]["usedPorts"], json!(["80"]));
    assert!(reply["schema"]["inventories[0]"].as_str().unwrap().ends_with("$VipPortRangeInventory"));

    let create = server.request(Method::POST, "/zones").header("X-JSON-Schema", "true");
    let (_, reply) = server.wait_for(create.json(&json!({"params": {"name": "z"}})).send().await.unwrap()).await;
    assert_eq!(reply["schema"], json!({"inventory": "org.zstack.header.zone.ZoneInventory"}));
    let create = server.request(Method::POST, "/zones").header("X-JSON-Schema", "true");
    let (_, reply) = server.wait_for(create.send().await.unwrap()).await;
    assert_eq!(reply["schema"], json!({"error": "org.zstack.header.errorcode.ErrorCode"}));
}

#[tokio::test]
async fn deleting_answers_an_empty_object_and_heeds_its_mode() {
    let server = Server::start().await;
    let zone = server.create("/zones", json!({"name": "z"})).await;
    let path = format!("/zones/{}", uuid_of(&zone));
    let error = server.refused(Method::DELETE, &format!("{path}?deleteMode=Gently"), Value::Null).await;
    assert!(error["details"].as_str().unwrap().contains("field[deleteMode]"), "{error}");
    let reply = server.call(Method::DELETE, &format!("{path}?deleteMode=Permissive"), Value::Null).await;
    assert_eq!(reply, (StatusCode::OK, json!({})));
}

#[tokio::test]
async fn a_documented_call_that_is_not_served_says_so_and_stores_nothing() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    for (method, path, body) in [
        (Method::POST, "/security-groups".to_owned(), json!({"params": {"name": "g"}})),
        (Method::PUT, format!("/ipsec/{}", site.vip), json!({"updateIPsecConnection": {"name": "i"}})),
        (Method::POST, "/certificates".to_owned(), json!({"params": {"name": "c", "certificate": "-"}})),
        (
            Method::POST,
            format!("/load-balancers/{}/listeners", site.balancer),
            json!({"params": {"name": "l7", "loadBalancerPort": 443, "protocol": "https"}}),
        ),
    ] {
        let error = server.refused(method, &path, body).await;
        assert_eq!(error["code"], "SYS.1014", "{path}: {error}");
    }
    let reply = server.get("/security-groups").await;
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(json_of(reply).await["error"]["code"], "SYS.1014");
    let listeners = server.query("/load-balancers/listeners?count=true").await;
    assert_eq!(listeners["total"], 1);
}
