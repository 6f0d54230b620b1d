//! The package on a whole Debian 13: installed by the very lines of README, run by systemd beside a udev and a networkd
//! that have opinions of their own, and started again with the machine.
//!
//! The cases are a router's life in order; one that is run alone does what comes before it first.

use super::traffic::{self, ELASTIC, LIMIT, LIMITED, ROUTER, Received, WEB};
use crate::{
    lab::{Result, Standing, controller::PASSWORD, wait_until},
    vm::{
        VmLab,
        suite::{Case, Trial},
        userland::DIRECTORY,
    },
};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{collections::BTreeSet, net::SocketAddrV4, time::Duration};

/// The hosts that the cases want.
pub const CLIENTS: u8 = 1;
pub const BACKENDS: u8 = 3;

const README: &str = include_str!("../../../../README.md");
const SECTION: &str = "\n## On a router VM\n";
/// The blocks of that section.
const UNPACK: usize = 0;
const BEGIN: usize = 1;
const UPGRADE: usize = 2;
const API: usize = 3;
const COMMANDS: usize = 4;
/// The line of README's first block that is for another machine.
const ON_THE_BUILD_MACHINE: &str = "cargo xtask package";

/// The two ends of the device that the limits' queues are on.
const QUEUES: [&str; 2] = ["vipgate-q0", "vipgate-q0-end"];

/// What the controller says when it takes such a device for another.
const MAKES_ANEW: &str = "making it anew";

/// For what systemd does in the guest, whose controller loads its programs in 5 to 60 s.
const START: Duration = Duration::from_secs(240);

const START_IT: &str = "systemctl start vipgate";
const WAIT_FOR_NETWORKD: &str = "/usr/lib/systemd/systemd-networkd-wait-online --timeout=60";
/// What README has operators write where networkd has the public device.
const KEEP: &str = "KeepConfiguration=static";
/// Changes the service until the next start of the machine.
const DROP_IN: &str = "/run/systemd/system/vipgate.service.d/ends.conf";

#[must_use]
pub fn cases() -> Vec<Case> {
    type Scenario = fn(&mut Trial) -> Result<()>;
    const SCENARIOS: [(&str, Scenario); 11] = [
        ("readme_installs_it", readme_installs_it),
        ("doctor_finds_nothing", doctor_finds_nothing),
        ("carries_traffic", carries_traffic),
        ("udev_and_the_limits_queues_get_along", udev_and_the_limits_queues_get_along),
        ("networkd_takes_the_vips_only_for_a_moment", networkd_takes_the_vips_only_for_a_moment),
        ("networkd_leaves_the_vips_where_readme_is_followed", networkd_leaves_the_vips_where_readme_is_followed),
        ("a_restart_keeps_connections", a_restart_keeps_connections),
        ("an_upgrade_keeps_connections_and_the_configuration", an_upgrade_keeps_connections_and_the_configuration),
        ("what_does_not_heal_is_not_restarted", what_does_not_heal_is_not_restarted),
        ("what_may_heal_is_tried_until_it_does", what_may_heal_is_tried_until_it_does),
        ("a_reboot_brings_all_back", a_reboot_brings_all_back),
    ];
    SCENARIOS.map(|(name, scenario)| Case::new(name, scenario)).into_iter().collect()
}

/// README's lines, from the tarball to a running service, its calls of the API with curl and jq, and its commands.
fn readme_installs_it(trial: &mut Trial) -> Result<()> {
    let lab = &trial.lab;
    install(lab)?;
    for (question, answer) in [("is-enabled", "enabled"), ("is-active", "active")] {
        let said = lab.agent().says(&format!("systemctl {question} vipgate"))?;
        ensure!(said.trim() == answer, "{question}: {said}");
    }
    let said = lab.agent().says(&format!("set -e; PASSWORD={PASSWORD}\n{}", block(API)?))?;
    ensure!(said.contains("zone1"), "the job's end is: {said}");
    lab.agent().says(&format!("set -e\n{}", block(COMMANDS)?))?;
    log_in(lab)?;
    configure(lab)
}

