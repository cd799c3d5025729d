//! The kernel's list of events, in tracefs.
//!
//! In: nothing, or where tracefs is mounted. Out: the names of the events and the text of their format files.
//!
//! INVARIANT: lkst leaves no mount behind. Where tracefs is not mounted it is mounted for this process alone, as a
//! file descriptor that no path leads to; where the kernel cannot do that (before 5.2) it is mounted on a folder of
//! our own, and unmounted on drop.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags};

/// Where tracefs is when somebody else has mounted it. The second was the place before 4.1.
const USUAL: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why the events cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TracefsError {
    /// Neither mounted, nor can we mount it.
    #[error("tracefs is not mounted at /sys/kernel/tracing and could not be mounted: {0}")]
    Mount(#[source] io::Error),
    /// A file or folder in it.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A tracefs that can be read while this lives.
#[derive(Debug)]
pub struct Tracefs {
    root: PathBuf,
    held: Held,
}

#[derive(Debug)]
enum Held {
    /// Somebody else's mount.
    Theirs,
    /// Ours, and nobody sees it: gone with the descriptor.
    Descriptor { _mount: OwnedFd },
    /// Ours, on a folder of our own, which is removed with it.
    Folder,
}

impl Tracefs {
    /// Finds tracefs, or mounts it for us alone.
    ///
    /// # Errors
    /// [`TracefsError`].
    pub fn open() -> Result<Tracefs, TracefsError> {
        let mut denied = None;
        for path in USUAL {
            let events = Path::new(path).join("events");
            match fs::read_dir(&events) {
                Ok(_) => {
                    return Ok(Tracefs {
                        root: path.into(),
                        held: Held::Theirs,
                    });
                }
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    denied.get_or_insert(TracefsError::Read { path: events, source });
                }
                Err(_) => {}
            }
        }
        // That it is there and closed says more than that we may not mount another.
        mount_unseen()
            .or_else(|_| mount_on_folder())
            .map_err(|error| denied.unwrap_or(TracefsError::Mount(error)))
    }

    /// Takes a folder to be tracefs, for tests.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Tracefs {
        Tracefs {
            root: root.into(),
            held: Held::Theirs,
        }
    }

    /// Mounts a tracefs of our own even if there is one, for tests.
    ///
    /// # Errors
    /// [`TracefsError::Mount`].
    pub fn private() -> Result<Tracefs, TracefsError> {
        mount_unseen().map_err(TracefsError::Mount)
    }

    /// The folder; good while this lives, in this process only.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All events as (system, name), sorted. Those of the system `ftrace` are no tracepoints (nothing can be attached
    /// to them) and left out, as is whatever has no format file.
    ///
    /// # Errors
    /// [`TracefsError::Read`].
    pub fn events(&self) -> Result<Vec<(String, String)>, TracefsError> {
        let mut events = Vec::with_capacity(2500);
        for system in folders(&self.root.join("events"))? {
            if system == "ftrace" {
                continue;
            }
            for name in folders(&self.root.join("events").join(&system))? {
                events.push((system.clone(), name));
            }
        }
        events.sort_unstable();
        Ok(events)
    }

    /// The text of an event's format file.
    ///
    /// # Errors
    /// [`TracefsError::Read`], also where a name is no single folder's name.
    pub fn format(&self, system: &str, name: &str) -> Result<String, TracefsError> {
        self.file_of(system, name, "format")
    }

    /// The number of an event's tracepoint, which attaching a classic program asks for.
    ///
    /// # Errors
    /// As [`Tracefs::format`].
    pub fn id(&self, system: &str, name: &str) -> Result<u64, TracefsError> {
        let text = self.file_of(system, name, "id")?;
        text.trim().parse().map_err(|error| TracefsError::Read {
            path: self.root.join("events").join(system).join(name).join("id"),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })
    }

    fn file_of(&self, system: &str, name: &str, file: &str) -> Result<String, TracefsError> {
        let path = self.root.join("events").join(system).join(name).join(file);
        if [system, name]
            .iter()
            .any(|part| part.is_empty() || part.contains('/') || part.starts_with('.'))
        {
            return Err(TracefsError::Read {
                path,
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        fs::read_to_string(&path).map_err(|source| TracefsError::Read { path, source })
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        if matches!(self.held, Held::Folder) {
            // Lazily: a program that looks into it just now must not keep the mount alive for ever. Nothing can be
            // done about a failure here, and `open` of the next run does not depend on it.
            let _ = rustix::mount::unmount(&self.root, UnmountFlags::DETACH);
            let _ = fs::remove_dir(&self.root);
        }
    }
}

fn mount_unseen() -> io::Result<Tracefs> {
    let context = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    // Without /proc the descriptor is of no use by path.
    fs::read_dir(root.join("events"))?;
    Ok(Tracefs {
        root,
        held: Held::Descriptor { _mount: mount },
    })
}

fn mount_on_folder() -> io::Result<Tracefs> {
    let root = PathBuf::from(format!("/run/lkst-tracefs-{}", std::process::id()));
    fs::create_dir(&root)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if let Err(error) = rustix::mount::mount("tracefs", &root, "tracefs", flags, None) {
        let _ = fs::remove_dir(&root);
        return Err(error.into());
    }
    Ok(Tracefs {
        root,
        held: Held::Folder,
    })
}

/// The names of the folders in a folder.
fn folders(path: &Path) -> Result<Vec<String>, TracefsError> {
    let failed = |source| TracefsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}
