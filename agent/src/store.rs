//! What is on disk, and for how long: the state folder and limits in, the oldest incidents deleted out.
//!
//! ```text
//! STATE/PACK/TIME-RULE/            an incident, written by `trace/seal.rs`
//! STATE/PACK/TIME-RULE/.….unfinished       a trace being written
//! STATE/PACK/TIME-stream/                  a piece of a stream, by `trace/piece.rs`: an incident like any other
//! STATE/PACK/.TIME-RULE.deleted            an incident being deleted
//! STATE/guard.json                 and whatever else: not ours to delete
//! ```
//!
//! An incident is as old as its last trace, and as large as the blocks that it has on disk.
//!
//! INVARIANT: only folders that are called as incidents are, in folders that are called as packs are, are measured and
//! deleted. No link is followed and no other mount entered. What is deleted is renamed first, so nothing that lies
//! under the name of an incident is ever half of one.

mod limits;
mod name;
mod tree;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, RenameFlags};
use rustix::io::Errno;

use crate::trace::piece::BEGUN_FILE;
use crate::trace::whole::is_unfinished;
use crate::trust::{Mistrust, Trust};
pub use limits::{Limits, Over};
use limits::{doomed, is_too_old, uses};
use name::{deleted, is_deleted, is_incident, is_pack};

/// A folder that changed this shortly ago may change again within the tick of the clock that its time was taken from.
const SETTLED: Duration = Duration::from_secs(2);
/// So many things that went wrong are told of one look; more would only repeat them.
const MOST_TROUBLES: usize = 8;

/// Why there is no state folder.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be made.
    #[error("cannot make the state folder {path:?}: {error}")]
    Make {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It cannot be opened, or is no folder.
    #[error("cannot open the state folder {path:?}: {error}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Others could put something there, or take something away.
    #[error(transparent)]
    Mistrust(#[from] Mistrust),
    /// Another agent has it.
    #[error("another agent keeps its incidents in {path:?}: stop it, or set another `state_dir`")]
    InUse {
        /// Which.
        path: PathBuf,
    },
}

/// An incident on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDisk {
    /// Its pack.
    pub pack: String,
    /// Its folder.
    pub path: PathBuf,
    /// What it has on disk, in bytes.
    pub size_bytes: u64,
    /// When its last trace was written.
    pub saved_at: SystemTime,
}

/// What was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Each incident, and the limit that it was over.
    pub removed: Vec<(OnDisk, Over)>,
    /// What they had on disk, in bytes.
    pub freed_bytes: u64,
    /// What went wrong, for people.
    pub troubles: Vec<String>,
}

/// The state folder. While it is held no other agent has it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    folder: OwnedFd,
    /// When the folder last changed, where what is known of it is known for good.
    settled: Option<SystemTime>,
    packs: BTreeMap<String, Pack>,
}

#[derive(Debug, Default)]
struct Pack {
    /// As the store's.
    settled: Option<SystemTime>,
    incidents: BTreeMap<String, Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    size_bytes: u64,
    saved_at: SystemTime,
    /// It is complete: nothing will be written there.
    settled: bool,
}

impl Store {
    /// Opens the state folder, makes it where it is missing, and removes what an agent that was killed left half-written
    /// or half-deleted.
    ///
    /// # Errors
    /// See [`StoreError`]. What could not be removed is no error: it is tried again when the agent next starts.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let folder = open_root(path)?;
        let store = Store {
            path: path.to_owned(),
            folder,
            settled: None,
            packs: BTreeMap::new(),
        };
        if let Err(error) = store.remove_leftovers() {
            tracing::warn!(%error, "what a killed agent left in {path:?} could not be removed");
        }
        Ok(store)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The incidents, the oldest first, as of the last [`Store::look`] or [`Store::prune`].
    #[must_use]
    pub fn incidents(&self) -> Vec<OnDisk> {
        let mut all: Vec<OnDisk> = self
            .packs
            .iter()
            .flat_map(|(pack, known)| {
                known.incidents.iter().map(move |(name, known)| OnDisk {
                    pack: pack.clone(),
                    path: self.path.join(pack).join(name),
                    size_bytes: known.size_bytes,
                    saved_at: known.saved_at,
                })
            })
            .collect();
        // Names begin with the time, which tells apart what was saved in one tick.
        all.sort_by(|a, b| (a.saved_at, a.path.file_name()).cmp(&(b.saved_at, b.path.file_name())));
        all
    }

