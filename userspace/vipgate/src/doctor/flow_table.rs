//! Whether new connections find room in the flow table.

use vipgate_agent::loader::percent;

use super::{Facts, Finding, Severity, judge::router};

/// Of the largest table so much may be of live connections: from here on some find no room.
const FULL: u64 = 70;
/// Less than this makes no table grow: what was refused was so at another time.
const HALF: u64 = 50;

pub(super) fn judge(facts: &Facts, findings: &mut Vec<Finding>) {
    let Some(flows) = &facts.flows else { return };
    let (largest, live, refused) = (facts.largest_flows, flows.fill.live(), flows.refused);
    let used = percent(live, largest.into());
    let remedy = format!(
        "set flows = {} under [datapath] in vipgate.toml; systemctl restart vipgate",
        largest.saturating_mul(2).next_power_of_two()
    );
    let taken = format!("{live} of the {largest} flow entries that there may be ({used}%) are of live connections");
    if refused > 0 {
        let problem = format!("{refused} packets of new connections found no room in the flow table; {taken} now");
        let severity = if used >= HALF { Severity::Warning } else { Severity::Note };
        findings.push(router(severity, "flow_table", problem, remedy));
    } else if used >= FULL {
        let problem = format!("{taken}, and new ones will soon find no room");
        findings.push(router(Severity::Warning, "flow_table", problem, remedy));
    }
}
