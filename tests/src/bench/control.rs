//! The control plane through the REST API: how long a listener's change takes, how long loading everything into an empty
//! kernel takes, the controller's memory, and what a packet costs with that many listeners.
//!
//! The controller has an operator's default tables. Ten listeners share a VIP, and all have the same ten backends, which are
//! real web servers. Each is checked once a minute for each listener; they answer, so checks change nothing. A change adds
//! a backend to a listener or removes one, which needs a new selection table. It lasts from the request until the job's
//! result is there, when the kernel holds the change.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use vipgate_abi::service::{Algorithm, Kind, Service, ServiceKey};

use super::{
    Effort, Report, Series,
    peers::{remove, start_as_shipped},
    testrun::net_time,
};
use crate::{
    lab::{Api, Cloud, Controller, Hook, Lab, LabOptions, Reply, WEB, cloud::uuid},
    packet::{self, Bench, Frame, Packets, Verdict, tcp},
};

const BACKENDS: u8 = 10;
/// Listeners of a VIP.
const LISTENERS: u16 = 10;
/// Clients that create records at the same time.
const CUSTOMERS: u32 = 4;
/// Pause between two polls of a job, short compared with the fastest job.
const PAUSE: Duration = Duration::from_micros(200);
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const MEBIBYTE: f64 = 1024.0 * 1024.0;
/// Number of changes in a round.
const CHANGES: u32 = 20;

/// Measures with ten listeners, then with ten thousand (with `--quick` a thousand).
pub fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let many = if effort.seconds > 1 { 10_000 } else { 1_000 };
    let lab = Lab::new(LabOptions { hook: Hook::Auto, clients: 1, backends: BACKENDS })?;
    let mut controller = start_as_shipped(&lab, Hook::Auto)?;
    let mut cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
    cloud.public_l3 = wide_network(&cloud)?;

    let (_, listener) = serve(&cloud, 0, LISTENERS)?;
    report.add(changes(&cloud, &listener, effort)?.row("a listener's change: among 10", "ms").at_most(5.0));
    let vips = many / u32::from(LISTENERS);
    by_customers(vips - 1, |number| serve(&cloud, number + 1, LISTENERS))?;
    let changed = changes(&cloud, &listener, effort)?;
    report.add(changed.row(format!("a listener's change: among {many}"), "ms").at_most(5.0));

    let mut loading = Series::default();
    for _ in 0..effort.rounds {
        remove(&lab, controller)?;
        let start = Instant::now();
        controller = start_as_shipped(&lab, Hook::Auto)?;
        loading.push(start.elapsed().as_secs_f64());
    }
    let name = format!("{many} listeners of {BACKENDS} backends into an empty kernel");
    report.add(loading.row(name, "s").at_most(10.0));
    let (own, whole) = memory(&controller, &cloud, &lab, &listener, effort)?;
    let name = |what: &str| format!("the controller's memory with {many} listeners: {what}");
    report.add(own.row(name("its own"), "MiB").at_most(150.0));
    report.add(whole.row(name("the kernel's tables that it maps included"), "MiB"));
    Ok(())
}

/// Compares a packet's cost with many listeners to its cost with one, by test run of the XDP program.
pub fn packets(report: &mut Report, effort: Effort) -> Result<()> {
    for (kind, flags) in [("established", tcp::ACK), ("new connections", tcp::SYN)] {
        let (mut alone, mut among) = (prepare(flags, 0)?, prepare(flags, 10_000)?);
        let (mut one, mut many) = (Series::default(), Series::default());
        for _ in 0..effort.rounds {
            for (bench, net) in [(&mut alone, &mut one), (&mut among, &mut many)] {
                net.push(net_time(bench, effort, Verdict::Redirect).context(kind)?);
            }
        }
        let name = |listeners: &str| format!("test run, Xdp, {kind}: {listeners}");
        report.add(one.row(name("1 listener"), "ns"));
        let row = many.row(name("10,001 listeners"), "ns");
        report.add(row.compared_with("1 listener", &many, &one).ratio_at_most(1.1));
    }
    Ok(())
}

/// Segments of 1,024 clients to a listener of ten backends, with this number of other listeners. They belong to established
/// connections, unless they are SYNs, for which the table is always full.
fn prepare(flags: u8, others: u32) -> Result<Bench> {
    const CLIENTS: u32 = 1 << 10;
    let vip = SocketAddrV4::new(Bench::VIP, 80);
    let client = SocketAddrV4::new(Ipv4Addr::new(10, 64, 0, 0), 1024);
    let segments = |flags| Packets {
        first: Frame::tcp(client, vip, flags),
        count: CLIENTS,
        port_bits: 4,
        to_others: false,
        scattered: false,
    };
    let buckets = if flags == tcp::SYN { CLIENTS / 16 } else { CLIENTS };
    let mut bench = Bench::benchmark(packet::Hook::Xdp, buckets, &segments(tcp::SYN))?;
    let backends: Vec<_> = (10..20).map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, host), 8080)).collect();
    bench.serve(vip, TCP, Algorithm::RoundRobin, &backends)?;
    let service = Service { kind: Kind::Balance as u8, ring_len: 1, ..Service::default() };
    for other in 0..others {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 3, 0, 0).to_bits() + other / u32::from(LISTENERS));
        let port = u16::try_from(80 + other % u32::from(LISTENERS))?;
        bench.set_service(SocketAddrV4::new(address, port), TCP, ServiceKey::EXACT, service)?;
    }
    if flags != tcp::SYN {
        bench.time(CLIENTS)?;
        bench.set_states(vipgate_abi::flow::State::Established)?;
        bench.set_packets(&segments(flags))?;
    }
    Ok(bench)
}

