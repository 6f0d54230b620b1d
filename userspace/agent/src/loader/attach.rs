//! Puts the programs on devices, and takes them off. The links are pinned, so that the programs stay when the
//! controller ends, and a later controller replaces them without a gap (`bpf_link_update`).

use std::io;

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use tracing::{info, warn};

use super::{
    Hook, LoadError, Plane,
    bpffs::{self, PinDir},
    classifier::{self, Classifier},
    error::{AttachError, causes, os_error},
    ethtool, hook_choice,
    link::{self, Held},
    link_on_device,
    object::Programs,
    virtio,
};

/// A device to carry the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub ifindex: u32,
    /// The drivers that carry its frames: [`Hook::Auto`] chooses by them.
    pub drivers: Vec<String>,
}

impl Target {
    /// A device of the calling thread's network namespace.
    pub fn find(name: &str, ifindex: u32) -> Self {
        Self { name: name.to_owned(), ifindex, drivers: ethtool::drivers(name) }
    }
}

impl Plane {
    /// Puts the program on a device, or replaces the one that an earlier controller left there. Tells the hook in use.
    pub fn attach(&self, target: &Target) -> Result<Hook, AttachError> {
        let mut programs = self.programs();
        let hook = match hook_choice::hook_for(self.hook, &target.drivers) {
            Hook::Xdp if self.hook == Hook::Auto => self.try_xdp(&mut programs, target)?,
            hook => {
                self.attach_at(&mut programs, target, hook)?;
                hook
            }
        };
        // Only now that the new hook works: the device is never without a program.
        for other in [Hook::Xdp, Hook::XdpGeneric].into_iter().filter(|other| *other != hook) {
            self.unpin(other, &target.name)?;
        }
        self.release(&[if hook == Hook::Tc { Classifier::Behind } else { Classifier::Tc }], &target.name)?;
        self.hold_classifier(&mut programs, Classifier::Egress, target)?;
        info!(device = target.name, %hook, why = hook_choice::why(self.hook, hook, &target.drivers), "hook chosen");
        Ok(hook)
    }

    /// Native XDP, or TC where it is not to be had.
    fn try_xdp(&self, programs: &mut Programs, target: &Target) -> Result<Hook, AttachError> {
        if self.xdp_refused.get().is_none() {
            match self.attach_at(programs, target, Hook::Xdp) {
                Ok(()) => return Ok(Hook::Xdp),
                Err(error @ (AttachError::NoXdp { .. } | AttachError::Ignored { .. } | AttachError::Busy { .. })) => {
                    warn!(device = target.name, %error, "no native XDP, using TC");
                }
                // As for every other device: to verify it again would take long and tell the same.
                Err(AttachError::Load { source: error @ LoadError::Program { passing: false, .. }, .. }) => {
                    warn!(%error, "no native XDP on this kernel, using TC on every device");
                    // Set once: the programs are locked.
                    let _ = self.xdp_refused.set(());
                }
                Err(error) => return Err(error),
            }
        }
        self.attach_at(programs, target, Hook::Tc)?;
        Ok(Hook::Tc)
    }

    /// Puts the program on the device at which packets come out of their queues, or replaces the one that is there.
    pub fn attach_queue(&self, target: &Target) -> Result<(), AttachError> {
        self.hold_classifier(&mut self.programs(), Classifier::Queue, target).map(drop)
    }

    /// Takes the program off such a device. One that is not there is no error.
    pub fn detach_queue(&self, device: &str) -> Result<(), AttachError> {
        self.release(&[Classifier::Queue], device)
    }

    /// Takes the programs off a device. One that is not there is no error.
    pub fn detach_device(&self, device: &str) -> Result<(), AttachError> {
        [Hook::Xdp, Hook::XdpGeneric].into_iter().try_for_each(|hook| self.unpin(hook, device))?;
        self.release(&[Classifier::Tc, Classifier::Behind, Classifier::Egress], device)
    }

    /// The devices that have a pinned link, and its hook.
    pub fn attached(&self) -> Result<Vec<(Hook, String)>, LoadError> {
        self.dir.pinned_links()
    }

