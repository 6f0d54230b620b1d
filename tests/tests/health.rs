//! Health checks: what happens to traffic and to the API's status when a backend stops answering and comes back.

use anyhow::Context as _;
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use vipgate_tests::{
    both_hooks,
    lab::{
        ECHO, Host, Listener, Result, Running, UDP, WEB, report,
        topology::{PRIVATE_DEVICE, PRIVATE_ROUTER},
        wait_for_resets, wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Far longer than the tests' checks need.
const PATIENCE: Duration = Duration::from_secs(30);
/// Checks every second; two equal results in a row change the status.
const FAST: &[&str] = &["healthCheckInterval::1", "healthCheckTimeout::1"];
/// The same checks, of the backends' web servers whatever the listener serves: they can be stopped while other services go on.
const FAST_OF_WEB: &[&str] = &["healthCheckInterval::1", "healthCheckTimeout::1", "healthCheckTarget::tcp:80"];

fn wait_for_status(run: &Running, listener: &str, vm: usize, status: &str) -> Result<()> {
    wait_until(&format!("VM {vm} to be {status}"), PATIENCE, || {
        let found = run.cloud.status(listener, vm)?;
        anyhow::ensure!(found == status, "it is {found}");
        Ok(())
    })
}

/// New connections all reach this backend.
fn assert_all_reach(client: &Host, vip: SocketAddrV4, backend: &str) -> Result<()> {
    for origin in client.fetch_many(vip, 20)? {
        assert_eq!(origin.backend, backend);
    }
    Ok(())
}

both_hooks! {
    fn a_backend_that_stops_answering_is_left_out_until_it_answers_again(hook) {
        let mut run = Running::new(hook, 1, 2)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, Listener { tags: FAST, ..WEB }, &[0, 1])?;
        assert_eq!(run.cloud.status(&listener, 0)?, "Active");
        run.lab.backends[0].stop_web();
        wait_for_status(&run, &listener, 0, "Inactive")?;
        // The status is written first, and the selection table follows at once.
        wait_until("the selection table to follow", PATIENCE, || assert_or_err(run.lab.client(), vip, "backend2"))?;
        assert_all_reach(run.lab.client(), vip, "backend2")?;
        assert_eq!(run.cloud.status(&listener, 1)?, "Active");

        let directory = run.lab.directory().to_owned();
        run.lab.backends[0].start_web(&directory)?;
        wait_for_status(&run, &listener, 0, "Active")?;
        let seen: std::collections::BTreeSet<_> =
            run.lab.client().fetch_many(vip, 20)?.into_iter().map(|origin| origin.backend).collect();
        assert_eq!(seen.len(), 2, "{seen:?}");
        Ok(())
    }

    fn an_unhealthy_backends_connections_are_reset_and_its_datagrams_go_elsewhere(hook) {
        let mut run = Running::new(hook, 1, 2)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        let tcp = run.cloud.listener(&balancer, Listener { tags: FAST_OF_WEB, ..ECHO })?;
        let udp = run.cloud.listener(&balancer, Listener { tags: FAST_OF_WEB, ..UDP })?;
        run.cloud.add_backends(&tcp, &[0])?;
        run.cloud.add_backends(&udp, &[0])?;
        let mut connection = run.lab.client().tcp(SocketAddrV4::new(VIP, ECHO.port))?;
        let mut silent = run.lab.client().tcp(SocketAddrV4::new(VIP, ECHO.port))?;
        let mut datagrams = run.lab.client().udp(SocketAddrV4::new(VIP, UDP.port))?;
        assert_eq!((connection.ask()?.backend, silent.ask()?.backend), ("backend1".into(), "backend1".into()));
        assert_eq!(datagrams.ask()?.backend, "backend1");
        run.cloud.add_backends(&tcp, &[1])?;
        run.cloud.add_backends(&udp, &[1])?;

        run.lab.backends[0].stop_web();
        wait_for_status(&run, &tcp, 0, "Inactive")?;
        wait_for_status(&run, &udp, 0, "Inactive")?;
        // The echo services still answer: it is the router that ends their flows.
        wait_until("the datagrams to go elsewhere", PATIENCE, || {
            let origin = datagrams.ask()?;
            anyhow::ensure!(origin.backend == "backend2", "they reach {}", origin.backend);
            Ok(())
        })?;
        wait_until("the connection to be reset", PATIENCE, || {
            let Err(error) = connection.ask() else { anyhow::bail!("it goes on") };
            let reset = error.chain().any(|cause| cause.to_string().contains("reset"));
            assert!(reset, "{error:#}");
            Ok(())
        })?;
        wait_for_resets([(run.lab.client(), VIP), (&run.lab.backends[0], run.lab.client().address)])?;
        silent.wait_for_reset()?;
        assert_eq!(run.lab.client().tcp(SocketAddrV4::new(VIP, ECHO.port))?.ask()?.backend, "backend2");
        Ok(())
    }

    fn without_a_healthy_backend_the_router_refuses_clients_at_once(hook) {
        let mut run = Running::new(hook, 1, 1)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, Listener { tags: FAST, ..WEB }, &[0])?;
        run.lab.backends[0].stop_web();
        wait_for_status(&run, &listener, 0, "Inactive")?;
        let directory = run.lab.directory().to_owned();
        // The backend answers again but is not checked yet, so the router still refuses.
        run.cloud.change_tag(&listener, "healthyThreshold::1000")?;
        run.lab.backends[0].start_web(&directory)?;
        wait_until("the selection table to follow", PATIENCE, || {
            let Err(error) = run.lab.client().tcp(vip) else { anyhow::bail!("the connection is accepted") };
            anyhow::ensure!(format!("{error:#}").contains("refused"), "{error:#}");
            Ok(())
        })?;
        run.cloud.change_tag(&listener, "healthyThreshold::1")?;
        wait_for_status(&run, &listener, 0, "Active")?;
        assert_all_reach(run.lab.client(), vip, "backend1")
    }

    fn changed_tags_of_the_checks_apply_at_once(hook) {
        let run = Running::new(hook, 1, 2)?;
        // The first check would come within an hour.
        let slow = &["healthCheckInterval::3600", "healthCheckTimeout::1", "unhealthyThreshold::1"];
        let (_, listener, vip) = run.cloud.balanced(VIP, Listener { tags: slow, ..UDP }, &[0, 1])?;
        // Nothing listens there, so the backends' kernels refuse.
        run.cloud.change_tag(&listener, "healthCheckTarget::udp:9")?;
        run.cloud.change_tag(&listener, "healthCheckInterval::1")?;
        wait_for_status(&run, &listener, 0, "Inactive")?;
        wait_for_status(&run, &listener, 1, "Inactive")?;
        run.cloud.change_tag(&listener, "healthCheckTarget::udp:default")?;
        wait_for_status(&run, &listener, 0, "Active")?;
        wait_for_status(&run, &listener, 1, "Active")?;
        run.lab.client().ask_udp(vip)?;
        Ok(())
    }

    fn a_host_that_is_gone_fails_udp_checks_too(hook) {
        let run = Running::new(hook, 1, 2)?;
        let gone = &run.lab.backends[0].namespace;
        gone.ip("link set eth0 down")?;
        run.lab.router.ip("neigh flush dev priv0")?;
        let (_, listener, vip) = run.cloud.balanced(VIP, Listener { tags: FAST, ..UDP }, &[0, 1])?;
        wait_for_status(&run, &listener, 0, "Inactive")?;
        gone.ip("link set eth0 up")?;
        // The link's end removed its route to the clients.
        gone.ip(&format!("route add default via {PRIVATE_ROUTER}"))?;
        wait_for_status(&run, &listener, 0, "Active")?;
        assert_eq!(run.cloud.status(&listener, 1)?, "Active");
        run.lab.client().ask_udp(vip)?;
        Ok(())
    }

    fn checks_are_inconclusive_while_the_device_to_the_backends_is_down(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        let listeners = [Listener { tags: FAST_OF_WEB, ..ECHO }, Listener { tags: FAST, ..UDP }];
        let listeners = listeners.map(|listener| run.cloud.listener(&balancer, listener));
        let [tcp, udp] = listeners.map(|listener| -> Result<String> {
            let listener = listener?;
            run.cloud.add_backends(&listener, &[0, 1])?;
            Ok(listener)
        });
        let (tcp, udp) = (tcp?, udp?);
        let mut connection = run.lab.client().tcp(SocketAddrV4::new(VIP, ECHO.port))?;
        let origin = connection.ask()?;
        let router = &run.lab.router;
        // Packets to the backends would be routed there.
        router.ip("route add default via 10.1.0.101")?;
        let way = |works: bool| -> Result<()> {
            router.ip(&format!("link set {PRIVATE_DEVICE} {}", if works { "up" } else { "down" })).map(drop)
        };
        let cable = |works: bool| run.lab.plug_private(works);
        for change in [&way as &dyn Fn(bool) -> Result<()>, &cable] {
            let unasked = || -> Result<u64> { report(&run.lab, "status")?["checks"]["inconclusive"].as_u64().context("a count") };
            change(false)?;
            let before = unasked()?;
            wait_until("four checks of each backend", PATIENCE, || {
                let now = unasked()?;
                anyhow::ensure!(now >= before + 16, "only {} were inconclusive", now - before);
                Ok(())
            })?;
            change(true)?;
            for listener in [&tcp, &udp] {
                for vm in [0, 1] {
                    assert_eq!(run.cloud.status(listener, vm)?, "Active");
                }
            }
            wait_until("the connection to go on", PATIENCE, || {
                assert_eq!(connection.ask()?, origin);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn a_stopped_vm_is_inactive_and_not_checked(hook) {
        let mut run = Running::new(hook, 1, 2)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, Listener { tags: FAST, ..WEB }, &[0, 1])?;
        run.lab.backends[0].stop_web();
        wait_for_status(&run, &listener, 0, "Inactive")?;
        run.cloud.change_vm(0, "stop")?;
        let directory = run.lab.directory().to_owned();
        run.lab.backends[0].start_web(&directory)?;
        // Meanwhile the other one goes down and up, which takes long enough for a check of the first one.
        run.lab.backends[1].stop_web();
        wait_for_status(&run, &listener, 1, "Inactive")?;
        run.lab.backends[1].start_web(&directory)?;
        wait_for_status(&run, &listener, 1, "Active")?;
        assert_eq!(run.cloud.status(&listener, 0)?, "Inactive");
        assert_all_reach(run.lab.client(), vip, "backend2")?;
        run.cloud.change_vm(0, "start")?;
        wait_for_status(&run, &listener, 0, "Active")?;
        assert_eq!(run.cloud.status(&listener, 1)?, "Active");
        Ok(())
    }

    fn a_restarted_controller_keeps_the_checks_results(hook) {
        let mut run = Running::new(hook, 1, 2)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, Listener { tags: FAST, ..WEB }, &[0, 1])?;
        run.lab.backends[0].stop_web();
        wait_for_status(&run, &listener, 0, "Inactive")?;
        wait_until("the selection table to follow", PATIENCE, || assert_or_err(run.lab.client(), vip, "backend2"))?;
        run.controller.kill()?;
        let controller = run.lab.start_controller()?;
        assert_all_reach(run.lab.client(), vip, "backend2")?;
        drop(controller);
        Ok(())
    }
}

fn assert_or_err(client: &Host, vip: SocketAddrV4, backend: &str) -> Result<()> {
    let origins = client.fetch_many(vip, 8)?;
    anyhow::ensure!(origins.iter().all(|origin| origin.backend == backend), "{origins:?}");
    Ok(())
}
