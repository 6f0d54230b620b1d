//! Whole routers, from their files to an API that keeps every rule, and back.

mod model;
mod random;

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::json;
use sha2::{Digest as _, Sha512};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime};
use vipgate_api::{Api as Name, Resource, calls};
use vipgate_controller::{
    rest::{self, Accepting, RestState},
    store::Store,
};
use vipgate_state::{Apply, Change, Devices, NotApplied};

use super::*;
use crate::{ask, http::Answer, session::Session};

const PASSWORD: &str = "password";
const PRUNING: Allowed = Allowed { prune: true, recreate: false };
const ANYTHING: Allowed = Allowed { prune: true, recreate: true };

/// A controller without its packet path.
struct Router {
    api: Api,
    base: String,
    _runtime: Runtime,
    _dir: TempDir,
}

struct Wires;

impl Devices for Wires {
    fn list(&self) -> Vec<String> {
        ["eth0", "eth1"].map(str::to_owned).into()
    }

    fn addresses_by_device(&self) -> Vec<(String, IpAddr)> {
        vec![("eth0".to_owned(), [203, 0, 113, 1].into()), ("eth1".to_owned(), [10, 0, 0, 1].into())]
    }
}

struct NoKernel;

impl Apply for NoKernel {
    fn prepare(&self, _: String) -> BoxFuture<'_, Result<(), NotApplied>> {
        async { Ok(()) }.boxed()
    }

    fn apply(&self, _: Change) -> BoxFuture<'_, Result<(), NotApplied>> {
        async { Ok(()) }.boxed()
    }
}

fn password() -> String {
    hex::encode(Sha512::digest(PASSWORD))
}

fn log_in(base: &str, account: &str) -> Api {
    let login = json!({ "accountName": account, "password": password() });
    let reply = ask(&Api::without_session(base).unwrap(), Name::LogInByAccount, login.as_object().unwrap()).unwrap();
    let uuid = reply["inventory"]["uuid"].as_str().unwrap().to_owned();
    let session = Session { api: base.to_owned(), account: account.to_owned(), uuid };
    Api::of(&session, Duration::from_secs(30)).unwrap()
}

impl Router {
    fn new() -> Self {
        let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
        let base = runtime.block_on(async {
            let store = Store::open(&format!("sqlite://{}/vipgate.db", dir.path().display())).await.unwrap();
            rest::set_first_password(&store, PASSWORD).await.unwrap();
            let state = RestState::new(store, Arc::new(Wires), Arc::new(NoKernel), rest::Settings::default()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let base = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move { axum::serve(Accepting::new(listener), rest::router(state)).await.unwrap() });
            base
        });
        Self { api: log_in(&base, "admin"), base, _runtime: runtime, _dir: dir }
    }

    /// A call of the admin's, to its end.
    fn call(&self, api: Name, arguments: &Value) {
        let call = calls::of(api).unwrap();
        let Answer::Job(job) = self.api.send(call, arguments.as_object().unwrap()).unwrap() else { panic!("no job") };
        self.api.follow(&job).unwrap();
    }

    /// A router that is as this file declares.
    fn of(text: &str) -> Self {
        let router = Self::new();
        router.applies(text, Allowed::default());
        router
    }

    fn apply(&self, text: &str, allowed: Allowed, dry_run: bool) -> Result<Output, ClientError> {
        let request = ApplyRequest { file: "router.yaml", text, allowed, dry_run, format: Format::Table };
        request.apply(request.draft()?, &self.api)
    }

    /// What an apply that succeeds says.
    fn applies(&self, text: &str, allowed: Allowed) -> String {
        let said = self.apply(text, allowed, false).unwrap_or_else(|error| panic!("{error}\n{text}"));
        said.text
    }

