//! The API under load: pages of big tables, fast creates and limits, and many clients that poll jobs.
//!
//! Pages are read from a separate store, filled by SQL: each table that grows with the cloud has many rows. Creates and polls
//! go over HTTP to a controller with an operator's default tables. A create lasts from its request until its job has
//! succeeded, when the kernel holds the VIP.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{runtime::Builder, task::JoinSet, time::sleep};
use vipgate_api::{Resource, json as wire, query as grammar};
use vipgate_controller::{query, store::Store};

use super::{
    Effort, Report, Series,
    control::{MEBIBYTE, PATIENCE, by_customers, serve, wide_network},
    peers::start_as_shipped,
};
use crate::lab::{Api, Cloud, Hook, Lab, LabOptions, WEB};

/// Pages of each query in a round.
const PAGES: u32 = 5;
/// Clients that create at the same time.
const CUSTOMERS: usize = 32;
/// Pause between two polls of a job.
const PAUSE: Duration = Duration::from_millis(5);
/// Number of VIPs, number of limited ports of each, and their limit in bits per second.
const VIPS: u32 = 1000;
const PORTS: u32 = 10;
const LIMIT: u64 = 10 << 20;
/// Clients that poll at the same time, and polls of each in a round.
const POLLERS: usize = 1000;
const POLLS: u32 = 5;

/// The queries; each filters by a related resource, and sorts.
const QUERIES: [(&str, Resource, &str); 5] = [
    (
        "listeners by the name of their VIP",
        Resource::Listener,
        "q=loadBalancer.vip.name~=vip-9%&q=protocol=tcp&sort=-name",
    ),
    ("VIPs by the port of their listeners", Resource::Vip, "q=loadBalancer.listeners.loadBalancerPort>=1080&sort=ip"),
    ("NICs by the state of their VMs", Resource::VmNic, "q=vmInstance.state=Running&q=deviceId=0&sort=ip"),
    (
        "rules by the name of their VMs",
        Resource::PortForwardingRule,
        "q=vmNic.vmInstance.name~=vm-1%&sort=-vipPortStart",
    ),
    ("elastic IPs by their network", Resource::Eip, "q=vip.l3Network.name=public&q=state=Enabled&sort=vipIp"),
];

/// Measures pages, creates and polls.
pub fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let runtime = Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(pages(report, effort))?;
    let lab = Lab::new(LabOptions { hook: Hook::Auto, clients: 1, backends: 1 })?;
    let controller = start_as_shipped(&lab, Hook::Auto)?;
    let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
    let network = wide_network(&cloud)?;
    let customers = Customers::new(&cloud.api)?;
    // The runtime's only thread is in the router's namespace.
    lab.router.within(|| {
        let runtime = Builder::new_current_thread().enable_all().build().context("no runtime")?;
        runtime.block_on(async {
            creates(report, effort, &customers, &network).await?;
            polls(report, effort, &customers, &network).await
        })
    })?;
    let mut own = Series::default();
    own.push(controller.own_memory()? as f64 / MEBIBYTE);
    report.add(own.row("the controller's own memory after all that", "MiB").at_most(300.0));
    drop(controller);
    limits(report)
}

/// Measures how long ten thousand bandwidth limits take, each by its own call, until the kernel holds them.
fn limits(report: &mut Report) -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Auto, clients: 1, backends: 1 })?;
    let controller = start_as_shipped(&lab, Hook::Auto)?;
    let mut cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
    cloud.public_l3 = wide_network(&cloud)?;
    let vips = by_customers(VIPS, |number| Ok(serve(&cloud, number, 1)?.0))?;
    let ports = (0..PORTS).flat_map(|port| vips.iter().map(move |vip| (vip.clone(), u32::from(WEB.port) + port)));
    let mut shares = vec![Vec::new(); CUSTOMERS];
    for (number, port) in ports.enumerate() {
        shares[number % CUSTOMERS].push(port);
    }
    let customers = Customers::new(&cloud.api)?;
    let start = Instant::now();
    lab.router.within(|| {
        let runtime = Builder::new_current_thread().enable_all().build().context("no runtime")?;
        runtime.block_on(all(shares.into_iter().map(|share| customers.clone().keep_limiting(share))))
    })?;
    let mut took = Series::default();
    took.push(start.elapsed().as_secs_f64());
    report.add(took.row("10,000 bandwidth limits through the API", "s").at_most(10.0));
    Ok(())
}

