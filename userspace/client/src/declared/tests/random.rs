//! Random routers that the API's rules allow: each is made, is as declared then, and can become any other.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{super::super::yaml, ANYTHING, PRUNING, Router, SITE};

/// Choices from the bytes of a test case; 0 where they end.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn below(&mut self, bound: usize) -> usize {
        self.0.next().map_or(0, |byte| usize::from(*byte) % bound)
    }

    fn is(&mut self) -> bool {
        self.below(2) == 1
    }
}

fn put(to: &mut Value, key: &str, value: impl Into<Value>) {
    to[key] = value.into();
}

/// A router that the API's rules allow. Each of its addresses is written, so that what it comes to is certain.
pub(super) fn router(bytes: &[u8]) -> String {
    let mut choices = Choices(bytes.iter());
    let mut site: Value = yaml::read(SITE).unwrap();
    let guest = &mut site["zones"]["north"]["l2s"]["inside"]["l3s"]["guest"];
    if choices.is() {
        put(guest, "dns", json!(["192.0.2.1", "192.0.2.2"][..=choices.below(2)]));
    }
    if choices.is() {
        put(guest, "services", json!(["SNAT", "Eip", "LoadBalancer", "PortForwarding"]));
    }
    if choices.is() {
        let more =
            json!({"startIp": "10.0.0.100", "endIp": "10.0.0.120", "netmask": "255.255.255.0", "gateway": "10.0.0.1"});
        put(&mut guest["ranges"], "more", more);
    }
    let count = 1 + choices.below(4);
    let vms: Vec<String> = (0..count).map(|number| format!("vm{number}")).collect();
    let mut instances = Map::new();
    for (number, name) in vms.iter().enumerate() {
        let address = format!("10.0.0.{}", 10 + number + 20 * choices.below(3));
        let mut vm = json!({"nics": {"guest": {"ip": address, "mac": format!("02:00:00:00:00:0{number}")}}});
        if choices.is() {
            put(&mut vm, "state", "Stopped");
        }
        instances.insert(name.clone(), vm);
    }
    site["vms"] = instances.into();
    let mut vips = Map::new();
    for number in 0..choices.below(5) {
        let address = format!("203.0.113.{}", 10 + number + 20 * choices.below(2));
        // The sections are there, empty or not: what another router has in them can be pruned.
        let mut vip =
            json!({"l3": "public", "ip": address, "qos": limits(&mut choices), "eips": {}, "pfs": {}, "lbs": {}});
        if choices.is() {
            put(&mut vip, "description", "a VIP: \"yes\"");
        }
        if choices.is() {
            put(&mut vip, "userTags", json!(["blue", "no", "007"][..=choices.below(3)]));
        }
        if choices.below(3) == 0 {
            put(&mut vip, "eips", json!({"eip": led(&mut choices, &vms)}));
        } else {
            if choices.is() {
                put(&mut vip, "state", "Disabled");
            }
            put(&mut vip, "lbs", balancers(&mut choices, &vms));
            // A VM takes rules of one VIP.
            put(
                &mut vip,
                "pfs",
                rules(&mut choices, &vms[number.min(vms.len() - 1)..][..usize::from(number < vms.len())]),
            );
        }
        vips.insert(format!("vip{number}"), vip);
    }
    site["vips"] = vips.into();
    yaml::write(&site).unwrap()
}

/// Of whole VIPs and of ports, in units and without.
fn limits(choices: &mut Choices<'_>) -> Value {
    let mut limits = json!({});
    for place in ["all", "80", "443"] {
        for rate in ["inboundBandwidth", "outboundBandwidth"] {
            if choices.below(3) == 2 {
                put(
                    &mut limits[place],
                    rate,
                    [json!("10M"), json!(1_048_575), json!("1500K")][choices.below(3)].clone(),
                );
            }
        }
    }
    limits
}

/// A state, and what it leads to.
fn led(choices: &mut Choices<'_>, vms: &[String]) -> Value {
    let mut thing = json!({});
    if choices.is() {
        put(&mut thing, "state", "Disabled");
    }
    if choices.is() && !vms.is_empty() {
        put(&mut thing, "nic", vms[choices.below(vms.len())].clone());
    }
    thing
}

fn rules(choices: &mut Choices<'_>, vms: &[String]) -> Value {
    let rule = |number: usize| {
        let mut rule = led(choices, vms);
        put(&mut rule, "protocolType", ["TCP", "UDP"][choices.below(2)]);
        let first = 100 + 10 * number;
        put(&mut rule, "vipPortStart", first);
        put(&mut rule, "vipPortEnd", first + choices.below(3));
        put(&mut rule, "privatePortStart", first + 1000 * choices.below(2));
        if choices.is() {
            put(&mut rule, "allowedCidr", "192.0.2.0/24");
        }
        (format!("rule{number}"), rule)
    };
    (0..2).map(rule).collect::<Map<_, _>>().into()
}

fn balancers(choices: &mut Choices<'_>, vms: &[String]) -> Value {
    let listener = |number: usize| {
        let mut listener = json!({"loadBalancerPort": 1000 + number + 100 * choices.below(2)});
        put(&mut listener, "protocol", ["tcp", "udp"][choices.below(2)]);
        if choices.is() {
            put(&mut listener, "instancePort", 80);
        }
        if choices.is() {
            put(&mut listener, "balancerAlgorithm", ["leastconn", "source", "maglev"][choices.below(3)]);
            put(&mut listener, "healthCheckTarget", "tcp:80");
            put(&mut listener, "maxConnection", choices.below(3));
        }
        let backends: Vec<&String> = vms.iter().filter(|_| choices.is()).collect();
        let weighed = backends.iter().map(|vm| ((*vm).clone(), json!(choices.below(101))));
        put(&mut listener, "weights", weighed.collect::<Map<_, _>>());
        put(&mut listener, "backends", json!(backends));
        (format!("listener{number}"), listener)
    };
    json!({"shop": {"listeners": (0..2).map(listener).collect::<Map<_, _>>()}, "empty": {}})
}

pub(super) fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_declared_is_there_after_one_apply_and_is_exported_as_it_is(bytes in bytes()) {
        let text = router(&bytes);
        let made = Router::of(&text);
        made.is_as(&text, PRUNING);
        let exported = made.export();
        made.is_as(&exported, PRUNING);
        prop_assert_eq!(Router::of(&exported).export(), exported);
    }

    #[test]
    fn any_router_becomes_any_other(from in bytes(), to in bytes()) {
        let (from, to) = (router(&from), router(&to));
        let changed = Router::of(&from);
        changed.applies(&to, ANYTHING);
        changed.is_as(&to, PRUNING);
        prop_assert_eq!(changed.export(), Router::of(&to).export());
    }
}
