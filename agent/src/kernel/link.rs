//! Bare calls of `bpf`: links to tracepoints, names in a bpffs, slots of program arrays, and a grace period.
//!
//! aya finds a tracepoint's number by a path that tracefs need not be mounted at; we know the number. Maps of maps it
//! makes only out of objects with types. And it keeps links and arrays of programs open, so that removing their names
//! would end nothing: see `pins.rs`.
//!
//! All `unsafe` that these system calls need is in this file.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
const BPF_PERF_EVENT: u32 = 41;

/// `union bpf_attr` as far as we use it: include/uapi/linux/bpf.h.
fn bpf(command: libc::c_long, attributes: &[u64]) -> io::Result<i64> {
    // SAFETY: the kernel reads `attributes` only, as many bytes as are said. The addresses in them are of values and
    // texts that the callers below borrow until this returns; the kernel reads those, and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes) as libc::c_uint,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn halves(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Attaches a classic program to the tracepoint with this number (`events/SYSTEM/EVENT/id` in tracefs), on every CPU.
/// Returns the link, which holds on to all that it needs.
///
/// # Errors
/// What the kernel says.
pub fn attach_classic(program: BorrowedFd<'_>, tracepoint: u64) -> io::Result<OwnedFd> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    // struct perf_event_attr, PERF_ATTR_SIZE_VER0: type, size, config, sample_period, and the rest zero.
    let attributes: [u64; 8] = [halves(PERF_TYPE_TRACEPOINT, 64), tracepoint, 1, 0, 0, 0, 0, 0];
    // SAFETY: the attributes are 64 bytes as their size says, and hold no address. Process -1 on CPU 0 counts hits of
    // that CPU; the program that is linked to it runs for hits on all of them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.as_ptr(),
            -1,
            0,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let event = owned(fd)?;
    let target = event.as_raw_fd().cast_unsigned();
    let link = bpf(
        BPF_LINK_CREATE,
        &[halves(number(program), target), halves(BPF_PERF_EVENT, 0), 0],
    )?;
    // The link keeps the event: kernel/bpf/syscall.c, `bpf_perf_link_attach`.
    owned(link)
}

/// Attaches a typed program to the tracepoint that it was loaded for. Returns the link.
///
/// # Errors
/// What the kernel says.
pub fn attach_typed(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // raw_tracepoint: name, prog_fd. Without a name: what the program was loaded for.
    bpf(BPF_RAW_TRACEPOINT_OPEN, &[0, halves(number(program), 0)]).and_then(owned)
}

/// Gives a map, program or link a name in a bpffs: it then lives for as long as that has.
///
/// # Errors
/// What the kernel says.
pub fn pin(object: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    // pathname, bpf_fd, file_flags
    bpf(BPF_OBJ_PIN, &[path.as_ptr() as u64, halves(number(object), 0)]).map(drop)
}

/// Opens a map, program or link by its name.
///
/// # Errors
/// What the kernel says.
pub fn open_pinned(path: &CStr) -> io::Result<OwnedFd> {
    bpf(BPF_OBJ_GET, &[path.as_ptr() as u64, 0]).and_then(owned)
}

/// Puts a program into an array of programs. What was there goes.
///
/// # Errors
/// What the kernel says.
pub fn set_slot(slots: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = number(program);
    let addresses = [(&raw const index) as u64, (&raw const value) as u64];
    let map = u64::from(number(slots));
    bpf(BPF_MAP_UPDATE_ELEM, &[map, addresses[0], addresses[1], 0]).map(drop)
}

/// Takes a program out of an array of programs. Waits for RCU: 8 to 16 ms.
///
/// # Errors
/// What the kernel says; that there is none is no error.
pub fn clear_slot(slots: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let key = (&raw const index) as u64;
    match bpf(BPF_MAP_DELETE_ELEM, &[u64::from(number(slots)), key]) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits for programs: an update of an array of maps returns after every program that ran when it began has ended
/// (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`).
#[derive(Debug)]
pub struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    /// Makes the two maps that it needs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Grace> {
        let array = |kind: u32, inner: u32| {
            // map_type, key_size, value_size, max_entries, map_flags, inner_map_fd
            bpf(BPF_MAP_CREATE, &[halves(kind, 4), halves(4, 1), halves(0, inner)]).and_then(owned)
        };
        let inner = array(BPF_MAP_TYPE_ARRAY, 0)?;
        let outer = array(BPF_MAP_TYPE_ARRAY_OF_MAPS, inner.as_raw_fd().cast_unsigned())?;
        Ok(Grace { outer, inner })
    }

    /// Returns once every program that is running now has ended: 8 to 16 ms.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&self) -> io::Result<()> {
        let key = 0_u32;
        let value = self.inner.as_raw_fd();
        let addresses = [(&raw const key) as u64, (&raw const value) as u64];
        let map = u64::from(self.outer.as_raw_fd().cast_unsigned());
        bpf(BPF_MAP_UPDATE_ELEM, &[map, addresses[0], addresses[1], 0]).map(drop)
    }
}
