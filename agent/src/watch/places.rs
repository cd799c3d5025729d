//! What must be watched to see every change of a rules folder: its path in, folders and the names that matter in them out.
//!
//! Links are followed by hand, since a watch on a folder sees only that folder: every folder in which a link, or what
//! it leads to, is looked up is watched for that one name. So a link that is swapped and a target that is rewritten are
//! both seen.
//!
//! INVARIANT: folders come in the order in which they are found, those above first: whoever watches them in this order
//! sees a change of what is below from then on.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use crate::pack::is_ignored;

/// The most folders that are watched.
pub(super) const MOST_FOLDERS: usize = 1024;
/// The most entries of one folder that are looked at.
const MOST_ENTRIES: usize = 10_000;
/// The most links on one path, as the kernel has it.
const MOST_LINKS: usize = 40;

/// Folders to watch.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) folders: Vec<Watched>,
    /// There are more than are watched.
    pub(super) crowded: bool,
}

/// A folder to watch.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) path: PathBuf,
    /// Device and inode: two paths may lead to one folder.
    pub(super) id: (u64, u64),
    pub(super) interest: Interest,
}

/// What in a folder matters. What happens to the folder itself always does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// Whatever may be a rule file or a pack.
    rules: bool,
    /// These names.
    names: BTreeSet<OsString>,
}

impl Interest {
    pub(super) fn wants(&self, name: &OsStr) -> bool {
        (self.rules && !is_ignored(name)) || self.names.contains(name)
    }
}

impl Places {
    /// What to watch for a rules folder, which may not be there yet. `rules` is absolute.
    pub(super) fn of(rules: &Path) -> Places {
        let mut places = Places::default();
        if let Some(folder) = places.follow(rules) {
            places.folder(&folder, true);
        }
        places
    }

    /// A folder of packs, or of one pack.
    fn folder(&mut self, folder: &Path, of_packs: bool) {
        if let Some(interest) = self.interest(folder) {
            interest.rules = true;
        }
        // What cannot be listed is told by whoever reads it.
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        for (entry, number) in entries.flatten().zip(0..) {
            self.crowded |= number >= MOST_ENTRIES;
            if self.crowded {
                return;
            }
            if is_ignored(&entry.file_name()) {
                continue;
            }
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let below = match kind.is_symlink() {
                true => self.follow(&entry.path()),
                false => kind.is_dir().then(|| entry.path()),
            };
            if let Some(below) = below.filter(|below| of_packs && below.is_dir()) {
                self.folder(&below, false);
            }
        }
    }

    /// Where a path leads, link by link; `None` where it leads nowhere now. The folder of every link, and of the end, is
    /// watched; where something is missing, the last folder that is there.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        let mut at = PathBuf::from("/");
        let mut todo: VecDeque<OsString> = path.components().filter_map(step).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let found = fs::symlink_metadata(&next);
            let is_link = found.as_ref().is_ok_and(fs::Metadata::is_symlink);
            let is_folder = found.as_ref().is_ok_and(fs::Metadata::is_dir);
            if is_link || !is_folder || todo.is_empty() {
                self.name(&at, &name);
            }
            if is_link {
                links += 1;
                let target = fs::read_link(&next).ok().filter(|_| links <= MOST_LINKS)?;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for part in target.components().rev().filter_map(step) {
                    todo.push_front(part);
                }
            } else if found.is_err() || (!is_folder && !todo.is_empty()) {
                return None;
            } else {
                at = next;
            }
        }
        Some(at)
    }

    fn name(&mut self, folder: &Path, name: &OsStr) {
        if let Some(interest) = self.interest(folder) {
            interest.names.insert(name.to_owned());
        }
    }

    fn interest(&mut self, folder: &Path) -> Option<&mut Interest> {
        let found = fs::metadata(folder).ok()?;
        let id = (found.dev(), found.ino());
        let at = self.folders.iter().position(|watched| watched.id == id);
        let at = match at {
            Some(at) => at,
            None if self.folders.len() >= MOST_FOLDERS => {
                self.crowded = true;
                return None;
            }
            None => {
                self.folders.push(Watched {
                    path: folder.to_owned(),
                    id,
                    interest: Interest::default(),
                });
                self.folders.len() - 1
            }
        };
        self.folders.get_mut(at).map(|watched| &mut watched.interest)
    }
}

fn step(component: Component<'_>) -> Option<OsString> {
    match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The folders below `root`, each with the names that matter in it, `*` for rules.
    fn shown(places: &Places, root: &Path) -> Vec<String> {
        let show = |watched: &Watched| {
            let path = watched.path.strip_prefix(root).ok()?.display();
            let rules = watched.interest.rules.then_some("*");
            let names = watched.interest.names.iter().filter_map(|name| name.to_str());
            Some(format!(
                "{path}/{}",
                rules.into_iter().chain(names).collect::<Vec<_>>().join(",")
            ))
        };
        places.folders.iter().filter_map(show).collect()
    }

    #[test]
    fn links_are_watched_where_they_are_and_where_they_lead() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in [
            "etc/rules.d/pack",
            "etc/rules.d/..2026",
            "etc/rules.d/.hidden",
            "opt/a/b",
            "srv",
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink("../etc", root.join("srv/etc")).unwrap();
        symlink("..2026", root.join("etc/rules.d/..data")).unwrap();
        symlink("..data/x.lkst", root.join("etc/rules.d/x.lkst")).unwrap();
        symlink(root.join("opt/a/b"), root.join("etc/rules.d/linked")).unwrap();
        symlink("../../../srv/y.lkst", root.join("etc/rules.d/pack/y.lkst")).unwrap();
        symlink("loop", root.join("etc/rules.d/loop")).unwrap();
        let places = Places::of(&root.join("srv/etc/rules.d"));
        let mut shown = shown(&places, &root);
        shown.sort();
        let expected = [
            "etc/rules.d",
            "etc/rules.d/*,..data,linked,loop,x.lkst",
            "etc/rules.d/..2026/x.lkst",
            "etc/rules.d/pack/*,y.lkst",
            "opt/a/b",
            "opt/a/b/*",
            "srv/etc,y.lkst",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_not_there_is_awaited_in_the_nearest_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        let places = Places::of(&root.join("etc/lkst/rules.d"));
        assert_eq!(shown(&places, &root), ["etc/lkst"]);
        fs::write(root.join("etc/lkst"), "").unwrap();
        let places = Places::of(&root.join("etc/lkst/rules.d"));
        assert_eq!(shown(&places, &root), ["etc/lkst"]);
    }

    #[test]
    fn hostile_folders_have_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for number in 0..MOST_FOLDERS + 10 {
            fs::create_dir(root.join(format!("d{number}"))).unwrap();
        }
        let places = Places::of(&root);
        assert!(places.crowded);
        assert_eq!(places.folders.len(), MOST_FOLDERS);
    }
}
