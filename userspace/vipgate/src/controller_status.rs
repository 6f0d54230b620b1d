//! What only a running controller knows: `vipgate status` and `vipgate doctor` ask it through the socket of its [`lock`]. They read
//! the rest from pins and tables, with or without it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vipgate_agent::{health::Figures, loader::Hook, reconcile::Refusals};

use crate::lock;

/// The answer names at most so many devices: its size is limited. The log names all.
const MOST: usize = 32;

/// A controller's answer. One of another version may know less, or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerStatus {
    #[serde(flatten)]
    pub checks: Figures,
    /// The hook that its configuration names.
    #[serde(default)]
    pub hook: Option<Hook>,
    /// Flow entries that there may be, by its configuration.
    #[serde(default)]
    pub flows: Option<u32>,
    /// The devices that it wants and cannot set up.
    #[serde(default)]
    pub refused: Refusals,
}

impl ControllerStatus {
    #[must_use]
    pub fn new(hook: Hook, flows: u32, checks: Figures, refused: &Refusals) -> Self {
        let refused = refused.iter().take(MOST).map(|(device, why)| (device.clone(), why.clone())).collect();
        Self { checks, hook: Some(hook), flows: Some(flows), refused }
    }

    /// As it goes over the socket.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::json!(self).to_string()
    }

    fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// Asks the controller on the tables under this directory; `None` if there is none, or it does not answer.
#[must_use]
pub fn ask(bpffs: &Path) -> Option<ControllerStatus> {
    ControllerStatus::parse(&lock::ask(bpffs)?)
}

#[cfg(test)]
mod tests {
    use vipgate_agent::reconcile::Refusal;

    use super::*;

    fn figures() -> Figures {
        Figures {
            backends: 3,
            unhealthy: 1,
            passed: 5,
            failed: 2,
            inconclusive: 0,
            changed: 1,
            per_minute: 30,
            late_milliseconds: 4,
        }
    }

    #[test]
    fn an_answer_is_read_as_it_was_told_and_names_no_more_devices_than_it_has_room_for() {
        let why = Refusal { reason: "an ingress qdisc is there".to_owned(), remedy: "tc qdisc del".to_owned() };
        let refused: Refusals = (0..100).map(|number| (format!("eth{number:03}"), why.clone())).collect();
        let running = ControllerStatus::new(Hook::Xdp, 1 << 20, figures(), &refused);
        assert_eq!(running.refused.len(), MOST);
        assert_eq!(ControllerStatus::parse(&running.to_text()), Some(running));
    }

    #[test]
    fn a_controller_that_tells_of_its_checks_alone_is_understood() {
        let text = serde_json::json!(figures()).to_string();
        assert_eq!(
            ControllerStatus::parse(&text),
            Some(ControllerStatus { checks: figures(), hook: None, flows: None, refused: Refusals::new() })
        );
    }
}
