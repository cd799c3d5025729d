//! Small things, each with an event of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::{checked, in_child, pause, step};

pub(crate) fn all(folder: &Path) {
    step("alarms", alarms);
    step("locks", || locks(folder));
    step("leases", || leases(folder));
    step("quality of service", quality);
    step("prctl", || {
        // SAFETY: the kernel knows no such option.
        unsafe { libc::prctl(0x7fff_1234, 1, 2, 3, 4) };
        Ok(())
    });
    step("threads", threads);
    step("unmapped", unmapped);
}

/// An alarm that fires, and one that does not.
fn alarms() -> io::Result<()> {
    // SAFETY: the structures live on the stack; the descriptor is closed.
    unsafe {
        let fd = checked(libc::timerfd_create(
            libc::CLOCK_BOOTTIME_ALARM,
            libc::TFD_CLOEXEC,
        ))? as i32;
        let mut at: libc::itimerspec = std::mem::zeroed();
        at.it_value.tv_nsec = 1_000_000;
        libc::timerfd_settime(fd, 0, &raw const at, std::ptr::null_mut());
        let mut count = 0_u64;
        libc::read(fd, (&raw mut count).cast(), 8);
        at.it_value.tv_sec = 100;
        libc::timerfd_settime(fd, 0, &raw const at, std::ptr::null_mut());
        at.it_value = std::mem::zeroed();
        libc::timerfd_settime(fd, 0, &raw const at, std::ptr::null_mut());
        libc::close(fd);
    }
    Ok(())
}

fn locks(folder: &Path) -> io::Result<()> {
    let file = File::create(folder.join("locked"))?;
    // SAFETY: it is open; the structure lives on the stack.
    unsafe {
        for how in [libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN] {
            libc::flock(file.as_raw_fd(), how);
        }
        let mut lock: libc::flock = std::mem::zeroed();
        for (kind, start) in [(libc::F_RDLCK, 10), (libc::F_WRLCK, 100), (libc::F_UNLCK, 10)] {
            lock.l_type = kind as i16;
            lock.l_start = start;
            lock.l_len = 50;
            libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock);
        }
    }
    Ok(())
}

fn leases(folder: &Path) -> io::Result<()> {
    let path = folder.join("leased");
    fs::write(&path, b"some bytes")?;
    let leased = File::open(&path)?;
    let lease = |kind: libc::c_int| {
        // SAFETY: it is open.
        unsafe { libc::fcntl(leased.as_raw_fd(), libc::F_SETLEASE, kind) };
    };
    // SAFETY: the signal says that somebody wants the file.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    lease(libc::F_RDLCK);
    lease(libc::F_UNLCK);
    lease(libc::F_RDLCK);
    let wanted = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path);
    drop(wanted);
    // SAFETY: there is one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let opened = OpenOptions::new().write(true).open(&path);
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(opened.is_err())) };
    }
    pause(20);
    lease(libc::F_UNLCK);
    // SAFETY: our child.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    Ok(())
}

fn quality() -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open("/dev/cpu_dma_latency")?;
    for value in [1000_i32, 2000] {
        file.write_all(&value.to_ne_bytes())?;
    }
    Ok(())
}

/// Threads on all CPUs that share memory: what one unmaps the others must forget.
fn threads() -> io::Result<()> {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                let end = std::time::Instant::now() + std::time::Duration::from_millis(60);
                while std::time::Instant::now() < end {
                    // SAFETY: a mapping of its own, used and given back.
                    unsafe {
                        let bytes = 16 << 12;
                        let at = libc::mmap(
                            std::ptr::null_mut(),
                            bytes,
                            libc::PROT_READ | libc::PROT_WRITE,
                            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                            -1,
                            0,
                        );
                        if at != libc::MAP_FAILED {
                            at.cast::<u8>().write_volatile(1);
                            libc::munmap(at, bytes);
                        }
                        // Reaches every CPU by an interrupt.
                        libc::syscall(libc::SYS_membarrier, 1, 0, 0);
                        libc::syscall(libc::SYS_membarrier, 2, 0, 0);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// A child that uses its vector registers, and one that is killed for an address that is not there.
fn unmapped() -> io::Result<()> {
    in_child(|| {
        let sum: f64 = (0..1000).map(f64::from).map(f64::sqrt).sum();
        pause(1);
        match sum > 0.0 {
            true => Ok(()),
            false => Err(io::ErrorKind::Other.into()),
        }
    })
}
