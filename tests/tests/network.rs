//! Changes around the router: devices, neighbours, and hooks other than the usual.

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::json;
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use vipgate_tests::{
    both_hooks,
    lab::{Capture, ECHO, Hook, Load, Result, Running, UDP, WEB, topology::PUBLIC_ROUTER, wait_until},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const PATIENCE: Duration = Duration::from_secs(20);

both_hooks! {
    fn a_backend_that_moves_to_another_mac_keeps_its_connections(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, _, vip) = run.cloud.balanced(VIP, ECHO, &[0])?;
        let mut session = run.lab.client().tcp(vip)?;
        let origin = session.ask()?;
        let backend = &run.lab.backends[0];
        // It announces the move, as a hypervisor does after moving a VM.
        backend.namespace.sysctl("net/ipv4/conf/eth0/arp_notify", "1")?;
        backend.namespace.ip("link set eth0 address 02:00:00:00:00:99")?;
        wait_until("the connection to follow", PATIENCE, || {
            let again = session.ask()?;
            anyhow::ensure!(again == origin, "{again:?} answers");
            Ok(())
        })
    }

    fn connections_survive_a_router_device_that_goes_down_and_up(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, _, vip) = run.cloud.balanced(VIP, ECHO, &[0])?;
        let mut session = run.lab.client().tcp(vip)?;
        let origin = session.ask()?;
        run.lab.router.ip("link set priv0 down")?;
        run.lab.router.ip("link set priv0 up")?;
        wait_until("the connection to come back", PATIENCE, || {
            let again = session.ask()?;
            anyhow::ensure!(again == origin, "{again:?} answers");
            Ok(())
        })?;
        assert_eq!(run.lab.client().tcp(vip)?.ask()?.backend, "backend1");
        Ok(())
    }

    fn a_vip_address_that_someone_removed_comes_back(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, _, vip) = run.cloud.balanced(VIP, WEB, &[0])?;
        let held = run.lab.router.ip("-oneline -4 addr show dev pub0")?;
        let held = held.split_whitespace().find(|word| word.starts_with("10.1.0.10/")).unwrap_or("10.1.0.10/32");
        run.lab.router.ip(&format!("addr del {held} dev pub0"))?;
        // A client that has forgotten the VIP's MAC.
        run.lab.client().namespace.ip("neigh flush dev eth0")?;
        wait_until("the VIP", PATIENCE, || run.lab.client().fetch(vip))?;
        Ok(())
    }

    fn an_address_that_the_operator_configured_never_becomes_a_vips(hook) {
        let Running { cloud, controller, lab } = Running::new(hook, 1, 1)?;
        let router = &lab.router;
        let held = || router.ip("-oneline -4 addr show dev pub0");
        // A VIP cannot be created with an address that is configured already.
        router.ip("addr add 10.1.0.20/32 dev pub0")?;
        let wanted = json!({ "params": { "name": "taken", "l3NetworkUuid": cloud.public_l3, "requiredIp": "10.1.0.20" } });
        let failure = cloud.api.refused(&Method::POST, "/vips", Some(&wanted))?;
        ensure!(failure.to_string().contains("10.1.0.20"), "{failure}");
        // An address that was a VIP's and was configured while no controller ran is logged, and stays.
        let (vip, _, web) = cloud.balanced(VIP, WEB, &[0])?;
        cloud.vip(Ipv4Addr::new(10, 1, 0, 11))?;
        ensure!(held()?.contains(" 10.1.0.11/32 "), "{}", held()?);
        assert!(controller.stop()?.success());
        router.ip("addr del 10.1.0.10/32 dev pub0")?;
        router.ip("addr add 10.1.0.10/32 dev pub0")?;
        let controller = lab.start_controller()?;
        let said = controller.said();
        ensure!(said.contains("10.1.0.10/32 is an address of pub0 that vipgate has not set"), "{said}");
        lab.client().fetch(web)?;
        cloud.api.delete(&format!("/vips/{vip}"))?;
        ensure!(held()?.contains(" 10.1.0.10/32 "), "{}", held()?);
        controller.kill()?;
        ensure!(lab.vipgate("detach")?.status.success());
        let held = held()?;
        let stays = |address| held.contains(&format!(" {address} "));
        ensure!(stays("10.1.0.10/32") && stays("10.1.0.20/32") && stays("10.1.0.1/24"), "{held}");
        ensure!(!stays("10.1.0.11/32"), "{held}");
        Ok(())
    }

    fn neighbours_learn_at_once_of_another_mac_of_the_routers_device(hook) {
        const MAC: &str = "02:00:00:00:00:77";
        let Running { cloud, controller, mut lab } = Running::new(hook, 1, 1)?;
        lab.serve_outside()?;
        cloud.attach_services(&["SNAT"])?;
        let (client, guest) = (lab.client(), &lab.backends[0]);
        guest.fetch(client.web())?;
        let capture = Capture::start(client, "arp", lab.directory())?;
        let (_, _, vip) = cloud.balanced(VIP, WEB, &[0])?;
        client.fetch(vip)?;
        lab.router.ip(&format!("link set pub0 address {MAC}"))?;
        let knows = |address: Ipv4Addr, mac: &str| -> Result<()> {
            let known = client.namespace.ip(&format!("neigh show {address}"))?;
            ensure!(known.contains(mac), "{address}: {known}");
            Ok(())
        };
        for address in [VIP, PUBLIC_ROUTER] {
            wait_until("the neighbour to learn it", PATIENCE, || knows(address, MAC))?;
        }
        client.fetch(vip)?;
        guest.fetch(client.web())?;
        // Repeats of earlier announcements are among these.
        let announced = wait_until("repeats", PATIENCE, || {
            let printed = capture.printed()?;
            let of_vip = printed.lines().filter(|line| line.contains(&format!("who-has {VIP} tell {VIP},")));
            let of_vip: Vec<String> = of_vip.map(str::to_owned).collect();
            let new = of_vip.iter().filter(|line| line.contains(MAC)).count();
            ensure!(new >= 3, "{printed}");
            Ok(of_vip)
        })?;
        let first = announced.iter().position(|line| line.contains(MAC)).unwrap_or_default();
        ensure!(announced[first..].iter().all(|line| line.contains(MAC)), "{announced:#?}");
        // A new controller also announces a change that happened while none ran.
        controller.kill()?;
        lab.router.ip("link set pub0 address 02:00:00:00:00:78")?;
        let _controller = lab.start_controller()?;
        for address in [VIP, PUBLIC_ROUTER] {
            wait_until("the neighbour to learn it", PATIENCE, || knows(address, "02:00:00:00:00:78"))?;
        }
        client.fetch(vip)?;
        Ok(())
    }

    fn another_device_of_the_router_on_the_same_segment_does_not_answer_for_a_vip(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, _, vip) = run.cloud.balanced(VIP, WEB, &[0])?;
        run.lab.plug_extra("beside0")?;
        run.lab.router.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        run.lab.router.sysctl("net/ipv4/conf/beside0/rp_filter", "0")?;
        let client = run.lab.client();
        let capture = Capture::start(client, "arp", run.lab.directory())?;
        client.namespace.ip("neigh flush dev eth0")?;
        client.fetch(vip)?;
        // The neighbour is deleted later, so that the answers to the first request have arrived.
        client.namespace.ip(&format!("neigh del {VIP} dev eth0"))?;
        client.fetch(vip)?;
        let printed = capture.printed()?;
        let link = run.lab.router.ip("-oneline link show dev pub0")?;
        let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("a MAC")?;
        let replies: Vec<&str> = printed.lines().filter(|line| line.contains(&format!("Reply {VIP} is-at"))).collect();
        ensure!(replies.len() == 2 && replies.iter().all(|reply| reply.contains(mac)), "{replies:#?}");
        Ok(())
    }

    fn traffic_that_belongs_to_no_vip_is_routed_as_before(hook) {
        let run = Running::new(hook, 1, 1)?;
        run.cloud.balanced(VIP, WEB, &[0])?;
        let (client, backend) = (run.lab.client(), &run.lab.backends[0]);
        let direct = SocketAddrV4::new(backend.address, 80);
        assert_eq!(client.fetch(direct)?.backend, "backend1");
        client.namespace.run("ping", &format!("-c1 -W2 {}", backend.address))?;
        client.namespace.run("ping", &format!("-c1 -W2 {VIP}"))?;
        backend.namespace.run("ping", &format!("-c1 -W2 {}", client.address))?;
        Ok(())
    }

    fn a_hundred_listeners_created_at_once_all_balance(hook) {
        let run = Running::new(hook, 1, 2)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        let ports: Vec<u16> = (8000..8100).collect();
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = ports
                .chunks(25)
                .map(|ports| {
                    let (cloud, balancer) = (&run.cloud, &balancer);
                    scope.spawn(move || -> Result<()> {
                        for port in ports {
                            let uuid = cloud.listener(balancer, vipgate_tests::lab::Listener { port: *port, ..WEB })?;
                            cloud.add_backends(&uuid, &[0, 1])?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
        for port in ports {
            run.lab.client().fetch(SocketAddrV4::new(VIP, port))?;
        }
        Ok(())
    }
}

/// Hooks that the other tests do not cover.
#[test]
fn generic_xdp_and_auto_balance_as_well() -> Result<()> {
    for hook in [Hook::XdpGeneric, Hook::Auto] {
        let run = Running::new(hook, 1, 2)?;
        let (vip, balancer) = run.cloud.load_balancer(VIP)?;
        for listener in [WEB, UDP] {
            let uuid = run.cloud.listener(&balancer, listener)?;
            run.cloud.add_backends(&uuid, &[0, 1])?;
        }
        let client = run.lab.client();
        assert_eq!(client.fetch_many(SocketAddrV4::new(VIP, WEB.port), 10)?.len(), 10);
        client.ask_udp(SocketAddrV4::new(VIP, UDP.port))?;
        // Limited traffic leaves by the TC stage.
        let limit = json!({ "setVipQos": { "inboundBandwidth": 16 << 20, "outboundBandwidth": 16 << 20 } });
        run.cloud.api.put(&format!("/vips/{vip}/actions"), &limit)?;
        assert_eq!(client.fetch_many(SocketAddrV4::new(VIP, WEB.port), 10)?.len(), 10, "with limits, hook {hook}");
        client.ask_udp(SocketAddrV4::new(VIP, UDP.port)).with_context(|| format!("with limits, hook {hook}"))?;
    }
    Ok(())
}

#[test]
fn a_change_of_hook_at_a_restart_fails_no_request() -> Result<()> {
    let Running { cloud, controller, lab } = Running::new(Hook::Tc, 1, 2)?;
    let (_, _, vip) = cloud.balanced(VIP, WEB, &[0, 1])?;
    let load = Load::start(lab.client(), vip)?;
    load.wait_for(50)?;
    assert!(controller.stop()?.success());
    let controller = vipgate_tests::lab::Controller::start(&lab, &["--hook", "xdp"])?;
    load.wait_for(50)?;
    assert!(controller.stop()?.success());
    let _controller = vipgate_tests::lab::Controller::start(&lab, &["--hook", "tc"])?;
    load.wait_for(50)?;
    let report = load.stop()?;
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    Ok(())
}
