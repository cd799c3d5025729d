//! *Budget*: what a pack costs is added up in the kernel, and held there, on each CPU and in each second; other packs
//! lose nothing; what no budget can hold back takes the pack out of the kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use lkst::kernel::costs::measure;
use lkst::kernel::generation::load;
use lkst::status::{PackPhase, PackStatus};
use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use lkst_tests::shared::words;
use lkst_tests::streamed::Numbered;
use lkst_tests::view::View;
use lkst_tests::worker::{Worker, cpus, rename};

const TAG: u8 = b'B';

#[test]
fn a_pack_records_no_more_than_its_budget_and_all_that_it_drops_is_counted() {
    let Some(lab) = Lab::open("budget").unwrap() else {
        return;
    };
    const SECONDS: u64 = 4;
    let mut env = lab.environment().unwrap();
    env.features.costs = measure(&lab.schema, &env).unwrap();
    println!("budget: measured {:?}", env.features.costs);
    let rules = |budget: &str, size: &str| {
        format!(
            "{budget} buffer main {{ size = {size} }}
             set s {{ task:task_rename with newcomm like \"lktB-*\" record newcomm }}
             start with s"
        )
    };
    // Twenty milliseconds of each second: half a million records at most, by the least price of one. The ring holds those of
    // all seconds, however fast the machine.
    let plans = [
        lab.plan_of("held", &rules("budget 2%", "128MiB")).unwrap(),
        lab.plan_of("free", &rules("", "1MiB")).unwrap(),
        lab.plan_of("all", &rules("budget 100%", "1MiB")).unwrap(),
    ];
    let mut loaded = load(&plans, &env).unwrap();
    loaded.start();
    let cpus = cpus();
    let mut numbered = Numbered::new(TAG, u32::MAX, 0).unwrap();
    numbered.go();
    std::thread::sleep(Duration::from_secs(SECONDS));
    numbered.stop().unwrap();
    loaded.stop().unwrap();

    let all_made = numbered.made();
    for cpu in &cpus {
        let made = u64::from(all_made[&(*cpu as u32)]);
        let counts = |pack: usize, name: &str| {
            let event = loaded.image.packs[pack]
                .events
                .iter()
                .find(|event| event.name == name);
            loaded.event_counts(event.unwrap().counters, *cpu)
        };
        let [held, free, all] = [0, 1, 2].map(|pack| counts(pack, "task:task_rename"));
        assert_eq!((free.recorded, free.over_budget), (made, 0));
        assert_eq!((all.recorded, all.over_budget), (made, 0));
        assert_eq!(held.recorded + held.over_budget, made, "CPU {cpu}: {held:?}");
        assert!(held.over_budget > made / 10, "CPU {cpu}: {held:?} of {made}");
        let (_, cell) = loaded.image.packs[0].budget.unwrap();
        let costs = loaded.pack_costs(cell)[*cpu];
        assert!(costs.hits >= made, "{costs:?}");
        // The first second begins with the first record, so the last may be cut off, and one more begun.
        let overloads = counts(0, "lkst:overload").recorded;
        assert!((SECONDS - 1..=SECONDS + 1).contains(&overloads), "{overloads}");
        let of_records = Duration::from_nanos(costs.of_records_ns);
        let most = Duration::from_millis(20 * (SECONDS + 1));
        assert!(of_records <= most, "CPU {cpu}: {of_records:?}");
        // Nothing but the budget says so: it is recorded from the first hit of each second on.
        let rings = loaded.rings_of(0, 0).unwrap();
        let view = View::new(
            rings.look().unwrap().copy(*cpu, false),
            &loaded.image.packs[0].layouts,
        );
        let marks = view.records().filter(|record| record.event() == "lkst:overload");
        assert_eq!(marks.count() as u64, overloads);
        let first = view.records().next().unwrap();
        assert_eq!(first.text("newcomm"), b"lktB-00000000");
        println!(
            "budget: CPU {cpu}: {made} hits: {} recorded, {} over the budget, {overloads} marks; estimated {:?} of hits, \
             {of_records:?} of records",
            held.recorded,
            held.over_budget,
            Duration::from_nanos(costs.of_hits_ns),
        );
    }
}

/// What this process has had of its CPU, in nanoseconds.
fn cpu_time_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is written to a place of its type.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Reads of zeros, each of which takes as long as a common system call does, and shares nothing with another CPU.
fn read_a_while(file: &File) {
    let mut bytes = [0_u8; 32768];
    for _ in 0..10_000 {
        // SAFETY: as many bytes are read as there are.
        unsafe { libc::pread(file.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    }
}

/// Work that makes no event: what the CPU gives just now, whoever shares it.
fn compute_a_while() {
    let mut value = 1_u64;
    for round in 0..500_000_u64 {
        value = std::hint::black_box(value.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ round);
    }
}

/// Reads on every CPU at once.
struct Reads {
    /// What they cost, in units of work beside them: the median over rounds, the mean over CPUs.
    price: f64,
    /// How much of each CPU this process had meanwhile.
    had: f64,
}

fn reads(file: &File) -> Reads {
    const ROUNDS: usize = 61;
    let shared = words().unwrap();
    let cpus = cpus();
    let count = cpus.len();
    let mut workers: Vec<Worker> = cpus
        .iter()
        .enumerate()
        .map(|(place, cpu)| {
            Worker::new(*cpu, move || {
                for round in 0..ROUNDS {
                    let begun = cpu_time_ns();
                    read_a_while(file);
                    let read = cpu_time_ns();
                    compute_a_while();
                    let computed = cpu_time_ns();
                    let ratio = (read - begun) * 1_000_000 / (computed - read);
                    shared[place * ROUNDS + round].store(ratio, Relaxed);
                }
                shared[count * ROUNDS + place].store(cpu_time_ns(), Relaxed);
            })
            .unwrap()
        })
        .collect();
    let begun = Instant::now();
    workers.iter_mut().for_each(Worker::go);
    for worker in workers {
        worker.join().unwrap();
    }
    let wall_ns = begun.elapsed().as_nanos() as f64;
    let median = |place: usize| {
        let mut rounds: Vec<u64> = (0..ROUNDS)
            .map(|round| shared[place * ROUNDS + round].load(Relaxed))
            .collect();
        rounds.sort_unstable();
        rounds[ROUNDS / 2] as f64 / 1e6
    };
    let had = |place: usize| shared[count * ROUNDS + place].load(Relaxed) as f64 / wall_ns;
    let mean = |of: &dyn Fn(usize) -> f64| (0..count).map(of).sum::<f64>() / count as f64;
    Reads {
        price: mean(&median),
        had: mean(&had),
    }
}

fn events_of<'p>(pack: &'p PackStatus, name: &str) -> Option<&'p lkst::status::EventStatus> {
    pack.events.iter().find(|event| event.name == name)
}

#[test]
fn the_kernel_alone_holds_a_pack_to_its_budget() {
    let Some(_lab) = Lab::open("budget without the agent").unwrap() else {
        return;
    };
    let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    let file = File::open("/dev/zero").unwrap();

    // What the pack takes of each CPU, in percent, and what the agent says of it afterwards.
    let share = |budget: &str, start: &str, bed: &mut Bed| {
        let costly = format!(
            "{budget}
             set s {{
               sched:* timer:* syscalls:*
               syscalls:sys_enter_pread64 record fd, buf, count, pos, task.comm, task.ppid, task.uid, task.gid
             }}
             {start}
             rule each {{ when syscalls:sys_exit_prctl then notify \"renamed: {{ret}}\" }}"
        );
        // Measured each time anew: what else the machine does changes from minute to minute.
        let nothing = reads(&file);
        bed.put("costly.lkst", &costly).unwrap();
        bed.put(
            "other.lkst",
            "budget 100%
             buffer main { size = 4MiB }
             set s { task:task_rename with newcomm like \"lktB-*\" }
             start with s",
        )
        .unwrap();
        let started = Instant::now();
        bed.start().unwrap();
        bed.pack_until("costly", "is in force", |pack| pack.hash.is_some())
            .unwrap();
        // From here on the kernel is alone.
        bed.signal(libc::SIGSTOP);
        let with = reads(&file);
        Worker::new(cpus()[0], || (0..5000).for_each(|serial| rename(TAG, serial)))
            .unwrap()
            .join()
            .unwrap();
        bed.signal(libc::SIGCONT);
        let other = bed.pack("other").unwrap().unwrap();
        assert_eq!(events_of(&other, "task:task_rename").unwrap().recorded, 5000);
        let costly = bed.pack("costly").unwrap().unwrap();
        // A rule without a limit fires ten times a second, whatever there is.
        let fired = costly.rules[0].fired;
        let seconds = started.elapsed().as_secs() + 2;
        assert!((1..=10 * seconds).contains(&fired), "{fired} in {seconds} s");
        let lines = bed
            .log()
            .lines()
            .filter(|line| line.contains("lkst::fired"))
            .count() as u64;
        assert!(lines <= 21 * seconds, "{lines} lines in {seconds} s");
        bed.end().unwrap();
        bed.stop_tracing().unwrap();
        // A unit of the work beside the reads is part of what the CPU does.
        let percent = (with.price - nothing.price) / (with.price + 1.0) * with.had * 100.0;
        (percent, costly)
    };
    // A look from outside on a machine that others share: one of three must be good, and is unless something is wrong.
    let is_held = (1..=3).any(|attempt| {
        let (mere_hits, _) = share("budget 100%", "", &mut bed);
        let (free, _) = share("budget 100%", "start with s", &mut bed);
        // So much that mere hits do not use it up, and recording everything is far above.
        let budget = mere_hits.max(1.0) + 0.25 * (free - mere_hits).max(1.0);
        let (held, costly) = share(&format!("budget {budget:.2}%"), "start with s", &mut bed);
        let reads = events_of(&costly, "syscalls:sys_exit_pread64").unwrap();
        println!(
            "budget: attempt {attempt}: of each CPU, measured from outside: {held:.1}% with a budget of {budget:.1}%, {free:.1}% without, \
             {mere_hits:.1}% where nothing is recorded; {} recorded, {} over the budget",
            reads.recorded, reads.over_budget
        );
        reads.over_budget > 0 && held <= 1.5 * budget
    });
    assert!(is_held, "see what was printed");
}

#[test]
fn a_pack_whose_mere_hits_are_over_its_budget_is_taken_down_until_it_is_reset() {
    let Some(_lab) = Lab::open("too costly a pack").unwrap() else {
        return;
    };
    let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    let rules = |budget: &str| {
        format!(
            "{budget} set s {{ task:task_rename with newcomm == \"never\" }}
             set on {{ sched:sched_process_exec }}
             start with s, on"
        )
    };
    bed.put("costly.lkst", &rules("budget 0.1%")).unwrap();
    bed.put("usual.lkst", &rules("budget 100%")).unwrap();
    bed.start().unwrap();
    bed.pack_until("costly", "is in force", |pack| pack.hash.is_some())
        .unwrap();
    let begun = Instant::now();
    let mut worker = Worker::new(cpus()[0], || {
        loop {
            rename(TAG, 1);
        }
    })
    .unwrap();
    worker.go();
    let shown = bed
        .pack_until("usual", "shows its cost", |pack| pack.cost.hits_per_s > 10_000.0)
        .unwrap();
    assert!(
        shown.cost.cpu_percent > 0.1 && shown.cost.cpu_percent < 100.0,
        "{:?}",
        shown.cost
    );
    let down = bed
        .pack_until("costly", "is down", |pack| pack.phase == PackPhase::OverBudget)
        .unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(9), "{took:?}");
    let why = down.error.unwrap();
    assert!(
        why.contains("its budget is 0.1%") && why.contains("lkst reset costly"),
        "{why}"
    );
    assert!(bed.log().contains("lkst reset costly"), "{}", bed.log());
    assert_eq!(bed.pack("usual").unwrap().unwrap().phase, PackPhase::Active);
    // Neither a look at the folder nor another agent brings it back.
    assert!(bed.ask("reload", &[]).unwrap().status.success());
    assert_eq!(bed.pack("costly").unwrap().unwrap().phase, PackPhase::OverBudget);
    bed.kill().unwrap();
    bed.start().unwrap();
    bed.pack_until("costly", "is still down", |pack| {
        pack.phase == PackPhase::OverBudget
    })
    .unwrap();
    worker.kill();
    let reset = bed.ask("reset", &["costly"]).unwrap();
    assert!(
        reset.status.success(),
        "{}",
        String::from_utf8_lossy(&reset.stderr)
    );
    assert_eq!(bed.pack("costly").unwrap().unwrap().phase, PackPhase::Active);
    let names: BTreeSet<String> = bed.pins().into_iter().collect();
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
    assert!(!names.is_empty());
    println!("budget: taken down after {took:?}");
}