    fn refuses(&self, text: &str, allowed: Allowed, words: &[&str]) {
        let before = self.export();
        let error = self.apply(text, allowed, false).expect_err(text).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} are not all in: {error}");
        assert_eq!(self.export(), before, "something was done");
    }

    /// Nothing is to be done, and a dry run says so.
    fn is_as(&self, text: &str, allowed: Allowed) {
        let said = self.apply(text, allowed, true).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(said, Output { text: "nothing to do\n".to_owned(), differs: false }, "{text}");
    }

    /// What an apply would do one after the other.
    fn steps(&self, text: &str) -> Vec<String> {
        let request =
            ApplyRequest { file: "router.yaml", text, allowed: PRUNING, dry_run: true, format: Format::Table };
        let existing = existing::read(&self.api).unwrap();
        let declared = request.draft().unwrap().resolve(existing.iter().map(|present| &present.thing)).unwrap();
        let steps = Plan::of(&declared, &existing, PRUNING).unwrap().steps(&declared, &existing);
        steps.iter().map(|step| step.label(&Names::default())).collect()
    }

    fn export(&self) -> String {
        exported(&self.api).unwrap()
    }
}

const SITE: &str = "\
zones:
  north:
    l2s:
      outside:
        physicalInterface: eth0
        l3s:
          public:
            category: Public
            ranges:
              public: {startIp: 203.0.113.10, endIp: 203.0.113.99, netmask: 255.255.255.0, gateway: 203.0.113.1}
      inside:
        physicalInterface: eth1
        l3s:
          guest:
            services: [LoadBalancer, PortForwarding, Eip]
            ranges:
              guest: {startIp: 10.0.0.10, endIp: 10.0.0.99, netmask: 255.255.255.0, gateway: 10.0.0.1}
vms:
  web1: {nics: {guest: {ip: 10.0.0.11}}}
  web2: {nics: {guest: {ip: 10.0.0.12}}, state: Stopped}
";

fn with(more: &str) -> String {
    format!("{SITE}{more}")
}

const SHOP: &str = "\
vips:
  web:
    l3: public
    ip: 203.0.113.10
    userTags: [blue]
    qos:
      all: {inboundBandwidth: 100M, outboundBandwidth: 100M}
      80: {outboundBandwidth: 10M}
    lbs:
      shop:
        listeners:
          http: {loadBalancerPort: 80, maxConnection: 100, backends: [web1, web2], weights: {web2: 50}}
    pfs:
      ssh: {protocolType: TCP, vipPortStart: 2222, privatePortStart: 22, nic: web1}
  mail:
    l3: public
    ip: 203.0.113.11
    state: Disabled
    eips:
      mail: {nic: web2, state: Disabled}
";

#[test]
fn a_router_is_made_once_and_every_further_apply_has_nothing_to_do() {
    let router = Router::new();
    let text = with(SHOP);
    let said = router.apply(&text, Allowed::default(), true).unwrap();
    assert!(said.differs && said.text.starts_with("+ zone north\n"), "{}", said.text);
    assert_eq!(router.applies(&text, Allowed::default()), said.text, "the plan is what is done");
    router.is_as(&text, PRUNING);
    let exported = router.export();
    router.is_as(&exported, PRUNING);
    assert_eq!(Router::of(&exported).export(), exported);
    for default in ["state: Enabled", "instancePort", "healthCheckTarget", "vipPortEnd", "100\n            web1"] {
        assert!(!exported.contains(default), "{default} is a default: {exported}");
    }
}

#[test]
fn the_example_in_the_documents_is_a_router() {
    let text = include_str!("../../../../../docs/router.yaml").replace("pub0", "eth0").replace("priv0", "eth1");
    // The router has other addresses here, by which its guests could not leave.
    let router = Router::of(&text.replace(", SNAT]", "]"));
    let exported = router.export();
    router.is_as(&exported, PRUNING);
}

