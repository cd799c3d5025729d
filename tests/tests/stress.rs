//! Reserve and commit under stress: rings of two pages, writers interrupted by timers in the midst of a record, and a
//! reader that copies the rings all the time and believes nothing.
//!
//! Each record that a copy yields is checked against what its fields say of each other; a torn record, one made of
//! another's bytes, or one that was never written would show. `LKST_STRESS_RECORDS=100000000` makes it long.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lkst::kernel::loaded::Loaded;
use lkst::trace::decode::{Classes, u16_at, u32_at, u64_at};
use lkst_probes::layout::{PAGE_BYTES, RecordLayout, record};
use lkst_tests::lab::{Counted as _, Lab};
use lkst_tests::shared::words;
use lkst_tests::timers::Timers;
use lkst_tests::view::View;
use lkst_tests::worker::{MARK, Worker, cpus, mark, rename, renamed};

/// Words that the workers share with the test: one that says stop, then calls of each kind by worker.
const STOP: usize = 0;
const MARKS: usize = 64;
const RENAMES: usize = 128;
const PATHS: usize = 192;

/// Any bijection that looks like noise: splitmix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How long the path of a call is: text makes records of varying length.
fn path_bytes(serial: u32) -> usize {
    2 + mix(serial.into()) as usize % 230
}

/// What a worker does until it is told to stop.
fn work(worker: usize, words: &[std::sync::atomic::AtomicU64]) {
    let timers = Timers::start(3, 40_000);
    let mut path = [b'x'; 256];
    path[0] = b'/';
    let mut serial = 0_u64;
    while words[STOP].load(Relaxed) == 0 {
        mark(MARK, [serial, mix(serial), !serial, worker as u64]);
        words[MARKS + worker].fetch_add(1, Relaxed);
        if serial.is_multiple_of(4) {
            let bytes = path_bytes(serial as u32);
            path[bytes] = 0;
            // SAFETY: a path that ends in a NUL; the folder's number is not looked at beside an absolute path.
            unsafe { libc::syscall(libc::SYS_faccessat, serial as u32, path.as_ptr(), 0) };
            path[bytes] = b'x';
            words[PATHS + worker].fetch_add(1, Relaxed);
        }
        if serial.is_multiple_of(8) {
            rename(b'a' + worker as u8, serial as u32);
            words[RENAMES + worker].fetch_add(1, Relaxed);
        }
        serial += 1;
    }
    drop(timers);
}

/// Where the fields of the records that can be checked lie.
struct Checker {
    kinds: BTreeMap<u16, Kind>,
    validated: u64,
    late: u64,
    late_max_ns: u64,
}

enum Kind {
    Mark([usize; 5]),
    Rename(usize),
    Path(usize),
    /// Of an interrupt: the field that is an address, the one that is a time.
    Expiry(usize, usize),
    Other,
}

impl Checker {
    fn new(layouts: &[RecordLayout]) -> Checker {
        let kinds = layouts.iter().map(|layout| {
            let at = |name: &str| -> usize {
                let column = layout.columns.iter().find(|column| column.name == name).unwrap();
                column.offset.unwrap().into()
            };
            let kind = match layout.name.as_str() {
                "syscalls:sys_enter_prctl" => Kind::Mark(["option", "arg2", "arg3", "arg4", "arg5"].map(at)),
                "task:task_rename" => Kind::Rename(at("newcomm")),
                "syscalls:sys_enter_faccessat" => Kind::Path(at("dfd")),
                "timer:hrtimer_expire_entry" => Kind::Expiry(at("hrtimer"), at("now")),
                _ => Kind::Other,
            };
            (layout.id, kind)
        });
        Checker {
            kinds: kinds.collect(),
            validated: 0,
            late: 0,
            late_max_ns: 0,
        }
    }

    /// Checks every record of a copy.
    fn check(&mut self, view: &View, cpu: usize, pids: &[u32], worker: usize) {
        let mut serials = [None::<u64>; 3];
        let mut follows = |kind: usize, serial: u64| {
            let before = serials[kind].replace(serial);
            assert!(
                before.is_none_or(|before| before < serial),
                "{before:?} before {serial}"
            );
        };
        // The latest time up to each record.
        let mut latest: Vec<u64> = Vec::with_capacity(view.found.records.len());
        for (place, found) in view.found.records.iter().zip(view.records()) {
            let bytes = found.bytes;
            let int = |at: usize| u64_at(bytes, at).unwrap();
            let context = || format!("CPU {cpu}, position {}: {bytes:?}", place.at);
            match self.kinds.get(&place.id).unwrap() {
                Kind::Mark([option, serial, noise, complement, who]) => {
                    let serial = int(*serial);
                    let good = u32_at(bytes, *option) == Some(MARK)
                        && int(*noise) == mix(serial)
                        && int(*complement) == !serial
                        && int(*who) == worker as u64
                        && found.pid() == pids[worker];
                    assert!(good, "{}", context());
                    follows(0, serial);
                }
                Kind::Rename(at) => {
                    let name = &bytes[*at..*at + 16];
                    let name = &name[..name.iter().position(|byte| *byte == 0).unwrap()];
                    let (tag, serial) = renamed(name).unwrap_or_else(|| panic!("{}", context()));
                    assert_eq!(usize::from(tag - b'a'), worker, "{}", context());
                    follows(1, serial.into());
                }
                Kind::Path(at) => {
                    let serial = u32_at(bytes, *at).unwrap();
                    let path = found.text("path");
                    let good = path.len() == path_bytes(serial)
                        && path[0] == b'/'
                        && path[1..].iter().all(|byte| *byte == b'x');
                    assert!(good, "{}", context());
                    follows(2, serial.into());
                }
                Kind::Expiry(address, now) => {
                    // Kernel addresses are in the upper half; the clock is one that began at boot or at 1970.
                    assert!(int(*address) >> 63 == 1 && int(*now) >> 63 == 0, "{}", context());
                }
                Kind::Other => {}
            }
            let length = u16_at(bytes, record::LENGTH).unwrap();
            assert!(place.at % PAGE_BYTES as u64 + u64::from(length) <= PAGE_BYTES as u64);
            // A record may lie behind one of a later time only where that was written in an interrupt between its
            // look at the clock and its reservation: then nothing of an earlier time lies between the two.
            let times = || view.found.records[..latest.len()].iter();
            let earlier = times().rposition(|before| before.time < place.time);
            let latest_before = earlier.and_then(|at| latest.get(at).copied()).unwrap_or(0);
            if latest_before > place.time {
                self.late += 1;
                self.late_max_ns = self.late_max_ns.max(latest_before - place.time);
            }
            latest.push(latest.last().copied().unwrap_or(0).max(place.time));
            self.validated += 1;
        }
    }
}

