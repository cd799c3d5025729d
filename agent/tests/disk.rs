//! Saving where the disk does not play along: full, read-only, gone. Nothing half-written may be left, and when the disk
//! is well again saving goes on.
//!
//! Each test has a small tmpfs of its own in a mount namespace of its own, which ends with the test's thread: nothing
//! is left, however it ends. That needs root; without it the tests say that they are skipped, which
//! `LKST_REQUIRE_KERNEL=1` makes a failure.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lkst::store::{Limits, Store};
use lkst::trace::incident::Incident;
use lkst::trace::metadata::TraceInfo;
use lkst::trace::raw::RawStream;
use lkst::trace::seal::{self, SaveError, Saved};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs a test on a tmpfs of so many KiB.
fn on_tmpfs(kib: u32, test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let run = || {
        // SAFETY: a mount namespace of its own (with which the thread has its own root and working folder) does not
        // touch descriptors or memory.
        let mounted = unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
            .and_then(|()| mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC))
            .and_then(|()| {
                let options = CString::new(format!("size={kib}k,mode=0755")).unwrap();
                mount(
                    "lkst-test",
                    dir.path(),
                    "tmpfs",
                    MountFlags::empty(),
                    options.as_c_str(),
                )
            });
        match mounted {
            Ok(()) => test(dir.path()),
            Err(error) => {
                let required = std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1");
                assert!(!required, "no tmpfs can be mounted: {error}");
                eprintln!("skipped: no tmpfs can be mounted: {error}");
            }
        }
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn save(folder: &Path, rings: usize) -> Result<Saved, SaveError> {
    let info = TraceInfo {
        uuid: [7; 16],
        hostname: "box".into(),
        kernel_release: "6.18.0".into(),
        boot_id: "boot".into(),
        lkst_version: "0.1.0".into(),
        pack: "io".into(),
        boot_offset_ns: 0,
        layouts: Vec::new(),
        env: Vec::new(),
    };
    // Rings without a record: what they add to `incident.json` is enough to fill a small disk.
    let streams = (0..rings).map(|ring| RawStream {
        buffer: "main".into(),
        cpu: u32::try_from(ring).unwrap(),
        ..RawStream::default()
    });
    seal::save(folder, &info, streams, Incident::default())
}

/// Everything below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    on_tmpfs(256, |disk| {
        let state = disk.join("state");
        let mut store = Store::open(&state).unwrap();
        let incident = state.join("io/20260101T000000.000-r");
        save(&incident.join("1-main"), 1).unwrap();
        let before = below(disk);

        for folder in [
            incident.join("2-main"),
            state.join("io/20260101T000001.000-r/1-main"),
            state.join("other/20260101T000001.000-r/1-main"),
        ] {
            let full = save(&folder, 5_000).unwrap_err();
            assert!(matches!(full, SaveError::NoSpace { .. }), "{full}");
            assert_eq!(below(disk), before);
        }
        // Without a single block left it is the first folder that fails.
        let filler = disk.join("filler");
        let _full = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
        let full = save(&state.join("io/20260101T000002.000-r/1-main"), 1).unwrap_err();
        assert!(matches!(full, SaveError::NoSpace { .. }), "{full}");
        fs::remove_file(&filler).unwrap();
        assert_eq!(below(disk), before);

        // A full disk can be pruned, and then there is room again.
        let size = store.prune(&limits(u64::MAX), SystemTime::now(), &[]);
        assert!(size.removed.is_empty() && size.troubles.is_empty());
        fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
        let pruned = store.prune(&limits(1), SystemTime::now(), &[]);
        assert!(pruned.removed.len() == 1 && pruned.freed_bytes > 0, "{pruned:?}");
        fs::remove_file(&filler).unwrap();
        save(&state.join("io/20260101T000003.000-r/1-main"), 1).unwrap();
    });
}

fn limits(bytes: u64) -> Limits {
    Limits {
        all_bytes: bytes,
        pack_bytes: u64::MAX,
        age: Duration::from_secs(u64::MAX),
    }
}

#[test]
fn a_disk_that_became_read_only_is_told_once_and_used_again_later() {
    on_tmpfs(1024, |disk| {
        let state = disk.join("state");
        let mut store = Store::open(&state).unwrap();
        for number in 0..20 {
            save(
                &state.join(format!("io/20260101T0000{number:02}.000-r/1-main")),
                1,
            )
            .unwrap();
        }
        mount_remount(disk, MountFlags::RDONLY, c"").unwrap();
        let error = save(&state.join("io/20260101T000100.000-r/1-main"), 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("Read-only file system"), "{error}");
        let pruned = store.prune(&limits(1), SystemTime::now(), &[]);
        assert!(
            pruned.removed.is_empty() && pruned.troubles.len() == 1,
            "{pruned:?}"
        );
        mount_remount(disk, MountFlags::empty(), c"").unwrap();
        let pruned = store.prune(&limits(1), SystemTime::now(), &[]);
        assert_eq!(pruned.removed.len(), 20, "{pruned:?}");
    });
}

#[test]
fn a_state_folder_that_vanished_is_made_again_with_its_mode() {
    on_tmpfs(1024, |disk| {
        let state = disk.join("state");
        let mut store = Store::open(&state).unwrap();
        save(&state.join("io/20260101T000000.000-r/1-main"), 1).unwrap();
        fs::remove_dir_all(&state).unwrap();
        let incident = state.join("io/20260101T000001.000-r");
        save(&incident.join("1-main"), 1).unwrap();
        for folder in [&state, &state.join("io"), &incident, &incident.join("1-main/ctf")] {
            let mode = fs::metadata(folder).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{folder:?}");
        }
        for file in below(&incident).iter().filter(|path| path.is_file()) {
            let mode = fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{file:?}");
        }
        assert!(
            store
                .prune(&limits(u64::MAX), SystemTime::now(), &[])
                .troubles
                .is_empty()
        );
        let found: Vec<PathBuf> = store.incidents().into_iter().map(|found| found.path).collect();
        assert_eq!(found, [incident]);
    });
}

#[test]
fn another_mount_in_the_state_folder_is_left_alone() {
    on_tmpfs(1024, |disk| {
        let state = disk.join("state");
        let mut store = Store::open(&state).unwrap();
        let incident = state.join("io/20260101T000000.000-r");
        save(&incident.join("1-main"), 1).unwrap();
        let inner = incident.join("mounted");
        fs::create_dir(&inner).unwrap();
        mount("lkst-test", &inner, "tmpfs", MountFlags::empty(), c"size=64k").unwrap();
        fs::write(inner.join("precious"), "x").unwrap();
        let pruned = store.prune(&limits(1), SystemTime::now(), &[]);
        assert!(
            pruned.removed.is_empty() && !pruned.troubles.is_empty(),
            "{pruned:?}"
        );
        assert!(inner.join("precious").exists() && incident.join("1-main/incident.json").exists());
    });
}
