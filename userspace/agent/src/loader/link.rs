//! What a pinned link is attached to, how it is taken off at once, and whether the kernel has links for TC programs: things
//! about links that aya lacks.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::syscall::{bpf, bpf_fd};

/// `BPF_OBJ_GET`, `BPF_LINK_CREATE` and `BPF_LINK_DETACH` of linux/bpf.h.
const OBJ_GET: libc::c_long = 7;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;
/// `BPF_TCX_INGRESS` of `enum bpf_attach_type`.
pub(super) const TCX_INGRESS: u32 = 46;

/// Arguments of the first: the start of `union bpf_attr`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The same of the second.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// What is pinned where a link should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Nothing,
    /// A link, with the interface index of its device, wherever that is (`link_on_device`); `None` if the device is gone.
    Link(Option<u32>),
    /// A program, which stands for its filters (`filter`).
    Program,
}

/// What is pinned at `path`.
pub(super) fn held(path: &Path) -> io::Result<Held> {
    Ok(describe(path)?.map_or(Held::Nothing, |description| parse(&description)))
}

/// The kernel's description of what is pinned at `path`, a field a line; `None` if nothing is.
pub(super) fn describe(path: &Path) -> io::Result<Option<String>> {
    let object = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd())).map(Some)
}

/// One of the fields.
pub(super) fn field<'a>(description: &'a str, name: &str) -> Option<&'a str> {
    description.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Whether the kernel has TCX links: asked with a program of that kind for a device that cannot be, a kernel that has them
/// looks for the device.
pub(super) fn tcx_works(program: BorrowedFd<'_>) -> bool {
    let prog_fd = program.as_raw_fd().cast_unsigned();
    let mut attr = LinkCreate { prog_fd, target_ifindex: u32::MAX, attach_type: TCX_INGRESS, flags: 0 };
    // SAFETY: the kernel reads `attr` of the size given, alive during the call; it makes no link for a device that is not.
    let made = unsafe { bpf(LINK_CREATE, &mut attr) };
    made.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// Takes a pinned link's program off its device, and removes the pin. `false` if nothing was pinned there.
///
/// Removing the pin alone lets the kernel take the program off some time later, and packets would still be carried
/// when who asked for an end was told of it.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        // What cannot be opened as a link cannot hold a program; the pin goes all the same.
        Err(_) => {}
        Ok(link) => detach(&link),
    }
    fs::remove_file(path).map(|()| true)
}

/// Best effort: a link whose device is gone refuses, and so do kernels before 5.9; the pin's removal does the rest.
fn detach(link: &OwnedFd) {
    let mut attr = link.as_raw_fd();
    // SAFETY: the kernel reads the link's descriptor, the one argument of this command, alive during the call.
    let _ = unsafe { bpf(LINK_DETACH, &mut attr) };
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the kernel reads `attr` of the size given, and the C string it points to, both alive during the call.
    unsafe { bpf_fd(OBJ_GET, &mut attr) }
}

fn parse(description: &str) -> Held {
    let field = |name| field(description, name);
    if field("prog_type:").is_some() && field("link_type:").is_none() {
        return Held::Program;
    }
    Held::Link(field("ifindex:").and_then(|index| index.parse().ok()).filter(|index| *index != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_read_from_the_kernels_description() {
        let text = "pos:\t0\nflags:\t02000002\nlink_type:\txdp\nlink_id:\t5\nprog_id:\t9\nifindex:\t12\n";
        assert_eq!(parse(text), Held::Link(Some(12)));
        assert_eq!(parse("link_type:\txdp\nifindex:\t0\n"), Held::Link(None), "the device is gone");
        assert_eq!(parse("pos:\t0\nprog_type:\t3\nprog_jited:\t1\n"), Held::Program);
        assert_eq!(parse("pos:\t0\n"), Held::Link(None));
    }
}
