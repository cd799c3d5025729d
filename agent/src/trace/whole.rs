//! Folders that are whole or not there, whatever stops us: what is to be in one in, a folder on disk out.
//!
//! It is filled under a name that begins with a dot, all of it is synced, then it is renamed. Folders above it that
//! were missing are made, and are as lasting as it is: each is synced into the one above.
//!
//! INVARIANT: an error leaves nothing behind, neither what was half-written nor a folder that was made for it. Only a
//! process that was killed leaves `.NAME.PID.unfinished`, which [`is_unfinished`] tells from all else.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

/// How a folder ends that is still being written.
const UNFINISHED: &str = ".unfinished";

/// What could not be written, and why.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) path: PathBuf,
    pub(super) error: io::Error,
}

impl Failed {
    pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> Failed + '_ {
        move |error| Failed {
            path: path.to_owned(),
            error,
        }
    }
}

/// A folder that is still being written. Unless it is finished it goes away.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// Where it is now.
    path: PathBuf,
    /// The folder that it is in.
    parent: PathBuf,
    /// Folders that were made for it, from the highest down.
    made: Vec<PathBuf>,
}

impl Unfinished {
    /// Begins one that shall be `folder`. Folders above that are missing are made.
    pub(super) fn begin(folder: &Path) -> Result<Unfinished, Failed> {
        let parent = parent_of(folder);
        let mut begun = Unfinished {
            path: PathBuf::new(),
            parent: parent.to_owned(),
            made: Vec::new(),
        };
        let missing: Vec<&Path> = parent.ancestors().take_while(|above| is_missing(above)).collect();
        for above in missing.into_iter().rev() {
            match make_folder(above) {
                Ok(()) => begun.made.push(above.to_owned()),
                // Somebody else made it meanwhile: it is theirs.
                Err(failed) if failed.error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(failed) => return Err(failed),
            }
        }
        if folder.symlink_metadata().is_ok() {
            return Err(Failed {
                path: folder.to_owned(),
                error: io::ErrorKind::AlreadyExists.into(),
            });
        }
        let path = parent.join(unfinished_name(folder));
        make_folder(&path)?;
        begun.path = path;
        Ok(begun)
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it as it is, for [`rename_finished`]: its writer may take long, or never come to it.
    pub(super) fn leave(mut self) {
        self.path = PathBuf::new();
        self.made.clear();
    }

    /// Gives it its name. What is in it must be synced.
    pub(super) fn finish(mut self, folder: &Path) -> Result<(), Failed> {
        rename(&self.path, folder).map_err(Failed::at(folder))?;
        // From here on it is this that goes away, should the rename not last.
        self.path = folder.to_owned();
        sync_folder(&self.parent)?;
        for made in &self.made {
            sync_folder(parent_of(made))?;
        }
        self.path = PathBuf::new();
        self.made.clear();
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The error that led here is told; one of this would hide it.
        if !self.path.as_os_str().is_empty() {
            let _ignored = fs::remove_dir_all(&self.path);
        }
        for made in self.made.iter().rev() {
            // Not where somebody else has put something there meanwhile.
            let _ignored = fs::remove_dir(made);
        }
    }
}

/// Gives a folder that was left unfinished its name. What is in it must be synced.
pub(super) fn rename_finished(path: &Path, folder: &Path) -> Result<(), Failed> {
    rename(path, folder).map_err(Failed::at(folder))?;
    let parent = parent_of(folder);
    sync_folder(parent)?;
    // The two above may have been made for it.
    sync_folder(parent_of(parent))?;
    sync_folder(parent_of(parent_of(parent)))
}

/// What an unfinished folder will be called.
pub(super) fn finished_name(path: &Path) -> OsString {
    let name = path.file_name().unwrap_or_default();
    let text = name.to_string_lossy();
    let inner = text
        .strip_prefix('.')
        .and_then(|text| text.strip_suffix(UNFINISHED));
    match inner.and_then(|text| text.rsplit_once('.')) {
        Some((name, _pid)) => name.into(),
        None => name.to_owned(),
    }
}

/// True for the name of a folder that was being written: `.NAME.PID.unfinished`. It says nothing of whether somebody
/// still writes it.
#[must_use]
pub fn is_unfinished(name: &[u8]) -> bool {
    let inner = name
        .strip_prefix(b".")
        .and_then(|name| name.strip_suffix(UNFINISHED.as_bytes()));
    let Some(at) = inner.and_then(|name| name.iter().rposition(|byte| *byte == b'.')) else {
        return false;
    };
    let pid = inner.and_then(|name| name.get(at + 1..)).unwrap_or_default();
    at > 0 && !pid.is_empty() && pid.iter().all(u8::is_ascii_digit)
}

fn unfinished_name(folder: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(folder.file_name().unwrap_or_default());
    name.push(format!(".{}{UNFINISHED}", std::process::id()));
    name
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn is_missing(path: &Path) -> bool {
    let found = path.symlink_metadata();
    !path.as_os_str().is_empty() && found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Renames, never over anything: plain `rename` replaces an empty folder silently.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A filesystem that cannot promise it, such as NFS. It fails at least where the folder holds anything.
        Err(Errno::INVAL) => fs::rename(from, to),
        renamed => Ok(renamed?),
    }
}

/// Makes a folder that only its owner enters.
pub(super) fn make_folder(path: &Path) -> Result<(), Failed> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(Failed::at(path))
}

/// Writes a new file that only its owner reads, and syncs it.
pub(super) fn write_file(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failed> {
    let write = || {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut out = BufWriter::new(file);
        content(&mut out)?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()
    };
    write().map_err(Failed::at(path))
}

/// Makes the names in a folder lasting.
pub(super) fn sync_folder(path: &Path) -> Result<(), Failed> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(Failed::at(path))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_unfinished_has_a_name_of_its_own() {
        for name in [".a.1.unfinished", "..1.2.unfinished", ".a.b.77.unfinished"] {
            assert!(is_unfinished(name.as_bytes()), "{name}");
        }
        for name in [
            "a.1.unfinished",
            ".a.unfinished",
            ".a..unfinished",
            ".1.unfinished",
            ".a.1x.unfinished",
            ".a.1.unfinishe",
            ".unfinished",
            "",
        ] {
            assert!(!is_unfinished(name.as_bytes()), "{name}");
        }
        let name = unfinished_name(Path::new("/a/20260101T000000.000-b"));
        assert!(is_unfinished(name.as_encoded_bytes()));
    }

    #[test]
    fn an_error_leaves_nothing_and_success_all() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state/pack/incident/1-main");
        drop(Unfinished::begin(&folder).unwrap());
        assert!(!dir.path().join("state").exists());

        let kept = dir.path().join("state/pack");
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join("note"), "").unwrap();
        drop(Unfinished::begin(&folder).unwrap());
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);

        let begun = Unfinished::begin(&folder).unwrap();
        write_file(&begun.path().join("a"), |out| out.write_all(b"a")).unwrap();
        begun.finish(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&kept.join("incident")), 0o700);
        assert_eq!((mode(&folder), mode(&folder.join("a"))), (0o700, 0o600));
        let again = Unfinished::begin(&folder).unwrap_err();
        assert_eq!(again.error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(kept.join("incident")).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_replaced_not_even_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a");
        let begun = Unfinished::begin(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(begun.finish(&folder).is_err());
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_name_without_a_folder_is_here() {
        assert_eq!(parent_of(Path::new("a")), Path::new("."));
        assert!(!is_missing(parent_of(Path::new("a"))));
    }
}
