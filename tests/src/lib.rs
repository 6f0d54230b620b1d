//! Code that the tests, the demo and the benchmark share.
pub mod bench;
pub mod lab;

/// Expands to one test for each hook: `both_hooks! { fn name(hook) { ... } }` makes `name::xdp` and `name::tc`.
#[macro_export]
macro_rules! both_hooks {
    ($($(#[$attribute:meta])* fn $name:ident($hook:ident) $body:block)+) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;

            fn scenario($hook: $crate::lab::Hook) -> $crate::lab::Result<()> $body

            #[test]
            fn xdp() -> $crate::lab::Result<()> {
                $crate::lab::with_program_output(|| scenario($crate::lab::Hook::Xdp))
            }

            #[test]
            fn tc() -> $crate::lab::Result<()> {
                $crate::lab::with_program_output(|| scenario($crate::lab::Hook::Tc))
            }
        }
    )+};
}
pub mod packet;
pub mod vm;