#[test]
fn what_can_be_changed_in_place_is_and_the_plan_tells_it() {
    let router = Router::of(&with(SHOP));
    let changed = SHOP
        .replace("maxConnection: 100, ", "description: new, ")
        .replace("backends: [web1, web2], weights: {web2: 50}", "backends: [web1]")
        .replace("nic: web1}", "nic: web2, state: Disabled}")
        .replace("[blue]", "[green]");
    let said = router.applies(&with(&changed), PRUNING);
    for line in [
        "~ vip web: userTags +green -blue\n",
        "~ listener web/shop/http: description nothing -> new, maxConnection 100 -> 5000, backends -web2, weights -web2=50\n",
        "~ pf web/ssh: state Enabled -> Disabled, nic web1 -> web2\n",
    ] {
        assert!(said.contains(line), "{line} is not in: {said}");
    }
    router.is_as(&with(&changed), PRUNING);
    router.applies(&with(SHOP), PRUNING);
    router.is_as(&with(SHOP), PRUNING);
}

#[test]
fn what_cannot_be_changed_in_place_is_made_anew_if_that_is_allowed() {
    let router = Router::of(&with(SHOP));
    let moved = with(&SHOP.replace("ip: 203.0.113.10", "ip: 203.0.113.20"));
    router.refuses(&moved, PRUNING, &["vip web: ip is 203.0.113.10, not 203.0.113.20", "--recreate"]);
    let recreate = Allowed { prune: false, recreate: true };
    let said = router.applies(&moved, recreate);
    let order = ["- listener web/shop/http", "- vip web", "+ vip web", "+ lb web/shop", "+ listener web/shop/http"];
    let places: Vec<_> = order.iter().map(|line| said.find(line).unwrap_or_else(|| panic!("{line}: {said}"))).collect();
    assert!(places.is_sorted(), "{said}");
    router.is_as(&moved, PRUNING);

    let partly = moved.split("vms:").next().unwrap().replace("10.0.0.99", "10.0.0.98");
    router.refuses(&partly, PRUNING, &["range north/inside/guest/guest: endIp is 10.0.0.99"]);
    let referring = format!(
        "{partly}vips: {{web: {{l3: public, ip: 203.0.113.20, pfs: {{ssh: {{protocolType: TCP, vipPortStart: 2222, \
                             privatePortStart: 22, nic: web1}}}}}}}}\n"
    );
    router.refuses(&referring, recreate, &["vm web1 would go", "declare it"]);

    let renumbered = moved.replace("ip: 10.0.0.11", "ip: 10.0.0.13");
    router.refuses(&renumbered, PRUNING, &["vm web1: nic web1/north/inside/guest: ip is 10.0.0.11"]);
    router.applies(&renumbered, ANYTHING);
    router.is_as(&renumbered, PRUNING);
}

#[test]
fn limits_are_changed_by_being_set_anew_one_by_one_and_nobody_is_asked() {
    let router = Router::of(&with(SHOP));
    let limits = SHOP.split("qos:\n").nth(1).and_then(|text| text.split("    lbs:").next()).unwrap();
    for same in [SHOP.replace("100M", "104857600"), SHOP.replace("10M", "10240K").replace("80: {out", "080: {out")] {
        router.is_as(&with(&same), PRUNING);
    }
    let changed = with(
        &SHOP
            .replace("inboundBandwidth: 100M, outboundBandwidth: 100M", "inboundBandwidth: 1G")
            .replace("{outboundBandwidth: 10M}", "{outboundBandwidth: 1048575}\n      443: {inboundBandwidth: 400G}"),
    );
    let said = router.apply(&changed, PRUNING, true).unwrap();
    let lines = [
        "~ qos web/all: inboundBandwidth 100M -> 1G, outboundBandwidth 100M -> nothing\n",
        "~ qos web/80: outboundBandwidth 10M -> 1048575\n",
        "+ qos web/443\n",
    ];
    assert_eq!(said.text, lines.concat());
    assert_eq!(
        router.steps(&changed),
        ["- qos web/all", "+ qos web/all", "- qos web/80", "+ qos web/80", "+ qos web/443"],
        "none is missing for longer than it must be"
    );
    router.applies(&changed, PRUNING);
    router.is_as(&changed, PRUNING);
    let exported = router.export();
    let expected =
        "all:\n        inboundBandwidth: 1G\n      \"80\":\n        outboundBandwidth: 1048575\n      \"443\":";
    assert!(exported.contains(expected), "{exported}");
    let unlimited = with(&SHOP.replace(limits, ""));
    router.is_as(&unlimited.replace("    qos:\n", ""), PRUNING);
    assert_eq!(router.applies(&unlimited, PRUNING), "- qos web/all\n- qos web/80\n- qos web/443\n");
    router.is_as(&unlimited, PRUNING);
}

