use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const NO_LIMITS: Limits = Limits {
    all_bytes: u64::MAX,
    pack_bytes: u64::MAX,
    age: Duration::from_secs(u64::MAX),
};

/// A state folder, and the present: well after whatever a test writes.
struct Lab {
    _dir: TempDir,
    path: PathBuf,
    now: SystemTime,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        Lab {
            path: dir.path().join("state"),
            _dir: dir,
            now: SystemTime::now() + Duration::from_secs(10),
        }
    }

    fn open(&self) -> Store {
        Store::open(&self.path).unwrap()
    }

    fn place(&self, pack: &str, number: u32) -> PathBuf {
        self.path
            .join(pack)
            .join(format!("20260101T0000{number:02}.000-r"))
    }

    /// An incident of about so many bytes, saved so many hours ago; the same number is the same incident.
    fn save(&self, pack: &str, number: u32, bytes: usize, hours: u32) -> PathBuf {
        let path = self.place(pack, number);
        let ctf = path.join("1-main/ctf");
        fs::create_dir_all(&ctf).unwrap();
        fs::write(ctf.join("main_0"), vec![1; bytes]).unwrap();
        fs::write(path.join("1-main/incident.json"), "{}").unwrap();
        let saved_at = self.now - HOUR * hours;
        File::open(&path).unwrap().set_modified(saved_at).unwrap();
        path
    }
}

fn names(pruned: &Pruned) -> Vec<String> {
    assert_eq!(pruned.troubles, Vec::<String>::new());
    let name = |path: &Path| {
        let pack = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        format!("{pack}/{}", &path.file_name().unwrap().to_str().unwrap()[13..15])
    };
    let removed = pruned.removed.iter();
    removed
        .map(|(on_disk, over)| format!("{} {over:?}", name(&on_disk.path)))
        .collect()
}

#[test]
fn the_folder_is_made_for_us_alone_and_one_agent_has_it() {
    let lab = Lab::new();
    let store = lab.open();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&lab.path), 0o700);
    let error = Store::open(&lab.path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    fs::set_permissions(&lab.path, Permissions::from_mode(0o770)).unwrap();
    let error = Store::open(&lab.path).unwrap_err().to_string();
    assert!(error.contains("chmod go-w"), "{error}");
    let file = lab.path.with_file_name("file");
    fs::write(&file, "").unwrap();
    for path in [&file, &file.join("state")] {
        let error = Store::open(path).unwrap_err().to_string();
        assert!(error.starts_with("cannot make the state folder"), "{error}");
    }
}

#[test]
fn the_oldest_go_first_and_none_that_is_written() {
    let lab = Lab::new();
    let mut store = lab.open();
    for (number, hours) in [(3, 30), (1, 50), (2, 40), (4, 20)] {
        lab.save("a", number, 100_000, hours);
    }
    lab.save("b", 5, 100_000, 60);
    lab.save("b", 6, 100_000, 1);
    assert_eq!(
        names(&store.prune(&NO_LIMITS, lab.now, &[])),
        Vec::<String>::new()
    );
    let sizes: Vec<u64> = store.incidents().iter().map(|i| i.size_bytes).collect();
    assert!(
        sizes.iter().all(|size| (100_000..150_000).contains(size)),
        "{sizes:?}"
    );

    let limits = Limits {
        age: HOUR * 45,
        ..NO_LIMITS
    };
    let in_use = [lab.place("b", 5).join("2-incident")];
    assert_eq!(names(&store.prune(&limits, lab.now, &in_use)), ["a/01 Age"]);
    let limits = Limits {
        pack_bytes: 250_000,
        ..NO_LIMITS
    };
    let pruned = store.prune(&limits, lab.now, &in_use);
    assert_eq!(names(&pruned), ["a/02 PackSize"]);
    assert_eq!(pruned.freed_bytes, sizes[2]);
    let limits = Limits {
        all_bytes: 250_000,
        ..NO_LIMITS
    };
    assert_eq!(
        names(&store.prune(&limits, lab.now, &in_use)),
        ["a/03 Size", "a/04 Size"]
    );
    assert_eq!(names(&store.prune(&limits, lab.now, &[])), Vec::<String>::new());
    let left: Vec<PathBuf> = store.incidents().into_iter().map(|i| i.path).collect();
    assert_eq!(left, [lab.place("b", 5), lab.place("b", 6)]);
    assert_eq!(fs::read_dir(lab.path.join("a")).unwrap().count(), 0);
}

#[test]
fn what_is_alone_too_large_goes_and_is_told() {
    let lab = Lab::new();
    let mut store = lab.open();
    lab.save("a", 1, 100_000, 1);
    let limits = Limits {
        pack_bytes: 50_000,
        ..NO_LIMITS
    };
    let pruned = store.prune(&limits, lab.now, &[]);
    assert_eq!(pruned.removed.len(), 1);
    assert!(
        pruned.troubles[0].contains("`max_incidents_size_per_pack`"),
        "{pruned:?}"
    );
}

