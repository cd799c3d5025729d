//! *The next event is already recorded*: what a firing enables is on for the very next event, what it disables is off
//! for it, on the CPU of the firing and on any other that begins after it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};

use lkst_tests::lab::{Counted as _, Lab};
use lkst_tests::worker::{MARK, Worker, cpus, mark};

const ON: u32 = MARK + 1;
const OFF: u32 = MARK + 2;
const CALLS: u32 = 20;

/// The rules, for processes that alone are traced.
fn rules(pids: &[u32]) -> String {
    let pids = pids
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "buffer main {{ size = 16MiB }}
         set detail {{
           syscalls:sys_enter_close with task.pid in {{ {pids} }}
           syscalls:sys_enter_dup with task.pid in {{ {pids} }}
         }}
         rule on {{
           when syscalls:sys_enter_prctl with option == {ON} and task.pid in {{ {pids} }}
           then enable detail notify \"{{arg2}}\" limit 65535 per 1s
         }}
         rule off {{
           when syscalls:sys_enter_prctl with option == {OFF} and task.pid in {{ {pids} }}
           then disable detail notify \"{{arg2}}\" limit 65535 per 1s
         }}"
    )
}

/// Calls that fail, which number and kind tell apart: even ones `close`, odd ones `dup`.
fn calls(first: u32) {
    for number in first..first + CALLS {
        // SAFETY: no descriptor of such a number is open.
        unsafe {
            match number % 2 {
                0 => libc::syscall(libc::SYS_close, libc::c_long::from(number)),
                _ => libc::syscall(libc::SYS_dup, libc::c_long::from(number)),
            };
        }
    }
}

/// Numbers of the calls of a round that must be recorded, far above any open descriptor.
fn wanted(round: u32) -> u32 {
    1_000_000_000 + round * CALLS
}

/// Numbers of those that must not.
fn unwanted(round: u32) -> u32 {
    2_000_000_000 + round * CALLS
}

#[test]
fn a_thousand_times_of_a_thousand() {
    const ROUNDS: u32 = 1_000;
    let Some(lab) = Lab::open("next_event").unwrap() else {
        return;
    };
    let cpu = cpus()[0];
    let worker = Worker::new(cpu, || {
        for round in 0..ROUNDS {
            mark(ON, [u64::from(round), 0, 0, 0]);
            calls(wanted(round));
            mark(OFF, [u64::from(round), 0, 0, 0]);
            calls(unwanted(round));
        }
    })
    .unwrap();
    let mut loaded = lab.load(&rules(&[worker.pid])).unwrap();
    loaded.start();
    let pid = worker.pid;
    worker.join().unwrap();
    loaded.stop().unwrap();

    let ring = loaded.ring("main", cpu);
    ring.assert_chained();
    let mut records = ring.records();
    let mut next = |event: &str, round: u32| {
        let record = records
            .next()
            .unwrap_or_else(|| panic!("round {round} lacks {event}"));
        assert_eq!(record.event(), event, "round {round}");
        assert_eq!(record.pid(), pid, "round {round}");
        record
    };
    for round in 0..ROUNDS {
        for (rule, option) in [("on", ON), ("off", OFF)] {
            // The trigger itself with all its fields though no set asks for it, then why.
            let trigger = next("syscalls:sys_enter_prctl", round);
            assert_eq!(trigger.int("option"), u64::from(option));
            assert_eq!(trigger.int("arg2"), u64::from(round));
            assert_eq!(trigger.int("arg5"), 0);
            let fired = next("lkst:fired", round);
            assert_eq!(fired.name("rule"), rule);
            assert_eq!(fired.int("arg2"), u64::from(round));
            assert_eq!(fired.time(), trigger.time());
            if rule == "off" {
                continue;
            }
            for number in wanted(round)..wanted(round) + CALLS {
                let (event, field) = match number % 2 {
                    0 => ("syscalls:sys_enter_close", "fd"),
                    _ => ("syscalls:sys_enter_dup", "fildes"),
                };
                assert_eq!(next(event, round).int(field), u64::from(number));
            }
        }
    }
    // Between them nothing else was, so no call after an `off` was recorded.
    assert!(records.next().is_none());
    for rule in ["on", "off"] {
        let counts = loaded.rule(rule);
        assert_eq!(
            (counts.fired, counts.limited, counts.given_up),
            (u64::from(ROUNDS), 0, 0)
        );
    }
    println!(
        "next_event: {ROUNDS} of {ROUNDS} rounds: the next {CALLS} calls recorded, none of those after `disable`"
    );
}

/// One process fires, tells another on another CPU, which then makes the calls.
#[test]
fn on_another_cpu_too() {
    const ROUNDS: u32 = 300;
    let Some(lab) = Lab::open("next_event on another CPU").unwrap() else {
        return;
    };
    let [first, second, ..] = cpus()[..] else {
        eprintln!("next_event on another CPU: skipped: one CPU only");
        return;
    };
    let (mut hear_call, mut say_call) = std::io::pipe().unwrap();
    let (mut hear_done, mut say_done) = std::io::pipe().unwrap();
    let firing = Worker::new(first, || {
        for round in 0..ROUNDS {
            for option in [ON, OFF] {
                mark(option, [u64::from(round), 0, 0, 0]);
                say_call.write_all(b"!").unwrap();
                hear_done.read_exact(&mut [0]).unwrap();
            }
        }
    })
    .unwrap();
    let mut calling = Worker::new(second, || {
        for round in 0..ROUNDS {
            for first in [wanted(round), unwanted(round)] {
                hear_call.read_exact(&mut [0]).unwrap();
                calls(first);
                say_done.write_all(b"!").unwrap();
            }
        }
    })
    .unwrap();
    let mut loaded = lab.load(&rules(&[firing.pid, calling.pid])).unwrap();
    loaded.start();
    calling.go();
    firing.join().unwrap();
    calling.join().unwrap();
    loaded.stop().unwrap();
    let ring = loaded.ring("main", second);
    ring.assert_chained();
    let found: Vec<u64> = ring
        .records()
        .map(|record| {
            record.int(if record.event().ends_with("close") {
                "fd"
            } else {
                "fildes"
            })
        })
        .collect();
    let expected: Vec<u64> = (wanted(0)..wanted(ROUNDS)).map(u64::from).collect();
    assert!(
        found == expected,
        "{} records instead of {}",
        found.len(),
        expected.len()
    );
    println!("next_event: {ROUNDS} of {ROUNDS} rounds across CPUs");
}
