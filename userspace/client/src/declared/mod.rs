//! A router in one file: `vipgate apply` makes the calls that bring the router to what the file declares, `vipgate
//! export` writes the file.
//!
//! - [`kinds`], [`kind`]: the kinds of things, their fields and calls; [`thing`]: things and their names.
//! - [`node`], [`mod@file`]: the file's text, and what it declares; [`existing`]: what the router has.
//! - [`plan`]: the steps and their order; [`execute`]: the calls of each step.
//!
//! A field that a declared thing leaves out is set to its default. A thing that the file does not declare is left
//! alone. Each apply starts from what exists, and so finishes what a failed one left half done.
//!
//! The file does not hold accounts and what they share, the default network of a VM (here it is the first), nor system
//! tags of VMs other than the addresses of their NICs. Elastic IPs are attached in the file's order, which decides by
//! which of several a guest's own connections leave; an export is in the order of the names.

mod execute;
mod existing;
mod file;
mod kind;
mod kinds;
mod node;
mod plan;
mod thing;

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use serde_json::Value;

pub(crate) use self::plan::NoPlan;
use self::{
    execute::Executor,
    file::{Draft, Fault, write},
    node::{Node, line},
    plan::{Allowed, Plan, Step},
    thing::{Names, Thing},
};
use super::{
    ClientError, Output,
    http::{Api, Progress},
    render::{Format, render, sanitized},
    session, yaml,
};

pub(super) const APPLY: &str = "apply";
pub(super) const EXPORT: &str = "export";

const FILE: &str = "file";
const DRY_RUN: &str = "dry-run";
const PRUNE: &str = "prune";
const RECREATE: &str = "recreate";

pub(super) fn apply_command() -> Command {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new(APPLY)
        .about("Bring the router to what a file declares: networks, VMs, VIPs with their limits and all that is on them")
        .arg(
            Arg::new(FILE)
                .short('f')
                .long(FILE)
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .value_hint(ValueHint::FilePath)
                .help("The file, as vipgate export writes it; - is standard input"),
        )
        .arg(flag(DRY_RUN, "Only print what would be done; exit code 0: nothing, 2: something"))
        .arg(flag(PRUNE, "Delete things that the file does not declare, of the kinds that it has a section for"))
        .arg(flag(RECREATE, "Delete and make anew things that can't be changed in place, with all that depends on them"))
        .arg(super::output())
        .after_help(
            "\
Things are declared and referred to by their names, as in docs/router.yaml (/usr/share/doc/vipgate/router.yaml on a router).
A field that is left out has its default; a thing that the file does not declare is left alone. Each step is waited for;
after a failure, apply again. A VIP's bandwidth limits stand in its qos, by port and for `all`, in bits per second; K, M and
G are 2^10, 2^20 and 2^30 of them.

Examples:
  vipgate apply -f docs/router.yaml --dry-run
  vipgate apply -f docs/router.yaml
  vipgate export | sed 's/maxConnection: 100$/maxConnection: 200/' | vipgate apply -f -

Exit codes: 0 the router is as declared; 2 with --dry-run: it is not; more: vipgate --help",
        )
}

pub(super) fn export_command() -> Command {
    Command::new(EXPORT)
        .about("Write the file that declares what the router has, for vipgate apply")
        .after_help("Examples:\n  vipgate export > router.yaml\n  vipgate export | vipgate apply -f - --dry-run")
}

pub(super) fn export() -> Result<String, ClientError> {
    exported(&Api::of_session()?)
}

fn exported(api: &Api) -> Result<String, ClientError> {
    let existing = existing::read(api)?;
    plan::all_once(&existing)?;
    let is_worth_it = |thing: &Thing| {
        // A thing that no file makes is exported only if it holds others.
        !thing.is_own() || existing.iter().any(|other| other.thing.parent() == Some(thing.id()))
    };
    let things: Vec<Thing> =
        existing.iter().map(|existing| &existing.thing).filter(|thing| is_worth_it(thing)).cloned().collect();
    yaml::write(&write(&things)).map_err(ClientError::Yaml)
}

/// A call of `vipgate apply`.
#[derive(Clone, Copy, Debug)]
struct ApplyRequest<'a> {
    /// The file's name in errors.
    file: &'a str,
    text: &'a str,
    allowed: Allowed,
    dry_run: bool,
    format: Format,
}

