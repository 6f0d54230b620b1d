//! `cargo xtask fuzz`: libFuzzer looks for inputs under which something does not hold.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    vipgate_fuzz::run(bytes);
});
