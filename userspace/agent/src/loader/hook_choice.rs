//! What `auto` takes on a device, and why: TC where native XDP costs more than it gains, or where there is none.

use super::Hook;

/// Drivers, by ethtool's names, on which `auto` takes TC, and why. On all others it takes native XDP, if they have it.
const TC: [(&str, &str); 10] = [
    ("veth", "native XDP turns segmentation offload off at its other end, and needs checksums that veth leaves undone"),
    ("virtio_net", "native XDP turns segmentation and checksum offload of what the hypervisor sends off"),
    ("tun", "native XDP takes copies of large packets, and needs checksums that tun and tap leave undone"),
    ("bonding", "it has no device yet whose driver could say what native XDP costs"),
    ("bridge", "bridges have no native XDP"),
    ("802.1Q VLAN Support", "VLAN devices have no native XDP"),
    ("macvlan", "macvlan devices have no native XDP"),
    ("ipvlan", "ipvlan devices have no native XDP"),
    ("vxlan", "VXLAN devices have no native XDP"),
    ("team", "teams have no native XDP"),
];

/// Drivers on which native XDP would lose what it carries, though the program attaches, and why: `auto` takes TC there, too.
const LOSSY: [(&str, &str); 4] = [
    ("ixgbevf", NO_REDIRECT),
    ("nfp", NO_REDIRECT),
    ("nicvf", NO_REDIRECT),
    ("mlx4_en", "its driver takes no frames that XDP redirects to it"),
];

const NO_REDIRECT: &str = "its driver drops what native XDP redirects to other devices";

/// Why native XDP on a device of these drivers would lose what it carries.
pub(super) fn why_not_xdp(drivers: &[String]) -> Option<&'static str> {
    why_in(&LOSSY, drivers)
}

/// Why `auto` takes TC on a device of these drivers: its own, or those of the devices that are bonded to it. `None` if it takes
/// native XDP where it can be had.
pub fn why_tc(drivers: &[String]) -> Option<&'static str> {
    why_not_xdp(drivers).or_else(|| why_in(&TC, drivers))
}

fn why_in(table: &[(&str, &'static str)], drivers: &[String]) -> Option<&'static str> {
    drivers.iter().find_map(|driver| table.iter().find(|(known, _)| known == driver)).map(|(_, why)| *why)
}

/// The hook that a device of these drivers is to get.
pub fn hook_for(configured: Hook, drivers: &[String]) -> Hook {
    match configured {
        Hook::Auto if why_tc(drivers).is_some() => Hook::Tc,
        Hook::Auto => Hook::Xdp,
        hook => hook,
    }
}

/// Why a device of these drivers has, or is to get, this hook, as far as `configured` tells: the setting of the controller that
/// chose it, or, where none runs, that of a configuration which may be another one.
pub fn why(configured: Hook, hook: Hook, drivers: &[String]) -> String {
    match (configured, hook) {
        (Hook::Auto, Hook::Tc) => why_tc(drivers).map_or_else(
            || {
                "native XDP was not to be had when it was set up: the driver has none, another program was there, the kernel \
                 refused ours, or another hook was set"
                    .to_owned()
            },
            str::to_owned,
        ),
        (Hook::Auto, Hook::Xdp) if why_tc(drivers).is_none() => {
            "its driver is none of those that are known to lose offloads or packets under native XDP".to_owned()
        }
        _ if configured == hook => format!("the configuration says so: hook = \"{hook}\""),
        _ => format!("it was set up under another setting than hook = \"{configured}\", which `serve` would follow now"),
    }
}

#[cfg(test)]
mod tests;
