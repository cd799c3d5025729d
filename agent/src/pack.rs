//! Packs on disk: a file or folder in, the packs' names and texts out.
//!
//! Rules come from whoever can write to a folder, so nothing here trusts a path: only regular files are opened, never
//! a FIFO or a device, and never more of one than the language allows.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use lkst_rules::Pack;
use lkst_rules::diagnostic::Diagnostics;
use lkst_rules::parse::{LARGEST_FILE, source_from_bytes};
use rustix::fs::{Mode, OFlags};

/// What a path holds: packs, and what was wrong with the texts of each.
#[derive(Debug, Default)]
pub struct Found {
    /// The packs, each with diagnostics of its bytes: not UTF-8, too large.
    pub packs: Vec<(Pack, Diagnostics)>,
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
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ReadError + '_ {
    |error| ReadError::Io {
        path: path.to_owned(),
        error,
    }
}

/// Reads the packs of a file, of a pack's folder, or of a folder of packs.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path) -> Result<Found, ReadError> {
    let kind = fs::metadata(path).map_err(io_error(path))?.file_type();
    let mut found = Found::default();
    if kind.is_file() {
        found.packs.push(read_pack(path, &[path.to_owned()])?);
        return Ok(found);
    }
    if !kind.is_dir() {
        return Err(ReadError::NotAFile {
            path: path.to_owned(),
        });
    }
    if path.join("pack.toml").exists() {
        found.packs.push(read_pack(path, &rule_files(path)?)?);
        return Ok(found);
    }
    let mut places: Vec<PathBuf> = rule_files(path)?;
    places.extend(
        entries(path)?
            .into_iter()
            .filter(|entry| entry.join("pack.toml").is_file()),
    );
    places.sort();
    let mut seen: Vec<(String, PathBuf)> = Vec::new();
    for place in places {
        let files = if place.is_dir() {
            rule_files(&place)?
        } else {
            vec![place.clone()]
        };
        let (pack, diagnostics) = read_pack(&place, &files)?;
        if let Some((name, first)) = seen.iter().find(|(name, _)| *name == pack.name) {
            return Err(ReadError::Twice {
                name: name.clone(),
                first: first.clone(),
                second: place,
            });
        }
        seen.push((pack.name.clone(), place));
        found.packs.push((pack, diagnostics));
    }
    if found.packs.is_empty() {
        return Err(ReadError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let mut entries = fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|e| e.map(|e| e.path()))
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(io_error(folder))?;
    entries.sort();
    Ok(entries)
}

/// The rule files right in a folder, in name order, without hidden ones and without `*.test.lkst`.
fn rule_files(folder: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let is_rules = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        name.ends_with(".lkst") && !name.ends_with(".test.lkst") && !name.starts_with('.')
    };
    Ok(entries(folder)?.into_iter().filter(is_rules).collect())
}

fn read_pack(place: &Path, files: &[PathBuf]) -> Result<(Pack, Diagnostics), ReadError> {
    let name = pack_name(place).ok_or_else(|| ReadError::Name {
        path: place.to_owned(),
    })?;
    if files.is_empty() {
        return Err(ReadError::Empty {
            path: place.to_owned(),
        });
    }
    let mut diagnostics = Diagnostics::default();
    let mut sources = Vec::with_capacity(files.len());
    for (file, number) in files.iter().zip(0..) {
        let bytes = read_file(file)?;
        let shown = file.display().to_string();
        let source = source_from_bytes(&shown, bytes, number, &mut diagnostics);
        sources.push(source.unwrap_or(lkst_rules::source::Source {
            name: shown,
            text: String::new(),
        }));
    }
    Ok((Pack { name, sources }, diagnostics))
}

/// `/etc/lkst/rules.d/10-io_stall.lkst` is the pack `io_stall`.
fn pack_name(place: &Path) -> Option<String> {
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

/// At most one byte more than the language allows, so that the diagnostic for a file that is too large is given.
fn read_file(path: &Path) -> Result<Vec<u8>, ReadError> {
    // Opening a FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io_error(path)(e.into()))?;
    let file = File::from(file);
    if !file.metadata().map_err(io_error(path))?.is_file() {
        return Err(ReadError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error(path))?;
    Ok(bytes)
}
