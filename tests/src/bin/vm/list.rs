//! Lists the kernels of the table: which are in the cache, and what the archive has.

use vipgate_tests::{
    lab::Result,
    vm::{archive, kernels},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print the newest kernel of each series in Debian's archive, as rows for tests/src/vm/kernels.toml.
    #[arg(long)]
    archive: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    for kernel in kernels::all()? {
        if arguments.archive {
            println!("{}", archive::newest(&kernel)?);
            continue;
        }
        let state = match archive::cached(&kernel)? {
            Some(_) => format!("cached, {} MB", archive::size(&kernel)? / 1_000_000),
            None => "not fetched yet".to_owned(),
        };
        let refused = if kernel.refused { " (refused by vipgate)" } else { "" };
        println!("{:<12} {:<32} {:<20} {state}{refused}", kernel.name, kernel.release, kernel.suite);
    }
    if !arguments.archive {
        println!("{}", archive::cache()?.display());
    }
    Ok(())
}
