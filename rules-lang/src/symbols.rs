//! The names of the kernel's user API: `O_DIRECT`, `EIO`, `SIGSEGV`. Shipped, since no running kernel lists them.
//!
//! In: an architecture and a name. Out: the value, or nothing. The steps of a look-up (user API, then errno, then
//! signals) are the caller's, see `resolve/names.rs`; here each step is one function.
//!
//! The tables hold the values of x86-64, which for all names but those of `AARCH64` are those of every 64-bit
//! architecture that uses `asm-generic`.
//!
//! INVARIANT: every table is sorted by name and no name is in two of them (a test proves both).

mod bpf;
mod errno;
mod files;
mod memory;
mod network;
mod process;
mod signal;

type Table = &'static [(&'static str, i64)];

static USER_API: [Table; 5] = [
    files::FILES,
    memory::MEMORY,
    network::NETWORK,
    process::PROCESS,
    bpf::BPF,
];

/// What differs on aarch64 (arch/arm64/include/uapi/asm): the value there, or `None` where it lacks the name.
static AARCH64: &[(&str, Option<i64>)] = &[
    ("ARCH_SET_FS", None),
    ("MAP_32BIT", None),
    ("MAP_ABOVE4G", None),
    ("O_DIRECT", Some(0o200_000)),
    ("O_DIRECTORY", Some(0o40_000)),
    ("O_LARGEFILE", Some(0o400_000)),
    ("O_NOFOLLOW", Some(0o100_000)),
    ("O_TMPFILE", Some(0o20_040_000)),
    ("PTRACE_ARCH_PRCTL", None),
    ("PTRACE_GETFPREGS", None),
    ("PTRACE_GETFPXREGS", None),
    ("PTRACE_GETREGS", None),
    ("PTRACE_GET_THREAD_AREA", None),
    ("PTRACE_OLDSETOPTIONS", None),
    ("PTRACE_SETFPREGS", None),
    ("PTRACE_SETFPXREGS", None),
    ("PTRACE_SETREGS", None),
    ("PTRACE_SET_THREAD_AREA", None),
    ("PTRACE_SINGLEBLOCK", None),
];

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    let at = table.binary_search_by_key(&name, |(known, _)| known).ok()?;
    table.get(at).map(|(_, value)| *value)
}

/// The user API's value of `name` on `architecture` (as in `std::env::consts::ARCH`), errors and signals apart.
#[must_use]
pub fn lookup(architecture: &str, name: &str) -> Option<i64> {
    if architecture == "aarch64"
        && let Some(there) = find(AARCH64, name)
    {
        return there;
    }
    USER_API.iter().find_map(|table| find(table, name))
}

/// The positive error number: `EIO` is 5.
#[must_use]
pub fn errno(name: &str) -> Option<i64> {
    find(errno::ERRNO, name)
}

/// The signal's number: `SIGSEGV` is 11.
#[must_use]
pub fn signal(name: &str) -> Option<i64> {
    find(signal::SIGNAL, name)
}

/// Every name of the tables, for suggestions.
pub fn names() -> impl Iterator<Item = &'static str> {
    USER_API
        .into_iter()
        .chain([errno::ERRNO, signal::SIGNAL])
        .flatten()
        .map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tables_are_sorted_and_disjoint() {
        for table in USER_API.iter().chain([&errno::ERRNO, &signal::SIGNAL]) {
            assert!(table.windows(2).all(|w| w[0].0 < w[1].0));
        }
        assert!(AARCH64.windows(2).all(|w| w[0].0 < w[1].0));
        let mut seen = HashSet::new();
        assert!(names().all(|name| seen.insert(name)));
        assert!(AARCH64.iter().all(|(name, _)| seen.contains(name)));
    }

    #[test]
    fn values_are_the_kernels() {
        assert_eq!(lookup("x86_64", "O_DIRECT"), Some(0o40_000));
        assert_eq!(lookup("aarch64", "O_DIRECT"), Some(0o200_000));
        assert_eq!(lookup("aarch64", "O_CLOEXEC"), lookup("x86_64", "O_CLOEXEC"));
        assert_eq!(lookup("aarch64", "MAP_32BIT"), None);
        assert_eq!(lookup("x86_64", "AT_FDCWD"), Some(-100));
        assert_eq!(lookup("x86_64", "AF_INET6"), Some(10));
        assert_eq!(lookup("x86_64", "PR_SET_NAME"), Some(15));
        assert_eq!(lookup("x86_64", "EIO"), None);
        assert_eq!(errno("EIO"), Some(5));
        assert_eq!(signal("SIGSEGV"), Some(11));
    }
}