    fn attach_at(&self, programs: &mut Programs, target: &Target, hook: Hook) -> Result<(), AttachError> {
        if hook == Hook::Xdp || hook == Hook::XdpGeneric {
            // Before the program that hands packets over to it.
            self.hold_classifier(programs, Classifier::Behind, target)?;
            // The kernel allows one mode a device.
            let other = if hook == Hook::Xdp { Hook::XdpGeneric } else { Hook::Xdp };
            self.unpin(other, &target.name)?;
        }
        let replaced = match hook {
            Hook::Auto | Hook::Tc => self.hold_classifier(programs, Classifier::Tc, target)?,
            Hook::Xdp | Hook::XdpGeneric => {
                self.hold_xdp(programs, hook, target).map_err(|failure| explain(failure, target, hook))?
            }
        };
        info!(device = target.name, %hook, replaced, "program attached");
        Ok(())
    }

    fn hold_classifier(
        &self,
        programs: &mut Programs,
        which: Classifier,
        target: &Target,
    ) -> Result<bool, AttachError> {
        let held = classifier::hold(&self.dir, self.way, programs, which, target);
        held.map_err(|failure| explain(failure, target, Hook::Tc))
    }

    /// Holds the XDP program on a device by its pinned link: the one that is there, updated, or a new one. Tells whether it was
    /// there.
    fn hold_xdp(&self, programs: &mut Programs, hook: Hook, target: &Target) -> Result<bool, Failure> {
        let path = self.dir.link(hook, &target.name);
        let failed = |what, reason: String| Failure::link(target, what, reason);
        let program = programs.xdp(hook)?;
        // A link whose device is gone, elsewhere or, renamed, another one now holds nothing that we want.
        if link_on_device::is_on(&path, target.ifindex).map_err(|error| failed("read", error.to_string()))? {
            let pin = PinnedLink::from_pin(&path).map_err(|error| failed("open", causes(&error)))?;
            update_xdp(program, pin.into())?;
            return Ok(true);
        }
        if hook == Hook::Xdp {
            if let Some(why) = hook_choice::why_not_xdp(&target.drivers) {
                return Err(AttachError::Lossy { device: target.name.clone(), why }.into());
            }
            if virtio::ignores_xdp(&target.name) {
                return Err(AttachError::Ignored { device: target.name.clone() }.into());
            }
        }
        link::remove(&path).map_err(|error| failed("remove", error.to_string()))?;
        let mode = if hook == Hook::XdpGeneric { XdpMode::Skb } else { XdpMode::Driver };
        let id = program.attach_to_if_index(target.ifindex, mode)?;
        let link = FdLink::try_from(program.take_link(id)?).map_err(invalid)?;
        link.pin(&path).map_err(|error| failed("pin", causes(&error)))?;
        Ok(false)
    }

    fn unpin(&self, hook: Hook, device: &str) -> Result<(), AttachError> {
        let removed = link::remove(&self.dir.link(hook, device)).map_err(|error| not_removed(device, &error))?;
        if removed {
            info!(device, %hook, "program detached");
        }
        Ok(())
    }

    /// Takes TC programs off a device.
    fn release(&self, which: &[Classifier], device: &str) -> Result<(), AttachError> {
        let failed = |error: io::Error| not_removed(device, &error);
        let mut filters = false;
        for which in which {
            filters |= link::held(&self.dir.classifier(*which, device)).map_err(failed)? == Held::Program;
        }
        if filters {
            classifier::release(&self.dir, which, device).map_err(failed)?;
        }
        for which in which {
            if link::remove(&self.dir.classifier(*which, device)).map_err(failed)? {
                info!(device, program = which.program(), "program detached");
            }
            self.dir.unannounce(*which, device).map_err(failed)?;
        }
        Ok(())
    }
}

fn not_removed(device: &str, error: &io::Error) -> AttachError {
    AttachError::Link { device: device.to_owned(), what: "remove", reason: error.to_string() }
}

/// Why a device does not hold a program.
pub(super) enum Failure {
    Attach(AttachError),
    Load(LoadError),
    Program(ProgramError),
}

