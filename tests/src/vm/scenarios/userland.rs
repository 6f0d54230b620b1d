//! The package on a full Debian 13: installed by the book's own lines, run by systemd beside udev and networkd with their
//! default rules, and started again by a reboot.
//!
//! The cases follow a router's life in order; a case that runs alone first does what it needs from earlier ones.

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

/// The hosts that the cases need.
pub const CLIENTS: u8 = 1;
pub const BACKENDS: u8 = 3;

/// The book's page about routers.
const DEPLOY: &str = include_str!("../../../../docs/deploy.md");
const UNPACK: Block = Block { page: DEPLOY, section: "Install", number: 0 };
const BEGIN: Block = Block { page: DEPLOY, section: "Install", number: 1 };
const UPGRADE: Block = Block { page: DEPLOY, section: "Upgrade", number: 0 };
const API: Block = Block { page: include_str!("../../../../docs/api.md"), section: "First calls", number: 0 };
const COMMANDS: Block = Block { page: include_str!("../../../../docs/cli.md"), section: "First commands", number: 0 };
/// The book's page about the router's network.
const NETWORK: &str = include_str!("../../../../docs/network.md");
/// The line of the first block that runs on the build machine.
const ON_THE_BUILD_MACHINE: &str = "cargo xtask package";

/// The two ends of the veth pair that the limits' queues are on.
const QUEUES: [&str; 2] = ["vipgate-q0", "vipgate-q0-end"];

/// What the controller logs when it takes such a device for a foreign one.
const MAKES_ANEW: &str = "making it anew";

/// Timeout for what systemd does in the guest, where a controller loads its programs in 5 to 60 s.
const START: Duration = Duration::from_secs(240);

const START_IT: &str = "systemctl start vipgate";
const WAIT_FOR_NETWORKD: &str = "/usr/lib/systemd/systemd-networkd-wait-online --timeout=60";
/// The setting that the book tells operators to write where networkd manages the public device.
const KEEP: &str = "KeepConfiguration=static";
/// A drop-in that changes the service until the machine's next boot.
const DROP_IN: &str = "/run/systemd/system/vipgate.service.d/ends.conf";

#[must_use]
pub fn cases() -> Vec<Case> {
    type Scenario = fn(&mut Trial) -> Result<()>;
    const SCENARIOS: [(&str, Scenario); 11] = [
        ("the_book_installs_it", the_book_installs_it),
        ("doctor_finds_nothing", doctor_finds_nothing),
        ("carries_traffic", carries_traffic),
        ("udev_and_the_limits_queues_get_along", udev_and_the_limits_queues_get_along),
        ("networkd_takes_the_vips_only_for_a_moment", networkd_takes_the_vips_only_for_a_moment),
        ("networkd_leaves_the_vips_where_the_book_is_followed", networkd_leaves_the_vips_where_the_book_is_followed),
        ("a_restart_keeps_connections", a_restart_keeps_connections),
        ("an_upgrade_keeps_connections_and_the_configuration", an_upgrade_keeps_connections_and_the_configuration),
        ("a_lasting_failure_is_not_restarted", a_lasting_failure_is_not_restarted),
        ("a_temporary_failure_is_restarted_until_it_is_over", a_temporary_failure_is_restarted_until_it_is_over),
        ("a_reboot_restores_everything", a_reboot_restores_everything),
    ];
    SCENARIOS.map(|(name, scenario)| Case::new(name, scenario)).into_iter().collect()
}

/// The book's lines from the tarball to a running service work, as do its API calls by curl and jq, and its commands.
fn the_book_installs_it(trial: &mut Trial) -> Result<()> {
    let lab = &trial.lab;
    install(lab)?;
    for (question, answer) in [("is-enabled", "enabled"), ("is-active", "active")] {
        let said = lab.agent().says(&format!("systemctl {question} vipgate"))?;
        ensure!(said.trim() == answer, "{question}: {said}");
    }
    let said = lab.agent().says(&format!("set -e; PASSWORD={PASSWORD}\n{}", block(API)?))?;
    ensure!(said.contains("zone1"), "the job's result is: {said}");
    lab.agent().says(&format!("set -e\n{}", block(COMMANDS)?))?;
    log_in(lab)?;
    configure(lab)
}

/// On a fresh Debian, doctor finds no problem.
fn doctor_finds_nothing(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let said = trial.lab.agent().run("vipgate doctor")?;
    ensure!(said.status == Some(0), "doctor: {said}");
    Ok(())
}

fn carries_traffic(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    serves(&trial.lab)?;
    // Source NAT needs the setting of the router's own ports: the service must be allowed to write it.
    let own = trial.lab.agent().says("cat /proc/sys/net/ipv4/ip_local_port_range")?;
    ensure!(own.split_whitespace().eq(["61440", "65535"]), "the router's own ports are {own}");
    let _server = traffic::server(trial)?;
    let received = through_the_limit(trial)?;
    let rate = received.bytes * 8.0 / received.seconds;
    // Not exact, but close enough to tell a working limit from one whose queue comes and goes.
    ensure!((0.5 * LIMIT..=1.3 * LIMIT).contains(&rate), "{rate:.0} bits a second");
    Ok(())
}

/// udev gives each new device a MAC address by its own rule. Nevertheless the queues' devices are not recreated.
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
        // NET_ADDR_SET: udev replaced the random address from the kernel.
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

