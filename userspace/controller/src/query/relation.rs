//! The table of relations: each row relates two resources, in both directions.
//!
//! A condition follows relations by the names here, such as `vip.name` or `listeners.protocol` of a load balancer. Where
//! there can be several resources, the first name is the one in the API document; the other is its singular or plural.

use vipgate_api::Resource;

use super::table::Table;

/// A relation of two resources.
#[derive(Debug)]
pub(super) struct Relation {
    pub(super) ends: [End; 2],
    /// The table of pairs and its columns for both ends, if neither end has the other's key.
    pub(super) via: Option<(&'static str, [&'static str; 2])>,
}

#[derive(Debug)]
pub(super) struct End {
    pub(super) resource: Resource,
    /// The names for it in conditions of the other end.
    pub(super) names: &'static [&'static str],
    /// The field whose value equals that of the other end, or of the pair.
    pub(super) field: &'static str,
}

/// A relation as a condition follows it from the near resource to the far one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) names: &'static [&'static str],
    pub(super) near: &'static str,
    pub(super) far: &'static str,
    pub(super) table: &'static Table,
    /// Table of pairs, its near and its far column.
    pub(super) via: Option<(&'static str, &'static str, &'static str)>,
}

impl Table {
    /// The relations from here to other resources.
    pub(super) fn steps(&'static self) -> impl Iterator<Item = Step> + Clone {
        RELATIONS.iter().flat_map(|relation| [step(relation, 0), step(relation, 1)]).filter_map(|(near, step)| {
            let near = Self::of(near.resource)?;
            // Two resources can share a table, one of them with a part of its rows.
            (near.name == self.name).then_some(step?)
        })
    }

    pub(super) fn step(&'static self, name: &str) -> Option<Step> {
        self.steps().find(|step| step.names.contains(&name))
    }
}

fn step(relation: &'static Relation, near: usize) -> (&'static End, Option<Step>) {
    let [near_end, far_end] = [&relation.ends[near], &relation.ends[1 - near]];
    let step = Table::of(far_end.resource).map(|table| Step {
        names: far_end.names,
        near: near_end.field,
        far: far_end.field,
        table,
        via: relation.via.map(|(name, columns)| (name, columns[near], columns[1 - near])),
    });
    (near_end, step)
}

type Names = &'static [&'static str];

/// `resource` has the owner's uuid in `field`. The owner's conditions call it `names`, its own call the owner `up`.
const fn belongs(resource: Resource, names: Names, field: &'static str, owner: Resource, up: Names) -> Relation {
    let ends = [End { resource, names, field }, End { resource: owner, names: up, field: "uuid" }];
    Relation { ends, via: None }
}

/// Each end may have several of the other: the pairs are in a separate table.
const fn pairs(
    a: (Resource, Names),
    b: (Resource, Names),
    table: &'static str,
    columns: [&'static str; 2],
) -> Relation {
    let ends = [End { resource: a.0, names: a.1, field: "uuid" }, End { resource: b.0, names: b.1, field: "uuid" }];
    Relation { ends, via: Some((table, columns)) }
}

const ZONE: Names = &["zone"];
const L3_NETWORK: Names = &["l3Network"];
const PROVIDER: Names = &["serviceProvider", "networkServiceProvider"];
const VIPS: Names = &["vip", "vips"];
const VM_NICS: Names = &["vmNic", "vmNics"];

pub(super) const RELATIONS: &[Relation] = &[
    belongs(Resource::Quota, &["quota", "quotas"], "identityUuid", Resource::Account, &["account"]),
    belongs(Resource::L2Network, &["l2Network", "l2Networks"], "zoneUuid", Resource::Zone, ZONE),
    belongs(Resource::L3Network, &["l3Network", "l3Networks"], "zoneUuid", Resource::Zone, ZONE),
    belongs(Resource::VmInstance, &["vmInstance", "vmInstances"], "zoneUuid", Resource::Zone, ZONE),
    belongs(Resource::L3Network, &["l3Network", "l3Networks"], "l2NetworkUuid", Resource::L2Network, &["l2Network"]),
    pairs(
        (Resource::NetworkServiceProvider, PROVIDER),
        (Resource::L2Network, &["l2Network", "l2Networks"]),
        "network_service_provider_l2_network_refs",
        ["network_service_provider_uuid", "l2_network_uuid"],
    ),
    belongs(Resource::IpRange, &["ipRanges", "ipRange"], "l3NetworkUuid", Resource::L3Network, L3_NETWORK),
    belongs(
        Resource::NetworkServiceRef,
        &["networkServices", "networkService"],
        "l3NetworkUuid",
        Resource::L3Network,
        L3_NETWORK,
    ),
    belongs(
        Resource::NetworkServiceRef,
        &["networkServices", "networkService"],
        "networkServiceProviderUuid",
        Resource::NetworkServiceProvider,
        PROVIDER,
    ),
    pairs(
        (Resource::NetworkServiceProvider, PROVIDER),
        (Resource::L3Network, &["l3Network", "l3Networks"]),
        "network_service_l3_network_refs",
        ["network_service_provider_uuid", "l3_network_uuid"],
    ),
    belongs(
        Resource::VmInstance,
        &["defaultVmInstance", "defaultVmInstances"],
        "defaultL3NetworkUuid",
        Resource::L3Network,
        &["defaultL3Network"],
    ),
    belongs(Resource::VmNic, &["vmNics", "vmNic"], "vmInstanceUuid", Resource::VmInstance, &["vmInstance"]),
    belongs(Resource::VmNic, VM_NICS, "l3NetworkUuid", Resource::L3Network, L3_NETWORK),
    belongs(Resource::Vip, VIPS, "l3NetworkUuid", Resource::L3Network, L3_NETWORK),
    belongs(Resource::Vip, VIPS, "ipRangeUuid", Resource::IpRange, &["ipRange"]),
    pairs(
        (Resource::Vip, &["peerVip", "peerVips"]),
        (Resource::L3Network, &["peerL3Network", "peerL3Networks"]),
        "vip_peer_l3_networks",
        ["vip_uuid", "l3_network_uuid"],
    ),
    belongs(Resource::VipQos, &["vipQos"], "vipUuid", Resource::Vip, &["vip"]),
    belongs(Resource::LoadBalancer, &["loadBalancer", "loadBalancers"], "vipUuid", Resource::Vip, &["vip"]),
    belongs(
        Resource::Listener,
        &["listeners", "listener"],
        "loadBalancerUuid",
        Resource::LoadBalancer,
        &["loadBalancer"],
    ),
    belongs(Resource::ListenerNicRef, &["vmNicRefs", "vmNicRef"], "listenerUuid", Resource::Listener, &["listener"]),
    belongs(
        Resource::ListenerNicRef,
        &["loadBalancerListenerRef", "loadBalancerListenerRefs"],
        "vmNicUuid",
        Resource::VmNic,
        &["vmNic"],
    ),
    pairs(
        (Resource::Listener, &["loadBalancerListener", "loadBalancerListeners"]),
        (Resource::VmNic, VM_NICS),
        "load_balancer_listener_vm_nic_refs",
        ["listener_uuid", "vm_nic_uuid"],
    ),
    belongs(Resource::PortForwardingRule, &["portForwarding"], "vipUuid", Resource::Vip, &["vip"]),
    belongs(Resource::PortForwardingRule, &["portForwarding"], "vmNicUuid", Resource::VmNic, &["vmNic"]),
    belongs(Resource::Eip, &["eip"], "vipUuid", Resource::Vip, &["vip"]),
    belongs(Resource::Eip, &["eip"], "vmNicUuid", Resource::VmNic, &["vmNic"]),
];
