//! The controller stops and starts: traffic is not affected, and no call is lost.

use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    ops::Range,
    process::ExitStatus,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use vipgate_tests::{
    both_hooks,
    lab::{
        Api, Cloud, Controller, ECHO, Lab, LabOptions, Listener, Load, Result, WEB, report, vipgate_binary, wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);

/// A lab whose controller the test stops and starts itself.
fn start(hook: vipgate_tests::lab::Hook) -> Result<(Lab, Controller, Cloud)> {
    let lab = Lab::new(LabOptions { hook, clients: 1, backends: 2 })?;
    let controller = lab.start_controller()?;
    let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
    Ok((lab, controller, cloud))
}

fn detach(lab: &Lab) -> Result<ExitStatus> {
    let mut command = lab.router.command(vipgate_binary()?);
    Ok(command.arg("detach").arg("--bpffs").arg(lab.bpffs.path()).status()?)
}

both_hooks! {
    fn a_restart_under_load_fails_no_request_and_breaks_no_connection(hook) {
        let (lab, controller, cloud) = start(hook)?;
        let (_, balancer) = cloud.load_balancer(VIP)?;
        let (web, echo) = (cloud.listener(&balancer, WEB)?, cloud.listener(&balancer, ECHO)?);
        cloud.add_backends(&web, &[0, 1])?;
        cloud.add_backends(&echo, &[0, 1])?;
        let mut session = lab.client().tcp(std::net::SocketAddrV4::new(VIP, ECHO.port))?;
        let origin = session.ask()?;
        let vip = std::net::SocketAddrV4::new(VIP, WEB.port);
        let load = Load::start(lab.client(), vip)?;
        load.wait_for(50)?;

        assert!(controller.stop()?.success());
        load.wait_for(50)?;
        assert_eq!(session.ask()?, origin);

        let controller = lab.start_controller()?;
        load.wait_for(50)?;
        assert_eq!(session.ask()?, origin);
        // The session and everything created in it outlived the restart.
        cloud.remove_backends(&web, &[0])?;
        let backends: Vec<String> = lab.client().fetch_many(vip, 6)?.into_iter().map(|origin| origin.backend).collect();
        assert!(backends.iter().all(|backend| backend == "backend2"), "{backends:?}");
        let report = load.stop()?;
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        drop(controller);
        Ok(())
    }

    fn a_controller_killed_during_calls_finishes_them_at_its_next_start(hook) {
        let (lab, mut controller, cloud) = start(hook)?;
        // Not round robin: two clients that alternate would each always get the same backend.
        let (_, listener, vip) = cloud.balanced(VIP, Listener { algorithm: "maglev", ..WEB }, &[0])?;
        let load = Load::start(lab.client(), vip)?;
        for round in 0..4_u32 {
            let path = format!("/load-balancers/listeners/{listener}/vm-instances/nics");
            let reply = if round % 2 == 0 {
                let body = json!({ "params": { "vmNicUuids": [cloud.vms[1].nic] } });
                cloud.api.send(reqwest::Method::POST, &path, Some(&body))?
            } else {
                let path = format!("{path}?vmNicUuids={}", cloud.vms[1].nic);
                cloud.api.send(reqwest::Method::DELETE, &path, None)?
            };
            assert_eq!(reply.status, 202, "{}", reply.text);
            controller.kill()?;
            load.wait_for(10)?;
            controller = lab.start_controller()?;
            let done = cloud.api.follow(&reply)?;
            assert_eq!(done.status, 200, "{}", done.text);
            let answering = lab.client().fetch_many(vip, 30)?;
            let second = answering.iter().any(|origin| origin.backend == "backend2");
            assert_eq!(second, round % 2 == 0, "round {round}: {answering:?}");
        }
        let report = load.stop()?;
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        drop(controller);
        Ok(())
    }

    fn a_detached_router_balances_nothing_and_the_next_start_restores_everything(hook) {
        let (lab, controller, cloud) = start(hook)?;
        let (_, _, vip) = cloud.balanced(VIP, WEB, &[0, 1])?;
        lab.client().fetch(vip)?;
        assert!(controller.stop()?.success());
        assert!(detach(&lab)?.success());
        assert!(lab.client().fetch(vip).is_err(), "a detached router balances");
        assert_eq!(std::fs::read_dir(lab.bpffs.path())?.count(), 0, "pins are left");
        let controller = lab.start_controller()?;
        lab.client().fetch(vip)?;
        drop(controller);
        Ok(())
    }

    fn detaching_twice_is_not_an_error(hook) {
        let (lab, controller, _) = start(hook)?;
        controller.kill()?;
        assert!(detach(&lab)?.success());
        assert!(detach(&lab)?.success());
        Ok(())
    }

    fn a_second_pin_directory_shares_nothing_with_the_first(hook) {
        let (first, controller, cloud) = start(hook)?;
        let (second, other, other_cloud) = start(hook)?;
        let (_, _, vip) = cloud.balanced(VIP, WEB, &[0])?;
        first.client().fetch(vip)?;
        assert!(second.client().fetch(vip).is_err());
        let (_, _, other_vip) = other_cloud.balanced(VIP, Listener { port: 81, ..WEB }, &[1])?;
        assert_eq!(second.client().fetch(other_vip)?.backend, "backend2");
        assert!(first.client().fetch(other_vip).is_err());
        drop((controller, other));
        Ok(())
    }
}

/// Creates listeners and deletes some of them until `stop` is set; ignores whether calls are answered, and how.
fn mutate(cloud: &Cloud, balancer: &str, ports: Range<u16>, stop: &AtomicBool) {
    for port in ports.cycle().take(5000) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(listener) = cloud.listener(balancer, Listener { port, ..WEB }) {
            let _ = cloud.add_backends(&listener, &[0, 1]);
            if port % 3 == 0 {
                let _ = cloud.api.delete(&format!("/load-balancers/listeners/{listener}"));
            }
        }
    }
}