#[test]
fn what_is_not_declared_is_left_alone_unless_it_is_pruned_with_its_kind() {
    let router = Router::of(&with(SHOP));
    router.is_as("vips: {web: {l3: public, userTags: [blue], lbs: {}}}", Allowed::default());
    router.is_as("zones: {north: {}}", PRUNING);
    let fewer = with(SHOP.split("  mail:").next().unwrap());
    router.is_as(&fewer, Allowed::default());
    assert_eq!(router.applies(&fewer, PRUNING), "- eip mail/mail\n- vip mail\n");
    router.is_as(&fewer, PRUNING);
    router.refuses("zones: {south: {}}", PRUNING, &["pruning zone north", "vm web1", "no section", "`vms: {}`"]);
    let south = "zones: {south: {}}\nvips: {}\nvms: {}\n";
    router.applies(south, PRUNING);
    assert_eq!(router.export(), "zones:\n  south: {}\n");
}

#[test]
fn the_routers_own_address_is_declared_by_what_is_on_it() {
    let text =
        with("vips: {router on public: {l3: public, own: true, lbs: {shop: {}}, qos: {80: {inboundBandwidth: 10M}}}}")
            .replace("Eip]", "Eip, SNAT]");
    let router = Router::of(&text);
    router.applies(&router.export(), Allowed::default());
    let exported = router.export();
    assert!(exported.contains("own: true"), "{exported}");
    router.is_as(&exported, PRUNING);
    assert_eq!(Router::of(&exported).export(), exported);
    router.applies(&text.replace("shop: {}", ""), PRUNING);
    assert!(router.export().contains("own: true"), "its limit alone is a reason to declare it");
    router.applies(&text.replace("shop: {}", "").replace("80: {inboundBandwidth: 10M}", ""), PRUNING);
    assert!(!router.export().contains("vips:"), "an own address with nothing on it is nobody's to declare");
}

/// A router whose networks all accounts share, asked by one of those.
fn shared_with_alice() -> Router {
    let mut router = Router::of(SITE.split("vms:").next().unwrap());
    let existing = existing::read(&router.api).unwrap();
    let networks = existing.iter().filter(|present| present.thing.kind().resource == Resource::L3Network);
    let networks: Vec<_> = networks.map(|present| present.uuid.clone()).collect();
    router.call(Name::CreateAccount, &json!({ "name": "alice", "password": password() }));
    router.call(Name::ShareResource, &json!({ "resourceUuids": networks, "toPublic": true }));
    router.api = log_in(&router.base, "alice");
    router
}

/// What an account has that owns no network.
fn guests() -> String {
    SITE.split_inclusive("vms:").nth(1).map(|vms| format!("vms:{vms}{SHOP}")).unwrap()
}

#[test]
fn what_another_account_has_under_a_declared_name_is_not_meant() {
    let mut router = shared_with_alice();
    router.applies(&guests(), PRUNING);
    let alices = router.export();
    router.api = log_in(&router.base, "admin");
    assert!(!router.export().contains("web"), "{}", router.export());
    let own = "vms: {web1: {nics: {guest: {}}}}\nvips: {web: {l3: public, lbs: {shop: {listeners: {http: {loadBalancerPort: 80, \
               backends: [web1]}}}}}}\n";
    let said = router.applies(own, PRUNING);
    assert!(said.contains("+ vm web1\n") && said.contains("+ vip web\n") && !said.contains("\n-"), "{said}");
    router.is_as(own, PRUNING);
    router.applies("{vms: {}, vips: {}}", ANYTHING);
    router.api = log_in(&router.base, "alice");
    assert_eq!(router.export(), alices);
}

