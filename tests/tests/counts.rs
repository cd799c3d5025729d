//! *Counts are true*: what a program makes N times is recorded N times, with the right fields, on all CPUs at once and
//! with interrupts recorded beside it; where it is not, it is counted why.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lkst::kernel::loaded::Loaded;
use lkst_probes::layout::{PAGE_BYTES, page};
use lkst_tests::ftrace::Instance;
use lkst_tests::lab::{Counted as _, Lab};
use lkst_tests::view::View;
use lkst_tests::worker::{MARK, Worker, cpus, mark, rename, renamed};

/// One worker a CPU, each with a tag of its own.
fn storms(count: u32) -> Vec<(usize, u8, Worker)> {
    cpus()
        .into_iter()
        .zip(b'a'..=b'z')
        .map(|(cpu, tag)| {
            let worker = Worker::new(cpu, || (0..count).for_each(|serial| rename(tag, serial)));
            (cpu, tag, worker.unwrap())
        })
        .collect()
}

fn pids(workers: &[(usize, u8, Worker)]) -> String {
    let pids: Vec<String> = workers
        .iter()
        .map(|(_, _, worker)| worker.pid.to_string())
        .collect();
    pids.join(", ")
}

fn finish(mut workers: Vec<(usize, u8, Worker)>) {
    for (_, _, worker) in &mut workers {
        worker.go();
    }
    for (_, _, worker) in workers {
        worker.join().unwrap();
    }
}

/// The serial numbers of a worker's renames in a ring, which must be consecutive.
fn serials(view: &View, tag: u8) -> std::ops::Range<u32> {
    let mut range: Option<std::ops::Range<u32>> = None;
    let mut before = None;
    for record in view
        .records()
        .filter(|record| record.event() == "task:task_rename")
    {
        let (found, serial) = renamed(record.text("newcomm")).unwrap();
        assert_eq!(found, tag);
        if let Some(range) = &mut range {
            assert_eq!(serial, range.end);
            assert_eq!(renamed(record.text("oldcomm")), before, "the name before");
            assert_eq!(record.int("pid"), u64::from(record.tid()));
            assert_eq!(record.pid(), record.tid());
            range.end += 1;
        } else {
            range = Some(serial..serial + 1);
        }
        before = Some((found, serial));
    }
    range.unwrap_or_default()
}

/// Where a ring stands after so many records of one length, with nothing else in it.
fn position_after(records: u64, bytes: u64) -> u64 {
    let (page_bytes, head) = (PAGE_BYTES as u64, page::HEADER_BYTES as u64);
    let a_page = (page_bytes - head) / bytes;
    match (records / a_page, records % a_page) {
        (pages, 0) => (pages - 1) * page_bytes + head + a_page * bytes,
        (pages, rest) => pages * page_bytes + head + rest * bytes,
    }
}

fn exact(loaded: &Loaded, event: &str) -> u64 {
    let counts = loaded.event(event);
    assert_eq!(
        (counts.lost, counts.capped, loaded.skipped_hits(event)),
        (0, 0, 0),
        "{event}"
    );
    counts.recorded
}

#[test]
fn a_million_on_each_cpu_in_buffers_that_hold_them() {
    const COUNT: u32 = 1_000_000;
    let Some(lab) = Lab::open("counts in large buffers").unwrap() else {
        return;
    };
    let workers = storms(COUNT);
    let rules = format!(
        "buffer main {{ size = 80MiB }}
         set always {{ task:task_rename with task.pid in {{ {} }} }}
         start with always",
        pids(&workers)
    );
    let mut loaded = lab.load(&rules).unwrap();
    let of: Vec<(usize, u8)> = workers.iter().map(|(cpu, tag, _)| (*cpu, *tag)).collect();
    // The kernel's own tracer beside us, on the same events of the same processes.
    let ours = pids(&workers).replace(", ", " || pid == ");
    let ftrace = Instance::new(&lab, "task", "task_rename", &format!("pid == {ours}")).unwrap();
    loaded.start();
    finish(workers);
    loaded.stop().unwrap();
    let ftrace_counted = ftrace.counted().unwrap();

    for (cpu, tag) in &of {
        let ring = loaded.ring("main", *cpu);
        ring.assert_chained();
        assert_eq!(ring.found.overwritten_pages, 0);
        assert_eq!(serials(&ring, *tag), 0..COUNT);
        assert_eq!(
            loaded.event_on("task:task_rename", *cpu).recorded,
            u64::from(COUNT)
        );
        let bytes = ring.records().next().unwrap().reserved_bytes();
        assert_eq!(ring.raw.pos, position_after(COUNT.into(), bytes));
    }
    let recorded = exact(&loaded, "task:task_rename");
    assert_eq!(recorded, u64::from(COUNT) * of.len() as u64);
    assert_eq!(recorded, ftrace_counted, "ftrace counts otherwise");
    println!(
        "counts: {recorded} recorded of {COUNT} on each of {} CPUs, 0 lost; ftrace: {ftrace_counted}",
        of.len()
    );
}

