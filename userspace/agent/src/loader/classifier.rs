//! The TC programs and how they are held on devices: by a TCX link, pinned, or where the kernel has none, as a filter
//! (`filter`), with the program itself pinned in the link's place, so that pins look the same either way.

use std::{io, os::fd::AsFd as _};

use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, LinkOrder, PinnedLink},
    tc::TcAttachOptions,
};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};
use tracing::info;
use vipgate_abi::maps;

use super::{
    LoadError,
    attach::{Failure, Target, invalid},
    bpffs::PinDir,
    error::{AttachError, causes},
    filter::Filters,
    link::{self, Held},
    link_on_device,
    object::Programs,
    rtnl::Side,
};

/// How TC programs are put on devices, as an operator asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcMode {
    /// By TCX links where the kernel has them, else as filters.
    #[default]
    Auto,
    /// As filters of clsact, which `tc filter show` shows, and before which filters of others can be.
    Clsact,
}

impl TcMode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Clsact => "clsact",
        }
    }
}

impl std::str::FromStr for TcMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Auto, Self::Clsact].into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("`{text}` is no way to attach TC programs: use auto or clsact"))
    }
}

/// How TC programs are put on devices here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Tcx,
    Filter,
}

impl Way {
    /// The way that is asked for, and that the kernel knows: it is asked, whatever its version.
    pub(super) fn find(mode: TcMode, programs: &mut Programs) -> Result<Self, LoadError> {
        if mode == TcMode::Clsact {
            return Ok(Self::Filter);
        }
        let program = programs.egress()?;
        let program = program.fd().map_err(|error| LoadError::program(maps::PROGRAM_EGRESS, &error))?;
        let works = link::tcx_works(program.as_fd());
        if !works {
            info!("the kernel has no TCX links (Linux 6.6): TC programs are filters of clsact");
        }
        Ok(if works { Self::Tcx } else { Self::Filter })
    }
}

/// A TC program and where it sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Classifier {
    Tc,
    Behind,
    Queue,
    Egress,
}

impl Classifier {
    pub(super) const ALL: [Self; 4] = [Self::Tc, Self::Behind, Self::Queue, Self::Egress];

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Tc => maps::PROGRAM_TC,
            Self::Behind => maps::PROGRAM_BEHIND,
            Self::Queue => maps::PROGRAM_QUEUE,
            Self::Egress => maps::PROGRAM_EGRESS,
        }
    }

    /// What the names of its pins begin with.
    pub(super) const fn pin(self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Behind => "behind",
            Self::Queue => "queue",
            Self::Egress => "egress",
        }
    }

    /// The handle of its filter: while the hook of a device changes, two of them are on one side.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Tc => 1,
            Self::Behind => 2,
            Self::Queue => 3,
            Self::Egress => 4,
        }
    }

    pub(super) const fn side(self) -> Side {
        match self {
            Self::Tc | Self::Behind | Self::Queue => Side::Ingress,
            Self::Egress => Side::Egress,
        }
    }

    pub(super) fn of_program(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|which| which.program() == name)
    }

    pub(super) fn of_pin(hook: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|which| which.pin() == hook)
    }

    pub(super) fn load(self, programs: &mut Programs) -> Result<&mut SchedClassifier, LoadError> {
        match self {
            Self::Tc => programs.tc(),
            Self::Behind => programs.behind(),
            Self::Queue => programs.queue(),
            Self::Egress => programs.egress(),
        }
    }
}

/// Holds a program on a device, in place of the one that is there. Tells whether one was there.
pub(super) fn hold(
    dir: &PinDir,
    way: Way,
    programs: &mut Programs,
    which: Classifier,
    target: &Target,
) -> Result<bool, Failure> {
    let program = which.load(programs)?;
    match way {
        Way::Tcx => hold_link(dir, program, which, target),
        Way::Filter => hold_filter(dir, program, which, target),
    }
}

