//! The documented calls against the server, over real HTTP. `apis.json` is the API document as a table, and the walk builds
//! each request from it alone: it puts parameters into their documented places and checks that they are heeded, that missing
//! mandatory ones are refused, and that every documented field is in the reply with its documented type.

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, net::Ipv4Addr};
use vipgate_api::Date;
use vipgate_tests::lab::{Api, Failure, Hook, Reply, Result, Running};

/// One call of the document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    section: String,
    api: String,
    urls: Vec<Url>,
    /// The key in the body that holds the parameters; `None` if there is no body.
    body: Option<String>,
    params: Vec<Param>,
    reply_top: Vec<String>,
    /// Fields and their types, by the name of their object or list of objects.
    reply_objects: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Url {
    method: String,
    url: String,
}

#[derive(Deserialize)]
struct Param {
    name: String,
    #[serde(rename = "in")]
    place: String,
    optional: bool,
    choices: Vec<String>,
}

/// Sections of the document that are served; a dot at the end includes all subsections.
const SERVED: [&str; 9] = ["4.1.1", "4.1.2", "4.1.3", "4.1.4", "4.1.5", "4.1.7.", "4.1.8.", "4.1.9.", "4.1.10."];
/// Calls in these sections that are not served: certificates.
const NOT_YET: [&str; 6] = [
    "CreateCertificate",
    "DeleteCertificate",
    "QueryCertificate",
    "AddCertificateToLoadBalancerListener",
    "RemoveCertificateFromLoadBalancerListener",
    "UpdateCertificate",
];

/// Fields that may be missing from a reply, because nulls are not written: not every NIC has metadata, an unused VIP has
/// neither use nor provider, and a detached rule or elastic IP has neither NIC nor guest.
const NULLABLE: [&str; 5] = ["metaData", "serviceProvider", "useFor", "vmNicUuid", "guestIp"];

/// In this call, the uuid is that of the resource that its inventory belongs to.
const OWNED: [(&str, &str); 1] = [("SetVipQos", "vipUuid")];

/// Parameters that the walk omits, since what they name is not served yet.
const LEFT_OUT: [&str; 1] = ["certificateUuid"];

fn document() -> Result<Vec<Call>> {
    serde_json::from_str(include_str!("../apis.json")).context("apis.json is the document")
}

fn is_served(call: &Call) -> bool {
    let within =
        |section: &&str| call.section == *section || (section.ends_with('.') && call.section.starts_with(*section));
    SERVED.iter().any(within) && !NOT_YET.contains(&call.api.as_str())
}

/// A request built from the document and named arguments.
struct Request {
    method: Method,
    path: String,
    body: Option<Value>,
}

impl Call {
    /// # Errors
    /// The document does not have an argument, or a variable of the path has no argument.
    fn request(&self, url: &Url, arguments: &Map<String, Value>) -> Result<Request> {
        let mut path = url.url.strip_prefix("/zstack/v1").context("every URL has the prefix")?.to_owned();
        let (mut query, mut body) = (Vec::new(), Map::new());
        for (name, value) in arguments {
            let variable = format!("{{{name}}}");
            if path.contains(&variable) {
                path = path.replace(&variable, value.as_str().context("variables of a path are texts")?);
                continue;
            }
            let param = self.params.iter().find(|param| param.name == *name);
            let param = param.with_context(|| format!("{} documents no parameter {name}", self.api))?;
            match param.place.as_str() {
                "body" => drop(body.insert(name.clone(), value.clone())),
                _ => query.extend(query_pairs(name, value)),
            }
        }
        ensure!(!path.contains('{'), "{} lacks an argument for {path}", self.api);
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let body = self.body.as_ref().map(|key| json!({ key.as_str(): body }));
        Ok(Request { method: url.method.parse().context("a verb")?, path, body })
    }

    /// Mandatory parameters that are not in the path.
    fn mandatory<'a>(&'a self, url: &'a Url) -> impl Iterator<Item = &'a Param> {
        self.params.iter().filter(|param| !param.optional && !url.url.contains(&format!("{{{}}}", param.name)))
    }
}

