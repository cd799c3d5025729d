//! Limits, `once`, windows of sets, caps, samples, guards and `stop`, with all CPUs racing for them: exactly as much
//! happens as the rules allow, and what is held back is counted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::Ordering::Relaxed;

use lkst::kernel::loaded::Loaded;
use lkst::session::boot_now_ns;
use lkst_probes::layout::{control, state};
use lkst_tests::lab::{Counted as _, Lab};
use lkst_tests::shared::words;
use lkst_tests::worker::{MARK, Worker, cpus, mark};

const EVENT: &str = "syscalls:sys_enter_prctl";

/// Workers on all CPUs that make marks of the numbers in order and wait for each other at the start of each.
fn racing(marks: &'static [(u32, u32)]) -> Vec<Worker> {
    let words = words().unwrap();
    let count = cpus().len() as u64;
    cpus()
        .into_iter()
        .map(|cpu| {
            let race = move || {
                for (step, (number, times)) in marks.iter().enumerate() {
                    words[step].fetch_add(1, Relaxed);
                    while words[step].load(Relaxed) < count {
                        // SAFETY: gives the CPU away.
                        unsafe { libc::sched_yield() };
                    }
                    for time in 0..*times {
                        mark(MARK + number, [time.into(), 0, 0, 0]);
                    }
                }
            };
            Worker::new(cpu, race).unwrap()
        })
        .collect()
}

fn pids(workers: &[Worker]) -> String {
    let pids: Vec<String> = workers.iter().map(|worker| worker.pid.to_string()).collect();
    pids.join(", ")
}

fn finish(loaded: &mut Loaded, mut workers: Vec<Worker>) {
    loaded.start();
    workers.iter_mut().for_each(Worker::go);
    for worker in workers {
        worker.join().unwrap();
    }
    loaded.stop().unwrap();
}

/// Records of an event in all rings of a buffer.
fn in_rings(loaded: &Loaded, event: &str) -> u64 {
    let of_cpu = |cpu| {
        let ring = loaded.ring("main", cpu);
        ring.assert_chained();
        ring.records().filter(|record| record.event() == event).count() as u64
    };
    (0..loaded.cpus()).map(of_cpu).sum()
}

#[test]
fn limits_hold_while_cpus_race() {
    const TIMES: u32 = 200_000;
    let Some(lab) = Lab::open("limits").unwrap() else {
        return;
    };
    let workers = racing(&[(1, TIMES), (2, TIMES), (3, TIMES)]);
    let set = pids(&workers);
    let [one, two, three] = [MARK + 1, MARK + 2, MARK + 3];
    let rules = format!(
        "rule three {{
           when {EVENT} with option == {one} and task.pid in {{ {set} }}
           then notify \"{{arg2}}\" limit 3 per 1h
         }}
         rule once {{
           when {EVENT} with option == {two} and task.pid in {{ {set} }}
           then notify \"{{arg2}}\" once
         }}
         rule many {{
           when {EVENT} with option == {three} and task.pid in {{ {set} }}
           then notify \"{{arg2}}\" limit 60000 per 1h
         }}"
    );
    let mut loaded = lab.load(&rules).unwrap();
    let count = workers.len() as u64;
    finish(&mut loaded, workers);
    let hits = u64::from(TIMES) * count;
    let mut all = 0;
    for (rule, fires) in [("three", 3), ("once", 1), ("many", 60_000)] {
        let counts = loaded.rule(rule);
        println!(
            "limits: {rule}: {} of {hits} fired, {} held back, {} given up",
            counts.fired, counts.limited, counts.given_up
        );
        assert_eq!(counts.fired, fires, "{rule}");
        assert_eq!(counts.fired + counts.limited + counts.given_up, hits, "{rule}");
        all += fires;
    }
    assert_eq!(loaded.event("lkst:fired").recorded, all);
    assert_eq!(loaded.event(EVENT).recorded, all);
}

