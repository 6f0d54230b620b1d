//! Bad input: it gets a clear error, and nothing is stored or changed in the kernel.

use reqwest::Method;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use vipgate_tests::lab::{Api, Controller, Failure, Hook, Lab, LabOptions, Listener, Result, Running, UDP, WEB};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);

/// Exit codes that `vipgate --help` lists.
mod exit {
    pub(super) const CONFIGURATION: i32 = 2;
    pub(super) const PRIVILEGES: i32 = 3;
    pub(super) const ADDRESS: i32 = 4;
    pub(super) const STORE: i32 = 5;
    pub(super) const KERNEL: i32 = 6;
}

fn bare_lab() -> Result<Lab> {
    Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })
}

/// Starts a controller that must end with `code` and print each of `words`.
fn ends_with(lab: &Lab, arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let (status, said) = Controller::start_and_fail(lab, arguments)?;
    assert_eq!(status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
    Ok(())
}

#[test]
fn an_unknown_setting_or_value_ends_serve_and_its_place_is_named() -> Result<()> {
    let lab = bare_lab()?;
    let file = lab.directory().join("wrong.toml");
    std::fs::write(&file, "lisen = '127.0.0.1:1'\n")?;
    let file = file.display().to_string();
    ends_with(&lab, &["--config", &file], exit::CONFIGURATION, &[&file, "lisen", "did you mean `listen`"])?;
    ends_with(&lab, &["--config", "/nonexistent.toml"], exit::CONFIGURATION, &["/nonexistent.toml"])?;
    ends_with(&lab, &["--log-format", "xml"], exit::CONFIGURATION, &["--log-format", "human, json"])
}

#[test]
fn a_taken_address_ends_serve_before_anything_is_loaded_and_is_named() -> Result<()> {
    let lab = bare_lab()?;
    let _taken = lab.router.within(|| Ok(std::net::TcpListener::bind("127.0.0.1:8080")?))?;
    ends_with(&lab, &[], exit::ADDRESS, &["127.0.0.1:8080", "in use"])?;
    assert!(!lab.bpffs.path().exists(), "it pinned programs before it bound its address");
    Ok(())
}

#[test]
fn a_store_that_cannot_be_opened_ends_serve_and_is_named() -> Result<()> {
    let lab = bare_lab()?;
    ends_with(&lab, &["--store", "sqlite:///proc/none/vipgate.db"], exit::STORE, &["/proc/none/vipgate.db"])?;
    let garbage = lab.directory().join("garbage.db");
    std::fs::write(&garbage, "this is no database, however long one looks at it".repeat(100))?;
    let url = format!("sqlite://{}", garbage.display());
    ends_with(&lab, &["--store", &url], exit::STORE, &["garbage.db"])
}

#[test]
fn missing_privileges_end_serve_and_are_named() -> Result<()> {
    let lab = bare_lab()?;
    let without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let said = Controller::start_as(&lab, &without).map(|_| ()).expect_err("it can load nothing").to_string();
    assert!(said.contains(&format!("exit status: {}", exit::PRIVILEGES)), "{said}");
    assert!(said.contains("CAP_"), "{said}");
    Ok(())
}

#[test]
fn a_directory_outside_bpffs_ends_serve_and_is_named() -> Result<()> {
    let lab = bare_lab()?;
    let directory = lab.directory().join("pins").display().to_string();
    ends_with(&lab, &["--bpffs", &directory], exit::KERNEL, &[&directory, "bpf"])
}

/// The number of resources of every kind.
fn census(api: &Api) -> Result<Vec<(&'static str, Value)>> {
    const KINDS: [&str; 8] = [
        "/zones",
        "/l2-networks",
        "/l3-networks",
        "/l3-networks/ip-ranges",
        "/vm-instances",
        "/vips",
        "/load-balancers",
        "/load-balancers/listeners",
    ];
    KINDS.into_iter().map(|kind| Ok((kind, api.get(&format!("{kind}?count=true"))?["total"].clone()))).collect()
}

/// POSTs; the job must fail with `code` and details that contain each of `words`.
fn refuses(api: &Api, path: &str, params: &Value, code: &str, words: &[&str]) -> Result<()> {
    let failure = api.refused(&Method::POST, path, Some(&json!({ "params": params })))?;
    expect(&failure, code, words);
    Ok(())
}

fn expect(failure: &Failure, code: &str, words: &[&str]) {
    assert_eq!((failure.status, failure.code()), (503, code), "{failure}");
    for word in words {
        assert!(failure.text.contains(word), "`{word}` is missing in: {failure}");
    }
}

#[test]
fn calls_that_break_a_rule_are_refused_by_naming_the_value_and_leave_nothing_behind() -> Result<()> {
    let run = Running::new(Hook::Tc, 1, 2)?;
    let (vip, listener, at) = run.cloud.balanced(VIP, WEB, &[0])?;
    let api = &run.cloud.api;
    let before = census(api)?;
    let nobody = "00000000000040008000000000000000";

    let l2 = json!({ "name": "x", "zoneUuid": run.cloud.zone, "physicalInterface": "nosuch0" });
    refuses(api, "/l2-networks/no-vlan", &l2, "SYS.1007", &["nosuch0", "pub0"])?;
    let vip_at = |ip: &str| json!({ "name": "x", "l3NetworkUuid": run.cloud.public_l3, "requiredIp": ip });
    refuses(api, "/vips", &vip_at("10.9.9.9"), "L3.1000", &["10.9.9.9"])?;
    refuses(api, "/vips", &vip_at("10.1.0.10"), "SYS.1006", &["10.1.0.10"])?;
    refuses(api, "/vips", &vip_at("ten"), "SYS.1007", &["requiredIp"])?;
    refuses(api, "/vips", &json!({ "name": "x", "l3NetworkUuid": nobody }), "SYS.1003", &[nobody])?;
    refuses(api, "/vips", &json!({ "l3NetworkUuid": run.cloud.public_l3 }), "SYS.1007", &["name"])?;

    let balancer = api.query("/load-balancers")?[0]["uuid"].as_str().unwrap_or_default().to_owned();
    let path = format!("/load-balancers/{balancer}/listeners");
    let port = |port: i64| json!({ "name": "x", "loadBalancerPort": port });
    refuses(api, &path, &port(0), "SYS.1007", &["loadBalancerPort"])?;
    refuses(api, &path, &port(65_536), "SYS.1007", &["loadBalancerPort"])?;
    refuses(api, &path, &port(80), "SYS.1007", &["80"])?;
    let tagged = json!({ "params": port(81), "systemTags": ["balancerAlgorithm::fastest"] });
    expect(&api.refused(&Method::POST, &path, Some(&tagged))?, "SYS.1007", &["fastest"]);
    let https = json!({ "name": "x", "loadBalancerPort": 443, "protocol": "https" });
    let failure = api.refused(&Method::POST, &path, Some(&json!({ "params": https })))?;
    assert_eq!(failure.status, 503, "{failure}");

    let nics = format!("/load-balancers/listeners/{listener}/vm-instances/nics");
    refuses(api, &nics, &json!({ "vmNicUuids": [nobody] }), "SYS.1003", &[nobody])?;
    refuses(api, &nics, &json!({ "vmNicUuids": [] }), "SYS.1007", &["vmNicUuids"])?;
    refuses(api, &nics, &json!({ "vmNicUuids": [run.cloud.vms[0].nic] }), "SYS.1006", &[&run.cloud.vms[0].nic])?;

    assert_eq!(census(api)?, before);
    assert_eq!(run.lab.client().fetch(at)?.backend, "backend1");
    api.delete(&format!("/vips/{vip}"))?;
    Ok(())
}

#[test]
fn a_backend_on_a_network_without_the_service_is_foreign() -> Result<()> {
    let run = Running::new(Hook::Tc, 1, 1)?;
    let (_, balancer) = run.cloud.load_balancer(VIP)?;
    let listener = run.cloud.listener(&balancer, WEB)?;
    let vm = json!({ "name": "outsider", "l3NetworkUuids": [run.cloud.public_l3] });
    let vm = run.cloud.api.create("/vm-instances", &vm)?;
    let nic = &vm["vmNics"][0]["uuid"];
    let path = format!("/load-balancers/listeners/{listener}/vm-instances/nics");
    refuses(&run.cloud.api, &path, &json!({ "vmNicUuids": [nic] }), "SYS.1006", &[nic.as_str().unwrap_or("nic")])
}

#[test]
fn requests_that_are_not_calls_get_a_plain_4xx_at_once() -> Result<()> {
    let lab = bare_lab()?;
    let controller = lab.start_controller()?;
    let api = controller.api(&lab.router)?;
    let url = format!("{}/zstack/v1/zones", api.base());
    let status = |request| -> Result<u16> { Ok(api.finish(request)?.status) };

    assert_eq!(status(api.request(Method::POST, &url).body("{"))?, 400);
    assert_eq!(status(api.request(Method::POST, &url).body("x".repeat((1 << 20) + 1)))?, 413);
    assert_eq!(status(api.request(Method::POST, &url).header("X-Job-UUID", "short").body("{}"))?, 400);
    assert_eq!(status(api.request(Method::GET, &format!("{}/zstack/v1/nonsense", api.base())))?, 404);
    assert_eq!(status(api.request(Method::GET, &format!("{url}?limit=many")))?, 400);
    assert_eq!(status(api.request(Method::GET, &format!("{url}?q=name")))?, 400);
    assert_eq!(status(api.request(Method::GET, &format!("{}/zstack/v1/api-jobs/none", api.base())))?, 404);

    let stranger = Api::new(&lab.router, api.base())?;
    assert_eq!(stranger.send(Method::GET, "/zones", None)?.status, 400);
    let expired = stranger.clone().with_session("00000000000040008000000000000000");
    let refused = expired.refused(&Method::GET, "/zones", None)?;
    assert_eq!((refused.status, refused.code()), (503, "ID.1001"));
    let wrong = stranger.log_in("admin", "wrong").map(|_| ()).expect_err("a wrong password is refused");
    let failure: Failure = wrong.downcast()?;
    assert_eq!((failure.status, failure.code()), (503, "ID.1000"));
    Ok(())
}

#[test]
fn a_device_that_cannot_carry_native_xdp_is_refused_and_the_error_names_a_remedy() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Xdp, clients: 0, backends: 0 })?;
    // A bridge's driver has no XDP.
    lab.router.ip("link add plain0 type bridge")?;
    lab.router.ip("link set plain0 up")?;
    let controller = lab.start_controller()?;
    let api = controller.api(&lab.router)?;
    let zone = api.create("/zones", &json!({ "name": "zone" }))?;
    let l2 = json!({ "name": "plain", "zoneUuid": zone["uuid"], "physicalInterface": "plain0" });
    let l2 = api.create("/l2-networks/no-vlan", &l2)?;
    let l3 = json!({ "params": { "name": "plain", "l2NetworkUuid": l2["uuid"], "category": "Public" } });
    let failure = api.refused(&Method::POST, "/l3-networks", Some(&l3))?;
    expect(&failure, "SYS.1006", &["plain0", "XDP", "hook"]);
    assert!(api.query("/l3-networks")?.is_empty(), "the refused network is stored");

    // The problem of one device does not affect another.
    let l2 = json!({ "name": "public", "zoneUuid": zone["uuid"], "physicalInterface": "pub0" });
    let l2 = api.create("/l2-networks/no-vlan", &l2)?;
    api.create("/l3-networks", &json!({ "name": "public", "l2NetworkUuid": l2["uuid"], "category": "Public" }))?;
    Ok(())
}

