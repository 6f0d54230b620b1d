//! `vipgate doctor`: the problems of this router, and the command that fixes each.
//!
//! [`facts`] reads the kernel and its devices, and loads our programs apart from those in use, to know; [`judge`] is pure:
//! facts in, findings out; [`filter`] judges the packet filter, [`flow_table`] the flow table. Changes nothing, and needs no
//! running controller: the managed devices are those with a pinned link, and those that a running controller cannot set
//! up; before the first start, every Ethernet device that is up is a candidate.

mod facts;
mod filter;
mod flow_table;
mod judge;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;
use vipgate_agent::{
    loader::{LoadError, Trial},
    net::NetError,
};

use self::facts::Facts;
use crate::config::Config;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Slower than it could be, or good to know.
    Note,
    /// Some traffic suffers.
    Warning,
    /// Traffic is lost, or the controller cannot start.
    Error,
}

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The device that it is about; `None` for the router.
    pub device: Option<String>,
    /// The same for every finding of its kind.
    pub check: &'static str,
    /// What is wrong, and the consequence.
    pub problem: String,
    /// The command that fixes it, or what to do.
    pub remedy: String,
}

/// A device and how it is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examined {
    pub name: String,
    /// The hook of its pinned link; `None` if no program of vipgate is on it.
    pub hook: Option<String>,
    /// Why it has that hook, or which one it is to get, and why.
    pub why: String,
    pub driver: String,
    pub mtu: u32,
    /// Receive queues.
    pub queues: u32,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub kernel: String,
    pub devices: Vec<Examined>,
    /// Whether this kernel takes our programs.
    pub programs: Vec<Trial>,
    /// The worst first.
    pub findings: Vec<Finding>,
}

/// Why the router could not be examined.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    #[error(transparent)]
    Pins(#[from] LoadError),
    #[error(transparent)]
    Net(#[from] NetError),
}

/// Examines the router in the calling thread's network namespace. Needs a tokio runtime.
pub async fn examine(config: &Config) -> Result<Report, DoctorError> {
    Ok(judge::judge(&Facts::collect(config).await?))
}

impl Report {
    /// Findings that are worse than notes.
    pub fn defects(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity > Severity::Note).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel   {}", self.kernel)?;
        for Examined { name, hook, why, driver, mtu, queues } in &self.devices {
            let hook = hook.as_deref().unwrap_or("no program");
            writeln!(f, "device   {name}: {hook}, driver {driver}, MTU {mtu}, receive queues {queues}")?;
            writeln!(f, "         {why}")?;
        }
        for Trial { name, instructions, reason, .. } in &self.programs {
            match (reason, instructions) {
                (Some(_), _) => writeln!(f, "program  {name}: does not load")?,
                (None, Some(instructions)) => writeln!(f, "program  {name}: {instructions} instructions verified")?,
                (None, None) => writeln!(f, "program  {name}: loads")?,
            }
        }
        for Finding { severity, device, problem, remedy, .. } in &self.findings {
            let severity = match severity {
                Severity::Error => "ERROR",
                Severity::Warning => "WARNING",
                Severity::Note => "note",
            };
            let device = device.as_ref().map_or_else(String::new, |device| format!("{device}: "));
            writeln!(f, "{severity:<8} {device}{problem}\n         -> {remedy}")?;
        }
        if self.defects() == 0 { writeln!(f, "ok       no problems found") } else { Ok(()) }
    }
}
