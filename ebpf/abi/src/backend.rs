//! Where a service sends its flows: the elements of the BACKENDS map. A backend's number is its index there.

use crate::{Be16, Be32};

/// One backend of one listener. All zero: the number is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// IPv4 address; 0: this number is free.
    pub addr: Be32,
    pub port: Be16,
    /// A flow remembers the generation it was made under; once they differ the flow is over. The controller bumps it
    /// to end a backend's flows at once, and whenever the number is given to another backend.
    pub generation: u16,
    /// Number of the service (listener) it belongs to.
    pub service: u32,
    /// Flows idle for longer, in seconds, are swept. [`DOWN`]: it fails its health checks, has no place in a ring, and
    /// whatever flow it still has is over.
    pub idle_timeout: u32,
}

/// The idle timeout of a backend that is down.
pub const DOWN: u32 = 0;

impl Backend {
    #[inline(always)]
    pub const fn is_down(&self) -> bool {
        self.addr != 0 && self.idle_timeout == DOWN
    }
}

/// The way to a backend, as the last new flow found it: an element of the BACKEND_ROUTES map, which only the programs write.
/// Who stores one stores the epoch last, so that a torn one is not believed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendRoute {
    /// [`crate::config::Config::epoch`] under which it was found; 0: never.
    pub epoch: u16,
    /// Index of PORTS.
    pub port: u16,
    pub next_hop: [u8; 6],
    /// [`Backend::generation`] of the backend that it leads to.
    pub generation: u16,
    pub reserved: [u16; 2],
}

const _: () = assert!(size_of::<Backend>() == 16 && size_of::<BackendRoute>() == 16);

crate::pod!(Backend, BackendRoute);
