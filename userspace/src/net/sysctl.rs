//! The kernel settings that managed devices and source NAT need.
//!
//! Those of devices are set for the managed ones only, so that the router's management device does not become a router's; and
//! for the device below a macvlan, which shares its link.
//! All stay when the controller ends, as the traffic does.

use std::{
    fs,
    path::{Path, PathBuf},
};

use vipgate_abi::source::OWN_PORTS;

use super::NetError;

const IPV4: &str = "/proc/sys/net/ipv4/conf";
const OWN_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Sets up a device:
/// - `forwarding`: packets that the programs hand to the stack are to be routed, and `bpf_fib_lookup` refuses without.
/// - `accept_local`: the answers of backends carry a VIP, an address of ours, as their source once they are translated;
///   those that go through the stack (no neighbour entry yet, larger than the MTU) would be dropped as martians.
/// - `rp_filter` loose instead of strict: the same answers come in by another device than the VIP's.
pub fn prepare(device: &str) -> Result<(), NetError> {
    raise(device, "forwarding", 1)?;
    raise(device, "accept_local", 1)?;
    // The larger of `all` and the device's own counts (ip-sysctl), and loose is the largest: it wins over strict.
    let strict = read("all", "rp_filter").max(read(device, "rp_filter")) == 1;
    if strict { write(device, "rp_filter", 2) } else { Ok(()) }
}

/// Has a device that shares its link with managed ones answer ARP requests for its own addresses alone: else it answers for
/// theirs, VIPs among them, and their packets come to a device without a program.
pub fn keep_to_own_addresses(device: &str) -> Result<(), NetError> {
    if answers_for_others(device) { write(device, "arp_ignore", 1) } else { Ok(()) }
}

/// Whether a device answers ARP requests for addresses of other devices.
pub fn answers_for_others(device: &str) -> bool {
    // The larger of `all` and the device's own counts (ip-sysctl).
    read("all", "arp_ignore").max(read(device, "arp_ignore")) == 0
}

/// Has the router's stack choose its own connections' ports among those that source NAT does not give to guests. A range
/// that lies within them stays as it is.
pub fn set_ports_aside() -> Result<(), NetError> {
    let range = fs::read_to_string(OWN_PORT_RANGE).unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|first| first.parse().ok());
    if first.is_some_and(|first: u16| first >= OWN_PORTS) {
        return Ok(());
    }
    set(Path::new(OWN_PORT_RANGE), format!("{OWN_PORTS} {}", u16::MAX))
}

/// Keeps IPv6 off a device that nobody shall talk to; a kernel without IPv6 has nothing to keep off.
pub fn disable_ipv6(device: &str) -> Result<(), NetError> {
    let path: PathBuf = ["/proc/sys/net/ipv6/conf", device, "disable_ipv6"].iter().collect();
    if path.exists() { set(&path, 1.to_string()) } else { Ok(()) }
}

fn raise(device: &str, name: &str, value: u32) -> Result<(), NetError> {
    if read(device, name) == value { Ok(()) } else { write(device, name, value) }
}

fn path(device: &str, name: &str) -> PathBuf {
    [IPV4, device, name].iter().collect()
}

/// A device's setting; of `all` those of all devices. 0 when it cannot be read: what cannot be read cannot be written either, and that is told.
pub fn read(device: &str, name: &str) -> u32 {
    fs::read_to_string(path(device, name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn write(device: &str, name: &str, value: u32) -> Result<(), NetError> {
    set(&path(device, name), value.to_string())
}

fn set(path: &Path, value: String) -> Result<(), NetError> {
    fs::write(path, &value).map_err(|source| NetError::Sysctl { path: path.display().to_string(), value, source })
}
