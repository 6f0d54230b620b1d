//! Permissions of normal accounts, their quotas, and the use of shared resources.

use serde_json::{Map, Value, json};
use vipgate_api::{
    Api, Code, Reply, Resource,
    call::{Access, Kind},
    calls,
    query::Query,
};

use super::{Site, UNKNOWN, VROUTER};
use crate::{
    model::{Caller, access},
    query,
};

const ADMIN: &str = "36c27e8ff05c4780bf6d2fa65700f22e";

/// The site is the administrator's; `tenant` is somebody else.
async fn with_tenant() -> (Site, Caller) {
    let site = Site::new().await;
    let tenant = account(&site, "tenant").await;
    (site, tenant)
}

async fn account(site: &Site, name: &str) -> Caller {
    let account_uuid = site.router.make(Api::CreateAccount, json!({"name": name, "password": "hash"})).await;
    Caller { account_uuid, admin: false }
}

async fn denied(site: &Site, caller: &Caller, api: Api, arguments: Value, code: &str) {
    let before = site.router.everything().await;
    let error = site.router.call_as(caller, api, arguments).await.expect_err(api.name());
    assert_eq!(error.code.as_str(), code, "{}: {error}", api.name());
    assert_eq!(site.router.everything().await, before, "{} left something behind", api.name());
}

async fn made(site: &Site, caller: &Caller, api: Api, arguments: Value) -> String {
    match site
        .router
        .call_as(caller, api, arguments)
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", api.name()))
        .reply
    {
        Reply::Inventory(_, uuid) => uuid,
        other => panic!("{} answers {other:?}", api.name()),
    }
}

async fn seen(site: &Site, caller: &Caller, resource: Resource) -> Vec<Value> {
    let everything = Query { conditions: Vec::new(), ..Query::by_uuid("") };
    let mut tx = site.router.read().await;
    let mut reply = query::run(&mut tx, Some(&caller.account_uuid), resource, &everything).await.unwrap();
    reply["inventories"].as_array_mut().unwrap().drain(..).collect()
}

#[tokio::test]
async fn a_normal_account_neither_sees_nor_touches_what_is_others() {
    let (site, tenant) = with_tenant().await;
    let elastic = site.router.vip(&site.public).await;
    let eip = site.router.make(Api::CreateEip, json!({"name": "e", "vipUuid": elastic, "vmNicUuid": site.nic})).await;
    for resource in [
        Resource::Zone,
        Resource::L2Network,
        Resource::L3Network,
        Resource::IpRange,
        Resource::Vip,
        Resource::VipQos,
        Resource::LoadBalancer,
        Resource::Listener,
        Resource::ListenerNicRef,
        Resource::Eip,
        Resource::VmInstance,
        Resource::VmNic,
        Resource::SystemTag,
        Resource::UserTag,
        Resource::NetworkServiceRef,
    ] {
        assert_eq!(seen(&site, &tenant, resource).await, [Value::Null; 0], "{resource:?}");
    }
    site.router.make(Api::SetVipQos, json!({"uuid": site.vip, "inboundBandwidth": 1 << 20})).await;
    let (vip, listener, nic) = (&site.vip, &site.listener, &site.nic);
    let tag = site.router.texts("SELECT uuid FROM system_tags WHERE resource_uuid = $1", listener).await.remove(0);
    for (api, arguments) in [
        (Api::UpdateVip, json!({"uuid": vip, "name": "mine"})),
        (Api::ChangeVipState, json!({"uuid": vip, "stateEvent": "disable"})),
        (Api::GetVipUsedPorts, json!({"uuid": vip, "protocol": "tcp"})),
        (Api::SetVipQos, json!({"uuid": vip, "port": 80, "inboundBandwidth": 1 << 20})),
        (Api::GetVipQos, json!({"uuid": vip})),
        (Api::DeleteVipQos, json!({"uuid": vip})),
        (Api::DeleteVip, json!({"uuid": vip})),
        (Api::CreateVip, json!({"name": "v", "l3NetworkUuid": site.public})),
        (Api::CreateLoadBalancer, json!({"name": "l", "vipUuid": vip})),
        (
            Api::CreateLoadBalancerListener,
            json!({"name": "l", "loadBalancerUuid": site.balancer, "loadBalancerPort": 1}),
        ),
        (Api::AddVmNicToLoadBalancer, json!({"listenerUuid": listener, "vmNicUuids": [nic]})),
        (Api::GetCandidateVmNicsForLoadBalancer, json!({"listenerUuid": listener})),
        (Api::DetachEip, json!({"uuid": eip})),
        (Api::GetEipAttachableVmNics, json!({"vipUuid": vip})),
        (Api::StopVmInstance, json!({"uuid": site.vm})),
        (Api::DeleteL3Network, json!({"uuid": site.guest})),
        (
            Api::AttachNetworkServiceToL3Network,
            json!({"l3NetworkUuid": site.guest, "networkServices": {VROUTER: ["LoadBalancer"]}}),
        ),
        (Api::CreateUserTag, json!({"resourceType": "VipVO", "resourceUuid": vip, "tag": "t"})),
        (Api::UpdateSystemTag, json!({"uuid": tag, "tag": "maxConnection::1"})),
        (Api::DeleteTag, json!({"uuid": tag})),
        (Api::ShareResource, json!({"resourceUuids": [vip], "toPublic": true})),
        (Api::CreateZone, json!({"name": "z"})),
        (Api::CreateAccount, json!({"name": "a", "password": "p"})),
        (Api::DeleteAccount, json!({"uuid": ADMIN})),
        (Api::UpdateAccount, json!({"uuid": ADMIN, "password": "p"})),
        (Api::UpdateQuota, json!({"identityUuid": tenant.account_uuid, "name": "vip.num", "value": 99})),
    ] {
        denied(&site, &tenant, api, arguments, "ID.1002").await;
    }
}

