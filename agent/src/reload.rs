//! Which rules are to be in force: what the rules folder holds now, and of each pack the last version that was good.
//!
//! In: a [`Scan`] of the folder, a way to compile. Out: the plans of the next generation. A pack whose newest text is
//! wrong keeps its last good one; the others go on.
//!
//! INVARIANT: nothing here is in force before [`Packs::accept`], and [`Packs::reject`] brings back what was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use lkst_rules::Pack;
use lkst_rules::plan::Plan;
use lkst_rules::source::Source;
use serde::{Deserialize, Serialize};

use crate::compile::Compiled;
use crate::pack::PackText;
use crate::rules_dir::Scan;

/// All packs.
#[derive(Debug, Default)]
pub struct Packs {
    packs: BTreeMap<String, Entry>,
    /// Places that name no pack, and why.
    nameless: Vec<(PathBuf, String)>,
    /// Why the folder gave nothing.
    trouble: Option<String>,
}

/// A pack.
#[derive(Debug, Default)]
pub struct Entry {
    /// Where it was read last.
    pub path: PathBuf,
    /// What is in force.
    pub good: Option<Version>,
    /// What is to be in force.
    next: Option<Version>,
    /// Why the text that is in the folder now is not in force.
    pub error: Option<String>,
    /// Why it was taken out of the kernel until a person resets it, or changes its text.
    pub down: Option<String>,
    /// The hash of the text that was compiled last, and the key of what it was compiled with.
    seen: Option<(String, String)>,
}

/// A text that compiled.
#[derive(Debug, Clone)]
pub struct Version {
    /// The plan.
    pub plan: Arc<Plan>,
    /// What must be known to compile it again.
    pub text: VersionText,
    /// What the compiler warned of.
    pub warnings: Option<String>,
}

/// What must be known of a version to compile it again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VersionText {
    /// The pack's name.
    pub name: String,
    /// Where it was read.
    pub path: PathBuf,
    /// Of its files.
    pub hash: String,
    /// Its files: names and texts.
    pub sources: Vec<(String, String)>,
    /// What it was compiled with.
    pub settings: String,
    /// When it came into force.
    pub since_unix_ns: u64,
    /// Why it is not in force any more though it is good: see [`Packs::take_down`].
    #[serde(default)]
    pub down: Option<String>,
}

impl VersionText {
    /// The pack, to be compiled.
    #[must_use]
    pub fn pack(&self) -> Pack {
        let sources = self.sources.iter().map(|(name, text)| Source {
            name: name.clone(),
            text: text.clone(),
        });
        Pack {
            name: self.name.clone(),
            sources: sources.collect(),
        }
    }
}

impl Packs {
    /// Takes over what another agent had in force.
    #[must_use]
    pub fn adopt(versions: Vec<Version>) -> Packs {
        let entry = |version: Version| {
            let seen = (version.text.hash.clone(), version.text.settings.clone());
            let entry = Entry {
                path: version.text.path.clone(),
                seen: Some(seen),
                down: version.text.down.clone(),
                good: Some(version),
                ..Entry::default()
            };
            (
                entry
                    .good
                    .as_ref()
                    .map_or_else(String::new, |v| v.text.name.clone()),
                entry,
            )
        };
        Packs {
            packs: versions.into_iter().map(entry).collect(),
            ..Packs::default()
        }
    }

    /// Looks at what the folder holds now. Only texts that are new, or newly set up by `settings` (a key of all that a
    /// pack is compiled with), are compiled; with `again` all are. Returns whether other plans are wanted than are in
    /// force.
    pub fn look(
        &mut self,
        scan: Scan,
        settings: impl Fn(&str) -> String,
        again: bool,
        mut compile: impl FnMut(PackText) -> Result<Compiled, String>,
    ) -> bool {
        self.trouble = scan.trouble;
        // What was there stays in force where the folder itself cannot be read: nobody has said that it is to go.
        if self.trouble.is_some() {
            return false;
        }
        self.nameless.clear();
        let mut there = Vec::new();
        for scanned in scan.packs {
            let Some(name) = scanned.name else {
                if let Err(error) = scanned.read {
                    self.nameless.push((scanned.path, error.to_string()));
                }
                continue;
            };
            there.push(name.clone());
            let entry = self.packs.entry(name.clone()).or_default();
            entry.path.clone_from(&scanned.path);
            match scanned.read {
                Ok(text) => entry.look_at(text, settings(&name), again, &mut compile),
                Err(error) => {
                    entry.error = Some(error.to_string());
                    entry.seen = None;
                    entry.next = None;
                }
            }
        }
        let before = self.packs.len();
        let gone = |(name, entry): (&String, &Entry)| !there.contains(name) && entry.good.is_some();
        let removed = self.packs.iter().any(gone);
        self.packs.retain(|name, _| there.contains(name));
        removed || self.packs.len() < before || self.packs.values().any(|entry| entry.next.is_some())
    }

