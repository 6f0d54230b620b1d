use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    call::Api,
    calls::all,
    error::Code,
    load_balancer::{CreateLoadBalancerListener, ListenerNics},
    network_service::NetworkServices,
};

fn call(api: Api) -> &'static Call {
    all().find(|call| call.api == api).unwrap()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn post(api: Api, path: &[(&str, &str)], body: &Value) -> Result<Map<String, Value>, BadRequest> {
    decode(call(api), Method::Post, &pairs(path), &[], body.as_object().unwrap())
}

fn delete(api: Api, path: &[(&str, &str)], query: &[(&str, &str)]) -> Result<Map<String, Value>, BadRequest> {
    decode(call(api), Method::Delete, &pairs(path), &pairs(query), &Map::new())
}

fn checked(api: Api, mut found: Map<String, Value>) -> Result<Value, ApiError> {
    check(call(api), &mut found).map(|()| found.into())
}

const LISTENER: Api = Api::CreateLoadBalancerListener;
const BALANCER: (&str, &str) = ("loadBalancerUuid", "lb");

#[test]
fn a_listener_is_read_from_path_and_body_whatever_its_numbers_look_like() {
    for port in [json!(80), json!(80.0), json!("80")] {
        let body = json!({"params": {"name": " web ", "loadBalancerPort": port, "loadBalancerUuid": "not this", "protocol": "TCP", "foo": 1}});
        let found = checked(LISTENER, post(LISTENER, &[BALANCER], &body).unwrap()).unwrap();
        let request: CreateLoadBalancerListener = serde_json::from_value(found).unwrap();
        assert_eq!((request.load_balancer_port, request.instance_port), (80, None));
        assert_eq!((request.name.as_str(), request.load_balancer_uuid.as_str()), ("web", "lb"));
        assert_eq!(request.protocol.as_deref(), Some("tcp"));
    }
}

#[test]
fn a_fraction_a_word_or_a_giant_is_no_port() {
    for port in [json!(22.5), json!("web"), json!(1_u64 << 40), json!([80]), json!(true)] {
        let error = post(LISTENER, &[BALANCER], &json!({"params": {"loadBalancerPort": port}})).unwrap_err();
        assert!(error.0.contains("loadBalancerPort"), "{error}");
    }
}

#[test]
fn a_port_out_of_range_is_an_invalid_argument() {
    for port in [0, -1, 65536] {
        let found = post(LISTENER, &[BALANCER], &json!({"params": {"name": "web", "loadBalancerPort": port}})).unwrap();
        let error = checked(LISTENER, found).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.details.contains("field[loadBalancerPort]"), "{error}");
    }
}

#[test]
fn every_missing_mandatory_parameter_is_named() {
    for call in all() {
        for missing in call.params.iter().filter(|param| param.required) {
            let mut found = Map::new();
            for param in call.params.iter().filter(|param| param.required && param.name != missing.name) {
                found.insert(param.name.to_owned(), sample(param));
            }
            let error = check(call, &mut found).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.details.contains(&format!("field[{}]", missing.name)), "{error}");
        }
    }
}

fn sample(param: &Param) -> Value {
    match (param.kind, param.rule) {
        (_, Some(Rule::OneOf(valid) | Rule::OneOfAnyCase(valid))) => valid[0].into(),
        (Kind::Text, _) => "a".into(),
        (Kind::Int | Kind::Long, _) => 1.into(),
        (Kind::Bool, _) => true.into(),
        (Kind::TextList, _) => json!(["a"]),
        (Kind::ListMap, _) => json!({"a": ["b"]}),
    }
}

#[test]
fn tags_are_taken_from_inside_and_beside_the_parameters() {
    let body = json!({"params": {"systemTags": ["a::1"]}, "systemTags": ["b::2"], "userTags": ["mine"]});
    let found = post(Api::CreateVip, &[], &body).unwrap();
    assert_eq!(found["systemTags"], json!(["a::1", "b::2"]));
    assert_eq!(found["userTags"], json!(["mine"]));
}

#[test]
fn more_tags_than_can_be_written_at_once_are_refused() {
    let zone = |count: usize| {
        let body = json!({"params": {"name": "z"}, "userTags": vec!["t"; count]});
        checked(Api::CreateZone, post(Api::CreateZone, &[], &body).unwrap())
    };
    assert!(zone(MAX_TAGS).is_ok());
    let error = zone(MAX_TAGS + 1).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
    assert!(error.details.contains("field[userTags]") && error.details.contains("1001"), "{error}");
}

