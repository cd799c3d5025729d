//! A tour of the kernel: what the workload does not make happen, and the catalogue speaks of. File systems, reclaim and
//! the OOM killer, control groups, networks, io_uring.
//!
//! `tour`: makes everything happen once or a few times. What this kernel lacks is said and passed over.
//! INVARIANT: it leaves nothing behind, also where it or its parent is killed. Mounts and networks are in namespaces of
//! its own, loop devices go with their mounts. A process that does nothing else waits for the end, and removes the
//! control groups and the folder.

mod disk;
mod groups;
mod memory;
mod network;
mod small;
mod uring;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use lkst_tests::namespace::{own_mounts, unmount_all};

/// Seconds after which the tour ends, finished or not.
const LONGEST: libc::c_uint = 30;

/// The process that travels.
static TRAVELLER: AtomicI32 = AtomicI32::new(0);

fn main() -> ExitCode {
    match tour() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tour: {error}");
            ExitCode::FAILURE
        }
    }
}

extern "C" fn end_traveller(_: libc::c_int) {
    let pid = TRAVELLER.load(Ordering::Relaxed);
    if pid > 0 {
        // SAFETY: a child of ours that was not waited for yet.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

fn tour() -> io::Result<()> {
    // SAFETY: the handler calls nothing but `kill`.
    unsafe {
        libc::signal(libc::SIGTERM, end_traveller as *const () as libc::sighandler_t);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        checked(libc::unshare(libc::CLONE_NEWNET))?;
    }
    own_mounts()?;
    let folder = tempfile::tempdir()?;
    let mut groups = groups::Groups::default();
    step("control groups", || groups.make(folder.path()));
    // SAFETY: there is one thread.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: as above.
            unsafe {
                libc::signal(libc::SIGTERM, libc::SIG_DFL);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Whatever hangs: the tour ends.
                libc::alarm(LONGEST);
            }
            travel(folder.path(), &groups);
            // SAFETY: nothing of this process is to be cleaned up: its parent does that.
            unsafe { libc::_exit(0) };
        }
        pid if pid > 0 => {
            TRAVELLER.store(pid, Ordering::Relaxed);
            // SAFETY: our child.
            while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
        _ => return Err(io::Error::last_os_error()),
    }
    groups.remove();
    unmount_all(folder.path())?;
    folder.close()
}

fn travel(folder: &Path, groups: &groups::Groups) {
    small::all(folder);
    network::all();
    uring::all(folder);
    memory::all(folder, groups);
    disk::all(folder);
    step("control groups", || groups.use_them());
}

/// Does one thing. That this kernel cannot do it is no failure: the test says which events must be hit.
fn step(name: &str, run: impl FnOnce() -> io::Result<()>) {
    if let Err(error) = run() {
        eprintln!("tour: {name}: {error}");
    }
}

/// The error of a system call that returned -1.
fn checked(returned: impl Into<i64>) -> io::Result<i64> {
    match returned.into() {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Runs in a child, which ends with 0 where it went well, and waits for it.
fn in_child(run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: there is one thread.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: ends the child with its parent, and without what its parent would do at its end.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::_exit(i32::from(run().is_err()));
            }
        }
        pid if pid > 0 => {
            // SAFETY: our child.
            checked(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) })?;
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
