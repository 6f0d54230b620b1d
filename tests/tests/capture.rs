//! Captures of live traffic through every service, read by scapy, which computes each checksum independently.
//!
//! The hosts' devices have `tx off`, so their packets leave with complete checksums, and a host receives what the router made
//! of them: nothing in between completes a checksum. The router's own packets (health checks) would have incomplete ones,
//! which is correct between namespaces, so the router's devices get `tx off` here, too.

use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vipgate_tests::{
    both_hooks,
    lab::{
        Capture, ECHO, Host, Listener, Result, Running, UDP,
        host::ECHO_PORT,
        topology::{PRIVATE_DEVICE, PUBLIC_DEVICE, PUBLIC_ROUTER},
    },
};

const BALANCED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const RULES: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
const RANGES: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 12);
const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 13);

/// Debian's Python: another one has no scapy.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/capture.py");

/// Kinds of packets, for TCP and UDP alone and for services of every protocol.
const KINDS: [&str; 5] = ["tcp", "udp", "udp without checksum", "odd", "fragmented"];
const ALL_KINDS: [&str; 6] = ["tcp", "udp", "udp without checksum", "odd", "fragmented", "icmp"];
/// Least number of packets of each kind.
const SENT: u64 = 4;

/// Exchanges every kind of UDP and TCP packet.
fn converse(host: &Host, address: Ipv4Addr, udp_port: u16, tcp_port: u16) -> Result<()> {
    host.namespace.run(PYTHON, &format!("{SCRIPT} send {address} {udp_port} {tcp_port}")).map(drop)
}

/// [`converse`], and pings, with an address that takes every protocol.
fn converse_with_all(host: &Host, address: Ipv4Addr) -> Result<()> {
    converse(host, address, ECHO_PORT, ECHO_PORT)?;
    ["-s 1", "-s 1000", "-s 3001"].iter().try_for_each(|size| host.ping(address, size))
}

/// Every packet of these addresses that the host saw is correct, and there were enough of each kind for each address.
fn check(capture: Capture<'_>, host: &Host, expected: &[(Ipv4Addr, &[&str])]) -> Result<()> {
    let addresses: Vec<String> = expected.iter().map(|(address, _)| address.to_string()).collect();
    let file = capture.end()?;
    let words = format!("{SCRIPT} check {} {}", file.display(), addresses.join(" "));
    let found: Value = serde_json::from_str(&host.namespace.run(PYTHON, &words)?)?;
    let wrong = found["wrong"].as_array().context("the script's list of wrong packets")?;
    ensure!(wrong.is_empty(), "{} sees wrong checksums: {wrong:#?}", host.name);
    for ((_, kinds), address) in expected.iter().zip(&addresses) {
        for kind in *kinds {
            let count = found["counts"][address][kind].as_u64().unwrap_or(0);
            ensure!(count >= SENT, "{} sees {count} packets of {address} that are {kind}: {found}", host.name);
        }
    }
    Ok(())
}

both_hooks! {
    fn every_checksum_of_every_service_is_right(hook) {
        let mut run = Running::new(hook, 1, 2)?;
        run.lab.serve_outside()?;
        for device in [PUBLIC_DEVICE, PRIVATE_DEVICE] {
            run.lab.router.run("ethtool", &format!("-K {device} tx off"))?;
        }
        let cloud = &run.cloud;
        let (_, balancer) = cloud.load_balancer(BALANCED)?;
        for listener in [ECHO, Listener { port: ECHO.port, ..UDP }] {
            cloud.add_backends(&cloud.listener(&balancer, listener)?, &[0, 1])?;
        }
        let (rules, ranges) = (cloud.vip(RULES)?, cloud.vip(RANGES)?);
        for protocol in ["TCP", "UDP"] {
            cloud.forward(&rules, protocol, [8000, 8000], [ECHO_PORT, ECHO_PORT], 0)?;
            cloud.forward(&ranges, protocol, [9000, 9099], [ECHO_PORT - 50, ECHO_PORT + 49], 1)?;
        }
        cloud.elastic(&cloud.vip(ELASTIC)?, 0)?;
        cloud.attach_services(&["SNAT"])?;

        let client = run.lab.client();
        let [elastic, masqueraded] = &run.lab.backends[..] else { anyhow::bail!("two guests") };
        let capture = |host| Capture::start(host, "ip", run.lab.directory());
        let captures = [capture(client)?, capture(elastic)?, capture(masqueraded)?];
        converse(client, BALANCED, ECHO.port, ECHO.port)?;
        converse(client, RULES, 8000, 8000)?;
        converse(client, RANGES, 9050, 9050)?;
        converse_with_all(client, ELASTIC)?;
        for guest in [elastic, masqueraded] {
            converse_with_all(guest, client.address)?;
            // A client next to its backend by the router's address there, and the elastic IP's guest itself.
            converse_with_all(guest, ELASTIC)?;
        }
        let [outside, first, second] = captures;
        check(outside, client, &[
            (BALANCED, &KINDS),
            (RULES, &KINDS),
            (RANGES, &KINDS),
            (ELASTIC, &ALL_KINDS),
            (PUBLIC_ROUTER, &ALL_KINDS),
        ])?;
        check(first, elastic, &[(elastic.address, &ALL_KINDS), (ELASTIC, &ALL_KINDS)])?;
        check(second, masqueraded, &[(masqueraded.address, &ALL_KINDS)])
    }
}