#[test]
fn lists_in_a_query_string_come_in_both_forms() {
    let listener = ("listenerUuid", "l");
    for query in [[("vmNicUuids", "a"), ("vmNicUuids", "b")], [("vmNicUuids.1", "b"), ("vmNicUuids.0", "a")]] {
        let found = delete(Api::RemoveVmNicFromLoadBalancer, &[listener], &query).unwrap();
        let request: ListenerNics = serde_json::from_value(found.into()).unwrap();
        assert_eq!(request.vm_nic_uuids, ["a", "b"]);
    }
}

#[test]
fn maps_in_a_query_string_come_in_both_forms() {
    let l3 = ("l3NetworkUuid", "n");
    for query in [
        [("networkServices.p", "SNAT"), ("networkServices.p", "Eip"), ("networkServices.q", "DHCP")],
        [("networkServices.p.1", "Eip"), ("networkServices.p.0", "SNAT"), ("networkServices.q", "DHCP")],
    ] {
        let found = delete(Api::DetachNetworkServiceFromL3Network, &[l3], &query).unwrap();
        let request: NetworkServices = serde_json::from_value(found.into()).unwrap();
        assert_eq!(request.network_services["p"], ["SNAT", "Eip"]);
        assert_eq!(request.network_services["q"], ["DHCP"]);
    }
}

#[test]
fn a_scalar_given_twice_is_refused() {
    let error = delete(Api::DeleteVip, &[("uuid", "u")], &[("deleteMode", "a"), ("deleteMode", "b")]).unwrap_err();
    assert!(error.0.contains("`deleteMode`"), "{error}");
}

#[test]
fn lists_may_be_neither_empty_nor_full_of_holes() {
    for nics in [json!([]), json!([null]), json!(["a", ""])] {
        let found =
            post(Api::AddVmNicToLoadBalancer, &[("listenerUuid", "l")], &json!({"params": {"vmNicUuids": nics}}))
                .unwrap();
        assert_eq!(checked(Api::AddVmNicToLoadBalancer, found).unwrap_err().code, Code::InvalidArgument);
    }
}

#[test]
fn a_wanted_uuid_must_look_like_one() {
    let with = |uuid: &str| {
        let body = json!({"params": {"name": "z", "resourceUuid": uuid}});
        checked(Api::CreateZone, post(Api::CreateZone, &[], &body).unwrap())
    };
    assert!(with("d825b1a26f4e474b8c59306081920ff2").is_ok());
    for uuid in ["d825b1a2-6f4e-474b-8c59-306081920ff2", "x825b1a26f4e474b8c59306081920ff2", "1"] {
        assert_eq!(with(uuid).unwrap_err().code, Code::InvalidArgument);
    }
}

#[test]
fn a_parameter_that_only_some_routes_have_in_their_path_is_asked_for_by_the_others() {
    let candidates = call(Api::GetEipAttachableVmNics);
    let read = |path: &[(&str, &str)], query: &[(&str, &str)]| {
        decode(candidates, Method::Get, &pairs(path), &pairs(query), &Map::new()).unwrap()
    };
    assert_eq!(read(&[("eipUuid", "e")], &[("eipUuid", "other")])["eipUuid"], "e");
    let found = read(&[], &[("eipUuid", "e"), ("vipUuid", "v")]);
    assert_eq!((&found["eipUuid"], &found["vipUuid"]), (&json!("e"), &json!("v")));
}

#[test]
fn an_absent_body_is_an_empty_one() {
    for body in [json!({}), json!({"params": null}), json!({"": {}})] {
        assert_eq!(post(Api::CreateZone, &[], &body).unwrap(), Map::new());
    }
    assert!(post(Api::CreateZone, &[], &json!({"params": [1]})).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z.0-9]{0,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    /// Whatever a body holds, a request that passes both steps is one that its rule can take.
    #[test]
    fn what_passes_deserialises(name in any_json(), port in any_json(), tags in any_json()) {
        let body = json!({"params": {"name": name, "loadBalancerPort": port, "systemTags": tags}});
        if let Ok(found) = post(LISTENER, &[BALANCER], &body)
            && let Ok(found) = checked(LISTENER, found)
        {
            prop_assert!(serde_json::from_value::<CreateLoadBalancerListener>(found).is_ok());
        }
    }
}
