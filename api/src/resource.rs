//! The resources that have an inventory: their names, and the Java classes of the inventories, which clients read in a
//! reply's `schema`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Resource {
    Zone,
    L2Network,
    L2VlanNetwork,
    L3Network,
    IpRange,
    VmInstance,
    VmNic,
    NetworkServiceProvider,
    NetworkServiceRef,
    Vip,
    VipUsedPorts,
    VipQos,
    LoadBalancer,
    Listener,
    ListenerNicRef,
    ListenerCertificateRef,
    PortForwardingRule,
    Eip,
    SystemTag,
    UserTag,
    Account,
    Quota,
    Session,
}

impl Resource {
    /// The class that the real system's clients map the inventory to.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Zone => "org.zstack.header.zone.ZoneInventory",
            Self::L2Network => "org.zstack.header.network.l2.L2NetworkInventory",
            Self::L2VlanNetwork => "org.zstack.header.network.l2.L2VlanNetworkInventory",
            Self::L3Network => "org.zstack.header.network.l3.L3NetworkInventory",
            Self::IpRange => "org.zstack.header.network.l3.IpRangeInventory",
            Self::VmInstance => "org.zstack.header.vm.VmInstanceInventory",
            Self::VmNic => "org.zstack.header.vm.VmNicInventory",
            Self::NetworkServiceProvider => "org.zstack.header.network.service.NetworkServiceProviderInventory",
            Self::NetworkServiceRef => "org.zstack.header.network.service.NetworkServiceL3NetworkRefInventory",
            Self::Vip => "org.zstack.network.service.vip.VipInventory",
            Self::VipUsedPorts => {
                "org.zstack.network.service.virtualrouter.APIGetVipUsedPortsReply$VipPortRangeInventory"
            }
            Self::VipQos => "org.zstack.header.vipQos.VipQosInventory",
            Self::LoadBalancer => "org.zstack.network.service.lb.LoadBalancerInventory",
            Self::Listener => "org.zstack.network.service.lb.LoadBalancerListenerInventory",
            Self::ListenerNicRef => "org.zstack.network.service.lb.LoadBalancerListenerVmNicRefInventory",
            Self::ListenerCertificateRef => "org.zstack.network.service.lb.LoadBalancerListenerCertificateRefInventory",
            Self::PortForwardingRule => "org.zstack.network.service.portforwarding.PortForwardingRuleInventory",
            Self::Eip => "org.zstack.network.service.eip.EipInventory",
            Self::SystemTag => "org.zstack.header.tag.SystemTagInventory",
            Self::UserTag => "org.zstack.header.tag.UserTagInventory",
            Self::Account => "org.zstack.header.identity.AccountInventory",
            Self::Quota => "org.zstack.header.identity.QuotaInventory",
            Self::Session => "org.zstack.header.identity.SessionInventory",
        }
    }

    /// The name of its database record, as error details and `resourceType` of tags print it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Zone => "ZoneVO",
            Self::L2Network => "L2NetworkVO",
            Self::L2VlanNetwork => "L2VlanNetworkVO",
            Self::L3Network => "L3NetworkVO",
            Self::IpRange => "IpRangeVO",
            Self::VmInstance => "VmInstanceVO",
            Self::VmNic => "VmNicVO",
            Self::NetworkServiceProvider => "NetworkServiceProviderVO",
            Self::NetworkServiceRef => "NetworkServiceL3NetworkRefVO",
            Self::Vip => "VipVO",
            Self::VipUsedPorts => "VipPortRangeVO",
            Self::VipQos => "VipQosVO",
            Self::LoadBalancer => "LoadBalancerVO",
            Self::Listener => "LoadBalancerListenerVO",
            Self::ListenerNicRef => "LoadBalancerListenerVmNicRefVO",
            Self::ListenerCertificateRef => "LoadBalancerListenerCertificateRefVO",
            Self::PortForwardingRule => "PortForwardingRuleVO",
            Self::Eip => "EipVO",
            Self::SystemTag => "SystemTagVO",
            Self::UserTag => "UserTagVO",
            Self::Account => "AccountVO",
            Self::Quota => "QuotaVO",
            Self::Session => "SessionVO",
        }
    }

    /// The members of its inventory that hold other inventories.
    pub const fn nested(self) -> &'static [(&'static str, Self)] {
        match self {
            Self::L3Network => &[("ipRanges", Self::IpRange), ("networkServices", Self::NetworkServiceRef)],
            Self::VmInstance => &[("vmNics", Self::VmNic)],
            Self::LoadBalancer => &[("listeners", Self::Listener)],
            Self::Listener => &[("vmNicRefs", Self::ListenerNicRef), ("certificateRefs", Self::ListenerCertificateRef)],
            _ => &[],
        }
    }
}

const ERROR_CLASS: &str = "org.zstack.header.errorcode.ErrorCode";

/// The `schema` of a reply: path of every object that is there (`inventories[0].listeners[1]`) -> its Java class.
///
/// `resource` is the type of what `inventory` or `inventories` hold. Parents come before their children, and no path is
/// named that the reply lacks: clients walk the map in order and fail on a missing path.
pub fn schema(reply: &Map<String, Value>, resource: Option<Resource>) -> Map<String, Value> {
    let mut paths = Map::new();
    if reply.contains_key("error") {
        paths.insert("error".into(), ERROR_CLASS.into());
    }
    if let Some(resource) = resource {
        for member in ["inventory", "inventories"] {
            if let Some(value) = reply.get(member) {
                describe(member, value, resource, &mut paths);
            }
        }
    }
    paths
}

fn describe(path: &str, value: &Value, resource: Resource, paths: &mut Map<String, Value>) {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                describe(&format!("{path}[{index}]"), item, resource, paths);
            }
        }
        Value::Object(members) => {
            paths.insert(path.to_owned(), json!(resource.class()));
            for (name, nested) in resource.nested() {
                if let Some(value) = members.get(*name) {
                    describe(&format!("{path}.{name}"), value, *nested, paths);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_names_parents_before_children_and_only_what_is_there() {
        let reply = json!({"inventories": [
            {"uuid": "a", "listeners": [{"uuid": "l", "vmNicRefs": [{"id": 1}], "certificateRefs": []}]},
            {"uuid": "b", "listeners": []},
        ]});
        let paths: Vec<_> = schema(reply.as_object().unwrap(), Some(Resource::LoadBalancer))
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(
            paths,
            [
                "inventories[0]",
                "inventories[0].listeners[0]",
                "inventories[0].listeners[0].vmNicRefs[0]",
                "inventories[1]"
            ]
        );
    }

    #[test]
    fn an_error_is_described_too() {
        let reply = json!({"error": {"code": "SYS.1006"}});
        assert_eq!(schema(reply.as_object().unwrap(), Some(Resource::Vip))["error"], ERROR_CLASS);
    }
}