/// Measures the milliseconds that a page of 100 takes, from the parsed query to the reply's text.
async fn pages(report: &mut Report, effort: Effort) -> Result<()> {
    let directory = TempDir::with_prefix("vipgate-bench-").context("no directory for a store")?;
    let store = Store::open(&format!("sqlite://{}", directory.path().join("big.db").display())).await?;
    fill(&store).await?;
    for (name, resource, text) in QUERIES {
        let pairs = text.split('&').chain(["limit=100"]).filter_map(|pair| pair.split_once('='));
        let pairs: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let query = grammar::parse(&pairs)?;
        let mut series = Series::default();
        for _ in 0..effort.rounds * PAGES {
            let start = Instant::now();
            let mut tx = store.read().await?;
            let reply = query::run(&mut tx, None, resource, &query).await?;
            ensure!(!wire::encode(&reply).is_empty(), "{name}: the reply is empty");
            series.push(start.elapsed().as_secs_f64() * 1e3);
            ensure!(reply["inventories"].as_array().map(Vec::len) == Some(100), "{name}: the page is not full");
        }
        report.add(series.row(format!("a page of 100,000 {name}"), "ms").at_most(20.0));
    }
    store.close().await;
    Ok(())
}

/// Rows of each table; twice as many VIPs, since each elastic IP has one of its own.
const ROWS: u32 = 100_000;