/// A list repeats its name for each value; a map adds a dot and the key to it.
fn query_pairs(name: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(|item| query_pairs(name, item)).collect(),
        Value::Object(entries) => {
            entries.iter().flat_map(|(key, value)| query_pairs(&format!("{name}.{key}"), value)).collect()
        }
        Value::String(text) => vec![format!("{name}={text}")],
        other => vec![format!("{name}={other}")],
    }
}

/// Walks the document with one session.
struct Walk {
    calls: Vec<Call>,
    api: Api,
    /// Calls that were made and passed.
    walked: Vec<String>,
}

impl Walk {
    /// Makes the call without each mandatory parameter, with a wrong choice, and completely. Returns the last reply.
    fn call(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let arguments = arguments.as_object().context("arguments are an object")?;
        let call =
            self.calls.iter().find(|call| call.api == name).with_context(|| format!("{name} is not documented"))?;
        let unmentioned = call.params.iter().map(|param| param.name.as_str());
        let unmentioned: Vec<&str> =
            unmentioned.filter(|name| !arguments.contains_key(*name) && !LEFT_OUT.contains(name)).collect();
        ensure!(unmentioned.is_empty(), "{name}: the walk lacks {unmentioned:?}");

        let mut last = Value::Null;
        for url in &call.urls {
            for param in call.mandatory(url) {
                let mut fewer = arguments.clone();
                fewer.remove(&param.name);
                refused(
                    &self.api,
                    &call.request(url, &fewer)?,
                    &format!("{name} without {}", param.name),
                    &param.name,
                )?;
            }
            for param in call.params.iter().filter(|param| !param.choices.is_empty()) {
                let mut wrong = arguments.clone();
                wrong.insert(param.name.clone(), json!("nonsense"));
                refused(&self.api, &call.request(url, &wrong)?, &format!("{name} with nonsense"), &param.name)?;
            }
            // A query has no documented parameters, but its second URL has a variable.
            let variables = arguments.iter().filter(|(key, _)| {
                call.params.iter().any(|param| param.name == **key) || url.url.contains(&format!("{{{key}}}"))
            });
            let request = call.request(url, &variables.map(|(key, value)| (key.clone(), value.clone())).collect())?;
            last = self.api.call(request.method, &request.path, request.body.as_ref()).context(name.to_owned())?;
            for top in &call.reply_top {
                ensure!(!last[top].is_null(), "{name} answers without {top}: {last}");
            }
            for (object, fields) in &call.reply_objects {
                has_fields(&last, object, fields).with_context(|| format!("{name} answers {last}"))?;
            }
            if call.reply_objects.contains_key("inventory") {
                heeded(name, arguments, &last["inventory"]).with_context(|| format!("{name} answers {last}"))?;
            }
        }
        self.walked.push(name.to_owned());
        Ok(last)
    }
}

/// Missing and wrong parameters are refused: immediately if the document says 400, else by the job, as the real system does.
fn refused(api: &Api, request: &Request, what: &str, param: &str) -> Result<()> {
    let failure: Failure =
        api.refused(&request.method, &request.path, request.body.as_ref()).with_context(|| what.to_owned())?;
    ensure!(failure.status == 400 || failure.code() == "SYS.1007", "{what}: {failure}");
    ensure!(failure.text.contains(param), "{what}: the parameter is not named: {failure}");
    Ok(())
}

/// The inventory shows each argument, if it has a field of that name.
fn heeded(call: &str, arguments: &Map<String, Value>, inventory: &Value) -> Result<()> {
    let owner = OWNED.iter().find_map(|(api, field)| (*api == call).then_some(*field));
    for (name, given) in arguments {
        let field = match name.as_str() {
            "resourceUuid" => "uuid",
            "uuid" => owner.unwrap_or("uuid"),
            other => other,
        };
        let shown = &inventory[field];
        // The case of some texts does not matter.
        let same = match (given.as_str(), shown.as_str()) {
            (Some(given), Some(shown)) => given.eq_ignore_ascii_case(shown),
            _ => given == shown,
        };
        ensure!(shown.is_null() || same, "{name} was {given}, it shows {shown}");
    }
    Ok(())
}

