//! The command line as the API's client: an operator's commands from login to logout.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{fs, net::SocketAddrV4, os::unix::fs::PermissionsExt as _, path::PathBuf};
use vipgate_tests::lab::{Hook, Lab, LabOptions, Result, Shell, vipgate_binary};

/// Exit codes that `vipgate --help` lists.
mod exit {
    pub(super) const USAGE: i32 = 2;
    pub(super) const REFUSED: i32 = 7;
    pub(super) const NO_SESSION: i32 = 8;
    pub(super) const UNREACHABLE: i32 = 9;
}

#[test]
fn a_service_is_created_by_names_from_login_to_logout() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 1, backends: 1 })?;
    let shell = Shell { lab: &lab };
    let login = shell.login()?;
    shell.fails("query vips", exit::NO_SESSION, &["vipgate login"])?;
    shell.fails(&login, exit::UNREACHABLE, &["127.0.0.1:8080"])?;
    let controller = lab.start_controller()?;

    let said = shell.types(&login)?;
    let kept = shell.state().join("vipgate/session.json");
    assert_eq!(fs::metadata(&kept)?.permissions().mode() & 0o777, 0o600);
    let session: Value = serde_json::from_str(&fs::read_to_string(&kept)?)?;
    let session = session["uuid"].as_str().context("the session has a uuid")?;
    assert!(!said.contains(session), "the login prints the session: {said}");

    let backend = lab.backends.first().context("the lab has a backend")?;
    for line in [
        "zone create --name zone1",
        "l2 create-no-vlan --name outside --zone zone1 --physical-interface pub0",
        "l2 create-no-vlan --name inside --zone zone1 --physical-interface priv0",
        "l3 create --name public --l2 outside --category Public",
        "l3 create --name private --l2 inside --category Private",
        "range add --name public --l3 public --start-ip 10.1.0.10 --end-ip 10.1.0.99 --netmask 255.255.255.0 --gateway 10.1.0.1",
        "range add --name private --l3 private --start-ip 10.2.0.10 --end-ip 10.2.0.99 --netmask 255.255.255.0 --gateway 10.2.0.1",
        "l3 attach-network-service --l3 private --network-services vrouter=LoadBalancer",
    ] {
        shell.types(line)?;
    }
    let private = shell.json("query l3s name=private")?["inventories"][0]["uuid"].clone();
    let private = private.as_str().context("the network has a uuid")?;
    let (address, mac) = (backend.address, &backend.mac);
    shell.types(&format!(
        "vm create --name web1 --l3 private --system-tag staticIp::{private}::{address} --system-tag customMac::{private}::{mac}"
    ))?;
    let vip = shell.json("vip create --name web --l3 public --required-ip 10.1.0.10")?;
    assert_eq!(vip["inventory"]["ip"], "10.1.0.10");
    shell.types("lb create --name shop --vip web")?;
    shell.types("listener create --name http --lb shop --load-balancer-port 80 --instance-port 80")?;
    shell.types("lb add-vm-nic --listener http --vm-nic web1")?;
    let served = lab.client().fetch(SocketAddrV4::new([10, 1, 0, 10].into(), 80))?;
    assert_eq!(served.backend, "backend1");

    shell.types("vip create --name mail --l3 public")?;
    let table = shell.types("query vips name~=% --sort -name --fields name,ip,useFor")?;
    let names: Vec<_> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["name", "web", "mail"], "{table}");
    assert_eq!(shell.types("query vips --count")?, "total  2\n");
    assert!(shell.types("query vips --output yaml")?.contains("name: web"));
    let location = shell.json("vip update mail --name post --no-wait")?["location"].clone();
    let location = location.as_str().context("a job has a location")?;
    assert!(shell.types(&format!("job watch {location}"))?.contains("post"));
    shell.types("tag create-user --resource-type VipVO --resource web --tag blue")?;
    assert!(shell.types("tags web")?.contains("blue"));

    shell.fails("query vips colour=red", exit::REFUSED, &["colour"])?;
    shell.fails("vip delete nothing", exit::REFUSED, &["`nothing`", "vipgate query vips"])?;
    shell.fails("vip create --name x --l3 public --required-ip 10.9.9.9", exit::REFUSED, &["10.9.9.9"])?;
    shell.fails("listener create --lb shop --name x --load-balancer-port 0", exit::USAGE, &["1..=65535"])?;
    shell.types("vip create --name web --l3 public")?;
    shell.fails("vip delete web", exit::REFUSED, &["2 vips are called `web`", "10.1.0.10"])?;

    assert!(shell.types("session validate")?.contains("true"));
    shell.types("logout")?;
    assert!(!kept.exists());
    shell.fails("query vips", exit::NO_SESSION, &["vipgate login"])?;
    assert!(!controller.said().contains(session), "the session is logged");
    Ok(())
}