/// Statements that create the rows, with uuids as scattered as real ones.
const FILL: [&str; 18] = [
    "CREATE TEMP TABLE n AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) SELECT i FROM n",
    "CREATE TEMP TABLE made AS SELECT k.type, lower(hex(randomblob(16))) AS uuid, n.i FROM n,
        (SELECT 'VmInstanceVO' AS type UNION ALL SELECT 'VmNicVO' UNION ALL SELECT 'VipVO' UNION ALL SELECT 'VipVO elastic'
         UNION ALL SELECT 'LoadBalancerVO' UNION ALL SELECT 'LoadBalancerListenerVO'
         UNION ALL SELECT 'PortForwardingRuleVO' UNION ALL SELECT 'EipVO') k",
    "CREATE UNIQUE INDEX temp.made_place ON made (type, i)",
    "INSERT INTO resources (uuid, type, account_uuid)
     SELECT uuid, replace(type, ' elastic', ''), '36c27e8ff05c4780bf6d2fa65700f22e' FROM made
     UNION ALL SELECT 'zone', 'ZoneVO', '36c27e8ff05c4780bf6d2fa65700f22e'
     UNION ALL SELECT 'l2', 'L2NetworkVO', '36c27e8ff05c4780bf6d2fa65700f22e'
     UNION ALL SELECT 'l3', 'L3NetworkVO', '36c27e8ff05c4780bf6d2fa65700f22e'
     UNION ALL SELECT 'range', 'IpRangeVO', '36c27e8ff05c4780bf6d2fa65700f22e'",
    "INSERT INTO zones VALUES ('zone', 'zone', NULL, 'Enabled', 'zstack', 0, 0)",
    "INSERT INTO l2_networks VALUES ('l2', 'l2', NULL, 'zone', 'eth0', 'L2NoVlanNetwork', NULL, 0, 0)",
    "INSERT INTO l3_networks VALUES ('l3', 'public', NULL, 'L3BasicNetwork', 'zone', 'l2', 'Enabled', NULL, 0, 'Public', 0, 0)",
    "INSERT INTO ip_ranges VALUES ('range', 'l3', 'range', NULL, '10.0.0.2', '10.255.255.254', '255.0.0.0', '10.0.0.1',
        '10.0.0.0/8', unhex('00000000000000000000ffff0a000002'), unhex('00000000000000000000ffff0afffffe'), 0, 0)",
    "INSERT INTO used_ips
     SELECT uuid, 'range', 'l3', '10.' || (i / 62500 + k) || '.' || (i / 250 % 250) || '.' || (i % 250 + 2),
            unhex(printf('%032x', (k << 20) + i)), unhex(printf('%032x', (k << 20) + i + 1))
     FROM (SELECT uuid, i, CASE type WHEN 'VipVO' THEN 10 WHEN 'VipVO elastic' THEN 20 ELSE 30 END AS k
           FROM made WHERE type IN ('VipVO', 'VipVO elastic', 'VmNicVO'))",
    "INSERT INTO vips (uuid, name, description, l3_network_uuid, ip_range_uuid, used_ip_uuid, ip, state, gateway, netmask,
                       create_date, last_op_date)
     SELECT m.uuid, 'vip-' || i, 'a description of some length, as people write them', 'l3', 'range', m.uuid, u.ip, 'Enabled',
            '10.0.0.1', '255.0.0.0', i * 1000, i * 1000
     FROM made m JOIN used_ips u ON u.uuid = m.uuid WHERE m.type IN ('VipVO', 'VipVO elastic')",
    "INSERT INTO vm_instances (uuid, name, zone_uuid, default_l3_network_uuid, platform, type, hypervisor_type, memory_size,
                               cpu_num, cpu_speed, state, internal_id, create_date, last_op_date)
     SELECT uuid, 'vm-' || i, 'zone', 'l3', 'Linux', 'UserVm', 'KVM', 1 << 30, 1, 0,
            CASE i % 4 WHEN 0 THEN 'Stopped' ELSE 'Running' END, i, i * 1000, i * 1000
     FROM made WHERE type = 'VmInstanceVO'",
    "INSERT INTO vm_nics (uuid, vm_instance_uuid, used_ip_uuid, l3_network_uuid, ip, mac, netmask, gateway, internal_name,
                          device_id, create_date, last_op_date)
     SELECT m.uuid, v.uuid, m.uuid, 'l3', u.ip, printf('fa:%010x', m.i), '255.0.0.0', '10.0.0.1', 'vnic' || m.i, 0,
            m.i * 1000, m.i * 1000
     FROM made m JOIN made v ON v.type = 'VmInstanceVO' AND v.i = m.i JOIN used_ips u ON u.uuid = m.uuid
     WHERE m.type = 'VmNicVO'",
    "INSERT INTO load_balancers (uuid, name, state, vip_uuid, create_date, last_op_date)
     SELECT m.uuid, 'lb-' || m.i, 'Enabled', v.uuid, m.i * 1000, m.i * 1000
     FROM made m JOIN made v ON v.type = 'VipVO' AND v.i = m.i WHERE m.type = 'LoadBalancerVO'",
    "INSERT INTO load_balancer_listeners (uuid, name, load_balancer_uuid, instance_port, load_balancer_port, protocol,
                                          number, create_date, last_op_date)
     SELECT m.uuid, 'listener-' || m.i, b.uuid, 80, 80 + m.i % 2000, CASE m.i % 3 WHEN 0 THEN 'udp' ELSE 'tcp' END, m.i,
            m.i * 1000, m.i * 1000
     FROM made m JOIN made b ON b.type = 'LoadBalancerVO' AND b.i = m.i WHERE m.type = 'LoadBalancerListenerVO'",
    "INSERT INTO load_balancer_listener_vm_nic_refs (listener_uuid, vm_nic_uuid, status, number, create_date, last_op_date)
     SELECT m.uuid, n.uuid, 'Active', m.i, m.i * 1000, m.i * 1000
     FROM made m JOIN made n ON n.type = 'VmNicVO' AND n.i = m.i WHERE m.type = 'LoadBalancerListenerVO'",
    "INSERT INTO port_forwarding_rules (uuid, name, vip_uuid, vip_port_start, vip_port_end, private_port_start,
        private_port_end, vm_nic_uuid, protocol_type, state, allowed_cidr, service_number, backend_number, create_date,
        last_op_date)
     SELECT m.uuid, 'rule-' || m.i, v.uuid, 3000 + m.i % 9000, 3000 + m.i % 9000, 22, 22, n.uuid, 'TCP', 'Enabled',
            '0.0.0.0/0', 200000 + m.i, 200000 + m.i, m.i * 1000, m.i * 1000
     FROM made m JOIN made v ON v.type = 'VipVO' AND v.i = m.i JOIN made n ON n.type = 'VmNicVO' AND n.i = m.i
     WHERE m.type = 'PortForwardingRuleVO'",
    "INSERT INTO eips (uuid, name, vip_uuid, vm_nic_uuid, attach_order, state, service_number, backend_number, create_date,
        last_op_date)
     SELECT m.uuid, 'eip-' || m.i, v.uuid, n.uuid, 1, 'Enabled', 400000 + m.i, 400000 + m.i, m.i * 1000, m.i * 1000
     FROM made m JOIN made v ON v.type = 'VipVO elastic' AND v.i = m.i JOIN made n ON n.type = 'VmNicVO' AND n.i = m.i
     WHERE m.type = 'EipVO'",
    "DROP TABLE made",
];

async fn fill(store: &Store) -> Result<()> {
    let mut tx = store.begin().await?;
    for statement in FILL {
        let filled = sqlx::query(statement).bind(ROWS).execute(tx.conn()).await;
        filled.with_context(|| format!("cannot fill the store: {statement}"))?;
    }
    Ok(tx.commit().await?)
}

/// Clients that share a session and keep their connections.
#[derive(Clone, Debug)]
struct Customers {
    http: Client,
    base: String,
    authorization: String,
}

impl Customers {
    fn new(api: &Api) -> Result<Self> {
        let http = Client::builder().timeout(PATIENCE).build().context("cannot make an HTTP client")?;
        let session = api.session().context("the admin is logged in")?;
        Ok(Self { http, base: api.base().to_owned(), authorization: format!("OAuth {session}") })
    }

