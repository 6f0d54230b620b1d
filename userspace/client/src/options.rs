//! The options of a call, which are made from its parameters, and the call's arguments, which are read from the
//! options.

use std::{ops::RangeInclusive, path::PathBuf};

use clap::{
    Arg, ArgAction, ArgMatches,
    builder::{PossibleValuesParser, RangedI64ValueParser},
    value_parser,
};
use clap_complete::ArgValueCompleter;
use serde_json::{Map, Value, json};
use vipgate_api::{
    Call, Resource,
    call::{Kind, Mode, Param, Rule},
};

use super::{
    ClientError, complete,
    http::{Api, TAGS},
    names::{Given, Reference, given, kebab},
    resolve, session,
};

const PASSWORD_FILE: &str = "password-file";

/// The option that names the file with a password.
pub(super) fn password_file() -> Arg {
    Arg::new(PASSWORD_FILE)
        .long(PASSWORD_FILE)
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("The password's file, - is standard input")
}

/// The password of a command with [`password_file`]. It is asked for if no file is named.
pub(super) fn password(matches: &ArgMatches, prompt: &str) -> Result<String, ClientError> {
    session::password(matches.get_one::<PathBuf>(PASSWORD_FILE).map(PathBuf::as_path), prompt)
}

pub(super) fn of(call: &Call) -> Vec<Arg> {
    let mut args: Vec<Arg> = call.params.iter().filter_map(|param| of_param(call, param)).collect();
    if call.mode == Mode::Async {
        args.extend(TAGS.map(|name| {
            let singular = kebab(name.trim_end_matches('s'));
            let help = format!("A {} for what the call makes; may be repeated", singular.replace('-', " "));
            Arg::new(name).long(singular).value_name("TAG").action(ArgAction::Append).help(help)
        }));
    }
    args
}

fn of_param(call: &Call, param: &Param) -> Option<Arg> {
    let arg = match given(call, param) {
        Given::Session => return None,
        Given::Password => {
            let help = if param.required {
                "The password's file, - is standard input [default: it is asked for]"
            } else {
                "The new password's file, - is standard input"
            };
            return Some(password_file().help(help));
        }
        Given::Subject(None) => Arg::new(param.name).value_name("UUID"),
        Given::Subject(Some(reference)) => refers(Arg::new(param.name), reference),
        Given::Option { name, alias, reference } => {
            let arg = Arg::new(param.name).long(name).visible_aliases(alias);
            match reference {
                Some(reference) => refers(arg, reference),
                None => typed(arg, param),
            }
        }
    };
    let arg = match param.kind {
        Kind::TextList => arg.action(ArgAction::Append).value_delimiter(','),
        Kind::ListMap => arg.action(ArgAction::Append).value_name("PROVIDER=TYPE,..."),
        Kind::Text | Kind::Int | Kind::Long | Kind::Bool => arg,
    };
    let help = help(param);
    Some(arg.required(param.required).help(help))
}

fn refers(arg: Arg, reference: Reference) -> Arg {
    arg.value_name("NAME|UUID")
        .add(ArgValueCompleter::new(move |typed: &std::ffi::OsStr| complete::names(reference, typed)))
}

fn typed(arg: Arg, param: &Param) -> Arg {
    match (param.kind, param.rule) {
        (_, Some(Rule::Range(low, high))) if is_rate(param) => {
            arg.value_name("BITS/S").value_parser(move |typed: &str| rate(typed, low..=high))
        }
        (Kind::Int | Kind::Long, Some(Rule::Range(low, high))) => {
            arg.value_name("NUMBER").value_parser(RangedI64ValueParser::<i64>::new().range(low..=high))
        }
        (Kind::Int | Kind::Long, _) => arg.value_name("NUMBER").value_parser(value_parser!(i64)),
        (Kind::Bool, _) => {
            arg.value_name("BOOL").num_args(0..=1).default_missing_value("true").value_parser(value_parser!(bool))
        }
        (_, Some(Rule::OneOf(valid))) => arg.value_parser(PossibleValuesParser::new(valid)),
        (_, Some(Rule::OneOfAnyCase(valid))) => arg.ignore_case(true).value_parser(PossibleValuesParser::new(valid)),
        _ => arg.value_name("TEXT"),
    }
}

/// Whether the unit of a parameter is bits per second.
fn is_rate(param: &Param) -> bool {
    param.name.ends_with("Bandwidth")
}

/// The units of the real system's clients are powers of 2: their megabit is 2^20 bits.
const UNITS: [(char, u32); 3] = [('G', 30), ('M', 20), ('K', 10)];

/// Reads bits per second, with or without a unit.
pub(super) fn rate(typed: &str, bounds: RangeInclusive<i64>) -> Result<i64, String> {
    let with_unit = UNITS.into_iter().find_map(|(unit, shift)| Some((typed.strip_suffix(unit)?, shift)));
    let (digits, shift) = with_unit.unwrap_or((typed, 0));
    let rate = digits.parse().ok().and_then(|number: i64| number.checked_mul(1 << shift));
    rate.filter(|rate| bounds.contains(rate)).ok_or_else(|| {
        format!("a whole number of bits per second is wanted, at least {}, such as 10485760 or 10M", bounds.start())
    })
}

/// Writes bits per second in the largest unit that divides them; `None` if no unit does.
pub(super) fn with_unit(rate: i64) -> Option<String> {
    let (unit, shift) = UNITS.into_iter().find(|(_, shift)| rate % (1 << shift) == 0)?;
    Some(format!("{}{unit}", rate >> shift))
}

