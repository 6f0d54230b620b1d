//! Fetches kernels into the cache in advance.

use vipgate_tests::{
    lab::Result,
    vm::{archive, kernels},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this kernel, by the name that `cargo xtask vm list` shows; may be given more than once.
    #[arg(long, value_name = "NAME", value_parser = kernels::known)]
    kernel: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    for kernel in kernels::named(&arguments.kernel)? {
        archive::fetch(&kernel)?;
    }
    Ok(())
}