    /// Looks what is there. Only folders that have changed are read; `in_use` are incidents that are being written, or
    /// anything in them. Returns what went wrong, for people.
    pub fn look(&mut self, now: SystemTime, in_use: &[PathBuf]) -> Vec<String> {
        let mut troubles = Vec::new();
        if let Err(error) = self.follow_path() {
            troubles.push(error.to_string());
            return troubles;
        }
        if let Err(error) = self.look_at_packs(now) {
            troubles.push(format!("cannot read the state folder {:?}: {error}", self.path));
        }
        for (name, pack) in &mut self.packs {
            let path = self.path.join(name);
            if let Err(error) = pack.look(&self.folder, name, &path, now, in_use) {
                troubles.push(format!("cannot read the incidents in {path:?}: {error}"));
            }
        }
        troubles.truncate(MOST_TROUBLES);
        troubles
    }

    /// Deletes the oldest incidents until the rest is within the limits; never one that is `in_use`: being written.
    /// Cheap where nothing changed. Fit to be called after each save and every minute.
    pub fn prune(&mut self, limits: &Limits, now: SystemTime, in_use: &[PathBuf]) -> Pruned {
        let mut pruned = Pruned {
            troubles: self.look(now, in_use),
            ..Pruned::default()
        };
        if self.is_within(limits, now) {
            return pruned;
        }
        let all = self.incidents();
        for (at, over) in doomed(&all, limits, now, in_use) {
            let Some(incident) = all.get(at) else { continue };
            let Some(name) = incident.path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if let Err(error) = self.delete(&incident.pack, name) {
                let text = format!("{:?} cannot be deleted: {error}", incident.path);
                pruned.troubles.push(text);
                // There is no use in trying all others.
                if error.kind() == io::ErrorKind::ReadOnlyFilesystem || pruned.troubles.len() >= MOST_TROUBLES
                {
                    break;
                }
                continue;
            }
            if incident.size_bytes > over.most_bytes(limits) {
                pruned.troubles.push(format!(
                    "{:?} had {} bytes, alone more than `{}` allows, and was deleted: raise it, or make the buffers of pack `{}` \
                     smaller",
                    incident.path,
                    incident.size_bytes,
                    over.key(),
                    incident.pack
                ));
            }
            pruned.freed_bytes = pruned.freed_bytes.saturating_add(incident.size_bytes);
            pruned.removed.push((incident.clone(), over));
        }
        pruned
    }

    /// Whether nothing has to go, in one pass and without a copy: as it is nearly always.
    fn is_within(&self, limits: &Limits, now: SystemTime) -> bool {
        let mut total_bytes = 0_u64;
        self.packs.values().all(|pack| {
            let mut pack_bytes = 0_u64;
            let is_young = pack.incidents.values().all(|known| {
                pack_bytes = pack_bytes.saturating_add(known.size_bytes);
                !is_too_old(known.saved_at, limits, now)
            });
            total_bytes = total_bytes.saturating_add(pack_bytes);
            is_young && pack_bytes <= limits.pack_bytes && total_bytes <= limits.all_bytes
        })
    }

    /// Looks whether the path still leads to the folder that is held; else takes the one that is there, or makes it.
    fn follow_path(&mut self) -> Result<(), StoreError> {
        let held = rustix::fs::fstat(&self.folder).map(|stat| (stat.st_dev, stat.st_ino));
        let there = std::fs::metadata(&self.path).map(|found| (found.dev(), found.ino()));
        if let (Ok(held), Ok(there)) = (held, there)
            && held == there
        {
            return Ok(());
        }
        self.folder = open_root(&self.path)?;
        self.settled = None;
        self.packs.clear();
        Ok(())
    }

