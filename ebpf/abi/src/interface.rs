//! The router's devices as the packet path sees them: small numbers instead of interface indexes.
//!
//! Port 0 is no device: a flow whose port is 0 is rewritten and handed to the stack, which routes it.

/// A device that carries a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Interface index; 0: this number is free.
    pub ifindex: u32,
    /// Largest IP packet that the device sends, in bytes.
    pub mtu: u32,
    /// The device's own MAC address: the source of what it sends.
    pub mac: [u8; 6],
    /// 1: its driver, or its place in the kernel (a VLAN device, say), takes socket buffers only. What XDP would send by it
    /// the TC stage does. 0: XDP may redirect frames to it.
    pub sockets_only: u16,
    /// 1: strict reverse-path filtering was set for it: the programs do it, since the kernel has it loose while they run.
    pub strict: u32,
    pub reserved: u32,
}

impl Interface {
    /// XDP may redirect frames to it.
    #[inline(always)]
    pub const fn takes_frames(&self) -> bool {
        self.sockets_only == 0
    }

    /// What comes in by it must come from where the kernel sends by it.
    #[inline(always)]
    pub const fn is_strict(&self) -> bool {
        self.strict != 0
    }
}

/// Port number of the network stack.
pub const STACK: u16 = 0;

const _: () = assert!(size_of::<Interface>() == 24);

crate::pod!(Interface);
