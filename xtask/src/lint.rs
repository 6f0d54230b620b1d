//! `cargo xtask lint`: the same checks for everyone, warnings as errors.

use crate::{
    crates, deny, ebpf,
    setup::{self, Need},
    sh::{cargo, root, step, which},
};
use anyhow::Result;
use std::process::Command;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rewrite the files to the house's format instead of complaining.
    #[arg(long)]
    fix: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Lint])?;
    format(args.fix)?;
    crates::check()?;
    // They are built rather than checked because the workspace embeds the object.
    ebpf::build()?;
    // Debian's compiler comes without clippy: the packet path is looked at as it compiles for this machine.
    step(
        "clippy of the packet path, warnings as errors",
        cargo(&["clippy", "--locked", "--lib", "--", "--deny", "warnings"]).current_dir(root().join("ebpf")),
    )?;
    step(
        "clippy, warnings as errors",
        &mut cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    )?;
    documentation()?;
    book()?;
    deny::check()
}

fn format(fix: bool) -> Result<()> {
    let check: &[&str] = if fix { &[] } else { &["--check"] };
    step("format", cargo(&["fmt", "--all"]).arg("--").args(check))?;
    step(
        "format of the kernel programs",
        Command::new("cargo").current_dir(root().join("ebpf")).args(["fmt", "--"]).args(check),
    )
}

/// Comments link to what is there. They are for those who work on the code, so links to private items are right: without the
/// private items' own pages rustdoc would refuse them.
fn documentation() -> Result<()> {
    let mut doc = cargo(&["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"]);
    doc.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links");
    step("rustdoc, warnings as errors", &mut doc)
}

/// The book as a website. What it says is tested without (`tests/tests/docs.rs`).
fn book() -> Result<()> {
    let Some(mdbook) = which("mdbook") else {
        eprintln!("==> the book: skipped, mdbook is not installed (cargo install mdbook --locked)");
        return Ok(());
    };
    step("the book", Command::new(mdbook).arg("build").arg(root().join("docs")))
}
