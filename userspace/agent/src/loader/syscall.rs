//! bpf(2), for the commands that no crate here has a safe way for.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// Gives the kernel a command with its arguments; what it answers.
///
/// # Safety
/// `attr` is laid out as the start of `union bpf_attr` for this command, and all that it points to is alive, as long as it says,
/// and may be written where the command writes it.
pub(super) unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: as the caller promises; the size is that of `attr`.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) } {
        answer if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The same for a command that makes a descriptor.
///
/// # Safety
/// As for [`bpf`], and a descriptor is what the command answers.
pub(super) unsafe fn bpf_fd<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises.
    let fd = i32::try_from(unsafe { bpf(command, attr) }?).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
