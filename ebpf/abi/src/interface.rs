//! The router's devices as the packet path sees them: small numbers instead of interface indexes.
//!
//! Number 0 is no device: a flow with interface 0 is rewritten and handed to the stack, which routes it.

/// A device that carries a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Interface index; 0 if this number is free.
    pub ifindex: u32,
    /// Largest IP packet that the device sends, in bytes.
    pub mtu: u32,
    /// The device's own MAC address: the source of what it sends.
    pub mac: [u8; 6],
    /// 1 if the device takes socket buffers only, because of its driver or its kind (such as a VLAN device): the TC stage
    /// sends its packets. 0 if XDP may redirect frames to it.
    pub sockets_only: u16,
    /// 1 if the device has strict reverse-path filtering. The programs do it: in the kernel it is loose while they run.
    pub strict: u32,
    pub reserved: u32,
}

impl Interface {
    /// True if XDP may redirect frames to it.
    #[inline(always)]
    pub const fn takes_frames(&self) -> bool {
        self.sockets_only == 0
    }

    /// True if packets may only come by it if the route to their source is by it.
    #[inline(always)]
    pub const fn is_strict(&self) -> bool {
        self.strict != 0
    }
}

/// Number that stands for the network stack.
pub const STACK: u16 = 0;

const _: () = assert!(size_of::<Interface>() == 24);

crate::pod!(Interface);
