//! What a pinned link is attached to, and how it is taken off at once: two things of pinned links that aya lacks.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `BPF_OBJ_GET` and `BPF_LINK_DETACH` of linux/bpf.h.
const OBJ_GET: libc::c_long = 7;
const LINK_DETACH: libc::c_long = 34;

/// Arguments of the first: the start of `union bpf_attr`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The interface index of the device that a pinned XDP or TCX link holds; `None`: the device is gone, or nothing is
/// pinned there.
pub(super) fn ifindex(path: &Path) -> io::Result<Option<u32>> {
    let link = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    Ok(parse(&text))
}

/// Takes a pinned link's program off its device, and removes the pin. False: nothing was pinned there.
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
    let attr = link.as_raw_fd();
    // SAFETY: the kernel reads the link's descriptor, the one argument of this command, alive during the call.
    unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw const attr, size_of_val(&attr)) };
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the kernel reads `attr` of the size given, and the C string it points to, both alive during the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw const attr, size_of::<ObjGet>()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn parse(fdinfo: &str) -> Option<u32> {
    let index = fdinfo.lines().find_map(|line| line.strip_prefix("ifindex:"))?.trim().parse().ok()?;
    (index != 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_read_from_the_kernels_description() {
        let text = "pos:\t0\nflags:\t02000002\nlink_type:\txdp\nlink_id:\t5\nprog_id:\t9\nifindex:\t12\n";
        assert_eq!(parse(text), Some(12));
        assert_eq!(parse("link_type:\txdp\nifindex:\t0\n"), None, "the device is gone");
        assert_eq!(parse("pos:\t0\n"), None);
    }
}
