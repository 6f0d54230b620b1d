//! What `vipgate doctor` finds, and whether its remedies solve it.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{collections::BTreeSet, fs, net::Ipv4Addr, time::Duration};
use vipgate_tests::{
    both_hooks,
    lab::{Hook, Lab, LabOptions, Result, Running, WEB, wait_until},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Longest time until a failed setup is tried again, on a machine busy with other tests.
const TRIED_AGAIN: Duration = Duration::from_secs(120);

/// Doctor's findings of one check.
fn found(lab: &Lab, check: &str) -> Result<Vec<Value>> {
    let report: Value = serde_json::from_slice(&lab.vipgate("doctor --output json")?.stdout)?;
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    Ok(findings.into_iter().filter(|finding| finding["check"] == check).collect())
}

/// Runs the remedies of these findings.
fn mend(lab: &Lab, findings: &[Value]) -> Result<()> {
    for finding in findings {
        let remedy = finding["remedy"].as_str().context("a remedy")?;
        let output = lab.router.command("sh").args(["-c", remedy]).output()?;
        ensure!(output.status.success(), "{remedy}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

both_hooks! {
    fn doctor_finds_broken_settings_and_its_remedies_fix_them(hook) {
        let run = Running::new(hook, 1, 1)?;
        let examine = || -> Result<(Option<i32>, Value)> {
            let output = run.lab.vipgate("doctor --output json")?;
            let report = serde_json::from_slice(&output.stdout);
            Ok((output.status.code(), report.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?))
        };
        let worse = |report: &Value| -> Vec<Value> {
            let findings = report["findings"].as_array().cloned().unwrap_or_default();
            findings.into_iter().filter(|finding| finding["severity"] != "note").collect()
        };
        let (code, well) = examine()?;
        assert_eq!((code, worse(&well)), (Some(0), Vec::new()), "{well}");
        let devices = well["devices"].as_array().context("devices")?;
        assert_eq!(devices.iter().map(|device| &device["name"]).collect::<Vec<_>>(), ["pub0", "priv0"]);
        assert!(devices.iter().all(|device| device["hook"] == run.lab.hook.to_string() && device["driver"] == "veth"));

        let router = &run.lab.router;
        router.sysctl("net/ipv4/conf/pub0/rp_filter", "1")?;
        router.sysctl("net/ipv4/conf/priv0/accept_local", "0")?;
        router.sysctl("net/ipv4/ip_forward", "0")?;
        router.sysctl("net/ipv4/conf/all/arp_ignore", "0")?;
        router.sysctl("net/ipv4/conf/all/arp_announce", "1")?;
        let (code, ill) = examine()?;
        let found: BTreeSet<String> =
            worse(&ill).iter().map(|one| format!("{} {}", one["device"], one["check"]).replace('"', "")).collect();
        let expected = [
            "null arp_announce",
            "null arp_ignore",
            "null ip_forward",
            "priv0 accept_local",
            "priv0 forwarding",
            "pub0 forwarding",
            "pub0 rp_filter",
        ];
        assert_eq!((code, found), (Some(1), expected.map(str::to_owned).into()));
        for finding in worse(&ill) {
            let remedy = finding["remedy"].as_str().context("a remedy")?;
            assert!(router.command("sh").args(["-c", remedy]).output()?.status.success(), "{remedy}");
        }
        assert_eq!(examine()?.0, Some(0));
        Ok(())
    }
}

#[test]
fn doctor_loads_every_program_while_a_controller_runs_and_leaves_nothing() -> Result<()> {
    let run = Running::new(Hook::Tc, 1, 1)?;
    let (_, _, vip) = run.cloud.balanced(VIP, WEB, &[0])?;
    let entries = || Ok::<_, anyhow::Error>(fs::read_dir(run.lab.bpffs.path())?.count());
    let before = entries()?;
    let output = run.lab.vipgate("doctor --output json")?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let programs = report["programs"].as_array().context("programs")?;
    let has = |name: &str| programs.iter().any(|program| program["name"] == name);
    assert!(["vipgate_xdp", "vipgate_tc", "vipgate_behind", "vipgate_egress", "vipgate_queue"].into_iter().all(has));
    for program in programs {
        let is_well = program["loads"] == true && program["reason"].is_null();
        assert!(is_well && program["instructions"].as_u64() > Some(0), "{program}");
    }
    run.lab.client().fetch(vip)?;
    assert_eq!(entries()?, before, "the running controller's");
    let text = String::from_utf8_lossy(&run.lab.vipgate("doctor")?.stdout).into_owned();
    assert!(text.contains("program  vipgate_tc: "), "{text}");
    Ok(())
}

#[test]
fn doctor_examines_every_device_of_a_router_before_its_first_start() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    let output = lab.vipgate("doctor")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("device   pub0: no program, driver veth") && text.contains("device   priv0"), "{text}");
    assert_eq!(output.status.code(), Some(0), "{text}");
    Ok(())
}

both_hooks! {
    fn doctor_finds_a_device_that_was_renamed_while_the_controller_runs(hook) {
        let run = Running::new(hook, 0, 1)?;
        run.cloud.balanced(VIP, WEB, &[0])?;
        run.lab.router.run("ip", "link set dev pub0 name pubx")?;
        wait_until("the doctor to find it", TRIED_AGAIN, || {
            let output = run.lab.vipgate("doctor --output json")?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            let finding = &report["findings"][0];
            ensure!(finding["device"] == "pub0" && finding["check"] == "refused", "{report}");
            ensure!(output.status.code() == Some(1), "{report}");
            Ok(())
        })?;
        let text = String::from_utf8_lossy(&run.lab.vipgate("status")?.stdout).into_owned();
        assert!(text.contains("device   pub0 no program: it cannot be set up: there is no such device"), "{text}");
        Ok(())
    }
}

both_hooks! {
    fn doctor_finds_a_packet_filter_that_drops_what_the_stack_must_forward(hook) {
        let mut run = Running::new(hook, 1, 1)?;
        run.lab.serve_outside()?;
        run.cloud.attach_services(&["SNAT"])?;
        run.cloud.balanced(VIP, WEB, &[0])?;
        let (client, guest, lab) = (run.lab.client(), &run.lab.backends[0], &run.lab);
        // First as Docker leaves it, then as a hardened router has it.
        lab.router.run("nft", "add table ip filter")?;
        lab.router.run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }")?;
        lab.router.run("nft", "add rule ip filter FORWARD oifname docker0 counter accept")?;
        let drops = found(lab, "forward_policy")?;
        let severities: Vec<&Value> = drops.iter().map(|finding| &finding["severity"]).collect();
        assert_eq!(severities, ["warning", "note"], "{drops:?}");
        ensure!(drops[0]["problem"].to_string().contains("ip filter FORWARD drops what is forwarded from priv0 to pub0"), "{drops:?}");
        mend(lab, &drops[..1])?;
        assert_eq!(found(lab, "forward_policy")?, drops[1..]);
        lab.router.ip("neigh flush dev pub0")?;
        guest.fetch(client.web())?;

        lab.router.run("nft", "add chain ip filter INPUT { type filter hook input priority 0 ; policy drop ; }")?;
        let input = found(lab, "input_policy")?;
        let severities: Vec<&Value> = input.iter().map(|finding| &finding["severity"]).collect();
        assert_eq!(severities, ["warning", "note"], "{input:?}");
        ensure!(client.ping(VIP, "").is_err(), "the filter takes pings");
        mend(lab, &input)?;
        assert_eq!(found(lab, "input_policy")?, Vec::<Value>::new());
        client.ping(VIP, "")
    }

    fn doctor_names_the_rule_that_stops_clients_from_bypassing_vips(hook) {
        let mut run = Running::new(hook, 1, 1)?;
        run.lab.serve_outside()?;
        let (_, _, vip) = run.cloud.balanced(VIP, WEB, &[0])?;
        let (client, guest) = (run.lab.client(), &run.lab.backends[0]);
        client.fetch(guest.web())?;
        let past = found(&run.lab, "past_vips")?;
        let [finding] = &past[..] else { anyhow::bail!("{past:?}") };
        ensure!(finding["severity"] == "note" && finding["problem"].to_string().contains("10.2.0.0/24"), "{finding}");
        mend(&run.lab, &past)?;
        assert_eq!(found(&run.lab, "past_vips")?, Vec::<Value>::new());
        ensure!(client.fetch(guest.web()).is_err(), "a client reaches a guest without its VIP");
        client.fetch(vip)?;
        guest.fetch(client.web())?;
        Ok(())
    }
}
