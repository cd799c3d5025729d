//! *A full disk stops saving, never tracing*: a running agent whose state folder is full, read-only, removed, unmounted.
//! It goes on and says so; what was kept stays in memory, and is saved once, whole, when the disk is well again.
//!
//! The ground truth are numbered renames: each must be in exactly one trace in the end. The disks are small ones in a
//! mount namespace of the test's own, so that nothing is left, however it ends.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use lkst_tests::namespace::{mount_new, set_read_only, unmount, with_own_mounts};
use lkst_tests::numbered::{Counting, each_once, rules, trigger};

/// An agent that records numbers, on a disk of its own of some MiB.
struct Traced {
    bed: Bed,
    counting: Option<Counting>,
}

/// The disk: large enough for all traces of a test.
const DISK: &str = "size=24m,mode=0700";

impl Traced {
    fn new() -> Traced {
        let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
        mount_new(c"tmpfs", &bed.path("state"), DISK).unwrap();
        let metrics = bed.path("run/metrics.sock");
        fs::write(
            bed.path("lkst.toml"),
            format!("metrics_address = \"{}\"\n", metrics.display()),
        )
        .unwrap();
        bed.put("kept.lkst", &rules(512)).unwrap();
        bed.start().unwrap();
        bed.said("rules in force", 1).unwrap();
        let counting = Some(Counting::start().unwrap());
        let mut traced = Traced { bed, counting };
        // All is well: something is saved.
        traced.leaves(false);
        traced.saved(1);
        traced.is_well();
        traced
    }

    fn state(&self) -> std::path::PathBuf {
        self.bed.path("state")
    }

    /// Numbers until now.
    fn made(&self) -> u64 {
        self.counting.as_ref().unwrap().made()
    }

    /// Recording leaves `main`, or comes back to it, after some more numbers.
    fn leaves(&self, come_back: bool) {
        let before = self.made();
        while self.made() < before + 100 {
            std::thread::sleep(Duration::from_millis(5));
        }
        trigger(come_back).unwrap();
    }

    /// So many traces were saved, and nothing is kept any more.
    fn saved(&mut self, traces: u64) {
        self.bed
            .pack_until("kept", &format!("has {traces} traces"), |pack| {
                pack.incidents.saved == traces && pack.buffers.iter().all(|buffer| !buffer.kept)
            })
            .unwrap();
    }

    /// Something is wrong, and every way to see it shows it. `main` or `away` is kept in memory, and what is recorded
    /// meanwhile is recorded.
    fn is_troubled(&mut self, text: &str) {
        let status = self
            .bed
            .pack_until("kept", &format!("says `{text}`"), |pack| {
                pack.incidents
                    .error
                    .as_ref()
                    .is_some_and(|error| error.contains(text))
            })
            .unwrap();
        assert_eq!(
            status.buffers.iter().filter(|buffer| buffer.kept).count(),
            1,
            "{status:#?}"
        );
        self.bed.said(text, 1).unwrap();
        let shown = self.bed.ask("status", &[]).unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(text), "{shown}");
        let metrics = self.metrics();
        assert!(
            metrics.contains("\nlkst_pack_save_error{pack=\"kept\"} 1\n"),
            "{metrics}"
        );
        assert!(
            metrics.contains("\nlkst_pack_buffers_kept{pack=\"kept\"} 1\n"),
            "{metrics}"
        );
        // Over a second it is tried again, fails again and is not said again.
        let recorded = |bed: &Bed| {
            let pack = bed.pack("kept").unwrap().unwrap();
            pack.events.iter().map(|event| event.recorded).sum::<u64>()
        };
        let (made, before) = (self.made(), recorded(&self.bed));
        std::thread::sleep(Duration::from_millis(2500));
        let (made_now, after) = (self.made(), recorded(&self.bed));
        assert!(made_now > made + 100, "{made} {made_now}");
        // What is made in the moments between the looks at both may be on one side only.
        assert!(
            after - before + 100 > made_now - made,
            "{before} {after} {made} {made_now}"
        );
        assert_eq!(self.bed.log().matches(text).count(), 1, "{}", self.bed.log());
    }

    /// Nothing is wrong any more.
    fn is_well(&mut self) {
        let well = |bed: &Bed| {
            let status = bed.status().unwrap().unwrap_or_default();
            status.troubles.is_empty()
                && status
                    .packs
                    .iter()
                    .all(|pack| pack.incidents.error.is_none() && pack.error.is_none())
        };
        let waited = self.bed.until("end of all trouble", well);
        waited.unwrap_or_else(|error| panic!("{error}\n{:#?}", self.bed.status()));
        let metrics = self.metrics();
        assert!(metrics.contains("\nlkst_troubles 0\n"), "{metrics}");
        assert!(
            metrics.contains("\nlkst_pack_save_error{pack=\"kept\"} 0\n"),
            "{metrics}"
        );
    }

    fn metrics(&self) -> String {
        let mut stream = UnixStream::connect(self.bed.path("run/metrics.sock")).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Ends all; each number must be in exactly one trace, of which nothing is half-written.
    fn end(mut self, test: &str) {
        let made = self.counting.take().unwrap().end().unwrap();
        self.bed.end().unwrap();
        self.bed.stop_tracing().unwrap();
        assert_eq!(self.bed.pins(), Vec::<String>::new());
        assert_eq!(unfinished(&self.state()), Vec::<String>::new());
        let traces = self.bed.traces("kept");
        let numbers = each_once(&traces, &made).unwrap();
        println!(
            "{test}: {numbers} numbers, each in one of {} traces",
            traces.len()
        );
    }
}