    fn look_at_packs(&mut self, now: SystemTime) -> io::Result<()> {
        let changed = tree::changed_at(&rustix::fs::fstat(&self.folder)?);
        if self.settled == Some(changed) {
            return Ok(());
        }
        let mut before = std::mem::take(&mut self.packs);
        for (name, is_folder) in tree::names(&self.folder)? {
            if is_folder && let Some(name) = name.to_str().ok().filter(|name| is_pack(name)) {
                let pack = before.remove(name).unwrap_or_default();
                self.packs.insert(name.to_owned(), pack);
            }
        }
        self.settled = is_settled(changed, now).then_some(changed);
        Ok(())
    }

    /// Renames an incident, then removes it.
    fn delete(&mut self, pack: &str, name: &str) -> io::Result<()> {
        let folder = tree::open(self.folder.as_fd(), &c_string(pack)?)?;
        let from = c_string(name)?;
        let to = c_string(&deleted(name))?;
        let rename = || rustix::fs::renameat_with(&folder, &from, &folder, &to, RenameFlags::NOREPLACE);
        let renamed = match rename() {
            Err(Errno::EXIST) => {
                tree::remove(folder.as_fd(), &to)?;
                rename()
            }
            // A filesystem that cannot promise it, such as NFS.
            Err(Errno::INVAL) => rustix::fs::renameat(&folder, &from, &folder, &to),
            renamed => renamed,
        };
        match renamed {
            // Somebody has removed it by hand.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(pack) = self.packs.get_mut(pack) {
            pack.incidents.remove(name);
            pack.settled = None;
        }
        tree::remove(folder.as_fd(), &to)
    }

    /// Nobody else has the folder, and nothing is being written yet: what is unfinished stays so. What resists keeps
    /// nothing else.
    fn remove_leftovers(&self) -> io::Result<()> {
        let mut result = Ok(());
        for (pack, is_folder) in tree::names(&self.folder)? {
            if is_folder && pack.to_str().is_ok_and(is_pack) {
                let removed = tree::open(self.folder.as_fd(), &pack).and_then(|pack| clean(&pack));
                result = result.and(removed);
            }
        }
        result
    }
}

/// Removes what is half-written or half-deleted in the folder of a pack.
fn clean(pack: &OwnedFd) -> io::Result<()> {
    let mut result = Ok(());
    for (name, is_folder) in tree::names(pack)? {
        if !is_folder {
            continue;
        }
        let text = name.to_str().unwrap_or_default();
        if is_unfinished(name.to_bytes()) || is_deleted(text) {
            result = result.and(tree::remove(pack.as_fd(), &name));
        } else if is_incident(text) {
            result = result.and(clean_incident(pack, &name));
        }
    }
    result
}

