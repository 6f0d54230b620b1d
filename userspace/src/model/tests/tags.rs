//! System tags of listeners.

use serde_json::json;
use vipgate_api::{Api, Reply, Resource};

use super::{Site, UNKNOWN};
use crate::state::{Algorithm, Source};

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
    site.router.refuses(api, to("healthyThreshold::3"), "SYS.1007", "can't become healthyThreshold").await;
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
    site.router.refuses(api, wrong, "SYS.1003", "type:VipVO] not found").await;
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
