//! System tags of listeners, user tags of anything.

use serde_json::json;
use vipgate_api::{Api, Reply, Resource};
use vipgate_state::{Algorithm, Source};

use super::{Site, UNKNOWN};

async fn tag_of(site: &Site, name: &str) -> String {
    let tags = site.router.texts("SELECT uuid || ' ' || tag FROM system_tags WHERE resource_uuid = $1", &site.listener);
    let tag = tags.await.into_iter().find(|tag| tag.contains(name)).unwrap();
    tag.split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn an_updated_tag_takes_effect() {
    let site = Site::new().await;
    let tag = tag_of(&site, "balancerAlgorithm").await;
    let outcome = site.router.ok(Api::UpdateSystemTag, json!({"uuid": tag, "tag": "balancerAlgorithm::maglev"})).await;
    assert_eq!(outcome.reply, Reply::Inventory(Resource::SystemTag, tag));
    assert_eq!(outcome.vips, site.vips());
    let state = site.router.store.vip(&site.vip).await.unwrap().unwrap();
    assert_eq!(state.listeners[0].algorithm, Algorithm::Maglev);
}

#[tokio::test]
async fn an_update_keeps_to_the_tags_setting_and_its_values() {
    let site = Site::new().await;
    let tag = tag_of(&site, "maxConnection").await;
    let to = |text: &str| json!({"uuid": tag, "tag": text});
    let api = Api::UpdateSystemTag;
    site.router.refuses(api, to("maxConnection::lots"), "SYS.1007", "maxConnection::lots").await;
    site.router.refuses(api, to("healthyThreshold::3"), "SYS.1007", "can't become healthyThreshold::3").await;
    site.router.refuses(api, to("nothing"), "SYS.1007", "nothing").await;
    let unknown = json!({"uuid": UNKNOWN, "tag": "maxConnection::1"});
    site.router.refuses(api, unknown, "SYS.1003", "SystemTagVO] not found").await;
}

#[tokio::test]
async fn a_listeners_tags_can_not_be_deleted_nor_doubled() {
    let site = Site::new().await;
    let tag = tag_of(&site, "maxConnection").await;
    site.router.refuses(Api::DeleteTag, json!({"uuid": tag}), "SYS.1006", "can't be deleted").await;
    site.router.refuses(Api::DeleteTag, json!({"uuid": UNKNOWN}), "SYS.1003", "not found").await;
    let create = |kind: &str, uuid: &str, tag: &str| json!({"resourceType": kind, "resourceUuid": uuid, "tag": tag});
    let api = Api::CreateSystemTag;
    let again = create("LoadBalancerListenerVO", &site.listener, "maxConnection::7");
    site.router.refuses(api, again, "SYS.1006", "has a tag maxConnection already").await;
    let bad = create("LoadBalancerListenerVO", &site.listener, "maxConnection::x");
    site.router.refuses(api, bad, "SYS.1007", "maxConnection::x").await;
    let other = create("VipVO", &site.vip, "maxConnection::7");
    site.router.refuses(api, other, "SYS.1007", "no system tag matches").await;
    let wrong = create("VipVO", &site.listener, "maxConnection::7");
    site.router.refuses(api, wrong, "SYS.1007", "is a LoadBalancerListenerVO, not a VipVO").await;
    let nothing = create("VipVO", UNKNOWN, "maxConnection::7");
    site.router.refuses(api, nothing, "SYS.1003", "type:VipVO] not found").await;
}

#[tokio::test]
async fn a_user_tag_comes_and_goes_alone_or_with_its_resource() {
    let site = Site::new().await;
    let router = &site.router;
    let create = |kind: &str, uuid: &str, tag: &str| json!({"resourceType": kind, "resourceUuid": uuid, "tag": tag});
    let of_vip = || create("VipVO", &site.vip, "team::a");
    let tag = router.make(Api::CreateUserTag, of_vip()).await;
    assert_eq!(router.make(Api::CreateUserTag, of_vip()).await, tag, "the same again is the same tag");
    let other = router.make(Api::CreateUserTag, create("LoadBalancerListenerVO", &site.listener, "team::a")).await;
    assert_ne!(other, tag);
    let tags = "SELECT uuid FROM user_tags WHERE tag = $1 ORDER BY uuid";
    assert_eq!(router.texts(tags, "team::a").await.len(), 2);

    router.ok(Api::DeleteTag, json!({"uuid": tag})).await;
    assert_eq!(router.texts(tags, "team::a").await, [other]);
    router.ok(Api::DeleteLoadBalancer, json!({"uuid": site.balancer})).await;
    assert!(router.texts(tags, "team::a").await.is_empty());
    let wrong = create("EipVO", &site.vip, "team::a");
    router.refuses(Api::CreateUserTag, wrong, "SYS.1007", "is a VipVO, not a EipVO").await;
    router.refuses(Api::CreateUserTag, create("VipVO", UNKNOWN, "t"), "SYS.1003", "not found").await;
    router.refuses(Api::CreateUserTag, create("VipVO", &site.vip, " "), "SYS.1007", "field[tag]").await;
}

#[tokio::test]
async fn a_nics_weight_comes_changes_and_goes() {
    let site = Site::new().await;
    let (listener, nic) = (&site.listener, &site.nic);
    let weight = async || site.router.store.vip(&site.vip).await.unwrap().unwrap().listeners[0].backends[0].weight;
    let create = |tag: String| json!({"resourceType": "LoadBalancerListenerVO", "resourceUuid": listener, "tag": tag});
    let tag = |weight: u8| format!("balancerWeight::{nic}::{weight}");
    let api = Api::CreateSystemTag;
    site.router.refuses(api, create(tag(5)), "SYS.1007", "is not on listener").await;

    let add = json!({"listenerUuid": listener, "vmNicUuids": [nic], "systemTags": [tag(7)]});
    site.router.ok(Api::AddVmNicToLoadBalancer, add.clone()).await;
    assert_eq!(weight().await, 7);
    site.router.refuses(api, create(tag(5)), "SYS.1006", "update that one").await;
    let uuid = tag_of(&site, "balancerWeight").await;
    let outcome = site.router.ok(Api::UpdateSystemTag, json!({"uuid": uuid, "tag": tag(0)})).await;
    assert_eq!((weight().await, outcome.vips), (0, site.vips()));
    let other = json!({"uuid": uuid, "tag": format!("balancerWeight::{UNKNOWN}::1")});
    site.router.refuses(Api::UpdateSystemTag, other, "SYS.1007", "can't become").await;

    assert_eq!(site.router.ok(Api::DeleteTag, json!({"uuid": uuid})).await.vips, site.vips());
    assert_eq!(weight().await, 100);
    let outcome = site.router.ok(api, create(tag(5))).await;
    assert_eq!((weight().await, outcome.vips), (5, site.vips()));

    // A NIC that leaves takes its weight with it.
    let nics = json!({"listenerUuid": listener, "vmNicUuids": [nic]});
    site.router.ok(Api::RemoveVmNicFromLoadBalancer, nics.clone()).await;
    site.router.ok(Api::AddVmNicToLoadBalancer, nics).await;
    assert_eq!(weight().await, 100);
    let foreign = json!({"listenerUuid": listener, "vmNicUuids": [nic], "systemTags": ["maxConnection::1"]});
    site.router.ok(Api::RemoveVmNicFromLoadBalancer, add).await;
    site.router.refuses(Api::AddVmNicToLoadBalancer, foreign, "SYS.1007", "only balancerWeight").await;
}

#[tokio::test]
async fn a_vms_tags_stay_as_they_were_created() {
    let site = Site::new().await;
    let arguments = json!({"name": "vm", "l3NetworkUuids": [site.guest], "systemTags": ["hostname::web"]});
    let vm = site.router.make(Api::CreateVmInstance, arguments).await;
    let tag = site.router.text("SELECT uuid FROM system_tags WHERE resource_uuid = $1", &vm).await;
    let update = json!({"uuid": tag, "tag": "hostname::db"});
    site.router.refuses(Api::UpdateSystemTag, update, "SYS.1006", "can't be changed").await;
}
