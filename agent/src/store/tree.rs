//! Folders by descriptor: what is in one, how much it has on disk, how it is removed.
//!
//! In: an open folder and the name of something in it. Nothing here takes a path, follows a link, or leaves the mount
//! that it began on, so no name that is found in the state folder leads out of it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// The deepest that anything is looked at. An incident has three levels.
const DEEPEST: u32 = 16;

/// Opens a folder in `parent`, and nothing else.
pub(super) fn open(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(parent, name, flags, Mode::empty(), within)?)
}

/// The names in a folder, but for `.` and `..`, and whether each is a folder.
pub(super) fn names(folder: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_folder = match entry.file_type() {
            FileType::Unknown => match stat(folder.as_fd(), name) {
                Ok(stat) => is_folder(&stat),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            },
            kind => kind == FileType::Directory,
        };
        names.push((name.to_owned(), is_folder));
    }
    Ok(names)
}

/// What is known of something in `parent`, itself and not what it points to.
pub(super) fn stat(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Stat> {
    Ok(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

pub(super) fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// When something last changed.
pub(super) fn changed_at(stat: &Stat) -> SystemTime {
    let nanoseconds = Duration::from_nanos(stat.st_mtime_nsec);
    let since = match u64::try_from(stat.st_mtime) {
        Ok(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        Err(_) => None,
    };
    since
        .and_then(|seconds| seconds.checked_add(nanoseconds))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What something has on disk, in bytes: blocks, since that is what a full disk lacks.
fn on_disk(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// What a folder and everything in it have on disk, in bytes.
pub(super) fn size_bytes(folder: &OwnedFd) -> io::Result<u64> {
    size_of(folder, DEEPEST)
}

fn size_of(folder: &OwnedFd, levels: u32) -> io::Result<u64> {
    let mut size_bytes = on_disk(&rustix::fs::fstat(folder)?);
    for (name, is_folder) in names(folder)? {
        let more = if is_folder {
            let levels = levels.checked_sub(1).ok_or_else(too_deep)?;
            open(folder.as_fd(), &name).and_then(|inner| size_of(&inner, levels))
        } else {
            stat(folder.as_fd(), &name).map(|stat| on_disk(&stat))
        };
        size_bytes = match more {
            Ok(more) => size_bytes.saturating_add(more),
            // It went away meanwhile: a temporary that was renamed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => size_bytes,
            Err(error) => return Err(error),
        };
    }
    Ok(size_bytes)
}

fn too_deep() -> io::Error {
    io::Error::other("folders lie too deep in each other to be a trace")
}

/// Removes a folder and all that is in it. What is no longer there is removed.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    gone(remove_levels(parent, name, DEEPEST))
}

fn remove_levels(parent: BorrowedFd<'_>, name: &CStr, levels: u32) -> io::Result<()> {
    let folder = open(parent, name)?;
    for (name, is_folder) in names(&folder)? {
        gone(if is_folder {
            let levels = levels.checked_sub(1).ok_or_else(too_deep)?;
            remove_levels(folder.as_fd(), &name, levels)
        } else {
            rustix::fs::unlinkat(&folder, &name, AtFlags::empty()).map_err(Errno::into)
        })?;
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
