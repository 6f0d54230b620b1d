//! The layers of tests that each fault is shown to, cheapest first.

use super::test_run::{self, Binary};
use crate::{
    ebpf,
    sh::{cargo, root, shown},
};
use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// Names the object whose programs the packet tests run, instead of those that they were built with.
const PROGRAMS: &str = "VIPGATE_TEST_PROGRAMS";

/// The test that failed first.
#[derive(Debug, Serialize)]
pub(super) struct Noticed {
    pub(super) layer: &'static str,
    pub(super) test: String,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) name: &'static str,
    /// The layer can notice faults in files below this path.
    looks_at: &'static str,
    tree: PathBuf,
    tests: Tests,
    /// A fault that makes the tests take longer than this counts as noticed.
    patience: Duration,
}

#[derive(Debug)]
enum Tests {
    /// Compiled with the fault; these are cargo's arguments.
    OnHost(&'static [&'static str]),
    /// A test program that is compiled once, and the arguments that choose its tests; only the kernel programs get the fault.
    InKernel(Rc<Binary>, &'static [&'static str]),
}

/// All layers, for the tree at `tree`.
pub(super) fn all(tree: &Path) -> Result<Vec<Layer>> {
    let layer = |name, looks_at, seconds, tests| Layer {
        name,
        looks_at,
        tree: tree.to_owned(),
        tests,
        patience: Duration::from_secs(seconds),
    };
    let in_kernel = |test: &str| {
        eprintln!("==> the {test}, to be run with other programs");
        build(&root(), &["--package", "vipgate-tests", "--test", test], None).map(Rc::new)
    };
    let packets = in_kernel("packets")?;
    let races = in_kernel("races")?;
    let model = &["--package", "vipgate-fuzz", "--test", "inputs"];
    let properties = &["--package", "vipgate-fuzz", "--lib"];
    Ok(vec![
        layer("the tables' own tests", "ebpf/abi/", 300, Tests::OnHost(&["--package", "vipgate-abi", "--lib"])),
        layer("the model's properties", "ebpf/", 300, Tests::OnHost(properties)),
        layer("the model", "ebpf/", 600, Tests::OnHost(model)),
        // One hook first: most faults affect both. These tests mostly wait for the kernel to free programs.
        layer("packet tests", "ebpf/", 900, Tests::InKernel(Rc::clone(&packets), &["--test-threads", "8", "::xdp"])),
        layer(
            "packet tests of the other hook",
            "ebpf/",
            900,
            Tests::InKernel(packets, &["--test-threads", "8", "--skip", "::xdp"]),
        ),
        layer("races", "ebpf/", 600, Tests::InKernel(races, &[])),
    ])
}

impl Layer {
    /// Whether this layer can notice a fault in this file.
    pub(super) fn sees(&self, file: &str) -> bool {
        file.starts_with(self.looks_at)
    }

    /// The name of a test that fails; `None` if all pass.
    pub(super) fn first_failure(&self) -> Result<Option<String>> {
        match &self.tests {
            Tests::OnHost(arguments) => {
                let binary = build(&self.tree, arguments, Some(&self.tree.with_file_name("build")))?;
                test_run::first_failure(&mut binary.command(), self.patience)
            }
            Tests::InKernel(binary, which) => {
                ebpf::build_in(&self.tree)?;
                let mut command = binary.command();
                command.args(*which).env(PROGRAMS, ebpf::object_in(&self.tree));
                test_run::first_failure(&mut command, self.patience)
            }
        }
    }
}

/// Builds a test program of a tree. The tree must compile even with a fault in it.
fn build(tree: &Path, arguments: &[&str], into: Option<&Path>) -> Result<Binary> {
    let mut command = cargo(&["test", "--locked", "--no-run"]);
    command.current_dir(tree).args(arguments);
    if let Some(into) = into {
        // Optimised: little is compiled again for each fault, and the model runs ten times as fast.
        command.env("CARGO_TARGET_DIR", into).env("CARGO_PROFILE_DEV_OPT_LEVEL", "2");
    }
    let output = command.output().with_context(|| format!("cannot start {}", shown(&command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: it does not compile:\n{stderr}", shown(&command));
    Binary::named_by(&stderr, tree)
}