/// What was begun below a folder and not completed.
fn unfinished(state: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![state.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                if name.starts_with('.') {
                    found.push(name);
                }
            }
        }
    }
    found
}

fn run(test: &str, body: impl FnOnce() + Send) {
    let Some(_lab) = Lab::open(test).unwrap() else {
        return;
    };
    with_own_mounts(body).unwrap();
}

/// Fills a disk to its last block.
fn fill(file: &Path) {
    let mut filler = fs::File::create(file).unwrap();
    let block = vec![0; 4096];
    while filler.write_all(&block).is_ok() {}
}

#[test]
fn a_full_disk_keeps_the_buffer_in_memory_until_there_is_room() {
    run("full disk", || {
        let mut traced = Traced::new();
        for (round, come_back) in [(1, true), (2, false)] {
            let filler = traced.state().join("filler");
            fill(&filler);
            traced.leaves(come_back);
            if round == 1 {
                traced.is_troubled("no space left");
            } else {
                // The other way round the same is true; it is told once a minute at most.
                traced
                    .bed
                    .pack_until("kept", "cannot be saved", |pack| pack.incidents.error.is_some())
                    .unwrap();
            }
            // A switch to what is kept is refused: it is never overwritten.
            let buffer = if come_back { "away" } else { "main" };
            let refused = traced.bed.ask("switch", &["kept", buffer]).unwrap();
            assert!(!refused.status.success(), "{refused:?}");
            fs::remove_file(&filler).unwrap();
            traced.saved(1 + round);
            traced.is_well();
        }
        traced.end("full disk");
    });
}

#[test]
fn an_agent_begins_on_a_full_disk() {
    run("start on a full disk", || {
        let mut traced = Traced::new();
        let filler = traced.state().join("filler");
        fill(&filler);
        traced.leaves(true);
        traced.is_troubled("no space left");
        traced.bed.kill().unwrap();
        traced.bed.start().unwrap();
        traced.bed.said("rules in force", 1).unwrap();
        traced.is_troubled("no space left");
        fs::remove_file(&filler).unwrap();
        traced.saved(1);
        traced.is_well();
        traced.end("start on a full disk");
    });
}

#[test]
fn a_read_only_disk_is_waited_for() {
    run("read-only disk", || {
        let mut traced = Traced::new();
        set_read_only(&traced.state(), true).unwrap();
        traced.leaves(true);
        traced.is_troubled("Read-only file system");
        set_read_only(&traced.state(), false).unwrap();
        traced.saved(2);
        traced.is_well();
        traced.end("read-only disk");
    });
}

