//! *Budget*: what a pack costs is added up in the kernel, and held there, on each CPU and in each second; other packs
//! lose nothing; what no budget can hold back takes the pack out of the kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lkst::kernel::costs::measure;
use lkst::kernel::generation::load;
use lkst::status::PackPhase;
use lkst_tests::agents::{Bed, event_of};
use lkst_tests::costly::{Costly, READS, TAG, reads};
use lkst_tests::lab::Lab;
use lkst_tests::streamed::Numbered;
use lkst_tests::view::View;
use lkst_tests::worker::{Worker, cpus, rename};

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

#[test]
fn the_kernel_alone_holds_a_pack_to_its_budget() {
    let Some(_lab) = Lab::open("budget without the agent").unwrap() else {
        return;
    };
    const TIME: Duration = Duration::from_secs(4);
    // How much that is of a CPU, from outside, is for `cargo bench` to say: it depends on who else is on the machine.
    for budget in [100.0, 1.0] {
        let begun = Instant::now();
        let costly = Costly::start(env!("CARGO_BIN_EXE_lkst-under-test"), budget, true).unwrap();
        // From here on the kernel is alone.
        let made = reads(TIME).unwrap().made;
        Worker::new(cpus()[0], || (0..5000).for_each(|serial| rename(TAG, serial)))
            .unwrap()
            .join()
            .unwrap();
        let ([costly, other], log) = costly.end().unwrap();
        let seconds = begun.elapsed().as_secs() + 1;
        let seen = event_of(&costly, READS).unwrap();
        assert_eq!(seen.recorded + seen.over_budget, made, "{seen:?}");
        let overloads = event_of(&costly, "lkst:overload").map_or(0, |event| event.recorded);
        let cpus = cpus().len() as u64;
        if budget == 100.0 {
            assert_eq!((seen.over_budget, overloads), (0, 0));
        } else {
            // Each second begins with a new budget, on each CPU, and nobody but the kernel can have given it.
            assert!(seen.recorded > 0 && seen.over_budget > made / 4, "{seen:?}");
            let each = (TIME.as_secs() - 1) * cpus..=seconds * cpus;
            assert!(each.contains(&overloads), "{overloads} not in {each:?}");
        }
        assert_eq!(event_of(&other, "task:task_rename").unwrap().recorded, 5000);
        // A rule without a limit fires ten times a second, whatever there is, and says so as often.
        let fired = costly.rules[0].fired;
        assert!((1..=10 * seconds).contains(&fired), "{fired} in {seconds} s");
        let lines = log.lines().filter(|line| line.contains("lkst::fired")).count() as u64;
        assert!(lines <= 21 * seconds, "{lines} lines in {seconds} s");
        println!(
            "budget: {budget}%, the agent stopped: {made} reads: {} recorded, {} over the budget, {overloads} marks; the rule \
             fired {fired} times",
            seen.recorded, seen.over_budget
        );
    }
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
