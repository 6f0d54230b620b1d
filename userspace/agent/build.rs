//! Embeds the kernel programs, which `cargo xtask build` makes with a toolchain of their own.

use std::{env, fs, path::Path};

const OBJECT: &str = "../../ebpf/target/bpfel-unknown-none/release/vipgate-ebpf";

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed={OBJECT}");
    let out = env::var("OUT_DIR").map_err(|error| error.to_string())?;
    fs::copy(OBJECT, Path::new(&out).join("vipgate.o"))
        .map(drop)
        .map_err(|error| format!("no kernel programs at {OBJECT} ({error}): run `cargo xtask build` first"))
}