#[test]
fn a_state_folder_that_is_removed_is_made_again() {
    run("removed state folder", || {
        let mut traced = Traced::new();
        // A mount cannot be removed: the folder is one in it.
        traced.bed.end().unwrap();
        unmount(&traced.state()).unwrap();
        traced.bed.start().unwrap();
        traced.bed.said("rules in force", 1).unwrap();
        traced.leaves(true);
        traced.saved(1);
        let aside = traced.bed.path("aside");
        fs::rename(traced.state(), &aside).unwrap();
        traced.leaves(false);
        traced.saved(2);
        let mode = fs::metadata(traced.state()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        traced.is_well();
        // And a file in its place is trouble, until it is gone.
        fs::rename(traced.state(), traced.bed.path("aside_too")).unwrap();
        fs::write(traced.state(), "").unwrap();
        traced.leaves(true);
        traced.is_troubled("Not a directory");
        fs::remove_file(traced.state()).unwrap();
        traced.saved(3);
        traced.is_well();
        // Another agent finds what is where it is now; the test looks at all.
        for (number, from) in ["aside", "aside_too"].iter().enumerate() {
            for entry in fs::read_dir(traced.bed.path(from).join("kept"))
                .unwrap()
                .flatten()
            {
                let name = entry.file_name().into_string().unwrap();
                fs::rename(entry.path(), traced.state().join(format!("kept/{name}-{number}"))).unwrap();
            }
        }
        // The first trace is on the disk that was unmounted; this test has no copy of it.
        let made = traced.counting.take().unwrap().end().unwrap();
        traced.bed.end().unwrap();
        traced.bed.stop_tracing().unwrap();
        assert_eq!(traced.bed.pins(), Vec::<String>::new());
        let last: std::collections::BTreeMap<u32, u32> = made;
        let mut found = lkst_tests::numbered::Found::new();
        for trace in traced.bed.traces("kept") {
            lkst_tests::numbered::find(&trace, &mut found).unwrap();
        }
        for (cpu, made) in last {
            let numbers = &found[&cpu];
            let first = *numbers.keys().next().unwrap();
            assert!(first < made, "{first} {made}");
            for serial in first..made {
                assert_eq!(numbers.get(&serial), Some(&1), "CPU {cpu}: {serial}");
            }
        }
    });
}

#[test]
fn a_state_folder_that_is_unmounted_loses_nothing_that_is_kept() {
    run("unmounted state folder", || {
        let mut traced = Traced::new();
        let state = traced.state();
        // What then is there is a read-only file system, as below a mount that has gone in the night.
        unmount(&state).unwrap();
        mount_new(c"tmpfs", &state, "size=64k,mode=0700").unwrap();
        set_read_only(&state, true).unwrap();
        traced.leaves(true);
        traced.is_troubled("Read-only file system");
        // It is mounted again: another disk, since the first has gone with its mount.
        unmount(&state).unwrap();
        mount_new(c"tmpfs", &state, DISK).unwrap();
        traced.saved(2);
        traced.is_well();
        let made = traced.counting.take().unwrap().end().unwrap();
        traced.bed.end().unwrap();
        traced.bed.stop_tracing().unwrap();
        let mut found = lkst_tests::numbered::Found::new();
        for trace in traced.bed.traces("kept") {
            lkst_tests::numbered::find(&trace, &mut found).unwrap();
        }
        for (cpu, made) in made {
            let numbers = &found[&cpu];
            let first = *numbers.keys().next().unwrap();
            // What was saved on the first disk: 100 numbers on some CPU before the first switch.
            assert!(first > 0 && first < made, "{first} {made}");
            for serial in first..made {
                assert_eq!(numbers.get(&serial), Some(&1), "CPU {cpu}: {serial}");
            }
        }
    });
}

#[test]
fn a_rule_file_that_changes_while_it_is_read_is_never_half_in_force() {
    let Some(_lab) = Lab::open("changing rule file").unwrap() else {
        return;
    };
    let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    // Written in place, again and again, in two halves of which neither is right alone. All sets of a file have its
    // number.
    let text = |number: u32| -> (String, String) {
        let set = |place: &str| format!("set {place}_{number} {{ sched:sched_process_exec }}\n");
        (
            format!("set first_{number} {{ sched:sched_process_exec\n") + &"# filler\n".repeat(20_000),
            "}\n".to_owned() + &set("last") + &format!("start with first_{number}, last_{number}\n"),
        )
    };
    let path = bed.path("rules.d/changing.lkst");
    let write = |number: u32, pause: Duration| {
        let (first, last) = text(number);
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        std::thread::sleep(pause);
        file.write_all(last.as_bytes()).unwrap();
    };
    write(0, Duration::ZERO);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    bed.put(
        "steady.lkst",
        "set s { sched:sched_process_exec }\nstart with s\n",
    )
    .unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    let consistent = |bed: &Bed| {
        let Some(pack) = bed.pack("changing").unwrap() else {
            return;
        };
        let mut numbers: Vec<&str> = pack
            .sets
            .iter()
            .filter_map(|set| set.name.split_once('_'))
            .map(|(_, n)| n)
            .collect();
        assert!(numbers.len() == 2 || pack.hash.is_none(), "{pack:#?}");
        numbers.dedup();
        assert!(numbers.len() <= 1, "{pack:#?}");
    };
    for number in 1..30 {
        // From no time at all to longer than a folder needs to come to rest.
        write(number, Duration::from_millis(u64::from(number) * 13));
        consistent(&bed);
        if number % 5 == 0 {
            bed.ask("reload", &[]).unwrap();
            consistent(&bed);
        }
    }
    bed.pack_until("changing", "is the last", |pack| {
        pack.error.is_none() && pack.sets.iter().any(|set| set.name == "last_29" && set.enabled)
    })
    .unwrap();
    assert!(bed.pack("steady").unwrap().unwrap().error.is_none());
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}
