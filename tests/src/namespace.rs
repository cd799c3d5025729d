//! A mount namespace of one's own, for what a test mounts: it ends with the test's thread, and everything in it.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Runs something in a thread with a mount namespace of its own. What is mounted there is seen by nobody else, but by
/// the processes that are started there.
///
/// # Errors
/// There is no such namespace: that needs root.
///
/// # Panics
/// Where `run` does.
pub fn with_own_mounts<T: Send>(run: impl FnOnce() -> T + Send) -> io::Result<T> {
    let inside = || -> io::Result<T> {
        own_mounts()?;
        Ok(run())
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Gives the calling thread a mount namespace of its own, as [`with_own_mounts`], to its end.
///
/// # Errors
/// There is no such namespace: that needs root.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: it changes what the calling thread sees of mounts, and parts its folders from those of other threads.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    change(Path::new("/"), libc::MS_PRIVATE | libc::MS_REC)
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn text(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn mount(source: &CStr, target: &Path, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    let target = text(target)?;
    // SAFETY: texts that end in a NUL.
    done(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    })
}

fn change(target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    mount(c"none", target, c"none", flags, c"")
}

/// Mounts a file system that needs no device, such as a `tmpfs`.
///
/// # Errors
/// What the kernel says.
pub fn mount_new(kind: &CStr, target: &Path, data: &str) -> io::Result<()> {
    mount(kind, target, kind, 0, &CString::new(data)?)
}

/// Gives a file system other options, such as a `size`, where it is mounted.
///
/// # Errors
/// What the kernel says.
pub fn remount(target: &Path, data: &str) -> io::Result<()> {
    let options = CString::new(data)?;
    mount(c"none", target, c"none", libc::MS_REMOUNT, &options)
}

/// Makes a mount read-only, or writable again.
///
/// # Errors
/// What the kernel says.
pub fn set_read_only(target: &Path, read_only: bool) -> io::Result<()> {
    let flag = if read_only { libc::MS_RDONLY } else { 0 };
    change(target, libc::MS_REMOUNT | flag)
}

/// Shows one file, or one folder with the mounts in it, in the place of another.
///
/// # Errors
/// What the kernel says.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(&text(source)?, target, c"none", libc::MS_BIND | libc::MS_REC, c"")
}

/// `struct mount_attr` of include/uapi/linux/mount.h.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const RDONLY: u64 = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// Makes a mount and all below it read-only, or one writable again, for who sees it here: the file system itself stays
/// as it is.
///
/// # Errors
/// What the kernel says.
pub fn view_read_only(target: &Path, read_only: bool) -> io::Result<()> {
    let attributes = Attributes {
        set: if read_only { RDONLY } else { 0 },
        clear: if read_only { 0 } else { RDONLY },
        propagation: 0,
        user_namespace: 0,
    };
    let flags = if read_only { AT_RECURSIVE } else { 0 };
    let target = text(target)?;
    // SAFETY: a text that ends in a NUL, and attributes of the size that is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    done(result as libc::c_int)
}

/// Takes the topmost mount away, also where it is in use.
///
/// # Errors
/// What the kernel says.
pub fn unmount(target: &Path) -> io::Result<()> {
    let target = text(target)?;
    // SAFETY: a text that ends in a NUL.
    done(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) })
}

/// Takes away, the latest first, all that is mounted in a folder, and the folder's own files where they are shown
/// elsewhere: neither could be removed before. The folder's name is to be one of its own, as a temporary one's is.
///
/// # Errors
/// What the kernel says.
pub fn unmount_all(folder: &Path) -> io::Result<()> {
    // Of the calling thread, whose namespace may be its own.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    for line in mounts.lines().rev() {
        // Documentation/filesystems/proc.rst, 3.5: ids, device, the root within the file system, the mount point.
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next(), fields.next());
        // The root begins where its file system does, which need not be the machine's.
        let of_it = |root: &str| {
            Path::new(root)
                .iter()
                .any(|part| Some(part) == folder.file_name())
        };
        if let Some(point) = point
            && (Path::new(point).starts_with(folder) || root.is_some_and(of_it))
        {
            unmount(Path::new(point))?;
        }
    }
    Ok(())
}