pub(super) fn apply(matches: &ArgMatches) -> Result<Output, ClientError> {
    let path = matches.get_one::<PathBuf>(FILE).map_or(Path::new("-"), PathBuf::as_path);
    let (file, text) = text_of(path)?;
    let request = ApplyRequest {
        file: &file,
        text: &text,
        allowed: Allowed { prune: matches.get_flag(PRUNE), recreate: matches.get_flag(RECREATE) },
        dry_run: matches.get_flag(DRY_RUN),
        format: matches.get_one::<Format>("output").copied().unwrap_or_default(),
    };
    let draft = request.draft()?;
    request.apply(draft, &Api::of_session()?)
}

impl ApplyRequest<'_> {
    /// Checks the file as far as that is possible without the router.
    fn draft(&self) -> Result<Draft, ClientError> {
        let refused = |what: &str| ClientError::Declared { at: self.file.to_owned(), what: sanitized(what) };
        let document = yaml::read(self.text).map_err(|error| refused(&yaml::described(&error)))?;
        if document == Node::Scalar(Value::Null) {
            return Err(refused("the file is empty"));
        }
        Draft::read(&document).map_err(|fault| self.error_at(&fault))
    }

    fn apply(&self, draft: Draft, api: &Api) -> Result<Output, ClientError> {
        let existing = existing::read(api)?;
        let declared =
            draft.resolve(existing.iter().map(|present| &present.thing)).map_err(|fault| self.error_at(&fault))?;
        let plan = Plan::of(&declared, &existing, self.allowed)?;
        let names = Names::of(declared.things.iter().chain(existing.iter().map(|present| &present.thing)));
        let text = shown(&plan, &names, self.format)?;
        if !self.dry_run {
            carry_out(api, &plan.steps(&declared, &existing), &existing, &names)?;
        }
        Ok(Output { text, differs: self.dry_run && !plan.is_empty() })
    }

    fn error_at(&self, fault: &Fault) -> ClientError {
        let line = line(self.text, &fault.place);
        let at = line.map_or_else(|| self.file.to_owned(), |line| format!("{}:{line}", self.file));
        ClientError::Declared { at, what: sanitized(&fault.what) }
    }
}

/// The file's name in errors, and its text.
fn text_of(path: &Path) -> Result<(String, String), ClientError> {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().lock().read_to_string(&mut text);
        read.map_err(session::file_error("read", Path::new("standard input")))?;
        return Ok(("standard input".to_owned(), text));
    }
    let text = fs::read_to_string(path).map_err(session::file_error("read", path))?;
    Ok((path.display().to_string(), text))
}

/// One line for each thing: `+` is made, `~` is changed, `-` is deleted.
fn shown(plan: &Plan, names: &Names, format: Format) -> Result<String, ClientError> {
    if format != Format::Table {
        return render(&plan.data(), format, &[]);
    }
    if plan.is_empty() {
        return Ok("nothing to do\n".to_owned());
    }
    let deletes = plan.deletes.iter().map(|id| format!("- {id}\n"));
    let items = plan.items.iter().map(|item| {
        let id = item.thing.id();
        if item.is_new {
            return format!("+ {id}\n");
        }
        let changes: Vec<_> = item.changes.iter().map(|change| plan::described(change, names)).collect();
        format!("~ {id}: {}\n", changes.join(", "))
    });
    Ok(deletes.chain(items).collect())
}

fn carry_out(api: &Api, steps: &[Step], existing: &[existing::Existing], names: &Names) -> Result<(), ClientError> {
    let mut executor = Executor::new(api, existing);
    let listed = |steps: &[Step]| steps.iter().map(|step| format!("\n  {}", step.label(names))).collect::<String>();
    let mut progress = Progress::default();
    for (done, step) in steps.iter().enumerate() {
        progress.show(&format!("{} of {}: {}", done + 1, steps.len(), step.label(names)));
        executor.execute(step).map_err(|cause| ClientError::Stopped {
            at: step.label(names),
            done: listed(&steps[..done]),
            left: listed(&steps[done + 1..]),
            cause: Box::new(cause),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
