//! The records that the API needs before a VIP can balance: zone, networks, VMs. All are created by REST calls.

use super::{
    Api, Host, Lab, Result,
    host::{ECHO_PORT, HTTP_PORT},
    topology::{NETMASK, PRIVATE_DEVICE, PRIVATE_RANGE, PRIVATE_ROUTER, PUBLIC_DEVICE, PUBLIC_RANGE, PUBLIC_ROUTER},
};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddrV4};

#[derive(Clone, Debug)]
pub struct Cloud {
    pub api: Api,
    pub zone: String,
    pub public_l2: String,
    pub public_l3: String,
    pub private_l2: String,
    pub private_l3: String,
    /// The provider of all network services.
    pub provider: String,
    /// One for each backend of the lab, in the same order.
    pub vms: Vec<Vm>,
}

#[derive(Clone, Debug)]
pub struct Vm {
    pub uuid: String,
    pub nic: String,
}

/// A listener to create; everything else is the API's default.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    pub protocol: &'static str,
    pub port: u16,
    pub instance_port: u16,
    pub algorithm: &'static str,
    /// System tags besides the algorithm's.
    pub tags: &'static [&'static str],
}

/// The backends' web servers.
pub const WEB: Listener =
    Listener { protocol: "tcp", port: 80, instance_port: HTTP_PORT, algorithm: "roundrobin", tags: &[] };
/// The backends' echo service over TCP, for connections that stay open.
pub const ECHO: Listener =
    Listener { protocol: "tcp", port: 7001, instance_port: ECHO_PORT, algorithm: "roundrobin", tags: &[] };
/// The backends' echo service over UDP.
pub const UDP: Listener =
    Listener { protocol: "udp", port: 7002, instance_port: ECHO_PORT, algorithm: "roundrobin", tags: &[] };

/// Tags that direct a listener's health checks to the backends' web servers, for services that the checks would disturb.
pub const CHECKED_BY_WEB: &[&str] = &["healthCheckTarget::tcp:80"];

impl Cloud {
    /// Creates everything up to the VMs.
    pub fn new(lab: &Lab, api: Api) -> Result<Self> {
        let zone = uuid(&api.create("/zones", &json!({ "name": "zone" }))?)?;
        let (public_l2, public_l3) =
            network(&api, &zone, "public", "Public", PUBLIC_DEVICE, PUBLIC_RANGE, PUBLIC_ROUTER)?;
        let (private_l2, private_l3) =
            network(&api, &zone, "private", "Private", PRIVATE_DEVICE, PRIVATE_RANGE, PRIVATE_ROUTER)?;
        let provider = api.query("/network-services/providers?q=type=vrouter")?;
        let provider = uuid(provider.first().context("the provider vrouter is always there")?)?;
        let vms = lab.backends.iter().map(|backend| vm(&api, &private_l3, backend)).collect::<Result<_>>()?;
        let cloud = Self { api, zone, public_l2, public_l3, private_l2, private_l3, provider, vms };
        cloud.attach_services(&["LoadBalancer", "PortForwarding", "Eip"])?;
        Ok(cloud)
    }

    /// Attaches these services to the private network.
    pub fn attach_services(&self, services: &[&str]) -> Result<Value> {
        let services = json!({ "networkServices": { &self.provider: services } });
        self.api.create(&format!("/l3-networks/{}/network-services", self.private_l3), &services)
    }

    /// Detaches a service from the private network.
    pub fn detach_service(&self, service: &str) -> Result<Value> {
        let (network, provider) = (&self.private_l3, &self.provider);
        self.api.delete(&format!("/l3-networks/{network}/network-services?networkServices.{provider}={service}"))
    }

    /// Creates a VIP with this address and a load balancer on it; returns their uuids.
    pub fn load_balancer(&self, address: Ipv4Addr) -> Result<(String, String)> {
        let vip = self.vip(address)?;
        let balancer = self.api.create("/load-balancers", &json!({ "name": "balancer", "vipUuid": vip }))?;
        Ok((vip, uuid(&balancer)?))
    }