fn hold_link(dir: &PinDir, program: &mut SchedClassifier, which: Classifier, target: &Target) -> Result<bool, Failure> {
    let path = dir.classifier(which, &target.name);
    let failed = |what, reason| Failure::link(target, what, reason);
    let held = link::held(&path).map_err(|error| failed("read", error.to_string()))?;
    if link_on_device::is_on(&path, target.ifindex).map_err(|error| failed("read", error.to_string()))? {
        let pin = PinnedLink::from_pin(&path).map_err(|error| failed("open", causes(&error)))?;
        update_link(program, pin.into())?;
        return Ok(true);
    }
    let at = match which.side() {
        Side::Ingress => TcAttachType::Ingress,
        Side::Egress => TcAttachType::Egress,
    };
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(&target.name, at, order)?;
    let link = FdLink::try_from(program.take_link(id)?).map_err(invalid)?;
    if held == Held::Program {
        release(dir, &[which], &target.name).map_err(|error| failed("remove", error.to_string()))?;
    }
    // A link whose device is gone, elsewhere or renamed, or what stood for a filter.
    link::remove(&path).map_err(|error| failed("remove", error.to_string()))?;
    link.pin(&path).map_err(|error| failed("pin", causes(&error)))?;
    Ok(held == Held::Program)
}

/// Gives a link another program, in one step.
pub(super) fn update_link(program: &mut SchedClassifier, link: FdLink) -> Result<(), aya::programs::ProgramError> {
    let id = program.attach_to_link(link.try_into().map_err(invalid)?)?;
    // The pin holds it.
    program.take_link(id).map(drop)
}

fn hold_filter(
    dir: &PinDir,
    program: &mut SchedClassifier,
    which: Classifier,
    target: &Target,
) -> Result<bool, Failure> {
    let path = dir.classifier(which, &target.name);
    let failed = |what, reason| Failure::link(target, what, reason);
    let refused = |source| AttachError::Filter { device: target.name.clone(), source };
    let filters = Filters::open(dir.marks()).map_err(|error| refused(error.into()))?;
    dir.announce(program, which, &target.name).map_err(|reason| failed("pin", reason))?;
    let replaced = filters.put(target.ifindex, which, program.fd()?.as_fd()).map_err(refused)?;
    if matches!(link::held(&path), Ok(Held::Link(_))) {
        // Of a kernel's, or a controller's, other way.
        link::remove(&path).map_err(|error| failed("remove", error.to_string()))?;
    }
    dir.stand_in(which, &target.name).map_err(|error| failed("pin", error.to_string()))?;
    Ok(replaced)
}

/// Replaces the program of a device by what stands for its filter; one whose filter is gone stays without.
pub(super) fn update_filter(
    dir: &PinDir,
    program: &mut SchedClassifier,
    which: Classifier,
    device: &str,
) -> Result<(), String> {
    let Ok(ifindex) = if_nametoindex(device) else {
        return Ok(());
    };
    let filters = Filters::open(dir.marks()).map_err(|error| error.to_string())?;
    if !filters.is_there(ifindex, which).map_err(|error| error.to_string())? {
        return Ok(());
    }
    dir.announce(program, which, device)?;
    let fd = program.fd().map_err(|error| causes(&error))?;
    filters.put(ifindex, which, fd.as_fd()).map_err(|error| error.to_string())?;
    dir.stand_in(which, device).map_err(|error| error.to_string())
}

/// Takes every filter of ours off its device that nothing pinned stands for. The devices' names are those of now: one that was
/// renamed is found, too.
pub(super) fn sweep(dir: &PinDir) -> io::Result<()> {
    release(dir, &[], "")
}

/// The same, and those of a device. What stands for them is to be unpinned after it: until then they are known to be ours.
pub(super) fn release(dir: &PinDir, which: &[Classifier], device: &str) -> io::Result<()> {
    let mut wanted = dir.stand_ins()?;
    if let Ok(ifindex) = if_nametoindex(device) {
        wanted.retain(|(at, held)| *at != ifindex || !which.contains(held));
    }
    Filters::open(dir.marks())?.sweep(|ifindex, which| wanted.contains(&(ifindex, which))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_has_a_name_a_pin_and_a_handle_of_its_own() {
        for which in Classifier::ALL {
            assert_eq!(Classifier::of_program(which.program()), Some(which));
            assert_eq!(Classifier::of_pin(which.pin()), Some(which));
            assert_eq!(Classifier::ALL.iter().filter(|other| other.number() == which.number()).count(), 1);
        }
        assert_eq!(Classifier::of_program("vipgate_xdp"), None);
    }

    #[test]
    fn modes_read_as_they_are_written() {
        for mode in [TcMode::Auto, TcMode::Clsact] {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert!("tcx".parse::<TcMode>().is_err());
    }
}
