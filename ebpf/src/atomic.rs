//! Atomics on map memory. `core::sync::atomic` hides compare-and-swap on the BPF target, the intrinsics do not; on other
//! targets it is the reverse for stable compilers.

/// Stores `new` if the word is still `old`. Returns true if it was.
///
/// # Safety
/// `word` points to map memory, aligned to 8 bytes.
#[inline(always)]
pub unsafe fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: as the caller promises.
    unsafe { target::compare_and_swap(word, old, new) }
}

/// [`compare_and_swap`] for 32 bits.
///
/// # Safety
/// `word` points to map memory, aligned to 4 bytes.
#[inline(always)]
pub unsafe fn compare_and_swap32(word: *mut u32, old: u32, new: u32) -> bool {
    // SAFETY: as the caller promises.
    unsafe { target::compare_and_swap32(word, old, new) }
}

/// Adds to a counter that other CPUs add to as well. Returns the value before.
///
/// # Safety
/// `counter` points to map memory, aligned to 8 bytes.
#[inline(always)]
pub unsafe fn fetch_add(counter: *mut u64, value: u64) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { target::fetch_add(counter, value) }
}

/// [`fetch_add`] for 32 bits; wraps.
///
/// # Safety
/// `counter` points to map memory, aligned to 4 bytes.
#[inline(always)]
pub unsafe fn fetch_add32(counter: *mut u32, value: u32) -> u32 {
    // SAFETY: as the caller promises.
    unsafe { target::fetch_add32(counter, value) }
}

/// Adds to a 32-bit counter that other CPUs add to as well; wraps.
///
/// # Safety
/// `counter` points to map memory, aligned to 4 bytes.
#[inline(always)]
pub unsafe fn add32(counter: *mut u32, value: u32) {
    // SAFETY: as the caller promises.
    unsafe { target::add32(counter, value) };
}

#[cfg(target_arch = "bpf")]
mod target {
    use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_xadd};

    #[inline(always)]
    pub(super) unsafe fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> bool {
        // SAFETY: as the caller promises.
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, old, new).1 }
    }

    #[inline(always)]
    pub(super) unsafe fn compare_and_swap32(word: *mut u32, old: u32, new: u32) -> bool {
        // SAFETY: as the caller promises.
        unsafe { atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(word, old, new).1 }
    }

    #[inline(always)]
    pub(super) unsafe fn fetch_add(counter: *mut u64, value: u64) -> u64 {
        // SAFETY: as the caller promises.
        unsafe { atomic_xadd::<u64, u64, { SeqCst }>(counter, value) }
    }

    #[inline(always)]
    pub(super) unsafe fn fetch_add32(counter: *mut u32, value: u32) -> u32 {
        // SAFETY: as the caller promises.
        unsafe { atomic_xadd::<u32, u32, { SeqCst }>(counter, value) }
    }

    #[inline(always)]
    pub(super) unsafe fn add32(counter: *mut u32, value: u32) {
        // SAFETY: as the caller promises.
        unsafe { atomic_xadd::<u32, u32, { SeqCst }>(counter, value) };
    }
}

#[cfg(not(target_arch = "bpf"))]
mod target {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

    pub(super) unsafe fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> bool {
        // SAFETY: as the caller promises.
        unsafe { AtomicU64::from_ptr(word) }.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }

    pub(super) unsafe fn compare_and_swap32(word: *mut u32, old: u32, new: u32) -> bool {
        // SAFETY: as the caller promises.
        unsafe { AtomicU32::from_ptr(word) }.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }

    pub(super) unsafe fn fetch_add(counter: *mut u64, value: u64) -> u64 {
        // SAFETY: as the caller promises.
        unsafe { AtomicU64::from_ptr(counter) }.fetch_add(value, SeqCst)
    }

    pub(super) unsafe fn fetch_add32(counter: *mut u32, value: u32) -> u32 {
        // SAFETY: as the caller promises.
        unsafe { AtomicU32::from_ptr(counter) }.fetch_add(value, SeqCst)
    }

    pub(super) unsafe fn add32(counter: *mut u32, value: u32) {
        // SAFETY: as the caller promises.
        unsafe { AtomicU32::from_ptr(counter) }.fetch_add(value, SeqCst);
    }
}
