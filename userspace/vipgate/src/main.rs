//! The `vipgate` command: reads flags, runs one of the library's commands, turns its error into an exit code.

mod cli;
mod flows;
mod status;

use std::{
    error::Error,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use clap_complete::CompleteEnv;
use cli::{Cli, Command, Output};
use vipgate::{
    config::Config,
    controller_status,
    doctor::{self, DoctorError},
    lock::{self, Lock, LockError},
    logging, reload,
    serve::{ServeError, serve},
};
use vipgate_agent::{
    loader::{self, Detached, LoadError, causes},
    net::{Netlink, sysctl::Settings},
};
use vipgate_client::ClientError;

fn main() -> ExitCode {
    // Where a shell asks what could be typed next, this answers and ends.
    CompleteEnv::with_factory(Cli::command).complete();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vipgate: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// An error's text and its exit code; `vipgate --help` lists them.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, error: &dyn Error) -> Self {
        Self { code, message: causes(error) }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let code = match error {
            LoadError::Privileges { .. } => 3,
            LoadError::Unsupported { .. } => 10,
            _ => 6,
        };
        Self::new(code, &error)
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Held { .. } | LockError::Router { .. } => Self::new(4, &error),
            LockError::Kernel(error) => error.into(),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.exit_code(), &error)
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Kernel(error) => error.into(),
            ServeError::Lock(error) => error.into(),
            ServeError::Listen { .. } => Self::new(4, &error),
            ServeError::Store(_) => Self::new(5, &error),
            _ => Self::new(1, &error),
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(settings) => {
            let config = load(&settings)?;
            let filter = logging::init(&config.log);
            let source = reload::Source::new(move || settings.load(), filter);
            Ok(runtime()?.block_on(serve(config, source))?)
        }
        Command::CheckConfig { settings, output } => {
            print_config(&load(&settings)?, output);
            Ok(())
        }
        Command::Detach { settings, force, output } => detach(&load(&settings)?.bpffs, force, output),
        Command::Status { settings, output } => print_status(&load(&settings)?, output),
        Command::Flows { settings, wanted, output } => print_flows(&load(&settings)?.bpffs, &wanted, output),
        Command::Doctor { settings, output } => examine(&load(&settings)?, output),
        Command::Client(request) => {
            let said = vipgate_client::run(&request)?;
            print(&said.text)?;
            match said.differs {
                false => Ok(()),
                true => Err(Failure { code: 2, message: "the router is not as the file declares".to_owned() }),
            }
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(1, &error))
}

fn load(settings: &cli::Settings) -> Result<Config, Failure> {
    settings.load().map_err(|error| Failure::new(2, &error))
}

fn detach(bpffs: &Path, force: bool, output: Output) -> Result<(), Failure> {
    let _lock = Lock::take(bpffs)?;
    let _namespace = lock::namespace(bpffs)?;
    if !force {
        loader::check_namespace(bpffs)?;
    }
    // Addresses first: nobody shall be led to a router that does not balance any more.
    let runtime = runtime()?;
    let net = runtime.block_on(async { Netlink::open() }).map_err(|error| Failure::new(1, &error))?;
    let vips = runtime.block_on(net.remove_all_vips()).map_err(|error| Failure::new(1, &error))?;
    let Detached { devices, maps, mut left } = loader::detach(bpffs)?;
    // Nothing leads to the queues any more.
    runtime.block_on(net.remove_queue_pairs()).map_err(|error| Failure::new(1, &error))?;
    let (settings, kept) = Settings::new(loader::kept_settings(bpffs)?).restore();
    match kept.is_empty() {
        true => left.extend(loader::forget_settings(bpffs)),
        // They are there for the next time.
        false => left.extend(kept),
    }
    match output {
        Output::Json => {
            let counts = serde_json::json!({
                "devices": devices, "tables": maps, "addresses": vips, "settings": settings, "left": left,
            });
            println!("{counts}");
        }
        Output::Text => println!("{}", detached(&devices, maps, vips, settings)),
    }
    match left.is_empty() {
        true => Ok(()),
        false => Err(Failure { code: 6, message: format!("could not be removed: {}", left.join("; ")) }),
    }
}

fn detached(devices: &[String], maps: usize, vips: usize, settings: usize) -> String {
    if vips == 0 && devices.is_empty() && maps == 0 && settings == 0 {
        return "nothing was attached".to_owned();
    }
    let from = if devices.is_empty() { "no device".to_owned() } else { devices.join(", ") };
    let (tables, addresses) = (counted(maps, "table", "tables"), counted(vips, "address", "addresses"));
    let settings = counted(settings, "setting", "settings");
    format!("detached from {from}; {tables} and {addresses} removed, {settings} put back")
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn print_status(config: &Config, output: Output) -> Result<(), Failure> {
    let bpffs = &config.bpffs;
    let status = loader::status::read(bpffs)?.ok_or_else(|| nothing_pinned(bpffs))?;
    let running = controller_status::ask(bpffs);
    match output {
        Output::Text => print!("{}", status::text(&status, config, running.as_ref())),
        Output::Json => println!("{}", status::json(&status, config, running.as_ref())),
    }
    Ok(())
}

fn print_flows(bpffs: &Path, wanted: &flows::Wanted, output: Output) -> Result<(), Failure> {
    let mut found = Vec::new();
    let take = |flow| {
        if wanted.includes(&flow) {
            found.push(flow);
        }
    };
    loader::read_connections(bpffs, take)?.ok_or_else(|| nothing_pinned(bpffs))?;
    printed(flows::print(found, wanted, output, io::stdout().lock()))
}

fn print(text: &str) -> Result<(), Failure> {
    printed(io::stdout().lock().write_all(text.as_bytes()))
}

fn printed(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        // The reader has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| Failure::new(1, &error)),
    }
}

fn examine(config: &Config, output: Output) -> Result<(), Failure> {
    let report = runtime()?.block_on(doctor::examine(config)).map_err(|error| match error {
        DoctorError::Pins(error) => error.into(),
        error @ DoctorError::Net(_) => Failure::new(1, &error),
    })?;
    match output {
        Output::Text => print!("{report}"),
        Output::Json => println!("{}", serde_json::json!(report)),
    }
    match report.defects() {
        0 => Ok(()),
        count => Err(Failure { code: 1, message: format!("{} found", counted(count, "defect", "defects")) }),
    }
}

fn nothing_pinned(bpffs: &Path) -> Failure {
    let message = format!("nothing is pinned in {}: has `vipgate serve` run with this --bpffs?", bpffs.display());
    Failure { code: 1, message }
}

fn print_config(config: &Config, output: Output) {
    let shown = config.shown();
    match output {
        Output::Text => {
            for (key, value, origin) in shown {
                println!("{key:<24} {value:<44} {origin}");
            }
        }
        Output::Json => {
            let settings: serde_json::Map<_, _> = shown
                .into_iter()
                .map(|(key, value, origin)| (key.to_owned(), serde_json::json!({ "value": value, "origin": origin })))
                .collect();
            println!("{}", serde_json::Value::Object(settings));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_detach_removed_is_told_in_whole_words() {
        assert_eq!(detached(&[], 0, 0, 0), "nothing was attached");
        assert_eq!(
            detached(&[], 25, 1, 1),
            "detached from no device; 25 tables and 1 address removed, 1 setting put back"
        );
        let devices = ["priv0", "pub0"].map(str::to_owned);
        assert_eq!(
            detached(&devices, 1, 0, 7),
            "detached from priv0, pub0; 1 table and 0 addresses removed, 7 settings put back"
        );
    }
}
