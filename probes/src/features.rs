//! What the code generator has to know of the kernel and the machine, found out by whoever may look.

use lkst_rules::schema::Path;

/// Properties of the kernel and the machine. Probed, never derived from a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// One more than the highest CPU number that can appear.
    pub cpus: u32,
    /// `gotol` is there (Linux 6.6).
    pub long_jumps: bool,
    /// From the current task to `thread_info.status`, whose bit 1 (`TS_COMPAT`, arch/x86/include/asm/thread_info.h)
    /// marks a 32-bit system call: its numbers mean something else, and ftrace ignores them too. `None` where the
    /// architecture has no such mark.
    pub compat_status: Option<Path>,
}
