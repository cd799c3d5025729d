//! `mode = stream` on the real kernel: everything that was recorded is in the pieces on disk, once and in order, whatever
//! happens to reader, disk and rules; what found no room is counted to the last record.
//!
//! The ground truth are numbered names from every CPU. `LKST_KILLS` says how often the agent is killed; 20 where it is
//! not set.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lkst::status::{BufferStatus, EventStatus};
use lkst_tests::agents::{Bed, event_of};
use lkst_tests::babeltrace::{assert_same_as_show, show_json};
use lkst_tests::lab::Lab;
use lkst_tests::namespace::{mount_new, remount, set_read_only};
use lkst_tests::streamed::{Found, Numbered};
use lkst_tests::worker::{Worker, cpus, rename};

const TAG: u8 = b'S';

/// The names of these, into a `main` of that size and mode.
fn rules(main: &str, numbered: &Numbered) -> String {
    format!(
        "budget 100%
         buffer main {{ {main} }}
         set numbered {{ task:task_rename with {} record newcomm, pid }}
         start with numbered",
        numbered.condition()
    )
}

fn bed(test: &str, config: &str) -> Option<(Lab, Bed)> {
    let lab = Lab::open(test).unwrap()?;
    let bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    fs::write(bed.path("lkst.toml"), config).unwrap();
    fs::set_permissions(bed.path("lkst.toml"), Permissions::from_mode(0o644)).unwrap();
    Some((lab, bed))
}

/// All that was saved of the pack.
fn found(traces: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for trace in traces {
        found.add(trace, TAG).unwrap();
    }
    found
}

fn main_of(bed: &Bed) -> BufferStatus {
    let pack = bed.pack("p").unwrap().unwrap();
    pack.buffers
        .into_iter()
        .find(|buffer| buffer.name == "main")
        .unwrap()
}

fn renames(bed: &Bed) -> EventStatus {
    let pack = bed.pack("p").unwrap().unwrap();
    event_of(&pack, "task:task_rename").unwrap().clone()
}

/// Nothing half-written is left.
fn assert_clean(state: &Path) {
    for pack in fs::read_dir(state)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_dir())
    {
        for incident in fs::read_dir(pack.path()).unwrap().flatten() {
            let parts: Vec<_> = fs::read_dir(incident.path()).unwrap().flatten().collect();
            assert!(!parts.is_empty(), "{:?} is empty", incident.path());
            for part in parts {
                let name = part.file_name();
                assert!(!name.as_encoded_bytes().starts_with(b"."), "{:?}", part.path());
            }
        }
    }
}

#[test]
fn every_number_is_in_the_pieces_once_and_in_order() {
    let Some((_lab, mut bed)) = bed("stream", "stream_rotate_size = \"256KiB\"\n") else {
        return;
    };
    let mut numbered = Numbered::new(TAG, 40_000, 3000).unwrap();
    bed.put("p.lkst", &rules("size = 1MiB mode = stream", &numbered))
        .unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    numbered.go();
    numbered.join().unwrap();
    let made = numbered.total();
    // Most of it is on disk without that anybody asks, the rest within a second.
    bed.pack_until("p", "has written it all", |pack| {
        pack.buffers[0].written_bytes > made * 40 && pack.incidents.saved >= 4
    })
    .unwrap();
    let (main, counts) = (main_of(&bed), renames(&bed));
    assert!(main.stream && main.lost == 0 && main.error.is_none(), "{main:?}");
    assert_eq!((counts.recorded, counts.lost), (made, 0));
    let said = String::from_utf8(bed.ask("status", &[]).unwrap().stdout).unwrap();
    assert!(said.contains("main 1MiB stream, "), "{said}");
    // A clean end finishes what is open.
    bed.end().unwrap();
    assert_clean(&bed.path("state"));
    let traces = bed.traces("p");
    let all = found(&traces);
    assert!(traces.len() > 6, "{} pieces", traces.len());
    assert_eq!((all.total(), all.lost(), all.flaws()), (made, 0, [0; 4]));
    all.each_once().unwrap();
    all.in_order().unwrap();
    all.all_of(&numbered.made()).unwrap();
    let read: usize = traces.iter().map(|trace| assert_same_as_show(trace)).sum();
    assert_eq!(read as u64, made);
    assert_eq!(show_json(&[bed.path("state/p")]).unwrap().len() as u64, made);
    for incident in &all.incidents {
        assert_eq!((incident.reason.as_str(), incident.live), ("stream", false));
    }
    bed.stop_tracing().unwrap();
    assert_eq!(bed.traces("p").len(), traces.len(), "nothing was left to save");
    println!("stream: {made} names, each in one of {} pieces", traces.len());
}