/// Removes what is half-written in an incident, and the incident where that was all.
fn clean_incident(pack: &OwnedFd, name: &CStr) -> io::Result<()> {
    let incident = tree::open(pack.as_fd(), name)?;
    let parts = tree::names(&incident)?;
    let mut is_empty = true;
    for (part, is_folder) in parts {
        let is_half = is_folder && is_unfinished(part.to_bytes());
        // What a stream has drained is nowhere else: the session finishes it.
        if is_half && !is_piece(&incident, &part) {
            tree::remove(incident.as_fd(), &part)?;
        } else {
            is_empty = false;
        }
    }
    if is_empty {
        rustix::fs::unlinkat(pack, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Whether it is a piece of a stream that was left unfinished.
fn is_piece(incident: &OwnedFd, part: &CStr) -> bool {
    let begun =
        tree::open(incident.as_fd(), part).and_then(|part| tree::stat(part.as_fd(), &c_string(BEGUN_FILE)?));
    begun.is_ok()
}

impl Pack {
    fn look(
        &mut self,
        root: &OwnedFd,
        name: &str,
        path: &Path,
        now: SystemTime,
        in_use: &[PathBuf],
    ) -> io::Result<()> {
        let name = c_string(name)?;
        let stat = match tree::stat(root.as_fd(), &name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *self = Pack::default();
                return Ok(());
            }
            stat => stat?,
        };
        let changed = tree::changed_at(&stat);
        let all_known = self.incidents.values().all(|known| known.settled);
        if self.settled == Some(changed) && all_known {
            return Ok(());
        }
        let folder = tree::open(root.as_fd(), &name)?;
        if self.settled != Some(changed) {
            self.settled = self
                .look_at_names(&folder, now)?
                .then_some(changed)
                .filter(|at| is_settled(*at, now));
        }
        let mut gone = Vec::new();
        let mut result = Ok(());
        for (name, known) in self.incidents.iter_mut().filter(|(_, known)| !known.settled) {
            match measure(&folder, &c_string(name)?) {
                Ok((size_bytes, saved_at)) => {
                    *known = Known {
                        size_bytes,
                        saved_at,
                        settled: is_settled(saved_at, now) && !uses(in_use, &path.join(name)),
                    };
                }
                Err(error) => {
                    gone.push(name.clone());
                    if error.kind() != io::ErrorKind::NotFound {
                        let text = format!("{name:?} is left alone: {error}");
                        result = result.and(Err(io::Error::new(error.kind(), text)));
                    }
                }
            }
        }
        for name in gone {
            self.incidents.remove(&name);
            self.settled = None;
        }
        result
    }

    /// Takes note of what came and what went. False where something half-deleted resists.
    fn look_at_names(&mut self, folder: &OwnedFd, now: SystemTime) -> io::Result<bool> {
        let mut before = std::mem::take(&mut self.incidents);
        let mut clean = true;
        for (name, is_folder) in tree::names(folder)? {
            if !is_folder {
                continue;
            }
            if name.to_str().is_ok_and(is_deleted) {
                clean &= tree::remove(folder.as_fd(), &name).is_ok();
            } else if let Some(name) = name.to_str().ok().filter(|name| is_incident(name)) {
                let new = Known {
                    size_bytes: 0,
                    saved_at: now,
                    settled: false,
                };
                let known = before.remove(name).unwrap_or(new);
                self.incidents.insert(name.to_owned(), known);
            }
        }
        Ok(clean)
    }
}

/// An incident's size in bytes, and when it last changed.
fn measure(pack: &OwnedFd, name: &CStr) -> io::Result<(u64, SystemTime)> {
    let folder = tree::open(pack.as_fd(), name)?;
    let changed = tree::changed_at(&rustix::fs::fstat(&folder)?);
    Ok((tree::size_bytes(&folder)?, changed))
}

/// Whether a change that happens now would show in the time of the last change.
fn is_settled(changed: SystemTime, now: SystemTime) -> bool {
    let apart = now
        .duration_since(changed)
        .unwrap_or_else(|future| future.duration());
    apart >= SETTLED
}

/// Opens the state folder for us alone.
fn open_root(path: &Path) -> Result<OwnedFd, StoreError> {
    let cannot_open = |error: io::Error| StoreError::Open {
        path: path.to_owned(),
        error,
    };
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(|error| StoreError::Make {
            path: path.to_owned(),
            error,
        })?;
    let folder = File::open(path).map_err(cannot_open)?;
    let found = folder.metadata().map_err(cannot_open)?;
    if !found.is_dir() {
        return Err(cannot_open(io::ErrorKind::NotADirectory.into()));
    }
    let us = rustix::process::geteuid().as_raw();
    Trust::Owner(us).judge(path, found.uid(), found.mode())?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder.into()),
        Err(Errno::WOULDBLOCK) => Err(StoreError::InUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(cannot_open(error.into())),
    }
}

fn c_string(name: &str) -> io::Result<CString> {
    Ok(CString::new(name)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests;
