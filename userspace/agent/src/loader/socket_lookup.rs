//! Keeps the router's own sockets from VIPs: a socket-lookup program (`sk_lookup`) on its network namespace, held by a pinned link
//! like all others.

use std::fs::File;

use aya::programs::links::FdLink;
use tracing::warn;

use super::{
    bpffs::PinDir,
    error::{LoadError, causes},
    link,
    object::Programs,
};

/// The controller's own network namespace.
const NAMESPACE: &str = "/proc/self/ns/net";

/// Brings the program to the network namespace, in place of the one that an earlier controller left there. Services go on without
/// it, so a refusal is only logged.
pub(super) fn keep(programs: &mut Programs, dir: &PinDir) {
    if let Err(error) = attach(programs, dir) {
        warn!(%error, "what listens on all of the router's addresses answers on VIPs, too");
    }
}

fn attach(programs: &mut Programs, dir: &PinDir) -> Result<(), LoadError> {
    let path = dir.sockets_link();
    let failed = |reason: String| LoadError::Link { path: path.clone(), reason };
    let namespace = File::open(NAMESPACE).map_err(|error| LoadError::io(format!("open {NAMESPACE}"), error))?;
    let program = programs.sockets()?;
    let attached = program.attach(namespace).and_then(|id| program.take_link(id));
    let link = FdLink::from(attached.map_err(|error| failed(causes(&error)))?);
    // Both programs run until then: no packet meets neither.
    link::remove(&path).map_err(|error| failed(error.to_string()))?;
    link.pin(&path).map_err(|error| failed(causes(&error)))?;
    Ok(())
}
