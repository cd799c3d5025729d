//! *Switching keeps*: the buffer that is left holds what led to the firing and, last, the firing itself; nobody writes
//! to it until it is saved; what was recorded is either kept or was overwritten, to the record.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use lkst::kernel::loaded::Loaded;
use lkst::session::Firing;
use lkst::session::{Session, boot_now_ns};
use lkst::trace::decode::Value;
use lkst::trace::read::Traces;
use lkst_probes::layout::state;
use lkst_tests::lab::{Counted as _, Lab};
use lkst_tests::view::View;
use lkst_tests::worker::{MARK, Worker, cpus, mark, rename, renamed};

const AWAY: u32 = MARK + 1;
const BACK: u32 = MARK + 2;
const BEFORE: u32 = 1_000_000;
const AFTER: u32 = 2_000_000;

/// Renames of one process into `main`; `AWAY` switches to `incident`, `BACK` to `main`.
fn rules(pid: u32, for_time: &str) -> String {
    format!(
        "buffer main {{ size = 256KiB }}
         buffer incident {{ size = 128KiB }}
         set always {{ task:task_rename with task.pid == {pid} record newcomm }}
         start with always
         rule away {{
           when syscalls:sys_enter_prctl with option == {AWAY} and task.pid == {pid}
           then switch buffer incident{for_time} notify \"away at {{arg2}}\" limit 1000 per 1s
         }}
         rule back {{
           when syscalls:sys_enter_prctl with option == {BACK} and task.pid == {pid}
           then switch buffer main notify \"back at {{arg2}}\" limit 1000 per 1s
         }}"
    )
}

fn renames(serials: std::ops::Range<u32>) {
    for serial in serials {
        rename(b'a', serial);
    }
}

/// The serial numbers of all renames in a ring, which must be consecutive: the first and one more than the last.
fn serials(view: &View) -> std::ops::Range<u32> {
    let mut range: Option<std::ops::Range<u32>> = None;
    for record in view
        .records()
        .filter(|record| record.event() == "task:task_rename")
    {
        let (tag, serial) = renamed(record.text("newcomm")).unwrap();
        assert_eq!(tag, b'a');
        match &mut range {
            Some(range) => {
                assert_eq!(serial, range.end);
                range.end += 1;
            }
            None => range = Some(serial..serial + 1),
        }
    }
    range.unwrap_or_default()
}

fn state_of(loaded: &Loaded) -> (usize, Vec<usize>) {
    let word = loaded.state(0);
    let kept = (0..8).filter(|buffer| state::is_kept(word, *buffer)).collect();
    (state::current(word), kept)
}

