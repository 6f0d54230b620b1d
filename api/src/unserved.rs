//! The documented calls that this router does not serve yet.
//!
//! The router answers them with the error object for "not implemented" instead of "no such URL", and stores nothing.
//! A call that becomes served moves from here to its family's file.

use crate::call::{Method, Route, delete, get, post, put};

/// A documented call without an implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unserved {
    pub name: &'static str,
    pub routes: &'static [Route],
    /// The member of a PUT's body that names the action; empty for the other verbs.
    pub action: &'static str,
}

impl Unserved {
    /// Whether the call is answered at once; the others get a job that fails.
    pub fn is_sync(&self) -> bool {
        self.routes.iter().all(|route| route.method == Method::Get)
    }
}

const fn row(name: &'static str, routes: &'static [Route], action: &'static str) -> Unserved {
    Unserved { name, routes, action }
}

pub const CALLS: &[Unserved] = &[
    row("CreateSecurityGroup", &[post("/security-groups")], ""),
    row("DeleteSecurityGroup", &[delete("/security-groups/{uuid}")], ""),
    row("QuerySecurityGroup", &[get("/security-groups"), get("/security-groups/{uuid}")], ""),
    row("UpdateSecurityGroup", &[put("/security-groups/{uuid}/actions")], "updateSecurityGroup"),
    row("ChangeSecurityGroupState", &[put("/security-groups/{uuid}/actions")], "changeSecurityGroupState"),
    row(
        "AttachSecurityGroupToL3Network",
        &[post("/security-groups/{securityGroupUuid}/l3-networks/{l3NetworkUuid}")],
        "",
    ),
    row(
        "DetachSecurityGroupFromL3Network",
        &[delete("/security-groups/{securityGroupUuid}/l3-networks/{l3NetworkUuid}")],
        "",
    ),
    row(
        "GetCandidateVmNicForSecurityGroup",
        &[get("/security-groups/{securityGroupUuid}/vm-instances/candidate-nics")],
        "",
    ),
    row("AddVmNicToSecurityGroup", &[post("/security-groups/{securityGroupUuid}/vm-instances/nics")], ""),
    row("DeleteVmNicFromSecurityGroup", &[delete("/security-groups/{securityGroupUuid}/vm-instances/nics")], ""),
    row("QueryVmNicInSecurityGroup", &[get("/security-groups/vm-instances/nics")], ""),
    row("AddSecurityGroupRule", &[post("/security-groups/{securityGroupUuid}/rules")], ""),
    row("QuerySecurityGroupRule", &[get("/security-groups/rules"), get("/security-groups/rules/{uuid}")], ""),
    row("DeleteSecurityGroupRule", &[delete("/security-groups/rules")], ""),
    row("CreateCertificate", &[post("/certificates")], ""),
    row("DeleteCertificate", &[delete("/certificates/{uuid}")], ""),
    row("QueryCertificate", &[get("/certificates"), get("/certificates/{uuid}")], ""),
    row("AddCertificateToLoadBalancerListener", &[post("/load-balancers/listeners/{listenerUuid}/certificate")], ""),
    row(
        "RemoveCertificateFromLoadBalancerListener",
        &[delete("/load-balancers/listeners/{listenerUuid}/certificate")],
        "",
    ),
    row("UpdateCertificate", &[put("/certificates/{uuid}/actions")], "updateCertificate"),
    row("CreateIPsecConnection", &[post("/ipsec")], ""),
    row("DeleteIPsecConnection", &[delete("/ipsec/{uuid}")], ""),
    row("UpdateIPsecConnection", &[put("/ipsec/{uuid}")], "updateIPsecConnection"),
    row("QueryIPSecConnection", &[get("/ipsec"), get("/ipsec/{uuid}")], ""),
    row("ChangeIPSecConnectionState", &[put("/ipsec/{uuid}/actions")], "changeIPSecConnectionState"),
    row("AttachL3NetworksToIPsecConnection", &[post("/ipsec/{uuid}/l3networks")], ""),
    row("DetachL3NetworksFromIPsecConnection", &[delete("/ipsec/{uuid}/l3networks")], ""),
    row("AddRemoteCidrsToIPsecConnection", &[post("/ipsec/{uuid}/remote-cidrs")], ""),
    row("RemoveRemoteCidrsFromIPsecConnection", &[delete("/ipsec/{uuid}/remote-cidrs")], ""),
];
