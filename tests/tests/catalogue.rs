//! Each row of the catalogue against the kernel's own value: at the same hits, a typed program that reads through the
//! arguments and a classic one that reads what the kernel formatted must record the same.
//!
//! Both are lkst's own, made of the same rule by schemas of which one hides the places of fields and the other their
//! recipes. They hang on one tracepoint, the typed one first, so that on a CPU a classic hit follows its typed one. The
//! kernel may skip classic programs, and typed ones only where an interrupt hits their event inside them, which it counts.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lkst::kernel::loaded::Loaded;
use lkst::kernel::schema::KernelSchema;
use lkst_probes::catalogue;
use lkst_rules::schema::{Event, Field, Origin, Recipe, Schema};
use lkst_tests::live::{Cell, Machine, OneWay, Record, plan, records, workload};
use lkst_tests::{kernel_schema, kernel_takes_programs};

/// Events that this test cannot make happen. Nothing but the kernel's headers would speak for their rows, so there are
/// none: an event comes into the catalogue with a workload that hits it.
const UNHIT: &[&str] = &[];

/// Events that must have been compared.
const LEAST_EVENTS: usize = 100;

/// Systems with events that happen a million times a second: they are compared by themselves, since they would leave
/// nothing of the others in the rings.
const LOUD: &[&str] = &[
    "raw_syscalls",
    "capability",
    "kmem",
    "lock",
    "maple_tree",
    "memcg",
    "mmap_lock",
    "msr",
    "notifier",
    "rcu",
    "rseq",
    "timestamp",
    "tlb",
    "x86_fpu",
];

/// The events of the catalogue that it covers on this kernel, and the names of those that it does not, mostly since the
/// kernel does not have them.
fn covered(schema: &KernelSchema) -> anyhow::Result<(Vec<Arc<Event>>, Vec<String>)> {
    let names: BTreeSet<String> = catalogue::rows()?.into_iter().map(|row| row.event).collect();
    let (mut covered, mut uncovered) = (Vec::new(), Vec::new());
    for name in names {
        let event = name
            .split_once(':')
            .and_then(|(system, name)| schema.event(system, name))
            .filter(|event| event.origin == Origin::Tracepoint)
            .filter(|event| event.fields.iter().all(|field| field.recipe.is_some()));
        match event {
            Some(event) => covered.push(event),
            None => uncovered.push(name),
        }
    }
    Ok((covered, uncovered))
}

/// Hits of one event: those of a CPU in their order.
type ByCpu = HashMap<u32, Vec<Record>>;

/// What was recorded at the same hits.
#[derive(Default)]
struct BothWays {
    /// Through the arguments, by event.
    typed: HashMap<String, ByCpu>,
    /// As the kernel formatted them, by event.
    classic: HashMap<String, ByCpu>,
    /// How many hits of an event the kernel skipped the typed program for.
    skipped: HashMap<String, u64>,
}

fn by_event(records: Vec<Record>) -> HashMap<String, ByCpu> {
    let mut events: HashMap<String, ByCpu> = HashMap::new();
    for record in records {
        let of_event = events.entry(record.event.to_string()).or_default();
        of_event.entry(record.cpu).or_default().push(record);
    }
    for records in events.values_mut().flat_map(HashMap::values_mut) {
        records.sort_by_key(|record| record.time);
    }
    events
}

/// In which fields two records of one event differ, apart from what may move on between the two looks: `jiffies`, and
/// the state of a dead task that its parent reaps just then, from `EXIT_ZOMBIE` to `EXIT_DEAD`.
fn differing(event: &Event, typed: &Record, classic: &Record) -> Vec<String> {
    const ZOMBIE: u64 = 32;
    const DEAD: u64 = 16;
    let differs = |field: &&Field| {
        let (typed, classic) = (typed.cell(&field.name), classic.cell(&field.name));
        match (&field.recipe, typed, classic) {
            (Some(Recipe::Jiffies), Some(Cell::Int(typed)), Some(Cell::Int(classic))) => {
                typed.abs_diff(*classic) > 2
            }
            (Some(Recipe::SwitchState { .. }), Some(Cell::Int(ZOMBIE)), Some(Cell::Int(DEAD))) => false,
            _ => typed != classic,
        }
    };
    let different = event.fields.iter().filter(differs);
    different
        .map(|field| {
            format!(
                "{} is {:?} typed and {:?} classic",
                field.name,
                typed.cell(&field.name),
                classic.cell(&field.name)
            )
        })
        .collect()
}

/// What came of an event.
#[derive(Default)]
struct Compared {
    matched: usize,
    /// Classic hits whose typed one had been overwritten, or the other way round.
    alone: usize,
    problems: Vec<String>,
}

/// How many typed hits before a classic one may be its own: an interrupt that hits the same event between the two
/// programs puts its own hits there.
const NESTED: usize = 4;

/// Finds for each classic hit the typed one.
fn compare(event: &Event, typed: &[Record], classic: &[Record]) -> Compared {
    let mut compared = Compared::default();
    let mut candidates: VecDeque<&Record> = VecDeque::new();
    let mut coming = typed.iter().peekable();
    let first = typed.first().map_or(u64::MAX, |record| record.time);
    for hit in classic {
        while let Some(record) = coming.next_if(|record| record.time <= hit.time) {
            candidates.push_back(record);
            if candidates.len() > NESTED {
                candidates.pop_front();
            }
        }
        if hit.time < first || candidates.is_empty() {
            compared.alone += 1;
            continue;
        }
        let same = |typed: &&Record| typed.tid == hit.tid && differing(event, typed, hit).is_empty();
        match candidates.iter().rposition(same) {
            Some(place) => {
                candidates.remove(place);
                compared.matched += 1;
            }
            None => {
                let nearest = candidates.iter().rev().find(|typed| typed.tid == hit.tid);
                compared.problems.push(match nearest {
                    Some(nearest) => format!(
                        "{} ns later: {}",
                        hit.time - nearest.time,
                        differing(event, nearest, hit).join("; ")
                    ),
                    None => "no typed hit of that thread".to_owned(),
                });
            }
        }
    }
    compared
}

