//! `task.traced` is true in COMMAND, its threads, children and grandchildren, and in nobody else.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use lkst::trace::decode::Value;
use lkst::trace::read::Traces;
use lkst_tests::lab::Lab;
use lkst_tests::shared::words;
use lkst_tests::worker::{MARK, Worker, cpus, mark};

const OURS: u32 = MARK + 7;

#[test]
fn command_and_all_that_it_starts() {
    let Some(_lab) = Lab::open("traced").unwrap() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("family.lkst");
    let rules = format!(
        "buffer main {{ size = 4MiB }}
         set family {{ syscalls:sys_enter_prctl with option == {OURS} and task.traced }}
         start with family"
    );
    std::fs::write(&pack, rules).unwrap();
    // A stranger does the same at the same time.
    let words = words().unwrap();
    let mut stranger = Worker::new(*cpus().last().unwrap(), || {
        while words[0].load(Relaxed) == 0 {
            mark(OURS, [99, 99, 99, 99]);
            words[1].fetch_add(1, Relaxed);
        }
    })
    .unwrap();
    stranger.go();
    let output = dir.path().join("out");
    let run = Command::new(env!("CARGO_BIN_EXE_lkst-under-test"))
        .args(["run", "-o"])
        .args([&output, &pack])
        .args(["--", env!("CARGO_BIN_EXE_lkst-load"), "family", &OURS.to_string()])
        .output()
        .unwrap();
    words[0].store(1, Relaxed);
    stranger.join().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");

    let traces = Traces::open(&[output]).unwrap();
    let mut records = traces.records();
    // By generation and thread: who it was, and how often.
    let mut seen: BTreeMap<(u64, u64), (u32, u32, u64)> = BTreeMap::new();
    while let Some(record) = records.next_record().unwrap() {
        assert_eq!(record.event(), "syscalls:sys_enter_prctl");
        let (pid, tid) = (record.pid(), record.tid());
        let mut arguments = [0; 3];
        for (column, value) in record.values() {
            let place = ["arg2", "arg3", "arg4"]
                .iter()
                .position(|name| *name == column.name);
            if let (Some(place), Value::Int(int)) = (place, value) {
                arguments[place] = int.extended;
            }
        }
        let [generation, thread, number] = arguments;
        let (first_pid, first_tid, count) = seen.entry((generation, thread)).or_insert((pid, tid, 0));
        assert_eq!((*first_pid, *first_tid, *count), (pid, tid, number));
        *count += 1;
    }
    let strangers = words[1].load(Relaxed);
    println!("traced: {seen:?}; {strangers} marks of a stranger, none recorded");
    let expected: Vec<(u64, u64)> = (0..3).flat_map(|g| [(g, 0), (g, 1)]).collect();
    assert!(seen.keys().copied().eq(expected));
    assert!(seen.values().all(|(_, _, count)| *count == 100));
    for ((_, thread), (pid, tid, _)) in &seen {
        assert_eq!(*thread == 0, pid == tid);
    }
    assert!(strangers > 0);
}
