//! Processes that make a known number of events: the ground truth that tests hold the kernel's records against.
//!
//! A [`Worker`] is a fork of the test, pinned to one CPU, that waits for [`Worker::go`] and then runs what it was
//! given. It is a process and not a thread because lkst does not trace its own process, which here is the test's. A
//! worker that is dropped is killed and waited for, so a test that fails leaves none behind.
//!
//! In a worker only system calls are made and nothing is allocated: the test has other threads, and a fork of one of
//! them may have caught a lock in any state.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// The CPUs that this process may run on.
pub fn cpus() -> Vec<usize> {
    // SAFETY: all zeros is an empty set, and the kernel fills in as many bytes as it is told.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
        set
    };
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the number is below the size of the set.
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect()
}

/// Keeps the calling thread on a CPU.
pub fn pin(cpu: usize) {
    // SAFETY: as for `cpus`; `cpu` is one of them.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// What a process, 0 for the caller, has had of the CPUs.
///
/// # Errors
/// There is no such process.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both are written to places of their types.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(Duration::new(
        time.tv_sec.cast_unsigned(),
        time.tv_nsec.cast_unsigned() as u32,
    ))
}

/// A forked process.
#[derive(Debug)]
pub struct Worker {
    /// Its process number.
    pub pid: u32,
    gate: Option<OwnedFd>,
    done: bool,
}

/// Ends the process also where the work panics.
struct Exit(libc::c_int);

impl Drop for Exit {
    fn drop(&mut self) {
        // SAFETY: ends this process at once, which is a fork that owns nothing.
        unsafe { libc::_exit(self.0) }
    }
}

impl Worker {
    /// Forks a process onto a CPU; it does `work` once it is told to go.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(cpu: usize, work: impl FnOnce()) -> io::Result<Worker> {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written to the array.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were made just now, for us alone.
        let [wait, gate] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: the child only makes system calls, see the top of this file.
        match unsafe { libc::fork() } {
            0 => {
                let mut exit = Exit(101);
                pin(cpu);
                // SAFETY: plain system calls on descriptors that are open here, and a byte to read into.
                unsafe {
                    // A test that is killed takes its workers with it.
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::close(gate.as_raw_fd());
                    let mut byte = 0_u8;
                    if libc::read(wait.as_raw_fd(), (&raw mut byte).cast(), 1) == 1 {
                        work();
                        exit.0 = 0;
                    }
                }
                drop(exit);
                unreachable!("the process has ended")
            }
            pid if pid > 0 => Ok(Worker {
                pid: pid.cast_unsigned(),
                gate: Some(gate),
                done: false,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Lets it begin.
    pub fn go(&mut self) {
        if let Some(gate) = self.gate.take() {
            // SAFETY: one byte is read. Where the process is gone, `join` tells.
            unsafe { libc::write(gate.as_raw_fd(), c"!".as_ptr().cast(), 1) };
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Where it did not do all of its work.
    pub fn join(mut self) -> io::Result<()> {
        self.go();
        self.done = true;
        match self.wait() {
            0 => Ok(()),
            status => Err(io::Error::other(format!("a worker ended with {status:#x}"))),
        }
    }

    fn wait(&self) -> libc::c_int {
        let mut status = 0;
        // SAFETY: our child; the status is written to a place of its type.
        while unsafe { libc::waitpid(self.pid.cast_signed(), &raw mut status, 0) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        status
    }

    /// Ends it wherever it is.
    pub fn kill(&mut self) {
        if !self.done {
            self.done = true;
            // SAFETY: our child, which nobody has waited for.
            unsafe { libc::kill(self.pid.cast_signed(), libc::SIGKILL) };
            self.wait();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `prctl(option, …)` with an option that the kernel does not know: it does nothing, fails, and can be told by its
/// arguments.
pub fn mark(option: u32, arguments: [u64; 4]) {
    // SAFETY: no option of this number exists, so no argument is taken for an address.
    unsafe {
        libc::syscall(
            libc::SYS_prctl,
            libc::c_long::from(option),
            arguments[0],
            arguments[1],
            arguments[2],
            arguments[3],
        )
    };
}

/// The first of the options for [`mark`]: far from all that Linux has given out.
pub const MARK: u32 = 0x6c6b_7400;

/// Gives the calling thread a name, of which the kernel takes 15 bytes: one `task:task_rename`.
pub fn set_name(name: &CStr) {
    // SAFETY: a text that ends in a NUL.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME as libc::c_long, name.as_ptr()) };
}

/// Renames the calling process to `TAG-SERIAL` in hexadecimal: one `task:task_rename`.
pub fn rename(tag: u8, serial: u32) {
    let mut name = [0_u8; 16];
    name[..5].copy_from_slice(&[b'l', b'k', b't', tag, b'-']);
    for (digit, place) in name[5..13].iter_mut().rev().zip(0..) {
        *digit = b"0123456789abcdef"[(serial >> (4 * place) & 15) as usize];
    }
    // The last byte is a NUL.
    set_name(CStr::from_bytes_until_nul(&name).unwrap_or_default());
}

/// The tag and the serial number of a name that [`rename`] has given.
pub fn renamed(name: &[u8]) -> Option<(u8, u32)> {
    let [tag, b'-', digits @ ..] = name.strip_prefix(b"lkt")? else {
        return None;
    };
    let serial = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    Some((*tag, serial))
}