#[test]
fn what_a_stopped_reader_has_no_room_for_is_counted() {
    let Some((_lab, mut bed)) = bed("back-pressure", "") else {
        return;
    };
    let mut numbered = Numbered::new(TAG, 30_000, 0).unwrap();
    let mut more = Numbered::new(TAG, 5000, 2000).unwrap();
    let both = format!("{} or {}", numbered.condition(), more.condition());
    let text = rules("size = 64KiB mode = stream", &numbered).replace(&numbered.condition(), &both);
    bed.put("p.lkst", &text).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    bed.signal(libc::SIGSTOP);
    numbered.go();
    numbered.join().unwrap();
    bed.signal(libc::SIGCONT);
    let made = numbered.total();
    more.go();
    more.join().unwrap();
    let made = made + more.total();
    bed.pack_until("p", "has counted all", |pack| {
        let event = &pack.events[0];
        event.recorded + event.lost == made
    })
    .unwrap();
    let (main, counts) = (main_of(&bed), renames(&bed));
    assert_eq!(main.lost, counts.lost, "{main:?}");
    // A ring holds about a thousand.
    assert!(counts.lost > 20_000, "{counts:?}");
    let said = String::from_utf8(bed.ask("status", &[]).unwrap().stdout).unwrap();
    assert!(said.contains(&format!("{} records lost", counts.lost)), "{said}");
    bed.end().unwrap();
    let all = found(&bed.traces("p"));
    assert_eq!((all.total(), all.flaws()), (counts.recorded, [0; 4]));
    // Both waves count from 0, the second after the first.
    assert_eq!(
        all.lost(),
        counts.lost,
        "the traces tell of every one that is missing"
    );
    println!(
        "stream: {made} names, {} recorded, {} lost, each counted",
        counts.recorded, counts.lost
    );
    bed.stop_tracing().unwrap();
}

fn kills() -> usize {
    std::env::var("LKST_KILLS").map_or(20, |text| text.parse().unwrap())
}

