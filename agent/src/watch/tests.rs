use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// Longer than a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(5);
const QUICK: Duration = Duration::from_millis(20);

struct Bed {
    _dir: TempDir,
    root: PathBuf,
    watch: Watch,
}

/// A folder that `prepare` fills, with `root/rules.d` watched.
fn bed(prepare: impl FnOnce(&Path)) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    // Not the folder that other tests make theirs in.
    let root = dir.path().canonicalize().unwrap().join("etc");
    fs::create_dir(&root).unwrap();
    prepare(&root);
    let watch = Watch::new(&root.join("rules.d"), QUICK).unwrap();
    assert_eq!(watch.trouble(), None);
    Bed {
        _dir: dir,
        root,
        watch,
    }
}

/// With `rules.d/a.lkst`.
fn usual(root: &Path) {
    put(root, "rules.d/a.lkst", "old");
}

fn put(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

impl Bed {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn put(&self, name: &str, text: &str) {
        put(&self.root, name, text);
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    async fn seen(&mut self, what: &str) {
        match timeout(PATIENCE, self.watch.changed()).await {
            Ok(changed) => assert_eq!(changed, Changed::Something, "{what}"),
            Err(_) => panic!("not seen: {what}"),
        }
        assert_eq!(self.watch.trouble(), None, "{what}");
        // Nothing of it comes later.
        while timeout(10 * QUICK, self.watch.changed()).await.is_ok() {}
    }

    /// On a slow machine this may find nothing wrong too early, but never something wrong where nothing is.
    async fn nothing(&mut self, what: &str) {
        let changed = timeout(10 * QUICK, self.watch.changed()).await;
        assert!(changed.is_err(), "seen: {what}");
    }
}

/// What is done, and how.
type Case<'c> = (&'c str, fn(&Bed));

/// Each with a folder of its own.
async fn each_is_seen(prepare: fn(&Path), cases: &[Case<'_>]) {
    for (what, change) in cases {
        let mut bed = bed(prepare);
        change(&bed);
        bed.seen(what).await;
        // It goes on after a change.
        bed.put("rules.d/after.lkst", "new");
        bed.seen(&format!("a file after: {what}")).await;
    }
}

#[tokio::test]
async fn files_that_come_change_and_go() {
    each_is_seen(
        usual,
        &[
            ("create", |bed| bed.put("rules.d/b.lkst", "new")),
            ("overwrite in place", |bed| bed.put("rules.d/a.lkst", "new")),
            ("append", |bed| {
                let mut file = File::options()
                    .append(true)
                    .open(bed.path("rules.d/a.lkst"))
                    .unwrap();
                file.write_all(b"more").unwrap();
            }),
            ("rename into place", |bed| {
                bed.put("b.lkst", "new");
                bed.rename("b.lkst", "rules.d/b.lkst");
            }),
            ("rename over", |bed| {
                bed.put("b.lkst", "new");
                bed.rename("b.lkst", "rules.d/a.lkst");
            }),
            ("rename away", |bed| bed.rename("rules.d/a.lkst", "a.lkst")),
            ("rename within", |bed| {
                bed.rename("rules.d/a.lkst", "rules.d/c.lkst")
            }),
            ("swap file, then rename", |bed| {
                bed.put("rules.d/.a.lkst.swp", "new");
                bed.rename("rules.d/.a.lkst.swp", "rules.d/a.lkst");
            }),
            ("delete", |bed| {
                fs::remove_file(bed.path("rules.d/a.lkst")).unwrap()
            }),
            ("chmod", |bed| {
                fs::set_permissions(bed.path("rules.d/a.lkst"), Permissions::from_mode(0o600)).unwrap();
            }),
            ("chmod of the folder", |bed| {
                fs::set_permissions(bed.path("rules.d"), Permissions::from_mode(0o700)).unwrap();
            }),
            ("hard link", |bed| {
                fs::hard_link(bed.path("rules.d/a.lkst"), bed.path("rules.d/b.lkst")).unwrap();
            }),
        ],
    )
    .await;
    if rustix::process::geteuid().is_root() {
        let chowned: fn(&Bed) = |bed| chown(bed.path("rules.d/a.lkst"), Some(12_345), None).unwrap();
        each_is_seen(usual, &[("chown", chowned)]).await;
    }
}

#[tokio::test]
async fn links_that_are_swapped_and_targets_that_change() {
    fn prepare(root: &Path) {
        usual(root);
        put(root, "opt/b.lkst", "old");
        put(root, "opt/new.lkst", "new");
        symlink("../opt/b.lkst", root.join("rules.d/b.lkst")).unwrap();
        symlink("../opt/none.lkst", root.join("rules.d/c.lkst")).unwrap();
    }
    each_is_seen(
        prepare,
        &[
            ("target rewritten", |bed| bed.put("opt/b.lkst", "new")),
            ("target replaced", |bed| bed.rename("opt/new.lkst", "opt/b.lkst")),
            ("target deleted", |bed| {
                fs::remove_file(bed.path("opt/b.lkst")).unwrap()
            }),
            ("target comes", |bed| bed.put("opt/none.lkst", "new")),
            ("link swapped", |bed| {
                symlink("../opt/new.lkst", bed.path("rules.d/.new")).unwrap();
                bed.rename("rules.d/.new", "rules.d/b.lkst");
            }),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_config_map_is_swapped_again_and_again() {
    for folder in ["rules.d", "rules.d/pack"] {
        let mut bed = bed(|root| {
            put(root, &format!("{folder}/..1/a.lkst"), "old");
            symlink("..1", root.join(folder).join("..data")).unwrap();
            symlink("..data/a.lkst", root.join(folder).join("a.lkst")).unwrap();
        });
        for number in 2..5 {
            bed.put(&format!("{folder}/..{number}/a.lkst"), "new");
            let new = format!("{folder}/..data_tmp");
            symlink(format!("..{number}"), bed.path(&new)).unwrap();
            bed.rename(&new, &format!("{folder}/..data"));
            fs::remove_dir_all(bed.path(&format!("{folder}/..{}", number - 1))).unwrap();
            bed.seen(&format!("swap to {number} in {folder}")).await;
        }
        bed.put(&format!("{folder}/..4/a.lkst"), "newer");
        bed.seen(&format!("what {folder} leads to now")).await;
    }
}

#[tokio::test]
async fn the_folder_goes_and_comes() {
    each_is_seen(
        usual,
        &[
            ("replaced as a whole", |bed| {
                bed.put("new/a.lkst", "new");
                bed.rename("rules.d", "rules.old");
                bed.rename("new", "rules.d");
            }),
            ("renamed away", |bed| bed.rename("rules.d", "rules.old")),
            ("deleted", |bed| fs::remove_dir_all(bed.path("rules.d")).unwrap()),
            // On most file systems the new one gets the number of the old one.
            ("deleted and made", |bed| {
                fs::remove_dir_all(bed.path("rules.d")).unwrap();
                fs::create_dir(bed.path("rules.d")).unwrap();
            }),
            ("its folder replaced", |bed| {
                let other = bed.root.with_file_name("other");
                put(&other, "rules.d/a.lkst", "new");
                fs::rename(&bed.root, bed.root.with_file_name("etc.old")).unwrap();
                fs::rename(&other, &bed.root).unwrap();
            }),
            ("a link in its place", |bed| {
                bed.rename("rules.d", "rules.1");
                symlink("rules.1", bed.path("rules.d")).unwrap();
            }),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_path_that_is_a_link_is_swapped() {
    fn prepare(root: &Path) {
        put(root, "releases/1/a.lkst", "old");
        put(root, "releases/2/a.lkst", "new");
        symlink("releases/1", root.join("current")).unwrap();
        symlink("current", root.join("rules.d")).unwrap();
    }
    each_is_seen(
        prepare,
        &[
            ("link swapped", |bed| {
                symlink("releases/2", bed.path("next")).unwrap();
                bed.rename("next", "current");
            }),
            ("file behind it", |bed| bed.put("releases/1/a.lkst", "new")),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_folder_that_is_not_there_yet_is_awaited() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("etc");
    fs::create_dir(&root).unwrap();
    let watch = Watch::new(&root.join("lkst/host/rules.d"), QUICK).unwrap();
    let mut bed = Bed {
        _dir: dir,
        root,
        watch,
    };
    assert_eq!(bed.watch.trouble(), None);
    for folder in ["lkst", "lkst/host", "lkst/host/rules.d"] {
        fs::create_dir(bed.path(folder)).unwrap();
        bed.seen(folder).await;
    }
    bed.put("lkst/host/rules.d/a.lkst", "new");
    bed.seen("a file in it").await;
    fs::remove_dir_all(bed.path("lkst")).unwrap();
    bed.seen("all of it gone").await;
    bed.put("lkst/host/rules.d/a.lkst", "new");
    bed.seen("all of it at once").await;
    bed.put("lkst/host/rules.d/a.lkst", "newer");
    bed.seen("a file in what came at once").await;
}

#[tokio::test]
async fn pack_folders_are_watched_as_well() {
    fn prepare(root: &Path) {
        usual(root);
        put(root, "rules.d/pack/1.lkst", "old");
        put(root, "opt/pack/1.lkst", "old");
        symlink("../opt/pack", root.join("rules.d/linked")).unwrap();
    }
    each_is_seen(
        prepare,
        &[
            ("file overwritten", |bed| bed.put("rules.d/pack/1.lkst", "new")),
            ("file created", |bed| bed.put("rules.d/pack/2.lkst", "new")),
            ("manifest created", |bed| bed.put("rules.d/pack/pack.toml", "")),
            ("file deleted", |bed| {
                fs::remove_file(bed.path("rules.d/pack/1.lkst")).unwrap()
            }),
            ("pack renamed", |bed| bed.rename("rules.d/pack", "rules.d/other")),
            ("pack moved in", |bed| bed.rename("opt/pack", "rules.d/third")),
            ("pack deleted", |bed| {
                fs::remove_dir_all(bed.path("rules.d/pack")).unwrap()
            }),
            ("file of a linked pack", |bed| bed.put("opt/pack/1.lkst", "new")),
        ],
    )
    .await;
    let mut bed = bed(usual);
    fs::create_dir(bed.path("rules.d/pack")).unwrap();
    bed.seen("pack created").await;
    bed.put("rules.d/pack/1.lkst", "new");
    bed.seen("file of a pack that came later").await;
}

#[tokio::test]
async fn reads_neighbours_and_swap_files_are_not_changes() {
    let mut bed = bed(|root| {
        usual(root);
        put(root, "rules.d/pack/pack.toml", "");
        put(root, "opt/b.lkst", "old");
        symlink("../opt/b.lkst", root.join("rules.d/b.lkst")).unwrap();
    });
    let scan = crate::rules_dir::scan(&bed.path("rules.d"), crate::trust::Trust::Anyone);
    assert_eq!(scan.packs.len(), 3);
    bed.nothing("a scan").await;
    bed.put("neighbour", "new");
    bed.put("opt/neighbour.lkst", "new");
    fs::create_dir(bed.path("other")).unwrap();
    fs::remove_dir(bed.path("other")).unwrap();
    bed.nothing("neighbours").await;
    for name in [".a.lkst.swp", "a.lkst~", "4913", ".#a.lkst", "#a.lkst#"] {
        bed.put(&format!("rules.d/{name}"), "new");
        fs::remove_file(bed.path(&format!("rules.d/{name}"))).unwrap();
    }
    bed.nothing("what editors leave").await;
    bed.put("rules.d/a.lkst", "new");
    bed.seen("a change after all that").await;
}

#[tokio::test]
async fn neighbours_of_what_is_awaited_are_not_changes() {
    let mut bed = bed(|_| {});
    bed.put("neighbour", "new");
    fs::create_dir(bed.path("other")).unwrap();
    bed.nothing("neighbours").await;
}

/// Writes all the time, until dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn new(path: PathBuf) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                fs::write(&path, "new").unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Writer {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[tokio::test]
async fn what_never_rests_is_reported_after_two_seconds() {
    let mut bed = bed(usual);
    // Longer than it may take: only the limit can report it.
    bed.watch.settle = Duration::from_millis(1900);
    let _writer = Writer::new(bed.path("rules.d/a.lkst"));
    let begin = Instant::now();
    for _ in 0..2 {
        assert!(timeout(PATIENCE, bed.watch.changed()).await.is_ok());
    }
    assert!(begin.elapsed() >= LONGEST, "each only after it began");
}

#[tokio::test]
async fn a_burst_is_one_change_and_comes_to_rest_first() {
    let mut bed = bed(usual);
    bed.watch.settle = Duration::from_millis(500);
    let begin = Instant::now();
    for number in 0..100 {
        bed.put(&format!("rules.d/{number}.lkst"), "new");
    }
    assert!(timeout(PATIENCE, bed.watch.changed()).await.is_ok());
    assert!(begin.elapsed() >= bed.watch.settle);
    bed.nothing("the same burst").await;
}

#[tokio::test]
async fn a_wait_that_is_broken_off_loses_nothing() {
    let mut bed = bed(usual);
    bed.watch.settle = Duration::from_millis(100);
    bed.put("rules.d/a.lkst", "new");
    let seen = async {
        while timeout(Duration::from_millis(1), bed.watch.changed())
            .await
            .is_err()
        {}
    };
    assert!(timeout(PATIENCE, seen).await.is_ok());
}

#[tokio::test]
async fn what_cannot_be_watched_is_looked_at_and_told() {
    fn full(_: &Path, _: &Arc<Shared>) -> Result<Armed, notify::Error> {
        Err(notify::Error::new(ErrorKind::MaxFilesWatch))
    }
    let mut bed = bed(usual);
    let every = Duration::from_millis(50);
    bed.watch = Watch::with(&bed.path("rules.d"), QUICK, every, full).unwrap();
    let told = bed.watch.trouble().unwrap_or_default();
    assert!(told.contains("fs.inotify.max_user_watches"), "{told}");
    for _ in 0..2 {
        // Also where somebody else is served more often than that.
        let look = async {
            loop {
                if let Ok(changed) = timeout(every / 10, bed.watch.changed()).await {
                    return changed;
                }
            }
        };
        assert_eq!(timeout(PATIENCE, look).await, Ok(Changed::Perhaps));
    }
    bed.watch.arm = arm;
    assert_eq!(timeout(PATIENCE, bed.watch.changed()).await, Ok(Changed::Perhaps));
    assert_eq!(bed.watch.trouble(), None);
    bed.put("rules.d/a.lkst", "new");
    bed.seen("a change once it can be watched again").await;
}
