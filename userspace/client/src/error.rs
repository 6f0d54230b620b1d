//! What can go wrong with a command of the client.

use std::{io, path::PathBuf};

use crate::declared::NoPlan;

/// A command of the client that did not succeed. None of them quotes a session or a password.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("not logged in: run vipgate login")]
    NotLoggedIn,
    #[error("{what}\nthe session is over: run vipgate login")]
    SessionOver { what: String },
    #[error("{what}")]
    Denied { what: String },
    #[error("{what}")]
    Refused { what: String },
    #[error("the API at {api} can't be reached: does vipgate serve listen there?")]
    Unreachable { api: String, source: Box<reqwest::Error> },
    #[error("--api `{url}` is no URL of an API: give http://host:port")]
    BadUrl { url: String },
    #[error("the API at {api} answered {status} without JSON: is it vipgate's?")]
    NoJson { api: String, status: u16 },
    #[error("the API answered {api} without the location of its job")]
    NoJob { api: &'static str },
    #[error("no {kind} are called `{name}`: vipgate query {kind} lists what there is")]
    UnknownName { name: String, kind: String },
    #[error("{count} {kind} are called `{name}`, give the uuid of one:\n  {candidates}")]
    Ambiguous { name: String, kind: String, count: usize, candidates: String },
    #[error("`{name}` holds an operator of the query grammar, so it can't be asked for: give the uuid")]
    Unaskable { name: String },
    #[error("--{option} `{given}` has no `=`: give PROVIDER=TYPE,..., such as vrouter=LoadBalancer")]
    NoList { option: String, given: String },
    #[error("the password is empty: type one, or name its file with --password-file")]
    NoPassword,
    #[error("neither XDG_STATE_HOME nor HOME is an absolute path: set one, the session is kept there")]
    NoHome,
    #[error("{} is no session: remove it and run vipgate login", path.display())]
    BadSession { path: PathBuf },
    #[error("cannot {what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the reply can't be written as YAML")]
    Yaml(#[source] serde_saphyr::SerializeError),
    #[error("the completion script can't be written")]
    Script(#[source] io::Error),
    #[error("{at}: {what}")]
    Declared { at: String, what: String },
    #[error(transparent)]
    NoPlan(#[from] NoPlan),
    #[error("no provider offers the service `{service}`: vipgate query providers lists who offers what")]
    NoProvider { service: String },
    #[error("{what} is not there any more: apply again")]
    Gone { what: String },
    #[error(
        "vip {name} shall be the router's own on {network}, but there is none: SNAT on a private network of its zone makes \
         it one"
    )]
    NoOwnVip { name: String, network: String },
    #[error("{cause}\nstopped at {at}\ndone:{done}\nnot done, for another apply:{left}")]
    Stopped { at: String, done: String, left: String, cause: Box<ClientError> },
}

impl ClientError {
    /// As `vipgate --help` lists them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoJson { .. } | Self::NoJob { .. } | Self::File { .. } | Self::Yaml(_) | Self::Script(_) => 1,
            Self::BadUrl { .. } | Self::NoList { .. } | Self::NoPassword | Self::NoHome | Self::BadSession { .. } => 2,
            Self::Declared { .. }
            | Self::NoPlan(NoPlan::Fixed(_) | NoPlan::Own(_) | NoPlan::Drags { .. } | NoPlan::Needed(_)) => 2,
            Self::Refused { .. } | Self::UnknownName { .. } | Self::Ambiguous { .. } | Self::Unaskable { .. } => 7,
            Self::NoPlan(NoPlan::Twice { .. })
            | Self::NoProvider { .. }
            | Self::Gone { .. }
            | Self::NoOwnVip { .. } => 7,
            Self::Stopped { cause, .. } => cause.exit_code(),
            Self::NotLoggedIn | Self::SessionOver { .. } | Self::Denied { .. } => 8,
            Self::Unreachable { .. } => 9,
        }
    }
}
