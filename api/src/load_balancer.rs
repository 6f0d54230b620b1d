//! Load balancers, their listeners, and the NICs that a listener balances to.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{
        Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, Kind, NAME, NEW_NAME, Param, RESOURCE_UUID, Rule, UUID,
        delete, get, in_path, post, put, text,
    },
    date::Date,
    resource::Resource,
};

const BALANCER: Answer = Answer::Inventory(Resource::LoadBalancer);
const LISTENER: Answer = Answer::Inventory(Resource::Listener);
const PORT: Rule = Rule::Range(1, 65535);
const NICS: &[Param] = &[
    in_path("listenerUuid", Access::Owner),
    Param::new("vmNicUuids", Kind::TextList, Access::Visible).required().rule(Rule::NotEmpty),
];

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateLoadBalancer,
        &[post("/load-balancers")],
        &[NAME, DESCRIPTION, text("vipUuid", Access::Visible).required(), RESOURCE_UUID],
        BALANCER,
    ),
    Call::delete(Api::DeleteLoadBalancer, &[delete("/load-balancers/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(
        Api::QueryLoadBalancer,
        Resource::LoadBalancer,
        &[get("/load-balancers"), get("/load-balancers/{uuid}")],
    ),
    Call::action(
        Api::UpdateLoadBalancer,
        &[put("/load-balancers/{uuid}/actions")],
        &["updateLoadBalancer"],
        &[UUID, NEW_NAME, DESCRIPTION],
        BALANCER,
    ),
    Call::action(
        Api::RefreshLoadBalancer,
        &[put("/load-balancers/{uuid}/actions")],
        &["refreshLoadBalancer"],
        &[UUID],
        BALANCER,
    ),
    Call::create(
        Api::CreateLoadBalancerListener,
        &[post("/load-balancers/{loadBalancerUuid}/listeners")],
        &[
            in_path("loadBalancerUuid", Access::Owner),
            NAME,
            DESCRIPTION,
            Param::new("instancePort", Kind::Int, Access::Free).rule(PORT),
            Param::new("loadBalancerPort", Kind::Int, Access::Free).required().rule(PORT),
            text("protocol", Access::Free).rule(Rule::OneOfAnyCase(&["tcp", "udp", "http", "https"])),
            text("certificateUuid", Access::Visible),
            RESOURCE_UUID,
        ],
        LISTENER,
    ),
    Call::delete(
        Api::DeleteLoadBalancerListener,
        &[delete("/load-balancers/listeners/{uuid}")],
        &[UUID, DELETE_MODE],
        BALANCER,
    ),
    Call::query(
        Api::QueryLoadBalancerListener,
        Resource::Listener,
        &[get("/load-balancers/listeners"), get("/load-balancers/listeners/{uuid}")],
    ),
    Call::action(
        Api::UpdateLoadBalancerListener,
        &[put("/load-balancers/listeners/{uuid}")],
        &["updateLoadBalancerListener"],
        &[UUID, NEW_NAME, DESCRIPTION],
        LISTENER,
    ),
    Call::read(
        Api::GetCandidateVmNicsForLoadBalancer,
        &[get("/load-balancers/listeners/{listenerUuid}/vm-instances/candidate-nics")],
        &[in_path("listenerUuid", Access::Visible)],
        Answer::Inventories(Resource::VmNic),
    ),
    Call::create(
        Api::AddVmNicToLoadBalancer,
        &[post("/load-balancers/listeners/{listenerUuid}/vm-instances/nics")],
        NICS,
        LISTENER,
    ),
    Call::delete(
        Api::RemoveVmNicFromLoadBalancer,
        &[delete("/load-balancers/listeners/{listenerUuid}/vm-instances/nics")],
        NICS,
        BALANCER,
    ),
];

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateLoadBalancer {
    pub name: String,
    pub description: Option<String>,
    pub vip_uuid: String,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

/// The settings of the balancing (`balancerAlgorithm::source`, ...) come as system tags.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateLoadBalancerListener {
    pub load_balancer_uuid: String,
    pub name: String,
    pub description: Option<String>,
    /// `load_balancer_port` when absent.
    pub instance_port: Option<u16>,
    pub load_balancer_port: u16,
    /// `tcp` (when absent), `udp`, `http` or `https`.
    pub protocol: Option<String>,
    pub certificate_uuid: Option<String>,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetCandidateVmNics {
    pub listener_uuid: String,
}

/// The request to add NICs and the one to remove them. Weights of added NICs come as system tags
/// (`balancerWeight::<NIC's uuid>::50`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerNics {
    pub listener_uuid: String,
    pub vm_nic_uuids: Vec<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerInventory {
    pub name: String,
    pub uuid: String,
    pub description: Option<String>,
    pub state: String,
    pub vip_uuid: String,
    pub listeners: Vec<ListenerInventory>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub load_balancer_uuid: String,
    pub instance_port: u16,
    pub load_balancer_port: u16,
    pub protocol: String,
    pub create_date: Date,
    pub last_op_date: Date,
    pub vm_nic_refs: Vec<ListenerNicRefInventory>,
    pub certificate_refs: Vec<ListenerCertificateRefInventory>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerNicRefInventory {
    pub id: i64,
    pub listener_uuid: String,
    pub vm_nic_uuid: String,
    /// `Pending`: not carried yet; `Active`; `Inactive`: its VM is stopped.
    pub status: String,
    pub create_date: Date,
    pub last_op_date: Date,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerCertificateRefInventory {
    pub id: i64,
    pub listener_uuid: String,
    pub certificate_uuid: String,
    pub create_date: Date,
    pub last_op_date: Date,
}
