//! What can go wrong between the controller and the kernel's BPF side, in words by which an operator knows what to do.

use std::{error::Error, io, path::PathBuf};

use aya::maps::MapError;
use thiserror::Error;

use super::filter::FilterError;

/// The programs or maps could not be brought into the kernel.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(
        "{path} is not on a BPF file system, so tables would not outlive the controller; mount one \
         (`mount -t bpf bpf /sys/fs/bpf`) or name a directory on one with --bpffs"
    )]
    NotBpffs { path: PathBuf },
    #[error("not permitted to {what}: vipgate needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW")]
    Privileges { what: String },
    #[error("Linux {release} cannot run vipgate: {why}")]
    Unsupported { release: String, why: String },
    #[error("cannot {what}")]
    Io { what: String, source: io::Error },
    #[error("the size {name} = {value} is not possible: {rule}")]
    Size { name: &'static str, value: u32, rule: &'static str },
    #[error(
        "the pinned map {path} is not what this version needs ({problem}); another program may have made it: \
         `vipgate detach` removes it, and ends all flows"
    )]
    ForeignPin { path: PathBuf, problem: String },
    #[error("cannot use the link {path}: {reason}")]
    Link { path: PathBuf, reason: String },
    #[error(
        "the embedded object has no {kind} {name}; it is not a vipgate object: build it again with `cargo xtask build`"
    )]
    Incomplete { kind: &'static str, name: &'static str },
    #[error(
        "the tables under {path} are those of another network namespace (net:[{inode}]), whose filters, queues and addresses \
         cannot be removed from here: {remedy}"
    )]
    Elsewhere { path: PathBuf, inode: u64, remedy: String },
    #[error("the kernel refused the tables or the object: {}", causes(source))]
    Object { source: Box<aya::EbpfError> },
    #[error("the kernel refused the program {name}: {reason}")]
    Program {
        name: &'static str,
        reason: String,
        /// Memory or time was short: another time it may load.
        passing: bool,
    },
    #[error(transparent)]
    Table(#[from] TableError),
}

impl LoadError {
    /// An I/O error, or what it means when it is about permission.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privileges { what },
            _ => Self::Io { what, source },
        }
    }

    /// An error of loading the object, or what it means when the kernel's answer is telling.
    pub(crate) fn object(source: aya::EbpfError) -> Self {
        if is_denied(&source) {
            return Self::Privileges { what: "create BPF maps".into() };
        }
        Self::Object { source: Box::new(source) }
    }

    /// An error of opening a pinned map, or what it means when it is about permission.
    pub(crate) fn opening(map: &'static str, source: MapError) -> Self {
        if is_denied(&source) {
            return Self::Privileges { what: format!("open the map {map}") };
        }
        TableError::new(map, "open", source).into()
    }

    /// An error of asking what a pin is, or what it means when it is about permission.
    pub(crate) fn pin(path: PathBuf, source: &MapError) -> Self {
        if is_denied(source) {
            return Self::Privileges { what: format!("open {}", path.display()) };
        }
        Self::ForeignPin { path, problem: causes(source) }
    }

    pub(crate) fn program(name: &'static str, source: &aya::programs::ProgramError) -> Self {
        if os_error(source) == Some(libc::EPERM) {
            return Self::Privileges { what: format!("load the program {name}") };
        }
        match source {
            aya::programs::ProgramError::LoadError { io_error, verifier_log } => {
                Self::refused(name, io_error, &verifier_log.to_string())
            }
            other => {
                let error = match other {
                    // It stands for its cause, and does not name that as one.
                    aya::programs::ProgramError::IOError(error) => error.raw_os_error(),
                    other => os_error(other),
                };
                Self::Program { name, reason: printable(&causes(other)), passing: is_passing(error) }
            }
        }
    }

    fn refused(name: &'static str, error: &io::Error, log: &str) -> Self {
        let reason = match last_words(log) {
            words if words.is_empty() => error.to_string(),
            words => format!("{error}; the verifier's last words: {words}"),
        };
        Self::Program { name, reason: printable(&reason), passing: is_passing(error.raw_os_error()) }
    }
}

