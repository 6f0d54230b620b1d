//! Running the controller as an operator does: its commands, its privileges, its log.

mod detach;
mod log;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::Command,
    time::Duration,
};
use vipgate_tests::{
    both_hooks,
    lab::{
        Cloud, Controller, ECHO, Hook, Lab, LabOptions, Listener, Result, Running, UDP, WEB, vipgate_binary,
        wait_for_resets, wait_until,
    },
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Longest time until a failed setup is tried again, on a machine busy with other tests.
const TRIED_AGAIN: Duration = Duration::from_secs(120);

/// Time until the log reports an event, on a machine busy with other tests.
const LOGGED: Duration = Duration::from_secs(30);

fn status(lab: &Lab) -> Result<Value> {
    let output = lab.vipgate("status --output json")?;
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn status_reports_the_same_with_and_without_a_controller() -> Result<()> {
    let run = Running::new(Hook::Tc, 1, 2)?;
    let (_, listener, vip) = run.cloud.balanced(VIP, WEB, &[0, 1])?;
    run.lab.client().fetch_many(vip, 10)?;
    run.cloud.remove_backends(&listener, &[1])?;
    let with = status(&run.lab)?;
    let Running { controller, lab, .. } = run;
    assert!(controller.stop()?.success());
    let without = status(&lab)?;
    assert_eq!(with["services"], without["services"]);

    let devices = with["devices"].as_array().context("a list")?;
    let shown = |device: &Value| (device["name"].clone(), device["hook"].clone(), device["why"].clone());
    let why = Value::from("the configuration says so: hook = \"tc\"");
    assert_eq!(
        devices.iter().map(shown).collect::<Vec<_>>(),
        ["priv0", "pub0"].map(|name| (name.into(), "tc".into(), why.clone())),
    );
    let service = &with["services"][0];
    assert_eq!(
        (&service["vip"], &service["protocol"], &service["port"]),
        (&"10.1.0.10".into(), &"tcp".into(), &80.into())
    );
    assert_eq!(service["algorithm"], "roundrobin");
    assert_eq!(service["backends"].as_array().map(Vec::len), Some(1), "{service}");
    assert_eq!(service["backends"][0]["connections"], 5);
    let text = String::from_utf8_lossy(&lab.vipgate("status --hook auto")?.stdout).into_owned();
    assert!(text.contains("10.1.0.10 tcp 80 roundrobin"), "{text}");
    assert!(text.contains("device   pub0 tc: native XDP turns segmentation offload off"), "{text}");
    Ok(())
}

#[test]
fn status_reports_unhealthy_backends_and_the_state_of_the_checks() -> Result<()> {
    let mut run = Running::new(Hook::Tc, 1, 2)?;
    let tags = &["healthCheckInterval::1", "healthCheckTimeout::1"];
    run.cloud.balanced(VIP, Listener { tags, ..WEB }, &[0, 1])?;
    run.lab.backends[0].stop_web();
    let found = wait_until("status to report it", Duration::from_secs(30), || {
        let found = status(&run.lab)?;
        anyhow::ensure!(found["checks"]["unhealthy"] == 1 && found["services"][0]["backends"][0]["healthy"] == false);
        anyhow::ensure!(found["checks"]["perMinute"].as_u64() > Some(0), "{found}");
        Ok(found)
    })?;
    assert_eq!(found["checks"]["backends"], 2);
    assert_eq!(found["services"][0]["backends"][1]["healthy"], true);
    let text = String::from_utf8_lossy(&run.lab.vipgate("status")?.stdout).into_owned();
    assert!(text.contains("checks   2 backends, 1 unhealthy") && text.contains("0 open, unhealthy"), "{text}");
    // Without a controller nothing is checked, but status still reports what the kernel holds.
    run.controller.stop()?;
    let found = status(&run.lab)?;
    assert!(found["checks"].is_null() && found["services"][0]["backends"][0]["healthy"] == false, "{found}");
    Ok(())
}

/// The kernel drops such packets after the program has ended, so the packet path cannot count them itself.
#[test]
fn status_counts_xdp_redirects_that_the_kernel_refuses() -> Result<()> {
    let run = Running::new(Hook::Xdp, 1, 1)?;
    let vip = run.cloud.balanced(VIP, UDP, &[0])?.2;
    let mut client = run.lab.client().udp(vip)?;
    let Running { controller, lab, .. } = run;
    // Without the controller, the flows do not learn that their route is gone.
    controller.kill()?;
    // The client asks after the controller's last change of the epoch: with the first answer the neighbour is known, with the
    // second the flow has its route, which nothing invalidates any more.
    client.ask()?;
    client.ask()?;
    let failed = || Ok::<_, anyhow::Error>(status(&lab)?["drops"]["redirect_failed"].as_u64().unwrap_or_default());
    assert_eq!(failed()?, 0);
    lab.router.ip("link set priv0 down")?;
    wait_until("a redirect that fails to be counted", Duration::from_secs(10), || {
        ensure!(client.ask().is_err(), "the datagram was answered");
        ensure!(failed()? > 0, "{}", status(&lab)?["drops"]);
        Ok(())
    })
}

#[test]
fn status_of_a_router_without_tables_says_so() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    let output = lab.vipgate("status")?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing is pinned"));
    Ok(())
}

#[test]
fn flows_shows_each_connection_once_with_both_directions_and_without_a_controller() -> Result<()> {
    let run = Running::new(Hook::Tc, 1, 2)?;
    let (_, balancer) = run.cloud.load_balancer(VIP)?;
    for listener in [ECHO, UDP] {
        let uuid = run.cloud.listener(&balancer, listener)?;
        run.cloud.add_backends(&uuid, &[0, 1])?;
    }
    let client = run.lab.client();
    let mut tcp = client.tcp(SocketAddrV4::new(VIP, ECHO.port))?;
    let mut udp = client.udp(SocketAddrV4::new(VIP, UDP.port))?;
    let (tcp_origin, udp_origin) = (tcp.ask()?, udp.ask()?);
    for _ in 0..9 {
        udp.ask()?;
    }
    let Running { controller, lab, .. } = run;
    controller.kill()?;

    let flows = |words: &str| -> Result<Value> {
        let output = lab.vipgate(&format!("flows --output json {words}"))?;
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let all = flows("--sort packets")?;
    assert_eq!(all["found"], 2, "{all}");
    let [datagrams, stream] = [0, 1].map(|index| &all["connections"][index]);
    assert_eq!(datagrams["client"], udp_origin.client.to_string());
    assert_eq!(datagrams["vip"], format!("{VIP}:{}", UDP.port));
    assert_eq!((&datagrams["state"], &datagrams["protocol"]), (&"datagrams".into(), &"udp".into()));
    assert_eq!((&datagrams["packetsIn"], &datagrams["packetsOut"]), (&10.into(), &10.into()));
    assert!(datagrams["bytesOut"].as_u64() > datagrams["bytesIn"].as_u64(), "answers are longer: {datagrams}");
    assert_eq!((&stream["state"], &stream["client"]), (&"established".into(), &tcp_origin.client.to_string().into()));
    let backend = lab.backends.iter().find(|backend| backend.name == tcp_origin.backend).context("a backend")?;
    assert_eq!(stream["backend"], format!("{}:{}", backend.address, ECHO.instance_port));

    assert_eq!(flows("--protocol udp --state datagrams --client 10.1.0.0/24")?["found"], 1);
    assert_eq!(flows("--vip 10.1.0.11")?["found"], 0);
    assert_eq!(flows("--top 1 --sort bytes")?["connections"].as_array().map(Vec::len), Some(1));
    let text = lab.vipgate(&format!("flows --port {}", ECHO.port))?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(&tcp_origin.client.to_string()) && text.ends_with("1 connection\n"), "{text}");
    Ok(())
}

#[test]
fn flows_of_a_router_without_tables_says_so() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    let output = lab.vipgate("flows")?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing is pinned"));
    assert_eq!(lab.vipgate("flows --client 10.1")?.status.code(), Some(2));
    Ok(())
}

