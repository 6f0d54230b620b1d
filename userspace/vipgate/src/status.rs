//! `vipgate status`: the loader's picture of the kernel and the running controller's checks, as lines for people or one
//! JSON object.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde_json::{Value, json};
use vipgate::{config::Config, controller_status::ControllerStatus, packet_log::protocol};
use vipgate_abi::{
    flow::State,
    meter::Metered,
    service::{Algorithm, Kind, Service, ServiceKey},
    snat::{SnatKey, SnatKind, SnatRule},
};
use vipgate_agent::{
    loader::{
        Crowding, Hook, drivers, percent,
        status::{BackendStatus, LimitStatus, Status},
        why,
    },
    reconcile::Refusal,
};

/// A device that has a program of ours, or is to have one.
struct Served<'a> {
    name: &'a str,
    /// The hook of its pinned link.
    hook: Option<Hook>,
    /// Why it has that.
    why: Option<String>,
    /// Why the running controller cannot set it up.
    refusal: Option<&'a Refusal>,
}

/// Those with a pinned link, then those that have none and should.
fn served<'a>(status: &'a Status, configured: Hook, running: Option<&'a ControllerStatus>) -> Vec<Served<'a>> {
    let configured = running.and_then(|running| running.hook).unwrap_or(configured);
    let refusal = |name: &str| running.and_then(|running| running.refused.get(name));
    let linked = status.links.iter().map(|(hook, name)| Served {
        name,
        hook: Some(*hook),
        why: Some(why(configured, *hook, &drivers(name))),
        refusal: refusal(name),
    });
    let is_linked = |name: &str| status.links.iter().any(|(_, linked)| linked == name);
    let others = running.into_iter().flat_map(|running| &running.refused).filter(|(name, _)| !is_linked(name));
    let others = others.map(|(name, refusal)| Served { name, hook: None, why: None, refusal: Some(refusal) });
    linked.chain(others).collect()
}

fn device_line(device: &Served<'_>) -> String {
    let hook = device.hook.map_or("no program", Hook::name);
    let said = match device.refusal {
        Some(refusal) => Some(format!("it cannot be set up: {}", refusal.reason)),
        None => device.why.clone(),
    };
    format!("device   {} {hook}: {}", device.name, said.unwrap_or_default())
}

/// The flow table's lines: how full it is, and what came of it.
fn flow_lines(flows: &Crowding, largest: u32) -> Vec<String> {
    let fill = &flows.fill;
    let states = fill.states.iter().map(|(state, count)| format!("{count} {}", flow_state(*state)));
    let mut states = states.collect::<Vec<_>>().join(", ");
    if !states.is_empty() {
        states.insert_str(0, ": ");
    }
    let (live, capacity) = (fill.live(), fill.capacity);
    let mut lines = vec![
        format!("flows    {} of {capacity} entries{states}", fill.entries()),
        format!(
            "         {live} live, {}% of these and {}% of the {largest} that there may be",
            percent(live, capacity),
            percent(live, largest.into()),
        ),
    ];
    let (full, refused) = (fill.full_buckets(), flows.refused);
    if full + refused > 0 {
        let buckets = fill.buckets.iter().sum::<u64>();
        lines.push(format!(
            "         {full} of {buckets} buckets are full; {refused} packets of new connections found no room"
        ));
    }
    lines
}

fn largest_flows(config: &Config, running: Option<&ControllerStatus>) -> u32 {
    running.and_then(|running| running.flows).unwrap_or(config.datapath.flows)
}

