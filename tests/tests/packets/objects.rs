//! The object files themselves.

use super::*;

#[test]
fn the_kernel_accepts_every_program_of_every_object() -> Result<()> {
    let loaded = Bench::load_all()?;
    ensure!(loaded >= 10, "{loaded} programs");
    Ok(())
}