#[test]
fn nothing_is_torn_and_nothing_forged() {
    let wanted: u64 = std::env::var("LKST_STRESS_RECORDS").map_or(3_000_000, |text| text.parse().unwrap());
    let Some(lab) = Lab::open("stress").unwrap() else {
        return;
    };
    let words = words().unwrap();
    let cpus = cpus();
    let mut workers: Vec<Worker> = cpus
        .iter()
        .enumerate()
        .map(|(number, cpu)| Worker::new(*cpu, || work(number, words)).unwrap())
        .collect();
    let pids: Vec<u32> = workers.iter().map(|worker| worker.pid).collect();
    let set = format!("{pids:?}").replace(['[', ']'], "");
    let rules = format!(
        "buffer main {{ size = 8KiB }}
         set always {{
           syscalls:sys_enter_prctl with option == {MARK} and task.pid in {{ {set} }}
           syscalls:sys_enter_faccessat with task.pid in {{ {set} }} record dfd, str(filename) as path
           task:task_rename with task.pid in {{ {set} }} record newcomm
           timer:hrtimer_expire_entry
           timer:hrtimer_expire_exit
           timer:hrtimer_start
           irq:softirq_entry
           irq:softirq_exit
           sched:sched_waking
           sched:sched_switch
         }}
         start with always"
    );
    let mut loaded = lab.load(&rules).unwrap();
    let layouts = loaded.image.packs[0].layouts.clone();
    let classes = Arc::new(Classes::of_layouts(&layouts));
    let mut checker = Checker::new(&layouts);
    let events: Vec<String> = loaded.image.packs[0]
        .events
        .iter()
        .map(|event| event.name.clone())
        .collect();
    let recorded = |loaded: &Loaded| {
        events
            .iter()
            .map(|event| loaded.event(event).recorded)
            .sum::<u64>()
    };
    loaded.start();
    workers.iter_mut().for_each(Worker::go);

    let (mut copies, mut in_flight, mut unbegun) = (0_u64, 0_u64, 0_u64);
    while recorded(&loaded) < wanted {
        for _ in 0..64 {
            for (worker, cpu) in cpus.iter().enumerate() {
                let copy = loaded.rings_of(0, 0).unwrap().look().unwrap().copy(*cpu, true);
                let view = View::with_classes(copy, classes.clone());
                checker.check(&view, *cpu, &pids, worker);
                copies += 1;
                in_flight += view.found.torn;
                unbegun += view.found.missing_pages;
            }
        }
    }
    words[STOP].store(1, Relaxed);
    for worker in workers {
        worker.join().unwrap();
    }
    loaded.stop().unwrap();

    let mut lost_in_rings = 0;
    for (worker, cpu) in cpus.iter().enumerate() {
        let ring = loaded.ring("main", *cpu);
        ring.assert_chained();
        checker.check(&ring, *cpu, &pids, worker);
        lost_in_rings += ring.raw.lost;
    }
    let lost: u64 = events.iter().map(|event| loaded.event(event).lost).sum();
    assert_eq!(lost, lost_in_rings, "events and rings disagree on what was lost");
    for (event, first) in [
        ("syscalls:sys_enter_prctl", MARKS),
        ("syscalls:sys_enter_faccessat", PATHS),
        ("task:task_rename", RENAMES),
    ] {
        let made: u64 = (0..cpus.len())
            .map(|worker| words[first + worker].load(Relaxed))
            .sum();
        let (counts, skipped) = (loaded.event(event), loaded.skipped_hits(event));
        assert_eq!((skipped, counts.unreadable), (0, 0), "{event}");
        assert_eq!(counts.recorded + counts.lost, made, "{event}");
    }
    for event in &events {
        let counts = loaded.event(event);
        println!(
            "stress: {:>11} {event}, {} lost, {} skipped",
            counts.recorded,
            counts.lost,
            loaded.image.packs[0]
                .events
                .iter()
                .find(|e| e.name == *event)
                .and_then(|e| e.program)
                .and_then(|program| loaded.skipped(program))
                .unwrap_or(0)
        );
    }
    println!(
        "stress: {} recorded, {lost} lost, 0 torn; {copies} live copies with {} records validated, {in_flight} in flight, {unbegun} pages not begun; {} times went back, by {} ns at most",
        recorded(&loaded),
        checker.validated,
        checker.late,
        checker.late_max_ns
    );
    // The clock of the boot may step back by the error of its rate when the kernel corrects that, and then by less
    // than a microsecond; a record that lies in a wrong place would be off by far more, and often.
    assert!(checker.late_max_ns < 10_000 && checker.late * 1000 <= checker.validated);
}