/// Every object of this name, at any depth, has all these fields, each with its type.
fn has_fields(reply: &Value, name: &str, fields: &BTreeMap<String, String>) -> Result<()> {
    match reply {
        Value::Object(members) => {
            for (key, value) in members {
                if key == name {
                    for object in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
                        for (field, documented) in fields {
                            let value = &object[field];
                            let absent = value.is_null() && NULLABLE.contains(&field.as_str());
                            ensure!(
                                absent || is_of_type(value, documented),
                                "{field} of {name} is not a {documented}: {value}"
                            );
                        }
                    }
                }
                // The schema names paths, not objects.
                if key != "schema" {
                    has_fields(value, name, fields)?;
                }
            }
        }
        Value::Array(items) => items.iter().try_for_each(|item| has_fields(item, name, fields))?,
        _ => {}
    }
    Ok(())
}

/// Whether the value has this type of the document. Its numbers are integers, its dates have one format.
fn is_of_type(value: &Value, documented: &str) -> bool {
    match documented {
        "String" => value.is_string(),
        "Timestamp" => {
            value.as_str().is_some_and(|text| text.parse::<Date>().is_ok_and(|date| date.to_string() == text))
        }
        "Integer" => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        "Long" => value.is_i64(),
        "List" | "Set" => value.is_array(),
        _ => false,
    }
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 20);
const ELASTIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 21);

/// Uuids of what the walk creates.
const VIP_UUID: &str = "11111111111141118111111111111111";
const BALANCER: &str = "22222222222242228222222222222222";
const LISTENER: &str = "33333333333343338333333333333333";
const RULE: &str = "55555555555545558555555555555555";
const EIP: &str = "66666666666646668666666666666666";

#[test]
fn every_documented_call_of_this_slice_takes_its_parameters_and_answers_its_fields() -> Result<()> {
    let run = Running::new(Hook::Tc, 0, 2)?;
    let mut walk = Walk { calls: document()?, api: run.cloud.api.clone(), walked: Vec::new() };
    let stages = [services, vips, listeners, balancers, forwarding, elastic_ips, limits, removal];
    stages.iter().try_for_each(|stage| stage(&mut walk, &run))?;
    let missed: Vec<&str> = walk.calls.iter().filter(|call| is_served(call)).map(|call| call.api.as_str()).collect();
    let missed: Vec<&str> = missed.into_iter().filter(|api| !walk.walked.iter().any(|walked| walked == api)).collect();
    assert!(missed.is_empty(), "the walk misses {missed:?}");
    Ok(())
}

/// Network services of the private network.
fn services(walk: &mut Walk, run: &Running) -> Result<()> {
    let cloud = &run.cloud;
    walk.call("GetNetworkServiceTypes", &json!({}))?;
    let providers = walk.call("QueryNetworkServiceProvider", &json!({}))?;
    let provider = providers["inventories"][0]["uuid"].as_str().context("a provider")?;
    let services = json!({
        "l3NetworkUuid": cloud.private_l3,
        "networkServices": { provider: ["LoadBalancer", "PortForwarding", "Eip"] },
    });
    walk.call("DetachNetworkServiceFromL3Network", &services)?;
    walk.call("AttachNetworkServiceToL3Network", &services)?;
    walk.call("QueryNetworkServiceL3NetworkRef", &json!({}))?;
    Ok(())
}

/// A VIP.
fn vips(walk: &mut Walk, run: &Running) -> Result<()> {
    let cloud = &run.cloud;
    let created = walk.call(
        "CreateVip",
        &json!({
            "name": "vip", "description": "a VIP", "l3NetworkUuid": cloud.public_l3, "requiredIp": VIP,
            "allocatorStrategy": "RandomIpAllocatorStrategy", "resourceUuid": VIP_UUID,
        }),
    )?;
    assert_eq!(created["inventory"]["uuid"], VIP_UUID);
    assert_eq!(created["inventory"]["ip"], VIP.to_string());
    let updated = walk.call("UpdateVip", &json!({ "uuid": VIP_UUID, "name": "front", "description": "changed" }))?;
    assert_eq!(updated["inventory"]["name"], "front");
    for event in ["disable", "enable"] {
        walk.call("ChangeVipState", &json!({ "uuid": VIP_UUID, "stateEvent": event }))?;
    }
    Ok(())
}