    pub fn vip(&self, address: Ipv4Addr) -> Result<String> {
        let parameters =
            json!({ "name": format!("vip {address}"), "l3NetworkUuid": self.public_l3, "requiredIp": address });
        uuid(&self.api.create("/vips", &parameters)?)
    }

    /// Creates a listener without backends; returns its uuid.
    pub fn listener(&self, balancer: &str, listener: Listener) -> Result<String> {
        let algorithm = format!("balancerAlgorithm::{}", listener.algorithm);
        let tags: Vec<&str> = listener.tags.iter().copied().chain([algorithm.as_str()]).collect();
        let body = json!({
            "params": {
                "name": format!("{} {}", listener.protocol, listener.port),
                "protocol": listener.protocol,
                "loadBalancerPort": listener.port,
                "instancePort": listener.instance_port,
            },
            "systemTags": tags,
        });
        uuid(&self.api.post(&format!("/load-balancers/{balancer}/listeners"), &body)?["inventory"])
    }

    /// Adds the VMs with these indexes (from 0) to the listener as backends.
    pub fn add_backends(&self, listener: &str, vms: &[usize]) -> Result<Value> {
        let nics: Vec<&str> = vms.iter().map(|vm| self.vms[*vm].nic.as_str()).collect();
        let path = format!("/load-balancers/listeners/{listener}/vm-instances/nics");
        self.api.create(&path, &json!({ "vmNicUuids": nics }))
    }

    /// Removes the VMs with these indexes (from 0) from the listener.
    pub fn remove_backends(&self, listener: &str, vms: &[usize]) -> Result<Value> {
        let nics: Vec<String> = vms.iter().map(|vm| format!("vmNicUuids={}", self.vms[*vm].nic)).collect();
        self.api.delete(&format!("/load-balancers/listeners/{listener}/vm-instances/nics?{}", nics.join("&")))
    }

    /// Changes a setting of the listener: updates its tag of the same name to `name::value`.
    pub fn change_tag(&self, listener: &str, tag: &str) -> Result<Value> {
        let (name, _) = tag.rsplit_once("::").with_context(|| format!("no tag is `{tag}`"))?;
        let found = self.api.query(&format!("/system-tags?q=resourceUuid={listener}&q=tag~={name}%25"))?;
        let uuid = uuid(found.first().with_context(|| format!("the listener has no tag {name}"))?)?;
        self.api.put(&format!("/system-tags/{uuid}/actions"), &json!({ "updateSystemTag": { "tag": tag } }))
    }

    /// The status of the VM's reference on the listener.
    pub fn status(&self, listener: &str, vm: usize) -> Result<String> {
        let found = self.api.query(&format!("/load-balancers/listeners/{listener}"))?;
        let refs = found.first().and_then(|listener| listener["vmNicRefs"].as_array());
        let of_vm = |one: &&Value| one["vmNicUuid"] == self.vms[vm].nic.as_str();
        let status = refs.into_iter().flatten().find(of_vm).and_then(|one| one["status"].as_str());
        status.map(str::to_owned).with_context(|| format!("VM {vm} is not on the listener: {found:?}"))
    }

    /// Creates a port forwarding rule (`TCP` or `UDP`) from ports of the VIP to ports of the VM; returns its uuid.
    pub fn forward(&self, vip: &str, protocol: &str, ports: [u16; 2], private: [u16; 2], vm: usize) -> Result<String> {
        let rule = json!({
            "name": format!("{protocol} {}", ports[0]), "vipUuid": vip, "protocolType": protocol, "vmNicUuid": self.vms[vm].nic,
            "vipPortStart": ports[0], "vipPortEnd": ports[1],
            "privatePortStart": private[0], "privatePortEnd": private[1],
        });
        uuid(&self.api.create("/port-forwarding", &rule)?)
    }

    /// Sends a rule the state event `enable` or `disable`.
    pub fn change_rule_state(&self, rule: &str, event: &str) -> Result<Value> {
        let body = json!({ "changePortForwardingRuleState": { "stateEvent": event } });
        self.api.put(&format!("/port-forwarding/{rule}/actions"), &body)
    }

