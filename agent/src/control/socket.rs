//! Where the agent listens: a folder in, a socket out that root and one group can open.
//!
//! INVARIANT: the socket never has wider rights than it is to have, not for a moment: it is made under another name and
//! renamed.
//! INVARIANT: one agent a folder. The lock goes with the process, however it ends.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};

/// The socket's name in the folder.
pub const SOCKET: &str = "control.sock";
const LOCK: &str = "agent.lock";

/// A socket that is listened on; its name goes with it.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    listener: UnixListener,
    _lock: File,
}

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent does.
    #[error(
        "another agent, process {pid}, listens in {folder:?}: stop it first, or give this one folders of its own"
    )]
    Busy {
        /// Where.
        folder: PathBuf,
        /// Its process, as it says itself.
        pid: String,
    },
    /// Something else has the name.
    #[error("{path:?} is not a socket: remove it")]
    NotOurs {
        /// What.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot listen at {path:?}: {error}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

impl Bound {
    /// Listens in a folder, which is made where it is missing. Without a group only root may connect.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn new(folder: &Path, group: Option<u32>) -> Result<Bound, BindError> {
        let path = folder.join(SOCKET);
        let failed = |error: io::Error| BindError::Io {
            path: path.clone(),
            error,
        };
        if !folder.exists() {
            fs::create_dir(folder).map_err(failed)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        let lock = lock(folder)?;
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotOurs { path }),
            // We hold the lock: whoever made it is gone.
            Ok(_) | Err(_) => {}
        }
        let new = folder.join(format!(".{SOCKET}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(&new);
        rustix::process::umask(before);
        let listener = listener.map_err(failed)?;
        let ready = || {
            if let Some(group) = group {
                chown(&new, None, Some(group))?;
                fs::set_permissions(&new, fs::Permissions::from_mode(0o660))?;
            }
            listener.set_nonblocking(true)?;
            fs::rename(&new, &path)
        };
        if let Err(error) = ready() {
            let _ = fs::remove_file(&new);
            return Err(failed(error));
        }
        Ok(Bound {
            path,
            listener,
            _lock: lock,
        })
    }

    /// For the agent's runtime.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The next agent would take it for stale: not worth a word.
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(folder: &Path) -> Result<File, BindError> {
    let path = folder.join(LOCK);
    let failed = |error: io::Error| BindError::Io {
        path: path.clone(),
        error,
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(opened.map_err(|error| failed(error.into()))?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // It may be writing this now.
            let _ = (&mut file).take(16).read_to_string(&mut pid);
            return Err(BindError::Busy {
                folder: folder.to_owned(),
                pid: pid.trim().to_owned(),
            });
        }
        Err(error) => return Err(failed(error.into())),
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}