#[test]
fn what_is_left_is_kept() {
    let Some(lab) = Lab::open("switching").unwrap() else {
        return;
    };
    let cpu = cpus()[0];
    let worker = Worker::new(cpu, || {
        renames(0..BEFORE);
        mark(AWAY, [BEFORE.into(), 0, 0, 0]);
        renames(BEFORE..BEFORE + AFTER);
        mark(BACK, [1, 0, 0, 0]);
        mark(BACK, [2, 0, 0, 0]);
    })
    .unwrap();
    let mut loaded = lab.load(&rules(worker.pid, "")).unwrap();
    loaded.start();
    worker.join().unwrap();
    loaded.stop().unwrap();

    // Nobody saves here, so `main` stays kept.
    assert_eq!(state_of(&loaded), (1, vec![0]));
    let main = loaded.ring("main", cpu);
    main.assert_chained();
    let events = main.events();
    let [before @ .., trigger, fired] = &events[..] else {
        panic!("{} records", events.len())
    };
    assert_eq!([*trigger, *fired], ["syscalls:sys_enter_prctl", "lkst:fired"]);
    assert!(before.iter().all(|event| *event == "task:task_rename"));
    let kept = serials(&main);
    assert_eq!(kept.end, BEFORE);
    let last = main.records().next_back().unwrap();
    assert_eq!((last.name("rule"), last.int("arg2")), ("away", BEFORE.into()));
    // A newer one can be in it only from another CPU, and this rule's events are of this one.
    assert!(main.records().all(|record| record.time() <= last.time()));

    let incident = loaded.ring("incident", cpu);
    incident.assert_chained();
    let later = serials(&incident);
    assert_eq!(later.end, BEFORE + AFTER);
    let tail = [
        "syscalls:sys_enter_prctl",
        "lkst:fired",
        "lkst:refused",
        "syscalls:sys_enter_prctl",
        "lkst:fired",
        "lkst:refused",
    ];
    assert!(incident.events().ends_with(&tail), "{:?}", incident.events());
    let refused = incident.records().next_back().unwrap();
    assert_eq!((refused.name("from"), refused.name("to")), ("incident", "main"));

    // Recorded = in the rings + overwritten, and what was overwritten is known by the first serial that is left.
    let counts = loaded.event("task:task_rename");
    assert_eq!((counts.lost, loaded.skipped_hits("task:task_rename")), (0, 0));
    assert_eq!(counts.recorded, u64::from(BEFORE + AFTER));
    let overwritten = u64::from(kept.start) + u64::from(later.start - BEFORE);
    let in_rings = (kept.len() + later.len()) as u64;
    assert_eq!(counts.recorded, in_rings + overwritten);
    assert!(
        kept.start > 0 && later.start > BEFORE,
        "the rings were meant to be too small"
    );
    let (away, back) = (loaded.rule("away"), loaded.rule("back"));
    assert_eq!((away.fired, away.refused), (1, 0));
    assert_eq!((back.fired, back.refused), (2, 2));
    assert_eq!(loaded.event("lkst:refused").recorded, 2);
    assert_eq!(loaded.event("lkst:switched").recorded, 1);
    println!(
        "switching: {} recorded = {in_rings} in rings + {overwritten} overwritten; main holds {kept:?}, then why; 2 switches refused",
        counts.recorded
    );
}

/// The folders that a session has written, without the time in their names, and what each buffer's trace holds.
fn folders(output: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for incident in sorted(&output.join("test")) {
        let name = incident.file_name().unwrap().to_str().unwrap();
        let (_, reason) = name.split_once('-').unwrap();
        for part in sorted(&incident) {
            if part.is_dir() {
                found.push(format!(
                    "{reason}/{}",
                    part.file_name().unwrap().to_str().unwrap()
                ));
            }
        }
    }
    found
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    entries.sort();
    entries
}

/// A worker that does one thing after another, each when it is told to: a step is a range of serials, then a mark.
struct Steps {
    worker: Worker,
    tell: PipeWriter,
    told: PipeReader,
}

impl Steps {
    fn new(cpu: usize) -> Steps {
        let (mut hear, tell) = std::io::pipe().unwrap();
        let (told, mut say) = std::io::pipe().unwrap();
        let mut worker = Worker::new(cpu, || {
            let mut step = [0; 12];
            // The worker has the writing end too, so it never sees an end: it is killed in the end.
            while hear.read_exact(&mut step).is_ok() {
                let [from, to, option] = [0, 4, 8]
                    .map(|at| u32::from_le_bytes([step[at], step[at + 1], step[at + 2], step[at + 3]]));
                renames(from..to);
                if option > 0 {
                    mark(option, [to.into(), 0, 0, 0]);
                }
                if say.write_all(b"!").is_err() {
                    return;
                }
            }
        })
        .unwrap();
        worker.go();
        Steps { worker, tell, told }
    }

    fn step(&mut self, serials: std::ops::Range<u32>, option: u32) {
        let step = [serials.start, serials.end, option].map(u32::to_le_bytes);
        self.tell.write_all(&step.concat()).unwrap();
        self.told.read_exact(&mut [0]).unwrap();
    }
}

