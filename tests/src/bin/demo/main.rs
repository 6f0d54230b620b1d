//! `cargo xtask demo`: a router, its clients and its backends on this machine, configured over the REST API. Prints every
//! call as the equivalent curl command. `--once` ends with exit status 0 only if every check passed.

mod prompt;
mod screen;
mod story;

use clap::Parser;
use screen::Screen;
use std::{
    process::{self, ExitCode},
    thread,
};
use vipgate_tests::lab::{Hook, Result, leftovers::remove_own};

#[derive(Debug, Parser)]
#[command(name = "demo", about)]
struct Args {
    /// Show everything and end, instead of staying with a prompt.
    #[arg(long)]
    once: bool,

    /// Where the router's programs attach.
    #[arg(long, value_parser = hook, default_value = "auto")]
    hook: Hook,
}

fn hook(text: &str) -> Result<Hook, String> {
    [Hook::Auto, Hook::Xdp, Hook::XdpGeneric, Hook::Tc]
        .into_iter()
        .find(|hook| hook.to_string() == text)
        .ok_or_else(|| "give one of auto, xdp, xdp-generic, tc".to_owned())
}

fn main() -> ExitCode {
    let args = Args::parse();
    clean_up_on_interrupt();
    let mut screen = Screen::new();
    match run(&args, &mut screen) {
        Ok(()) => screen.verdict(),
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes Ctrl-C remove everything, too.
fn clean_up_on_interrupt() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        match runtime.and_then(|runtime| runtime.block_on(tokio::signal::ctrl_c())) {
            Ok(()) => {
                remove_own();
                process::exit(130);
            }
            Err(error) => eprintln!("demo: after Ctrl-C the next run must remove the lab's namespaces: {error}"),
        }
    });
}

fn run(args: &Args, screen: &mut Screen) -> Result<()> {
    let mut stage = story::Stage::new(args.hook, screen)?;
    story::play(&mut stage, screen)?;
    if !args.once {
        prompt::serve(&mut stage, screen)?;
    }
    Ok(())
}
