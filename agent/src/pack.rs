//! Packs on disk: a file or folder in, the packs' names, texts and hashes out.
//!
//! Rules come from whoever can write to a folder, so nothing here trusts a path: what is not a regular file or a folder
//! is not opened, no more is read than the language allows, and owners are judged on what was opened.
//!
//! INVARIANT: a text is that of one moment, as far as the file's size and times tell: a file that changed while it was
//! read is read again, or refused.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use lkst_rules::Pack;
use lkst_rules::diagnostic::Diagnostics;
use lkst_rules::parse::{LARGEST_FILE, source_from_bytes};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatVfsMountFlags};
use sha2::{Digest as _, Sha256};

use crate::trust::{Mistrust, Trust};

/// What a pack that is a folder has in it.
pub const MANIFEST: &str = "pack.toml";
/// The most bytes that the files of one pack may have together.
const LARGEST_PACK: usize = 8 << 20;
/// The most names in a folder that are looked at.
const MOST_NAMES: usize = 10_000;
/// How often a file is read that changes meanwhile.
const READS: usize = 5;

/// A pack as it was read.
#[derive(Debug, Clone)]
pub struct PackText {
    /// Its name and texts.
    pub pack: Pack,
    /// What is wrong with the bytes: not UTF-8, too large.
    pub diagnostics: Diagnostics,
    /// SHA-256, in hexadecimal digits, over the pack's name and its files' names and bytes. The same wherever the pack lies.
    pub hash: String,
}

/// What a path holds.
#[derive(Debug, Default)]
pub struct Found {
    /// The packs, in the order of their files' names.
    pub packs: Vec<PackText>,
}

/// Why a path holds no packs.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("cannot read {path:?}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is a FIFO, a device, a socket.
    #[error("{path:?} is neither a file nor a folder: a rule file is a regular file that ends in `.lkst`")]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// A folder that is called like a rule file.
    #[error("{path:?} is a folder without a `pack.toml`: put one there, or let its name not end in `.lkst`")]
    NoManifest {
        /// Which.
        path: PathBuf,
    },
    /// Nothing in it.
    #[error("{path:?} holds no rules: put `NAME.lkst` files there, or folders with a `pack.toml`")]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// Two packs of one name.
    #[error("two packs are called `{name}`: {first:?} and {second:?}: rename one of them")]
    Twice {
        /// The name.
        name: String,
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Its name is no name.
    #[error("{path:?} cannot name a pack: use letters, digits, `_` and `-`, and let it end in `.lkst`")]
    Name {
        /// Which.
        path: PathBuf,
    },
    /// Too many packs.
    #[error(
        "{path:?} is not loaded: a host has at most {most} packs, and those before it in name order are {most}"
    )]
    TooMany {
        /// Which.
        path: PathBuf,
        /// How many there may be.
        most: usize,
    },
    /// Too many names.
    #[error("{path:?} has more than {MOST_NAMES} files: keep rules in a folder of their own")]
    Crowded {
        /// Which folder.
        path: PathBuf,
    },
    /// Its files are too large together.
    #[error("the files of {path:?} have more than 8 MiB together: make several packs of it")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It changes all the time.
    #[error("{path:?} changed while it was read, {READS} times: write a new file and rename it into place")]
    Changing {
        /// Which.
        path: PathBuf,
    },
    /// It is not believed.
    #[error(transparent)]
    Mistrust(#[from] Mistrust),
}