#[test]
fn recorded_is_kept_and_overwritten_in_buffers_that_do_not() {
    const COUNT: u32 = 1_000_000;
    let Some(lab) = Lab::open("counts in small buffers").unwrap() else {
        return;
    };
    for size in ["8KiB", "12KiB", "64KiB"] {
        let workers = storms(COUNT);
        let rules = format!(
            "buffer main {{ size = {size} }}
             set always {{ task:task_rename with task.pid in {{ {} }} }}
             start with always",
            pids(&workers)
        );
        let mut loaded = lab.load(&rules).unwrap();
        let of: Vec<(usize, u8)> = workers.iter().map(|(cpu, tag, _)| (*cpu, *tag)).collect();
        loaded.start();
        finish(workers);
        loaded.stop().unwrap();
        let mut kept = 0;
        let mut overwritten = 0;
        for (cpu, tag) in &of {
            let ring = loaded.ring("main", *cpu);
            ring.assert_chained();
            let left = serials(&ring, *tag);
            assert_eq!(left.end, COUNT);
            kept += left.len() as u64;
            overwritten += u64::from(left.start);
            let bytes = ring.records().next().unwrap().reserved_bytes();
            assert_eq!(ring.raw.pos, position_after(COUNT.into(), bytes));
            // All but one page are full at any time.
            let a_page = (PAGE_BYTES - page::HEADER_BYTES) as u64 / bytes;
            let pages = ring.raw.pages.len() as u64 / PAGE_BYTES as u64;
            assert!(left.len() as u64 > (pages - 1) * a_page, "{left:?}");
        }
        assert_eq!(exact(&loaded, "task:task_rename"), kept + overwritten);
        println!(
            "counts: {size}: {} recorded = {kept} kept + {overwritten} overwritten",
            kept + overwritten
        );
    }
}

#[test]
fn with_interrupts_nested_in_it() {
    const COUNT: u32 = 300_000;
    let Some(lab) = Lab::open("counts with interrupts").unwrap() else {
        return;
    };
    let workers: Vec<(usize, u8, Worker)> = cpus()
        .into_iter()
        .zip(b'a'..=b'z')
        .map(|(cpu, tag)| {
            let worker = Worker::new(cpu, || {
                let timers = lkst_tests::timers::Timers::start(4, 50_000);
                for serial in 0..COUNT {
                    rename(tag, serial);
                    mark(MARK, [serial.into(), !u64::from(serial), tag.into(), 0]);
                }
                drop(timers);
            });
            (cpu, tag, worker.unwrap())
        })
        .collect();
    let rules = format!(
        "buffer main {{ size = 128KiB }}
         set always {{
           task:task_rename with task.pid in {{ {pids} }}
           syscalls:sys_enter_prctl with option == {MARK} and task.pid in {{ {pids} }}
           syscalls:* except syscalls:sys_enter_prctl
           irq:*
           timer:*
           sched:*
         }}
         start with always",
        pids = pids(&workers)
    );
    let mut loaded = lab.load(&rules).unwrap();
    // Classic programs are skipped where another program runs; this instance says how often what was hit at least.
    let softirqs = Instance::new(&lab, "irq", "softirq_raise", "").unwrap();
    let expiries = Instance::new(&lab, "timer", "hrtimer_expire_entry", "").unwrap();
    let of: Vec<(usize, u8)> = workers.iter().map(|(cpu, tag, _)| (*cpu, *tag)).collect();
    loaded.start();
    finish(workers);
    loaded.stop().unwrap();
    let beside = [
        ("irq:softirq_raise", softirqs),
        ("timer:hrtimer_expire_entry", expiries),
    ];

    let total = u64::from(COUNT) * of.len() as u64;
    for (event, hits) in [("task:task_rename", total), ("syscalls:sys_enter_prctl", total)] {
        let counts = loaded.event(event);
        let skipped = loaded.skipped_hits(event);
        println!(
            "counts: {event}: {hits} made = {} recorded + {} lost + {skipped} skipped",
            counts.recorded, counts.lost
        );
        assert!(counts.recorded + counts.lost <= hits);
        // `sys_enter` of every process hangs on the one program that the skips are counted of.
        assert!(counts.recorded + counts.lost + skipped >= hits);
        if event == "task:task_rename" {
            assert_eq!(counts.recorded + counts.lost + skipped, hits);
        }
    }
    let mut all = 0;
    let mut per_ring = 0;
    for (cpu, _) in &of {
        let ring = loaded.ring("main", *cpu);
        ring.assert_chained();
        per_ring += ring.found.records.len();
        for record in ring.records().filter(|r| r.event() == "syscalls:sys_enter_prctl") {
            assert_eq!(record.int("arg2"), !record.int("arg3"));
        }
    }
    let pack = &loaded.image.packs[0];
    for event in &pack.events {
        let counts = loaded.event(&event.name);
        all += counts.recorded;
        let typed = event.program.is_none_or(|program| loaded.is_typed(program));
        let skipped = event
            .program
            .and_then(|program| loaded.skipped(program))
            .unwrap_or(0);
        let interesting = !event.name.starts_with("syscalls:") && counts.recorded > 0;
        if interesting && (!typed || skipped > 0 || counts.lost > 0) {
            println!(
                "counts: {}: {} recorded, {} lost, {}{skipped} skipped{}",
                event.name,
                counts.recorded,
                counts.lost,
                if typed { "" } else { ">= " },
                if typed { "" } else { " (classic)" },
            );
        }
    }
    for (event, instance) in beside {
        let counts = loaded.event(event);
        // ftrace began before us and ended after us.
        println!(
            "counts: {event}: {} recorded; ftrace around it: {}",
            counts.recorded,
            instance.counted().unwrap()
        );
    }
    println!("counts: {all} records in all, {per_ring} of them left in the rings");
}
