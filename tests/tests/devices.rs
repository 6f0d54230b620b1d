//! Devices of a router other than network cards: those on top of another device.

use anyhow::ensure;
use serde_json::Value;
use std::net::Ipv4Addr;
use vipgate_tests::lab::{
    Cloud, Hook, Lab, LabOptions, Result, WEB,
    topology::{PRIVATE_DEVICE, PRIVATE_ROUTER, PUBLIC_DEVICE, PUBLIC_ROUTER},
    vipgate_binary,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);

/// Replaces the router's device by one of another kind on top of it.
fn cover(lab: &Lab, device: &str, address: Ipv4Addr, kind: &str) -> Result<()> {
    let router = &lab.router;
    router.ip(&format!("link set {device} down"))?;
    router.ip(&format!("address flush dev {device}"))?;
    router.ip(&format!("link set {device} name below-{device}"))?;
    match kind {
        "bridge" => {
            router.ip(&format!("link add {device} type bridge"))?;
            router.ip(&format!("link set below-{device} master {device}"))?;
        }
        kind => drop(router.ip(&format!("link add {device} link below-{device} type {kind}"))?),
    }
    router.ip(&format!("link set below-{device} up"))?;
    router.ip(&format!("address add {address}/24 dev {device}"))?;
    router.ip(&format!("link set {device} up"))?;
    Ok(())
}

/// A balancer works on a router whose devices are of this kind, and doctor finds no problem.
fn serves_on(kind: &str, driver: &str) -> Result<()> {
    for hook in [Hook::Tc, Hook::Auto] {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 2 })?;
        cover(&lab, PUBLIC_DEVICE, PUBLIC_ROUTER, kind)?;
        cover(&lab, PRIVATE_DEVICE, PRIVATE_ROUTER, kind)?;
        let controller = lab.start_controller()?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let (_, listener, vip) = cloud.balanced(VIP, WEB, &[0])?;
        lab.client().fetch_many(vip, 10)?;
        cloud.add_backends(&listener, &[1])?;
        lab.client().fetch_many(vip, 10)?;
        let mut doctor = lab.router.command(vipgate_binary()?);
        doctor.args(["doctor", "--output", "json", "--hook", &hook.to_string(), "--bpffs"]).arg(lab.bpffs.path());
        let report: Value = serde_json::from_slice(&doctor.output()?.stdout)?;
        let devices = report["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(devices.len() == 2, "{report}");
        ensure!(devices.iter().all(|device| device["hook"] == "tc" && device["driver"] == driver), "{report}");
        let findings = report["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(findings.iter().all(|finding| finding["device"].is_null()), "{report}");
        drop(controller);
    }
    Ok(())
}

#[test]
fn a_router_serves_on_bridges() -> Result<()> {
    serves_on("bridge", "bridge")
}

#[test]
fn a_router_serves_on_macvlan_devices() -> Result<()> {
    serves_on("macvlan", "macvlan")
}

#[test]
fn a_network_on_a_device_without_xdp_is_refused_where_the_hook_is_xdp() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Xdp, clients: 1, backends: 1 })?;
    cover(&lab, PUBLIC_DEVICE, PUBLIC_ROUTER, "bridge")?;
    let controller = lab.start_controller()?;
    let Err(error) = Cloud::new(&lab, controller.api(&lab.router)?) else { anyhow::bail!("a bridge got XDP") };
    let text = format!("{error:#}");
    ensure!(text.contains("the driver of pub0 cannot run XDP programs"), "{text}");
    Ok(())
}