#[test]
fn the_reason_for_a_devices_hook_is_that_of_the_running_controllers_setting() -> Result<()> {
    let Running { lab, controller, .. } = Running::new(Hook::Xdp, 0, 1)?;
    let said = |words: &str| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&lab.vipgate(words)?.stdout).into_owned());
    for command in ["status --hook auto", "doctor --hook auto"] {
        let text = said(command)?;
        assert_eq!(text.matches("the configuration says so: hook = \"xdp\"").count(), 2, "{text}");
    }
    assert!(controller.stop()?.success());
    for command in ["status --hook auto", "doctor --hook auto"] {
        let text = said(command)?;
        assert_eq!(text.matches("it was set up under another setting than hook = \"auto\"").count(), 2, "{text}");
    }
    Ok(())
}

#[test]
fn a_device_that_cannot_be_set_up_is_reported_by_status_and_found_by_doctor() -> Result<()> {
    let Running { lab, controller, cloud, .. } = Running::new(Hook::Tc, 1, 1)?;
    let (_, _, vip) = cloud.balanced(VIP, WEB, &[0])?;
    assert!(controller.stop()?.success());
    assert!(lab.vipgate("detach")?.status.success());
    lab.router.run("tc", "qdisc add dev pub0 ingress")?;
    let _controller = Controller::start_as(&lab, &["env", "VIPGATE_TC=clsact"])?;

    let reported = status(&lab)?;
    let devices = reported["devices"].as_array().context("devices")?;
    let device =
        devices.iter().find(|device| device["name"] == "pub0").with_context(|| format!("no pub0: {reported}"))?;
    let problem = device["problem"].as_str().with_context(|| format!("no problem: {reported}"))?;
    assert!(device["hook"].is_null() && problem.contains("qdisc"), "{device}");
    assert!(devices.iter().any(|device| device["name"] == "priv0" && device["problem"].is_null()), "{reported}");
    let text = String::from_utf8_lossy(&lab.vipgate("status")?.stdout).into_owned();
    assert!(text.contains("device   pub0 no program: it cannot be set up: ") && text.contains(problem), "{text}");

    let output = lab.vipgate("doctor --output json")?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let finding = &report["findings"][0];
    assert_eq!((&finding["device"], &finding["check"]), (&"pub0".into(), &"refused".into()), "{report}");
    assert_eq!((output.status.code(), &finding["severity"]), (Some(1), &"error".into()), "{report}");
    assert!(lab.client().fetch(vip).is_err(), "a router without a program on its public device balances");

    let remedy = finding["remedy"].as_str().context("a remedy")?;
    assert!(lab.router.command("sh").args(["-c", remedy]).output()?.status.success(), "{remedy}");
    wait_until("the device to be set up", TRIED_AGAIN, || {
        ensure!(status(&lab)?["devices"][1]["hook"] == "tc", "it is not set up");
        Ok(())
    })?;
    lab.client().fetch(vip)?;
    assert_eq!(lab.vipgate("doctor")?.status.code(), Some(0));
    Ok(())
}

