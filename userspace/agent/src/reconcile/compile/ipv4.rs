//! The gate between the desired state, which is of any family, and the packet path, which serves IPv4: what is compiled has
//! passed here.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;
use vipgate_state::{BackendState, ElasticState, ForwardState, ListenerState, MasqueradeState, VipState};

/// Why the packet path cannot serve a VIP.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{owner} has {found}, and the packet path serves IPv4 alone: give it an IPv4 one, or remove it")]
pub struct NotIpv4 {
    /// What has it, by kind and uuid.
    owner: String,
    /// The address or network.
    found: String,
}

/// The VIP as the packet path serves it.
///
/// # Errors
/// [`NotIpv4`] if any of its addresses or networks is of another family.
pub fn ipv4(vip: VipState) -> Result<VipState<Ipv4Addr>, NotIpv4> {
    Ok(VipState {
        address: address(vip.address, || format!("VIP {}", vip.uuid))?,
        uuid: vip.uuid,
        prefix_len: vip.prefix_len,
        device: vip.device,
        own: vip.own,
        enabled: vip.enabled,
        listeners: vip.listeners.into_iter().map(listener).collect::<Result<_, _>>()?,
        forwards: vip.forwards.into_iter().map(forward).collect::<Result<_, _>>()?,
        elastic: vip.elastic.map(elastic).transpose()?,
        masquerades: vip.masquerades.into_iter().map(masquerade).collect::<Result<_, _>>()?,
        limits: vip.limits,
    })
}

fn listener(listener: ListenerState) -> Result<ListenerState<Ipv4Addr>, NotIpv4> {
    let owner = || format!("a backend of listener {}", listener.uuid);
    let backend = |backend: BackendState| {
        Ok(BackendState {
            number: backend.number,
            address: address(backend.address, owner)?,
            port: backend.port,
            device: backend.device,
            active: backend.active,
            weight: backend.weight,
            healthy: backend.healthy,
        })
    };
    Ok(ListenerState {
        backends: listener.backends.into_iter().map(backend).collect::<Result<_, _>>()?,
        uuid: listener.uuid,
        account: listener.account,
        number: listener.number,
        protocol: listener.protocol,
        port: listener.port,
        algorithm: listener.algorithm,
        max_connections: listener.max_connections,
        idle_timeout: listener.idle_timeout,
        check: listener.check,
    })
}

fn forward(forward: ForwardState) -> Result<ForwardState<Ipv4Addr>, NotIpv4> {
    let owner = || format!("port-forwarding rule {}", forward.uuid);
    Ok(ForwardState {
        guest: address(forward.guest, owner)?,
        allowed: network(forward.allowed, owner)?,
        uuid: forward.uuid,
        number: forward.number,
        backend: forward.backend,
        protocol: forward.protocol,
        ports: forward.ports,
        device: forward.device,
        guest_port: forward.guest_port,
    })
}

fn elastic(elastic: ElasticState) -> Result<ElasticState<Ipv4Addr>, NotIpv4> {
    Ok(ElasticState {
        guest: address(elastic.guest, || format!("elastic IP {}", elastic.uuid))?,
        uuid: elastic.uuid,
        number: elastic.number,
        backend: elastic.backend,
        device: elastic.device,
        leads: elastic.leads,
    })
}

fn masquerade(masquerade: MasqueradeState) -> Result<MasqueradeState<Ipv4Addr>, NotIpv4> {
    Ok(MasqueradeState {
        network: network(masquerade.network, || format!("source NAT of L3 network {}", masquerade.uuid))?,
        uuid: masquerade.uuid,
        number: masquerade.number,
        backend: masquerade.backend,
        device: masquerade.device,
    })
}

fn address(address: IpAddr, owner: impl FnOnce() -> String) -> Result<Ipv4Addr, NotIpv4> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(NotIpv4 { owner: owner(), found: format!("the address {address}") }),
    }
}

