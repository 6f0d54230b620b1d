//! Next hops that are unknown or have moved.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::ensure;
use vipgate_tests::{
    both_hooks,
    lab::{
        Cloud, Host, Lab, LabOptions, Result, UDP, WEB,
        topology::{PRIVATE_DEVICE, PUBLIC_DEVICE},
        wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const GUESTS: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
/// The kernel takes seconds to give up on a neighbour.
const PATIENCE: Duration = Duration::from_secs(40);

/// Makes the kernel probe a silent neighbour sooner than after five seconds.
const SOON: [(&str, &str); 3] =
    [("delay_first_probe_time", "1"), ("base_reachable_time_ms", "1000"), ("retrans_time_ms", "200")];

/// Gives a host another MAC address without an announcement. The router cannot learn it from the host's own ARP requests either.
fn move_silently(host: &Host, mac: &str) -> Result<()> {
    let neighbours = host.namespace.ip("neigh show")?;
    for neighbour in neighbours.lines().filter(|line| line.contains("lladdr")) {
        let words: Vec<&str> = neighbour.split_whitespace().take(5).collect();
        host.namespace.ip(&format!("neigh replace {} nud permanent", words.join(" ")))?;
    }
    host.namespace.ip(&format!("link set eth0 address {mac}")).map(drop)
}

both_hooks! {
    fn a_packet_that_waits_for_a_neighbour_does_not_need_the_stacks_forwarding(hook) {
        let mut lab = Lab::new(LabOptions { hook, clients: 1, backends: 2 })?;
        lab.serve_outside()?;
        let controller = lab.start_controller()?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let (_, balancer) = cloud.load_balancer(VIP)?;
        cloud.add_backends(&cloud.listener(&balancer, WEB)?, &[0])?;
        cloud.elastic(&cloud.vip(GUESTS)?, 1)?;
        // As Docker, ufw and firewalld configure it.
        lab.router.run("nft", "add table ip strict")?;
        lab.router.run("nft", "add chain ip strict forward { type filter hook forward priority filter; policy drop; }")?;
        lab.router.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
        for _ in 0..2 {
            for device in [PUBLIC_DEVICE, PRIVATE_DEVICE] {
                lab.router.ip(&format!("neigh flush dev {device}"))?;
            }
            ensure!(lab.client().fetch(SocketAddrV4::new(VIP, WEB.port))?.backend == "backend1");
            ensure!(*lab.backends[1].fetch(lab.client().web())?.client.ip() == GUESTS);
        }
        drop(controller);
        Ok(())
    }

    fn a_host_that_moves_silently_is_found_and_the_router_may_move_without_the_controller(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        for device in [PUBLIC_DEVICE, PRIVATE_DEVICE] {
            for (key, value) in SOON {
                lab.router.sysctl(&format!("net/ipv4/neigh/{device}/{key}"), value)?;
            }
        }
        let controller = lab.start_controller()?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        let (_, balancer) = cloud.load_balancer(VIP)?;
        cloud.add_backends(&cloud.listener(&balancer, UDP)?, &[0])?;
        let mut session = lab.client().udp(SocketAddrV4::new(VIP, UDP.port))?;
        session.ask()?;
        controller.kill()?;
        for (host, mac) in [(lab.client(), "02:00:00:00:ee:01"), (&lab.backends[0], "02:00:00:00:ee:02")] {
            move_silently(host, mac)?;
            wait_until("the moved host to be found", PATIENCE, || session.ask())?;
        }
        // The router's own device gets another address, which its neighbours learn.
        const OTHER: &str = "02:00:00:00:ee:03";
        lab.router.ip(&format!("link set {PUBLIC_DEVICE} address {OTHER}"))?;
        lab.client().namespace.ip(&format!("neigh replace {VIP} dev eth0 lladdr {OTHER} nud permanent"))?;
        let mut session = lab.client().udp(SocketAddrV4::new(VIP, UDP.port))?;
        wait_until("a new client to be served", PATIENCE, || session.ask())?;
        Ok(())
    }
}