/// On a machine as Debian is installed, nothing hinders the router.
fn doctor_finds_nothing(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let said = trial.lab.agent().run("vipgate doctor")?;
    ensure!(said.status == Some(0), "doctor: {said}");
    Ok(())
}

fn carries_traffic(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    serves(&trial.lab)?;
    // Source NAT's ports are the guests': the service may write that setting.
    let own = trial.lab.agent().says("cat /proc/sys/net/ipv4/ip_local_port_range")?;
    ensure!(own.split_whitespace().eq(["61440", "65535"]), "the router's own ports are {own}");
    let _server = traffic::server(trial)?;
    let received = through_the_limit(trial)?;
    let rate = received.bytes * 8.0 / received.seconds;
    // Far from exact, and near enough to tell a limit that works from one whose queue comes and goes.
    ensure!((0.5 * LIMIT..=1.3 * LIMIT).contains(&rate), "{rate:.0} bits a second");
    Ok(())
}

/// udev gives each new device a MAC address by its own rule. The devices stay which they are all the same.
fn udev_and_the_limits_queues_get_along(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let before = indices(&trial.lab)?;
    let agent = trial.lab.agent();
    agent.says("udevadm settle")?;
    for device in QUEUES {
        let rule = agent.says(&format!(
            "udevadm info --query=property --property=ID_NET_LINK_FILE --value /sys/class/net/{device}"
        ))?;
        ensure!(rule.trim().ends_with("/99-default.link"), "udev gives {device} the rule `{}`", rule.trim());
        // NET_ADDR_SET: not the random one that the kernel gave it.
        let origin = agent.says(&format!("cat /sys/class/net/{device}/addr_assign_type"))?;
        ensure!(origin.trim() == "3", "udev did not set the address of {device}: {}", origin.trim());
    }
    let _server = traffic::server(trial)?;
    for _ in 0..3 {
        agent.says("udevadm trigger --settle --subsystem-match=net --action=change; sleep 2")?;
        through_the_limit(trial)?;
    }
    let after = indices(&trial.lab)?;
    ensure!(after == before, "the devices were {before:?} and are {after:?}");
    never_made_anew(&trial.lab)
}

/// networkd removes addresses that it does not know from devices that are its, whenever it sets them up. The controller
/// puts them back.
fn networkd_takes_the_vips_only_for_a_moment(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let before = addresses(&trial.lab)?;
    for line in ["systemctl restart systemd-networkd", "networkctl reconfigure pub0 priv0"] {
        trial.lab.agent().says(&format!("{line} && {WAIT_FOR_NETWORKD}"))?;
        wait_until(&format!("the addresses after {line}"), START, || {
            let now = addresses(&trial.lab)?;
            ensure!(now == before, "they were {before:?} and are {now:?}");
            Ok(())
        })?;
    }
    serves(&trial.lab)
}

/// While there is no controller, nobody would put them back.
fn networkd_leaves_the_vips_where_readme_is_followed(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    ensure!(README.contains(KEEP), "README does not say {KEEP}");
    let (agent, before) = (trial.lab.agent(), addresses(&trial.lab)?);
    agent.write("/run/systemd/network/10-pub0.network.d/keep.conf", &format!("[Network]\n{KEEP}\n"))?;
    agent.says(&format!("networkctl reload && systemctl stop vipgate && {WAIT_FOR_NETWORKD}"))?;
    for line in ["systemctl restart systemd-networkd", "networkctl reconfigure pub0 priv0"] {
        agent.says(&format!("{line} && {WAIT_FOR_NETWORKD}"))?;
        let now = addresses(&trial.lab)?;
        ensure!(now == before, "after {line} the addresses, which were {before:?}, are {now:?}");
    }
    serves(&trial.lab).context("without a controller")?;
    agent.run_with(START_IT, "", START)?.succeeded(START_IT).map(drop)
}

fn a_restart_keeps_connections(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let mut standing = Standing::open(trial.lab.client(), SocketAddrV4::new(WEB, 7001), 4)?;
    standing.ask()?;
    let before = indices(&trial.lab)?;
    trial.lab.agent().run_with("systemctl restart vipgate", "", START)?.succeeded("systemctl restart vipgate")?;
    standing.ask().context("with the next controller")?;
    let after = indices(&trial.lab)?;
    ensure!(after == before, "the devices of the queues were {before:?} and are {after:?}");
    serves(&trial.lab)
}

