//! System calls by number and by the names that tracefs gives them.
//!
//! In: `sys_enter_newfstat`. Out: 5 on x86-64, with the name `fstat` that manual pages and users know.

use std::str::FromStr as _;

use lkst_rules::schema::Origin;
use syscalls::Sysno;

/// The system of these events in tracefs.
pub const SYSTEM: &str = "syscalls";

/// Events that are named after a kernel function, which is not the system call's name: (function, names of the call on
/// one architecture or another).
const NAMED_AFTER_FUNCTIONS: &[(&str, &[&str])] = &[
    ("newfstat", &["fstat"]),
    ("newfstatat", &["newfstatat", "fstatat"]),
    ("newlstat", &["lstat"]),
    ("newstat", &["stat"]),
    ("newuname", &["uname"]),
    ("sendfile64", &["sendfile", "sendfile64"]),
    ("umount", &["umount2"]),
    ("sysctl", &["_sysctl"]),
    ("fstatat64", &["fstatat"]),
    ("fadvise64_64", &["fadvise64"]),
    ("sync_file_range2", &["sync_file_range2", "sync_file_range"]),
];

/// Which system call an event of [`SYSTEM`] is about. `None` for the others, and for calls that this architecture does
/// not have.
#[must_use]
pub fn origin(event: &str) -> Option<Origin> {
    if let Some(function) = event.strip_prefix("sys_enter_") {
        return number_of_function(function).map(Origin::SyscallEnter);
    }
    number_of_function(event.strip_prefix("sys_exit_")?).map(Origin::SyscallExit)
}

fn number_of_function(function: &str) -> Option<u32> {
    let names = NAMED_AFTER_FUNCTIONS.iter().find(|(name, _)| *name == function);
    // Functions first: x86-64 has a `umount` event for the call `umount2`, and 32-bit ones a call `umount` beside it.
    names
        .and_then(|(_, names)| names.iter().find_map(|name| number(name)))
        .or_else(|| number(function))
}

/// The number of a system call by its name.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    let number = Sysno::from_str(name).ok()?.id();
    u32::try_from(number).ok()
}

/// The names of all system calls of this architecture, in the order of their numbers.
#[must_use]
pub fn names() -> Vec<&'static str> {
    Sysno::iter().map(|call| call.name()).collect()
}