#[test]
fn a_tenant_declares_what_is_its_own_by_what_is_shared_with_it() {
    let mut router = shared_with_alice();
    router.api = log_in(&router.base, "admin");
    let admins = router.export();
    router.api = log_in(&router.base, "alice");
    let text = guests();
    router.applies(&text, PRUNING);
    router.is_as(&text, PRUNING);
    let exported = router.export();
    assert!(exported.starts_with("vms:") && exported.contains("l3: public\n"), "{exported}");
    router.is_as(&exported, PRUNING);
    router.applies("{vms: {}, vips: {}}", PRUNING);
    router.api = log_in(&router.base, "admin");
    assert_eq!(router.export(), admins);
}

#[test]
fn references_are_as_long_as_they_must_be() {
    let second = "vips: {web: {l3: inside/public}}\n";
    let text = with(second).replace("          guest:\n", "          public: {}\n          guest:\n");
    let router = Router::new();
    router.refuses(
        &text.replace("inside/public", "public"),
        PRUNING,
        &["router.yaml:", "north/inside/public, north/outside/public"],
    );
    let draft = text.replace("inside/public", "outside/public");
    router.applies(&draft, Allowed::default());
    assert!(router.export().contains("l3: outside/public"), "{}", router.export());
    router.is_as(&draft, PRUNING);
    // What the file declares itself goes before what is there besides.
    let another = "zones: {south: {l2s: {outer: {physicalInterface: eth0, l3s: {public: {}}}}}}\nvms: {db: {nics: {public: {}}}}\n";
    let said = router.apply(another, Allowed::default(), true).unwrap();
    assert!(said.text.ends_with("+ vm db\n"), "{}", said.text);
}

#[test]
fn of_two_with_one_name_an_error_gives_the_uuids() {
    let router = Router::of(&with("vips: {web: {l3: public}}\n"));
    let existing = existing::read(&router.api).unwrap();
    let first = existing.iter().find(|present| present.thing.name() == "web").unwrap();
    let mut second = first.thing.clone();
    second.values.remove("ip");
    Executor::new(&router.api, &existing).execute(&Step::Create(second, Vec::new())).unwrap();
    let error = router.apply("vips: {web: {l3: public}}", Allowed::default(), true).unwrap_err().to_string();
    assert!(error.contains("2 of vip web") && error.contains(&first.uuid), "{error}");
    assert!(exported(&router.api).unwrap_err().to_string().contains(&first.uuid));
    router.is_as("zones: {north: {}}", Allowed::default());
}

#[test]
fn a_failure_tells_what_is_done_and_another_apply_goes_on() {
    let router = Router::new();
    // Ports of the router's DNS are refused by the API alone.
    let bad = with(&SHOP.replace("{loadBalancerPort: 80,", "{loadBalancerPort: 53, protocol: udp,"));
    let error = router.apply(&bad, Allowed::default(), false).unwrap_err();
    assert_eq!(error.exit_code(), 7);
    let error = error.to_string();
    for words in [
        "udp port 53",
        "stopped at + listener web/shop/http",
        "done:\n  + zone north",
        "not done, for another apply:\n  ~ listener",
    ] {
        assert!(error.contains(words), "{words} is not in: {error}");
    }
    router.applies(&with(SHOP), Allowed::default());
    router.is_as(&with(SHOP), PRUNING);
}

