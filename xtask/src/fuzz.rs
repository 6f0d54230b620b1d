//! `cargo xtask fuzz`: looks for inputs under which the packet path breaks its invariants (`ebpf/fuzz`).
//!
//! cargo-fuzz builds the target with coverage counters and the address sanitizer. The pinned compiler has both, behind
//! switches that `RUSTC_BOOTSTRAP` unlocks, so no nightly is needed.

use crate::{
    setup::{self, Need},
    sh::{cargo, root, run as run_command},
};
use anyhow::{Context as _, Result};
use std::fs;

/// Where mutations start: the corpus, inputs that reach deep into the packet path, and inputs that failed once.
const CORPUS: &str = "fuzz/corpus/packets";
const SEEDS: &str = "fuzz/seeds";
const REGRESSIONS: &str = "fuzz/regressions";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Minutes to run.
    #[arg(long, default_value_t = 10, value_name = "N")]
    minutes: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Fuzz])?;
    let directory = root().join("ebpf");
    let corpus = directory.join(CORPUS);
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let mut fuzz = cargo(&["fuzz", "run", "--features", "libfuzzer", "packets", CORPUS, SEEDS, REGRESSIONS, "--"]);
    fuzz.current_dir(&directory).env("RUSTC_BOOTSTRAP", "1");
    fuzz.args(["-max_len=512", "-print_final_stats=1", &format!("-max_total_time={}", args.minutes * 60)]);
    run_command(&mut fuzz).with_context(|| {
        format!(
        "a failing input is in ebpf/fuzz/artifacts: shorten it (cargo fuzz tmin), fix the bug, and keep the input in \
             ebpf/{REGRESSIONS} under a name that says what it shows"
        )
    })
}
