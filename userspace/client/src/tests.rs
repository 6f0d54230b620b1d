use clap::Parser;

use super::*;

/// A command line that has the client's commands alone.
#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    request: Request,
}

/// The matches of a call's command.
fn parsed(line: &[&str]) -> Result<ArgMatches, clap::Error> {
    let Line { request } = Line::try_parse_from([&["vipgate"], line].concat())?;
    Ok(request.matches.subcommand().expect("a verb").1.clone())
}

#[test]
fn every_required_parameter_is_an_option_and_every_example_is_taken() {
    for (noun, verbs) in names::verbs() {
        for (verb, call) in verbs {
            let args = options::of(call);
            for param in call.params.iter().filter(|param| param.required) {
                match names::given(call, param) {
                    names::Given::Session | names::Given::Password => {}
                    _ => assert!(
                        args.iter().any(|arg| arg.get_id() == param.name && arg.is_required_set()),
                        "{} of {} can't be given",
                        param.name,
                        call.api.name()
                    ),
                }
            }
            let example = options::example(&format!("{noun} {verb}"), call);
            let words: Vec<_> = example.split(' ').collect();
            assert!(parsed(&words).is_ok(), "{example}: {:?}", parsed(&words).err());
        }
    }
}

#[test]
fn bounds_of_the_table_are_kept_before_anything_is_sent() {
    let create = ["listener", "create", "--lb", "web", "--name", "web", "--load-balancer-port"];
    assert!(parsed(&[&create[..], &["80"]].concat()).is_ok());
    let error = parsed(&[&create[..], &["65536"]].concat()).unwrap_err().to_string();
    assert!(error.contains("65536") && error.contains("1..=65535"), "{error}");
    let error = parsed(&["vip", "change-state", "web", "--state-event", "off"]).unwrap_err().to_string();
    assert!(error.contains("enable") && error.contains("disable"), "{error}");
}

#[test]
fn rates_are_taken_in_bits_and_in_the_units_of_the_real_systems_clients() {
    let api = Api::without_session("http://192.0.2.1:1").unwrap();
    let call = calls::of(Name::SetVipQos).unwrap();
    let uuid = "d825b1a26f4e474b8c59306081920ff2";
    let line = |rate| ["vip", "set-qos", uuid, "--port", "80", "--inbound-bandwidth", rate];
    for (typed, rate) in [("1048575", 1_048_575_i64), ("1024K", 1 << 20), ("10M", 10 << 20), ("400G", 400 << 30)] {
        let arguments = options::arguments(call, &parsed(&line(typed)).unwrap(), &api).unwrap();
        assert_eq!(Value::Object(arguments), json!({ "uuid": uuid, "port": 80, "inboundBandwidth": rate }));
    }
    let written = [1_048_575, 1 << 20, 1500 << 10, 10 << 20, 400 << 30].map(options::with_unit);
    assert_eq!(
        written,
        [None, Some("1M"), Some("1500K"), Some("10M"), Some("400G")].map(|text| text.map(str::to_owned))
    );
    for typed in ["1048574", "0M", "10MM", "10m", "M", "1.5G", "9999999999G"] {
        let error = parsed(&line(typed)).unwrap_err().to_string();
        assert!(error.contains(typed) && error.contains("at least 1048575"), "{error}");
    }
}

#[test]
fn values_become_arguments_of_their_kinds_and_uuids_need_no_api() {
    let uuid = "D825B1A26F4E474B8C59306081920FF2";
    let api = Api::without_session("http://192.0.2.1:1").unwrap();
    let arguments = |line: &[&str], name| {
        let call = calls::of(name).unwrap();
        Value::Object(options::arguments(call, &parsed(line).unwrap(), &api).unwrap())
    };
    let line =
        ["listener", "create", "--lb", uuid, "--name", "web", "--load-balancer-port", "80", "--system-tag", "a::b"];
    assert_eq!(
        arguments(&line, Name::CreateLoadBalancerListener),
        json!({ "loadBalancerUuid": uuid.to_lowercase(), "name": "web", "loadBalancerPort": 80, "systemTags": ["a::b"] })
    );
    let nics = format!("{uuid},{uuid}");
    assert_eq!(
        arguments(&["lb", "add-vm-nic", "--listener", uuid, "--vm-nic", &nics], Name::AddVmNicToLoadBalancer),
        json!({ "listenerUuid": uuid.to_lowercase(), "vmNicUuids": [uuid.to_lowercase(), uuid.to_lowercase()] })
    );
    let services = format!("{uuid}=LoadBalancer,SNAT");
    assert_eq!(
        arguments(
            &["l3", "attach-network-service", "--l3", uuid, "--network-services", &services],
            Name::AttachNetworkServiceToL3Network
        ),
        json!({ "l3NetworkUuid": uuid.to_lowercase(), "networkServices": { uuid.to_lowercase(): ["LoadBalancer", "SNAT"] } })
    );
    assert_eq!(arguments(&["vip", "delete", uuid], Name::DeleteVip), json!({ "uuid": uuid.to_lowercase() }));
}

#[test]
fn an_api_that_nobody_serves_has_an_exit_code_of_its_own() {
    let refused = Api::without_session("http://127.0.0.1:1").and_then(|api| api.follow("job"));
    assert_eq!(refused.unwrap_err().exit_code(), 9);
}

#[test]
fn every_shell_gets_a_script() {
    for shell in ["bash", "zsh", "fish"] {
        let Line { request } = Line::try_parse_from(["vipgate", COMPLETION, shell]).unwrap();
        assert!(run(&request).unwrap().text.contains("COMPLETE"), "{shell}");
    }
}
