//! The query API from end to end.

use http::StatusCode;
use reqwest::Method;
use serde_json::{Value, json};
use vipgate_api::{
    account::{AccountInventory, QuotaInventory},
    eip::EipInventory,
    l2::L2NetworkInventory,
    l3::{IpRangeInventory, L3NetworkInventory},
    load_balancer::{ListenerInventory, LoadBalancerInventory},
    network_service::{NetworkServiceProviderInventory, NetworkServiceRefInventory},
    port_forwarding::PortForwardingRuleInventory,
    tag::{SystemTagInventory, UserTagInventory},
    vip::VipInventory,
    vm::{VmInstanceInventory, VmNicInventory},
    zone::ZoneInventory,
};

use super::support::{Server, Site, json_of, sha512, uuid_of};

/// Zones a, B, c with descriptions `first`, none, `100%`.
async fn zones(server: &Server) {
    for (name, description) in [("a", Some("first")), ("B", None), ("c", Some("100%"))] {
        server.create("/zones", json!({"name": name, "description": description})).await;
    }
}

async fn names(server: &Server, query: &str) -> Vec<String> {
    let reply = server.query(&format!("/zones?{query}")).await;
    let inventories = reply["inventories"].as_array().unwrap().clone();
    inventories.iter().map(|zone| zone["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_operator_selects() {
    let server = Server::start().await;
    zones(&server).await;
    for (query, expected) in [
        ("", vec!["a", "B", "c"]),
        ("q=name=b", vec!["B"]),
        ("q=name!=b", vec!["a", "c"]),
        ("q=name%3Ea", vec!["B", "c"]),
        ("q=name%3E=b", vec!["B", "c"]),
        ("q=name%3Cb", vec!["a"]),
        ("q=name%3C=b", vec!["a", "B"]),
        ("q=name?=A,C", vec!["a", "c"]),
        ("q=name!?=A,C", vec!["B"]),
        ("q=description~=FI%25", vec!["a"]),
        ("q=description~=f_rst", vec!["a"]),
        ("q=description~=100%5C%25", vec!["c"]),
        ("q=description!~=f%25", vec!["c"]),
        ("q=description%20is%20null", vec!["B"]),
        ("q=description+not+null", vec!["a", "c"]),
        ("q=description=null", vec!["B"]),
        ("q=description!=null", vec!["a", "c"]),
        ("q=name!=a&q=name!=c", vec!["B"]),
        ("q.0=name!=a&q.1=name!=c", vec!["B"]),
        ("q=createDate%3EJan+1,+2017+1:00:00+AM", vec!["a", "B", "c"]),
        ("q=createDate%3C2017-01-01T01:00:00Z", vec![]),
        ("q=name=a'+OR+'1'='1", vec![]),
        ("q=vmInstance.name=b", vec![]),
        ("q=description not null&q=name~=%_%", vec!["a", "c"]),
    ] {
        assert_eq!(names(&server, query).await, expected, "{query}");
    }
}

#[tokio::test]
async fn a_date_finds_what_it_was_printed_for() {
    let server = Server::start().await;
    let zone = server.create("/zones", json!({"name": "z"})).await;
    let date = zone["createDate"].as_str().unwrap().replace(' ', "+");
    assert_eq!(names(&server, &format!("q=createDate={date}")).await, ["z"]);
}

#[tokio::test]
async fn pages_are_certain_and_counted() {
    let server = Server::start().await;
    zones(&server).await;
    let page = server.query("/zones?start=1&limit=1&replyWithCount=true&sort=-name").await;
    assert_eq!((&page["total"], &page["inventories"][0]["name"]), (&json!(3), &json!("B")));
    let count = server.query("/zones?count=true&q=name!=a").await;
    assert_eq!(count["total"], 2);
    assert_eq!(count.get("inventories"), None);
    assert_eq!(names(&server, "limit=0").await, [""; 0]);
    assert_eq!(names(&server, "sort=%2Bname&limit=2.0").await, names(&server, "sort=+name&limit=2").await);
    assert_eq!(names(&server, "groupBy=type&sort=name").await, ["a"]);
    assert_eq!(server.query("/zones?groupBy=name&replyWithCount=true").await["total"], 3);
    assert_eq!(server.query("/zones?groupBy=type&count=true").await["total"], 1);
}

#[tokio::test]
async fn fields_are_all_that_is_shown() {
    let server = Server::start().await;
    zones(&server).await;
    let reply = server.query("/zones?q=name=a&fields=name,description").await;
    assert_eq!(reply["inventories"], json!([{"name": "a", "description": "first"}]));
}

#[tokio::test]
async fn what_does_not_exist_is_an_error_that_names_it_and_the_nearest() {
    let server = Server::start().await;
    for query in ["q=nmae=a", "sort=nmae", "fields=nmae", "groupBy=nmae", "count=true&q=nmae=a", "q=l3Network.nmae=a"] {
        let reply = server.get(&format!("/zones?{query}")).await;
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE, "{query}");
        let error = json_of(reply).await["error"].take();
        assert_eq!(error["code"], "SYS.1000");
        let details = error["details"].as_str().unwrap();
        assert!(details.contains("`nmae`") && details.contains("`name`"), "{details}");
    }
    for (query, named) in [
        ("q=vmInstanse.name=a", "`vmInstance`"),
        ("q=l3Network.ipRange.vipp.name=a", "`vip`"),
        ("q=vmInstance.vmNics=a", "`vmNics.uuid`"),
        ("q=__systemTags__=a", "`__systemTag__`"),
        ("sort=vmInstance.name", "`vmInstance.name`"),
        ("fields=__userTag__", "`__userTag__`"),
    ] {
        let error = json_of(server.get(&format!("/zones?{query}")).await).await["error"].take();
        assert_eq!(error["code"], "SYS.1000", "{query}");
        assert!(error["details"].as_str().unwrap().contains(named), "{error}");
    }
    let far = format!("/zones?q={}name=a", "l3Network.zone.".repeat(20));
    assert_eq!(json_of(server.get(&far).await).await["error"]["code"], "SYS.1007");
    for query in ["q=createDate=yesterday", "q=createDate~=J%25"] {
        let reply = server.get(&format!("/zones?{query}")).await;
        assert_eq!(json_of(reply).await["error"]["code"], "SYS.1007", "{query}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_plain_400() {
    let server = Server::start().await;
    for query in [
        "q=name",
        "q==a",
        "q=name%20=a",
        "q=name=+a",
        "limit=ten",
        "limit=-1",
        "start=1.5",
        "count=perhaps",
        "limit=1&limit=2",
    ] {
        assert_eq!(server.get(&format!("/zones?{query}")).await.status(), StatusCode::BAD_REQUEST, "{query}");
    }
}

#[tokio::test]
async fn a_uuid_in_the_path_finds_one_or_none_and_ignores_the_rest() {
    let server = Server::start().await;
    let zone = server.create("/zones", json!({"name": "z"})).await;
    let uuid = uuid_of(&zone);
    for path in [uuid.to_owned(), uuid.to_uppercase(), format!("{uuid}?q=name=other&limit=ten")] {
        assert_eq!(server.query(&format!("/zones/{path}")).await["inventories"], json!([zone]), "{path}");
    }
    assert_eq!(server.query("/zones/unknown").await["inventories"], json!([]));
}

#[tokio::test]
async fn resources_are_found_by_their_tags_and_those_of_related_ones() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let tag = json!({"resourceType": "VipVO", "resourceUuid": site.vip, "tag": "tier::GOLD"});
    let tag = server.create("/user-tags", tag).await;
    assert_eq!((&tag["type"], &tag["resourceUuid"]), (&json!("User"), &json!(site.vip)));
    let balancers =
        async |query: &str| server.query(&format!("/load-balancers?count=true&q={query}")).await["total"].clone();
    assert_eq!(balancers("vip.__userTag__=tier::gold").await, 1);
    assert_eq!(balancers("vip.__userTag__~=tier::%25").await, 1);
    assert_eq!(balancers("listeners.__systemTag__=maxConnection::5000").await, 1);
    assert_eq!(balancers("listeners.loadBalancer.vip.l3Network.zone.name=SITE").await, 1);
    for none in ["__userTag__ not null", "vip.__userTag__!=tier::gold", "vip.__userTag__ is null", "vip.name=other"] {
        assert_eq!(balancers(none).await, 0, "{none}");
    }
    server.call(Method::DELETE, &format!("/tags/{}", uuid_of(&tag)), Value::Null).await;
    assert_eq!(balancers("vip.__userTag__ is null").await, 1);
}

/// An elastic IP of the site's NIC.
async fn elastic_ip(server: &Server, site: &Site) -> Value {
    let refs = server.query("/l3-networks/network-services/refs").await;
    let provider = refs["inventories"][0]["networkServiceProviderUuid"].as_str().unwrap();
    let services = json!({"networkServices": {provider: ["Eip"]}});
    server.create(&format!("/l3-networks/{}/network-services", site.guest), services).await;
    let vip = server.create("/vips", json!({"name": "elastic", "l3NetworkUuid": site.public})).await;
    server.create("/eips", json!({"name": "e", "vipUuid": uuid_of(&vip), "vmNicUuid": site.nic})).await
}

#[tokio::test]
async fn a_vm_is_found_by_its_elastic_ip_as_the_document_shows() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let eip = elastic_ip(&server, &site).await;
    let vms =
        async |condition: &str| server.query(&format!("/vm-instances?count=true&q={condition}")).await["total"].clone();
    for name in ["ip", "vipIp"] {
        assert_eq!(vms(&format!("vmNics.eip.{name}={}", eip["vipIp"].as_str().unwrap())).await, 1, "{name}");
        assert_eq!(vms(&format!("vmNics.eip.{name}=192.168.0.100")).await, 0, "{name}");
    }
    assert_eq!(vms("vmNics.eip.vip.name=elastic").await, 1);
}

#[tokio::test]
async fn an_l2_network_with_a_tag_is_found_under_both_urls() {
    let server = Server::start().await;
    Site::build(&server).await;
    assert_eq!(server.query("/l2-networks?count=true").await["total"], 2);
    assert_eq!(server.query("/l2-networks/vlan?count=true").await["total"], 0);
}

#[tokio::test]
async fn more_rows_than_one_statement_binds_keep_their_lists() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    let mut tx = server.store.begin().await.unwrap();
    for number in 0..600 {
        let uuid = format!("{number:032x}");
        sqlx::query("INSERT INTO resources SELECT $1, type, account_uuid FROM resources WHERE uuid = $2")
            .bind(&uuid)
            .bind(&site.balancer)
            .execute(tx.conn())
            .await
            .unwrap();
        sqlx::query(
            "INSERT INTO load_balancers (uuid, name, state, vip_uuid, create_date, last_op_date)
             SELECT $1, name, state, vip_uuid, $3, last_op_date FROM load_balancers WHERE uuid = $2",
        )
        .bind(&uuid)
        .bind(&site.balancer)
        .bind(number)
        .execute(tx.conn())
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    let all = server.query("/load-balancers").await;
    let all = all["inventories"].as_array().unwrap();
    assert_eq!(all.len(), 601);
    assert_eq!(uuid_of(&all[600]), site.balancer);
    assert_eq!(uuid_of(&all[600]["listeners"][0]), site.listener);
    assert_eq!(all[0]["listeners"], json!([]));
}

/// The inventory as its type writes it, without nulls.
fn retyped<T: serde::Serialize + serde::de::DeserializeOwned>(inventory: &Value) -> Value {
    let typed: T = serde_json::from_value(inventory.clone()).unwrap();
    let written = serde_json::to_value(typed).unwrap();
    serde_json::from_str(&vipgate_api::json::encode(written.as_object().unwrap())).unwrap()
}

#[tokio::test]
async fn inventories_have_the_members_of_their_types() {
    let server = Server::start().await;
    let site = Site::build(&server).await;
    server.create(&site.nics(), json!({"vmNicUuids": [site.nic]})).await;
    server.create(&format!("/l3-networks/{}/dns", site.public), json!({"dns": "203.0.113.53"})).await;
    server.made(Method::POST, "/zones", json!({"params": {"name": "tagged"}, "userTags": ["t"]})).await;
    let l2 = json!({"name": "v", "zoneUuid": site.zone, "physicalInterface": "eth1", "vlan": 7});
    server.call(Method::POST, "/l2-networks/vlan", json!({ "params": l2 })).await;
    server.create("/accounts", json!({"name": "tenant", "password": sha512("tenant")})).await;
    elastic_ip(&server, &site).await;
    let rule = json!({"name": "r", "vipUuid": site.vip, "vipPortStart": 22, "protocolType": "TCP"});
    server.create("/port-forwarding", rule).await;
    type Retype = fn(&Value) -> Value;
    let resources: [(&str, Retype); 17] = [
        ("/zones", retyped::<ZoneInventory>),
        ("/l2-networks", retyped::<L2NetworkInventory>),
        ("/l3-networks", retyped::<L3NetworkInventory>),
        ("/l3-networks/ip-ranges", retyped::<IpRangeInventory>),
        ("/vm-instances/nics", retyped::<VmNicInventory>),
        ("/network-services/providers", retyped::<NetworkServiceProviderInventory>),
        ("/l3-networks/network-services/refs", retyped::<NetworkServiceRefInventory>),
        ("/vips", retyped::<VipInventory>),
        ("/load-balancers", retyped::<LoadBalancerInventory>),
        ("/load-balancers/listeners", retyped::<ListenerInventory>),
        ("/port-forwarding", retyped::<PortForwardingRuleInventory>),
        ("/eips", retyped::<EipInventory>),
        ("/system-tags", retyped::<SystemTagInventory>),
        ("/user-tags", retyped::<UserTagInventory>),
        ("/vm-instances", retyped::<VmInstanceInventory>),
        ("/accounts", retyped::<AccountInventory>),
        ("/accounts/quotas", retyped::<QuotaInventory>),
    ];
    for (path, retype) in resources {
        let reply = server.query(path).await;
        let inventories = reply["inventories"].as_array().unwrap();
        assert!(!inventories.is_empty(), "{path} has none");
        for inventory in inventories {
            assert_eq!(retype(inventory), *inventory, "{path}");
        }
    }
}