impl Failure {
    pub(super) fn link(target: &Target, what: &'static str, reason: String) -> Self {
        Self::Attach(AttachError::Link { device: target.name.clone(), what, reason })
    }
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        Self::Attach(error)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

fn update_xdp(program: &mut Xdp, link: FdLink) -> Result<(), ProgramError> {
    let id = program.attach_to_link(XdpLink::try_from(link).map_err(invalid)?)?;
    // The pin holds it.
    program.take_link(id).map(drop)
}

/// The TC program that a link of this name, or what stands for its filter, holds, and its device; `None` if it is the XDP program.
fn classifier_of(name: &str) -> Option<(Classifier, String)> {
    let (hook, device) = bpffs::split(name)?;
    Some((Classifier::of_pin(hook)?, device))
}

/// Loads the queues' program if another version has it somewhere: all else that such a device needs is loaded for its hook.
pub(super) fn load_queues(others: &[PinDir], programs: &mut Programs) -> Result<(), LoadError> {
    for other in others {
        let is_queue = |name: &String| classifier_of(name).is_some_and(|(which, _)| which == Classifier::Queue);
        if other.link_names()?.iter().any(is_queue) {
            programs.queue()?;
        }
    }
    Ok(())
}

/// Loads what [`update_all`] will need: a program that the kernel refuses is known before a device has another.
pub(super) fn load_all(dir: &PinDir, programs: &mut Programs) -> Result<(), LoadError> {
    // What is no device's is not replaced there.
    for name in dir.link_names()?.iter().filter(|name| bpffs::split(name).is_some()) {
        match (bpffs::parse_link_name(name), classifier_of(name)) {
            (_, Some((which, _))) => drop(which.load(programs)?),
            (Some((hook, _)), None) => drop(programs.xdp(hook)?),
            (None, None) => {}
        }
    }
    Ok(())
}

/// Gives every device the program of its kind in place of the one that it has, each in one step.
pub(super) fn update_all(dir: &PinDir, programs: &mut Programs) -> Result<(), LoadError> {
    load_all(dir, programs)?;
    for name in dir.link_names()? {
        let path = dir.links().join(&name);
        let failed = |reason: String| LoadError::Link { path: path.clone(), reason };
        let held = || link::held(&path).map_err(|error| failed(error.to_string()));
        let classifier = classifier_of(&name);
        match (held()?, &classifier) {
            (Held::Link(Some(_)), _) => {}
            (Held::Program, Some((which, device))) => {
                classifier::update_filter(dir, which.load(programs)?, *which, device).map_err(failed)?;
                continue;
            }
            _ => continue,
        }
        let link = FdLink::from(PinnedLink::from_pin(&path).map_err(|error| failed(causes(&error)))?);
        let updated = match (classifier, bpffs::parse_link_name(&name)) {
            (Some((which, _)), _) => classifier::update_link(which.load(programs)?, link),
            (None, Some((hook, _))) => update_xdp(programs.xdp(hook)?, link),
            (None, None) => continue,
        };
        // The device may go at any moment, and what its link holds with it.
        if let Err(error) = updated
            && matches!(held()?, Held::Link(Some(_)))
        {
            return Err(failed(causes(&error)));
        }
    }
    Ok(())
}

/// A link that cannot be pinned, as kernels without BPF links make, would take the program along when the controller
/// ends.
#[allow(clippy::needless_pass_by_value, reason = "the signature that map_err wants")]
pub(super) fn invalid(error: aya::programs::links::LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::new(io::ErrorKind::Unsupported, error.to_string()))
}

fn explain(failure: Failure, target: &Target, hook: Hook) -> AttachError {
    let device = target.name.clone();
    let error = match failure {
        Failure::Attach(error) => return error,
        Failure::Load(source) => return AttachError::Load { device, source },
        Failure::Program(error) => error,
    };
    match (os_error(&error), hook) {
        (Some(libc::ENODEV), _) => AttachError::NoDevice { device },
        (Some(libc::EBUSY | libc::EEXIST), Hook::Xdp | Hook::XdpGeneric) => AttachError::Busy { device },
        (_, Hook::Xdp | Hook::XdpGeneric) => AttachError::NoXdp { device, source: Box::new(error) },
        (_, Hook::Auto | Hook::Tc) => AttachError::NoTc { device, source: Box::new(error) },
    }
}
