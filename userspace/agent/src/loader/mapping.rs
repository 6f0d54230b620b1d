//! Arrays of the kernel mapped into memory: reading and writing their elements costs no system call.
//!
//! Programs on other CPUs read and write the same memory at any time, so all access goes through atomics, a word of
//! 8 bytes at a time; what a group of words means together is told by the ABI's race rules.

use std::{
    io,
    marker::PhantomData,
    mem::{MaybeUninit, offset_of},
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::{Pod, maps::MapData};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vipgate_abi::flow::{Flow, MARK_OFFSET};

use super::error::TableError;

const WORD: usize = size_of::<u64>();

/// A `BPF_F_MMAPABLE` array map of `T`.
#[derive(Debug)]
pub struct Mapping<T> {
    start: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
    count: u32,
    element: PhantomData<T>,
}

// SAFETY: the mapping is process-wide and lives as long as the value; all access is atomic.
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

impl<T: Pod> Mapping<T> {
    /// Words from one element to the next: the kernel rounds an element up to 8 bytes.
    const STRIDE: usize = size_of::<T>().div_ceil(WORD);

    /// Maps a whole array, for reading and writing.
    pub fn new(name: &'static str, map: &MapData) -> Result<Self, TableError> {
        Self::with(name, map, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    fn with(name: &'static str, map: &MapData, access: ProtFlags) -> Result<Self, TableError> {
        let info = map.info().map_err(|error| TableError::new(name, "ask about", error))?;
        let failed = |error: io::Error| TableError::Mapping { map: name, source: error };
        if info.value_size() as usize != size_of::<T>() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "elements of another size")));
        }
        let count = info.max_entries();
        let bytes = NonZeroUsize::new(count as usize * Self::STRIDE * WORD)
            .ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "no elements")))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists; the length is
        // within the map's, as the kernel checks.
        let start = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, map.fd().as_fd(), 0) }
            .map_err(|error| failed(error.into()))?;
        Ok(Self { start: start.cast(), bytes, count, element: PhantomData })
    }

    /// Memory of the same form that belongs to no map.
    #[cfg(test)]
    pub(crate) fn anonymous(count: u32) -> Self {
        let bytes = NonZeroUsize::new(count as usize * Self::STRIDE * WORD).expect("elements");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let start = unsafe { nix::sys::mman::mmap_anonymous(None, bytes, access, MapFlags::MAP_SHARED) };
        Self { start: start.expect("memory").cast(), bytes, count, element: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The words of one element.
    pub fn words(&self, index: u32) -> Option<&[AtomicU64]> {
        if index >= self.count {
            return None;
        }
        // SAFETY: the element lies within the mapping, which lives as long as `self`; pages are aligned to words.
        Some(unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().add(index as usize * Self::STRIDE), Self::STRIDE)
        })
    }

    /// A copy of one element. Whole words only: fields of different words may be of different moments.
    pub fn read(&self, index: u32) -> Option<T> {
        let words = self.words(index)?;
        let mut value = MaybeUninit::<T>::uninit();
        let bytes = value.as_mut_ptr().cast::<u8>();
        for (at, word) in words.iter().enumerate() {
            let word = word.load(Ordering::Acquire).to_ne_bytes();
            let len = WORD.min(size_of::<T>() - at * WORD);
            // SAFETY: writes within `value`, from the first byte to the last over all rounds.
            unsafe { std::ptr::copy_nonoverlapping(word.as_ptr(), bytes.add(at * WORD), len) };
        }
        // SAFETY: every byte was written, and any bit pattern is a `T` (Pod).
        Some(unsafe { value.assume_init() })
    }

    /// Writes one element, its first word last: who reads the new first word reads the new rest. Nothing beyond the end.
    pub fn write(&self, index: u32, value: T) {
        let Some(words) = self.words(index) else {
            return;
        };
        // SAFETY: `value` is plain old data without padding (Pod), so all its bytes are there to read.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()) };
        for (word, chunk) in words.iter().zip(bytes.chunks(WORD)).rev() {
            let mut whole = [0; WORD];
            whole[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(whole), Ordering::Release);
        }
    }
}

