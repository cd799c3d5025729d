//! Names in a bpffs: what lives in the kernel beyond this process, and what ends it without us.
//!
//! ```text
//! PIN_DIR/ map_control_0 map_pages_7 …   dispatcher_3 slots_3 link_3 program_3_DIGEST   manifest_42
//! ```
//!
//! In: maps, programs, links. Out: names, and what has a name, for whoever comes after us (`adopt.rs`).
//!
//! INVARIANT: of a link or an array of programs that has a name, no descriptor stays open. Removing the names ends all
//! tracing at once, also while an agent runs or hangs: `rm -r` is the kill switch.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};

use super::features::is_bpffs;
use super::link::{open_pinned, pin};

/// Where bpffs is mounted on every distribution.
const BPFFS: &str = "/sys/fs/bpf";

/// A folder of names, which nobody else uses while this lives.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    /// Locked.
    opened: OwnedFd,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another agent uses it.
    #[error(
        "another agent uses {folder:?}: stop it first, or give this one folders of its own with `--pin-dir`, \
         `--run-dir` and `--state-dir`"
    )]
    Busy {
        /// Which.
        folder: PathBuf,
    },
    /// It is on another file system.
    #[error("{folder:?} is not on a bpffs: `mount -t bpf bpf {}`", .folder.display())]
    NoBpffs {
        /// Which.
        folder: PathBuf,
    },
    /// It cannot be made or opened.
    #[error("cannot use {folder:?} for what is to stay in the kernel: {error}")]
    Io {
        /// Which.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Pins {
    /// Opens a folder, and makes it where it is missing. The usual bpffs is mounted where it is not.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn open(folder: &Path) -> Result<Arc<Pins>, PinError> {
        let failed = |error: io::Error| PinError::Io {
            folder: folder.to_owned(),
            error,
        };
        if folder.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            let flags = rustix::mount::MountFlags::NOSUID
                | rustix::mount::MountFlags::NODEV
                | rustix::mount::MountFlags::NOEXEC;
            rustix::mount::mount("bpf", BPFFS, "bpf", flags, None).map_err(|error| failed(error.into()))?;
        }
        let exists = folder.exists();
        let inside = if exists { Some(folder) } else { folder.parent() };
        if !inside.is_some_and(is_bpffs) {
            let folder = inside.unwrap_or(folder).to_owned();
            return Err(PinError::NoBpffs { folder });
        }
        if !exists {
            rustix::fs::mkdir(folder, Mode::RWXU).map_err(|error| failed(error.into()))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, folder, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let folder = folder.to_owned();
                return Err(PinError::Busy { folder });
            }
            Err(error) => return Err(failed(error.into())),
        }
        Ok(Arc::new(Pins {
            folder: folder.to_owned(),
            opened,
        }))
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it is still the folder that was opened: somebody may have removed it.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let there = fs::metadata(&self.folder).ok();
        let ours = rustix::fs::fstat(self.opened.as_fd()).ok();
        there
            .zip(ours)
            .is_some_and(|(there, ours)| (there.dev(), there.ino()) == (ours.st_dev, ours.st_ino))
    }

    fn path(&self, name: &str) -> io::Result<CString> {
        CString::new(self.folder.join(name).as_os_str().as_bytes()).map_err(io::Error::other)
    }

    /// Gives an object a name. One that has been left behind with this name goes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pin(&self, name: &str, object: BorrowedFd<'_>) -> io::Result<()> {
        let path = self.path(name)?;
        match pin(object, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.remove(name)?;
                pin(object, &path)
            }
            pinned => pinned,
        }
    }

    /// Opens what has this name.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn get(&self, name: &str) -> io::Result<OwnedFd> {
        open_pinned(self.path(name)?.as_c_str())
    }

    /// Removes a name; that there is none is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All names.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.folder)?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes the folder and all names: links first, so that nothing runs any more when its maps go.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear(&self) -> io::Result<()> {
        let names = self.names()?;
        let (links, others): (Vec<&String>, Vec<&String>) =
            names.iter().partition(|name| name.starts_with(LINK));
        for name in links.into_iter().chain(others) {
            self.remove(name)?;
        }
        match fs::remove_dir(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// How names of links begin.
pub(super) const LINK: &str = "link_";

/// A link or an array of programs.
#[derive(Debug)]
pub(super) enum Handle {
    /// It goes with us.
    Held(OwnedFd),
    /// It stays; it is opened for as long as it is used.
    Named(Arc<Pins>, String),
}

impl Handle {
    /// Does something with it.
    pub(super) fn with<T>(&self, use_it: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Handle::Held(fd) => use_it(fd.as_fd()),
            Handle::Named(pins, name) => use_it(pins.get(name)?.as_fd()),
        }
    }

    /// Gives it a name and lets go of it.
    pub(super) fn into_named(self, pins: &Arc<Pins>, name: String) -> io::Result<Handle> {
        if let Handle::Held(fd) = &self {
            pins.pin(&name, fd.as_fd())?;
        }
        Ok(Handle::Named(pins.clone(), name))
    }
}