impl ReadError {
    /// True for what is no longer there.
    fn is_gone(&self) -> bool {
        matches!(self, ReadError::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

fn io_error<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> ReadError + '_ {
    |error| ReadError::Io {
        path: path.to_owned(),
        error: error.into(),
    }
}

/// Reads the packs of a file, of a pack's folder, or of a folder of packs, whoever they belong to.
///
/// # Errors
/// See [`ReadError`]: the first that is found.
pub fn read(path: &Path) -> Result<Found, ReadError> {
    let kind = kind(&rustix::fs::stat(path).map_err(io_error(path))?);
    let alone = kind != FileType::Directory || path.join(MANIFEST).exists();
    if alone {
        let pack = Place::alone(path).read(Trust::Anyone)?;
        return Ok(Found { packs: vec![pack] });
    }
    let folder = Folder::open(path, Trust::Anyone)?;
    let mut seen = Names::default();
    let mut packs = Vec::new();
    for place in folder.places()? {
        seen.add(&place)?;
        packs.push(place.read(Trust::Anyone)?);
    }
    if packs.is_empty() {
        return Err(ReadError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(Found { packs })
}

/// The names of packs, each of one place.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<(String, PathBuf)>);

impl Names {
    /// Takes the name of a place.
    ///
    /// # Errors
    /// [`ReadError::Twice`] where another has it, [`ReadError::Name`] where it is none.
    pub(crate) fn add(&mut self, place: &Place<'_>) -> Result<(), ReadError> {
        let name = place.name()?;
        if let Some((_, first)) = self.0.iter().find(|(taken, _)| *taken == name) {
            return Err(ReadError::Twice {
                name,
                first: first.clone(),
                second: place.path.clone(),
            });
        }
        self.0.push((name, place.path.clone()));
        Ok(())
    }
}

/// A folder that is open.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

/// A file or folder that may be a pack, and where it was found.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// As it is shown.
    pub(crate) path: PathBuf,
    within: BorrowedFd<'a>,
    /// Below `within`.
    name: OsString,
}

impl Folder {
    pub(crate) fn open(path: &Path, trust: Trust) -> Result<Folder, ReadError> {
        Folder::open_at(CWD, path, path, trust)
    }

    fn open_at(within: BorrowedFd<'_>, name: &Path, path: &Path, trust: Trust) -> Result<Folder, ReadError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(within, name, flags, Mode::empty()).map_err(io_error(path))?;
        let stat = rustix::fs::fstat(&fd).map_err(io_error(path))?;
        let mount = rustix::fs::fstatvfs(&fd).map_err(io_error(path))?;
        let read_only = mount.f_flag.contains(StatVfsMountFlags::RDONLY);
        trust.judge_folder(path, stat.st_uid, stat.st_mode, read_only)?;
        Ok(Folder {
            path: path.to_owned(),
            fd,
        })
    }

    /// What may be packs, in name order: `*.lkst`, and folders with a manifest.
    pub(crate) fn places(&self) -> Result<Vec<Place<'_>>, ReadError> {
        let has_manifest = |name: &OsStr| {
            let manifest = Path::new(name).join(MANIFEST);
            let found = rustix::fs::statat(&self.fd, &manifest, AtFlags::empty());
            found.is_ok_and(|stat| kind(&stat) == FileType::RegularFile)
        };
        let mut names = self.names()?;
        names.retain(|name| is_rule_file(name) || has_manifest(name));
        Ok(names.into_iter().map(|name| self.place(name)).collect())
    }

    /// The rule files right in it, in name order.
    fn rule_files(&self) -> Result<Vec<Place<'_>>, ReadError> {
        let mut names = self.names()?;
        names.retain(|name| is_rule_file(name));
        Ok(names.into_iter().map(|name| self.place(name)).collect())
    }

    fn place(&self, name: OsString) -> Place<'_> {
        Place {
            path: self.path.join(&name),
            within: self.fd.as_fd(),
            name,
        }
    }

    fn names(&self) -> Result<Vec<OsString>, ReadError> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(io_error(&self.path))? {
            let entry = entry.map_err(io_error(&self.path))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if is_ignored(name) {
                continue;
            }
            if names.len() >= MOST_NAMES {
                return Err(ReadError::Crowded {
                    path: self.path.clone(),
                });
            }
            names.push(name.to_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// True for names that are not for lkst: hidden ones (`.`, `..data`, `.a.swp`, `.#a`) and what editors leave for a
/// moment (`a~`, `#a#`, `4913`).
#[must_use]
pub fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".")
        || name.ends_with(b"~")
        || (name.starts_with(b"#") && name.ends_with(b"#"))
        || name == b"4913"
}

/// Without hidden ones and without `*.test.lkst`.
fn is_rule_file(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.ends_with(b".lkst") && !bytes.ends_with(b".test.lkst") && !is_ignored(name)
}

impl<'a> Place<'a> {
    fn alone(path: &Path) -> Place<'a> {
        Place {
            path: path.to_owned(),
            within: CWD,
            name: path.as_os_str().to_owned(),
        }
    }

    /// The name that the pack has there.
    pub(crate) fn name(&self) -> Result<String, ReadError> {
        pack_name(&self.path).ok_or_else(|| ReadError::Name {
            path: self.path.clone(),
        })
    }

    /// True where the error is only that it was deleted since it was listed; a link that leads nowhere is there.
    pub(crate) fn went(&self, error: &ReadError) -> bool {
        error.is_gone() && rustix::fs::statat(self.within, &self.name, AtFlags::SYMLINK_NOFOLLOW).is_err()
    }

