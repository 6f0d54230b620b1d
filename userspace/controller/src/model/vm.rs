//! VM instances, as records, and their NICs, which are the targets of all services.
//!
//! The router runs no VMs. Creating one enters it with its NICs and their addresses; starting or stopping it changes whether
//! its NICs get new flows. Destroying a VM deletes its record at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use vipgate_api::{
    ApiError, Resource,
    common::{Delete, OfUuid},
    vm::CreateVmInstance,
};
use vipgate_state::Devices;

use super::{
    Caller, Outcome, Result,
    allocate::{Strategy, allocate, ipv4},
    resource::{self, New, found},
    tag,
};
use crate::store::{
    Tx, lb,
    network::{self, L3Network},
    number, vip,
    vm::{self, VmInstance, VmNic},
};

const TYPE: &str = "UserVm";
const RUNNING: &str = "Running";
const STOPPED: &str = "Stopped";
/// How many random MAC addresses are tried; out of 2^32, even a second try is improbable.
const MAC_TRIES: usize = 16;

pub(super) async fn create(tx: &mut Tx, caller: &Caller, devices: &dyn Devices, request: CreateVmInstance) -> Result {
    let kind = request.r#type.unwrap_or_else(|| TYPE.to_owned());
    if kind != TYPE {
        return Err(ApiError::invalid_argument(format!("field[type]: no VM type `{kind}`; the only one is {TYPE}")));
    }
    let networks = networks(tx, &request.l3_network_uuids, request.zone_uuid.as_deref()).await?;
    let default = request.default_l3_network_uuid.unwrap_or_else(|| networks[0].uuid.clone());
    if !request.l3_network_uuids.contains(&default) {
        return Err(ApiError::invalid_argument(format!(
            "field[defaultL3NetworkUuid]: {default} is not among l3NetworkUuids"
        )));
    }
    let mut options = NicOptions::parse(&request.system_tags, &request.l3_network_uuids)?;
    options.taken = devices.addresses();

    let new =
        New { resource: Resource::VmInstance, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register(tx, caller, new).await?;
    let instance = VmInstance {
        uuid,
        name: request.name,
        description: request.description,
        zone_uuid: networks[0].zone_uuid.clone(),
        cluster_uuid: request.cluster_uuid,
        host_uuid: request.host_uuid,
        image_uuid: request.image_uuid,
        instance_offering_uuid: request.instance_offering_uuid,
        default_l3_network_uuid: Some(default),
        kind,
        state: match request.strategy.as_deref() {
            None | Some("InstantStart") => RUNNING,
            Some(_) => STOPPED,
        }
        .to_owned(),
        internal_id: number::count(tx).await?,
    };
    vm::insert(tx, &instance).await?;
    for text in &request.system_tags {
        tag::insert(tx, Resource::VmInstance, &instance.uuid, text).await?;
    }
    for (device_id, network) in networks.iter().enumerate() {
        add_nic(tx, caller, &instance, network, device_id as u8, &options).await?;
    }
    Ok(Outcome::inventory(Resource::VmInstance, instance.uuid))
}

/// The networks of the VM's NICs, which must be distinct, in one zone, and not system networks.
async fn networks(tx: &mut Tx, uuids: &[String], zone: Option<&str>) -> Result<Vec<L3Network>> {
    if uuids.len() > usize::from(u8::MAX) {
        return Err(ApiError::invalid_argument("field[l3NetworkUuids]: a VM has at most 255 NICs"));
    }
    let mut networks = Vec::<L3Network>::with_capacity(uuids.len());
    for uuid in uuids {
        let refuse =
            |why: &str| ApiError::invalid_argument(format!("field[l3NetworkUuids]: L3 network[uuid:{uuid}] {why}"));
        let network = found(network::l3(tx, uuid).await?, "l3NetworkUuids", uuid, Resource::L3Network)?;
        if networks.iter().any(|other| other.uuid == network.uuid) {
            return Err(refuse("is named twice"));
        }
        if network.system {
            return Err(refuse("is a system network, which user VMs can't use"));
        }
        if zone.or(networks.first().map(|first| first.zone_uuid.as_str())).is_some_and(|zone| zone != network.zone_uuid)
        {
            return Err(refuse("is in another zone"));
        }
        networks.push(network);
    }
    if networks.is_empty() {
        return Err(ApiError::invalid_argument("field[l3NetworkUuids] is empty: a VM needs a network"));
    }
    Ok(networks)
}

/// Adds a NIC on the network to the VM.
async fn add_nic(
    tx: &mut Tx,
    caller: &Caller,
    instance: &VmInstance,
    network: &L3Network,
    device_id: u8,
    options: &NicOptions,
) -> Result<()> {
    let ranges = network::ranges_of(tx, &network.uuid).await?;
    let address = options.addresses.get(&network.uuid).copied();
    let allocated = allocate(tx, &network.uuid, ranges, Strategy::Random, address, &options.taken).await?;
    let new = New { resource: Resource::VmNic, uuid: None, user_tags: &[] };
    let wanted = options.macs.get(&network.uuid);
    let mut nic = VmNic {
        uuid: resource::register(tx, caller, new).await?,
        vm_instance_uuid: instance.uuid.clone(),
        used_ip_uuid: allocated.used_ip_uuid,
        l3_network_uuid: network.uuid.clone(),
        ip: allocated.ip.to_string(),
        mac: wanted.cloned().unwrap_or_else(|| random_mac(device_id)),
        netmask: allocated.range.netmask,
        gateway: allocated.range.gateway,
        internal_name: format!("vnic{}.{device_id}", instance.internal_id),
        device_id: i64::from(device_id),
    };
    for _ in 0..MAC_TRIES {
        if vm::insert_nic(tx, &nic).await? {
            return Ok(());
        }
        if wanted.is_some() {
            break;
        }
        nic.mac = random_mac(device_id);
    }
    Err(ApiError::operation(format!("MAC address {} is in use by another NIC", nic.mac)))
}

/// A MAC address like those of the real system: `fa`, four random bytes, the number of the NIC in its VM.
fn random_mac(device_id: u8) -> String {
    let [.., a, b, c, d] = uuid::Uuid::new_v4().into_bytes();
    format!("fa:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{device_id:02x}")
}

/// The addresses that the system tags request, by L3 network, and those that NICs can't have.
#[derive(Debug, Default, PartialEq, Eq)]
struct NicOptions {
    addresses: BTreeMap<String, IpAddr>,
    /// In lower case.
    macs: BTreeMap<String, String>,
    /// The router's own addresses, which no NIC can have.
    taken: BTreeSet<IpAddr>,
}

impl NicOptions {
    /// Parses `staticIp::<L3 uuid>::<address>` and `customMac::<L3 uuid>::<mac>`. Other tags are stored without effect.
    fn parse(tags: &[String], networks: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for tag in tags {
            let Some((name @ ("staticIp" | "customMac"), rest)) = tag.split_once("::") else { continue };
            let refuse = |why: &str| ApiError::invalid_argument(format!("invalid tag[{tag}]: {why}"));
            let (network, value) = rest
                .split_once("::")
                .ok_or_else(|| refuse(&format!("write {name}::<uuid of the L3 network>::<address>")))?;
            if !networks.iter().any(|uuid| uuid == network) {
                return Err(refuse("its L3 network is not among l3NetworkUuids"));
            }
            let again = if name == "staticIp" {
                let address = ipv4(value).ok_or_else(|| refuse(&format!("`{value}` is no IPv4 address")))?;
                options.addresses.insert(network.to_owned(), address).is_some()
            } else {
                let mac = unicast_mac(value).ok_or_else(|| {
                    refuse(&format!("`{value}` is no unicast MAC address, such as fa:4c:ee:9a:76:00"))
                })?;
                options.macs.insert(network.to_owned(), mac).is_some()
            };
            if again {
                return Err(refuse("the network has got such a tag already"));
            }
        }
        Ok(options)
    }
}

/// The address in lower case; `None` if it is no unicast address.
fn unicast_mac(text: &str) -> Option<String> {
    let parts: Vec<_> = text.split(':').collect();
    let sound = parts.len() == 6
        && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let first = sound.then(|| u8::from_str_radix(parts[0], 16).ok())??;
    let is_multicast = first & 1 != 0;
    let is_zero = parts.iter().all(|part| *part == "00");
    (!is_multicast && !is_zero).then(|| text.to_ascii_lowercase())
}

/// Its NICs are deleted with it: their addresses are free, and they are no backends any more.
pub(super) async fn destroy(tx: &mut Tx, request: &Delete) -> Result {
    resource::delete(tx, Resource::VmInstance, request).await
}

pub(super) async fn start(tx: &mut Tx, request: OfUuid) -> Result {
    set_state(tx, &request.uuid, RUNNING).await
}

pub(super) async fn stop(tx: &mut Tx, request: OfUuid) -> Result {
    set_state(tx, &request.uuid, STOPPED).await
}

/// Sets the state of the VM and of the backends that are its NICs. Does nothing if the VM has that state already.
async fn set_state(tx: &mut Tx, uuid: &str, state: &str) -> Result {
    let instance = found(vm::get(tx, uuid).await?, "uuid", uuid, Resource::VmInstance)?;
    let outcome = Outcome::inventory(Resource::VmInstance, uuid);
    if instance.state == state {
        return Ok(outcome);
    }
    vm::set_state(tx, uuid, state).await?;
    lb::follow_instance(tx, uuid, state == RUNNING).await?;
    Ok(outcome.touching(vip::touched_by(tx, uuid).await?))
}

pub(super) async fn nic(tx: &mut Tx, field: &str, uuid: &str) -> Result<VmNic> {
    found(vm::nic(tx, uuid).await?, field, uuid, Resource::VmNic)
}

pub(super) async fn is_running(tx: &mut Tx, nic: &VmNic) -> Result<bool> {
    Ok(vm::get(tx, &nic.vm_instance_uuid).await?.is_some_and(|instance| instance.state == RUNNING))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(tags: &[&str]) -> Result<NicOptions> {
        let tags: Vec<_> = tags.iter().map(|tag| (*tag).to_owned()).collect();
        NicOptions::parse(&tags, &["a".to_owned(), "b".to_owned()])
    }

    #[test]
    fn static_ip_and_custom_mac_are_wishes_for_one_network() {
        let options = parse(&["staticIp::a::10.0.0.7", "customMac::b::FA:4C:EE:9A:76:00", "hostname::web"]).unwrap();
        assert_eq!(options.addresses["a"], IpAddr::from([10, 0, 0, 7]));
        assert_eq!(options.macs["b"], "fa:4c:ee:9a:76:00");
    }

    #[test]
    fn bad_wishes_are_refused_and_named() {
        for tag in [
            "staticIp::a",
            "staticIp::c::10.0.0.7",
            "staticIp::a::10.0.0",
            "staticIp::a::fe80::1",
            "customMac::a::fa:4c:ee:9a:76",
            "customMac::a::fa:4c:ee:9a:76:00:00",
            "customMac::a::01:00:5e:00:00:01",
            "customMac::a::00:00:00:00:00:00",
            "customMac::a::fa:4c:ee:9a:76:+1",
        ] {
            let error = parse(&[tag]).unwrap_err();
            assert_eq!(error.code.as_str(), "SYS.1007");
            assert!(error.details.contains(tag), "{error}");
        }
    }

    #[test]
    fn one_network_gets_one_wish_of_a_kind() {
        let error = parse(&["staticIp::a::10.0.0.7", "staticIp::a::10.0.0.8"]).unwrap_err();
        assert!(error.details.contains("10.0.0.8"), "{error}");
    }

    #[test]
    fn made_macs_are_unicast_and_end_in_the_nics_place() {
        let mac = random_mac(3);
        assert!(mac.starts_with("fa:") && mac.ends_with(":03") && unicast_mac(&mac) == Some(mac.clone()), "{mac}");
    }
}
