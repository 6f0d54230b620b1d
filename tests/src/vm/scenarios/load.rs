//! On every kernel all programs load, attach at every hook, and are removed completely.

use super::ROUTER;
use crate::{
    lab::{Hook, Result},
    vm::{
        VmLab,
        suite::{Case, Trial},
    },
};
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::sync::PoisonError;

/// Exit status of `vipgate serve` on a kernel that it cannot run on.
const UNSUITABLE: i32 = 10;

const HOOKS: [Hook; 4] = [Hook::Tc, Hook::Xdp, Hook::XdpGeneric, Hook::Auto];

/// The cases for a kernel that vipgate runs on.
#[must_use]
pub fn cases() -> Vec<Case> {
    let hooks = HOOKS.map(|hook| Case::new(hook.to_string(), move |trial| attaches(trial, hook)));
    [Case::new("programs", programs_load)].into_iter().chain(hooks).collect()
}

/// The cases for a kernel that vipgate refuses.
#[must_use]
pub fn refused_cases() -> Vec<Case> {
    vec![Case::new("refuses", refuses)]
}

/// `vipgate doctor` loads every program and reports how many instructions the verifier checked.
fn programs_load(trial: &mut Trial) -> Result<()> {
    let report = trial.lab.report("doctor")?;
    let programs = report["programs"].as_array().context("doctor reports no programs")?;
    ensure!(!programs.is_empty(), "doctor's list of programs is empty");
    let mut refused = Vec::new();
    for program in programs {
        let name = program["name"].as_str().context("a program has a name")?;
        let loads = program["loads"].as_bool().context("a program loads or not")?;
        let instructions = loads.then(|| program["instructions"].as_u64().context("a count")).transpose()?;
        let mut findings = trial.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.program(&trial.lab.kernel.name, name, instructions);
        if !loads {
            refused.push(format!("{name}: {}", program["reason"].as_str().unwrap_or("no reason is reported")));
        }
    }
    ensure!(refused.is_empty(), "the kernel refuses {}", refused.join("; "));
    Ok(())
}

/// With this hook, a controller comes up, configures a router, ends, and is removed.
fn attaches(trial: &mut Trial, hook: Hook) -> Result<()> {
    let result = attached_by(&trial.lab, hook);
    let mut findings = trial.findings.lock().unwrap_or_else(PoisonError::into_inner);
    findings.hook(&trial.lab.kernel.name, &hook.to_string(), result.as_deref().ok());
    drop(findings);
    let gone = trial.lab.clear().and_then(|()| trial.lab.is_clean());
    result.and(gone)
}

/// The hook that both devices got.
fn attached_by(lab: &VmLab, hook: Hook) -> Result<String> {
    lab.serve(hook)?;
    lab.apply(ROUTER)?;
    let mut attached = lab.attached()?;
    attached.sort();
    let [(first, at), (second, other)] = attached.as_slice() else {
        bail!("both devices should have a program: {attached:?}");
    };
    ensure!([first, second] == ["priv0", "pub0"] && at == other, "the devices differ: {attached:?}");
    ensure!(hook == Hook::Auto || *at == hook.to_string(), "the hook is {hook}, but the devices have {at}");
    for device in [first, second] {
        ensure!(in_kernel(lab, device)? == xdp_mode(at), "{device} does not have the hook that status reports, {at}");
    }
    let status = lab.stop()?;
    ensure!(status == 0, "SIGTERM ends the controller with {status}");
    ensure!(lab.attached()?.len() == 2, "the programs did not outlive the controller");
    Ok(at.clone())
}

/// The mode of the XDP program on a device, as the kernel reports it.
fn in_kernel(lab: &VmLab, device: &str) -> Result<Option<&'static str>> {
    let text = lab.agent().says(&format!("ip -json link show dev {device}"))?;
    let link: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    // IFLA_XDP_ATTACHED: 1 is the driver, 2 the generic stack.
    Ok(match link[0]["xdp"]["mode"].as_u64() {
        Some(1) => Some("driver"),
        Some(2) => Some("generic"),
        _ => None,
    })
}

fn xdp_mode(hook: &str) -> Option<&'static str> {
    match hook {
        "xdp" => Some("driver"),
        "xdp-generic" => Some("generic"),
        _ => None,
    }
}

/// The refusal is one sentence that names the kernel and what it lacks, with an exit status of its own.
fn refuses(trial: &mut Trial) -> Result<()> {
    let said = trial.lab.serve_and_end()?;
    ensure!(said.status == Some(UNSUITABLE), "vipgate serve should end with {UNSUITABLE}: {said}");
    let mut findings = trial.findings.lock().unwrap_or_else(PoisonError::into_inner);
    HOOKS.iter().for_each(|hook| findings.hook(&trial.lab.kernel.name, &hook.to_string(), None));
    drop(findings);
    let complaints: Vec<&str> = said.stderr.lines().filter(|line| line.starts_with("vipgate: ")).collect();
    let [complaint] = complaints.as_slice() else { bail!("one sentence was expected: {said}") };
    ensure!(complaint.contains(&trial.lab.kernel.release), "it does not name the kernel: {complaint}");
    ensure!(complaint.contains("cannot run vipgate: "), "it does not say why: {complaint}");
    trial.lab.is_clean()
}