/// What the shell's own completion offers for the last of these words, with the script that vipgate generates.
fn offered(shell: Shell<'_>, program: &str, words: &[&str]) -> Result<Vec<String>> {
    let vipgate = vipgate_binary()?;
    let script = lab_file(shell, &format!("completion.{program}"), &shell.types(&format!("completion {program}"))?)?;
    let (script, typed) = (script.display(), words.last().context("a word is completed")?);
    let (line, index) = (words.join(" "), words.len() - 1);
    let lines = match program {
        "bash" => format!(
            "source {script}; COMP_WORDS=({line}); COMP_CWORD={index}; COMP_TYPE=9; _clap_complete_vipgate vipgate '{typed}'
             IFS=$'\\n'; echo \"${{COMPREPLY[*]}}\""
        ),
        // Prints what zsh's line editor would show.
        "zsh" => format!(
            "compdef() {{ }}; _describe() {{ print -l -- ${{(P)3}} }}; source {script}
             words=({line}); CURRENT={}; _clap_dynamic_completer_vipgate",
            words.len()
        ),
        _ => format!("source {script}; complete -C '{line}'"),
    };
    let quiet = if program == "bash" {
        "--norc"
    } else if program == "zsh" {
        "-f"
    } else {
        "--no-config"
    };
    let output =
        shell.command(program).args([quiet, "-c", &lines]).output().with_context(|| format!("no {program}"))?;
    ensure!(output.status.success(), "{program} with {}: {output:?}", vipgate.display());
    // A description follows each offer, after a tab in fish, a colon in zsh.
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(|line| line.split(['\t', ':']).next().unwrap_or_default().trim().to_owned()).collect())
}

fn lab_file(shell: Shell<'_>, name: &str, text: &str) -> Result<PathBuf> {
    let path = shell.lab.directory().join(name);
    fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn every_shell_completes_flags_files_fields_and_names_of_resources() -> Result<()> {
    let lab = Lab::new(LabOptions { hook: Hook::Tc, clients: 0, backends: 0 })?;
    let shell = Shell { lab: &lab };
    let _controller = lab.start_controller()?;
    shell.types(&shell.login()?)?;
    let declared = "{zones: {site: {l2s: {outside: {physicalInterface: pub0, l3s: {public: {}}}}}}}";
    let file = lab_file(shell, "router.yaml", declared)?;
    shell.types(&format!("apply -f {}", file.display()))?;
    let typed = file.display().to_string();
    let beginning = typed.trim_end_matches("ter.yaml");
    for program in ["bash", "zsh", "fish"] {
        for (words, expected) in [
            (&["vipgate", "app"][..], "apply"),
            (&["vipgate", "apply", "--pru"], "--prune"),
            (&["vipgate", "apply", "-f", beginning], typed.as_str()),
            (&["vipgate", "apply", "-f", "x", "--output", "y"], "yaml"),
            (&["vipgate", "query", "vips", "--sort", "createD"], "createDate"),
            (&["vipgate", "l3", "delete", "pub"], "public"),
            (&["vipgate", "range", "add", "--l3", "pub"], "public"),
        ] {
            let offered = offered(shell, program, words)?;
            assert_eq!(offered, [expected], "{program}: {words:?}");
        }
    }
    Ok(())
}