#[test]
fn faults_of_the_file_are_told_by_line_before_anything_is_sent() {
    let router = Router::new();
    for (text, words) in [
        ("zones:\n  north:\n    l2z: {}\n", &["router.yaml:3", "zone north has no `l2z`", "`l2s`"][..]),
        ("vipz: {}", &["router.yaml:1", "`vips`"]),
        ("vips:\n  a: {l3: x}\n  b: {l3: x}\n  a: {l3: x}\n", &["router.yaml:4", "two vips", "`a`"]),
        ("vips:\n  a: {}\n", &["router.yaml:2", "vip a lacks `l3`"]),
        ("vips:\n  a:\n    l3:\n", &["router.yaml:2", "vip a lacks `l3`"]),
        ("vips:\n  a:\n    l3: x\n    state: off\n", &["router.yaml:4", "Enabled or Disabled"]),
        ("vips:\n  a:\n    l3: x\n    l3: y\n", &["router.yaml:4", "twice"]),
        ("vips: [a]", &["router.yaml:1", "a mapping"]),
        ("zones: {a: {l2s: {b: {physicalInterface: 5}}}}", &["physicalInterface is 5", "a text"]),
        (
            "vips:\n  a:\n    l3: x\n    lbs: {b: {listeners: {c: {\n      loadBalancerPort: 70000}}}}\n",
            &["router.yaml:5", "1 to 65535"],
        ),
        (
            "vips:\n  a:\n    l3: x\n    lbs: {b: {listeners: {c: {loadBalancerPort: 80,\n      balancerAlgorithm: fast}}}}\n",
            &["router.yaml:5", "roundrobin"],
        ),
        (
            "vips:\n  a:\n    l3: x\n    pfs: {b: {protocolType: TCP, vipPortStart: 9,\n      vipPortEnd: 8}}\n",
            &["router.yaml:3", "`x` is no l3"],
        ),
        ("vms:\n  a: {}\n", &["router.yaml:2", "vm a lacks `nics`"]),
        ("vips:\n  a:\n    l3: x\n    qoss: {}\n", &["router.yaml:4", "`qos`"]),
        ("vips:\n  a:\n    l3: x\n    qos:\n      al: {}\n", &["router.yaml:5", "`al` of a qos is no port", "`all`"]),
        ("vips:\n  a:\n    l3: x\n    qos:\n      70000: {}\n", &["router.yaml:5", "from 1 to 65535, it is 70000"]),
        ("vips:\n  a:\n    l3: x\n    qos:\n      80: {}\n      080: {}\n", &["router.yaml:6", "two qos", "`80`"]),
        (
            "vips:\n  a:\n    l3: x\n    qos:\n      80: {inBandwidth: 10M}\n",
            &["router.yaml:5", "qos a/80 has no `inBandwidth`", "`inboundBandwidth`"],
        ),
        (
            "vips:\n  a:\n    l3: x\n    qos: {all: {\n      inboundBandwidth: 10MB}}\n",
            &["router.yaml:5", "qos a/all: inboundBandwidth is `10MB`", "such as 10485760 or 10M"],
        ),
        (
            "vips:\n  a:\n    l3: x\n    qos: {all: {\n      inboundBandwidth: [10M]}}\n",
            &["router.yaml:5", "write bits per second"],
        ),
        ("a: [", &["router.yaml", "line"]),
        ("[a]", &["router.yaml:1", "a mapping"]),
        ("# nothing\n", &["router.yaml", "the file is empty"]),
    ] {
        router.refuses(text, Allowed::default(), words);
    }
    let router = Router::of(SITE);
    router.refuses(
        "vips:\n  a:\n    l3: publik\n",
        Allowed::default(),
        &["router.yaml:3", "`publik` is no l3", "`public`"],
    );
    let ports = "vips:\n  a:\n    l3: public\n    pfs:\n      b: {protocolType: TCP, vipPortStart: 9, vipPortEnd: 8}\n";
    router.refuses(ports, Allowed::default(), &["router.yaml:5", "vipPortEnd 8 is below vipPortStart 9"]);
    let unlimited = "vips:\n  a:\n    l3: public\n    qos:\n      80: {}\n";
    router.refuses(
        unlimited,
        Allowed::default(),
        &["router.yaml:5", "qos a/80: inboundBandwidth and outboundBandwidth"],
    );
    let weights = "vips: {a: {l3: public, lbs: {b: {listeners: {c: {loadBalancerPort: 80, weights: {web1: 5}}}}}}}";
    router.refuses(weights, Allowed::default(), &["no backend"]);
}
