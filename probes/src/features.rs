//! What the code generator has to know of the kernel and the machine, found out by whoever may look.

use lkst_rules::schema::Path;
use serde::{Deserialize, Serialize};

use crate::lower::NamesPaths;

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
    /// What things cost here.
    pub costs: Costs,
    /// Where tasks have their names; `None` where the kernel does not say.
    pub names: Option<NamesPaths>,
}

/// What things cost on this host, from which each program's constants are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// A hit that no set wants: dispatcher, one pack's section, return. In nanoseconds.
    pub hit_ns: u32,
    /// The same at the entry or the exit of a system call: the kernel takes a longer way there once somebody looks.
    pub syscall_hit_ns: u32,
    /// A rule whose condition holds and whose limit does not let it fire, in nanoseconds.
    pub judge_ns: u32,
    /// A record of a few fields, with its clock, in nanoseconds.
    pub record_ns: u32,
    /// A call of a helper that reads a text, in nanoseconds.
    pub helper_ns: u32,
    /// An instruction of a condition, in picoseconds.
    pub instruction_ps: u32,
}

impl Default for Costs {
    /// As measured on one machine (Linux 6.18, x86-64, a VM): for where nothing can be measured.
    fn default() -> Costs {
        Costs {
            hit_ns: 30,
            syscall_hit_ns: 60,
            judge_ns: 60,
            record_ns: 60,
            helper_ns: 15,
            instruction_ps: 400,
        }
    }
}