    /// What is to be in force, in name order: the packs' names, whether each is new, and the plans.
    #[must_use]
    pub fn wanted(&self) -> Vec<(String, bool, Arc<Plan>)> {
        self.packs
            .iter()
            .filter(|(_, entry)| entry.down.is_none())
            .filter_map(|(name, entry)| {
                let version = entry.next.as_ref().or(entry.good.as_ref())?;
                Some((name.clone(), entry.next.is_some(), version.plan.clone()))
            })
            .collect()
    }

    /// What whoever takes over from us has to know of the packs that [`Packs::wanted`] names, and of those that are down.
    #[must_use]
    pub fn texts(&self, now_unix_ns: u64) -> Vec<VersionText> {
        let text = |entry: &Entry| {
            let (version, since_unix_ns) = match (&entry.next, &entry.good) {
                (Some(next), _) => (next, now_unix_ns),
                (None, Some(good)) => (good, good.text.since_unix_ns),
                (None, None) => return None,
            };
            Some(VersionText {
                since_unix_ns,
                down: entry.down.clone(),
                ..version.text.clone()
            })
        };
        self.packs.values().filter_map(text).collect()
    }

    /// What was wanted is in force.
    pub fn accept(&mut self, now_unix_ns: u64) {
        for entry in self.packs.values_mut() {
            if let Some(mut next) = entry.next.take() {
                next.text.since_unix_ns = now_unix_ns;
                entry.good = Some(next);
                entry.error = None;
            }
        }
    }

    /// The newest version of a pack cannot be in force.
    pub fn reject(&mut self, name: &str, error: String) {
        if let Some(entry) = self.packs.get_mut(name)
            && entry.next.take().is_some()
        {
            entry.error = Some(error);
        }
    }

    /// A pack is to leave the kernel until [`Packs::lift`], or until its text changes.
    pub fn take_down(&mut self, name: &str, why: String) {
        if let Some(entry) = self.packs.get_mut(name) {
            entry.down = Some(why);
        }
    }

    /// A pack that was taken down may come back. Returns whether it was.
    pub fn lift(&mut self, name: &str) -> bool {
        self.packs
            .get_mut(name)
            .is_some_and(|entry| entry.down.take().is_some())
    }

    /// Sets aside what is new and returns it, pack by pack: for one that breaks all to be found.
    pub fn take_new(&mut self) -> Vec<(String, Version)> {
        self.packs
            .iter_mut()
            .filter_map(|(name, entry)| Some((name.clone(), entry.next.take()?)))
            .collect()
    }

    /// Wants a version that was set aside.
    pub fn want(&mut self, name: &str, version: Version) {
        if let Some(entry) = self.packs.get_mut(name) {
            entry.next = Some(version);
        }
    }

    /// Every pack, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.packs.iter()
    }

    /// A pack.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.packs.get(name)
    }

    /// What is wrong beside the packs, each for people.
    pub fn troubles(&self) -> impl Iterator<Item = String> {
        let nameless = self.nameless.iter().map(|(_, error)| error.clone());
        self.trouble.iter().cloned().chain(nameless)
    }
}

