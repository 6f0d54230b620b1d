//! The tables. Each is a static of the pipeline, empty until a test gives it elements.
//!
//! Every lookup returns the address of an element that never moves, as in the kernel's tables. Nothing here locks: only one
//! thread at a time may use a table (see the crate's head).

use std::{borrow::Borrow, cell::UnsafeCell, mem::MaybeUninit};

use crate::{
    bindings::xdp_action::{XDP_ABORTED, XDP_REDIRECT},
    kernel,
};

const ENOENT: i32 = -2;

/// Declares a table over its elements, with the methods that all tables have.
macro_rules! table {
    (
        $(#[$attribute:meta])*
        $name:ident<$($parameter:ident),*; $(const $number:ident $(= $default:literal)?),+> of $elements:ty
    ) => {
        $(#[$attribute])*
        #[derive(Debug)]
        pub struct $name<$($parameter,)* $(const $number: usize $(= $default)?),+>(UnsafeCell<$elements>);

        // SAFETY: one thread's at a time, as the module's head demands of tests.
        unsafe impl<$($parameter,)* $(const $number: usize),+> Sync for $name<$($parameter,)* $($number),+> {}

        impl<$($parameter,)* $(const $number: usize),+> $name<$($parameter,)* $($number),+> {
            #[expect(clippy::new_without_default, reason = "as the tables that it stands for")]
            #[must_use]
            pub const fn new() -> Self {
                Self(UnsafeCell::new(<$elements>::new()))
            }

            #[expect(clippy::mut_from_ref, reason = "interior mutability is what a table is")]
            fn elements(&self) -> &mut $elements {
                // SAFETY: no other reference to the list of elements lives while a method runs; what methods give out
                // points to the elements, each an allocation of its own or never moved.
                unsafe { &mut *self.0.get() }
            }
        }
    };
}

/// Elements of an array, all bits zero at first.
type Elements<T> = Vec<UnsafeCell<MaybeUninit<T>>>;

/// Declares an array by number.
macro_rules! array {
    ($(#[$attribute:meta])* $name:ident) => {
        table! {
            $(#[$attribute])*
            $name<T; const MAX_ENTRIES, const FLAGS = 0> of Elements<T>
        }

        impl<T, const MAX_ENTRIES: usize, const FLAGS: usize> $name<T, MAX_ENTRIES, FLAGS> {
            /// Allocates so many elements, all bits zero, which is a value of every type that a table may hold.
            pub fn allocate(&self, length: usize) {
                let elements = self.elements();
                elements.clear();
                elements.resize_with(length, || UnsafeCell::new(MaybeUninit::zeroed()));
            }

            /// # Errors
            /// `ENOENT`: there is no such element.
            pub fn set(&self, index: u32, value: impl Borrow<T>, _flags: u64) -> Result<(), i32>
            where
                T: Copy,
            {
                let element = self.get_ptr_mut(index).ok_or(ENOENT)?;
                // SAFETY: an element of this table.
                unsafe { element.write(*value.borrow()) };
                Ok(())
            }

            pub fn get(&self, index: u32) -> Option<&T> {
                // SAFETY: initialised by `allocate`.
                self.get_ptr_mut(index).map(|element| unsafe { &*element })
            }

            pub fn get_ptr(&self, index: u32) -> Option<*const T> {
                self.get_ptr_mut(index).map(<*mut T>::cast_const)
            }

            pub fn get_ptr_mut(&self, index: u32) -> Option<*mut T> {
                self.elements().get(index as usize).map(|element| element.get().cast())
            }
        }
    };
}

array! {
    /// `BPF_MAP_TYPE_ARRAY`.
    Array
}

array! {
    /// `BPF_MAP_TYPE_PERCPU_ARRAY` on a machine with one CPU.
    PerCpuArray
}

table! {
    /// `BPF_MAP_TYPE_HASH`.
    HashMap<K, V; const MAX_ENTRIES, const FLAGS = 0> of Vec<(K, Box<UnsafeCell<V>>)>
}

table! {
    /// `BPF_MAP_TYPE_LRU_HASH`: in the order of their last use, the oldest first. The kernel's order is less exact.
    LruHashMap<K, V; const MAX_ENTRIES, const FLAGS = 0> of Vec<(K, Box<UnsafeCell<V>>)>
}

impl<K: PartialEq + Copy, V: Copy, const MAX_ENTRIES: usize, const FLAGS: usize> HashMap<K, V, MAX_ENTRIES, FLAGS> {
    pub fn clear(&self) {
        self.elements().clear();
    }

    pub fn get_ptr(&self, key: impl Borrow<K>) -> Option<*const V> {
        self.get_ptr_mut(key).map(<*mut V>::cast_const)
    }

    pub fn get_ptr_mut(&self, key: impl Borrow<K>) -> Option<*mut V> {
        self.elements().iter().find(|(stored, _)| stored == key.borrow()).map(|(_, value)| value.get())
    }

    /// # Errors
    /// Never; the signature is the original's.
    pub fn insert(&self, key: impl Borrow<K>, value: impl Borrow<V>, _flags: u64) -> Result<(), i32> {
        self.elements().retain(|(stored, _)| stored != key.borrow());
        self.elements().push((*key.borrow(), Box::new(UnsafeCell::new(*value.borrow()))));
        Ok(())
    }
}

impl<K: PartialEq + Copy, V: Copy, const MAX_ENTRIES: usize, const FLAGS: usize> LruHashMap<K, V, MAX_ENTRIES, FLAGS> {
    pub fn clear(&self) {
        self.elements().clear();
    }

    pub fn count(&self) -> usize {
        self.elements().len()
    }

    /// The value of a key, without making it the most recently used.
    pub fn peek(&self, key: impl Borrow<K>) -> Option<V>
    where
        V: Copy,
    {
        let found = self.elements().iter().find(|(stored, _)| stored == key.borrow());
        // SAFETY: no element is written while it is read: tests take turns.
        found.map(|(_, value)| unsafe { *value.get() })
    }

    pub fn get_ptr(&self, key: impl Borrow<K>) -> Option<*const V> {
        let elements = self.elements();
        let index = elements.iter().position(|(stored, _)| stored == key.borrow())?;
        let found = elements.remove(index);
        let value = found.1.get();
        elements.push(found);
        Some(value)
    }

    /// # Errors
    /// Never; the signature is the original's.
    pub fn insert(&self, key: impl Borrow<K>, value: impl Borrow<V>, _flags: u64) -> Result<(), i32> {
        let elements = self.elements();
        elements.retain(|(stored, _)| stored != key.borrow());
        if elements.len() == MAX_ENTRIES {
            elements.remove(0);
        }
        elements.push((*key.borrow(), Box::new(UnsafeCell::new(*value.borrow()))));
        Ok(())
    }
}

pub mod lpm_trie {
    //! Keys of [`super::LpmTrie`].

    /// Data of which the first `prefix_len` bits count.
    #[repr(C, packed)]
    #[derive(Clone, Copy, Debug)]
    pub struct Key<K> {
        pub prefix_len: u32,
        pub data: K,
    }

    impl<K> Key<K> {
        pub const fn new(prefix_len: u32, data: K) -> Self {
            Self { prefix_len, data }
        }
    }
}

table! {
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie<K, V; const MAX_ENTRIES, const FLAGS = 0> of Vec<(lpm_trie::Key<K>, Box<UnsafeCell<V>>)>
}

impl<K: Copy, V: Copy, const MAX_ENTRIES: usize, const FLAGS: usize> LpmTrie<K, V, MAX_ENTRIES, FLAGS> {
    pub fn clear(&self) {
        self.elements().clear();
    }

    /// The value of the longest prefix that the key's bits start with.
    pub fn get(&self, key: &lpm_trie::Key<K>) -> Option<&V> {
        let matching = |(stored, _): &&(lpm_trie::Key<K>, _)| {
            let length = stored.prefix_len;
            length <= key.prefix_len && common_bits(stored.data, key.data) >= length
        };
        let found = self.elements().iter().filter(matching).max_by_key(|(stored, _)| stored.prefix_len)?;
        // SAFETY: the value is written by `insert` only, which tests do between packets.
        Some(unsafe { &*found.1.get() })
    }

    /// # Errors
    /// Never; the signature is the original's.
    pub fn insert(&self, key: &lpm_trie::Key<K>, value: impl Borrow<V>, _flags: u64) -> Result<(), i32> {
        let _ = self.remove(key);
        self.elements().push((*key, Box::new(UnsafeCell::new(*value.borrow()))));
        Ok(())
    }

    /// # Errors
    /// `ENOENT`: there is no such prefix.
    pub fn remove(&self, key: &lpm_trie::Key<K>) -> Result<(), i32> {
        let length = key.prefix_len;
        let before = self.elements().len();
        self.elements().retain(|(stored, _)| {
            !(stored.prefix_len == key.prefix_len && common_bits(stored.data, key.data) >= length)
        });
        if self.elements().len() < before { Ok(()) } else { Err(ENOENT) }
    }
}

/// Length in bits of the longest common prefix of two keys.
fn common_bits<K: Copy>(one: K, other: K) -> u32 {
    // SAFETY: keys of tries are compared as bytes, so they have no padding.
    let bytes =
        |key: &K| unsafe { std::slice::from_raw_parts((&raw const *key).cast::<u8>(), size_of::<K>()) }.to_vec();
    let differences = bytes(&one).into_iter().zip(bytes(&other)).map(|(one, other)| one ^ other);
    let mut bits = 0;
    for difference in differences {
        bits += difference.leading_zeros();
        if difference != 0 {
            break;
        }
    }
    bits
}

table! {
    /// `BPF_MAP_TYPE_DEVMAP`: interface indexes, 0 where there is no device.
    DevMap<; const MAX_ENTRIES, const FLAGS = 0> of Vec<u32>
}

impl<const MAX_ENTRIES: usize, const FLAGS: usize> DevMap<MAX_ENTRIES, FLAGS> {
    /// Replaces all devices.
    pub fn fill(&self, ifindexes: &[u32]) {
        *self.elements() = ifindexes.to_vec();
    }

    /// `bpf_redirect_map`: the verdict; `Err` is that of the lower flag bits.
    ///
    /// # Errors
    /// There is no such device.
    pub fn redirect(&self, index: u32, flags: u64) -> Result<u32, u32> {
        if flags & !3 != 0 {
            return Err(XDP_ABORTED);
        }
        match self.elements().get(index as usize) {
            None | Some(0) => Err(flags as u32),
            Some(&ifindex) => {
                kernel::redirect(ifindex);
                Ok(XDP_REDIRECT)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{lpm_trie::Key, *};

    #[test]
    fn a_trie_gives_the_longest_prefix() {
        let trie: LpmTrie<[u8; 4], u32, 8> = LpmTrie::new();
        for (prefix_len, data, value) in [(8, [10, 0, 0, 0], 1), (31, [10, 0, 0, 2], 2), (32, [10, 0, 0, 2], 3)] {
            assert_eq!(trie.insert(&Key::new(prefix_len, data), value, 0), Ok(()));
        }
        let get = |data| trie.get(&Key::new(32, data)).copied();
        assert_eq!(
            [[10, 0, 0, 2], [10, 0, 0, 3], [10, 9, 9, 9], [11, 0, 0, 2]].map(get),
            [Some(3), Some(2), Some(1), None]
        );
        assert_eq!(trie.remove(&Key::new(31, [10, 0, 0, 3])), Ok(()));
        assert_eq!(trie.remove(&Key::new(31, [10, 0, 0, 3])), Err(ENOENT));
        assert_eq!(get([10, 0, 0, 3]), Some(1));
    }

    #[test]
    fn an_lru_forgets_what_was_used_longest_ago() {
        let map: LruHashMap<u32, u32, 2> = LruHashMap::new();
        for key in [1, 2] {
            assert_eq!(map.insert(key, key, 0), Ok(()));
        }
        assert!(map.get_ptr(1).is_some());
        assert_eq!(map.insert(3, 3, 0), Ok(()));
        assert_eq!([1, 2, 3].map(|key: u32| map.get_ptr(key).is_some()), [true, false, true]);
    }
}
