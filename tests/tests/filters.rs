//! Other filters and programs on the router's devices, before and after ours: all of them see what ours let pass.

use std::net::Ipv4Addr;

use anyhow::ensure;
use aya::programs::TcAttachType;
use serde_json::json;
use vipgate_tests::{
    both_hooks,
    lab::{
        Cloud, Controller, Lab, LabOptions, Namespace, Result,
        topology::{PUBLIC_DEVICE, PUBLIC_ROUTER},
    },
    packet::{Order, Watcher},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Bits per second.
const LIMIT: u64 = 16 << 20;
/// Packets of `Host::ping`.
const PINGS: u64 = 3;

/// Attaches other programs at these places, on both sides of the public device.
fn watch(router: &Namespace, orders: &[Order]) -> Result<Vec<Watcher>> {
    let sides = [TcAttachType::Ingress, TcAttachType::Egress];
    let places = sides.into_iter().flat_map(|side| orders.iter().map(move |order| (side, *order)));
    router.within(|| places.map(|(side, order)| Watcher::new(PUBLIC_DEVICE, side, order)).collect())
}

/// Each of the programs sees a host's pings.
fn see(watchers: &[Watcher], what: &str, ping: impl FnOnce() -> Result<()>) -> Result<()> {
    let seen = || watchers.iter().map(Watcher::seen).collect::<Result<Vec<_>>>();
    let before = seen()?;
    ping()?;
    for (watcher, (before, after)) in watchers.iter().zip(before.into_iter().zip(seen()?)) {
        ensure!(after >= before + PINGS, "{} sees {} of {what}", watcher.name, after - before);
    }
    Ok(())
}

both_hooks! {
    fn others_before_and_after_ours_see_what_is_not_ours_and_what_goes_up_the_stack(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        let client = lab.client();
        lab.router.run("tc", &format!("qdisc add dev {PUBLIC_DEVICE} clsact"))?;
        // Our filters have priority 86, our links are between the others.
        let mut watchers = watch(&lab.router, &[Order::First, Order::Filter(10), Order::Filter(200)])?;
        for mode in ["auto", "clsact"] {
            let controller = Controller::start_as(&lab, &["env", &format!("VIPGATE_TC={mode}")])?;
            if mode == "auto" {
                let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
                let vip = cloud.vip(VIP)?;
                cloud.elastic(&vip, 0)?;
                // Packets under a limit are handled by the TC stage behind XDP.
                let limit = json!({ "setVipQos": { "inboundBandwidth": LIMIT } });
                cloud.api.put(&format!("/vips/{vip}/actions"), &limit)?;
                watchers.extend(watch(&lab.router, &[Order::Last])?);
            }
            see(&watchers, &format!("what is not ours, {mode}"), || client.ping(PUBLIC_ROUTER, ""))?;
            see(&watchers, &format!("what the stack gets translated and answers, {mode}"), || {
                ensure!(client.ping(VIP, "-t 1").is_err(), "a packet whose TTL ends passes");
                Ok(())
            })?;
            client.ping(VIP, "")?;
            assert!(controller.stop()?.success());
        }
        Ok(())
    }
}
