//! Words that a test and its workers share.

use std::sync::atomic::AtomicU64;

/// How many words.
pub const WORDS: usize = 512;

/// A page of words. It stays mapped to the end of the process, so that a worker can hold on to it.
///
/// # Errors
/// What the kernel says.
pub fn words() -> std::io::Result<&'static [AtomicU64; WORDS]> {
    // SAFETY: new memory, shared with the processes that are forked later. It is zeros, which are valid, aligned to a
    // page and never unmapped.
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            size_of::<[AtomicU64; WORDS]>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if memory == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(&*memory.cast())
    }
}
