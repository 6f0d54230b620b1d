//! What virtio_net does not report as an error.

use std::fs;

/// Feature bits (Virtual I/O Device 1.2, section 5.1.3): receive buffers that may be merged; packets larger than the MTU that the
/// hypervisor may send.
const MERGEABLE: usize = 15;
const LARGE: [usize; 6] = [7, 8, 9, 10, 54, 55];
/// What one of its smaller buffers takes, in bytes of IP packet.
const SMALL: u32 = 1500;

/// True for a virtio device whose driver takes an XDP program and never runs it: without mergeable buffers it receives what is
/// larger than the MTU into chains of pages, past XDP, and goes on doing so after it has asked for no more of it.
pub(super) fn ignores_xdp(device: &str) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/sys/class/net/{device}/{name}"));
    let mtu = read("mtu").ok().and_then(|mtu| mtu.trim().parse().ok()).unwrap_or(SMALL);
    // Other drivers' devices have no such file.
    read("device/features").is_ok_and(|features| are_chained(features.trim(), mtu))
}

/// `features` has a digit for each bit, the first one first.
fn are_chained(features: &str, mtu: u32) -> bool {
    let has = |bit: usize| features.as_bytes().get(bit) == Some(&b'1');
    !has(MERGEABLE) && (mtu > SMALL || LARGE.into_iter().any(has))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(bits: &[usize]) -> String {
        (0..64).map(|bit| if bits.contains(&bit) { '1' } else { '0' }).collect()
    }

    #[test]
    fn only_what_has_no_mergeable_buffers_and_gets_large_packets_ignores_xdp() {
        assert!(are_chained(&features(&[7, 8]), 1500));
        assert!(are_chained(&features(&[]), 9000));
        assert!(!are_chained(&features(&[7, 8, MERGEABLE]), 9000));
        assert!(!are_chained(&features(&[]), 1500));
        assert!(!ignores_xdp("lo"));
    }
}