/// A load balancer and its listener, with both guests behind it.
fn listeners(walk: &mut Walk, run: &Running) -> Result<()> {
    walk.call(
        "CreateLoadBalancer",
        &json!({ "name": "balancer", "description": "one", "vipUuid": VIP_UUID, "resourceUuid": BALANCER }),
    )?;
    walk.call(
        "CreateLoadBalancerListener",
        &json!({
            "loadBalancerUuid": BALANCER, "name": "listener", "description": "web", "instancePort": 8080,
            "loadBalancerPort": 80, "protocol": "tcp", "resourceUuid": LISTENER,
        }),
    )?;
    walk.call("UpdateLoadBalancerListener", &json!({ "uuid": LISTENER, "name": "web", "description": "changed" }))?;
    let candidates = walk.call("GetCandidateVmNicsForLoadBalancer", &json!({ "listenerUuid": LISTENER }))?;
    assert_eq!(candidates["inventories"].as_array().map(Vec::len), Some(2));
    walk.call("AddVmNicToLoadBalancer", &behind_listener(run))?;
    let used = walk.call("GetVipUsedPorts", &json!({ "uuid": VIP_UUID, "protocol": "tcp" }))?;
    assert!(used["inventories"][0]["usedPorts"].to_string().contains("80"), "{used}");
    Ok(())
}

/// Adds both guests' NICs to the listener.
fn behind_listener(run: &Running) -> Value {
    let [first, second] = [0, 1].map(|guest| &run.cloud.vms[guest].nic);
    json!({ "listenerUuid": LISTENER, "vmNicUuids": [first, second] })
}

/// Reads the VIP and the load balancer after that.
fn balancers(walk: &mut Walk, _: &Running) -> Result<()> {
    let vips = walk.call("QueryVip", &json!({ "uuid": VIP_UUID }))?;
    let vip_in_use = &vips["inventories"][0];
    assert_eq!((&vip_in_use["serviceProvider"], &vip_in_use["useFor"]), (&json!("vrouter"), &json!("LoadBalancer")));
    let listeners = walk.call("QueryLoadBalancerListener", &json!({ "uuid": LISTENER }))?;
    assert_eq!(listeners["inventories"][0]["vmNicRefs"].as_array().map(Vec::len), Some(2));
    walk.call("QueryLoadBalancer", &json!({ "uuid": BALANCER }))?;
    walk.call("RefreshLoadBalancer", &json!({ "uuid": BALANCER }))?;
    let renamed = json!({ "uuid": BALANCER, "name": "lb", "description": "changed", "resourceUuid": BALANCER });
    walk.call("UpdateLoadBalancer", &renamed)?;
    Ok(())
}