/// Whether the kernel refused for lack of privileges: with EACCES where everybody may look into the BPF file system.
fn is_denied(error: &(dyn Error + 'static)) -> bool {
    matches!(os_error(error), Some(libc::EPERM | libc::EACCES))
}

/// Whether an error is temporary, and not about the kernel or the program.
fn is_passing(error: Option<i32>) -> bool {
    error.is_some_and(|error| [libc::ENOMEM, libc::EAGAIN, libc::EINTR, libc::EMFILE, libc::ENFILE].contains(&error))
}

/// The end of a log, where the reason is, in one line; the whole of it is megabytes. What the kernel counted comes after the
/// reason.
fn last_words(log: &str) -> String {
    const LINES: usize = 3;
    const COUNTS: [&str; 5] = ["processed ", "verification time ", "stack depth ", "max_states", "mark_precise"];
    let is_word = |line: &&str| !line.is_empty() && !COUNTS.iter().any(|start| line.starts_with(start));
    let lines: Vec<&str> = log.lines().map(str::trim).filter(is_word).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

/// Text of others as one line, without what a terminal would obey: an error may be shown anywhere.
pub(crate) fn printable(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// A table could not be read or written.
#[derive(Debug, Error)]
pub enum TableError {
    #[error(
        "the map {map} is full; raise its size in the configuration and start the controller again: nothing is lost"
    )]
    Full { map: &'static str },
    #[error("cannot {what} the map {map}: {}", causes(source))]
    Map { map: &'static str, what: &'static str, source: Box<MapError> },
    #[error("cannot map {map} into memory")]
    Mapping { map: &'static str, source: io::Error },
}

impl TableError {
    pub(crate) fn new(map: &'static str, what: &'static str, source: MapError) -> Self {
        match os_error(&source) {
            Some(libc::ENOSPC | libc::E2BIG) => Self::Full { map },
            _ => Self::Map { map, what, source: Box::new(source) },
        }
    }
}

/// A device could not get, or lose, its program.
#[derive(Debug, Error)]
pub enum AttachError {
    #[error(
        "the driver of {device} cannot run XDP programs here ({}); use the hook `auto`, `tc` or `xdp-generic`",
        causes(source)
    )]
    NoXdp { device: String, source: Box<aya::programs::ProgramError> },
    #[error(
        "{device} would never run an XDP program, though its driver takes it: the virtio device has no mergeable receive buffers \
         (`mrg_rxbuf=off` at the hypervisor) and gets packets larger than its MTU; use the hook `auto`, `tc` or `xdp-generic`"
    )]
    Ignored { device: String },
    #[error("{device} cannot have native XDP: {why}; use the hook `auto`, `tc` or `xdp-generic`")]
    Lossy { device: String, why: &'static str },
    #[error("{device} already carries another XDP program; detach that, or use the hook `tc`")]
    Busy { device: String },
    #[error("{device} cannot get a TC program: {}", causes(source))]
    NoTc { device: String, source: Box<aya::programs::ProgramError> },
    #[error("{device} cannot get a TC program: {source}")]
    Filter { device: String, source: FilterError },
    #[error("{device}: {source}")]
    Load { device: String, source: LoadError },
    #[error("there is no device {device}")]
    NoDevice { device: String },
    #[error("cannot {what} the link of {device}: {reason}")]
    Link { device: String, what: &'static str, reason: String },
}

impl AttachError {
    /// The command that mends it, or what to do.
    pub fn remedy(&self) -> String {
        match self {
            Self::NoXdp { .. } | Self::Ignored { .. } | Self::Lossy { .. } => {
                "set hook = \"auto\" in vipgate.toml; systemctl restart vipgate".to_owned()
            }
            // A driver that has native XDP looks for no generic one under plain `xdp`.
            Self::Busy { device } => {
                format!("ip link set dev {device} xdpgeneric off; ip link set dev {device} xdp off")
            }
            Self::Filter {
                source: FilterError::Foreign { remedy, .. } | FilterError::Another { remedy, .. }, ..
            } => remedy.clone(),
            _ => "journalctl -u vipgate # tells what came before".to_owned(),
        }
    }
}

/// An error with all its causes, in one line.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The operating system's error number somewhere among the causes.
pub(crate) fn os_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_that_may_not_be_opened_asks_for_root_and_for_nothing_else() {
        let error = |number| {
            let io_error = io::Error::from_raw_os_error(number);
            MapError::from(aya::sys::SyscallError { call: "BPF_OBJ_GET", io_error })
        };
        for number in [libc::EPERM, libc::EACCES] {
            let told = [
                LoadError::opening("FLOWS", error(number)),
                LoadError::pin("/sys/fs/bpf/FLOWS".into(), &error(number)),
            ];
            for error in told.map(|error| error.to_string()) {
                assert!(error.contains("needs root") && !error.contains("detach"), "{error}");
            }
        }
        let other = LoadError::pin("/sys/fs/bpf/FLOWS".into(), &error(libc::EINVAL));
        assert!(matches!(other, LoadError::ForeignPin { .. }));
    }

    #[test]
    fn what_the_verifier_said_last_is_one_printable_line() {
        let log = "func#0 @0\n0: R1=ctx()\n; let end = data + len\t@ parse.rs:7\n17: (0f) r3 += r2\n\
                   math between pkt pointer and register with unbounded min value is not allowed\n\n\
                   processed 95 insns (limit 1000000) max_states_per_insn 0 total_states 6\n";
        let words = last_words(log);
        assert!(words.ends_with(
            "17: (0f) r3 += r2 | math between pkt pointer and register with unbounded min value is not allowed"
        ));
        assert_eq!(printable(&words), words.replace('\t', " "));
    }

    #[test]
    fn text_of_others_has_no_characters_that_a_terminal_obeys() {
        assert_eq!(printable("a\u{1b}[31m\nb\0c\t\td \u{b7}"), "a [31m b c d \u{b7}");
        let refused = io::Error::from_raw_os_error(libc::EINVAL);
        let error = LoadError::refused("vipgate_xdp", &refused, "first\nsecond\0\nthird");
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
        assert!(error.to_string().ends_with("first | second | third"), "{error}");
    }
}