#[test]
fn caps_and_samples_are_counted() {
    const TIMES: u32 = 300_000;
    let Some(lab) = Lab::open("caps").unwrap() else {
        return;
    };
    let workers = racing(&[(1, TIMES), (2, TIMES)]);
    let set = pids(&workers);
    let [one, two] = [MARK + 1, MARK + 2];
    let rules = format!(
        "buffer main {{ size = 16MiB }}
         set capped max 1000/s {{ {EVENT} with option == {one} and task.pid in {{ {set} }} record option, arg2 }}
         set sampled {{ {EVENT} with option == {two} and task.pid in {{ {set} }} sample 1/10 record option, arg2 }}
         start with capped, sampled"
    );
    let mut loaded = lab.load(&rules).unwrap();
    let of = cpus();
    let began_ns = boot_now_ns();
    finish(&mut loaded, workers);
    let seconds = (boot_now_ns() - began_ns) / 1_000_000_000;
    for cpu in of {
        let counts = loaded.event_on(EVENT, cpu);
        let ring = loaded.ring("main", cpu);
        ring.assert_chained();
        let of_option = |option: u32| {
            ring.records()
                .filter(move |record| record.int("option") == u64::from(option))
        };
        let (capped, sampled) = (of_option(one).count() as u64, of_option(two).count() as u64);
        assert_eq!(capped + sampled, counts.recorded);
        // Each hit was recorded or is counted as over the cap.
        assert_eq!(capped + counts.capped, u64::from(TIMES));
        // At most the cap in any second that began with a hit: as many such seconds as the run had, and one.
        assert!(
            capped >= 1000 && capped <= 1000 * (seconds + 1),
            "{capped} in {seconds} s"
        );
        let mut second: Option<(u64, u32)> = None;
        for record in of_option(one) {
            match &mut second {
                Some((start, taken)) if record.time() - *start < 1_000_000_000 => {
                    *taken += 1;
                    assert!(*taken <= 1000);
                }
                _ => second = Some((record.time(), 1)),
            }
        }
        // A tenth of 300,000 has a standard deviation of 164; six of them are passed once in 500 million runs.
        assert!(sampled.abs_diff(u64::from(TIMES) / 10) < 6 * 165, "{sampled}");
        println!(
            "limits: CPU {cpu}: {capped} recorded + {} capped = {TIMES}; 1/10 of {TIMES}: {sampled}",
            counts.capped
        );
    }
}

