//! What aya has no call for: a classic program's link to a tracepoint, and a grace period.
//!
//! aya finds a tracepoint's number by a path that tracefs need not be mounted at; we know the number. And maps of maps
//! it makes only out of objects with types.
//!
//! All `unsafe` that these system calls need is in this file.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
const BPF_PERF_EVENT: u32 = 41;

/// `union bpf_attr` as far as we use it: include/uapi/linux/bpf.h.
fn bpf(command: libc::c_long, attributes: &[u64]) -> io::Result<i64> {
    // SAFETY: the kernel reads `attributes` only, as many bytes as are said. The addresses in them were checked by
    // the two callers below that have any.
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

/// A classic program's link; dropping it detaches the program.
#[derive(Debug)]
pub struct ClassicLink {
    // The link first: it holds on to the event.
    _link: OwnedFd,
    _event: OwnedFd,
}

/// Attaches a program to the tracepoint with this number (`events/SYSTEM/EVENT/id` in tracefs), on every CPU.
///
/// # Errors
/// What the kernel says.
pub fn attach_classic(program: BorrowedFd<'_>, tracepoint: u64) -> io::Result<ClassicLink> {
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
    Ok(ClassicLink {
        _link: owned(link)?,
        _event: event,
    })
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