    /// Creates a VIP; returns its job's location.
    async fn create(&self, network: &str) -> Result<String> {
        self.ask(Method::POST, "/vips", &json!({ "params": { "name": "vip", "l3NetworkUuid": network } })).await
    }

    /// Makes a call; returns its job's location.
    async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<String> {
        let url = format!("{}/zstack/v1{path}", self.base);
        let request = self.http.request(method, url).header("Authorization", &self.authorization);
        let reply = request.json(body).send().await?;
        ensure!(reply.status() == 202, "{path} is refused: {}", reply.text().await?);
        let reply: Value = reply.json().await?;
        reply["location"].as_str().map(str::to_owned).with_context(|| format!("no location in {reply}"))
    }

    /// Polls a job; returns whether it has succeeded.
    async fn poll(&self, location: &str) -> Result<bool> {
        let reply = self.http.get(location).send().await?;
        match reply.status().as_u16() {
            200 => Ok(true),
            202 => Ok(false),
            status => anyhow::bail!("{location}: {status}: {}", reply.text().await?),
        }
    }

    /// Waits until a job has succeeded.
    async fn finish(&self, location: &str) -> Result<()> {
        let start = Instant::now();
        while !self.poll(location).await? {
            ensure!(start.elapsed() < PATIENCE, "job {location} still runs");
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Limits ports of VIPs one after another; returns how long each took.
    async fn keep_limiting(self, ports: Vec<(String, u32)>) -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        for (vip, port) in ports {
            let start = Instant::now();
            let limit = json!({ "setVipQos": { "port": port, "inboundBandwidth": LIMIT } });
            let location = self.ask(Method::PUT, &format!("/vips/{vip}/actions"), &limit).await?;
            self.finish(&location).await?;
            took.push(start.elapsed());
        }
        Ok(took)
    }

    /// Creates VIPs one after another until `end`; returns how long each took.
    async fn keep_creating(self, network: String, end: Instant) -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            self.finish(&self.create(&network).await?).await?;
            took.push(start.elapsed());
        }
        Ok(took)
    }

    async fn keep_polling(self, location: String) -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        for _ in 0..POLLS {
            let start = Instant::now();
            ensure!(self.poll(&location).await?, "a job that had succeeded is running again");
            took.push(start.elapsed());
        }
        Ok(took)
    }
}

/// Measures VIPs created per second, and the 99th percentile of the time that one takes.
async fn creates(report: &mut Report, effort: Effort, customers: &Customers, network: &str) -> Result<()> {
    let (mut rates, mut slowest) = (Series::default(), Series::default());
    for _ in 0..effort.rounds {
        let start = Instant::now();
        let end = start + Duration::from_secs(u64::from(effort.seconds));
        let took = all((0..CUSTOMERS).map(|_| customers.clone().keep_creating(network.to_owned(), end))).await?;
        rates.push(took.len() as f64 / start.elapsed().as_secs_f64());
        slowest.push(percentile(took, 99));
    }
    report.add(rates.row(format!("VIPs created by {CUSTOMERS} customers"), "/s").at_least(1000.0));
    report.add(slowest.row("until a VIP's job has succeeded: 99 of 100", "ms").at_most(50.0));
    Ok(())
}

/// Measures polls per second by a thousand clients, each on its own connection. A failed poll is an error.
async fn polls(report: &mut Report, effort: Effort, customers: &Customers, network: &str) -> Result<()> {
    let location = customers.create(network).await?;
    customers.finish(&location).await?;
    let (mut rates, mut slowest) = (Series::default(), Series::default());
    for _ in 0..effort.rounds {
        let start = Instant::now();
        let took = all((0..POLLERS).map(|_| customers.clone().keep_polling(location.clone()))).await?;
        rates.push(took.len() as f64 / start.elapsed().as_secs_f64());
        slowest.push(percentile(took, 99));
    }
    report.add(rates.row(format!("polls of {POLLERS} clients, none failed"), "/s"));
    report.add(slowest.row("a poll among them: 99 of 100", "ms"));
    Ok(())
}

/// Runs all side by side; returns their results together.
async fn all<F>(work: impl Iterator<Item = F>) -> Result<Vec<Duration>>
where
    F: Future<Output = Result<Vec<Duration>>> + Send + 'static,
{
    let mut running: JoinSet<_> = work.collect();
    let mut all = Vec::new();
    while let Some(done) = running.join_next().await {
        all.extend(done.context("a client has panicked")??);
    }
    Ok(all)
}

/// The given percentile of the durations, in milliseconds.
fn percentile(mut took: Vec<Duration>, percent: usize) -> f64 {
    took.sort();
    let at = (took.len() * percent / 100).min(took.len().saturating_sub(1));
    took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e3)
}