#[test]
fn a_device_that_vanished_fails_no_call_about_another() -> Result<()> {
    let run = Running::new(Hook::Tc, 1, 1)?;
    let api = &run.cloud.api;
    run.lab.router.ip("link add spare0 type veth peer name spare1")?;
    let l2 = |device: &str| json!({ "name": device, "zoneUuid": run.cloud.zone, "physicalInterface": device });
    let l3 = |l2: &Value| json!({ "name": "spare", "l2NetworkUuid": l2["uuid"], "category": "Private" });
    let first = api.create("/l2-networks/no-vlan", &l2("spare0"))?;
    let second = api.create("/l2-networks/no-vlan", &l2("spare1"))?;
    api.create("/l3-networks", &l3(&first))?;
    run.lab.router.ip("link del spare0")?;
    let gone = api.refused(&Method::POST, "/l3-networks", Some(&json!({ "params": l3(&second) })))?;
    expect(&gone, "SYS.1006", &["spare1"]);
    run.lab.router.ip("link add spare1 type veth peer name spare2")?;
    api.create("/l3-networks", &l3(&second))?;
    run.cloud.balanced(VIP, WEB, &[0])?;
    Ok(())
}

#[test]
fn ports_of_tcp_and_udp_are_apart_and_dns_is_refused() -> Result<()> {
    let run = Running::new(Hook::Tc, 0, 0)?;
    let (_, balancer) = run.cloud.load_balancer(VIP)?;
    run.cloud.listener(&balancer, Listener { port: 8000, ..WEB })?;
    run.cloud.listener(&balancer, Listener { port: 8000, ..UDP })?;
    let path = format!("/load-balancers/{balancer}/listeners");
    let dns = json!({ "name": "dns", "protocol": "udp", "loadBalancerPort": 53 });
    refuses(&run.cloud.api, &path, &dns, "SYS.1007", &["53"])
}
