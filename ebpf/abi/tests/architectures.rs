//! For which processors the tables compile: asked of the compiler, with next to nothing for a core library, so that no other
//! target need be installed. Nearly everything is an error then, but a refusal is told among them.

use std::{env, fs, path::Path, process::Command};

const SENTENCE: &str = "vipgate runs on x86-64 only";

/// What the refusal needs of a core library.
const CORE: &str = "
    #![feature(no_core, rustc_attrs)]
    #![no_core]
    #![allow(internal_features)]
    #[rustc_builtin_macro]
    #[macro_export]
    macro_rules! compile_error { ($said:expr $(,)?) => {}; }
    pub mod prelude { pub mod rust_2024 { pub use crate::compile_error; } }
";

#[test]
fn every_processor_but_x86_64_is_refused_with_the_reason() {
    for refused in ["aarch64-unknown-linux-gnu", "riscv64gc-unknown-linux-gnu", "i686-unknown-linux-gnu"] {
        let said = compiled_for(refused);
        assert!(said.contains(SENTENCE), "{refused}: {said}");
    }
    for taken in ["x86_64-unknown-linux-gnu", "bpfel-unknown-none"] {
        let said = compiled_for(taken);
        assert!(said.contains("/abi/src/") && !said.contains(SENTENCE), "{taken}: {said}");
    }
}

/// What the compiler says of the crate's sources.
fn compiled_for(target: &str) -> String {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(target);
    fs::create_dir_all(&directory).expect("a directory for what is compiled");
    let core = directory.join("core.rs");
    fs::write(&core, CORE).expect("a file in it");
    compile(target, "core", &core, &directory, &[]);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let core = format!("core={}", directory.join("libcore.rmeta").display());
    compile(target, "vipgate_abi", &sources, &directory, &["--extern", &core])
}

fn compile(target: &str, name: &str, source: &Path, into: &Path, more: &[&str]) -> String {
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "--target", target])
        .args(["--crate-name", name, "--out-dir"])
        .args([into, source])
        .args(more)
        .env("RUSTC_BOOTSTRAP", "1")
        .output()
        .expect("rustc is there: it compiled this test");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