#[test]
fn what_changes_is_seen_and_nothing_else_is_read() {
    let lab = Lab::new();
    let mut store = lab.open();
    let old = lab.save("a", 1, 10_000, 5);
    let old_in_use = [old.clone()];
    store.look(lab.now, &old_in_use);
    // Written on, as long as it is in use; then it is measured once more.
    fs::write(old.join("1-main/ctf/main_1"), vec![1; 50_000]).unwrap();
    store.look(lab.now, &[]);
    assert!(store.incidents()[0].size_bytes > 50_000);
    // Nobody writes there any more: a change that does not show in the incident's own time is not looked for.
    fs::write(old.join("1-main/ctf/main_2"), vec![1; 50_000]).unwrap();
    store.look(lab.now, &[]);
    assert!(store.incidents()[0].size_bytes < 100_000);

    lab.save("a", 2, 10_000, 4);
    lab.save("b", 3, 10_000, 3);
    store.look(lab.now, &[]);
    assert_eq!(store.incidents().len(), 3);
    fs::remove_dir_all(&old).unwrap();
    fs::remove_dir_all(lab.path.join("b")).unwrap();
    assert_eq!(store.look(lab.now, &[]), Vec::<String>::new());
    assert_eq!(store.incidents().len(), 1);
}

#[test]
fn what_a_killed_agent_left_goes_and_what_is_foreign_stays() {
    let lab = Lab::new();
    drop(lab.open());
    let kept = lab.save("a", 1, 100, 50);
    let half = [
        lab.path.join("a/.20260101T000007.000-end.4711.unfinished"),
        kept.join(".2-incident.4711.unfinished"),
        lab.place("a", 2).join(".1-main.1.unfinished"),
        lab.path.join("a/.20260101T000003.000-r.deleted"),
    ];
    for folder in &half {
        fs::create_dir_all(folder.join("ctf")).unwrap();
        fs::write(folder.join("ctf/main_0"), "x").unwrap();
    }
    let outside = lab.path.with_file_name("outside");
    fs::create_dir_all(outside.join("20260101T000009.000-r")).unwrap();
    fs::write(outside.join("20260101T000009.000-r/file"), "x").unwrap();
    symlink(&outside, lab.path.join("linked")).unwrap();
    symlink(&outside, lab.path.join("a/20260101T000008.000-r")).unwrap();
    symlink(&outside, kept.join("link")).unwrap();
    fs::create_dir_all(lab.path.join("a/notes/.x.1.unfinished.txt")).unwrap();
    fs::write(lab.path.join("a/.x.1.unfinished"), "a file").unwrap();
    fs::write(lab.path.join("guard.json"), "{}").unwrap();
    fs::create_dir_all(lab.path.join("lost+found/20260101T000000.000-r")).unwrap();
    fs::create_dir(lab.path.join("a").join("\u{1b}[31m\n")).unwrap();

    let mut store = lab.open();
    for folder in &half {
        assert!(!folder.exists(), "{folder:?}");
    }
    assert!(!lab.place("a", 2).exists());
    let limits = Limits {
        age: Duration::ZERO,
        ..NO_LIMITS
    };
    let pruned = store.prune(&limits, lab.now, &[]);
    assert_eq!(names(&pruned), ["a/01 Age"]);
    assert!(outside.join("20260101T000009.000-r/file").exists());
    let mut left: Vec<_> = fs::read_dir(lab.path.join("a"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "\u{1b}[31m\n",
            ".x.1.unfinished",
            "20260101T000008.000-r",
            "notes"
        ]
    );
    assert!(lab.path.join("lost+found/20260101T000000.000-r").exists());
    assert!(lab.path.join("linked").exists() && lab.path.join("guard.json").exists());
}

#[test]
fn a_folder_that_resists_keeps_nothing_else() {
    let lab = Lab::new();
    let mut store = lab.open();
    let deep = lab.save("a", 1, 100, 50);
    fs::create_dir_all(deep.join("d/".repeat(40))).unwrap();
    File::open(&deep)
        .unwrap()
        .set_modified(lab.now - HOUR * 50)
        .unwrap();
    lab.save("a", 2, 100, 40);
    let limits = Limits {
        age: HOUR,
        ..NO_LIMITS
    };
    let pruned = store.prune(&limits, lab.now, &[]);
    assert_eq!(pruned.removed.len(), 1);
    assert!(pruned.troubles[0].contains("is left alone"), "{pruned:?}");
    assert!(deep.join("1-main/ctf/main_0").exists());
}

#[test]
fn a_folder_that_vanished_is_made_again() {
    let lab = Lab::new();
    let mut store = lab.open();
    lab.save("a", 1, 100, 1);
    store.look(lab.now, &[]);
    fs::remove_dir_all(&lab.path).unwrap();
    assert_eq!(store.prune(&NO_LIMITS, lab.now, &[]), Pruned::default());
    assert_eq!(store.incidents(), []);
    assert_eq!(
        fs::metadata(&lab.path).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert!(Store::open(&lab.path).is_err(), "it is held as the old one was");
    lab.save("a", 2, 100, 1);
    store.look(lab.now, &[]);
    assert_eq!(store.incidents().len(), 1);
}

#[test]
fn thousands_of_incidents_cost_nothing_to_look_at_again() {
    let lab = Lab::new();
    let mut store = lab.open();
    let pack = lab.path.join("a");
    for number in 0..3_000_u32 {
        let path = pack.join(format!("20260101T{:06}.{:03}-r", number / 1000, number % 1000));
        fs::create_dir_all(&path).unwrap();
    }
    assert_eq!(store.prune(&NO_LIMITS, lab.now, &[]), Pruned::default());
    assert_eq!(store.incidents().len(), 3_000);
    let begin = std::time::Instant::now();
    for _ in 0..10 {
        store.prune(&NO_LIMITS, lab.now, &[]);
    }
    // Far below what reading all of it once takes, also on a busy machine.
    assert!(
        begin.elapsed() < Duration::from_millis(100),
        "{:?}",
        begin.elapsed()
    );
}