#[tokio::test]
async fn each_parameter_of_every_call_asks_for_the_access_that_its_row_says() {
    let (site, tenant) = with_tenant().await;
    let sharing = json!({"resourceUuids": [site.public], "accountUuids": [tenant.account_uuid]});
    site.router.ok(Api::ShareResource, sharing).await;
    let own = made(&site, &tenant, Api::CreateVip, json!({"name": "v", "l3NetworkUuid": site.public})).await;
    let mut tx = site.router.read().await;
    let mut checked = 0;
    for call in calls::all().filter(|call| !access::ADMIN_ONLY.contains(&call.api)) {
        for param in call.params.iter().filter(|param| matches!(param.kind, Kind::Text | Kind::TextList)) {
            for (uuid, may) in [
                (&own, true),
                (&site.public, param.access != Access::Owner),
                (&site.vip, param.access == Access::Free),
                (&UNKNOWN.to_owned(), true),
            ] {
                let value = if param.kind == Kind::TextList { json!([own, uuid]) } else { json!(uuid) };
                let arguments = Map::from_iter([(param.name.to_owned(), value)]);
                let code = access::check(&mut tx, &tenant, call.api, &arguments).await.map_err(|error| error.code);
                let expected = if may { Ok(()) } else { Err(Code::PermissionDenied) };
                assert_eq!(code, expected, "{} of {}: {:?}", param.name, call.api.name(), param.access);
                checked += 1;
            }
        }
    }
    assert!(checked > 0);
}

#[tokio::test]
async fn what_is_shared_can_be_used_and_not_changed() {
    let (site, tenant) = with_tenant().await;
    let other = account(&site, "other").await;
    let sharing = json!({"resourceUuids": [site.public, site.guest], "accountUuids": [tenant.account_uuid]});
    site.router.ok(Api::ShareResource, sharing.clone()).await;
    assert_eq!(seen(&site, &tenant, Resource::L3Network).await.len(), 2);
    assert_eq!(seen(&site, &other, Resource::L3Network).await.len(), 0);
    denied(&site, &tenant, Api::DeleteL3Network, json!({"uuid": site.guest}), "ID.1002").await;

    let vip = made(&site, &tenant, Api::CreateVip, json!({"name": "v", "l3NetworkUuid": site.public})).await;
    let balancer = made(&site, &tenant, Api::CreateLoadBalancer, json!({"name": "l", "vipUuid": vip})).await;
    let listener = json!({"name": "l", "loadBalancerUuid": balancer, "loadBalancerPort": 80});
    let listener = made(&site, &tenant, Api::CreateLoadBalancerListener, listener).await;
    let vm = json!({"name": "vm", "l3NetworkUuids": [site.guest]});
    let vm = made(&site, &tenant, Api::CreateVmInstance, vm).await;
    let nic = site.router.text("SELECT uuid FROM vm_nics WHERE vm_instance_uuid = $1", &vm).await;
    let candidates = json!({"listenerUuid": listener});
    let candidates = site.router.call_as(&tenant, Api::GetCandidateVmNicsForLoadBalancer, candidates).await.unwrap();
    assert_eq!(candidates.reply, Reply::Inventories(Resource::VmNic, vec![nic.clone()]), "its own NIC alone");
    made(&site, &tenant, Api::AddVmNicToLoadBalancer, json!({"listenerUuid": listener, "vmNicUuids": [nic]})).await;
    assert_eq!(seen(&site, &tenant, Resource::ListenerNicRef).await.len(), 1);
    let elastic = made(&site, &tenant, Api::CreateVip, json!({"name": "v", "l3NetworkUuid": site.public})).await;
    let eip = made(&site, &tenant, Api::CreateEip, json!({"name": "e", "vipUuid": elastic})).await;
    denied(&site, &tenant, Api::AttachEip, json!({"eipUuid": eip, "vmNicUuid": site.nic}), "ID.1002").await;
    made(&site, &tenant, Api::AttachEip, json!({"eipUuid": eip, "vmNicUuid": nic})).await;
    assert_eq!(seen(&site, &tenant, Resource::SystemTag).await.len(), 8);
    assert_eq!(seen(&site, &other, Resource::Vip).await.len(), 0);
    let limit = json!({"uuid": vip, "inboundBandwidth": 1 << 20});
    let limit = made(&site, &tenant, Api::SetVipQos, limit).await;
    site.router.ok(Api::ShareResource, json!({"resourceUuids": [vip], "accountUuids": [other.account_uuid]})).await;
    for account in [&tenant, &other] {
        let limits = site.router.call_as(account, Api::GetVipQos, json!({"uuid": vip})).await.unwrap();
        assert_eq!(limits.reply, Reply::Inventories(Resource::VipQos, vec![limit.clone()]), "seen with its VIP");
        assert_eq!(seen(&site, account, Resource::VipQos).await.len(), 1);
    }
    denied(&site, &other, Api::DeleteVipQos, json!({"uuid": vip}), "ID.1002").await;

    // A condition learns nothing of what is hidden, either.
    let mut tx = site.router.read().await;
    let condition =
        vipgate_api::query::Condition { name: "vip.name".to_owned(), test: vipgate_api::query::Test::NotNull };
    let query = Query { conditions: vec![condition], ..Query::by_uuid("") };
    let reply = query::run(&mut tx, Some(&tenant.account_uuid), Resource::L3Network, &query).await.unwrap();
    assert_eq!(reply["inventories"].as_array().unwrap().len(), 1);
    drop(tx);

    site.router.ok(Api::RevokeResourceSharing, sharing).await;
    assert_eq!(seen(&site, &tenant, Resource::L3Network).await.len(), 0);
    assert_eq!(seen(&site, &tenant, Resource::Vip).await.len(), 2, "what is built on it stays");
    site.router.ok(Api::ShareResource, json!({"resourceUuids": [site.public], "toPublic": true})).await;
    assert_eq!(seen(&site, &other, Resource::L3Network).await.len(), 1);
    site.router.ok(Api::RevokeResourceSharing, json!({"resourceUuids": [site.public], "all": true})).await;
    assert_eq!(seen(&site, &other, Resource::L3Network).await.len(), 0);
}