/// By README's lines.
fn an_upgrade_keeps_connections_and_the_configuration(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let mut standing = Standing::open(trial.lab.client(), SocketAddrV4::new(WEB, 7001), 4)?;
    let settings = "grep '^admin_password_file' /etc/vipgate/vipgate.toml; date +%s -r /etc/vipgate/vipgate.toml";
    let before = trial.lab.agent().says(settings)?;
    let upgrade = format!("set -e; cd {DIRECTORY}\n{}", block(UPGRADE)?);
    trial.lab.agent().run_with(&upgrade, "", START)?.succeeded(&upgrade)?;
    standing.ask().context("after the upgrade")?;
    let after = trial.lab.agent().says(settings)?;
    ensure!(after == before && before.contains("admin_password_file"), "the configuration was {before} and is {after}");
    serves(&trial.lab)
}

/// A configuration that is wrong (2), missing privileges (3) and a kernel that cannot do it (10) are the same next time.
fn what_does_not_heal_is_not_restarted(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let agent = trial.lab.agent();
    for status in [2, 3, 10] {
        end_with(trial, status)?;
        // Of a service that waits to be started again systemd says `activating`.
        let state = agent.says("systemctl show --property=ActiveState --value vipgate")?;
        ensure!(state.trim() == "failed", "after exit status {status} the service is {}", state.trim());
    }
    agent.says(&format!("rm {DROP_IN} && systemctl daemon-reload"))?;
    agent.run_with(START_IT, "", START)?.succeeded(START_IT)?;
    serves(&trial.lab)
}

/// More often than systemd tries by itself, and nobody has to do anything when it is over.
fn what_may_heal_is_tried_until_it_does(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let agent = trial.lab.agent();
    end_with(trial, 5)?;
    wait_until("the service to be tried seven times", START, || {
        let times = agent.says("systemctl show --property=NRestarts --value vipgate")?;
        ensure!(times.trim().parse::<u32>()? >= 7, "{times}");
        Ok(())
    })?;
    agent.says(&format!("rm {DROP_IN} && systemctl daemon-reload"))?;
    wait_until("the service to be up again", START, || agent.says("systemctl is-active vipgate"))?;
    serves(&trial.lab)
}

/// Has the service end with this status whenever it is started, and starts it.
fn end_with(trial: &Trial, status: i32) -> Result<()> {
    let agent = trial.lab.agent();
    agent.write(DROP_IN, &format!("[Service]\nExecStart=\nExecStart=/bin/sh -c 'exit {status}'\n"))?;
    let said = agent.run("systemctl daemon-reload; systemctl stop vipgate; systemctl start vipgate")?;
    ensure!(said.status == Some(1), "the service, which ends with {status}, is started: {said}");
    Ok(())
}

/// Nothing is done by hand: the service starts by itself, and all is there again that was applied before.
fn a_reboot_brings_all_back(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let (lab, before) = (&trial.lab, addresses(&trial.lab)?);
    lab.reboot()?;
    wait_until("the VIPs' addresses", START, || {
        let now = addresses(lab)?;
        ensure!(now == before, "they were {before:?} and are {now:?}");
        Ok(())
    })?;
    serves(lab)?;
    indices(lab)?;
    never_made_anew(lab)?;
    doctor_finds_nothing(trial)?;
    carries_traffic(trial)
}

/// Has the router be there, as far as the cases before did not.
fn ready(trial: &Trial) -> Result<()> {
    let lab = &trial.lab;
    if lab.agent().run("systemctl is-active vipgate")?.status != Some(0) {
        install(lab)?;
        log_in(lab)?;
    }
    // The last VIP of the file.
    if lab.vipgate("query vips")?.contains(&LIMITED.to_string()) { Ok(()) } else { configure(lab) }
}

