//! TC programs as filters of clsact, which kernels before 6.6 need: a whole router, with traffic.

use anyhow::ensure;
use serde_json::json;
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use vipgate_tests::{
    both_hooks,
    lab::{Cloud, Controller, ECHO, Hook, Lab, LabOptions, Load, Result, WEB, vipgate_binary, wait_until},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Bits per second.
const LIMIT: u64 = 16 << 20;
/// Time to restore what somebody removed, on a machine busy with other tests.
const BACK: Duration = Duration::from_secs(60);

fn start(lab: &Lab) -> Result<Controller> {
    Controller::start_as(lab, &["env", "VIPGATE_TC=clsact"])
}

/// The output of `tc` for a device's filters and disciplines.
fn about(lab: &Lab, device: &str) -> Result<String> {
    let tc = |words: &str| lab.router.run("tc", words);
    let mut about = tc(&format!("qdisc show dev {device}"))?;
    if about.contains("clsact") {
        for side in ["ingress", "egress"] {
            about += &tc(&format!("filter show dev {device} {side}"))?;
        }
    }
    Ok(about)
}

/// A controller whose VIP has a balancer and limits, and so their queue.
fn start_limited(lab: &Lab) -> Result<Controller> {
    let controller = start(lab)?;
    let cloud = Cloud::new(lab, controller.api(&lab.router)?)?;
    let (uuid, balancer) = cloud.load_balancer(VIP)?;
    let listener = cloud.listener(&balancer, WEB)?;
    cloud.add_backends(&listener, &[0])?;
    let limit = json!({ "setVipQos": { "inboundBandwidth": LIMIT, "outboundBandwidth": LIMIT } });
    cloud.api.put(&format!("/vips/{uuid}/actions"), &limit)?;
    Ok(controller)
}

both_hooks! {
    fn a_router_with_filters_serves_and_a_restart_under_load_fails_no_request(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 2 })?;
        let controller = start(&lab)?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let (_, balancer) = cloud.load_balancer(VIP)?;
        for listener in [WEB, ECHO] {
            let listener = cloud.listener(&balancer, listener)?;
            cloud.add_backends(&listener, &[0, 1])?;
        }
        let ingress = if hook == Hook::Tc { "vipgate_tc" } else { "vipgate_behind" };
        for device in ["pub0", "priv0"] {
            let about = about(&lab, device)?;
            ensure!(about.contains(ingress) && about.contains("vipgate_egress"), "{about}");
        }
        let mut session = lab.client().tcp(SocketAddrV4::new(VIP, ECHO.port))?;
        let origin = session.ask()?;
        let load = Load::start(lab.client(), SocketAddrV4::new(VIP, WEB.port))?;
        let mut controller = controller;
        for _ in 0..3 {
            load.wait_for(50)?;
            assert!(controller.stop()?.success());
            load.wait_for(50)?;
            controller = start(&lab)?;
            assert_eq!(session.ask()?, origin);
        }
        let report = load.stop()?;
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        drop(controller);
        Ok(())
    }

    fn a_limit_has_its_queue_and_detach_leaves_only_filters_of_others(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        lab.router.run("tc", "qdisc add dev priv0 clsact")?;
        lab.router.run("tc", "filter add dev priv0 egress pref 200 protocol all u32 match u32 0 0 flowid 1:1")?;
        let controller = start_limited(&lab)?;
        ensure!(about(&lab, "vipgate-q0-end")?.contains("vipgate_queue"));
        let vip = SocketAddrV4::new(VIP, WEB.port);
        lab.client().fetch_many(vip, 10)?;
        assert!(controller.stop()?.success());
        let mut detach = lab.router.command(vipgate_binary()?);
        assert!(detach.arg("detach").arg("--bpffs").arg(lab.bpffs.path()).status()?.success());
        assert!(lab.client().fetch(vip).is_err(), "a detached router balances");
        assert_eq!(std::fs::read_dir(lab.bpffs.path())?.count(), 0, "pins are left");
        ensure!(!about(&lab, "pub0")?.contains("clsact"));
        let kept = about(&lab, "priv0")?;
        ensure!(kept.contains("u32") && !kept.contains("vipgate"), "{kept}");
        Ok(())
    }

    fn from_another_namespace_detach_is_refused_unless_forced(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        let controller = start(&lab)?;
        Cloud::new(&lab, controller.api(&lab.router)?)?.balanced(VIP, WEB, &[0])?;
        assert!(controller.stop()?.success());
        // The tests' own namespace is not the router's.
        let detach = |more: &[&str]| {
            let mut command = std::process::Command::new(vipgate_binary()?);
            anyhow::Ok(command.arg("detach").arg("--bpffs").arg(lab.bpffs.path()).args(more).output()?)
        };
        let refused = detach(&[])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(6) && said.contains("nsenter --net="), "{said}");
        let about = about(&lab, "pub0")?;
        ensure!(about.contains("vipgate_egress"), "{about}");
        let remedy = said.split('`').nth(1).unwrap_or_default();
        let mut words = remedy.split_whitespace().filter(|word| *word != "vipgate" && *word != "detach");
        let mut mend = std::process::Command::new(words.next().unwrap_or_default());
        let mended = mend.args(words).arg(vipgate_binary()?).arg("detach").arg("--bpffs").arg(lab.bpffs.path()).status()?;
        ensure!(mended.success(), "{remedy}");
        ensure!(!self::about(&lab, "pub0")?.contains("clsact"));
        assert!(start(&lab)?.stop()?.success());
        ensure!(detach(&["--force"])?.status.success());
        assert_eq!(std::fs::read_dir(lab.bpffs.path())?.count(), 0, "pins are left");
        Ok(())
    }

    fn filters_that_somebody_removes_are_restored_by_the_running_controller_and_logged_once(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        let controller = start_limited(&lab)?;
        let ingress = if hook == Hook::Tc { "vipgate_tc" } else { "vipgate_behind" };
        let wanted = [("pub0", ingress), ("pub0", "vipgate_egress"), ("priv0", ingress), ("vipgate-q0-end", "vipgate_queue")];
        lab.router.run("tc", "qdisc del dev pub0 clsact")?;
        lab.router.run("tc", "filter del dev priv0 ingress")?;
        lab.router.run("tc", "qdisc del dev vipgate-q0-end clsact")?;
        wait_until("the filters to be back", BACK, || {
            for (device, program) in wanted {
                let about = about(&lab, device)?;
                ensure!(about.contains(program), "{device}: {about}");
            }
            Ok(())
        })?;
        lab.client().fetch_many(SocketAddrV4::new(VIP, WEB.port), 10)?;
        let said = controller.said();
        for (device, program) in wanted {
            let told = |line: &&str| line.contains("WARN") && line.contains(device) && line.contains(program);
            ensure!(said.lines().filter(told).count() == 1, "{device}, {program}: {said}");
        }
        assert!(controller.stop()?.success());
        let mut detach = lab.router.command(vipgate_binary()?);
        assert!(detach.arg("detach").arg("--bpffs").arg(lab.bpffs.path()).status()?.success());
        ensure!(!about(&lab, "pub0")?.contains("clsact"));
        Ok(())
    }

    fn a_controller_that_may_not_inspect_programs_of_others_knows_its_own_filters(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        // The privileges of the systemd unit.
        let wrapper = ["setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin,+net_raw", "env", "VIPGATE_TC=clsact"];
        let mut controller = Controller::start_as(&lab, &wrapper)?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let (_, _, vip) = cloud.balanced(VIP, WEB, &[0])?;
        let ingress = if hook == Hook::Tc { "vipgate_tc" } else { "vipgate_behind" };
        for _ in 0..2 {
            controller.kill()?;
            controller = Controller::start_as(&lab, &wrapper)?;
            let about = about(&lab, "pub0")?;
            ensure!(about.contains(ingress) && about.contains("vipgate_egress"), "{about}");
            lab.client().fetch(vip)?;
        }
        ensure!(!controller.said().contains("trying again"), "{}", controller.said());
        Ok(())
    }
}
