//! `vipgate` as the client of its API: every served call is a command, which is made at run time from the table of
//! calls.
//!
//! - [`names`]: the names of calls, parameters and resources on the command line; [`options`]: the options of a call,
//!   and its arguments from them.
//! - [`resolve`]: uuids from names; [`http`]: one call and its job; [`session`]: the session's file, and passwords.
//! - [`declared`]: `apply` and `export`, a whole router from and to a file.
//! - [`mod@render`]: replies for people and programs; [`yaml`]: the YAML that is read and written; [`complete`]: completion
//!   in shells.
//!
//! It touches the API over HTTP and the session's file, nothing else, and so runs anywhere and without privileges.

mod complete;
mod declared;
mod error;
mod http;
mod names;
mod options;
mod render;
mod resolve;
mod session;
mod yaml;

use std::ffi::OsStr;

use clap::{
    Arg, ArgAction, ArgMatches, Command, FromArgMatches, Subcommand, builder::PossibleValuesParser, value_parser,
};
use clap_complete::{ArgValueCompleter, env::Shells};
use serde_json::{Map, Value, json};
use vipgate_api::{
    Api as Name, Call, Resource,
    call::{Mode, Route},
    calls,
};

use self::{
    declared::{APPLY, EXPORT, apply, apply_command, export, export_command},
    http::{Answer, Api},
    names::Reference,
    render::{Format, render},
    session::Session,
};

pub use self::error::ClientError;

/// The environment variables of `vipgate login`.
pub const API_VARIABLE: &str = "VIPGATE_API";
pub const PASSWORD_FILE_VARIABLE: &str = "VIPGATE_PASSWORD_FILE";

const DEFAULT_API: &str = "http://127.0.0.1:8080";

/// The result of a command that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub text: String,
    /// A dry run found something to change.
    pub differs: bool,
}

impl From<String> for Output {
    fn from(text: String) -> Self {
        Self { text, differs: false }
    }
}

/// A command of the client as it was typed.
#[derive(Clone, Debug)]
pub struct Request {
    command: String,
    matches: ArgMatches,
}

impl FromArgMatches for Request {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand() {
            Some((command, matches)) => Ok(Self { command: command.to_owned(), matches: matches.clone() }),
            None => Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand)),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for Request {
    fn augment_subcommands(command: Command) -> Command {
        command.subcommands(commands())
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        commands().iter().any(|command| command.get_name() == name)
    }
}

const LOGIN: &str = "login";
const LOGOUT: &str = "logout";
const QUERY: &str = "query";
const TAGS: &str = "tags";
const JOB: &str = "job";
const WATCH: &str = "watch";
const COMPLETION: &str = "completion";
/// The shells in which completion was tested; clap knows more.
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

fn commands() -> Vec<Command> {
    let mut commands = vec![login(), logout(), apply_command(), export_command(), query(), tags(), job(), completion()];
    for (noun, verbs) in names::verbs() {
        let Some(noun) = names::by_short(noun) else { continue };
        let path = format!("vipgate {}", noun.short);
        let verbs = verbs.into_iter().map(|(verb, call)| verb_command(&path, verb, call));
        commands.push(group(noun.short, noun.about).visible_aliases(noun.long()).subcommands(verbs));
    }
    commands
}

/// A command that needs a subcommand.
fn group(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).subcommand_required(true).arg_required_else_help(true)
}

fn verb_command(path: &str, verb: String, call: &'static Call) -> Command {
    let example = options::example(&format!("{path} {verb}"), call);
    let command = Command::new(verb).about(about(call)).args(options::of(call)).arg(output());
    let command = if call.mode == Mode::Async { command.arg(no_wait()) } else { command };
    command.after_help(format!("Example:\n  {example}"))
}

fn about(call: &Call) -> String {
    let Route { method, path } = call.routes[0];
    format!("{}: {} {path}", call.api.name(), format!("{method:?}").to_uppercase())
}