/// README's first blocks, but for the line that makes the package.
fn install(lab: &VmLab) -> Result<()> {
    let unpacking = block(UNPACK)?.lines().filter(|line| !line.starts_with(ON_THE_BUILD_MACHINE));
    let lines: Vec<&str> = unpacking.chain(block(BEGIN)?.lines()).collect();
    let script = format!("set -e; cd {DIRECTORY}\n{}", lines.join("\n"));
    lab.agent().run_with(&script, PASSWORD, START)?.succeeded(&script).map(drop)
}

/// By README's line.
fn log_in(lab: &VmLab) -> Result<()> {
    let login = block(COMMANDS)?.lines().find(|line| line.starts_with("vipgate login")).context("README logs in")?;
    lab.agent().says(login).map(drop)
}

/// Brings the router to the file's contents.
fn configure(lab: &VmLab) -> Result<()> {
    lab.apply(ROUTER)?;
    let again = lab.apply(ROUTER)?;
    ensure!(again.contains("nothing to do"), "a second time it does: {again}");
    Ok(())
}

/// The code of this number in README's section about routers.
fn block(number: usize) -> Result<&'static str> {
    let (_, section) = README.split_once(SECTION).context("README has its section about routers")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let mut blocks = section.split("```").skip(1).step_by(2);
    blocks.nth(number).with_context(|| format!("README's section about routers has no block {number}"))
}

/// The load balancer and the elastic IP do.
fn serves(lab: &VmLab) -> Result<()> {
    let client = lab.client();
    let answers = (0..6).map(|_| client.curl(SocketAddrV4::new(WEB, 80))).collect::<Result<Vec<_>>>()?;
    let backends: BTreeSet<&str> = answers.iter().map(|answer| answer.backend.as_str()).collect();
    ensure!(backends.len() == lab.backends().len(), "not every backend answers: {answers:?}");
    client.ping(ELASTIC, "")?;
    lab.backends()[1].ping(client.address, "")
}

fn through_the_limit(trial: &Trial) -> Result<Received> {
    traffic::bulk(trial.lab.client(), LIMITED, 4, "")
}

/// The numbers of the queues' devices: a device that is made anew gets another.
fn indices(lab: &VmLab) -> Result<Vec<u64>> {
    let links = json(lab, "ip -json link show")?;
    let links = links.as_array().context("there are links")?;
    let index = |name: &str| links.iter().find(|link| link["ifname"] == name)?["ifindex"].as_u64();
    QUEUES.into_iter().map(|name| index(name).with_context(|| format!("there is no {name}"))).collect()
}

/// All IPv4 addresses, with their devices.
fn addresses(lab: &VmLab) -> Result<BTreeSet<String>> {
    let links = json(lab, "ip -4 -json addr show")?;
    let mut all = BTreeSet::new();
    for link in links.as_array().context("there are links")? {
        for address in link["addr_info"].as_array().context("a link has a list of addresses")? {
            all.insert(format!("{} {}/{}", link["ifname"], address["local"], address["prefixlen"]));
        }
    }
    Ok(all)
}

fn json(lab: &VmLab, line: &str) -> Result<Value> {
    let said = lab.agent().says(line)?;
    serde_json::from_str(&said).with_context(|| format!("no JSON from {line}: {said}"))
}

/// No controller since the machine's start has made a queue's device a second time.
fn never_made_anew(lab: &VmLab) -> Result<()> {
    let said = lab.agent().run(&format!("journalctl --boot --unit vipgate --output cat | grep '{MAKES_ANEW}'"))?;
    ensure!(said.status == Some(1), "the controller says: {}", said.stdout);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_has_the_lines_that_are_run_on_a_router() -> Result<()> {
        let unpack = block(UNPACK)?;
        assert!(unpack.lines().any(|line| line.starts_with(ON_THE_BUILD_MACHINE)), "{unpack}");
        assert!(unpack.contains("tar -C / -xzf vipgate-"), "{unpack}");
        assert!(block(BEGIN)?.contains("systemctl enable --now vipgate"));
        assert!(block(UPGRADE)?.contains("--exclude=etc") && block(UPGRADE)?.contains("systemctl restart vipgate"));
        assert!(block(API)?.contains("$PASSWORD") && block(API)?.contains("jq "));
        assert!(block(COMMANDS)?.contains("vipgate login --password-file /etc/vipgate/admin-password"));
        Ok(())
    }
}