#[test]
fn check_config_prints_what_serve_would_use_without_the_password() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    let file = lab.directory().join("vipgate.toml");
    fs::write(&file, "hook = 'tc'\nadmin_password = 'hunter2'\n[datapath]\nflows = 4096\n")?;
    let output =
        lab.vipgate(&format!("check-config --config {} --listen 10.0.0.1:80 --output json", file.display()))?;
    let text = String::from_utf8(output.stdout)?;
    assert!(!text.contains("hunter2"), "{text}");
    let settings: Value = serde_json::from_str(&text)?;
    assert_eq!(settings["listen"]["value"], "10.0.0.1:80");
    assert_eq!(settings["listen"]["origin"], "--listen");
    assert_eq!(settings["bpffs"]["origin"], "VIPGATE_BPFFS");
    assert_eq!((&settings["datapath.flows"]["value"], &settings["hook"]["value"]), (&"4096".into(), &"tc".into()));
    Ok(())
}

#[test]
fn the_packaged_configuration_shows_the_defaults() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    let packaged = fs::read_to_string(packaging().join("vipgate.toml"))?;
    // Settings are the lines that a user would uncomment; lines of explanation begin with a space.
    let is_setting = |line: &str| line.starts_with('#') && !line.starts_with("# ");
    let settings = packaged.lines().map(|line| if is_setting(line) { &line[1..] } else { line });
    let settings: Vec<&str> = settings.filter(|line| !line.starts_with("admin_password_file")).collect();
    let file = lab.directory().join("vipgate.toml");
    fs::write(&file, settings.join("\n"))?;
    let shown = |words: &str| -> Result<Value> {
        let mut command = Command::new(vipgate_binary()?);
        let output = command.args(["check-config", "--output", "json"]).args(words.split_whitespace()).output()?;
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (configured, default) = (shown(&format!("--config {}", file.display()))?, shown("--config /dev/null")?);
    for (key, setting) in configured.as_object().context("an object")? {
        assert_eq!(setting["value"], default[key]["value"], "{key}");
        assert!(key == "admin_password" || setting["origin"] != "default", "{key} is not in the file");
    }
    Ok(())
}

