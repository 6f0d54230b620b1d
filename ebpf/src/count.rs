//! Counters: per CPU, so without atomics. Every verdict on a packet that is not forwarded is counted here.

use vipgate_abi::counters::Reason;

use crate::{
    log,
    maps::{BACKEND_TRAFFIC, REASONS},
    packet::Packet,
};

/// Counts why a packet goes up the stack or is dropped, logs that if it is configured, and returns the verdict.
#[inline(always)]
pub fn verdict<P: Packet>(packet: &P, reason: Reason) -> i32 {
    reason_only(reason);
    log::record(packet, reason);
    if reason.is_drop() { P::DROP } else { P::PASS }
}

/// Counts a reason.
#[inline(always)]
pub fn reason_only(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// Counts forwarded packets of a backend.
#[inline(always)]
pub fn traffic(backend: u32, outward: bool, packets: u32, bytes: u32) {
    if let Some(counters) = BACKEND_TRAFFIC.get_ptr_mut(backend) {
        // SAFETY: this CPU's own element.
        unsafe {
            if outward {
                (*counters).packets_out += packets as u64;
                (*counters).bytes_out += bytes as u64;
            } else {
                (*counters).packets_in += packets as u64;
                (*counters).bytes_in += bytes as u64;
            }
        }
    }
}

/// Counts a new connection of a backend.
#[inline(always)]
pub fn connection(backend: u32) {
    if let Some(counters) = BACKEND_TRAFFIC.get_ptr_mut(backend) {
        // SAFETY: this CPU's own element.
        unsafe { (*counters).connections += 1 };
    }
}