fn network(network: IpNet, owner: impl FnOnce() -> String) -> Result<Ipv4Net, NotIpv4> {
    match network {
        IpNet::V4(network) => Ok(network),
        IpNet::V6(network) => Err(NotIpv4 { owner: owner(), found: format!("the network {network}") }),
    }
}

#[cfg(test)]
mod tests {
    use vipgate_state::{Algorithm, HealthCheck, LimitState, Protocol};

    use super::*;

    /// Gives a VIP this address or this network somewhere.
    type Change = fn(&mut VipState, IpAddr, IpNet);

    /// A VIP with one of everything.
    fn vip() -> VipState {
        let backend = BackendState {
            number: 1,
            address: IpAddr::from([10, 0, 0, 1]),
            port: 8080,
            device: "eth1".into(),
            active: true,
            weight: 3,
            healthy: true,
        };
        let listener = ListenerState {
            uuid: "web".into(),
            account: "account".into(),
            number: 2,
            protocol: Protocol::Tcp,
            port: 80,
            algorithm: Algorithm::Maglev,
            max_connections: 4,
            idle_timeout: 5,
            check: HealthCheck::default(),
            backends: vec![backend],
        };
        let forward = ForwardState {
            uuid: "ssh".into(),
            number: 6,
            backend: 7,
            protocol: Protocol::Udp,
            ports: (8, 9),
            guest: IpAddr::from([10, 0, 0, 2]),
            device: "eth1".into(),
            guest_port: 10,
            allowed: "192.0.2.0/24".parse().unwrap(),
        };
        let guest = IpAddr::from([10, 0, 0, 3]);
        let elastic =
            ElasticState { uuid: "eip".into(), number: 11, backend: 12, guest, device: "eth1".into(), leads: true };
        let network = "10.0.0.0/24".parse().unwrap();
        let masquerade = MasqueradeState { uuid: "l3".into(), number: 13, backend: 14, network, device: "eth1".into() };
        VipState {
            uuid: "vip".into(),
            address: IpAddr::from([203, 0, 113, 1]),
            prefix_len: 24,
            device: "eth0".into(),
            own: true,
            enabled: true,
            listeners: vec![listener],
            forwards: vec![forward],
            elastic: Some(elastic),
            masquerades: vec![masquerade],
            limits: vec![LimitState {
                uuid: "q".into(),
                number: 15,
                port: Some(80),
                inbound: Some(16),
                outbound: None,
            }],
        }
    }

    #[test]
    fn a_vip_of_ipv4_passes_as_it_is() {
        let any = vip();
        let passed = ipv4(any.clone()).unwrap();
        // They are of different types, which print alike.
        assert_eq!(format!("{passed:?}"), format!("{any:?}"));
    }

    #[test]
    fn any_address_of_ipv6_is_refused_and_named() {
        let six: IpAddr = "2001:db8::7".parse().unwrap();
        let network: IpNet = "2001:db8::/64".parse().unwrap();
        let changes: [(Change, &str); 6] = [
            (|vip, six, _| vip.address = six, "VIP vip has the address 2001:db8::7"),
            (|vip, six, _| vip.listeners[0].backends[0].address = six, "listener web has the address 2001:db8::7"),
            (|vip, six, _| vip.forwards[0].guest = six, "port-forwarding rule ssh has the address 2001:db8::7"),
            (|vip, _, net| vip.forwards[0].allowed = net, "port-forwarding rule ssh has the network 2001:db8::/64"),
            (|vip, six, _| vip.elastic.as_mut().unwrap().guest = six, "elastic IP eip has the address 2001:db8::7"),
            (|vip, _, net| vip.masquerades[0].network = net, "L3 network l3 has the network 2001:db8::/64"),
        ];
        for (change, expected) in changes {
            let mut vip = vip();
            change(&mut vip, six, network);
            let error = ipv4(vip).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("IPv4 alone"), "{error}");
        }
    }
}