/// Lines for people. `config`: for where no controller runs; `running`: of the controller that runs, if one does.
pub(crate) fn text(status: &Status, config: &Config, running: Option<&ControllerStatus>) -> String {
    let mut lines = Vec::new();
    let devices = served(status, config.hook, running);
    if devices.is_empty() {
        lines.push("device   none".to_owned());
    }
    lines.extend(devices.iter().map(device_line));
    lines.extend(flow_lines(&status.flows, largest_flows(config, running)));
    if let Some(ControllerStatus { checks, .. }) = running {
        lines.push(format!(
            "checks   {} backends, {} unhealthy, {} checks a minute, late by {} ms at most; {} passed, {} failed, {} not possible",
            checks.backends,
            checks.unhealthy,
            checks.per_minute,
            checks.late_milliseconds,
            checks.passed,
            checks.failed,
            checks.inconclusive,
        ));
    }
    for (key, prefix_len, service) in shown(status) {
        lines.push(service_line(*key, *prefix_len, service, last_port(status, *key, *prefix_len, service)));
        lines.extend(backends_of(status, service).map(|(_, backend)| backend_line(&address(backend), backend)));
    }
    for (key, prefix_len, source) in networks(status) {
        let vip = Ipv4Addr::from(u32::from_be(source.vip));
        let what = if is_disabled(source) { "disabled" } else { "masquerade" };
        lines.push(format!("{vip} {what} {}", network(*key, *prefix_len)));
        lines.extend(backend_of(status, source).map(|(_, backend)| backend_line("guests", backend)));
    }
    for limit in status.limits.values() {
        lines.push(format!("{} limit", limited(limit)));
        lines.extend(directions(limit).map(|(name, rate, traffic, passing)| {
            format!(
                "  {name:<8} {passing} of {rate} bit/s, passed {} packets {} bytes, dropped {} packets {} bytes",
                traffic.passed_packets, traffic.passed_bytes, traffic.dropped_packets, traffic.dropped_bytes,
            )
        }));
    }
    for (reason, count) in &status.reasons {
        let verdict = if reason.is_drop() { "dropped" } else { "to stack" };
        lines.push(format!("{verdict:<8} {count} {}", reason.name()));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The same as one object.
pub(crate) fn json(status: &Status, config: &Config, running: Option<&ControllerStatus>) -> Value {
    let devices = served(status, config.hook, running).into_iter().map(|Served { name, hook, why, refusal }| {
        json!({ "name": name, "hook": hook, "why": why, "problem": refusal.map(|refusal| &refusal.reason) })
    });
    let services = shown(status).map(|(key, prefix_len, service)| service_json(status, *key, *prefix_len, service));
    let masquerades = networks(status).map(|(key, prefix_len, source)| {
        json!({
            "vip": Ipv4Addr::from(u32::from_be(source.vip)),
            "network": network(*key, *prefix_len),
            "disabled": is_disabled(source),
            "backends": backend_of(status, source).into_iter().map(backend_json).collect::<Vec<_>>(),
        })
    });
    let limits = status.limits.iter().map(|(number, limit)| limit_json(*number, limit));
    let reasons = |drop: bool| -> BTreeMap<&str, u64> {
        let chosen = status.reasons.iter().filter(|(reason, _)| reason.is_drop() == drop);
        chosen.map(|(reason, count)| (reason.name(), *count)).collect()
    };
    json!({
        "devices": devices.collect::<Vec<_>>(),
        "flows": flows_json(&status.flows, largest_flows(config, running)),
        "checks": running.map(|running| running.checks),
        "services": services.collect::<Vec<_>>(),
        "masquerades": masquerades.collect::<Vec<_>>(),
        "limits": limits.collect::<Vec<_>>(),
        "drops": reasons(true),
        "passes": reasons(false),
    })
}

fn service_json(status: &Status, key: ServiceKey, prefix_len: u32, service: &Service) -> Value {
    let backends = backends_of(status, service).map(backend_json);
    let is_whole = prefix_len == ServiceKey::WHOLE_VIP;
    json!({
        "vip": Ipv4Addr::from(key.vip),
        "protocol": (!is_whole).then(|| protocol(key.protocol)),
        "port": (!is_whole).then(|| u16::from_be_bytes(key.port)),
        "lastPort": last_port(status, key, prefix_len, service),
        "disabled": service.kind == Kind::Disabled as u8,
        "forwards": service.kind == Kind::Forward as u8,
        "elastic": service.kind == Kind::Elastic as u8,
        "allowed": (service.source_mask != 0).then(|| allowed(service)),
        "algorithm": algorithm(service),
        "ringElements": service.ring_len,
        "backends": backends.collect::<Vec<_>>(),
    })
}

fn limit_json(number: u32, limit: &LimitStatus) -> Value {
    let rates: BTreeMap<&str, Value> = directions(limit)
        .map(|(name, rate, traffic, passing)| {
            let about = json!({
                "bitsPerSecond": rate,
                "passingBitsPerSecond": passing,
                "passedPackets": traffic.passed_packets,
                "passedBytes": traffic.passed_bytes,
                "droppedPackets": traffic.dropped_packets,
                "droppedBytes": traffic.dropped_bytes,
            });
            (name, about)
        })
        .collect();
    json!({ "number": number, "vip": limit.vip, "port": limit.port, "queued": is_queued(limit), "rates": rates })
}

fn flows_json(flows: &Crowding, largest: u32) -> Value {
    let fill = &flows.fill;
    let states: BTreeMap<&str, u64> = fill.states.iter().map(|(state, count)| (flow_state(*state), *count)).collect();
    json!({
        "capacity": fill.capacity,
        "largest": largest,
        "entries": fill.entries(),
        "live": fill.live(),
        "buckets": fill.buckets.iter().sum::<u64>(),
        "fullBuckets": fill.full_buckets(),
        "refused": flows.refused,
        "states": states,
    })
}

/// What a limit is about.
fn limited(limit: &LimitStatus) -> String {
    match (limit.vip, limit.port) {
        (Some(vip), Some(port)) => format!("{vip} port {port}"),
        (Some(vip), None) => vip.to_string(),
        (None, _) => "unused".to_owned(),
    }
}

/// The directions that a limit is about: name, bits per second, what was counted, bits that pass per second.
fn directions(limit: &LimitStatus) -> impl Iterator<Item = (&'static str, u64, Metered, u64)> {
    let rates = ["inbound", "outbound"].into_iter().zip(limit.meter.rates);
    let rates = rates.zip(limit.traffic.into_iter().zip(limit.passing));
    rates.filter_map(|((name, rate), (traffic, passing))| Some((name, rate.bits_per_second()?, traffic, passing)))
}

/// Whether packets of a limit are held back rather than dropped.
fn is_queued(limit: &LimitStatus) -> bool {
    limit.meter.rates.iter().any(|rate| rate.queue != 0)
}

/// The services, each once: of a range's keys, the first.
fn shown(status: &Status) -> impl Iterator<Item = &(ServiceKey, u32, Service)> {
    let mut rules = BTreeSet::new();
    let is_one = |(_, _, service): &&(ServiceKey, u32, Service)| service.kind != Kind::Closed as u8;
    let mut services: Vec<_> = status.services.iter().filter(is_one).collect();
    services.sort_by_key(|(key, prefix_len, _)| (*key, *prefix_len));
    services
        .into_iter()
        .filter(move |(_, _, service)| service.kind != Kind::Forward as u8 || rules.insert(service.number))
}

/// The last port of what begins with this key; `None` if it has no ports.
fn last_port(status: &Status, key: ServiceKey, prefix_len: u32, service: &Service) -> Option<u16> {
    let of_rule = |other: &&(ServiceKey, u32, Service)| {
        let (_, _, other) = other;
        service.kind == Kind::Forward as u8 && other.kind == service.kind && other.number == service.number
    };
    let last = |key: &ServiceKey, prefix_len: u32| {
        u16::from_be_bytes(key.port) | u16::MAX.checked_shr(prefix_len + u16::BITS - ServiceKey::EXACT).unwrap_or(0)
    };
    let own = (prefix_len != ServiceKey::WHOLE_VIP).then(|| last(&key, prefix_len));
    let others = status.services.iter().filter(of_rule).map(|(key, prefix_len, _)| last(key, *prefix_len));
    others.chain(own).max()
}

/// The sources that a service takes flows from, in CIDR notation.
fn allowed(service: &Service) -> String {
    format!("{}/{}", Ipv4Addr::from(u32::from_be(service.source)), service.source_mask.count_ones())
}

/// Backends of a service, unhealthy ones and those that left it and still have connections among them.
fn backends_of<'a>(status: &'a Status, service: &'a Service) -> impl Iterator<Item = (&'a u32, &'a BackendStatus)> {
    let has_any = service.kind != Kind::Disabled as u8;
    let listed = move |one: &BackendStatus| {
        one.backend.service == service.number && (one.chosen || one.load > 0 || one.backend.is_down())
    };
    status.backends.iter().filter(move |(_, one)| has_any && listed(one))
}

/// The networks, and guests of Disabled VIPs, that leave by a VIP. An elastic IP that is Enabled is a service.
fn networks(status: &Status) -> impl Iterator<Item = &(SnatKey, u32, SnatRule)> {
    let mut sources: Vec<_> =
        status.snat_rules.iter().filter(|(_, _, source)| source.kind != SnatKind::Elastic as u8).collect();
    sources.sort_by_key(|(key, prefix_len, source)| (u32::from_be(source.vip), *key, *prefix_len));
    sources.into_iter()
}

fn is_disabled(source: &SnatRule) -> bool {
    source.kind == SnatKind::Disabled as u8
}

/// The guests of a source, in CIDR notation.
fn network(key: SnatKey, prefix_len: u32) -> String {
    format!("{}/{}", Ipv4Addr::from(key.addr), prefix_len.saturating_sub(SnatKey::EXACT - u32::BITS))
}

/// The backend that counts an SNAT rule's traffic.
fn backend_of<'a>(status: &'a Status, rule: &SnatRule) -> Option<(&'a u32, &'a BackendStatus)> {
    (!is_disabled(rule)).then(|| status.backends.get_key_value(&rule.backend)).flatten()
}