fn output() -> Arg {
    Arg::new("output")
        .long("output")
        .value_name("FORMAT")
        .value_parser(value_parser!(Format))
        .default_value("table")
        .help("The format of the output; json and yaml print the whole reply")
}

fn no_wait() -> Arg {
    Arg::new("no-wait")
        .long("no-wait")
        .action(ArgAction::SetTrue)
        .help("Print the job instead of waiting for its end; vipgate job watch waits")
}

fn login() -> Command {
    Command::new(LOGIN)
        .about("Log in; later commands use the session until vipgate logout")
        .arg(
            Arg::new("account")
                .long("account")
                .value_name("NAME")
                .default_value("admin")
                .help("The account that logs in"),
        )
        .arg(
            Arg::new("api")
                .long("api")
                .value_name("URL")
                .env(API_VARIABLE)
                .default_value(DEFAULT_API)
                .help("The URL of the API"),
        )
        .arg(options::password_file().env(PASSWORD_FILE_VARIABLE))
        .after_help(
            "\
The password is asked for without echo; where there is no terminal, it is read from standard input.

Examples:
  vipgate login
  vipgate login --account alice --api http://192.168.0.1:8080
  vipgate login --password-file /etc/vipgate/admin-password",
        )
}

fn logout() -> Command {
    Command::new(LOGOUT).about("Log out and remove the session").after_help("Example:\n  vipgate logout")
}

fn query() -> Command {
    let queries = names::queries().map(|(name, long, call, resource)| {
        let example = format!(
            "\
Conditions are FIELD OPERATOR VALUE without spaces, and all must hold; the operators are = != > >= < <= ?= !?= ~= !~=,
and `FIELD is null`, `FIELD not null`. Fields of related resources are joined by dots.

Fields: {}

Example:
  vipgate query {name} 'uuid!=null' --limit 10",
            resource.fields().join(", ")
        );
        Command::new(name).visible_aliases(long).about(about(call)).args(query_args(resource)).after_help(example)
    });
    group(QUERY, "Find resources by the query grammar").subcommands(queries).after_help(
        "\
Examples:
  vipgate query vips 'name~=web%' --sort -createDate --fields uuid,name,ip
  vipgate query listeners loadBalancer.vip.name=web --output json | jq -r '.inventories[].uuid'",
    )
}

/// The options that are parameters of a query: name in the API, placeholder of the value, help.
const QUERY_OPTIONS: [(&str, &str, &str); 5] = [
    ("fields", "FIELD,...", "Only these members"),
    ("sort", "[-]FIELD", "Sort by this field; with a minus in descending order"),
    ("limit", "NUMBER", "At most this many; the default is 1000"),
    ("start", "NUMBER", "Skip this many"),
    ("groupBy", "FIELD", "Only the first of those with the same value in this field"),
];
const QUERY_FLAGS: [(&str, &str); 2] =
    [("count", "Only the number of resources"), ("replyWithCount", "Also the number of resources on all pages")];

fn query_args(resource: Resource) -> Vec<Arg> {
    let conditions = Arg::new("q")
        .value_name("CONDITION")
        .num_args(0..)
        .help("Such as 'name~=web%'")
        .add(ArgValueCompleter::new(move |typed: &OsStr| complete::condition(resource, typed)));
    let options = QUERY_OPTIONS.map(|(name, value, help)| {
        let arg = Arg::new(name).long(names::kebab(name)).value_name(value).allow_hyphen_values(true).help(help);
        match name {
            "fields" => arg.add(ArgValueCompleter::new(move |typed: &OsStr| complete::fields(resource, typed))),
            "sort" | "groupBy" => arg.add(ArgValueCompleter::new(move |typed: &OsStr| complete::sort(resource, typed))),
            _ => arg.value_parser(value_parser!(u64)),
        }
    });
    let flags =
        QUERY_FLAGS.map(|(name, help)| Arg::new(name).long(names::kebab(name)).action(ArgAction::SetTrue).help(help));
    [conditions].into_iter().chain(options).chain(flags).chain([output()]).collect()
}

