//! The demo's prompt: the lab stays up, and a few commands change it.

use crate::{screen::Screen, story::Stage};
use anyhow::Context as _;
use std::io::{BufRead as _, Write as _, stdin, stdout};
use vipgate_tests::lab::Result;

const HELP: &str = "  show            count which backends answer 150 requests
  add N           make backend N (1 to 3) a backend of the web listener
  remove N        remove backend N from the web listener
  ask N           backend N asks a client, which answers with the address that it sees
  stop, start     stop or start the controller; the traffic goes on
  status          show what the kernel holds
  flows           show the busiest connections
  quit            end the demo and remove the lab";

/// Runs commands until `quit` or the end of the input.
pub(crate) fn serve(stage: &mut Stage, screen: &Screen) -> Result<()> {
    screen.heading(&format!("the lab stays up; the VIP is http://{}", stage.vip));
    println!("{HELP}");
    let mut lines = stdin().lock().lines();
    loop {
        print!("demo> ");
        stdout().flush().context("cannot write")?;
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line.context("cannot read")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        if words == ["quit"] {
            return Ok(());
        }
        if let Err(error) = act(stage, screen, &words) {
            println!("  {error:#}");
        }
    }
}

fn act(stage: &mut Stage, screen: &Screen, words: &[&str]) -> Result<()> {
    match words {
        [] => {}
        ["show"] => drop(stage.distribution(screen, 150)?),
        ["add", number] => drop(stage.cloud.add_backends(&stage.web, &[backend(stage, number)?])?),
        ["remove", number] => drop(stage.cloud.remove_backends(&stage.web, &[backend(stage, number)?])?),
        ["ask", number] => drop(stage.seen_outside(backend(stage, number)?)?),
        ["stop"] => drop(stage.stop()?),
        ["start"] => stage.start()?,
        ["status"] => print!("{}", stage.vipgate("status")?),
        ["flows"] => print!("{}", stage.vipgate("flows --top 20")?),
        _ => println!("{HELP}"),
    }
    Ok(())
}

/// The index of backend `number`.
fn backend(stage: &Stage, number: &str) -> Result<usize> {
    let count = stage.lab.backends.len();
    let number: usize = number
        .parse()
        .ok()
        .filter(|number| (1..=count).contains(number))
        .with_context(|| format!("`{number}` is no backend: give 1 to {count}"))?;
    Ok(number - 1)
}