/// A port forwarding rule.
fn forwarding(walk: &mut Walk, run: &Running) -> Result<()> {
    let cloud = &run.cloud;
    let created = walk.call(
        "CreatePortForwardingRule",
        &json!({
            "vipUuid": VIP_UUID, "vipPortStart": 2000, "vipPortEnd": 2009, "privatePortStart": 3000, "privatePortEnd": 3009,
            "protocolType": "TCP", "vmNicUuid": cloud.vms[0].nic, "allowedCidr": "10.0.0.0/8", "name": "rule",
            "description": "a range", "resourceUuid": RULE,
        }),
    )?;
    let inventory = &created["inventory"];
    assert_eq!((&inventory["vipIp"], &inventory["allowedCidr"]), (&json!(VIP), &json!("10.0.0.0/8")));
    assert_eq!(inventory["guestIp"], json!(run.lab.backends[0].address));
    let used = walk.call("GetVipUsedPorts", &json!({ "uuid": VIP_UUID, "protocol": "tcp" }))?;
    assert_eq!(used["inventories"][0]["usedPorts"].as_array().map(Vec::len), Some(11), "{used}");
    walk.call("UpdatePortForwardingRule", &json!({ "uuid": RULE, "name": "range", "description": "changed" }))?;
    walk.call("QueryPortForwardingRule", &json!({ "uuid": RULE }))?;
    for event in ["disable", "enable"] {
        walk.call("ChangePortForwardingRuleState", &json!({ "uuid": RULE, "stateEvent": event }))?;
    }
    let detached = walk.call("DetachPortForwardingRule", &json!({ "uuid": RULE }))?;
    assert!(detached["inventory"]["vmNicUuid"].is_null() && detached["inventory"]["guestIp"].is_null());
    let candidates = walk.call("GetPortForwardingAttachableVmNics", &json!({ "ruleUuid": RULE }))?;
    assert_eq!(candidates["inventories"].as_array().map(Vec::len), Some(2));
    walk.call("AttachPortForwardingRule", &json!({ "ruleUuid": RULE, "vmNicUuid": cloud.vms[1].nic }))?;
    walk.call("DeletePortForwardingRule", &json!({ "uuid": RULE, "deleteMode": "Permissive" }))?;
    Ok(())
}

/// An elastic IP.
fn elastic_ips(walk: &mut Walk, run: &Running) -> Result<()> {
    let cloud = &run.cloud;
    let elastic = cloud.vip(ELASTIC)?;
    let created = walk.call(
        "CreateEip",
        &json!({
            "name": "eip", "description": "a guest's own", "vipUuid": elastic, "vmNicUuid": cloud.vms[0].nic,
            "resourceUuid": EIP,
        }),
    )?;
    let inventory = &created["inventory"];
    assert_eq!((&inventory["vipIp"], &inventory["vmNicUuid"]), (&json!(ELASTIC), &json!(cloud.vms[0].nic)));
    assert_eq!(inventory["guestIp"], json!(run.lab.backends[0].address));
    walk.call("UpdateEip", &json!({ "uuid": EIP, "name": "elastic", "description": "changed" }))?;
    walk.call("QueryEip", &json!({ "uuid": EIP }))?;
    for event in ["disable", "enable"] {
        walk.call("ChangeEipState", &json!({ "uuid": EIP, "stateEvent": event }))?;
    }
    let detached = walk.call("DetachEip", &json!({ "uuid": EIP }))?;
    assert!(detached["inventory"]["vmNicUuid"].is_null() && detached["inventory"]["guestIp"].is_null());
    let candidates = walk.call("GetEipAttachableVmNics", &json!({ "eipUuid": EIP, "vipUuid": elastic }))?;
    assert_eq!(candidates["inventories"].as_array().map(Vec::len), Some(2));
    walk.call("AttachEip", &json!({ "eipUuid": EIP, "vmNicUuid": cloud.vms[1].nic }))?;
    let found = cloud.api.query(&format!("/eips?q=vmNic.vmInstance.uuid={}", cloud.vms[1].uuid))?;
    assert_eq!(found[0]["guestIp"], json!(run.lab.backends[1].address));
    walk.call("DeleteEip", &json!({ "uuid": EIP, "deleteMode": "Permissive" }))?;
    Ok(())
}

/// Bandwidth limits of a port of the VIP.
fn limits(walk: &mut Walk, _: &Running) -> Result<()> {
    let rates =
        json!({ "uuid": VIP_UUID, "port": 80, "outboundBandwidth": 1_048_576, "inboundBandwidth": 10_485_760_i64 });
    walk.call("SetVipQos", &rates)?;
    let limits = walk.call("GetVipQos", &json!({ "uuid": VIP_UUID }))?;
    assert_eq!(limits["inventories"].as_array().map(Vec::len), Some(1), "{limits}");
    assert_eq!(limits["inventories"][0]["type"], "vrouter");
    walk.call("DeleteVipQos", &json!({ "uuid": VIP_UUID, "port": 80 }))?;
    let limits = walk.call("GetVipQos", &json!({ "uuid": VIP_UUID }))?;
    assert_eq!(limits["inventories"], json!([]));
    Ok(())
}