fn tags() -> Command {
    Command::new(TAGS)
        .about("List the system and user tags of a resource, or all tags")
        .arg(Arg::new("resource").value_name("NAME|UUID").help("The resource with the tags"))
        .arg(output())
        .after_help("Examples:\n  vipgate tags\n  vipgate tags web")
}

fn job() -> Command {
    let watch = Command::new(WATCH)
        .about("Wait for the end of a job and print its result")
        .arg(Arg::new(JOB).value_name("UUID|LOCATION").required(true).help("As --no-wait prints it"))
        .arg(output())
        .after_help("Example:\n  vipgate job watch d825b1a26f4e474b8c59306081920ff2");
    group(JOB, "Jobs of calls that were made with --no-wait").subcommand(watch)
}

fn completion() -> Command {
    Command::new(COMPLETION)
        .about("Print a script that completes commands, query fields and names of resources in a shell")
        .arg(Arg::new("shell").required(true).value_parser(PossibleValuesParser::new(SHELLS)))
        .after_help(
            "\
Examples:
  source <(vipgate completion bash)
  source <(vipgate completion zsh)
  vipgate completion fish | source",
        )
}

/// Runs a command.
pub fn run(request: &Request) -> Result<Output, ClientError> {
    let matches = &request.matches;
    let text = match (request.command.as_str(), matches.subcommand()) {
        (APPLY, _) => return apply(matches),
        (EXPORT, _) => export()?,
        (LOGIN, _) => log_in(matches)?,
        (LOGOUT, _) => log_out()?,
        (QUERY, Some((name, matches))) => run_query(name, matches)?,
        (TAGS, _) => run_tags(matches)?,
        (JOB, Some((_, matches))) => {
            let reply = Api::of_session()?.follow(text(matches, JOB).unwrap_or_default())?;
            shown(&reply, matches)?
        }
        (COMPLETION, _) => script(matches)?,
        (noun, Some((verb, matches))) => run_verb(noun, verb, matches)?,
        // The parser accepts no other command.
        (_, None) => String::new(),
    };
    Ok(text.into())
}

fn text<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.get_one::<String>(name).map(String::as_str)
}

fn shown(reply: &Value, matches: &ArgMatches) -> Result<String, ClientError> {
    render(reply, matches.get_one::<Format>("output").copied().unwrap_or_default(), &[])
}

/// The reply of a synchronous call.
fn ask(api: &Api, name: Name, arguments: &Map<String, Value>) -> Result<Value, ClientError> {
    match calls::of(name).map(|call| api.send(call, arguments)).transpose()? {
        Some(Answer::Done(reply)) => Ok(reply),
        Some(Answer::Job(_)) | None => Ok(Value::Null),
    }
}

fn log_in(matches: &ArgMatches) -> Result<String, ClientError> {
    let account = text(matches, "account").unwrap_or_default();
    let base = text(matches, "api").unwrap_or(DEFAULT_API);
    let api = Api::without_session(base)?;
    let password = options::password(matches, &format!("password of {account}"))?;
    let arguments =
        Map::from_iter([("accountName".to_owned(), account.into()), ("password".to_owned(), password.into())]);
    let reply = ask(&api, Name::LogInByAccount, &arguments)?;
    let Some(uuid) = reply["inventory"]["uuid"].as_str() else {
        return Err(ClientError::NoJson { api: base.to_owned(), status: 200 });
    };
    Session { api: base.to_owned(), account: account.to_owned(), uuid: uuid.to_owned() }.save()?;
    let until = reply["inventory"]["expiredDate"].as_str().unwrap_or_default();
    Ok(format!("logged in to {base} as {account} until {until}\n"))
}