#[test]
fn guards_and_stop() {
    let Some(lab) = Lab::open("guards").unwrap() else {
        return;
    };
    let worker = Worker::new(cpus()[0], || {
        for (number, times) in [
            (1, 5),
            (2, 1),
            (1, 7),
            (3, 1),
            (1, 9),
            (2, 1),
            (4, 1),
            (1, 100),
            (5, 100),
        ] {
            for time in 0..times {
                mark(MARK + number, [time, 0, 0, 0]);
            }
        }
    })
    .unwrap();
    let pid = worker.pid;
    let when = |number: u32| {
        format!(
            "when {EVENT} with option == {} and task.pid == {pid}",
            MARK + number
        )
    };
    let rules = format!(
        "set flag {{ }}
         set other {{ }}
         rule guarded {{ {} while flag and not other then notify \"{{arg2}}\" limit 1000 per 1s }}
         rule raise {{ {} then enable flag limit 1000 per 1s }}
         rule lower {{ {} then disable flag limit 1000 per 1s }}
         rule both {{ {} then stop notify \"stopped\" limit 1000 per 1s }}
         rule never {{ {} then notify \"after stop\" limit 1000 per 1s }}
         rule other_on {{ when sched:sched_process_hang then enable other }}",
        when(1),
        when(2),
        when(3),
        when(4),
        when(5)
    );
    let mut loaded = lab.load(&rules).unwrap();
    finish(&mut loaded, vec![worker]);
    let fired = |rule: &str| loaded.rule(rule).fired;
    assert_eq!(fired("guarded"), 7, "only while the flag was up");
    assert_eq!(
        (fired("raise"), fired("lower"), fired("both"), fired("never")),
        (2, 1, 1, 0)
    );
    assert!(state::is_stopped(loaded.state(0)));
    // Nothing after the firing that stopped it.
    let ring = loaded.ring("main", cpus()[0]);
    let last = ring.records().next_back().unwrap();
    assert_eq!((last.event(), last.name("rule")), ("lkst:fired", "both"));
    assert_eq!(in_rings(&loaded, "lkst:fired"), 11);
    println!("limits: a guarded rule fired 7 of 121 times, and nothing after `stop`");
}

/// When a set ends, as the kernel has it.
fn end_of(loaded: &Loaded, set: usize) -> u64 {
    loaded.control_word(0, control::SET_UNTIL + 8 * set as u32)
}

#[test]
fn ends_move_later_and_never_earlier() {
    let Some(lab) = Lab::open("ends").unwrap() else {
        return;
    };
    let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(|number| MARK + number);
    let (mut hear, mut tell) = std::io::pipe().unwrap();
    let (mut told, mut say) = std::io::pipe().unwrap();
    use std::io::{Read as _, Write as _};
    let mut worker = Worker::new(cpus()[0], || {
        let mut number = [0];
        while hear.read_exact(&mut number).is_ok() {
            mark(MARK + u32::from(number[0]), [0; 4]);
            if say.write_all(b"!").is_err() {
                return;
            }
        }
    })
    .unwrap();
    let pid = worker.pid;
    let rules = format!(
        "set timed {{ {EVENT} with option == {five} and task.pid == {pid} record option }}
         set endless {{ }}
         start with endless
         rule long {{ when {EVENT} with option == {one} and task.pid == {pid} then enable timed for 1h limit 1000 per 1s }}
         rule short {{ when {EVENT} with option == {two} and task.pid == {pid} then enable timed, endless for 20ms limit 1000 per 1s }}
         rule off {{ when {EVENT} with option == {three} and task.pid == {pid} then disable timed limit 1000 per 1s }}
         rule always {{ when {EVENT} with option == {four} and task.pid == {pid} then enable timed limit 1000 per 1s }}"
    );
    let mut loaded = lab.load(&rules).unwrap();
    loaded.start();
    worker.go();
    let mut step = |number: u8| {
        tell.write_all(&[number]).unwrap();
        told.read_exact(&mut [0]).unwrap();
    };
    // Marks of number 5 are recorded by the timed set and wanted by nothing else.
    let mut recorded = 0;
    let mut is_on = |loaded: &Loaded, step: &mut dyn FnMut(u8)| {
        step(5);
        let now = loaded.event(EVENT).recorded - evidence(loaded);
        std::mem::replace(&mut recorded, now) < now
    };
    const HOUR: u64 = 3_600_000_000_000;

    assert!(!is_on(&loaded, &mut step));
    step(2);
    let short = end_of(&loaded, 0);
    assert!(short > 0 && short < boot_now_ns() + HOUR / 2);
    assert_eq!(end_of(&loaded, 1), control::SINCE_START, "a set that has no end");
    while boot_now_ns() <= short {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(!is_on(&loaded, &mut step), "after its end");
    step(1);
    let long = end_of(&loaded, 0);
    assert!(long > boot_now_ns() + HOUR / 2);
    assert!(is_on(&loaded, &mut step));
    step(2);
    assert_eq!(end_of(&loaded, 0), long, "never earlier");
    step(1);
    assert!(end_of(&loaded, 0) > long, "later");
    step(3);
    assert!(!is_on(&loaded, &mut step), "disabled at once");
    step(2);
    assert!(end_of(&loaded, 0) < long, "a set that was off begins anew");
    step(4);
    assert_eq!(end_of(&loaded, 0), u64::MAX);
    step(2);
    assert_eq!(end_of(&loaded, 0), u64::MAX, "a set that has no end");
    assert!(is_on(&loaded, &mut step));
    loaded.stop().unwrap();
    worker.kill();
    println!("limits: ends moved later, never earlier; a set without an end kept none");
}

/// Records that are there only because a rule fired on their event.
fn evidence(loaded: &Loaded) -> u64 {
    loaded.event("lkst:fired").recorded
}

/// Two rules of different length race to move the same end, also that of a `switch`: the longer one wins, always.
#[test]
fn the_later_end_wins_a_race() {
    const TIMES: u32 = 20_000;
    let Some(lab) = Lab::open("racing ends").unwrap() else {
        return;
    };
    let [Ok(one), Ok(two)] = [1, 2].map(|number| {
        let cpus = cpus();
        let cpu = cpus[(number as usize - 1) % cpus.len()];
        Worker::new(cpu, move || {
            (0..TIMES).for_each(|time| mark(MARK + number, [time.into(), 0, 0, 0]))
        })
    }) else {
        panic!("no workers")
    };
    let prepare = |number: u32, pid: u32| {
        format!(
            "when {EVENT} with option == {} and task.pid == {pid}",
            MARK + number
        )
    };
    let rules = format!(
        "buffer main {{ size = 8KiB }}
         buffer other {{ size = 8KiB }}
         set timed {{ }}
         rule short {{ {} then enable timed for 1h switch buffer other for 1h limit 65535 per 1h }}
         rule long {{ {} then enable timed for 2h switch buffer other for 2h limit 65535 per 1h }}
         rule guarded {{ when sched:sched_process_hang while timed then notify \"x\" }}",
        prepare(1, one.pid),
        prepare(2, two.pid)
    );
    let mut loaded = lab.load(&rules).unwrap();
    finish(&mut loaded, vec![one, two]);
    // The last firing of the long rule is the latest end of all.
    let last = (0..loaded.cpus())
        .filter_map(|cpu| {
            let ring = loaded.ring("other", cpu);
            ring.records()
                .filter(|record| record.event() == "lkst:fired" && record.name("rule") == "long")
                .map(|record| record.time())
                .next_back()
        })
        .max()
        .unwrap();
    let given_up = loaded.rule("long").given_up + loaded.rule("short").given_up;
    println!(
        "limits: {} and {} firings raced, {given_up} given up",
        loaded.rule("short").fired,
        loaded.rule("long").fired
    );
    if given_up == 0 {
        assert_eq!(end_of(&loaded, 0), last + 7_200_000_000_000);
        assert_eq!(loaded.switch_until(0), last + 7_200_000_000_000);
    }
}

#[test]
fn the_tracepoint_behind_system_calls_is_an_event_beside_them() {
    let Some(lab) = Lab::open("raw_syscalls beside syscalls").unwrap() else {
        return;
    };
    // They are typed as system calls always are, and all hang on the same two tracepoints.
    let mut loaded = lab
        .load(
            "set s { raw_syscalls:sys_enter with args.id == 157 record args.id
                     raw_syscalls:sys_exit with id == 157
                     syscalls:sys_enter_prctl record option
                     syscalls:sys_exit_prctl }
             start with s
             rule r { when raw_syscalls:sys_exit with id == 157 then notify \"{ret}\" limit 5 per 1h }",
        )
        .unwrap();
    const MARKS: &[(u32, u32)] = &[(0, 1000)];
    let workers = racing(MARKS);
    let made = 1000 * workers.len() as u64;
    finish(&mut loaded, workers);
    for event in [
        "raw_syscalls:sys_enter",
        "raw_syscalls:sys_exit",
        EVENT,
        "syscalls:sys_exit_prctl",
    ] {
        assert!(
            loaded.event(event).recorded >= made,
            "{event}: {:?}",
            loaded.event(event)
        );
    }
    assert_eq!(loaded.rule("r").fired, 5);
}
