//! The rules folder of the agent: the folder in, every pack in it out, each one read or with the reason why not.
//!
//! Unlike [`crate::pack::read`], which serves whoever waits for an answer, this never fails as a whole while the folder
//! can be listed: a pack that cannot be read disturbs no other.
//!
//! INVARIANT: of the packs that were read, no two have the same name, and there are at most [`MOST_PACKS`].

use std::io;
use std::path::{Path, PathBuf};

use crate::pack::{Folder, Names, PackText, Place, ReadError};
use crate::trust::Trust;

/// The most packs of a host. Those that cannot be read count, so that mending one puts no other out.
pub const MOST_PACKS: usize = 64;

/// What a rules folder holds.
#[derive(Debug, Default)]
pub struct Scan {
    /// All that looks like a pack, in name order.
    pub packs: Vec<Scanned>,
    /// Why the folder as a whole gave nothing, for people.
    pub trouble: Option<String>,
}

/// A place in the rules folder that looks like a pack.
#[derive(Debug)]
pub struct Scanned {
    /// Where.
    pub path: PathBuf,
    /// The pack's name. `None` where the place names no pack: a bad name, or that of another pack before it.
    pub name: Option<String>,
    /// Its texts, or why it has none.
    pub read: Result<PackText, ReadError>,
}

/// Reads all packs of a rules folder.
#[must_use]
pub fn scan(path: &Path, trust: Trust) -> Scan {
    let folder = match Folder::open(path, trust) {
        Ok(folder) => folder,
        Err(error) => return Scan::trouble(missing(path, &error)),
    };
    let places = match folder.places() {
        Ok(places) => places,
        Err(error) => return Scan::trouble(error.to_string()),
    };
    let mut seen = Names::default();
    let mut packs = Vec::with_capacity(places.len().min(MOST_PACKS));
    for place in &places {
        packs.extend(scan_place(place, packs.len(), &mut seen, trust));
    }
    Scan { packs, trouble: None }
}

/// `None` for what was deleted meanwhile.
fn scan_place(place: &Place<'_>, before: usize, seen: &mut Names, trust: Trust) -> Option<Scanned> {
    let named = seen.add(place);
    let name = named.is_ok().then(|| place.name().ok()).flatten();
    let read = named.and_then(|()| match before {
        MOST_PACKS.. => Err(ReadError::TooMany {
            path: place.path.clone(),
            most: MOST_PACKS,
        }),
        _ => place.read(trust),
    });
    if read.as_ref().is_err_and(|error| place.went(error)) {
        return None;
    }
    Some(Scanned {
        path: place.path.clone(),
        name,
        read,
    })
}

impl Scan {
    fn trouble(text: String) -> Scan {
        Scan {
            packs: Vec::new(),
            trouble: Some(text),
        }
    }
}