#[test]
fn the_systemd_units_capabilities_suffice() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 1, backends: 1 })?;
    let unit = fs::read_to_string(packaging().join("vipgate.service"))?;
    let set =
        unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).context("the unit bounds them")?;
    let kept: Vec<String> = set.split_whitespace().map(|name| name.replacen("CAP_", "+", 1).to_lowercase()).collect();
    let controller = Controller::start_as(&lab, &["setpriv", "--bounding-set", &format!("-all,{}", kept.join(","))])?;
    let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
    let (_, _, vip) = cloud.balanced(VIP, WEB, &[0])?;
    lab.client().fetch(vip)?;
    drop(controller);
    Ok(())
}

#[test]
fn sigint_ends_the_controller_as_cleanly_as_sigterm() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    let controller = lab.start_controller()?;
    assert!(controller.stop_by(Signal::SIGINT)?.success());
    Ok(())
}

both_hooks! {
    fn an_idle_connection_ends_after_its_listeners_timeout_and_both_ends_are_reset(hook) {
        let run = Running::new(hook, 1, 1)?;
        let (_, balancer) = run.cloud.load_balancer(VIP)?;
        let body = serde_json::json!({
            "params": {
                "name": "idle", "protocol": "tcp", "loadBalancerPort": ECHO.port, "instancePort": ECHO.instance_port,
            },
            "systemTags": ["connectionIdleTimeout::1"],
        });
        let reply = run.cloud.api.post(&format!("/load-balancers/{balancer}/listeners"), &body)?;
        let listener = reply["inventory"]["uuid"].as_str().context("a listener")?;
        run.cloud.add_backends(listener, &[0])?;
        let mut session = run.lab.client().tcp(SocketAddrV4::new(VIP, ECHO.port))?;
        session.ask()?;
        let open = || -> Result<Value> { Ok(status(&run.lab)?["services"][0]["backends"][0]["open"].clone()) };
        assert_eq!(open()?, 1);
        wait_until("the sweeper", Duration::from_secs(30), || {
            anyhow::ensure!(open()? == 0, "it is still counted");
            Ok(())
        })?;
        wait_for_resets([(run.lab.client(), VIP), (&run.lab.backends[0], run.lab.client().address)])?;
        session.wait_for_reset()
    }
}

fn packaging() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging"))
}