/// Deletes everything that is left.
fn removal(walk: &mut Walk, run: &Running) -> Result<()> {
    walk.call("RemoveVmNicFromLoadBalancer", &behind_listener(run))?;
    walk.call("DeleteLoadBalancerListener", &json!({ "uuid": LISTENER }))?;
    walk.call("DeleteLoadBalancer", &json!({ "uuid": BALANCER, "deleteMode": "Permissive" }))?;
    walk.call("DeleteVip", &json!({ "uuid": VIP_UUID, "deleteMode": "Enforcing" }))?;
    Ok(())
}

#[test]
fn every_documented_call_that_is_not_served_yet_is_refused_as_unimplemented() -> Result<()> {
    let run = Running::new(Hook::Tc, 0, 0)?;
    let somebody = json!("44444444444444448444444444444444");
    for call in document()?.iter().filter(|call| !is_served(call)) {
        for url in &call.urls {
            let variables = url.url.split('{').skip(1).filter_map(|rest| rest.split('}').next());
            let arguments = variables.map(|name| (name.to_owned(), somebody.clone())).collect();
            let request = call.request(url, &arguments)?;
            let failure = run.cloud.api.refused(&request.method, &request.path, request.body.as_ref())?;
            ensure!(failure.status == 503 && failure.code() == "SYS.1014", "{}: {failure}", call.api);
        }
    }
    Ok(())
}

#[test]
fn both_spellings_of_a_path_and_both_places_of_tags_work() -> Result<()> {
    let run = Running::new(Hook::Tc, 0, 0)?;
    let api = &run.cloud.api;
    let short = api.finish(api.request(Method::GET, &format!("{}/v1/zones", api.base())))?;
    assert_eq!(short.json()?["inventories"].as_array().map(Vec::len), Some(1), "{}", short.text);

    let (_, balancer) = run.cloud.load_balancer(VIP)?;
    let path = format!("/load-balancers/{balancer}/listeners");
    let inside = json!({ "params": {
        "name": "inside", "loadBalancerPort": 80.0, "systemTags": ["balancerAlgorithm::leastconn"],
    } });
    let beside = json!({
        "params": { "name": "beside", "loadBalancerPort": 81 }, "systemTags": ["balancerAlgorithm::source"],
    });
    for (body, tag) in [(inside, "balancerAlgorithm::leastconn"), (beside, "balancerAlgorithm::source")] {
        let reply = api.post(&path, &body)?;
        let uuid = reply["inventory"]["uuid"].as_str().context("a listener")?.to_owned();
        let tags = api.query(&format!("/system-tags?q=resourceUuid={uuid}"))?;
        assert!(tags.iter().any(|found| found["tag"] == tag), "{tags:?}");
    }
    Ok(())
}

#[test]
fn a_job_is_polled_by_its_location_and_kept_under_the_callers_own_id() -> Result<()> {
    let run = Running::new(Hook::Tc, 0, 0)?;
    let api = &run.cloud.api;
    let job = "55555555555545558555555555555555";
    let request = api
        .request(Method::POST, &format!("{}/zstack/v1/zones", api.base()))
        .header("X-Job-UUID", job)
        .json(&json!({ "params": { "name": "second" } }));
    let accepted: Reply = api.finish(request)?;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    assert!(accepted.json()?["location"].as_str().unwrap_or_default().ends_with(&format!("/zstack/v1/api-jobs/{job}")));
    let done = api.follow(&accepted)?;
    assert_eq!((done.status, &done.json()?["inventory"]["name"]), (200, &json!("second")));
    let date = done.json()?["inventory"]["createDate"].as_str().unwrap_or_default().to_owned();
    assert!(date.ends_with("AM") || date.ends_with("PM"), "{date}");
    Ok(())
}