/// networkd removes unknown addresses from its devices whenever it sets them up. The controller puts them back.
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

/// While no controller runs, nothing would put the addresses back.
fn networkd_leaves_the_vips_where_the_book_is_followed(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    ensure!(NETWORK.contains(KEEP), "docs/network.md does not name {KEEP}");
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

/// The upgrade uses the book's lines.
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

/// A wrong configuration (2), missing privileges (3) and an unsuitable kernel (10) would fail again after a restart.
fn a_lasting_failure_is_not_restarted(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let agent = trial.lab.agent();
    for status in [2, 3, 10] {
        end_with(trial, status)?;
        // systemd reports a service that waits for a restart as `activating`.
        let state = agent.says("systemctl show --property=ActiveState --value vipgate")?;
        ensure!(state.trim() == "failed", "after exit status {status} the service is {}", state.trim());
    }
    agent.says(&format!("rm {DROP_IN} && systemctl daemon-reload"))?;
    agent.run_with(START_IT, "", START)?.succeeded(START_IT)?;
    serves(&trial.lab)
}

/// The service is restarted more often than systemd's default allows, and comes up by itself once the failure is over.
fn a_temporary_failure_is_restarted_until_it_is_over(trial: &mut Trial) -> Result<()> {
    ready(trial)?;
    let agent = trial.lab.agent();
    end_with(trial, 5)?;
    wait_until("the service to be restarted seven times", START, || {
        let times = agent.says("systemctl show --property=NRestarts --value vipgate")?;
        ensure!(times.trim().parse::<u32>()? >= 7, "{times}");
        Ok(())
    })?;
    agent.says(&format!("rm {DROP_IN} && systemctl daemon-reload"))?;
    wait_until("the service to be up again", START, || agent.says("systemctl is-active vipgate"))?;
    serves(&trial.lab)
}

/// Makes the service end with this status whenever it starts, and starts it.
fn end_with(trial: &Trial, status: i32) -> Result<()> {
    let agent = trial.lab.agent();
    agent.write(DROP_IN, &format!("[Service]\nExecStart=\nExecStart=/bin/sh -c 'exit {status}'\n"))?;
    let said = agent.run("systemctl daemon-reload; systemctl stop vipgate; systemctl start vipgate")?;
    ensure!(said.status == Some(1), "the service starts, though it should end with {status}: {said}");
    Ok(())
}

/// Without manual steps, the service starts and everything that was applied is there again.
fn a_reboot_restores_everything(trial: &mut Trial) -> Result<()> {
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

/// Brings the router up, unless earlier cases did.
fn ready(trial: &Trial) -> Result<()> {
    let lab = &trial.lab;
    if lab.agent().run("systemctl is-active vipgate")?.status != Some(0) {
        install(lab)?;
        log_in(lab)?;
    }
    // Tests for the last VIP of the file.
    if lab.vipgate("query vips")?.contains(&LIMITED.to_string()) { Ok(()) } else { configure(lab) }
}

/// Runs the page's first blocks, without the line that makes the package.
fn install(lab: &VmLab) -> Result<()> {
    let unpacking = block(UNPACK)?.lines().filter(|line| !line.starts_with(ON_THE_BUILD_MACHINE));
    let lines: Vec<&str> = unpacking.chain(block(BEGIN)?.lines()).collect();
    let script = format!("set -e; cd {DIRECTORY}\n{}", lines.join("\n"));
    lab.agent().run_with(&script, PASSWORD, START)?.succeeded(&script).map(drop)
}

/// Logs in by the book's line.
fn log_in(lab: &VmLab) -> Result<()> {
    let login = block(COMMANDS)?.lines().find(|line| line.starts_with("vipgate login")).context("the book logs in")?;
    lab.agent().says(login).map(drop)
}

/// Applies the router file.
fn configure(lab: &VmLab) -> Result<()> {
    lab.apply(ROUTER)?;
    let again = lab.apply(ROUTER)?;
    ensure!(again.contains("nothing to do"), "applied a second time, it prints: {again}");
    Ok(())
}

/// A block of code in the book.
#[derive(Clone, Copy, Debug)]
struct Block {
    page: &'static str,
    /// The heading that it is under, of the second level.
    section: &'static str,
    /// Among the section's blocks.
    number: usize,
}

/// The block's text.
fn block(Block { page, section, number }: Block) -> Result<&'static str> {
    let (_, text) =
        page.split_once(&format!("\n## {section}\n")).with_context(|| format!("the book has no section {section}"))?;
    let text = text.split("\n## ").next().unwrap_or(text);
    let block = text.split("```").skip(1).step_by(2).nth(number).and_then(|block| block.strip_prefix("sh\n"));
    block.with_context(|| format!("the book's section {section} has no block {number} of shell lines"))
}

/// The load balancer and the elastic IP work.
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

/// Interface indices of the queues' devices: a recreated device gets another one.
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
    serde_json::from_str(&said).with_context(|| format!("{line} prints no JSON: {said}"))
}

/// Since the machine's boot, no controller has recreated a queue's device.
fn never_made_anew(lab: &VmLab) -> Result<()> {
    let said = lab.agent().run(&format!("journalctl --boot --unit vipgate --output cat | grep '{MAKES_ANEW}'"))?;
    ensure!(said.status == Some(1), "the controller logged: {}", said.stdout);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_has_the_lines_that_are_run_on_a_router() -> Result<()> {
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
