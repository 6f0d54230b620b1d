//! Changes while traffic runs: each applies once its job is done, and affects nothing else.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};
use vipgate_tests::{
    both_hooks,
    lab::{ECHO, Listener, Load, Result, Running, UDP, WEB, wait_for_resets, wait_until},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);

/// The backends that answer at present.
fn answering(run: &Running, vip: std::net::SocketAddrV4) -> Result<BTreeSet<String>> {
    Ok(run.lab.client().fetch_many(vip, 40)?.into_iter().map(|origin| origin.backend).collect())
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

both_hooks! {
    fn backends_come_and_go_under_load_without_a_failed_request(hook) {
        let run = Running::new(hook, 1, 3)?;
        // Not round robin: two clients that alternate would each always get the same backend.
        let (_, listener, vip) = run.cloud.balanced(VIP, Listener { algorithm: "maglev", ..WEB }, &[0])?;
        let load = Load::start(run.lab.client(), vip)?;
        load.wait_for(20)?;
        assert_eq!(answering(&run, vip)?, names(&["backend1"]));
        run.cloud.add_backends(&listener, &[1, 2])?;
        assert_eq!(answering(&run, vip)?, names(&["backend1", "backend2", "backend3"]));
        load.wait_for(20)?;
        run.cloud.remove_backends(&listener, &[0])?;
        assert_eq!(answering(&run, vip)?, names(&["backend2", "backend3"]));
        load.wait_for(20)?;
        let report = load.stop()?;
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        Ok(())
    }

    fn a_removed_backend_keeps_the_connections_it_has(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, ECHO, &[0])?;
        let mut old = run.lab.client().tcp(vip)?;
        let origin = old.ask()?;
        run.cloud.add_backends(&listener, &[1])?;
        run.cloud.remove_backends(&listener, &[0])?;
        assert_eq!(old.ask()?, origin);
        for _ in 0..4 {
            assert_eq!(run.lab.client().tcp(vip)?.ask()?.backend, "backend2");
        }
        assert_eq!(old.ask()?, origin);
        Ok(())
    }

    fn a_disabled_vip_carries_nothing_and_an_enabled_one_all_of_it_again(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (vip_uuid, balancer) = run.cloud.load_balancer(VIP)?;
        for listener in [ECHO, UDP] {
            let uuid = run.cloud.listener(&balancer, listener)?;
            run.cloud.add_backends(&uuid, &[0])?;
        }
        let client = run.lab.client();
        let (tcp, udp) = (std::net::SocketAddrV4::new(VIP, ECHO.port), std::net::SocketAddrV4::new(VIP, UDP.port));
        let (mut tcp_session, mut udp_session) = (client.tcp(tcp)?, client.udp(udp)?);
        tcp_session.ask()?;
        udp_session.ask()?;
        let ping = || client.namespace.run("ping", &format!("-c1 -W1 {VIP}"));
        ping()?;

        let disabled = run.cloud.change_vip_state(&vip_uuid, "disable")?;
        assert_eq!(disabled["inventory"]["state"], "Disabled");
        assert!(udp_session.ask().is_err(), "an existing flow goes on");
        assert!(client.tcp(tcp).is_err(), "a new connection is accepted");
        assert!(ping().is_err(), "the address answers");

        let enabled = run.cloud.change_vip_state(&vip_uuid, "enable")?;
        assert_eq!(enabled["inventory"]["state"], "Enabled");
        ping()?;
        assert_eq!(client.tcp(tcp)?.ask()?.backend, "backend1");
        assert_eq!(client.ask_udp(udp)?.backend, "backend1");
        Ok(())
    }

    fn the_vip_is_an_address_of_the_router_for_as_long_as_it_exists(hook) {
        let run = Running::new(hook, 1, 1)?;
        let client = run.lab.client();
        // A host that knew the address elsewhere learns its new place at once.
        client.namespace.sysctl("net/ipv4/neigh/eth0/locktime", "0")?;
        client.namespace.ip(&format!("neigh replace {VIP} lladdr 02:00:00:00:00:01 dev eth0 nud stale"))?;
        let (vip_uuid, _, vip) = run.cloud.balanced(VIP, WEB, &[0])?;
        let router = run.lab.router.ip("-oneline link show dev pub0")?;
        wait_until("the announcement", Duration::from_secs(5), || {
            let neighbour = client.namespace.ip(&format!("neigh show {VIP}"))?;
            let mac = neighbour.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or("none");
            anyhow::ensure!(router.contains(mac), "the client has {neighbour}");
            Ok(())
        })?;
        let holds = || Ok::<_, anyhow::Error>(run.lab.router.ip("-oneline addr show dev pub0")?.contains(&format!("{VIP}/")));
        assert!(holds()?);
        client.fetch(vip)?;

        run.cloud.api.delete(&format!("/vips/{vip_uuid}"))?;
        assert!(!holds()?);
        assert!(client.fetch(vip).is_err());
        assert!(run.cloud.api.query("/load-balancers")?.is_empty(), "the VIP's load balancer outlives it");
        Ok(())
    }

    fn a_deleted_listener_ends_its_flows_and_leaves_other_listeners_alone(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        let [web, udp, tcp] = [WEB, UDP, ECHO].map(|listener| run.cloud.listener(&balancer, listener));
        let (web, udp, tcp) = (web?, udp?, tcp?);
        for listener in [&web, &udp, &tcp] {
            run.cloud.add_backends(listener, &[0])?;
        }
        let client = run.lab.client();
        let at = |port| std::net::SocketAddrV4::new(VIP, port);
        let mut session = client.udp(at(UDP.port))?;
        session.ask()?;
        run.cloud.api.delete(&format!("/load-balancers/listeners/{udp}"))?;
        assert!(session.ask().is_err(), "a flow outlives its listener");
        let mut silent = client.tcp(at(ECHO.port))?;
        silent.ask()?;
        run.cloud.api.delete(&format!("/load-balancers/listeners/{tcp}"))?;
        wait_for_resets([(client, VIP), (&run.lab.backends[0], client.address)])?;
        silent.wait_for_reset()?;
        assert_eq!(client.fetch(at(WEB.port))?.backend, "backend1");
        Ok(())
    }

    fn a_stopped_vm_gets_no_new_connections_until_it_starts_again(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, WEB, &[0, 1])?;
        let statuses = || -> Result<_> { Ok([run.cloud.status(&listener, 0)?, run.cloud.status(&listener, 1)?]) };
        assert_eq!(statuses()?, ["Active", "Active"]);
        run.cloud.change_vm(0, "stop")?;
        assert_eq!(answering(&run, vip)?, names(&["backend2"]));
        assert_eq!(statuses()?, ["Inactive", "Active"]);
        run.cloud.change_vm(0, "start")?;
        assert_eq!(answering(&run, vip)?, names(&["backend1", "backend2"]));
        assert_eq!(statuses()?, ["Active", "Active"]);
        Ok(())
    }

    fn a_changed_algorithm_tag_changes_the_balancing(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, WEB, &[0, 1])?;
        assert_eq!(answering(&run, vip)?.len(), 2);
        run.cloud.change_tag(&listener, "balancerAlgorithm::source")?;
        assert_eq!(answering(&run, vip)?.len(), 1);
        Ok(())
    }

    fn a_destroyed_vm_leaves_its_listeners(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, listener, vip) = run.cloud.balanced(VIP, WEB, &[0, 1])?;
        run.cloud.api.delete(&format!("/vm-instances/{}", run.cloud.vms[0].uuid))?;
        assert_eq!(answering(&run, vip)?, names(&["backend2"]));
        let found = run.cloud.api.query(&format!("/load-balancers/listeners/{listener}"))?;
        assert_eq!(found[0]["vmNicRefs"].as_array().map(Vec::len), Some(1));
        Ok(())
    }
}
