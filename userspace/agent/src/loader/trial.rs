//! Loads the programs to know whether this kernel takes them: into tables of their own that are pinned nowhere, so that a
//! running controller is not disturbed and nothing is left behind.

use serde::Serialize;

use super::{LoadError, kernel, object};

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    pub name: &'static str,
    pub loads: bool,
    /// What the kernel followed to verify it, where it reports that (Linux 5.16): the earliest warning of a program that grows too
    /// large.
    pub instructions: Option<u32>,
    /// Why it does not load.
    pub reason: Option<String>,
}

/// Loads every program.
///
/// # Errors
/// Missing privileges, and what keeps the tables from being made: then nothing is known of the programs.
pub fn try_programs() -> Result<Vec<Trial>, LoadError> {
    object::lift_memlock();
    let mut programs = object::prepare_apart().map_err(kernel::explain)?;
    let mut trials = Vec::new();
    for name in object::PROGRAMS {
        trials.push(match programs.load(name) {
            Ok(instructions) => Trial { name, loads: true, instructions, reason: None },
            Err(error @ LoadError::Program { .. }) => {
                let reason = Some(kernel::explain(error).to_string());
                Trial { name, loads: false, instructions: None, reason }
            }
            Err(error) => return Err(error),
        });
    }
    Ok(trials)
}
