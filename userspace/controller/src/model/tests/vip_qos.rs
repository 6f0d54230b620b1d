//! Bandwidth limits of VIPs.

use serde_json::{Value, json};
use vipgate_api::{Api, Reply, Resource};
use vipgate_state::{Capacity, LimitState, Source};

use super::{Router, Site, UNKNOWN, with};

const SET: Api = Api::SetVipQos;
const DELETE: Api = Api::DeleteVipQos;
/// The least bandwidth.
const LEAST: i64 = 1_048_575;

fn on(vip: &str, more: Value) -> Value {
    with(json!({"uuid": vip}), more)
}

/// The VIP's limits as the reconciler reads them.
async fn limits(router: &Router, vip: &str) -> Vec<LimitState> {
    let state = router.store.vip(vip).await.unwrap().unwrap();
    let all = router.store.vips().await.unwrap();
    assert_eq!(all.iter().find(|other| other.uuid == vip), Some(&state), "read alone and with the others");
    state.limits
}

/// Their uuids as the API lists them.
async fn listed(router: &Router, vip: &str) -> Vec<String> {
    match router.ok(Api::GetVipQos, json!({"uuid": vip})).await.reply {
        Reply::Inventories(Resource::VipQos, limits) => limits,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_vip_and_each_of_its_ports_are_limited_each_way_apart() {
    let site = Site::new().await;
    let router = &site.router;
    let https = router.make(SET, on(&site.vip, json!({"port": 443, "outboundBandwidth": 400_000_000_000_i64}))).await;
    let whole =
        router.make(SET, on(&site.vip, json!({"inboundBandwidth": LEAST, "outboundBandwidth": i64::MAX}))).await;
    let http = router.make(SET, on(&site.vip, json!({"port": 80, "inboundBandwidth": 2_000_000}))).await;
    assert_eq!(listed(router, &site.vip).await, [whole.clone(), http.clone(), https.clone()]);
    let limit = |uuid, number, port, inbound, outbound| LimitState { uuid, number, port, inbound, outbound };
    let expected = [
        limit(https, 1, Some(443), None, Some(400_000_000_000)),
        limit(whole, 2, None, Some(1_048_575), Some(i64::MAX as u64)),
        limit(http, 3, Some(80), Some(2_000_000), None),
    ];
    assert_eq!(limits(router, &site.vip).await, expected);
}

#[tokio::test]
async fn setting_and_deleting_reach_the_kernel() {
    let site = Site::new().await;
    let router = &site.router;
    let outcome = router.ok(SET, on(&site.vip, json!({"inboundBandwidth": LEAST}))).await;
    assert_eq!(outcome.vips, site.vips());
    let outcome = router.ok(DELETE, on(&site.vip, json!({}))).await;
    assert_eq!((outcome.reply, outcome.vips), (Reply::Empty, site.vips()));
    assert!(limits(router, &site.vip).await.is_empty() && listed(router, &site.vip).await.is_empty());
}

#[tokio::test]
async fn what_is_limited_is_not_set_again_before_it_is_deleted() {
    let site = Site::new().await;
    let router = &site.router;
    for (place, words) in [(json!({}), "as a whole has"), (json!({"port": 80}), "port[80]")] {
        let set = on(&site.vip, with(place.clone(), json!({"inboundBandwidth": LEAST})));
        let first = router.make(SET, set.clone()).await;
        router.refuses(SET, set.clone(), "SYS.1006", words).await;
        router.refuses(SET, set.clone(), "SYS.1006", &first).await;
        let other_way = on(&site.vip, with(place.clone(), json!({"outboundBandwidth": LEAST})));
        router.refuses(SET, other_way, "SYS.1006", "delete it first").await;
        // This is checked before missing parameters.
        router.refuses(SET, on(&site.vip, place.clone()), "SYS.1006", words).await;
        router.ok(DELETE, on(&site.vip, place)).await;
        router.make(SET, set).await;
    }
}

#[tokio::test]
async fn bandwidths_and_ports_out_of_range_are_refused() {
    let site = Site::new().await;
    let router = &site.router;
    router.refuses(SET, on(&site.vip, json!({})), "SYS.1007", "are both missing").await;
    router.refuses(SET, on(&site.vip, json!({"port": 80})), "SYS.1007", "are both missing").await;
    for field in ["inboundBandwidth", "outboundBandwidth"] {
        for value in [i64::MIN, -1, 0, LEAST - 1] {
            router.refuses(SET, on(&site.vip, json!({field: value})), "SYS.1007", field).await;
        }
    }
    for port in [-1, 0, 65536] {
        let set = on(&site.vip, json!({"port": port, "inboundBandwidth": LEAST}));
        router.refuses(SET, set, "SYS.1007", "field[port]").await;
        router.refuses(DELETE, on(&site.vip, json!({"port": port})), "SYS.1007", "field[port]").await;
    }
    for port in [1, 65535] {
        router.make(SET, on(&site.vip, json!({"port": port, "inboundBandwidth": LEAST}))).await;
    }
}

#[tokio::test]
async fn only_a_vip_is_limited() {
    let site = Site::new().await;
    for uuid in [UNKNOWN, &site.listener] {
        let words = "VipVO] not found";
        site.router.refuses(SET, on(uuid, json!({"inboundBandwidth": LEAST})), "SYS.1003", words).await;
        site.router.refuses(SET, on(uuid, json!({})), "SYS.1003", words).await;
        site.router.refuses(Api::GetVipQos, on(uuid, json!({})), "SYS.1003", words).await;
        site.router.refuses(DELETE, on(uuid, json!({})), "SYS.1003", words).await;
    }
}

#[tokio::test]
async fn deleting_what_is_not_limited_is_refused() {
    let site = Site::new().await;
    let router = &site.router;
    router.make(SET, on(&site.vip, json!({"port": 80, "inboundBandwidth": LEAST}))).await;
    router.refuses(DELETE, on(&site.vip, json!({})), "SYS.1006", "as a whole has no bandwidth limit").await;
    router.refuses(DELETE, on(&site.vip, json!({"port": 81})), "SYS.1006", "port[81]").await;
    let other = router.vip(&site.public).await;
    router.refuses(DELETE, on(&other, json!({"port": 80})), "SYS.1006", &other).await;
    router.ok(DELETE, on(&site.vip, json!({"port": 80}))).await;
    router.refuses(DELETE, on(&site.vip, json!({"port": 80})), "SYS.1006", "has no bandwidth limit").await;
}

#[tokio::test]
async fn a_vip_is_limited_whatever_it_is_used_for() {
    let site = Site::new().await;
    let router = &site.router;
    let (unused, elastic) = (router.vip(&site.public).await, router.vip(&site.public).await);
    router.make(Api::CreateEip, json!({"name": "eip", "vipUuid": elastic, "vmNicUuid": site.nic})).await;
    router.ok(Api::ChangeVipState, json!({"uuid": site.vip, "stateEvent": "disable"})).await;
    for vip in [&unused, &elastic, &site.vip] {
        router.make(SET, on(vip, json!({"inboundBandwidth": LEAST}))).await;
        assert_eq!(limits(router, vip).await.len(), 1);
    }
    // A limit does not count as a use.
    let unused_still = router.texts("SELECT uuid FROM vips WHERE use_for IS NULL AND uuid = $1", &unused).await;
    assert_eq!(unused_still, [unused]);
}

#[tokio::test]
async fn limits_go_with_their_vip_and_their_numbers_are_given_again_when_all_were() {
    let site = Site::new().await;
    let capacity = Capacity { limits: 3, ..Capacity::default() };
    let router = Router { store: site.router.store.clone().with_capacity(capacity), ..site.router };
    let numbers = "SELECT number || '' FROM vip_qos WHERE vip_uuid = $1 ORDER BY number";
    let gone = router.vip(&site.public).await;
    router.make(SET, on(&gone, json!({"inboundBandwidth": LEAST}))).await;
    router.make(SET, on(&site.vip, json!({"inboundBandwidth": LEAST}))).await;
    let third = on(&site.vip, json!({"port": 80, "inboundBandwidth": LEAST}));
    router.refuses(SET, third.clone(), "SYS.1006", "limit").await;
    router.ok(Api::DeleteVip, json!({"uuid": gone})).await;
    assert!(router.texts(numbers, &gone).await.is_empty());
    router.make(SET, third).await;
    assert_eq!(router.texts(numbers, &site.vip).await, ["1", "2"]);
}

#[tokio::test]
async fn an_inventory_shows_what_is_limited_and_nothing_else() {
    let site = Site::new().await;
    let reply = site.router.ok(SET, on(&site.vip, json!({"inboundBandwidth": LEAST}))).await.reply;
    let Reply::Inventory(Resource::VipQos, uuid) = &reply else { panic!("{reply:?}") };
    let printed = crate::query::render(&mut site.router.read().await, &reply).await.unwrap();
    let mut inventory = printed["inventory"].as_object().unwrap().clone();
    let (created, changed) = (inventory.remove("createDate"), inventory.remove("lastOpDate"));
    assert!(created.is_some() && created == changed);
    let expected = json!({"uuid": uuid, "vipUuid": site.vip, "inboundBandwidth": LEAST, "type": "vrouter"});
    assert_eq!(Value::Object(inventory), expected);
}
