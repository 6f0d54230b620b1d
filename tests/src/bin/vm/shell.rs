//! Starts a router with clients and backends around it, and runs typed lines in its shell.

use anyhow::Context as _;
use std::{
    io::{BufRead as _, Write as _, stdin, stdout},
    time::Duration,
};
use vipgate_tests::{
    lab::{Hook, Host, Result},
    vm::{Bench, Kernel, Model, VmLab, VmLabOptions, accel::Accelerator, image::Sources, kernels, scenarios::ROUTER},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Kernel, by the name that `cargo xtask vm list` shows.
    #[arg(long, value_name = "NAME", value_parser = kernels::one, default_value = "6.12-cloud")]
    kernel: Kernel,

    /// Where the router's programs attach: auto, xdp, xdp-generic or tc.
    #[arg(long, value_parser = hook, default_value = "auto")]
    hook: Hook,

    /// Start only the machine: no controller, no router file.
    #[arg(long)]
    bare: bool,

    /// Model of the router's network cards.
    #[arg(long, value_enum, default_value = "virtio")]
    card: Card,

    /// Queue pairs of each virtio card.
    #[arg(long, default_value_t = 4)]
    queues: u32,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Card {
    Virtio,
    E1000,
    E1000e,
}

impl Card {
    fn model(self, queues: u32) -> Model {
        match self {
            Self::Virtio => Model::Virtio { queues, properties: Vec::new() },
            Self::E1000 => Model::E1000,
            Self::E1000e => Model::E1000e,
        }
    }
}

fn hook(text: &str) -> Result<Hook, String> {
    let all = [Hook::Auto, Hook::Xdp, Hook::XdpGeneric, Hook::Tc];
    all.into_iter().find(|hook| hook.to_string() == text).ok_or_else(|| "give one of auto, xdp, xdp-generic, tc".into())
}

/// Timeout for a typed line.
const PATIENCE: Duration = Duration::from_secs(3600);

pub(crate) fn run(arguments: &Arguments, sources: Sources) -> Result<()> {
    let kernel = &arguments.kernel;
    let accelerator = Accelerator::detect(&sources, kernel)?;
    eprintln!("==> {} ({}), two clients, three backends, {accelerator}", kernel.name, kernel.release);
    let bench = Bench { sources, accelerator };
    let mut options = VmLabOptions::new(2, 3);
    options.machine.nics.iter_mut().for_each(|nic| nic.model = arguments.card.model(arguments.queues));
    let mut lab = VmLab::new(&bench, kernel, &options)?;
    lab.serve_outside()?;
    eprintln!("    up after {:.1} s", lab.machine().took.as_secs_f64());
    if !arguments.bare {
        eprintln!("==> vipgate serve, hook {}, and docs/router.yaml", arguments.hook);
        // The developer may want to look at a router that does not come up, too.
        match lab.serve(arguments.hook).and_then(|()| lab.apply(ROUTER)) {
            Ok(reply) => print!("{reply}"),
            Err(error) => eprintln!("{error:#}"),
        }
    }
    introduce(&lab);
    prompt(&lab)
}

fn introduce(lab: &VmLab) {
    println!(
        "\nThe router is 10.1.0.1 (pub0) and 10.2.0.1 (priv0); the web VIP is 10.1.0.10, an elastic IP 10.1.0.11."
    );
    let hosts = lab.clients().iter().chain(lab.backends());
    for Host { name, address, namespace, .. } in hosts {
        println!("  {name:<10} {address:<12} nsenter --net={}", namespace.path().display());
    }
    let client = lab.client().namespace.path();
    println!("In another terminal, run:  nsenter --net={} curl -s http://10.1.0.10/", client.display());
    println!(
        "Each line here runs in a new shell in the guest, whose console is {}.",
        lab.machine().console_path().display()
    );
    println!("`exit` or the end of the input removes everything.");
}

fn prompt(lab: &VmLab) -> Result<()> {
    let mut lines = stdin().lock().lines();
    loop {
        print!("router# ");
        stdout().flush().context("cannot write")?;
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line.context("cannot read")?;
        match line.trim() {
            "" => {}
            "exit" => return Ok(()),
            line => {
                let reply = lab.agent().run_with(line, "", PATIENCE)?;
                print!("{}", reply.stdout);
                eprint!("{}", reply.stderr);
                if let Some(status) = reply.status.filter(|status| *status != 0) {
                    eprintln!("(exit status {status})");
                }
            }
        }
    }
}
