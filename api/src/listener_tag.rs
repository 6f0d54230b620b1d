//! The system tags that hold a listener's settings, `name::value`: their grammar and their defaults.
//!
//! They differ from the real system's: numbers have bounds (it accepts any 64-bit number, even a negative one), and
//! there is one more algorithm, `maglev`. Two things are from its later versions: the weights of NICs, of which a
//! listener has any number (`balancerWeight::<NIC's uuid>::<weight>`), and `weightroundrobin`, a synonym of
//! `roundrobin`, which obeys weights here.

use crate::Protocol;

/// The `balancerAlgorithm` of a listener. Each algorithm gives every backend the share of its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    RoundRobin,
    LeastConnections,
    Source,
    Maglev,
}

/// The values that a setting may have.
#[derive(Clone, Copy, Debug)]
enum Form {
    Algorithm,
    /// A whole number within these bounds, inclusive.
    Number(u32, u32),
    /// `tcp:<port>` or `udp:<port>`; the port is `default` (the instance port) or 1 to 65535.
    Target,
}

/// Name, form and default of each setting. The default target depends on the listener's protocol.
const SETTINGS: [(&str, Form, &str); 8] = [
    ("balancerAlgorithm", Form::Algorithm, "roundrobin"),
    ("maxConnection", Form::Number(0, u32::MAX), "5000"),
    ("connectionIdleTimeout", Form::Number(1, u32::MAX), "60"),
    ("healthCheckTarget", Form::Target, ""),
    ("healthCheckInterval", Form::Number(1, u32::MAX), "5"),
    ("healthCheckTimeout", Form::Number(1, MAX_CHECK_TIMEOUT), "2"),
    ("healthyThreshold", Form::Number(1, u32::MAX), "2"),
    ("unhealthyThreshold", Form::Number(1, u32::MAX), "2"),
];

/// In seconds. A check without an answer occupies one of the limited slots for checks until it times out.
pub const MAX_CHECK_TIMEOUT: u32 = 60;

/// The name of the tags that give a NIC its weight.
pub const WEIGHT: &str = "balancerWeight";
/// The weight of a NIC without such a tag.
pub const DEFAULT_WEIGHT: u8 = 100;
const MAX_WEIGHT: u8 = 100;

/// A tag of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerTag<'a> {
    Setting { name: &'static str, value: &'a str },
    Weight { nic: &'a str, weight: u8 },
}

impl<'a> ListenerTag<'a> {
    /// The setting's name, and the NIC of a weight: a listener has one tag for each such pair.
    #[must_use]
    pub const fn subject(&self) -> (&'static str, &'a str) {
        match self {
            Self::Setting { name, .. } => (name, ""),
            Self::Weight { nic, .. } => (WEIGHT, nic),
        }
    }
}

/// The NIC and the weight that a tag sets; `None` if it is no such tag.
#[must_use]
pub fn weight(tag: &str) -> Option<(&str, u8)> {
    match parse(tag) {
        Ok(ListenerTag::Weight { nic, weight }) => Some((nic, weight)),
        Ok(ListenerTag::Setting { .. }) | Err(_) => None,
    }
}

/// Why a tag is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTag {
    #[error("no system tag of a listener matches [{0}]; there are: {names}", names = names())]
    Unknown(String),
    #[error("invalid tag[{tag}]: {wanted}")]
    Value { tag: String, wanted: String },
    #[error("tag[{0}] is given twice; give it once")]
    Twice(&'static str),
}

/// Checks the tags and adds the missing ones with their defaults.
///
/// # Errors
/// [`BadTag`] for the first tag that is unknown, has an invalid value, or is given twice.
pub fn complete(given: &[String], protocol: Protocol) -> Result<Vec<String>, BadTag> {
    let mut tags = Vec::with_capacity(SETTINGS.len());
    let mut seen = Vec::with_capacity(SETTINGS.len());
    for tag in given {
        let ListenerTag::Setting { name, .. } = parse(tag)? else {
            return Err(bad(tag, "a new listener has no VM NIC yet; give the weight with the NIC, or afterwards"));
        };
        if seen.contains(&name) {
            return Err(BadTag::Twice(name));
        }
        seen.push(name);
        tags.push(tag.clone());
    }
    for (name, form, default) in SETTINGS.into_iter().filter(|(name, ..)| !seen.contains(name)) {
        tags.push(match form {
            Form::Target if protocol == Protocol::Udp => format!("{name}::udp:default"),
            Form::Target => format!("{name}::tcp:default"),
            Form::Algorithm | Form::Number(..) => format!("{name}::{default}"),
        });
    }
    Ok(tags)
}