#[tokio::test]
async fn a_quota_limits_normal_accounts_alone() {
    let (site, tenant) = with_tenant().await;
    site.router.ok(Api::ShareResource, json!({"resourceUuids": [site.public], "toPublic": true})).await;
    let quotas = seen(&site, &tenant, Resource::Quota).await;
    assert_eq!(quotas.len(), 7);
    assert!(
        quotas.iter().all(|quota| quota["value"] == 20 && quota["identityUuid"] == tenant.account_uuid),
        "{quotas:?}"
    );
    let vip = || json!({"name": "v", "l3NetworkUuid": site.public});
    for _ in 0..20 {
        made(&site, &tenant, Api::CreateVip, vip()).await;
    }
    denied(&site, &tenant, Api::CreateVip, vip(), "ID.1003").await;
    site.router.ok(Api::CreateVip, vip()).await;
    let raise = |name: &str| json!({"identityUuid": tenant.account_uuid, "name": name, "value": 21});
    site.router.ok(Api::UpdateQuota, raise("vip.num")).await;
    made(&site, &tenant, Api::CreateVip, vip()).await;
    denied(&site, &tenant, Api::CreateVip, vip(), "ID.1003").await;
    site.router.refuses(Api::UpdateQuota, raise("vips"), "SYS.1007", "vip.num").await;
}

#[tokio::test]
async fn accounts_come_change_and_leave_what_they_own_to_the_administrator() {
    let (site, tenant) = with_tenant().await;
    let again = json!({"name": "tenant", "password": "hash"});
    site.router.refuses(Api::CreateAccount, again, "SYS.1006", "`tenant`").await;
    made(&site, &tenant, Api::UpdateAccount, json!({"uuid": tenant.account_uuid, "password": "other"})).await;
    let name = json!({"uuid": tenant.account_uuid, "name": "admin"});
    denied(&site, &tenant, Api::UpdateAccount, name, "SYS.1006").await;
    let accounts = seen(&site, &tenant, Resource::Account).await;
    assert_eq!((accounts.len(), &accounts[0]["type"]), (1, &json!("Normal")));
    let hash = "SELECT password_hash FROM accounts WHERE uuid = $1";
    assert_eq!(site.router.text(hash, &tenant.account_uuid).await, "other");

    site.router.ok(Api::ShareResource, json!({"resourceUuids": [site.public], "toPublic": true})).await;
    let vip = json!({"name": "v", "l3NetworkUuid": site.public});
    let vip = made(&site, &tenant, Api::CreateVip, vip).await;
    let delete = || json!({"uuid": tenant.account_uuid});
    let outcome = site.router.ok(Api::DeleteAccount, delete()).await;
    assert!(outcome.vips.is_empty());
    let owner = "SELECT account_uuid FROM resources WHERE uuid = $1";
    assert_eq!(site.router.text(owner, &vip).await, ADMIN);
    site.router.refuses(Api::DeleteAccount, delete(), "SYS.1003", "AccountVO] not found").await;
    site.router.refuses(Api::DeleteAccount, json!({"uuid": ADMIN}), "SYS.1004", "can't be deleted").await;
    let share = json!({"resourceUuids": [vip], "accountUuids": [UNKNOWN]});
    site.router.refuses(Api::ShareResource, share, "SYS.1003", "AccountVO] not found").await;
}