fn log_out() -> Result<String, ClientError> {
    let session = Session::load()?;
    let api = Api::without_session(&session.api)?;
    // The file goes first: a session that the server is not told to end expires there.
    Session::remove()?;
    let arguments = Map::from_iter([("sessionUuid".to_owned(), session.uuid.into())]);
    ask(&api, Name::LogOut, &arguments)?;
    Ok(format!("logged {} out of {}\n", session.account, session.api))
}

fn run_query(name: &str, matches: &ArgMatches) -> Result<String, ClientError> {
    let Some((.., call, _)) = names::queries().find(|(known, ..)| known == name) else { return Ok(String::new()) };
    let conditions = matches.get_many::<String>("q").into_iter().flatten().map(|condition| ("q", condition.clone()));
    let options = QUERY_OPTIONS.iter().filter_map(|(name, ..)| {
        // The raw text: some options are numbers, which the parser has checked.
        let value = matches.get_raw(name)?.next()?.to_str()?;
        Some((*name, value.to_owned()))
    });
    let flags =
        QUERY_FLAGS.iter().filter(|(name, _)| matches.get_flag(name)).map(|(name, _)| (*name, "true".to_owned()));
    let parameters: Vec<_> = conditions.chain(options).chain(flags).collect();
    let borrowed: Vec<_> = parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let reply = Api::of_session()?.query(call, &borrowed)?;
    let fields = text(matches, "fields").unwrap_or_default();
    let fields: Vec<_> =
        fields.split(',').map(str::trim).filter(|field| !field.is_empty()).map(str::to_owned).collect();
    render(&reply, matches.get_one::<Format>("output").copied().unwrap_or_default(), &fields)
}

fn run_tags(matches: &ArgMatches) -> Result<String, ClientError> {
    let api = Api::of_session()?;
    let of = text(matches, "resource").map(|given| resolve::uuid(&api, Reference::Any, given)).transpose()?;
    let condition = of.map(|uuid| format!("resourceUuid={uuid}"));
    let parameters: Vec<_> = condition.iter().map(|condition| ("q", condition.as_str())).collect();
    let mut found = Vec::new();
    for (_, call) in [Resource::SystemTag, Resource::UserTag].into_iter().filter_map(resolve::query) {
        if let Value::Array(tags) = api.query(call, &parameters)?["inventories"].take() {
            found.extend(tags);
        }
    }
    shown(&json!({ "inventories": found }), matches)
}

fn run_verb(noun: &str, verb: &str, matches: &ArgMatches) -> Result<String, ClientError> {
    let mut verbs = names::verbs();
    let found = verbs.remove(noun).into_iter().flatten().find(|(known, _)| known == verb);
    let Some((_, call)) = found else { return Ok(String::new()) };
    let api = Api::of_session()?;
    let arguments = options::arguments(call, matches, &api)?;
    let reply = match api.send(call, &arguments)? {
        Answer::Done(reply) => reply,
        Answer::Job(location) if matches.get_flag("no-wait") => json!({ "location": location }),
        Answer::Job(location) => api.follow(&location)?,
    };
    if call.api == Name::RenewSession {
        // Its uuid is the secret that the file keeps.
        return shown(&json!({ "expiredDate": reply["inventory"]["expiredDate"] }), matches);
    }
    shown(&reply, matches)
}

fn script(matches: &ArgMatches) -> Result<String, ClientError> {
    let shell = text(matches, "shell").unwrap_or_default();
    let program = std::env::args_os().next().unwrap_or_default();
    let shells = Shells::builtins();
    let mut script = Vec::new();
    if let Some(completer) = shells.completer(shell) {
        completer
            .write_registration("COMPLETE", "vipgate", "vipgate", &program.to_string_lossy(), &mut script)
            .map_err(ClientError::Script)?;
    }
    Ok(String::from_utf8_lossy(&script).into_owned())
}

#[cfg(test)]
mod tests;
