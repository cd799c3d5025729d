//! *Exact reload*: rules follow one another between two hits. While every CPU fires a numbered event as fast as it can,
//! two packs of forty events take turns, each with other conditions, columns and sets; every number is recorded exactly
//! once, each record whole by one pack's rules.
//!
//! `LKST_RELOADS` says how many changes; 60 where it is not set.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lkst_rules::schema::{Schema as _, Type};
use lkst_tests::lab::{Counted as _, Lab};
use lkst_tests::shared::words;
use lkst_tests::worker::{Worker, cpus, rename, renamed};

const NUMBERED: &str = "task:task_rename";
/// What else the packs name, many of them frequent.
const OTHERS: [&str; 39] = [
    "sched:sched_switch",
    "sched:sched_waking",
    "sched:sched_wakeup",
    "sched:sched_wakeup_new",
    "sched:sched_migrate_task",
    "sched:sched_process_fork",
    "sched:sched_process_exec",
    "sched:sched_process_exit",
    "sched:sched_process_free",
    "sched:sched_process_wait",
    "sched:sched_stat_runtime",
    "task:task_newtask",
    "signal:signal_generate",
    "signal:signal_deliver",
    "timer:timer_start",
    "timer:timer_expire_entry",
    "timer:timer_cancel",
    "timer:hrtimer_start",
    "timer:hrtimer_expire_entry",
    "timer:hrtimer_cancel",
    "timer:tick_stop",
    "irq:softirq_entry",
    "irq:softirq_exit",
    "irq:softirq_raise",
    "irq:irq_handler_entry",
    "irq:irq_handler_exit",
    "workqueue:workqueue_queue_work",
    "workqueue:workqueue_execute_start",
    "kmem:kmalloc",
    "kmem:kfree",
    "kmem:mm_page_alloc",
    "kmem:mm_page_free",
    "syscalls:sys_enter_read",
    "syscalls:sys_exit_read",
    "syscalls:sys_enter_write",
    "syscalls:sys_exit_write",
    "syscalls:sys_enter_openat",
    "syscalls:sys_exit_openat",
    "syscalls:sys_enter_prctl",
];

/// Of the numbered names.
const TAG: u8 = b'R';
/// Bytes of a ring: more than what is made between two looks.
const RING: &str = "256MiB";
/// Changes between two looks.
const CHANGES: usize = 10;

/// Rules of forty events. The two variants differ in every condition and column, and in the sets' names.
fn rules(lab: &Lab, variant: usize) -> String {
    let others: String = OTHERS
        .iter()
        .map(|name| {
            let (system, event) = name.split_once(':').unwrap();
            let event = lab.schema.event(system, event).unwrap();
            let ints: Vec<&str> = event
                .fields
                .iter()
                .filter(|field| matches!(field.ty, Type::Int { .. }))
                .map(|field| field.name.as_str())
                .collect();
            let tested = ints.first().unwrap();
            let kept = ints[variant % ints.len()];
            format!("  {name} with {tested} == {} record {kept}\n", variant + 1)
        })
        .collect();
    let (condition, columns) = [
        (r#"newcomm like "lktR-*""#, "newcomm, pid"),
        (
            r#"pid > 1 and newcomm like "lktR*""#,
            "oldcomm, newcomm, oom_score_adj",
        ),
    ][variant];
    format!(
        "budget 100%
         buffer main {{ size = {RING} }}
         set numbered_{variant} {{ {NUMBERED} with {condition} record {columns} }}
         set others_{variant} {{\n{others}}}
         start with numbered_{variant}, others_{variant}"
    )
}

fn wanted() -> usize {
    std::env::var("LKST_RELOADS").map_or(60, |text| text.parse().unwrap())
}

#[test]
fn every_number_is_recorded_once_by_one_packs_rules() {
    let Some(lab) = Lab::open("exact reload").unwrap() else {
        return;
    };
    let plans = [0, 1].map(|variant| lab.plan(&rules(&lab, variant)).unwrap());
    let columns = [
        vec!["newcomm", "pid"],
        vec!["oldcomm", "newcomm", "oom_score_adj"],
    ];
    let env = lab.environment().unwrap();
    let mut loaded = lab.load(&rules(&lab, 0)).unwrap();
    loaded.start();
    let cpus = cpus();
    let (mut changes, mut hits, mut work) = (0_usize, 0_u64, Vec::new());
    let mut by_variant = [0_u64; 2];
    let mut next: BTreeMap<usize, u32> = BTreeMap::new();
    while changes < wanted() {
        let shared = words().unwrap();
        let mut workers: Vec<Worker> = cpus
            .iter()
            .enumerate()
            .map(|(place, cpu)| {
                let first = next.get(cpu).copied().unwrap_or(0);
                Worker::new(*cpu, move || {
                    let mut serial = first;
                    while shared[0].load(Relaxed) == 0 {
                        rename(TAG, serial);
                        serial = serial.wrapping_add(1);
                        shared[1 + place].store(serial.into(), Relaxed);
                    }
                })
                .unwrap()
            })
            .collect();
        workers.iter_mut().for_each(Worker::go);
        for _ in 0..CHANGES {
            changes += 1;
            let before = std::time::Instant::now();
            let former = loaded.reload(&[plans[changes % 2].clone()], &env).unwrap();
            work.push(before.elapsed());
            assert!(former.buffers.is_empty(), "the ring is the same");
            std::thread::sleep(Duration::from_millis(5));
        }
        shared[0].store(1, Relaxed);
        for worker in workers {
            worker.join().unwrap();
        }
        loaded.grace().unwrap();
        for (place, cpu) in cpus.iter().enumerate() {
            let made = next.get(cpu).copied().unwrap_or(0)..shared[1 + place].load(Relaxed) as u32;
            let ring = loaded.ring("main", *cpu);
            assert_eq!(ring.found.overwritten_pages, 0, "{RING} is too little");
            assert_eq!(ring.found.torn, 0);
            let mut expected: Range<u32> = made.clone();
            for record in ring.records().filter(|record| record.event() == NUMBERED) {
                let names: Vec<&str> = record
                    .class
                    .layout
                    .columns
                    .iter()
                    .map(|c| c.name.as_str())
                    .collect();
                let variant = columns.iter().position(|columns| {
                    columns.len() == names.len() && columns.iter().all(|column| names.contains(column))
                });
                by_variant[variant.unwrap()] += 1;
                let (tag, serial) = renamed(record.text("newcomm")).unwrap();
                assert_eq!(tag, TAG);
                assert_eq!(Some(serial), expected.next(), "CPU {cpu}, of {made:?}");
            }
            assert_eq!(expected.next(), None, "CPU {cpu}, of {made:?}");
            hits += made.len() as u64;
            next.insert(*cpu, made.end);
        }
        loaded.rings_of_mut(0, 0).unwrap().give_up();
    }
    loaded.stop().unwrap();
    let counts = loaded.event(NUMBERED);
    assert_eq!((counts.recorded, counts.lost, counts.capped), (hits, 0, 0));
    assert!(by_variant.iter().all(|records| *records > 0), "{by_variant:?}");
    work.sort_unstable();
    println!(
        "reload: {changes} changes of 40 events, {hits} numbered hits, each recorded once: {} by the one pack's rules, \
         {} by the other's; a change took {:.1} ms (median)",
        by_variant[0],
        by_variant[1],
        work[work.len() / 2].as_secs_f64() * 1e3
    );
}