fn say(firing: &Firing<'_>, said: &mut Vec<String>) -> std::io::Result<()> {
    said.push(format!("{}/{}  {}", firing.pack, firing.rule, firing.text));
    Ok(())
}

fn ticked(session: &mut Session, said: &mut Vec<String>) {
    session.tick(&mut |firing| say(firing, said)).unwrap();
    assert!(session.troubles.is_empty(), "{:?}", session.troubles);
}

/// Waits until the time of a `switch … for` is over.
fn after_its_end(session: &mut Session) {
    while boot_now_ns() <= session.loaded().switch_until(0) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn it_returns_by_itself_by_the_next_hit_and_by_the_clock() {
    let Some(lab) = Lab::open("switching for a time").unwrap() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut steps = Steps::new(cpus()[0]);
    let rules = rules(steps.worker.pid, " for 50ms");
    let mut session = lab.session(&rules, dir.path().to_owned()).unwrap();
    let mut said = Vec::new();
    session.start();

    // By the next hit. `main` must have been saved, else it is not free.
    steps.step(0..10, AWAY);
    session.notices(&mut |firing| say(firing, &mut said)).unwrap();
    after_its_end(&mut session);
    assert_eq!(state_of(session.loaded()), (1, vec![]));
    steps.step(10..20, 0);
    assert_eq!(state_of(session.loaded()), (0, vec![1]));
    assert_eq!(session.loaded().event("lkst:switched").recorded, 2);
    ticked(&mut session, &mut said);
    assert_eq!(state_of(session.loaded()), (0, vec![]));
    assert_eq!(folders(dir.path()), ["away/1-main", "away/2-incident"]);

    // By the clock, where no hit comes.
    steps.step(20..30, AWAY);
    ticked(&mut session, &mut said);
    after_its_end(&mut session);
    assert_eq!(state_of(session.loaded()).0, 1);
    ticked(&mut session, &mut said);
    assert_eq!(state_of(session.loaded()), (0, vec![]));

    // A switch to the current buffer moves nothing: the next firing has an incident of its own, named for itself.
    steps.step(30..40, BACK);
    ticked(&mut session, &mut said);
    steps.step(40..50, AWAY);
    ticked(&mut session, &mut said);
    after_its_end(&mut session);
    ticked(&mut session, &mut said);
    steps.step(50..60, 0);
    session.finish(&mut |firing| say(firing, &mut said)).unwrap();
    assert!(session.troubles.is_empty(), "{:?}", session.troubles);
    let found = folders(dir.path());
    let twice = ["away/1-main", "away/2-incident"];
    let expected: Vec<&str> = [twice, twice, twice].concat();
    let ctf: Vec<&String> = found
        .iter()
        .filter(|folder| !folder.starts_with("end/"))
        .collect();
    assert_eq!(ctf, expected);
    // Every rename is in one of the traces, once.
    assert_eq!(saved_serials(dir.path()), (0..60).collect::<Vec<_>>());
    assert_eq!(
        said,
        [
            "test/away  away at 10",
            "test/away  away at 30",
            "test/back  back at 40",
            "test/away  away at 50",
        ]
    );
    println!(
        "switching: returned by the next hit and by the clock; {} traces",
        found.len()
    );
}

/// The serial numbers of all renames in all traces of a folder, by time.
fn saved_serials(output: &Path) -> Vec<u32> {
    let traces = Traces::open(&[output]).unwrap();
    assert!(traces.problems.is_empty(), "{:?}", traces.problems);
    let mut records = traces.records();
    let mut serials = Vec::new();
    while let Some(record) = records.next_record().unwrap() {
        if record.event() != "task:task_rename" {
            continue;
        }
        for (column, value) in record.values() {
            if let ("newcomm", Value::Text(text)) = (column.name.as_str(), value) {
                // COMMAND's own start is a rename too.
                serials.extend(renamed(text).map(|(_, serial)| serial));
            }
        }
    }
    serials
}

#[test]
fn end_to_end_through_the_command() {
    let Some(_lab) = Lab::open("switching by the command").unwrap() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("test.lkst");
    // COMMAND is followed, so its number need not be known.
    let rules = rules(0, " for 50ms").replace("task.pid == 0", "task.traced");
    std::fs::write(&pack, rules).unwrap();
    let output = dir.path().join("traces");
    let run = Command::new(env!("CARGO_BIN_EXE_lkst-under-test"))
        .args(["run", "-o"])
        .args([&output, &pack])
        .args(["--", env!("CARGO_BIN_EXE_lkst-load"), "switch", &MARK.to_string()])
        .output()
        .unwrap();
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(run.status.success(), "{said}");
    assert!(said.contains("test/away  away at 50000"), "{said}");
    let found = folders(&output);
    assert_eq!(found[..2], ["away/1-main", "away/2-incident"], "{said}");
    assert!(found.iter().any(|folder| folder == "end/ctf"), "{found:?}");

    // What led to it lies in `main`, and the firing is the last of it.
    let incident = sorted(&output.join("test")).into_iter().next().unwrap();
    let traces = Traces::open(&[incident.join("1-main")]).unwrap();
    let mut records = traces.records();
    let mut last = String::new();
    while let Some(record) = records.next_record().unwrap() {
        last = record.event().to_owned();
    }
    assert_eq!(last, "lkst:fired");
    let before = saved_serials(&incident.join("1-main"));
    assert_eq!(before.last(), Some(&49_999));
    assert!(before.is_sorted_by(|a, b| a + 1 == *b));
    println!("switching: the command saved {found:?}");
}

/// Every system call in every buffer, with returns to `main`: as much as one program is asked for. The verifier must
/// get through it, and what is counted must be counted where it belongs.
#[test]
fn all_system_calls_in_four_buffers() {
    let Some(lab) = Lab::open("switching all system calls").unwrap() else {
        return;
    };
    let cpu = cpus()[0];
    let worker = Worker::new(cpu, || {
        for number in 0..1000_u64 {
            mark(MARK, [number, 0, 0, 0]);
            // SAFETY: no descriptor of such a number is open.
            unsafe { libc::syscall(libc::SYS_close, 1_000_000_000 + number) };
            if number % 100 == 99 {
                mark(MARK + 1 + (number / 100) as u32 % 3, [number, 0, 0, 0]);
            }
        }
    })
    .unwrap();
    let pid = worker.pid;
    let switch = |name: &str, number: u32| {
        format!(
            "buffer {name} {{ size = 1MiB }}
             rule to_{name} {{
               when syscalls:sys_enter_prctl with option == {} and task.pid == {pid}
               then switch buffer {name} for 1h limit 1000 per 1s
             }}",
            MARK + number
        )
    };
    let rules = format!(
        "set always {{ syscalls:* }} start with always {} {} {}",
        switch("b", 1),
        switch("c", 2),
        switch("d", 3)
    );
    let mut loaded = lab.load(&rules).unwrap();
    loaded.start();
    worker.join().unwrap();
    loaded.stop().unwrap();
    let mut found = Vec::new();
    for buffer in ["main", "b", "c", "d"] {
        let ring = loaded.ring(buffer, cpu);
        ring.assert_chained();
        let ours = ring.records().filter(|record| record.pid() == pid);
        let closes = ours.filter(|record| record.event() == "syscalls:sys_enter_close");
        found.push(closes.filter(|close| close.int("fd") >= 1_000_000_000).count());
    }
    // The first three switches each leave a buffer; after that all others are kept, so it stays where it is.
    assert_eq!(found, [100, 100, 100, 700]);
    let refused: u64 = ["to_b", "to_c", "to_d"]
        .map(|rule| loaded.rule(rule).refused)
        .iter()
        .sum();
    // Of the ten switches, three were done and two were to the buffer that was current.
    assert_eq!(refused, 5);
    println!("switching: every system call in four buffers, {found:?} of 1000");
}
