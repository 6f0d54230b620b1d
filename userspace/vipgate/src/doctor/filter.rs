//! What the router's packet filter means for what the programs hand to the kernel's stack, and for who would go past VIPs.
//!
//! The programs forward what belongs to services before any filter sees it. What they cannot send themselves goes on by the
//! stack, through its chains: a packet larger than the MTU, and whatever is no service's.

use vipgate_agent::net::netfilter::{Decision, Hook, Packet};

use super::{
    Facts, Finding, Severity,
    facts::DeviceFacts,
    judge::{about, router},
};

pub(super) fn judge(facts: &Facts, findings: &mut Vec<Finding>) {
    if let Some(reason) = &facts.filter.unread {
        let problem = format!("the packet filter's rules cannot all be read: {reason}");
        let remedy = "nft list ruleset; iptables-legacy -S # and see whether the chains INPUT and FORWARD drop";
        findings.push(router(Severity::Note, "packet_filter", problem, remedy));
    }
    let (inside, outside): (Vec<_>, Vec<_>) = facts.devices.iter().partition(|device| !device.guests.is_empty());
    if inside.is_empty() {
        // Which of them will have guests is not known yet.
        forwarded(&outside, &outside, Severity::Warning, facts, findings);
        return;
    }
    forwarded(&inside, &outside, Severity::Warning, facts, findings);
    // It keeps those off, too, who would go past VIPs.
    forwarded(&outside, &inside, Severity::Note, facts, findings);
    for device in inside {
        answers(device, facts, findings);
        past_vips(device, &outside, facts, findings);
    }
    for device in outside {
        pings(device, facts, findings);
    }
}

fn name(device: &DeviceFacts) -> &str {
    &device.link.device.name
}

/// Whether something passes from some devices to others: a finding, this bad at most, for each chain that drops it.
fn forwarded(from: &[&DeviceFacts], to: &[&DeviceFacts], worst: Severity, facts: &Facts, findings: &mut Vec<Finding>) {
    let mut told: Vec<String> = Vec::new();
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (name(from), name(to))));
    for (from, to) in pairs.filter(|(from, to)| from != to) {
        for decision in facts.filter.decisions(Hook::Forward, Packet { from, to: Some(to), is_new: true }) {
            if !decision.drops || told.contains(&decision.chain) {
                continue;
            }
            let unless = if decision.is_unsure { ", unless a rule of it takes it" } else { "" };
            let problem = format!(
                "{} drops what is forwarded from {from} to {to}{unless}: what the programs hand to the kernel's stack is lost \
                 there, such as packets that are larger than the MTU",
                decision.chain
            );
            let severity = if decision.is_unsure { Severity::Note } else { worst };
            let remedy = decision
                .insert(&format!("iifname {from} oifname {to} accept"), &format!("-i {from} -o {to} -j ACCEPT"));
            findings.push(router(severity, "forward_policy", problem, remedy));
            told.push(decision.chain);
        }
    }
}

/// The chains that surely drop what comes to the router itself.
fn drops_own<'a>(device: &'a DeviceFacts, is_new: bool, facts: &'a Facts) -> impl Iterator<Item = Decision> {
    let packet = Packet { from: name(device), to: None, is_new };
    let decisions = facts.filter.decisions(Hook::Input, packet).into_iter();
    decisions.filter(|decision| decision.drops && !decision.is_unsure)
}

/// Whether answers to health checks come in.
fn answers(device: &DeviceFacts, facts: &Facts, findings: &mut Vec<Finding>) {
    for decision in drops_own(device, false, facts) {
        let problem = format!(
            "{} drops what comes to the router itself: answers to its health checks, so that backends behind it become unhealthy",
            decision.chain
        );
        let remedy = decision
            .insert("ct state established,related accept", "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT");
        findings.push(about(device, Severity::Warning, "input_policy", problem, remedy));
    }
}

/// Whether VIPs answer pings.
fn pings(device: &DeviceFacts, facts: &Facts, findings: &mut Vec<Finding>) {
    for decision in drops_own(device, true, facts) {
        let problem = format!(
            "{} drops what comes to the router itself, pings of VIPs among it, but for what its rules take",
            decision.chain
        );
        let from = name(device);
        let remedy = decision.insert(
            &format!("iifname {from} icmp type echo-request accept"),
            &format!("-i {from} -p icmp --icmp-type echo-request -j ACCEPT"),
        );
        findings.push(about(device, Severity::Note, "input_policy", problem, remedy));
    }
}

/// Whether guests can be reached by their own addresses from outside. A plain router routes to them.
fn past_vips(device: &DeviceFacts, outside: &[&DeviceFacts], facts: &Facts, findings: &mut Vec<Finding>) {
    let to = name(device);
    // Where guests speak with their own addresses, answers come back by them.
    let masked = device.guests.iter().all(|guests| guests.masked);
    let mut remedies = Vec::new();
    for from in outside.iter().filter(|from| from.forwarding != 0).map(|from| name(from)) {
        let decisions = facts.filter.decisions(Hook::Forward, Packet { from, to: Some(to), is_new: true });
        if decisions.iter().any(|decision| decision.drops || decision.is_unsure) {
            continue;
        }
        let (nft, iptables) = if masked { ("", "") } else { (" ct state new", " -m conntrack --ctstate NEW") };
        let rule = format!("iifname {from} oifname {to}{nft} drop");
        remedies.push(match decisions.first() {
            Some(decision) => decision.insert(&rule, &format!("-i {from} -o {to}{iptables} -j DROP")),
            None => format!(
                "nft 'add table inet guests; add chain inet guests forward {{ type filter hook forward priority filter; }}; add \
                 rule inet guests forward {rule}'"
            ),
        });
    }
    if remedies.is_empty() {
        return;
    }
    let networks: Vec<String> = device.guests.iter().map(|guests| guests.network.to_string()).collect();
    let problem = format!(
        "who routes to {} by this router reaches guests past their VIPs, whose ports, allowedCidr and limits do not hold there",
        networks.join(", ")
    );
    findings.push(router(Severity::Note, "past_vips", problem, remedies.join("; ")));
}
