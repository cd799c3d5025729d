//! Map memory shared with the kernel.
//!
//! In: a `BPF_F_MMAPABLE` array map. Out: a [`Mapping`] of its values, read and written word by word, since programs
//! on other CPUs change it at any time.
//!
//! All `unsafe` that shared memory needs is in this file.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use std::os::fd::AsRawFd;

/// The values of an array map.
#[derive(Debug)]
pub struct Mapping {
    memory: MmapRaw,
    bytes: usize,
}

impl Mapping {
    /// Maps `bytes` of the map.
    ///
    /// # Errors
    /// What the kernel says to `mmap`.
    pub fn new(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Mapping> {
        // The kernel maps whole pages.
        let memory = MmapOptions::new()
            .len(bytes.next_multiple_of(4096))
            .map_raw(map.as_raw_fd())?;
        Ok(Mapping { memory, bytes })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The `u64` at this byte.
    ///
    /// # Panics
    /// Where it does not lie inside, aligned: offsets come from our own layout, never from input.
    #[must_use]
    pub fn u64(&self, at: usize) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.bytes,
            "u64 at {at} of {}",
            self.bytes
        );
        // SAFETY: inside the mapping and aligned, as just asserted (it begins at a page). The mapping lives as long
        // as `self`. Kernel programs change the word only by single stores and atomic operations.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().add(at).cast()) }
    }

    /// The `u32` at this byte.
    ///
    /// # Panics
    /// As [`Mapping::u64`].
    #[must_use]
    pub fn u32(&self, at: usize) -> &AtomicU32 {
        assert!(
            at.is_multiple_of(4) && at + 4 <= self.bytes,
            "u32 at {at} of {}",
            self.bytes
        );
        // SAFETY: as for `u64`.
        unsafe { AtomicU32::from_ptr(self.memory.as_mut_ptr().add(at).cast()) }
    }

    /// Writes bytes where no program writes: page heads and first contents.
    ///
    /// # Panics
    /// Where they do not lie inside, or are not whole aligned words.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(bytes.len().is_multiple_of(8), "whole words");
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            self.u64(at + 8 * index)
                .store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
    }

    /// Appends a copy of `bytes` from `at`, as fast as memory can be copied: for what nobody writes to any more.
    ///
    /// # Panics
    /// Where they do not lie inside.
    pub fn copy_quiet(&self, at: usize, bytes: usize, to: &mut Vec<u8>) {
        assert!(
            at <= self.bytes && bytes <= self.bytes - at,
            "{bytes} bytes at {at} of {}",
            self.bytes
        );
        to.reserve(bytes);
        // SAFETY: inside the mapping, as just asserted, which lives as long as `self`; and inside what `to` has reserved,
        // whose length then is that of what was written. Any byte is a byte, so what a program stored meanwhile, were
        // the caller mistaken, could only be wrong bytes.
        unsafe {
            let from = self.memory.as_mut_ptr().add(at).cast_const();
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().add(to.len()), bytes);
            to.set_len(to.len() + bytes);
        }
    }

    /// Appends a copy of `bytes` from `at`, a word at a time: each word is one that some writer stored whole.
    ///
    /// # Panics
    /// Where they do not lie inside, or are not whole aligned words.
    pub fn copy_to(&self, at: usize, bytes: usize, to: &mut Vec<u8>) {
        assert!(bytes.is_multiple_of(8), "whole words");
        to.reserve(bytes);
        for word in 0..bytes / 8 {
            to.extend_from_slice(&self.u64(at + 8 * word).load(Ordering::Relaxed).to_le_bytes());
        }
    }
}
