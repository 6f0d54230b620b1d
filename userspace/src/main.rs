//! The `vipgate` command: reads flags, runs one of the library's commands, turns its error into an exit code.

mod cli;

use clap::Parser as _;
use cli::{Cli, Command, Output};
use std::process::ExitCode;
use vipgate::config::Config;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vipgate: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// What is said and the code that goes with it; `vipgate --help` lists them.
struct Failure {
    code: u8,
    message: String,
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::CheckConfig { settings, output } => {
            print_config(&load(settings)?, output);
            Ok(())
        }
        Command::Serve(_) | Command::Detach(_) | Command::Status { .. } => {
            Err(Failure { code: 1, message: "waits for the reconciler".to_owned() })
        }
    }
}

fn load(settings: cli::Settings) -> Result<Config, Failure> {
    settings.load().map_err(|error| Failure { code: 2, message: error.to_string() })
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