impl Mapping<u32> {
    /// One element of an array of u32.
    pub fn cell(&self, index: u32) -> Option<&AtomicU32> {
        let word = self.words(index)?.first()?;
        // SAFETY: a u32 element is the first 4 bytes of its word, aligned, within the mapping; atomics of both sizes
        // on the same memory are what the programs do, too.
        Some(unsafe { &*std::ptr::from_ref(word).cast::<AtomicU32>() })
    }
}

/// A whole array mapped for reading only: what it gives cannot be written through.
#[derive(Debug)]
pub(super) struct View<T>(Mapping<T>);

impl<T: Pod> View<T> {
    /// Maps a whole array.
    pub(super) fn new(name: &'static str, map: &MapData) -> Result<Self, TableError> {
        Mapping::with(name, map, ProtFlags::PROT_READ).map(Self)
    }

    /// Number of elements.
    pub(super) fn len(&self) -> u32 {
        self.0.len()
    }

    /// A copy of one element, see [`Mapping::read`].
    pub(super) fn read(&self, index: u32) -> Option<T> {
        self.0.read(index)
    }

    /// One word of an element.
    pub(super) fn word(&self, index: u32, at: usize) -> Option<u64> {
        Some(self.0.words(index)?.get(at)?.load(Ordering::Acquire))
    }
}

impl Mapping<Flow> {
    /// The mark of one flow.
    pub fn mark(&self, index: u32) -> Option<&AtomicU32> {
        let words = self.words(index)?;
        // SAFETY: within the element, aligned; atomics of both sizes on the same memory are what the programs do, too.
        Some(unsafe { &*words.as_ptr().cast::<AtomicU32>().add(MARK_OFFSET / size_of::<u32>()) })
    }

    /// The counters of one flow: packets, and the bits of its [`vipgate_abi::flow::Volume`].
    pub(super) fn counters(&self, index: u32) -> Option<(&AtomicU32, &AtomicU64)> {
        let words = self.words(index)?;
        // SAFETY: as in `mark`.
        let packets = unsafe { &*words.as_ptr().cast::<AtomicU32>().add(offset_of!(Flow, packets) / size_of::<u32>()) };
        Some((packets, words.get(offset_of!(Flow, volume) / WORD)?))
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length; no reference outlives `self`. It cannot fail for such a range.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use vipgate_abi::{
        backend::Backend,
        flow::{Flow, Target, Volume},
    };

    use super::*;

    #[test]
    fn elements_are_read_as_they_were_written_each_in_its_place() {
        let mapping = Mapping::<Backend>::anonymous(3);
        let backend =
            Backend { addr: 0x0a00_0001, port: 80, generation: 7, service: 9, idle_timeout: 60, ..Backend::default() };
        mapping.write(1, backend);
        mapping.write(3, backend);
        assert_eq!(
            (0..4).map(|at| mapping.read(at)).collect::<Vec<_>>(),
            [Some(Backend::default()), Some(backend), Some(Backend::default()), None]
        );
    }

    #[test]
    fn elements_of_four_bytes_lie_eight_apart() {
        let mapping = Mapping::<u32>::anonymous(4);
        mapping.write(2, 5);
        assert_eq!(mapping.words(2).map(<[_]>::len), Some(1));
        assert_eq!(mapping.cell(2).map(|cell| cell.fetch_add(1, Ordering::Relaxed)), Some(5));
        assert_eq!((mapping.read(1), mapping.read(2), mapping.read(3)), (Some(0), Some(6), Some(0)));
        assert!(mapping.cell(4).is_none());
    }

    #[test]
    fn a_flow_is_one_cache_line() {
        let mapping = Mapping::<Flow>::anonymous(2);
        let flow = Flow { target: Target::of(3), peer: 9, volume: Volume(u64::MAX), ..Flow::default() };
        mapping.write(1, flow);
        assert_eq!(mapping.read(1), Some(flow));
        assert_eq!(mapping.words(1).map(<[_]>::len), Some(8));
    }
}
