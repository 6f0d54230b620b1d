//! Counts frames that XDP redirected and the kernel refused. The packet path itself cannot see this loss, since its program
//! has ended by then: a program at the kernel's tracepoint counts, held by a pinned link like all others.

use aya::programs::links::FdLink;
use tracing::warn;

use super::{
    bpffs::PinDir,
    error::{LoadError, causes},
    link,
    object::Programs,
};

/// The kernel's tracepoint.
const TRACEPOINT: &str = "xdp_redirect_err";

/// Brings the program to its tracepoint, in place of the one that an earlier controller left there. Only a
/// counter depends on it, so a refusal is only logged.
pub(super) fn watch(programs: &mut Programs, dir: &PinDir) {
    if let Err(error) = attach(programs, dir) {
        warn!(%error, "redirects that fail are not counted");
    }
}

fn attach(programs: &mut Programs, dir: &PinDir) -> Result<(), LoadError> {
    let path = dir.redirects_link();
    let failed = |reason: String| LoadError::Link { path: path.clone(), reason };
    // Such a link cannot be given another program.
    link::remove(&path).map_err(|error| failed(error.to_string()))?;
    let program = programs.redirects()?;
    let attached = program.attach(TRACEPOINT).and_then(|id| program.take_link(id));
    let link = FdLink::from(attached.map_err(|error| failed(causes(&error)))?);
    link.pin(&path).map_err(|error| failed(causes(&error)))?;
    Ok(())
}