fn missing(path: &Path, error: &ReadError) -> String {
    match error {
        ReadError::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => {
            format!("the rules folder {path:?} does not exist: make it, and put `NAME.lkst` files there")
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use tempfile::TempDir;

    use super::*;

    const RULES: &str = "set s { sched:sched_switch }\nstart with s\n";

    fn folder() -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join("rules.d");
        fs::create_dir(&rules).unwrap();
        mode(&rules, 0o755);
        (dir, rules)
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        mode(path, 0o644);
        let parent = path.parent().unwrap();
        if parent.metadata().unwrap().permissions().mode() & 0o022 != 0 {
            mode(parent, 0o755);
        }
    }

    /// Of whoever runs the tests, and root.
    fn us() -> Trust {
        Trust::Owner(rustix::process::geteuid().as_raw())
    }

    /// The scan as `name: ok` or `name: the error`.
    fn told(rules: &Path) -> Vec<String> {
        let scan = scan(rules, us());
        assert_eq!(scan.trouble, None);
        scan.packs
            .iter()
            .map(|scanned| match &scanned.read {
                Ok(text) => {
                    assert_eq!(scanned.name.as_deref(), Some(text.pack.name.as_str()));
                    format!("{}: ok", text.pack.name)
                }
                Err(error) => format!("{}: {error}", scanned.name.as_deref().unwrap_or("?")),
            })
            .collect()
    }

    #[test]
    fn a_bad_file_disturbs_no_other() {
        let (_dir, rules) = folder();
        put(&rules.join("10-a.lkst"), RULES);
        put(&rules.join("20-b c.lkst"), RULES);
        put(&rules.join("30-d.lkst"), RULES);
        put(&rules.join("40-a.lkst"), RULES);
        put(&rules.join("folder/pack.toml"), "");
        put(&rules.join("folder/1.lkst"), RULES);
        put(&rules.join("folder/2.test.lkst"), "");
        put(&rules.join("bare/pack.toml"), "");
        put(&rules.join("none/1.lkst"), RULES);
        fs::create_dir(rules.join("e.lkst")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, rules.join("f.lkst"), 0o644.into()).unwrap();
        symlink("/dev/zero", rules.join("g.lkst")).unwrap();
        symlink("nowhere", rules.join("h.lkst")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(rules.join("i.lkst")).unwrap();
        let told = told(&rules);
        let expected = [
            ("a: ok", ""),
            ("?: ", "cannot name a pack"),
            ("d: ok", ""),
            ("?: two packs are called `a`", "10-a.lkst"),
            ("bare: ", "holds no rules"),
            ("e: ", "without a `pack.toml`"),
            ("f: ", "neither a file"),
            ("folder: ok", ""),
            ("g: ", "neither a file"),
            ("h: cannot read", "No such file"),
            ("i: ", "neither a file"),
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, (start, part)) in told.iter().zip(expected) {
            assert!(told.starts_with(start) && told.contains(part), "{told}");
        }
        assert!(
            told.get(3).is_some_and(|text| text.contains("40-a.lkst")),
            "both places are named: {told:#?}"
        );
    }

    #[test]
    fn what_editors_and_tools_leave_is_ignored() {
        let (_dir, rules) = folder();
        for name in [
            ".a.lkst.swp",
            ".a.lkst",
            ".#a.lkst",
            "#a.lkst#",
            "a.lkst~",
            "4913",
            "README",
            "a.lkst.rpmnew",
            "a.test.lkst",
            "..2026/pack.toml",
            "old~/pack.toml",
        ] {
            put(&rules.join(name), RULES);
        }
        assert_eq!(told(&rules), Vec::<String>::new());
    }

    #[test]
    fn a_folder_that_is_not_there_is_trouble_and_not_the_end() {
        let (dir, _) = folder();
        let scan = scan(&dir.path().join("none"), us());
        assert!(scan.packs.is_empty());
        assert!(scan.trouble.is_some_and(|text| text.contains("does not exist")));
    }

    #[test]
    fn what_others_may_write_is_refused() {
        let (_dir, rules) = folder();
        put(&rules.join("a.lkst"), RULES);
        put(&rules.join("b.lkst"), RULES);
        put(&rules.join("c/pack.toml"), "");
        put(&rules.join("c/1.lkst"), RULES);
        put(&rules.join("d/pack.toml"), "");
        put(&rules.join("d/1.lkst"), RULES);
        mode(&rules.join("b.lkst"), 0o664);
        mode(&rules.join("c"), 0o757);
        mode(&rules.join("d/1.lkst"), 0o602);
        let told_first = told(&rules);
        assert_eq!(told_first.first().map(String::as_str), Some("a: ok"));
        for (told, path) in told_first.iter().skip(1).zip(["b.lkst", "c", "d/1.lkst"]) {
            let mend = format!("`chmod go-w {}`", rules.join(path).display());
            assert!(told.contains(&mend), "{told}");
        }
        mode(&rules, 0o775);
        let scan = scan(&rules, us());
        assert!(
            scan.packs.is_empty() && scan.trouble.is_some_and(|text| text.contains("chmod go-w")),
            "a folder that others may write to holds nothing to believe"
        );
    }

    #[test]
    fn the_owner_of_a_links_target_counts() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (dir, rules) = folder();
        put(&dir.path().join("elsewhere/a.lkst"), RULES);
        put(&dir.path().join("elsewhere/b.lkst"), RULES);
        chown(dir.path().join("elsewhere/b.lkst"), Some(12_345), None).unwrap();
        symlink("../elsewhere/a.lkst", rules.join("a.lkst")).unwrap();
        symlink("../elsewhere/b.lkst", rules.join("b.lkst")).unwrap();
        let told_first = told(&rules);
        assert_eq!(told_first.first().map(String::as_str), Some("a: ok"));
        assert!(
            told_first
                .get(1)
                .is_some_and(|text| text.contains("user 12345") && text.contains("`chown root ")),
            "{told_first:?}"
        );
        let owner = scan(&rules, Trust::Owner(12_345));
        assert!(owner.packs.iter().all(|scanned| scanned.read.is_ok()));
    }

    #[test]
    fn a_config_map_is_read_through_its_links() {
        let (_dir, rules) = folder();
        put(&rules.join("..2026_1/a.lkst"), RULES);
        symlink("..2026_1", rules.join("..data")).unwrap();
        symlink("..data/a.lkst", rules.join("a.lkst")).unwrap();
        assert_eq!(told(&rules), ["a: ok"]);
    }

    #[test]
    fn the_sixty_fifth_pack_is_refused() {
        let (_dir, rules) = folder();
        for number in 0..1000 {
            put(&rules.join(format!("p{number:03}.lkst")), RULES);
        }
        let told = told(&rules);
        assert_eq!(told.len(), 1000);
        assert!(told.iter().take(MOST_PACKS).all(|text| text.ends_with(": ok")));
        assert!(
            told.iter()
                .skip(MOST_PACKS)
                .all(|text| text.contains("at most 64 packs"))
        );
    }

    #[test]
    fn sizes_are_limited() {
        let (_dir, rules) = folder();
        let large = "#".repeat(lkst_rules::parse::LARGEST_FILE);
        put(&rules.join("a.lkst"), &format!("{large}#"));
        put(&rules.join("b/pack.toml"), "");
        for number in 0..9 {
            put(&rules.join(format!("b/{number}.lkst")), &large);
        }
        let scan = scan(&rules, us());
        let [a, b] = scan.packs.as_slice() else {
            panic!("{scan:?}");
        };
        let diagnostics = a.read.as_ref().map(|text| text.diagnostics.has_errors());
        assert!(diagnostics.unwrap());
        assert!(matches!(b.read, Err(ReadError::TooLarge { .. })));
    }

    #[test]
    fn hashes_tell_texts_and_names_apart_and_not_places() {
        let hashes = |files: &[(&str, &str)]| {
            let (_dir, rules) = folder();
            for (name, text) in files {
                put(&rules.join(name), text);
            }
            let scan = scan(&rules, us());
            let hash = |scanned: Scanned| scanned.read.unwrap().hash;
            scan.packs.into_iter().map(hash).collect::<Vec<_>>()
        };
        let one = hashes(&[("a.lkst", RULES)]);
        assert_eq!(one.first().map(String::len), Some(64));
        assert_eq!(one, hashes(&[("a.lkst", RULES)]));
        assert_ne!(one, hashes(&[("b.lkst", RULES)]));
        assert_ne!(one, hashes(&[("a.lkst", "")]));
        let split = hashes(&[("p/pack.toml", ""), ("p/1.lkst", "ab"), ("p/2.lkst", "c")]);
        assert_ne!(
            split,
            hashes(&[("p/pack.toml", ""), ("p/1.lkst", "a"), ("p/2.lkst", "bc")])
        );
    }

    #[test]
    fn a_file_that_is_replaced_is_one_or_the_other() {
        let (_dir, rules) = folder();
        let path = rules.join("a.lkst");
        let texts = ["a", "b"].map(|letter| format!("# {}\n", letter.repeat(200_000)));
        put(&path, &texts[0]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for text in texts.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let new = rules.join(".new");
                    put(&new, text);
                    fs::rename(&new, &path).unwrap();
                }
            });
            for _ in 0..200 {
                for scanned in scan(&rules, us()).packs {
                    match scanned.read {
                        Ok(text) => {
                            let text = &text.pack.sources[0].text;
                            assert!(texts.contains(text), "a mixture of two texts");
                        }
                        Err(ReadError::Changing { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
