//! Which hook a driver gets.

use super::*;

fn names(drivers: &[&str]) -> Vec<String> {
    drivers.iter().map(|driver| (*driver).to_owned()).collect()
}

#[test]
fn auto_takes_tc_where_native_xdp_costs_offloads_or_is_not_to_be_had() {
    for driver in ["veth", "virtio_net", "tun", "bridge", "macvlan", "802.1Q VLAN Support"] {
        assert_eq!(hook_for(Hook::Auto, &names(&[driver])), Hook::Tc, "{driver}");
    }
    for driver in ["ixgbe", "mlx5_core", "ena", ""] {
        assert_eq!(hook_for(Hook::Auto, &names(&[driver])), Hook::Xdp, "{driver}");
    }
}

#[test]
fn a_driver_that_loses_what_xdp_redirects_gets_no_xdp() {
    for driver in ["ixgbevf", "nfp", "nicvf", "mlx4_en"] {
        assert_eq!(hook_for(Hook::Auto, &names(&[driver])), Hook::Tc, "{driver}");
        assert!(why_not_xdp(&names(&["ixgbe", driver])).is_some(), "{driver}");
    }
    assert_eq!(why_not_xdp(&names(&["virtio_net"])), None);
}

#[test]
fn a_bond_is_judged_by_the_devices_in_it() {
    assert_eq!(hook_for(Hook::Auto, &names(&["i40e", "i40e"])), Hook::Xdp);
    assert_eq!(hook_for(Hook::Auto, &names(&["i40e", "virtio_net"])), Hook::Tc);
    assert_eq!(hook_for(Hook::Auto, &names(&["bonding"])), Hook::Tc);
}

#[test]
fn a_hook_that_is_asked_for_is_taken_and_said_to_be() {
    let veth = names(&["veth"]);
    for hook in [Hook::Xdp, Hook::XdpGeneric, Hook::Tc] {
        assert_eq!(hook_for(hook, &veth), hook);
        assert!(why(hook, hook, &veth).contains(hook.name()));
    }
    assert!(why(Hook::Auto, Hook::Tc, &veth).contains("segmentation"));
    assert!(why(Hook::Auto, Hook::Xdp, &names(&["mlx5_core"])).contains("none of those"));
    assert!(why(Hook::Auto, Hook::Tc, &names(&["mlx5_core"])).contains("not to be had"));
}

#[test]
fn a_hook_that_the_configuration_does_not_explain_is_said_to_come_of_another_setting() {
    let veth = names(&["veth"]);
    for (configured, hook) in [(Hook::Auto, Hook::Xdp), (Hook::Auto, Hook::XdpGeneric), (Hook::Xdp, Hook::Tc)] {
        let said = why(configured, hook, &veth);
        assert!(said.contains("another setting") && said.contains(configured.name()), "{said}");
    }
}