fn backend_line(name: &str, backend: &BackendStatus) -> String {
    let (traffic, load) = (backend.traffic, backend.load);
    let state = match backend.chosen {
        true => "",
        false if backend.backend.is_down() => ", unhealthy",
        false => ", leaving",
    };
    format!(
        "  {name:<21} {load} open{state}, {} made, in {} packets {} bytes, out {} packets {} bytes",
        traffic.connections, traffic.packets_in, traffic.bytes_in, traffic.packets_out, traffic.bytes_out,
    )
}

fn backend_json((number, backend): (&u32, &BackendStatus)) -> Value {
    json!({
        "number": number,
        "address": address(backend),
        "chosen": backend.chosen,
        "healthy": !backend.backend.is_down(),
        "open": backend.load,
        "connections": backend.traffic.connections,
        "packetsIn": backend.traffic.packets_in,
        "bytesIn": backend.traffic.bytes_in,
        "packetsOut": backend.traffic.packets_out,
        "bytesOut": backend.traffic.bytes_out,
    })
}

fn service_line(key: ServiceKey, prefix_len: u32, service: &Service, last: Option<u16>) -> String {
    let vip = Ipv4Addr::from(key.vip);
    if prefix_len == ServiceKey::WHOLE_VIP {
        let what = if service.kind == Kind::Disabled as u8 { "disabled" } else { "elastic" };
        return format!("{vip} {what}");
    }
    let port = u16::from_be_bytes(key.port);
    let ports = last.filter(|last| *last != port).map_or_else(|| port.to_string(), |last| format!("{port}-{last}"));
    let what = match algorithm(service) {
        Some(algorithm) => algorithm.to_owned(),
        None if service.kind != Kind::Forward as u8 => "disabled".to_owned(),
        None if service.source_mask == 0 => "forward".to_owned(),
        None => format!("forward from {}", allowed(service)),
    };
    format!("{vip} {} {ports} {what}", protocol(key.protocol))
}