/// The help of a parameter: its name in the API, its bounds, whether it is required.
fn help(param: &Param) -> String {
    let bounds = match param.rule {
        Some(Rule::Range(low, _)) if is_rate(param) => format!(", from {low}; K, M and G are 2^10, 2^20 and 2^30"),
        Some(Rule::Range(low, i64::MAX)) => format!(", from {low}"),
        Some(Rule::Range(low, high)) => format!(", {low} to {high}"),
        Some(Rule::MaxLength(most)) => format!(", at most {most} characters"),
        Some(Rule::MaxItems(most)) => format!(", at most {most}"),
        Some(Rule::Uuid) => ", 32 hexadecimal digits".to_owned(),
        Some(Rule::OneOf(_) | Rule::OneOfAnyCase(_) | Rule::NotEmpty) | None => String::new(),
    };
    let repeated =
        matches!(param.kind, Kind::TextList | Kind::ListMap).then_some(", may be repeated").unwrap_or_default();
    let required = if param.required { ", required" } else { "" };
    format!("{}{bounds}{repeated}{required}", param.name)
}

/// The arguments of a call from its options, with uuids in place of names.
pub(super) fn arguments(call: &Call, matches: &ArgMatches, api: &Api) -> Result<Map<String, Value>, ClientError> {
    let mut arguments = Map::new();
    for param in call.params {
        let value = match given(call, param) {
            Given::Session => api.session().map(Value::from),
            Given::Password if param.required || matches.contains_id(PASSWORD_FILE) => {
                Some(password(matches, "password of the account")?.into())
            }
            Given::Password => None,
            Given::Subject(reference) | Given::Option { reference, .. } => value(param, reference, matches, api)?,
        };
        arguments.extend(value.map(|value| (param.name.to_owned(), value)));
    }
    if call.mode == Mode::Async {
        for name in TAGS {
            let tags = texts(matches, name);
            if !tags.is_empty() {
                arguments.insert(name.to_owned(), json!(tags));
            }
        }
    }
    Ok(arguments)
}

fn texts<'a>(matches: &'a ArgMatches, name: &str) -> Vec<&'a str> {
    matches.get_many::<String>(name).into_iter().flatten().map(String::as_str).collect()
}

fn value(
    param: &Param,
    reference: Option<Reference>,
    matches: &ArgMatches,
    api: &Api,
) -> Result<Option<Value>, ClientError> {
    let resolved = |text: &str| reference.map_or_else(|| Ok(text.to_owned()), |of| resolve::uuid(api, of, text));
    let value = match param.kind {
        Kind::Int | Kind::Long => matches.get_one::<i64>(param.name).map(|number| json!(number)),
        Kind::Bool => matches.get_one::<bool>(param.name).map(|flag| json!(flag)),
        Kind::Text => matches.get_one::<String>(param.name).map(|text| resolved(text)).transpose()?.map(Value::from),
        Kind::TextList => {
            let items = texts(matches, param.name).into_iter().map(resolved).collect::<Result<Vec<_>, _>>()?;
            (!items.is_empty()).then(|| json!(items))
        }
        Kind::ListMap => {
            let mut lists = Map::new();
            for text in texts(matches, param.name) {
                let Some((key, items)) = text.split_once('=') else {
                    return Err(ClientError::NoList { option: kebab(param.name), given: text.to_owned() });
                };
                // In every call with such a parameter, its keys are uuids of providers.
                let key = resolve::uuid(api, Reference::One(Resource::NetworkServiceProvider), key)?;
                lists.insert(key, items.split(',').collect());
            }
            (!lists.is_empty()).then_some(Value::Object(lists))
        }
    };
    Ok(value)
}

/// An example of this call as a command line.
pub(super) fn example(command: &str, call: &Call) -> String {
    // At least one of the rates is needed.
    let needed = call.params.iter().filter(|param| param.required || is_rate(param));
    let words = needed.filter_map(|param| match given(call, param) {
        Given::Session | Given::Password => None,
        Given::Subject(None) => Some(UUID.to_owned()),
        Given::Subject(Some(_)) => Some("web".to_owned()),
        Given::Option { name, reference: Some(Reference::One(Resource::L3Network)), .. } => {
            Some(format!("--{name} public"))
        }
        Given::Option { name, reference: Some(_), .. } => Some(format!("--{name} web")),
        Given::Option { name, reference: None, .. } => Some(format!("--{name} {}", sample(param))),
    });
    std::iter::once(command.to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

const UUID: &str = "d825b1a26f4e474b8c59306081920ff2";

/// An example of a parameter's value.
fn sample(param: &Param) -> &'static str {
    match (param.name, param.rule) {
        (_, Some(Rule::OneOf(valid) | Rule::OneOfAnyCase(valid))) => valid[0],
        ("physicalInterface", _) => "eth0",
        ("vlan", _) => "100",
        ("startIp", _) => "10.1.0.10",
        ("endIp", _) => "10.1.0.99",
        ("netmask", _) => "255.255.255.0",
        ("gateway", _) => "10.1.0.1",
        ("networkCidr", _) => "10.1.0.0/24",
        ("dns", _) => "10.1.0.2",
        ("networkServices", _) => "vrouter=LoadBalancer,PortForwarding",
        ("resourceType", _) => "VipVO",
        ("tag", _) => "production",
        ("value", _) => "20",
        _ if is_rate(param) => "10M",
        (_, Some(Rule::Range(..))) => "80",
        _ => "web",
    }
}
