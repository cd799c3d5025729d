//! *The agent may die*: killed at random moments, during triggers, reloads and saves, again and again, while every CPU
//! fires numbered events. Each number must be in exactly one trace in the end: tracing never pauses, what is kept is
//! saved once and whole, nothing half-written is taken for a trace, and no name is left in the bpffs.
//!
//! `LKST_KILLS` says how often; 20 where it is not set.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use lkst_tests::numbered::{each_once, ours};
use lkst_tests::shared::words;
use lkst_tests::worker::{Worker, cpus, rename};

/// Of numbered names; of names that switch.
const TAGS: [u8; 2] = [b'K', b'T'];

/// Rules of one variant: other columns, another set, and with `large` another ring for `away`.
fn rules(variant: usize) -> String {
    let ours = ours();
    let columns = ["newcomm, pid", "newcomm, oldcomm"][variant % 2];
    let size = ["16MiB", "24MiB"][variant / 2 % 2];
    format!(
        "budget 100%
         buffer main {{ size = 16MiB }}
         buffer away {{ size = {size} }}
         set numbered_{variant} {{ task:task_rename with newcomm like \"lktK-*\" and {ours} record {columns} }}
         start with numbered_{variant}
         rule leave {{
           when task:task_rename with newcomm == \"lktT-00000000\" and {ours} then switch buffer away notify \"left\" limit 1000 per 1s
         }}
         rule come_back {{
           when task:task_rename with newcomm == \"lktT-00000001\" and {ours} then switch buffer main notify \"back\" limit 1000 per 1s
         }}"
    )
}

fn wanted() -> usize {
    std::env::var("LKST_KILLS").map_or(20, |text| text.parse().unwrap())
}

/// A small generator: the test must differ from round to round, and be told apart by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// One name from a process of its own, on any CPU.
fn trigger(cpu: usize, which: u32) {
    Worker::new(cpu, move || rename(TAGS[1], which))
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn every_number_is_in_one_trace_however_often_the_agent_is_killed() {
    let Some(_lab) = Lab::open("kill -9").unwrap() else {
        return;
    };
    let cpus = cpus();
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("kill: seed {seed}");
    let mut random = Random(seed);
    let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    bed.put("kill.lkst", &rules(0)).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    let shared = words().unwrap();
    let mut workers: Vec<Worker> = cpus
        .iter()
        .enumerate()
        .map(|(place, cpu)| {
            Worker::new(*cpu, move || {
                let mut serial = 0;
                while shared[0].load(Relaxed) == 0 {
                    rename(TAGS[0], serial);
                    serial += 1;
                    shared[1 + place].store(serial.into(), Relaxed);
                    if serial % 64 == 0 {
                        // SAFETY: sleeps.
                        unsafe { libc::usleep(3000) };
                    }
                }
            })
            .unwrap()
        })
        .collect();
    workers.iter_mut().for_each(Worker::go);
    let mut variant = 0;
    let (mut triggers, mut reloads) = (0, 0);
    for _ in 0..wanted() {
        for _ in 0..=random.below(2) {
            match random.below(3) {
                0 => {
                    variant = (variant + 1 + random.below(3) as usize) % 4;
                    bed.put("kill.lkst", &rules(variant)).unwrap();
                    reloads += 1;
                }
                _ => {
                    let cpu = cpus[random.below(cpus.len() as u64) as usize];
                    trigger(cpu, random.below(2) as u32);
                    triggers += 1;
                }
            }
        }
        // Around the settle time of the folder, and what a save or a reload takes.
        std::thread::sleep(Duration::from_micros(random.below(500_000)));
        bed.kill().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(50_000)));
        bed.start().unwrap();
        if random.below(4) > 0 {
            bed.said("rules in force", 1).unwrap();
            assert!(bed.log().contains("took over"), "{}", bed.log());
        }
    }
    bed.kill().unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    shared[0].store(1, Relaxed);
    for worker in workers {
        worker.join().unwrap();
    }
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
    assert_eq!(bed.pins(), Vec::<String>::new());

    let traces = bed.traces("kill");
    let made = cpus.iter().enumerate();
    let made = made.map(|(place, cpu)| (*cpu as u32, shared[1 + place].load(Relaxed) as u32));
    let made = each_once(&traces, &made.collect()).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    println!(
        "kill: {} kills, {triggers} triggers, {reloads} reloads: {made} numbered events, each in one of {} traces",
        wanted(),
        traces.len()
    );
}
