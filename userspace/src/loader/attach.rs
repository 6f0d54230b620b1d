//! Puts the programs on devices, and takes them off. The links are pinned, so that the programs stay when the
//! controller ends, and a later controller replaces them without a gap (`bpf_link_update`).

use std::{io, path::Path};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
    links::{FdLink, LinkOrder, PinnedLink},
    tc::TcAttachOptions,
    xdp::XdpLink,
};
use tracing::{info, warn};

use super::{
    Hook, LoadError, Plane,
    bpffs::PinDir,
    error::{AttachError, causes, os_error},
    link,
    object::Programs,
};

/// A device to carry the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub ifindex: u32,
    /// A veth: TC serves it better than XDP, see [`Hook::Auto`].
    pub veth: bool,
}

impl Plane {
    /// Puts the program on a device, or replaces the one that an earlier controller left there. Tells the hook in use.
    pub fn attach(&self, target: &Target) -> Result<Hook, AttachError> {
        let mut programs = self.programs();
        let hook = match self.hook {
            Hook::Auto if target.veth => Hook::Tc,
            Hook::Auto => match self.attach_at(&mut programs, target, Hook::Xdp) {
                Ok(()) => Hook::Xdp,
                Err(error @ (AttachError::NoXdp { .. } | AttachError::Busy { .. })) => {
                    warn!(device = target.name, %error, "no native XDP, using TC");
                    Hook::Tc
                }
                Err(error) => return Err(error),
            },
            hook => hook,
        };
        if !(self.hook == Hook::Auto && hook == Hook::Xdp) {
            self.attach_at(&mut programs, target, hook)?;
        }
        // Only now that the new hook works: the device is never without a program.
        for other in [Hook::Xdp, Hook::XdpGeneric, Hook::Tc] {
            if other != hook {
                self.unpin(other, &target.name)?;
            }
        }
        if hook == Hook::Tc {
            self.remove(&self.dir.behind_link(&target.name), &target.name)?;
        }
        let attach = |old| attach_tc(programs.egress()?, target, TcAttachType::Egress, old);
        self.hold(&self.dir.egress_link(&target.name), target, attach)
            .map_err(|error| explain(error, target, Hook::Tc))?;
        Ok(hook)
    }

    /// Puts the program on the device at which packets come out of their queues, or replaces the one that is there.
    pub fn attach_queue(&self, target: &Target) -> Result<(), AttachError> {
        let mut programs = self.programs();
        let attach = |old| attach_tc(programs.queue()?, target, TcAttachType::Ingress, old);
        let held = self.hold(&self.dir.queue_link(&target.name), target, attach);
        held.map(drop).map_err(|error| explain(error, target, Hook::Tc))
    }

    /// Removes the link of such a device. One that is not there is no error.
    pub fn detach_queue(&self, device: &str) -> Result<(), AttachError> {
        self.remove(&self.dir.queue_link(device), device).map(drop)
    }

    /// Takes the programs off a device. One that is not there is no error.
    pub fn detach_device(&self, device: &str) -> Result<(), AttachError> {
        [Hook::Xdp, Hook::XdpGeneric, Hook::Tc].into_iter().try_for_each(|hook| self.unpin(hook, device))?;
        self.remove(&self.dir.behind_link(device), device)?;
        self.remove(&self.dir.egress_link(device), device).map(|_| ())
    }

    /// The devices that have a pinned link, and its hook.
    pub fn attached(&self) -> Result<Vec<(Hook, String)>, LoadError> {
        self.dir.pinned_links()
    }

    fn attach_at(&self, programs: &mut Programs, target: &Target, hook: Hook) -> Result<(), AttachError> {
        if hook == Hook::Xdp || hook == Hook::XdpGeneric {
            // Before the program that hands packets over to it.
            let behind = |old| attach_tc(programs.behind()?, target, TcAttachType::Ingress, old);
            self.hold(&self.dir.behind_link(&target.name), target, behind)
                .map_err(|failure| explain(failure, target, Hook::Tc))?;
            // The kernel allows one mode a device.
            let other = if hook == Hook::Xdp { Hook::XdpGeneric } else { Hook::Xdp };
            self.unpin(other, &target.name)?;
        }
        let attach = |old| match hook {
            Hook::Auto | Hook::Tc => attach_tc(programs.tc()?, target, TcAttachType::Ingress, old),
            Hook::Xdp | Hook::XdpGeneric => attach_xdp(programs.xdp()?, target, hook, old),
        };
        let replaced = self
            .hold(&self.dir.link(hook, &target.name), target, attach)
            .map_err(|failure| explain(failure, target, hook))?;
        info!(device = target.name, %hook, replaced, "program attached");
        Ok(())
    }

    /// Holds a program on a device by the link pinned at `path`: the one that is there, given to `attach` to be updated,
    /// or a new one. Tells whether it was there.
    fn hold(
        &self,
        path: &Path,
        target: &Target,
        attach: impl FnOnce(Option<FdLink>) -> Result<FdLink, Failure>,
    ) -> Result<bool, Failure> {
        let failed =
            |what, reason: String| Failure::Link(AttachError::Link { device: target.name.clone(), what, reason });
        // A link whose device is gone or, renamed, is another one now holds nothing that we want.
        let held = link::ifindex(path).map_err(|error| failed("read", error.to_string()))?;
        let old = if held == Some(target.ifindex) {
            let pin = PinnedLink::from_pin(path).map_err(|error| failed("open", causes(&error)))?;
            Some(FdLink::from(pin))
        } else {
            self.remove(path, &target.name).map_err(Failure::Link)?;
            None
        };
        let replaced = old.is_some();
        let link = attach(old)?;
        if !replaced {
            link.pin(path).map_err(|error| failed("pin", causes(&error)))?;
        }
        Ok(replaced)
    }

