//! The store embeds whatever migrations are there.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