/// Another ring with each variant, and other columns.
fn variant(number: usize, numbered: &str) -> String {
    let size = ["2MiB", "3MiB", "2MiB", "4MiB"][number % 4];
    let columns = ["newcomm, pid", "newcomm, pid", "newcomm, oldcomm", "newcomm"][number % 4];
    format!(
        "budget 100%
         buffer main {{ size = {size} mode = stream }}
         buffer other {{ size = 2MiB mode = stream }}
         set numbered {{ task:task_rename with {numbered} record {columns} }}
         start with numbered
         rule away {{ when task:task_rename with newcomm like \"*00\" and {numbered} then switch buffer other limit 3 per 1s }}
         rule back {{ when task:task_rename with newcomm like \"*80\" and {numbered} then switch buffer main limit 3 per 1s }}"
    )
}

#[test]
fn every_number_is_in_one_piece_however_often_the_agent_is_killed() {
    let config = "stream_rotate_size = \"64KiB\"\nstream_rotate_age = \"700ms\"\n";
    let Some((_lab, mut bed)) = bed("kill -9 of a stream", config) else {
        return;
    };
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("stream: seed {seed}");
    let mut random = seed;
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    let mut numbered = Numbered::new(TAG, u32::MAX, 3000).unwrap();
    let condition = numbered.condition();
    bed.put("p.lkst", &variant(0, &condition)).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    numbered.go();
    for number in 1..=kills() {
        if below(3) == 0 {
            bed.put("p.lkst", &variant(number, &condition)).unwrap();
        }
        // Quarters fill in about 200 ms, ticks come once a second.
        std::thread::sleep(Duration::from_micros(below(1_200_000)));
        bed.kill().unwrap();
        std::thread::sleep(Duration::from_micros(below(30_000)));
        bed.start().unwrap();
        if below(4) > 0 {
            bed.said("rules in force", 1).unwrap();
            assert!(bed.log().contains("took over"), "{}", bed.log());
        }
    }
    bed.kill().unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    numbered.stop().unwrap();
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
    assert_clean(&bed.path("state"));
    let traces = bed.traces("p");
    let all = found(&traces);
    all.each_once().unwrap();
    let made = numbered.total();
    assert_eq!(all.total() + all.lost(), made, "seed {seed}");
    if all.lost() == 0 {
        all.all_of(&numbered.made()).unwrap();
    }
    assert_eq!(all.flaws()[2..], [0, 0]);
    println!(
        "stream: {} kills: {made} names, {} lost, each of the others in one of {} pieces",
        kills(),
        all.lost(),
        traces.len()
    );
}

#[test]
fn a_disk_that_is_full_or_read_only_is_said_and_mended() {
    let Some((_lab, mut bed)) = bed("full disk", "stream_rotate_size = \"256KiB\"\n") else {
        return;
    };
    let disk = bed.path("state");
    mount_new(c"tmpfs", &disk, "size=1m,mode=0700").unwrap();
    let mut numbered = Numbered::new(TAG, u32::MAX, 3000).unwrap();
    bed.put("p.lkst", &rules("size = 256KiB mode = stream", &numbered))
        .unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    numbered.go();
    let trouble = |pack: &lkst::status::PackStatus| pack.buffers[0].error.clone().unwrap_or_default();
    bed.pack_until("p", "has no disk and loses records", |pack| {
        trouble(pack).contains("no space left") && pack.buffers[0].lost > 1000
    })
    .unwrap();
    let said = String::from_utf8(bed.ask("status", &[]).unwrap().stdout).unwrap();
    assert!(
        said.contains("buffer main is not written: no space left"),
        "{said}"
    );
    assert!(bed.log().contains("no space left"), "{}", bed.log());
    remount(&disk, "size=256m").unwrap();
    let well = |pack: &lkst::status::PackStatus, more: u64| {
        pack.buffers[0].error.is_none() && pack.incidents.error.is_none() && pack.incidents.saved > more
    };
    let saved = bed
        .pack_until("p", "is well again", |pack| well(pack, 5))
        .unwrap()
        .incidents
        .saved;
    set_read_only(&disk, true).unwrap();
    bed.pack_until("p", "cannot write to a read-only disk", |pack| {
        trouble(pack).to_lowercase().contains("read-only")
    })
    .unwrap();
    set_read_only(&disk, false).unwrap();
    bed.pack_until("p", "is well again", |pack| well(pack, saved + 2))
        .unwrap();
    numbered.stop().unwrap();
    let made = numbered.total();
    let counts = renames(&bed);
    assert_eq!(counts.recorded + counts.lost, made);
    bed.end().unwrap();
    assert_clean(&bed.path("state"));
    let all = found(&bed.traces("p"));
    all.each_once().unwrap();
    all.in_order().unwrap();
    assert_eq!((all.total(), all.lost()), (counts.recorded, counts.lost));
    println!(
        "stream: {made} names, {} lost while the disk was full or read-only",
        counts.lost
    );
    bed.stop_tracing().unwrap();
}

/// One name from a process of its own, which a rule waits for.
fn trigger(which: u32) {
    let serial = std::process::id() << 4 | which;
    Worker::new(cpus()[0], move || rename(b'U', serial))
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn a_buffer_may_change_its_mode_and_be_switched_from_and_to() {
    let Some((_lab, mut bed)) = bed("change of mode", "") else {
        return;
    };
    let mut numbered = Numbered::new(TAG, u32::MAX, 3000).unwrap();
    let when = |which: u32| {
        let serial = std::process::id() << 4 | which;
        format!("when task:task_rename with newcomm == \"lktU-{serial:08x}\"")
    };
    let [away, back, keep] = [0, 1, 2].map(when);
    let condition = numbered.condition();
    let rules = |main: &str, other: &str| {
        format!(
            "budget 100%
         buffer main {{ {main} }}
             buffer other {{ {other} }}
             set numbered {{ task:task_rename with {condition} record newcomm, pid }}
             start with numbered
             rule away {{ {away} then switch buffer other notify \"away\" }}
             rule back {{ {back} then switch buffer main notify \"back\" }}
             rule keep {{ {keep} then save notify \"kept\" }}"
        )
    };
    let (stream, ring) = ("size = 4MiB mode = stream", "size = 4MiB");
    bed.put("p.lkst", &rules(ring, ring)).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    numbered.go();
    for (number, (main, other)) in [(stream, ring), (ring, stream), (stream, stream)]
        .into_iter()
        .enumerate()
    {
        bed.put("p.lkst", &rules(main, other)).unwrap();
        bed.said("rules in force", 2 + number).unwrap();
        let before = bed.pack("p").unwrap().unwrap().incidents.saved;
        for (which, current) in [(0, 1), (1, 0)] {
            trigger(which);
            bed.pack_until("p", "has switched and saved", |pack| {
                pack.buffers[current].current && !pack.buffers.iter().any(|buffer| buffer.kept)
            })
            .unwrap();
            std::thread::sleep(Duration::from_millis(30));
        }
        trigger(2);
        bed.pack_until("p", "has saved three times", |pack| {
            pack.incidents.saved >= before + 3
        })
        .unwrap();
        std::thread::sleep(Duration::from_millis(30));
    }
    numbered.stop().unwrap();
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
    assert_clean(&bed.path("state"));
    let traces = bed.traces("p");
    // What `save` wrote of a ring that went on is there twice.
    let whole: Vec<PathBuf> = traces.iter().filter(|trace| !is_live(trace)).cloned().collect();
    let (all, made) = (found(&whole), numbered.total());
    all.each_once().unwrap();
    all.all_of(&numbered.made()).unwrap();
    assert_eq!((all.total(), all.lost()), (made, 0));
    for (rule, times) in [("away", 3), ("back", 3), ("keep", 2)] {
        let of_rule = all.incidents.iter().filter(|i| i.rule.as_deref() == Some(rule));
        assert_eq!(of_rule.count(), times, "{rule} in {traces:#?}");
    }
    let shown = show_json(&[bed.path("state/p")]).unwrap();
    let name = |line: &&serde_json::Value| {
        line["fields"]["newcomm"]
            .as_str()
            .is_some_and(|n| n.starts_with("lktS-"))
    };
    assert_eq!(
        shown.iter().filter(name).count() as u64,
        made,
        "each is shown once"
    );
    println!(
        "stream: {made} names in {} traces of buffers that changed",
        traces.len()
    );
}

fn is_live(trace: &Path) -> bool {
    let text = fs::read_to_string(trace.join("incident.json")).unwrap();
    text.contains("\"live\": true")
}

/// Ended when it is dropped.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _waited_already = self.0.wait();
    }
}

#[test]
fn run_saves_the_rest_and_its_table_is_right() {
    let Some(_lab) = Lab::open("lkst run with a stream").unwrap() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut numbered = Numbered::new(TAG, 30_000, 1000).unwrap();
    // Interrupts among them: records nest in records.
    let text = format!(
        "{}
         set others {{ sched:* timer:* irq:* }}
         start with others",
        rules("size = 16MiB mode = stream", &numbered)
    );
    fs::write(dir.path().join("p.lkst"), text).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_lkst-under-test"))
        .arg("run")
        .arg(dir.path().join("p.lkst"))
        .args([Path::new("-o"), &dir.path().join("out")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.path().join("said")).unwrap())
        .spawn()
        .unwrap();
    let mut run = Run(child);
    let began = std::time::Instant::now();
    while !fs::read_to_string(dir.path().join("said"))
        .unwrap()
        .contains("tracing")
    {
        assert!(run.0.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    numbered.go();
    numbered.join().unwrap();
    // SAFETY: our child, which nobody has waited for.
    unsafe { libc::kill(run.0.id().cast_signed(), libc::SIGINT) };
    let mut table = String::new();
    std::io::Read::read_to_string(run.0.stdout.as_mut().unwrap(), &mut table).unwrap();
    assert!(run.0.wait().unwrap().success(), "{table}");
    let made = numbered.total();
    let (mut recorded, mut lost, mut overwritten) = (0, 0, 0);
    for line in table
        .lines()
        .filter(|line| line.contains(':') && !line.starts_with("trace"))
    {
        let mut numbers = line
            .split_whitespace()
            .map(|word| word.parse::<u64>().unwrap_or(0));
        let [r, o, _, l] = std::array::from_fn(|_| numbers.next().unwrap());
        (recorded, overwritten, lost) = (recorded + r, overwritten + o, lost + l);
        if line.ends_with("task:task_rename") {
            assert_eq!((r + l, o), (made, 0), "{table}");
        }
    }
    assert_eq!(overwritten, 0, "{table}");
    let pack = dir.path().join("out/p");
    let incidents: Vec<PathBuf> = fs::read_dir(&pack).unwrap().flatten().map(|e| e.path()).collect();
    assert!(
        incidents
            .iter()
            .all(|path| path.to_str().unwrap().ends_with("-stream")),
        "{incidents:?}"
    );
    let traces: Vec<PathBuf> = incidents.iter().map(|incident| incident.join("1-main")).collect();
    let all = found(&traces);
    let records: u64 = all
        .incidents
        .iter()
        .flat_map(|i| &i.streams)
        .map(|s| s.records)
        .sum();
    assert_eq!((records, all.lost()), (recorded, lost), "{table}");
    all.in_order().unwrap();
    let [torn, late, ..] = all.flaws();
    assert_eq!(torn, 0);
    if lost == 0 {
        all.all_of(&numbered.made()).unwrap();
        traces.iter().for_each(|trace| {
            assert_same_as_show(trace);
        });
    }
    println!("stream: run: {recorded} records of {made} names and others, {lost} lost, {late} late");
}
