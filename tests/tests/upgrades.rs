//! Upgrades from the version before ours and back: connections and counts survive, and the old version stays if the kernel
//! refuses ours.

use std::{collections::BTreeSet, fs, net::Ipv4Addr};

use anyhow::{Context as _, ensure};
use vipgate_abi::{ABI_VERSION, maps};
use vipgate_agent::loader::{Options, Plane, TcMode};
use vipgate_tests::{
    both_hooks,
    lab::{Controller, Counts, ECHO, Hook, Lab, Result, Running, SIZES, Traffic, report, version8},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Upgrades and ways back in each hook.
const ROUNDS: usize = 3;
/// TCP connections that stay open.
const SESSIONS: usize = 8;

/// The directories of pinned tables.
fn tables(lab: &Lab) -> Result<BTreeSet<String>> {
    let names = fs::read_dir(lab.bpffs.path())?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("abi-")).collect())
}

fn ours() -> BTreeSet<String> {
    [format!("abi-{ABI_VERSION}")].into()
}

/// A lab that runs version 8, with services as our controller created them.
fn start(hook: Hook) -> Result<Lab> {
    let run = Running::new(hook, 1, 2)?;
    run.cloud.balanced_everywhere(VIP)?;
    let Running { controller, lab, .. } = run;
    controller.kill()?;
    version8::put(&lab)?;
    Ok(lab)
}

/// Starts traffic through version 8's programs.
fn traffic(lab: &Lab) -> Result<Traffic> {
    Traffic::start(lab, VIP, SESSIONS)
}

/// Stops the traffic. Nothing was lost; the kernel has counted each datagram, whichever version handled it.
fn finish(mut traffic: Traffic, lab: &Lab) -> Result<()> {
    traffic.datagrams.wait_for(100)?;
    traffic.requests.wait_for(10)?;
    traffic.standing.ask()?;
    Counts::read(lab, &traffic.flows())?;
    let (datagrams, requests, _) = traffic.stop_counted(lab)?;
    println!("{} datagrams, {} requests: none lost", datagrams.answered, requests.answered);
    Ok(())
}

/// Checks that the counts of the VIP's services agree with the open connections.
fn check_loads(lab: &Lab, sessions: u64) -> Result<()> {
    let status = report(lab, "status")?;
    let services = status["services"].as_array().context("services")?;
    let echo = services.iter().find(|service| service["port"] == ECHO.port).context("the echo's service")?;
    let open = echo["backends"].as_array().context("backends")?.iter().filter_map(|backend| backend["open"].as_u64());
    let open: u64 = open.sum();
    ensure!(open == sessions, "{open} connections are counted of {sessions}");
    Ok(())
}

both_hooks! {
    fn an_upgrade_from_version_8_under_load_loses_nothing_and_the_way_back_is_open(hook) {
        let lab = start(hook)?;
        for round in 0..ROUNDS {
            let traffic = traffic(&lab).with_context(|| format!("version 8, round {round}"))?;
            let controller = Controller::start_with(&lab, SIZES)?;
            ensure!(tables(&lab)? == ours(), "{:?}", tables(&lab)?);
            check_loads(&lab, SESSIONS as u64)?;
            finish(traffic, &lab).with_context(|| format!("round {round}"))?;
            controller.kill()?;
            version8::put(&lab).with_context(|| format!("round {round}"))?;
            ensure!(tables(&lab)? == ["abi-8".to_owned()].into(), "{:?}", tables(&lab)?);
        }
        Ok(())
    }

    fn a_kernel_that_refuses_our_programs_leaves_version_8_running_and_owned(hook) {
        let lab = start(hook)?;
        let traffic = traffic(&lab)?;
        let links = |lab: &Lab| Ok::<_, anyhow::Error>(fs::read_dir(lab.bpffs.path().join("abi-8/links"))?.count());
        let before = links(&lab)?;
        let options = Options {
            bpffs: lab.bpffs.path().to_owned(),
            hook: lab.hook.to_string().parse().map_err(anyhow::Error::msg)?,
            tc: TcMode::Auto,
            sizes: SIZES,
            least_flows: maps::FIRST_FLOWS,
            refused: &[maps::PROGRAM_TC, maps::PROGRAM_XDP],
        };
        // The refusal comes before the store is opened, and when it is open.
        for error in [Plane::rehearse(&options).err(), Plane::open(&options).err()] {
            let error = error.context("the kernel is made to refuse our programs")?;
            ensure!(error.to_string().contains("refused"), "{error}");
        }
        ensure!(tables(&lab)? == ["abi-8".to_owned()].into() && links(&lab)? == before, "{:?}", tables(&lab)?);
        // Version 8 goes on, and can be upgraded once the kernel accepts the programs.
        let controller = Controller::start_with(&lab, SIZES)?;
        finish(traffic, &lab)?;
        drop(controller);
        Ok(())
    }

    fn a_kill_during_the_takeover_resets_no_connection(hook) {
        let lab = start(hook)?;
        for (round, looks) in [0, 10, 60].into_iter().enumerate() {
            let mut traffic = traffic(&lab)?;
            let left = std::cell::Cell::new(looks);
            let reached = || {
                let there = tables(&lab).is_ok_and(|tables| tables.iter().any(|name| name.ends_with("-taken")));
                if there && left.get() > 0 {
                    left.set(left.get() - 1);
                    return false;
                }
                there
            };
            Controller::start_and_kill(&lab, SIZES, reached)?;
            traffic.standing.ask().with_context(|| format!("killed in round {round}"))?;
            let controller = Controller::start_with(&lab, SIZES)?;
            ensure!(tables(&lab)? == ours(), "{:?}", tables(&lab)?);
            check_loads(&lab, SESSIONS as u64)?;
            traffic.standing.ask().with_context(|| format!("killed in round {round}"))?;
            controller.kill()?;
            version8::put(&lab)?;
        }
        Ok(())
    }
}
