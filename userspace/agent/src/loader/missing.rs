//! Programs that somebody else took off our devices: pins say which should be there, the kernel which are.

use std::{collections::BTreeSet, path::Path};

use nix::net::if_::if_nametoindex;

use super::{
    LoadError, Plane,
    bpffs::{self, PinDir},
    classifier::Classifier,
    filter::Filters,
    link::{self, Held},
    link_on_device, object,
    rtnl::Side,
};

/// A program of ours that is no longer where it was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingProgram {
    pub device: String,
    /// The device of that name now, which may be another one than had the program.
    pub ifindex: u32,
    /// Where it was.
    pub hook: &'static str,
    pub program: &'static str,
}

impl Plane {
    /// The programs that somebody took off devices that exist, those at the queues' ends included.
    pub fn missing_programs(&self) -> Result<Vec<MissingProgram>, LoadError> {
        find(&self.dir)
    }
}

/// The same for commands that only read.
pub fn missing_programs(bpffs: &Path) -> Result<Vec<MissingProgram>, LoadError> {
    find(&PinDir::new(bpffs))
}

fn find(dir: &PinDir) -> Result<Vec<MissingProgram>, LoadError> {
    let (mut lost, mut filters) = (Vec::new(), Vec::new());
    for name in dir.link_names()? {
        let Some((pinned, which)) = of_pin(&name) else { continue };
        let path = dir.links().join(&name);
        let failed = |error| LoadError::io(format!("look at {}", path.display()), error);
        match (link::held(&path).map_err(failed)?, which) {
            (Held::Link(_), _) if !link_on_device::is_on(&path, pinned.ifindex).map_err(failed)? => lost.push(pinned),
            (Held::Program, Some(which)) => filters.push((pinned, which)),
            _ => {}
        }
    }
    if filters.is_empty() {
        return Ok(lost);
    }
    let wanted: BTreeSet<_> = filters.iter().map(|(pinned, which)| (pinned.ifindex, *which)).collect();
    let missing = Filters::open(dir.marks()).and_then(|filters| filters.missing(&wanted));
    let missing = missing.map_err(|error| LoadError::io("look for TC filters", error))?;
    let is_missing = |(pinned, which): &(MissingProgram, Classifier)| missing.contains(&(pinned.ifindex, *which));
    lost.extend(filters.into_iter().filter(is_missing).map(|(pinned, _)| pinned));
    Ok(lost)
}

/// What a pin of this name holds, or stands for, on a device that is there; with which TC program, if it is one.
fn of_pin(name: &str) -> Option<(MissingProgram, Option<Classifier>)> {
    let (pin, device) = bpffs::split(name)?;
    let ifindex = if_nametoindex(device.as_str()).ok()?;
    let which = Classifier::of_pin(pin);
    let (hook, program) = match which {
        Some(which) => (hook_of(which.side()), which.program()),
        None => bpffs::parse_link_name(name).map(|(hook, _)| (hook.name(), object::xdp_program(hook)))?,
    };
    Some((MissingProgram { device, ifindex, hook, program }, which))
}

const fn hook_of(side: Side) -> &'static str {
    match side {
        Side::Ingress => "tc ingress",
        Side::Egress => "tc egress",
    }
}

#[cfg(test)]
mod tests {
    use vipgate_abi::maps;

    use super::*;

    #[test]
    fn a_pin_tells_where_its_program_belongs() {
        let told = |name: &str| of_pin(name).map(|(lost, _)| (lost.device, lost.hook, lost.program));
        assert_eq!(told("xdp-lo"), Some(("lo".to_owned(), "xdp", maps::PROGRAM_XDP)));
        assert_eq!(told("xdpgeneric-lo"), Some(("lo".to_owned(), "xdp-generic", maps::PROGRAM_GENERIC)));
        assert_eq!(told("egress-lo"), Some(("lo".to_owned(), "tc egress", maps::PROGRAM_EGRESS)));
        assert_eq!(told("queue-lo"), Some(("lo".to_owned(), "tc ingress", maps::PROGRAM_QUEUE)));
        assert_eq!(told("redirects"), None);
        assert_eq!(told("tc-no-such-device"), None);
    }
}