    fn unpin(&self, hook: Hook, device: &str) -> Result<(), AttachError> {
        if self.remove(&self.dir.link(hook, device), device)? {
            info!(device, %hook, "program detached");
        }
        Ok(())
    }

    /// Removes a pinned link; false: there was none.
    fn remove(&self, path: &Path, device: &str) -> Result<bool, AttachError> {
        let failed = |error: io::Error| AttachError::Link {
            device: device.to_owned(),
            what: "remove",
            reason: error.to_string(),
        };
        link::remove(path).map_err(failed)
    }
}

/// Why a link does not hold a program.
enum Failure {
    Link(AttachError),
    Load(LoadError),
    Program(ProgramError),
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

fn attach_xdp(program: &mut Xdp, target: &Target, hook: Hook, old: Option<FdLink>) -> Result<FdLink, Failure> {
    let mode = if hook == Hook::XdpGeneric { XdpMode::Skb } else { XdpMode::Driver };
    match old {
        Some(link) => Ok(update_xdp(program, link)?),
        None => {
            let id = program.attach_to_if_index(target.ifindex, mode)?;
            Ok(FdLink::try_from(program.take_link(id)?).map_err(invalid)?)
        }
    }
}

fn update_xdp(program: &mut Xdp, link: FdLink) -> Result<FdLink, ProgramError> {
    let id = program.attach_to_link(XdpLink::try_from(link).map_err(invalid)?)?;
    FdLink::try_from(program.take_link(id)?).map_err(invalid)
}

fn update_tc(program: &mut SchedClassifier, link: FdLink) -> Result<FdLink, ProgramError> {
    let id = program.attach_to_link(link.try_into().map_err(invalid)?)?;
    FdLink::try_from(program.take_link(id)?).map_err(invalid)
}

/// What kind of program a link holds.
enum LinkKind {
    Xdp,
    Classifier(fn(&mut Programs) -> Result<&mut SchedClassifier, LoadError>),
}

impl LinkKind {
    /// By the name that the link is pinned under.
    fn of(name: &str) -> Self {
        match name.split('-').next() {
            Some("egress") => Self::Classifier(Programs::egress),
            Some("behind") => Self::Classifier(Programs::behind),
            Some("queue") => Self::Classifier(Programs::queue),
            Some("tc") => Self::Classifier(Programs::tc),
            _ => Self::Xdp,
        }
    }
}

/// Loads what [`update_all`] will need: a program that the kernel refuses is known before a device has another.
pub(super) fn load_all(dir: &PinDir, programs: &mut Programs) -> Result<(), LoadError> {
    for name in dir.link_names()? {
        match LinkKind::of(&name) {
            LinkKind::Xdp => drop(programs.xdp()?),
            LinkKind::Classifier(program) => drop(program(programs)?),
        }
    }
    Ok(())
}

/// Gives every pinned link the program of its kind, each in one step.
pub(super) fn update_all(dir: &PinDir, programs: &mut Programs) -> Result<(), LoadError> {
    load_all(dir, programs)?;
    for name in dir.link_names()? {
        let path = dir.links().join(&name);
        let failed = |reason: String| LoadError::Link { path: path.clone(), reason };
        let device = || link::ifindex(&path).map_err(|error| failed(error.to_string()));
        if device()?.is_none() {
            continue;
        }
        let link = FdLink::from(PinnedLink::from_pin(&path).map_err(|error| failed(causes(&error)))?);
        let updated = match LinkKind::of(&name) {
            LinkKind::Xdp => update_xdp(programs.xdp()?, link),
            LinkKind::Classifier(program) => update_tc(program(programs)?, link),
        };
        // The device may go at any moment, and what its link holds with it.
        if let Err(error) = updated
            && device()?.is_some()
        {
            return Err(failed(causes(&error)));
        }
    }
    Ok(())
}

fn attach_tc(
    program: &mut SchedClassifier,
    target: &Target,
    at: TcAttachType,
    old: Option<FdLink>,
) -> Result<FdLink, Failure> {
    match old {
        Some(link) => Ok(update_tc(program, link)?),
        None => {
            let order = TcAttachOptions::TcxOrder(LinkOrder::default());
            let id = program.attach_with_options(&target.name, at, order)?;
            Ok(FdLink::try_from(program.take_link(id)?).map_err(invalid)?)
        }
    }
}

/// A link that cannot be pinned, as kernels without BPF links make, would take the program along when the controller
/// ends.
#[allow(clippy::needless_pass_by_value, reason = "the signature that map_err wants")]
fn invalid(error: aya::programs::links::LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::new(io::ErrorKind::Unsupported, error.to_string()))
}

fn explain(failure: Failure, target: &Target, hook: Hook) -> AttachError {
    let device = target.name.clone();
    let error = match failure {
        Failure::Link(error) => return error,
        Failure::Load(source) => return AttachError::Load { device, source },
        Failure::Program(error) => error,
    };
    match (os_error(&error), hook) {
        (Some(libc::ENODEV), _) => AttachError::NoDevice { device },
        (Some(libc::EBUSY | libc::EEXIST), Hook::Xdp | Hook::XdpGeneric) => AttachError::Busy { device },
        (_, Hook::Xdp | Hook::XdpGeneric) => AttachError::NoXdp { device, source: Box::new(error) },
        (_, Hook::Auto | Hook::Tc) => AttachError::NoTcx { device, source: Box::new(error) },
    }
}