/// As the API spells it; `None` if the service selects no backend.
fn algorithm(service: &Service) -> Option<&'static str> {
    const NAMES: [(Algorithm, &str); 4] = [
        (Algorithm::RoundRobin, "roundrobin"),
        (Algorithm::LeastConnections, "leastconn"),
        (Algorithm::Source, "source"),
        (Algorithm::Maglev, "maglev"),
    ];
    NAMES.into_iter().find(|(algorithm, _)| *algorithm as u8 == service.algorithm).map(|(_, name)| name)
}

fn address(backend: &BackendStatus) -> String {
    let entry = backend.backend;
    let host = Ipv4Addr::from(u32::from_be(entry.addr));
    if entry.takes_all() { host.to_string() } else { format!("{host}:{}", u16::from_be(entry.port)) }
}

/// A state's name.
pub(crate) fn flow_state(state: State) -> &'static str {
    match state {
        State::Empty => "empty",
        State::Busy => "busy",
        State::Closed => "closed",
        State::Reset => "reset",
        State::Resumed => "resumed",
        State::Opening => "opening",
        State::Answered => "answered",
        State::Datagrams => "datagrams",
        State::Closing => "closing",
        State::Established => "established",
    }
}

#[cfg(test)]
mod tests {
    use vipgate_agent::loader::Fill;

    use super::*;

    #[test]
    fn the_flow_tables_lines_tell_how_full_it_is_and_what_came_of_it() {
        let states = BTreeMap::from([(State::Opening, 10), (State::Established, 26_214)]);
        let mut fill = Fill { capacity: 65_536, states, buckets: [0; 9] };
        fill.buckets[4] = 8192;
        let lines = flow_lines(&Crowding { fill: fill.clone(), refused: 0 }, 1 << 20);
        assert_eq!(
            lines,
            [
                "flows    26224 of 65536 entries: 10 opening, 26214 established",
                "         26214 live, 39% of these and 2% of the 1048576 that there may be",
            ]
        );
        (fill.buckets[8], fill.buckets[4]) = (2, 8190);
        let lines = flow_lines(&Crowding { fill, refused: 3 }, 1 << 20);
        assert_eq!(lines[2..], ["         2 of 8192 buckets are full; 3 packets of new connections found no room"]);
        assert_eq!(flow_lines(&Crowding::default(), 65_536)[0], "flows    0 of 0 entries");
    }
}