fn kill_and_start(lab: &Lab, mut controller: Controller, times: usize) -> Result<Controller> {
    for _ in 0..times {
        // Not a wait for something: the kill happens at any time in this interval.
        std::thread::sleep(Duration::from_millis(300));
        controller.kill()?;
        controller = lab.start_controller()?;
    }
    Ok(controller)
}

#[test]
fn whenever_the_controller_is_killed_the_kernel_eventually_holds_what_is_stored() -> Result<()> {
    let (lab, controller, cloud) = start(vipgate_tests::lab::Hook::Tc)?;
    let (_, balancer) = cloud.load_balancer(VIP)?;
    let stop = AtomicBool::new(false);
    let controller = std::thread::scope(|scope| {
        for ports in [9000..9200, 9200..9400, 9400..9600] {
            scope.spawn(|| mutate(&cloud, &balancer, ports, &stop));
        }
        let survivor = kill_and_start(&lab, controller, 6);
        stop.store(true, Ordering::Relaxed);
        survivor
    })?;

    // Jobs that were accepted last may still run.
    let ports =
        |found: Vec<Value>, key: &str| found.iter().filter_map(|one| one[key].as_u64()).collect::<BTreeSet<_>>();
    wait_until("the kernel to hold what is stored", Duration::from_secs(30), || {
        let stored = ports(cloud.api.query("/load-balancers/listeners")?, "loadBalancerPort");
        let status = report(&lab, "status")?;
        let held = ports(status["services"].as_array().cloned().unwrap_or_default(), "port");
        anyhow::ensure!(stored == held, "stored {stored:?}, held {held:?}");
        anyhow::ensure!(stored.len() > 3, "too few calls succeeded to prove anything: {stored:?}");
        Ok(())
    })?;
    let active = cloud.api.query("/load-balancers/listeners")?;
    let active = active.iter().filter(|one| one["vmNicRefs"].as_array().is_some_and(|refs| refs.len() == 2));
    for port in active.filter_map(|one| u16::try_from(one["loadBalancerPort"].as_u64()?).ok()) {
        lab.client().fetch(std::net::SocketAddrV4::new(VIP, port))?;
    }
    drop(controller);
    Ok(())
}

#[test]
fn a_session_from_before_a_restart_is_still_valid_after_it() -> Result<()> {
    let (lab, controller, cloud) = start(vipgate_tests::lab::Hook::Tc)?;
    let session = cloud.api.session().unwrap_or_default().to_owned();
    controller.kill()?;
    let _controller = lab.start_controller()?;
    let api = Api::new(&lab.router, cloud.api.base())?.with_session(&session);
    assert_eq!(api.get(&format!("/accounts/sessions/{session}/valid"))?["valid"], true);
    assert_eq!(api.query("/zones")?.len(), 1);
    Ok(())
}