impl Entry {
    /// Whether some version of it is in force.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        self.good.is_some() && self.down.is_none()
    }

    fn look_at(
        &mut self,
        text: PackText,
        settings: String,
        again: bool,
        compile: &mut impl FnMut(PackText) -> Result<Compiled, String>,
    ) {
        let sources = &text.pack.sources;
        let has_none = !sources.is_empty() && sources.iter().all(|source| source.text.is_empty());
        // One that is too large, or no text, has none here either, and is told of as such.
        if has_none && text.diagnostics.list.is_empty() {
            // Whoever writes a file in place empties it first, and so does a full disk: nobody has said that the rules are
            // to go.
            self.error = Some(
                "it is empty, as a file that is just being written or that a full disk cut off; remove it where the pack is \
                 to go"
                    .to_owned(),
            );
            (self.seen, self.next) = (None, None);
            return;
        }
        let seen = (text.hash.clone(), settings);
        if !again && self.seen.as_ref() == Some(&seen) {
            return;
        }
        let version = VersionText {
            name: text.pack.name.clone(),
            path: self.path.clone(),
            hash: seen.0.clone(),
            sources: text
                .pack
                .sources
                .iter()
                .map(|source| (source.name.clone(), source.text.clone()))
                .collect(),
            settings: seen.1.clone(),
            since_unix_ns: 0,
            down: None,
        };
        let is_good = self
            .good
            .as_ref()
            .is_some_and(|good| (&good.text.hash, &good.text.settings) == (&seen.0, &seen.1));
        self.seen = Some(seen);
        self.next = None;
        if !is_good {
            // Whoever changed it has seen why it went.
            self.down = None;
        }
        if is_good && !again {
            // The last good text is back.
            self.error = None;
            return;
        }
        let compiled = match compile(text) {
            Ok(compiled) => compiled,
            Err(error) => {
                // Not the pack's fault: it is tried again.
                self.error = Some(error);
                self.seen = None;
                return;
            }
        };
        let said = Some(compiled.rendered(false)).filter(|said| !said.is_empty());
        match &compiled.plan {
            Some(plan) => {
                self.error = None;
                self.next = Some(Version {
                    plan: plan.clone(),
                    text: version,
                    warnings: said,
                });
            }
            None => self.error = said,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use lkst_rules::Options;
    use lkst_rules::testing::Fixture;

    use super::*;
    use crate::compile::compile_text;
    use crate::rules_dir::scan;
    use crate::trust::Trust;

    const GOOD: &str = "set s { sched:sched_switch }\nstart with s\n";

    struct Bed {
        dir: tempfile::TempDir,
        packs: Packs,
        compiled: usize,
    }

    impl Bed {
        fn new() -> Bed {
            Bed {
                dir: tempfile::tempdir().unwrap(),
                packs: Packs::default(),
                compiled: 0,
            }
        }

        fn put(&self, name: &str, text: &str) {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn look(&mut self) -> bool {
            let schema = Fixture::default();
            let compiled = &mut self.compiled;
            self.packs.look(
                scan(self.dir.path(), Trust::Anyone),
                |_| String::new(),
                false,
                |text| {
                    *compiled += 1;
                    Ok(compile_text(text, &Options::default(), &schema))
                },
            )
        }

        fn told(&self) -> Vec<(String, bool, bool)> {
            let told = |(name, entry): (&String, &Entry)| {
                (name.clone(), entry.good.is_some(), entry.error.is_some())
            };
            self.packs.iter().map(told).collect()
        }
    }

    #[test]
    fn a_broken_text_keeps_the_last_good_one() {
        let mut bed = Bed::new();
        bed.put("a.lkst", GOOD);
        bed.put("b.lkst", GOOD);
        assert!(bed.look());
        bed.packs.accept(1);
        assert!(!bed.look(), "nothing changed");
        assert_eq!(bed.compiled, 2);
        bed.put("a.lkst", "set s {");
        assert!(!bed.look(), "no other plans than those in force");
        assert_eq!(
            bed.told(),
            [("a".to_owned(), true, true), ("b".to_owned(), true, false)]
        );
        assert_eq!(bed.packs.wanted().len(), 2);
        bed.put("a.lkst", "");
        assert!(!bed.look(), "a file without a byte is one that is being written");
        assert!(
            bed.packs
                .get("a")
                .unwrap()
                .error
                .as_ref()
                .unwrap()
                .contains("it is empty")
        );
        assert_eq!(bed.packs.wanted().len(), 2);
        bed.put("a.lkst", GOOD);
        assert!(!bed.look(), "the last good text is back");
        assert!(!bed.told().iter().any(|(_, _, error)| *error));
        assert_eq!(bed.compiled, 3);
        std::fs::remove_file(bed.dir.path().join("a.lkst")).unwrap();
        assert!(bed.look());
        assert_eq!(bed.packs.wanted().len(), 1);
    }

    #[test]
    fn what_is_rejected_leaves_what_was() {
        let mut bed = Bed::new();
        bed.put("a.lkst", GOOD);
        bed.look();
        bed.packs.accept(1);
        bed.put("a.lkst", "set other { sched:sched_switch }\nstart with other\n");
        assert!(bed.look());
        bed.packs.reject("a", "too large".to_owned());
        assert!(!bed.look(), "it is not tried again and again");
        let entry = bed.packs.get("a").unwrap();
        assert_eq!(entry.error.as_deref(), Some("too large"));
        assert_eq!(entry.good.as_ref().unwrap().plan.sets[0].name, "s");
    }

    #[test]
    fn a_folder_that_is_gone_changes_nothing() {
        let mut bed = Bed::new();
        bed.put("a.lkst", GOOD);
        bed.look();
        bed.packs.accept(1);
        std::fs::remove_dir_all(bed.dir.path()).unwrap();
        assert!(!bed.look());
        assert_eq!(bed.packs.wanted().len(), 1);
        assert_eq!(bed.packs.troubles().count(), 1);
        std::fs::create_dir(bed.dir.path()).unwrap();
        assert!(bed.look(), "an empty folder has no packs");
    }
}