/// What two packs with all fields of these events recorded while `run` ran.
fn both_ways(
    machine: &Machine,
    schema: &KernelSchema,
    events: &[&Arc<Event>],
    run: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<BothWays> {
    const MOST_HITS: usize = 4000;
    let mut text = String::from("start with s\nbuffer main { size = 32MiB }\nset s {\n");
    for event in events {
        text.push_str(&format!("  {}\n", event.full_name()));
    }
    text.push_str("}\n");
    let (typed, classic) = (OneWay { schema, typed: true }, OneWay { schema, typed: false });
    // The first to be attached is the first to run.
    let mut typed = machine.load(&[plan("typed", &text, &typed)?])?;
    let mut classic = machine.load(&[plan("classic", &text, &classic)?])?;
    let programs = |loaded: &Loaded| loaded.image.programs.len();
    let numbers = |loaded: &Loaded| loaded.image.programs.iter().map(|p| p.number).collect::<Vec<_>>();
    assert!(numbers(&typed).into_iter().all(|program| typed.is_typed(program)));
    assert!(
        numbers(&classic)
            .into_iter()
            .all(|program| !classic.is_typed(program))
    );
    assert_eq!(
        (programs(&typed), programs(&classic)),
        (events.len(), events.len())
    );
    typed.start();
    classic.start();
    let ran = run();
    // The other way round: a classic hit that has no typed one would look like a loss.
    classic.stop()?;
    typed.stop()?;
    ran?;
    let skipped = typed.image.programs.iter().map(|program| {
        let name = format!("{}:{}", program.attach.system, program.attach.name);
        (name, typed.skipped(program.number).unwrap_or(0))
    });
    Ok(BothWays {
        skipped: skipped.collect(),
        typed: by_event(records(&typed, 0, MOST_HITS)),
        classic: by_event(records(&classic, 0, MOST_HITS)),
    })
}

/// Makes happen what the workload does not.
fn tour() -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO_BIN_EXE_tour")).status()?;
    anyhow::ensure!(status.success(), "the tour ended with {status}");
    Ok(())
}

#[test]
fn every_row_is_the_classic_value() -> anyhow::Result<()> {
    let test = "every_row_is_the_classic_value";
    let (Some(schema), true) = (kernel_schema(test)?, kernel_takes_programs(test)?) else {
        return Ok(());
    };
    let machine = Machine::of(&schema)?;
    let (events, uncovered) = covered(&schema)?;
    let work = |time| workload(env!("CARGO_BIN_EXE_workload"), Duration::from_millis(time));
    let (loud, quiet): (Vec<_>, Vec<_>) = events
        .iter()
        .partition(|event| LOUD.contains(&event.system.as_str()));
    let mut both = both_ways(&machine, &schema, &quiet, || {
        tour()?;
        work(2500)
    })?;
    let of_loud = both_ways(&machine, &schema, &loud, || {
        tour()?;
        work(300)
    })?;
    both.typed.extend(of_loud.typed);
    both.classic.extend(of_loud.classic);
    both.skipped.extend(of_loud.skipped);
    let mut problems: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut compared_events, mut unhit) = (0, Vec::new());
    let mut states: BTreeSet<u64> = BTreeSet::new();
    println!("{:<32} {:>8} {:>8}", "event", "matched", "alone");
    for event in &events {
        let name = event.full_name();
        let typed = both.typed.remove(&name).unwrap_or_default();
        let mut sum = Compared::default();
        for (cpu, classic) in both.classic.remove(&name).unwrap_or_default() {
            states.extend(classic.iter().filter_map(|hit| hit.int("prev_state")));
            let none = Vec::new();
            let compared = compare(event, typed.get(&cpu).unwrap_or(&none), &classic);
            sum.matched += compared.matched;
            sum.alone += compared.alone;
            sum.problems.extend(compared.problems);
        }
        // A classic hit whose typed one was skipped looks like one that differs, and the kernel does not count all that it
        // skips. A row that is wrong differs at most hits.
        let skipped = both.skipped.get(&name).copied().unwrap_or(0) as usize;
        if sum.problems.len() <= skipped + sum.matched / 1000 {
            sum.alone += sum.problems.len();
            sum.problems.clear();
        }
        println!("{name:<32} {:>8} {:>8}", sum.matched, sum.alone);
        compared_events += usize::from(sum.matched > 0);
        if sum.matched == 0 && !UNHIT.contains(&name.as_str()) {
            unhit.push(name.clone());
        }
        if !sum.problems.is_empty() {
            problems.insert(name, sum.problems);
        }
    }
    println!(
        "{compared_events} of {} events were compared; not hit this time: {unhit:?}; never hit yet: {UNHIT:?}",
        events.len()
    );
    println!("not covered by the catalogue on this kernel: {uncovered:?}");
    println!("states of sched_switch that were compared: {states:?}");
    for (name, problems) in &problems {
        println!("{name}: {} differ:", problems.len());
        for problem in problems.iter().take(5) {
            println!("    {problem}");
        }
    }
    assert!(problems.is_empty(), "{:?}", problems.keys());
    assert!(compared_events >= LEAST_EVENTS, "only {compared_events} events");
    Ok(())
}
