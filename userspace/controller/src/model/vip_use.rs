//! The use of a VIP, and which services may share one. Pure.

/// A network service on a VIP, as `useFor` spells it. `Eip` shares a VIP with no other service; the others do.
pub(super) const LOAD_BALANCER: &str = "LoadBalancer";
pub(super) const PORT_FORWARDING: &str = "PortForwarding";
pub(super) const EIP: &str = "Eip";
/// The VIP is one of the router's own addresses, which guest networks use for source NAT.
pub(super) const SNAT: &str = "SNAT";

/// The VIP has a use that excludes the new one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) with: String,
}

/// `useFor` with the service added.
pub(super) fn add(use_for: Option<&str>, service: &str) -> Result<String, Conflict> {
    match use_for {
        None => Ok(service.to_owned()),
        Some(uses) if services(uses).any(|other| other == service) && service != EIP => Ok(uses.to_owned()),
        Some(uses) if service == EIP || services(uses).any(|other| other == EIP) => {
            Err(Conflict { with: uses.to_owned() })
        }
        Some(uses) => Ok(format!("{uses},{service}")),
    }
}

/// `useFor` without the service; `None` if the VIP is unused then.
pub(super) fn remove(use_for: Option<&str>, service: &str) -> Option<String> {
    let rest: Vec<_> = services(use_for?).filter(|other| *other != service).collect();
    (!rest.is_empty()).then(|| rest.join(","))
}

fn services(use_for: &str) -> impl Iterator<Item = &str> {
    use_for.split(',')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_mix_in_the_order_in_which_they_came() {
        assert_eq!(add(None, LOAD_BALANCER).unwrap(), "LoadBalancer");
        assert_eq!(add(Some("PortForwarding"), LOAD_BALANCER).unwrap(), "PortForwarding,LoadBalancer");
        assert_eq!(add(Some("LoadBalancer,IPsec"), LOAD_BALANCER).unwrap(), "LoadBalancer,IPsec");
    }

    #[test]
    fn an_elastic_ip_shares_with_nobody() {
        assert_eq!(add(Some("Eip"), LOAD_BALANCER), Err(Conflict { with: "Eip".into() }));
        assert_eq!(add(Some("LoadBalancer"), EIP), Err(Conflict { with: "LoadBalancer".into() }));
        assert_eq!(add(Some("Eip"), EIP), Err(Conflict { with: "Eip".into() }));
    }

    #[test]
    fn the_last_service_leaves_an_unused_vip() {
        assert_eq!(remove(Some("PortForwarding,LoadBalancer"), LOAD_BALANCER).as_deref(), Some("PortForwarding"));
        assert_eq!(remove(Some("LoadBalancer"), LOAD_BALANCER), None);
        assert_eq!(remove(None, LOAD_BALANCER), None);
    }
}