const TCP: u8 = 6;

/// Creates a public network with room for all VIPs; returns its uuid.
pub(super) fn wide_network(cloud: &Cloud) -> Result<String> {
    let l3 = json!({ "name": "wide", "l2NetworkUuid": cloud.public_l2, "category": "Public" });
    let l3 = uuid(&cloud.api.create("/l3-networks", &l3)?)?;
    let range = json!({
        "name": "wide", "startIp": "10.64.0.10", "endIp": "10.64.255.250", "netmask": "255.255.0.0", "gateway": "10.64.0.1"
    });
    cloud.api.create(&format!("/l3-networks/{l3}/ip-ranges"), &range)?;
    Ok(l3)
}

/// Runs `work` for the numbers below `count`, by several clients at the same time; returns the results, in any order.
pub(super) fn by_customers<T: Send>(count: u32, work: impl Fn(u32) -> Result<T> + Sync) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let customers: Vec<_> = (0..CUSTOMERS)
            .map(|customer| {
                let own = (0..count).filter(move |number| number % CUSTOMERS == customer);
                scope.spawn(move || own.map(work).collect::<Result<Vec<T>>>())
            })
            .collect();
        let mut all = Vec::new();
        for customer in customers {
            all.extend(customer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Creates a VIP of this number with these listeners on all backends; returns it and the first listener.
pub(super) fn serve(cloud: &Cloud, number: u32, listeners: u16) -> Result<(String, String)> {
    let api = &cloud.api;
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 1, 0).to_bits() + number);
    let vip = json!({ "params": { "name": "vip", "l3NetworkUuid": cloud.public_l3, "requiredIp": address } });
    let vip = uuid(&call(api, Method::POST, "/vips", Some(&vip))?["inventory"])?;
    let balancer = json!({ "params": { "name": "balancer", "vipUuid": vip } });
    let balancer = uuid(&call(api, Method::POST, "/load-balancers", Some(&balancer))?["inventory"])?;
    let nics: Vec<&str> = cloud.vms.iter().map(|vm| vm.nic.as_str()).collect();
    let nics = json!({ "params": { "vmNicUuids": nics } });
    let mut first = None;
    for port in 0..listeners {
        let body = json!({
            "params": {
                "name": "listener", "protocol": WEB.protocol, "loadBalancerPort": WEB.port + port,
                "instancePort": WEB.instance_port,
            },
            "systemTags": ["healthCheckInterval::60"],
        });
        let path = format!("/load-balancers/{balancer}/listeners");
        let listener = uuid(&call(api, Method::POST, &path, Some(&body))?["inventory"])?;
        call(api, Method::POST, &nics_of(&listener), Some(&nics))?;
        first.get_or_insert(listener);
    }
    Ok((vip, first.context("a VIP has listeners")?))
}

fn nics_of(listener: &str) -> String {
    format!("/load-balancers/listeners/{listener}/vm-instances/nics")
}

/// Milliseconds of each change.
fn changes(cloud: &Cloud, listener: &str, effort: Effort) -> Result<Series> {
    let nic = &cloud.vms[0].nic;
    let put_back = json!({ "params": { "vmNicUuids": [nic] } });
    let mut series = Series::default();
    for _ in 0..effort.rounds * CHANGES {
        let path = nics_of(listener);
        for (method, path, body) in
            [(Method::DELETE, format!("{path}?vmNicUuids={nic}"), None), (Method::POST, path, Some(&put_back))]
        {
            let start = Instant::now();
            call(&cloud.api, method, &path, body)?;
            series.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(series)
}

/// Memory in MiB once everything is loaded and after each further round of changes: the controller's own, and all.
fn memory(
    controller: &Controller,
    cloud: &Cloud,
    lab: &Lab,
    listener: &str,
    effort: Effort,
) -> Result<(Series, Series)> {
    let cloud = Cloud { api: controller.api(&lab.router)?, ..cloud.clone() };
    let (mut own, mut whole) = (Series::default(), Series::default());
    for _ in 0..effort.rounds {
        own.push(controller.own_memory()? as f64 / MEBIBYTE);
        whole.push(controller.resident()? as f64 / MEBIBYTE);
        changes(&cloud, listener, Effort { rounds: 1, ..effort })?;
    }
    Ok((own, whole))
}

/// Makes a call and waits for its job, without the pauses of [`Api::call`].
pub(super) fn call(api: &Api, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
    let accepted = api.send(method, path, body)?;
    let reply = if accepted.status == 202 { follow(api, &accepted)? } else { accepted };
    ensure!(reply.status == 200, "{path}: {}: {}", reply.status, reply.text);
    reply.json()
}

fn follow(api: &Api, accepted: &Reply) -> Result<Reply> {
    let body = accepted.json()?;
    let location = body["location"].as_str().with_context(|| format!("no location in {body}"))?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let reply = api.finish(api.request(Method::GET, location))?;
        if reply.status != 202 {
            return Ok(reply);
        }
        thread::sleep(PAUSE);
    }
    anyhow::bail!("job {location} still runs after {} s", PATIENCE.as_secs())
}