    /// Creates an elastic IP that maps the VIP to the VM; returns its uuid.
    pub fn elastic(&self, vip: &str, vm: usize) -> Result<String> {
        let body = json!({ "name": "eip", "vipUuid": vip, "vmNicUuid": self.vms[vm].nic });
        uuid(&self.api.create("/eips", &body)?)
    }

    pub fn attach_eip(&self, eip: &str, vm: usize) -> Result<Value> {
        self.api.create(&format!("/eips/{eip}/vm-instances/nics/{}", self.vms[vm].nic), &json!({}))
    }

    pub fn detach_eip(&self, eip: &str) -> Result<Value> {
        self.api.delete(&format!("/eips/{eip}/vm-instances/nics"))
    }

    /// Sends an elastic IP the state event `enable` or `disable`.
    pub fn change_eip_state(&self, eip: &str, event: &str) -> Result<Value> {
        let body = json!({ "changeEipState": { "stateEvent": event } });
        self.api.put(&format!("/eips/{eip}/actions"), &body)
    }

    /// Sends a VIP the state event `enable` or `disable`.
    pub fn change_vip_state(&self, vip: &str, event: &str) -> Result<Value> {
        let body = json!({ "changeVipState": { "stateEvent": event } });
        self.api.put(&format!("/vips/{vip}/actions"), &body)
    }

    /// Starts or stops a VM: `verb` is `start` or `stop`.
    pub fn change_vm(&self, vm: usize, verb: &str) -> Result<Value> {
        let action = format!("{verb}VmInstance");
        self.api.put(&format!("/vm-instances/{}/actions", self.vms[vm].uuid), &json!({ action: {} }))
    }

    /// Creates a VIP, a load balancer and one listener with these backends; returns (VIP's uuid, listener's uuid, its address).
    pub fn balanced(
        &self,
        address: Ipv4Addr,
        listener: Listener,
        vms: &[usize],
    ) -> Result<(String, String, SocketAddrV4)> {
        let (vip, balancer) = self.load_balancer(address)?;
        let uuid = self.listener(&balancer, listener)?;
        if !vms.is_empty() {
            self.add_backends(&uuid, vms)?;
        }
        Ok((vip, uuid, SocketAddrV4::new(address, listener.port)))
    }

    /// Creates a load balancer with a listener of each kind, each with the first two VMs.
    pub fn balanced_everywhere(&self, address: Ipv4Addr) -> Result<()> {
        let (_, balancer) = self.load_balancer(address)?;
        for listener in [WEB, ECHO, UDP] {
            let uuid = self.listener(&balancer, listener)?;
            self.add_backends(&uuid, &[0, 1])?;
        }
        Ok(())
    }
}

/// The `uuid` of an inventory.
pub fn uuid(inventory: &Value) -> Result<String> {
    inventory["uuid"].as_str().map(str::to_owned).with_context(|| format!("no uuid in {inventory}"))
}

fn network(
    api: &Api,
    zone: &str,
    name: &str,
    category: &str,
    device: &str,
    [start, end]: [Ipv4Addr; 2],
    gateway: Ipv4Addr,
) -> Result<(String, String)> {
    let l2 = json!({ "name": name, "zoneUuid": zone, "physicalInterface": device });
    let l2 = uuid(&api.create("/l2-networks/no-vlan", &l2)?)?;
    let l3 = json!({ "name": name, "l2NetworkUuid": l2, "category": category });
    let l3 = uuid(&api.create("/l3-networks", &l3)?)?;
    let range = json!({ "name": name, "startIp": start, "endIp": end, "netmask": NETMASK, "gateway": gateway });
    api.create(&format!("/l3-networks/{l3}/ip-ranges"), &range)?;
    Ok((l2, l3))
}

/// Creates a VM record with the address and MAC of the backend's namespace.
fn vm(api: &Api, l3: &str, backend: &Host) -> Result<Vm> {
    let body = json!({
        "params": { "name": backend.name, "l3NetworkUuids": [l3] },
        "systemTags": [
            format!("staticIp::{l3}::{}", backend.address),
            format!("customMac::{l3}::{}", backend.mac),
        ],
    });
    let vm = &api.post("/vm-instances", &body)?["inventory"];
    Ok(Vm { uuid: uuid(vm)?, nic: uuid(&vm["vmNics"][0])? })
}
