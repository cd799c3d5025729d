//! A ring of io_uring, used by hand: include/uapi/linux/io_uring.h.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{checked, step};

const ENTRIES: u32 = 8;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const SQE_DRAIN: u8 = 1 << 1;
const SQE_LINK: u8 = 1 << 2;
const SQE_ASYNC: u8 = 1 << 4;
const ENTER_GETEVENTS: u32 = 1;
const OP_NOP: u8 = 0;
const OP_POLL_ADD: u8 = 6;
const OP_TIMEOUT: u8 = 11;
const OP_READ: u8 = 22;
const OP_WRITE: u8 = 23;
const OP_NOBODY_KNOWS: u8 = 250;

pub(crate) fn all(folder: &Path) {
    step("io_uring", || use_ring(folder, 0));
    step("io_uring with deferred work", || {
        use_ring(folder, SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN)
    });
}

/// `struct io_uring_params`, with its offsets as arrays.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    /// head, tail, mask, entries, flags, dropped, array, reserved, address
    sq: [u32; 10],
    /// head, tail, mask, entries, overflow, cqes, flags, reserved, address
    cq: [u32; 10],
}

/// `struct io_uring_sqe`
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Sqe {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    op_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}

struct Ring {
    fd: OwnedFd,
    rings: *mut u8,
    sqes: *mut Sqe,
    params: Params,
    submitted: u32,
}

impl Ring {
    fn new(flags: u32) -> io::Result<Ring> {
        let mut params = Params {
            flags,
            ..Params::default()
        };
        // SAFETY: the structure is the kernel's; the mappings are as the kernel says, and go with the process.
        unsafe {
            let fd = checked(libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut params))?;
            let fd = OwnedFd::from_raw_fd(fd as i32);
            let map = |bytes: usize, offset: i64| {
                let at = libc::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_POPULATE,
                    fd.as_raw_fd(),
                    offset,
                );
                match at == libc::MAP_FAILED {
                    true => Err(io::Error::last_os_error()),
                    false => Ok(at.cast::<u8>()),
                }
            };
            let queue = params.sq[6] + params.sq_entries * 4;
            let completions = params.cq[5] + params.cq_entries * 16;
            let rings = map(queue.max(completions) as usize, 0)?;
            let sqes = map(params.sq_entries as usize * size_of::<Sqe>(), 0x1000_0000)?.cast();
            Ok(Ring {
                fd,
                rings,
                sqes,
                params,
                submitted: 0,
            })
        }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: an aligned word within the mapping, which the kernel changes atomically.
        unsafe { AtomicU32::from_ptr(self.rings.add(offset as usize).cast()) }
    }

    /// Submits, and waits for so many completions, which are taken.
    fn submit(&mut self, sqes: &[Sqe], wait: u32, take: bool) -> io::Result<()> {
        for sqe in sqes {
            let index = self.submitted & (self.params.sq_entries - 1);
            self.submitted += 1;
            // SAFETY: within the mapping of the entries.
            unsafe { self.sqes.add(index as usize).write(*sqe) };
            self.word(self.params.sq[6] + 4 * index)
                .store(index, Ordering::Relaxed);
        }
        self.word(self.params.sq[1])
            .store(self.submitted, Ordering::Release);
        // SAFETY: the ring is open.
        checked(unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                sqes.len() as u32,
                wait,
                ENTER_GETEVENTS,
                0,
                0,
            )
        })?;
        if take {
            let tail = self.word(self.params.cq[1]).load(Ordering::Acquire);
            self.word(self.params.cq[0]).store(tail, Ordering::Release);
        }
        Ok(())
    }
}

fn use_ring(folder: &Path, flags: u32) -> io::Result<()> {
    let mut ring = Ring::new(flags)?;
    let file = File::create_new(folder.join(format!("ring {flags}")))?;
    let (pipe, mut other) = io::pipe()?;
    let mut bytes = [3_u8; 64];
    let sqe = |opcode, flags, fd| Sqe {
        opcode,
        flags,
        fd,
        user_data: 0x1234_5678_9abc,
        ..Sqe::default()
    };
    let with = |sqe: Sqe, bytes: &mut [u8]| Sqe {
        address: bytes.as_mut_ptr() as u64,
        length: bytes.len() as u32,
        ..sqe
    };
    step("nothing", || ring.submit(&[sqe(OP_NOP, 0, -1); 3], 3, true));
    step("write", || {
        let write = with(sqe(OP_WRITE, 0, file.as_raw_fd()), &mut bytes);
        ring.submit(
            &[
                write,
                Sqe {
                    flags: SQE_ASYNC,
                    ..write
                },
            ],
            2,
            true,
        )
    });
    step("a link that fails", || {
        let read = with(sqe(OP_READ, SQE_LINK, -1), &mut bytes);
        ring.submit(&[read, sqe(OP_NOP, 0, -1)], 2, true)
    });
    step("a link", || {
        ring.submit(&[sqe(OP_NOP, SQE_LINK, -1), sqe(OP_NOP, 0, -1)], 2, true)
    });
    step("nobody knows", || {
        ring.submit(&[sqe(OP_NOBODY_KNOWS, 0, -1)], 1, true)
    });
    step("poll", || {
        let mut poll = sqe(OP_POLL_ADD, 0, pipe.as_raw_fd());
        poll.op_flags = libc::POLLIN as u32;
        let read = with(sqe(OP_READ, 0, pipe.as_raw_fd()), &mut bytes);
        ring.submit(&[poll, read, sqe(OP_NOP, SQE_DRAIN, -1)], 0, true)?;
        io::Write::write_all(&mut other, b"some bytes")?;
        ring.submit(&[], 3, true)
    });
    step("timeout", || {
        let time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 2_000_000,
        };
        let mut timeout = sqe(OP_TIMEOUT, 0, -1);
        timeout.address = &raw const time as u64;
        timeout.length = 1;
        ring.submit(&[timeout], 1, true)
    });
    step("register", || {
        let fds = [file.as_raw_fd()];
        // SAFETY: one descriptor.
        checked(unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring.fd.as_raw_fd(),
                2,
                fds.as_ptr(),
                1,
            )
        })?;
        Ok(())
    });
    // More than there is room for.
    step("overflow", || {
        for _ in 0..4 {
            ring.submit(&[sqe(OP_NOP, 0, -1); 8], 8, false)?;
        }
        ring.submit(&[], 0, true)
    });
    Ok(())
}