    fn stat(&self) -> Result<Stat, ReadError> {
        rustix::fs::statat(self.within, &self.name, AtFlags::empty()).map_err(io_error(&self.path))
    }

    /// Reads the one pack that is there.
    pub(crate) fn read(&self, trust: Trust) -> Result<PackText, ReadError> {
        let name = self.name()?;
        if kind(&self.stat()?) != FileType::Directory {
            return read_files(name, &self.path, std::slice::from_ref(self), trust);
        }
        let folder = Folder::open_at(self.within, Path::new(&self.name), &self.path, trust)?;
        if rustix::fs::statat(&folder.fd, MANIFEST, AtFlags::empty()).is_err() {
            return Err(ReadError::NoManifest {
                path: self.path.clone(),
            });
        }
        read_files(name, &self.path, &folder.rule_files()?, trust)
    }

    /// The bytes of the file, all of one moment. At most one byte more than the language allows, so that the diagnostic
    /// for a file that is too large is given.
    fn bytes(&self, trust: Trust) -> Result<Vec<u8>, ReadError> {
        for _ in 0..READS {
            // Opening a FIFO would wait for a writer, and some devices act when they are opened.
            self.regular(&self.stat()?)?;
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            let file = rustix::fs::openat(self.within, &self.name, flags, Mode::empty())
                .map_err(io_error(&self.path))?;
            let mut file = File::from(file);
            let before = rustix::fs::fstat(&file).map_err(io_error(&self.path))?;
            self.regular(&before)?;
            trust.judge(&self.path, before.st_uid, before.st_mode)?;
            let mut bytes = Vec::new();
            (&mut file)
                .take(LARGEST_FILE as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(io_error(&self.path))?;
            let after = rustix::fs::fstat(&file).map_err(io_error(&self.path))?;
            if moment(&before) == moment(&after) && moment(&before) == moment(&self.stat()?) {
                return Ok(bytes);
            }
        }
        Err(ReadError::Changing {
            path: self.path.clone(),
        })
    }

    fn regular(&self, stat: &Stat) -> Result<(), ReadError> {
        match kind(stat) {
            FileType::RegularFile => Ok(()),
            _ => Err(ReadError::NotAFile {
                path: self.path.clone(),
            }),
        }
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What differs when a file is another one, or has been written to.
fn moment(stat: &Stat) -> impl PartialEq + use<> {
    let times = (
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_ctime,
        stat.st_ctime_nsec,
    );
    (stat.st_dev, stat.st_ino, stat.st_size, times)
}

fn read_files(name: String, path: &Path, files: &[Place<'_>], trust: Trust) -> Result<PackText, ReadError> {
    if files.is_empty() {
        return Err(ReadError::Empty {
            path: path.to_owned(),
        });
    }
    let mut diagnostics = Diagnostics::default();
    let mut sources = Vec::with_capacity(files.len());
    let mut hash = Hash::default();
    hash.add(name.as_bytes());
    let mut total = 0;
    for (file, number) in files.iter().zip(0..) {
        let bytes = file.bytes(trust)?;
        total += bytes.len();
        if total > LARGEST_PACK {
            return Err(ReadError::TooLarge {
                path: path.to_owned(),
            });
        }
        hash.add(file.path.file_name().unwrap_or_default().as_bytes());
        hash.add(&bytes);
        let shown = file.path.display().to_string();
        let source = source_from_bytes(&shown, bytes, number, &mut diagnostics);
        sources.push(source.unwrap_or(lkst_rules::source::Source {
            name: shown,
            text: String::new(),
        }));
    }
    Ok(PackText {
        pack: Pack { name, sources },
        diagnostics,
        hash: hash.hex(),
    })
}

/// A hash of several texts, which cannot be confused with other texts that are the same when joined.
#[derive(Default)]
struct Hash(Sha256);

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn hex(self) -> String {
        self.0
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// `/etc/lkst/rules.d/10-io_stall.lkst` is the pack `io_stall`.
pub(crate) fn pack_name(place: &Path) -> Option<String> {
    let place = match place.file_name() {
        Some(_) => place.to_owned(),
        None => place.canonicalize().ok()?,
    };
    let name = place.file_name()?.to_str()?;
    let name = name.strip_suffix(".lkst").unwrap_or(name);
    let name = match name.split_once('-') {
        Some((number, rest)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => name,
    };
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (!name.is_empty() && name.len() <= 64 && name.chars().all(good)).then(|| name.to_owned())
}
