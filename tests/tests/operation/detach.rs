//! A router has one controller, and `vipgate detach` restores what it must.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{fs, process::Command};
use vipgate_tests::{
    both_hooks,
    lab::{Cloud, Controller, Hook, Lab, LabOptions, Result, Running, WEB, vipgate_binary},
};

use crate::VIP;

#[test]
fn a_router_has_one_controller_and_is_not_detached_while_it_runs() -> Result<()> {
    let run = Running::new(Hook::Tc, 1, 1)?;
    let (_, _, vip) = run.cloud.balanced(VIP, WEB, &[0])?;
    let (status, said) = Controller::start_and_fail(&run.lab, &["--listen", "127.0.0.1:8081"])?;
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains("a controller is running"), "{said}");
    let detach = run.lab.vipgate("detach")?;
    assert_eq!(detach.status.code(), Some(4), "{}", String::from_utf8_lossy(&detach.stderr));
    run.lab.client().fetch(vip)?;
    Ok(())
}

#[test]
fn a_running_controller_is_found_by_another_path_and_from_another_namespace_so_detach_is_refused() -> Result<()> {
    let run = Running::new(Hook::Tc, 1, 1)?;
    let (_, _, vip) = run.cloud.balanced(VIP, WEB, &[0])?;
    let bpffs = run.lab.bpffs.path();
    let link = run.lab.directory().join("pins");
    std::os::unix::fs::symlink(bpffs, &link)?;
    for path in [format!("{}/", bpffs.display()), link.display().to_string()] {
        let detach = run.lab.vipgate(&format!("detach --bpffs {path}"))?;
        assert_eq!(detach.status.code(), Some(4), "{path}: {}", String::from_utf8_lossy(&detach.stderr));
        let listen = ["--listen", "127.0.0.1:8081", "--bpffs", &path];
        assert_eq!(Controller::start_and_fail(&run.lab, &listen)?.0.code(), Some(4), "{path}");
    }
    // The tests' own network namespace is not the router's.
    let detach = Command::new(vipgate_binary()?).arg("detach").arg("--bpffs").arg(bpffs).output()?;
    let said = String::from_utf8_lossy(&detach.stderr).into_owned();
    assert_eq!(detach.status.code(), Some(4), "{said}");
    assert!(said.contains(&bpffs.display().to_string()), "{said}");
    run.lab.client().fetch(vip)?;
    let status = run.lab.vipgate(&format!("status --output json --bpffs {}", link.display()))?;
    let status: Value = serde_json::from_slice(&status.stdout)?;
    assert!(!status["checks"].is_null(), "the running controller was not asked: {status}");
    Ok(())
}

both_hooks! {
    fn detach_restores_the_kernels_settings_that_nobody_has_changed_since(hook) {
        let lab = Lab::new(LabOptions { hook, clients: 1, backends: 1 })?;
        let router = &lab.router;
        for (key, value) in [("conf/pub0/rp_filter", "1"), ("conf/priv0/rp_filter", "1"), ("ip_forward", "0")] {
            router.sysctl(&format!("net/ipv4/{key}"), value)?;
        }
        let names = ["forwarding", "accept_local", "rp_filter", "arp_ignore", "arp_announce"];
        let of_devices = ["all", "pub0", "priv0"].map(|device| names.map(|name| format!("net/ipv4/conf/{device}/{name}")));
        let keys: Vec<String> =
            of_devices.into_iter().flatten().chain(["net/ipv4/ip_local_port_range".to_owned()]).collect();
        let settings = || -> Result<Vec<(&str, String)>> {
            let read = |key: &String| router.run("cat", &format!("/proc/sys/{key}"));
            keys.iter().map(|key| Ok((key.as_str(), read(key)?))).collect()
        };
        let before = settings()?;
        let controller = lab.start_controller()?;
        ensure!(controller.said().contains("net.ipv4.ip_forward is 0"), "{}", controller.said());
        let cloud = Cloud::new(&lab, controller.api(router)?)?;
        cloud.attach_services(&["SNAT"])?;
        let changed = settings()?;
        let differ = before.iter().zip(&changed).filter(|(before, now)| before != now).map(|((key, _), _)| *key);
        let of_all = ["arp_ignore", "arp_announce"].map(|name| format!("net/ipv4/conf/all/{name}"));
        let of_each = ["pub0", "priv0"].map(|device| names[..3].iter().map(move |name| format!("net/ipv4/conf/{device}/{name}")));
        let expected = of_all.into_iter().chain(of_each.into_iter().flatten()).chain(keys.last().cloned());
        assert_eq!(differ.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        // Killed, so that only the kernel holds the previous settings; then started and killed again.
        controller.kill()?;
        lab.start_controller()?.kill()?;
        router.sysctl("net/ipv4/conf/priv0/rp_filter", "0")?;
        let detach = lab.vipgate("detach --output json")?;
        let told: Value = serde_json::from_slice(&detach.stdout)?;
        assert_eq!((&told["settings"], &told["left"]), (&8.into(), &serde_json::json!([])), "{told}");
        let after = settings()?;
        for ((key, before), (_, after)) in before.iter().zip(&after) {
            let expected = if *key == "net/ipv4/conf/priv0/rp_filter" { "0\n" } else { before };
            assert_eq!(after, expected, "{key}");
        }
        assert_eq!(fs::read_dir(lab.bpffs.path())?.count(), 0, "pins are left");
        Ok(())
    }
}

#[test]
fn detach_removes_foreign_files_among_the_pins() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    assert!(lab.start_controller()?.stop()?.success());
    let version = fs::read_dir(lab.bpffs.path())?.flatten().next().context("pins")?.path();
    fs::create_dir_all(lab.bpffs.path().join("clsact/abc"))?;
    for directory in ["sub/sub", "links/sub"] {
        fs::create_dir_all(version.join(directory))?;
    }
    let detach = lab.vipgate("detach")?;
    assert!(detach.status.success(), "{}", String::from_utf8_lossy(&detach.stderr));
    let text = String::from_utf8_lossy(&detach.stdout).into_owned();
    assert!(text.starts_with("detached from no device; ") && !text.contains(" 0 tables"), "{text}");
    assert_eq!(fs::read_dir(lab.bpffs.path())?.count(), 0, "pins are left");
    Ok(())
}

#[test]
fn a_user_who_may_not_read_the_pins_gets_an_error_that_says_so() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    assert!(lab.start_controller()?.stop()?.success());
    for command in ["status", "flows", "detach"] {
        let mut nobody = lab.router.command("setpriv");
        nobody.args(["--reuid", "65534", "--clear-groups"]).arg(vipgate_binary()?);
        let output = nobody.arg(command).arg("--bpffs").arg(lab.bpffs.path()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{command}: {said}");
        assert!(said.contains("not permitted") && said.contains("needs root"), "{command}: {said}");
    }
    Ok(())
}