/// Splits and checks one tag.
///
/// # Errors
/// [`BadTag`] if it is no tag of a listener, or its value is invalid.
///
/// ```
/// use vipgate_api::listener_tag::{ListenerTag, parse};
///
/// let tag = parse("balancerAlgorithm::leastconn");
/// assert_eq!(tag, Ok(ListenerTag::Setting { name: "balancerAlgorithm", value: "leastconn" }));
/// assert!(parse("healthCheckTimeout::61").is_err());
/// ```
pub fn parse(tag: &str) -> Result<ListenerTag<'_>, BadTag> {
    let unknown = || BadTag::Unknown(tag.to_owned());
    let (name, value) = tag.split_once("::").ok_or_else(unknown)?;
    if name == WEIGHT {
        let wanted = || bad(tag, &format!("write {WEIGHT}::<uuid of the VM NIC>::<weight from 0 to {MAX_WEIGHT}>"));
        let (nic, weight) = value.split_once("::").filter(|(nic, _)| !nic.is_empty()).ok_or_else(wanted)?;
        let weight = weight.parse().ok().filter(|weight| *weight <= MAX_WEIGHT).ok_or_else(wanted)?;
        return Ok(ListenerTag::Weight { nic, weight });
    }
    let (name, form, _) = SETTINGS.into_iter().find(|(setting, ..)| *setting == name).ok_or_else(unknown)?;
    match form {
        Form::Algorithm if algorithm(value).is_none() => {
            Err(bad(tag, "the algorithm is one of roundrobin, weightroundrobin, leastconn, source, maglev"))
        }
        Form::Number(least, most) if !value.parse::<u32>().is_ok_and(|number| (least..=most).contains(&number)) => {
            Err(bad(tag, &format!("the value is a whole number from {least} to {most}")))
        }
        Form::Target if target(value).is_none() => {
            Err(bad(tag, "the value is tcp or udp, a colon, and `default` or a port from 1 to 65535"))
        }
        Form::Algorithm | Form::Number(..) | Form::Target => Ok(ListenerTag::Setting { name, value }),
    }
}

/// The algorithm that a value names.
#[must_use]
pub fn algorithm(value: &str) -> Option<Algorithm> {
    Some(match value {
        "roundrobin" | "weightroundrobin" => Algorithm::RoundRobin,
        "leastconn" => Algorithm::LeastConnections,
        "source" => Algorithm::Source,
        "maglev" => Algorithm::Maglev,
        _ => return None,
    })
}

/// The protocol and the port of a health check; no port stands for the one that the backend serves.
#[must_use]
pub fn target(value: &str) -> Option<(Protocol, Option<u16>)> {
    let (protocol, port) = value.split_once(':')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    match port {
        "default" => Some((protocol, None)),
        port => port.parse().ok().filter(|port| *port != 0).map(|port| (protocol, Some(port))),
    }
}

/// An error about an invalid value; `wanted` says which values are valid.
#[must_use]
pub fn bad(tag: &str, wanted: &str) -> BadTag {
    BadTag::Value { tag: tag.to_owned(), wanted: wanted.to_owned() }
}

fn names() -> String {
    SETTINGS.into_iter().map(|(name, ..)| name).chain([WEIGHT]).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tags: &[&str]) -> Vec<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }

    #[test]
    fn missing_tags_get_the_documented_defaults() {
        let tags = complete(&[], Protocol::Tcp).unwrap();
        assert_eq!(
            tags,
            [
                "balancerAlgorithm::roundrobin",
                "maxConnection::5000",
                "connectionIdleTimeout::60",
                "healthCheckTarget::tcp:default",
                "healthCheckInterval::5",
                "healthCheckTimeout::2",
                "healthyThreshold::2",
                "unhealthyThreshold::2",
            ]
        );
        assert!(complete(&[], Protocol::Udp).unwrap().contains(&"healthCheckTarget::udp:default".to_owned()));
    }

    #[test]
    fn given_tags_replace_their_defaults() {
        let tags = complete(&of(&["maxConnection::7"]), Protocol::Tcp).unwrap();
        assert_eq!(tags.len(), 8);
        assert!(tags.contains(&"maxConnection::7".to_owned()));
    }

    #[test]
    fn a_tag_given_twice_is_refused() {
        let error = complete(&of(&["maxConnection::7", "maxConnection::8"]), Protocol::Tcp).unwrap_err();
        assert_eq!(error, BadTag::Twice("maxConnection"));
    }

    #[test]
    fn bad_values_are_refused_and_named() {
        for tag in [
            "balancerAlgorithm::random",
            "maxConnection::-1",
            "maxConnection::many",
            "connectionIdleTimeout::0",
            "connectionIdleTimeout::4294967296",
            "healthCheckTimeout::0",
            "healthCheckTimeout::61",
            "healthCheckTarget::tcp",
            "healthCheckTarget::http:80",
            "healthCheckTarget::tcp:0",
            "healthCheckTarget::tcp:65536",
            "healthCheckTarget::tcp:80:81",
            "balancerWeight::nic",
            "balancerWeight::nic::101",
            "balancerWeight::nic::-1",
            "balancerWeight::::1",
        ] {
            let error = parse(tag).unwrap_err();
            assert!(matches!(error, BadTag::Value { .. }) && error.to_string().contains(tag), "{error}");
        }
    }

    #[test]
    fn unknown_tags_are_refused() {
        for tag in ["sessionPersistence::cookie", "balancerAlgorithm", "balancerAlgorithm:source", ""] {
            assert_eq!(parse(tag).unwrap_err(), BadTag::Unknown(tag.to_owned()));
        }
    }

    #[test]
    fn weights_are_one_nics_and_not_a_new_listeners() {
        assert_eq!(weight("balancerWeight::nic::0"), Some(("nic", 0)));
        assert_eq!(weight("maxConnection::1"), None);
        let error = complete(&of(&["balancerWeight::nic::1"]), Protocol::Tcp).unwrap_err();
        assert!(error.to_string().contains("no VM NIC yet"), "{error}");
        let subject = |tag| parse(tag).unwrap().subject();
        assert_eq!(subject("balancerWeight::nic::1"), subject("balancerWeight::nic::2"));
        assert_ne!(subject("balancerWeight::nic::1"), subject("balancerWeight::other::1"));
    }
}
