//! Random conditions at real hits: what the programs in the kernel find is what the reference evaluator finds.
//!
//! For each of many events a program records the values that conditions may use, what a hundred random conditions over
//! them are worth, and the values again: a record whose values changed meanwhile says nothing. The evaluator is given
//! the values, and each condition must be worth the same. Other conditions decide what is recorded (`with`) and which
//! rules fire (`when … with`), since there they are branches and no values.
//!
//! `LKST_CONDITIONS=N` sets how many conditions there are, `LKST_SEED=N` which.

mod conditions {
    pub(crate) mod generate;
}

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use conditions::generate::{Generator, Leaf, Random};
use lkst::kernel::schema::KernelSchema;
use lkst_probes::layout::{CUT, UNREADABLE};
use lkst_rules::eval::{Hit, Value, eval};
use lkst_rules::plan::{Expr, Load, Plan, TaskValue};
use lkst_rules::schema::{Event, Origin, PathStep, Schema, Type};
use lkst_tests::live::{Cell, Machine, Record, plan, records, workload};
use lkst_tests::{kernel_schema, kernel_takes_programs};

/// What is tried, where the kernel has it and the workload makes it happen.
const EVENTS: &[&str] = &[
    "task:task_rename",
    "task:task_newtask",
    "sched:sched_switch",
    "sched:sched_waking",
    "sched:sched_wakeup_new",
    "sched:sched_migrate_task",
    "sched:sched_process_fork",
    "sched:sched_process_exec",
    "sched:sched_process_exit",
    "sched:sched_process_wait",
    "sched:sched_process_free",
    "signal:signal_generate",
    "signal:signal_deliver",
    "timer:timer_start",
    "timer:hrtimer_start",
    "timer:hrtimer_expire_entry",
    "timer:itimer_state",
    "timer:itimer_expire",
    "irq:softirq_entry",
    "irq:irq_handler_entry",
    "workqueue:workqueue_queue_work",
    "workqueue:workqueue_execute_start",
    "raw_syscalls:sys_enter",
    "raw_syscalls:sys_exit",
    "syscalls:sys_enter_openat",
    "syscalls:sys_exit_openat",
    "syscalls:sys_enter_read",
    "syscalls:sys_exit_read",
    "syscalls:sys_enter_write",
    "syscalls:sys_enter_close",
    "syscalls:sys_exit_close",
    "syscalls:sys_enter_lseek",
    "syscalls:sys_enter_dup2",
    "syscalls:sys_enter_kill",
    "syscalls:sys_exit_kill",
    "syscalls:sys_enter_prctl",
    "syscalls:sys_enter_access",
    "syscalls:sys_enter_mmap",
    "syscalls:sys_enter_execve",
    "kmem:kmalloc",
    "kmem:kmem_cache_free",
    "kmem:mm_page_alloc",
    "net:net_dev_queue",
    "net:netif_receive_skb",
    "skb:consume_skb",
    "sock:inet_sock_set_state",
    "tcp:tcp_probe",
    "tcp:tcp_destroy_sock",
    "fib:fib_table_lookup",
    "percpu:percpu_alloc_percpu",
    "writeback:writeback_dirty_inode",
    "mmap:vm_unmapped_area",
    "exceptions:page_fault_user",
];

/// Hits of an event and CPU that are compared.
const MOST_HITS: usize = 100;
/// Hits of an event that are wanted in a second.
const WANTED_PER_S: u64 = 150;
/// Values of an event that conditions use.
const MOST_LEAVES: usize = 24;
/// Conditions of an event that are the `with` of a set: with the set that records them all, as many as one event may
/// have different lists of columns.
const SETS: usize = 3;
/// Of so many conditions one is a rule's,
const RULES: usize = 9;
/// and so many rules a pack has at most.
const MOST_RULES: usize = 1000;
/// Conditions of a load, of which there are several, one after another.
const CONDITIONS_OF_LOAD: usize = 800;
/// Events of a set: the language limits how long an item may be.
const EVENTS_OF_SET: usize = 5;

/// A hit that was recorded.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    record: Rc<Record>,
    /// The column of each value, by the value's name in the plan.
    columns: Rc<HashMap<String, String>>,
}

/// The name by which a sample knows a value.
fn name_of(load: &Load) -> String {
    match load {
        Load::Field { name, .. } => name.clone(),
        Load::Task(what) => match what {
            TaskValue::Pid => "task.pid",
            TaskValue::Tid => "task.tid",
            TaskValue::Uid => "task.uid",
            TaskValue::Gid => "task.gid",
            TaskValue::Ppid(_) => "task.ppid",
            TaskValue::Comm(_) => "task.comm",
            TaskValue::Traced => "task.traced",
        }
        .to_owned(),
        Load::Cpu => "hit.cpu".to_owned(),
        Load::Time => "hit.time".to_owned(),
        Load::EventName(_) => "hit.event".to_owned(),
    }
}

fn is_cut(text: &[u8]) -> bool {
    text.len() >= 255 && text.ends_with(CUT.as_bytes())
}

impl Sample {
    fn value(&self, name: &str) -> Option<Value> {
        match self.record.cell(self.columns.get(name)?)? {
            Cell::Int(value) => Some(Value::Int(*value)),
            Cell::Text(text) if text == UNREADABLE.as_bytes() => Some(Value::Text(None)),
            Cell::Text(text) => Some(Value::Text(Some(text.clone()))),
            Cell::Ints(_) => None,
        }
    }
}

impl Hit for Sample {
    fn field(&self, name: &str) -> Option<Value> {
        self.value(name)
    }

    fn task(&self, what: &TaskValue) -> Option<Value> {
        self.value(&name_of(&Load::Task(what.clone())))
    }

    fn cpu(&self) -> u32 {
        self.record.cpu
    }

    fn time(&self) -> u64 {
        self.record.time
    }

    /// The texts that were read are known by the fields that point to them.
    fn text_at(&self, pointer: u64, _user: bool) -> Option<Vec<u8>> {
        let pointing = self.columns.iter().find(|(name, column)| {
            let of = name.strip_prefix("str(").and_then(|name| name.strip_suffix(')'));
            of.is_some_and(|of| self.value(of) == Some(Value::Int(pointer)))
                && self.record.cell(column).is_some()
        });
        match self.value(pointing?.0)? {
            Value::Text(text) => text,
            Value::Int(_) | Value::Bool(_) => None,
        }
    }
}

/// An event, and what is known of it.
struct Subject {
    event: Arc<Event>,
    leaves: Vec<Leaf>,
    samples: Vec<Sample>,
    /// One of so many hits is looked at.
    one_in: u64,
}

impl Subject {
    /// The condition that chooses the hits, by the time of each, so that all packs and rules choose the same.
    fn gate(&self) -> Option<String> {
        (self.one_in > 1).then(|| format!("hit.time / 1us % {} == 0", self.one_in))
    }

    fn gated(&self, condition: &str) -> String {
        match self.gate() {
            None => condition.to_owned(),
            Some(gate) => format!("{gate} and ({condition})"),
        }
    }

    /// `prev_pid as l0, …`
    fn columns(&self, prefix: &str) -> String {
        let mut columns = String::new();
        for (number, leaf) in self.leaves.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            let _ = write!(columns, "{comma}{} as {prefix}{number}", leaf.text);
        }
        columns
    }

    /// A member with the values, what `between` is, and again the values.
    fn member(&self, between: &str) -> String {
        let gate = self
            .gate()
            .map(|gate| format!("with {gate} "))
            .unwrap_or_default();
        format!(
            "  {} {gate}record {}, {between}{}\n",
            self.event.full_name(),
            self.columns("l"),
            self.columns("m")
        )
    }
}

/// The values of an event, those that only a typed program has among them where the event is typed anyway.
fn leaves(schema: &KernelSchema, event: &Event, random: &mut Random) -> Vec<Leaf> {
    let mut leaves: Vec<Leaf> = Vec::new();
    let mut add = |text: String, ty: Type| {
        if !matches!(ty, Type::Array { .. } | Type::Sequence { .. }) {
            leaves.push(Leaf { text, ty });
        }
    };
    let mut texts = 0;
    for field in &event.fields {
        let name = format!("event.{}", field.name);
        if field.place.is_none() && field.recipe.is_none() {
            continue;
        }
        match field.ty {
            Type::Array { bits, signed, count } => {
                for index in HashSet::from([0, count / 2, count.saturating_sub(1)]) {
                    if index < count {
                        add(format!("{name}[{index}]"), Type::Int { bits, signed });
                    }
                }
            }
            ty => add(name.clone(), ty),
        }
        let is_text = field.declared.contains("char *") && event.origin != Origin::Tracepoint;
        if is_text && field.name != "buf" && texts < 2 {
            texts += 1;
            add(format!("str({name})"), Type::TEXT);
        }
    }
    for (name, ty) in [
        ("hit.cpu", Type::U32),
        ("hit.time", Type::Duration),
        ("task.pid", Type::U32),
        ("task.tid", Type::U32),
        ("task.uid", Type::U32),
        ("task.gid", Type::U32),
        ("task.ppid", Type::I32),
        ("task.comm", Type::COMM),
    ] {
        add(name.to_owned(), ty);
    }
    let typed = event.fields.iter().all(|field| field.recipe.is_some());
    for argument in event.arguments.iter().filter(|_| typed) {
        let members = schema.argument_members(event, &argument.name);
        let some = (0..4).filter_map(|_| members.get(random.below(members.len())));
        let some = some.map(|(member, _)| format!("{}.{member}", argument.name));
        for path in some.chain([argument.name.clone()]) {
            let steps: Vec<_> = path
                .split('.')
                .map(|name| PathStep::Name(name.to_owned()))
                .collect();
            if let Ok(found) = schema.argument(event, &steps) {
                add(format!("args.{path}"), found.ty);
            }
        }
    }
    let mut seen = HashSet::new();
    leaves.retain(|leaf| seen.insert(leaf.text.clone()));
    let mut varying = 0;
    leaves.retain(|leaf| {
        let varies = matches!(leaf.ty, Type::Text { capacity: 256.. });
        varying += usize::from(varies);
        !varies || varying <= 3
    });
    leaves.truncate(MOST_LEAVES);
    leaves
}

/// What `l0`, `l1`, … of a record are, by the names that conditions have for them.
fn columns_of(leaves: &[Leaf]) -> Rc<HashMap<String, String>> {
    let names = leaves.iter().enumerate().map(|(number, leaf)| {
        let name = leaf.text.replace("event.", "");
        (name, format!("l{number}"))
    });
    Rc::new(names.collect())
}

/// Whether a value was the same before and after the conditions. Text of varying length is read once, before.
fn is_steady(record: &Record, leaf: usize) -> bool {
    let before = record.cell(&format!("l{leaf}"));
    match before {
        Some(Cell::Text(text)) if is_cut(text) => false,
        _ => before == record.cell(&format!("m{leaf}")),
    }
}

fn is_usable(record: &Record, subject: &Subject) -> bool {
    (0..subject.leaves.len()).all(|leaf| is_steady(record, leaf))
}

/// Traces the packs during the workload. Returns the records of each.
fn trace(machine: &Machine, plans: &[Arc<Plan>], time: Duration) -> anyhow::Result<Vec<Vec<Record>>> {
    let mut loaded = machine.load(plans)?;
    loaded.start();
    let worked = workload(env!("CARGO_BIN_EXE_workload"), time);
    loaded.stop()?;
    worked?;
    Ok((0..plans.len())
        .map(|pack| records(&loaded, pack, MOST_HITS))
        .collect())
}

/// The events that happen here, with some hits of each.
fn subjects(
    schema: &KernelSchema,
    machine: &Machine,
    random: &mut Random,
) -> anyhow::Result<(Vec<Subject>, Vec<String>)> {
    const LOOK: Duration = Duration::from_millis(1200);
    let mut subjects: Vec<Subject> = Vec::new();
    for name in EVENTS {
        let event = name
            .split_once(':')
            .and_then(|(system, name)| schema.event(system, name));
        if let Some(event) = event {
            subjects.push(Subject {
                leaves: leaves(schema, &event, random),
                samples: Vec::new(),
                one_in: 1,
                event,
            });
        }
    }
    let mut text = String::from("buffer main { size = 16MiB }\n");
    // A cap is of a set, and no event shall take it from the others; 40 sets are the most.
    for (set, subjects) in subjects.chunks(subjects.len().div_ceil(40).max(1)).enumerate() {
        let _ = writeln!(text, "start with s{set}\nset s{set} max 300/s {{");
        for subject in subjects {
            text.push_str(&subject.member(""));
        }
        text.push_str("}\n");
    }
    let look = plan("look", &text, schema)?;
    let mut loaded = machine.load(&[look])?;
    loaded.start();
    let began = Instant::now();
    let worked = workload(env!("CARGO_BIN_EXE_workload"), LOOK);
    let milliseconds = began.elapsed().as_millis() as u64;
    loaded.stop()?;
    worked?;
    let mut hits: HashMap<Arc<str>, Vec<Record>> = HashMap::new();
    for record in records(&loaded, 0, MOST_HITS) {
        hits.entry(Arc::clone(&record.event)).or_default().push(record);
    }
    let (mut looked_at, mut silent) = (Vec::new(), Vec::new());
    let image = loaded.image.packs.first().context("no pack")?;
    for mut subject in subjects {
        let name = subject.event.full_name();
        let hits = hits.remove(name.as_str()).unwrap_or_default();
        let counters = image
            .events
            .iter()
            .find(|e| e.name == name)
            .map(|e| e.counters)
            .unwrap_or_default();
        let happened: u64 = (0..loaded.cpus())
            .map(|cpu| loaded.event_counts(counters, cpu))
            .map(|counts| counts.recorded + counts.capped)
            .sum();
        subject.one_in = (happened * 1000 / milliseconds.max(1) / WANTED_PER_S).max(1);
        // Values that change by themselves while we look are none to make conditions of.
        let steady = |leaf: &usize| {
            let changed = hits.iter().filter(|hit| !is_steady(hit, *leaf)).count();
            changed * 20 <= hits.len()
        };
        let kept: Vec<usize> = (0..subject.leaves.len()).filter(steady).collect();
        let columns = columns_of(&subject.leaves);
        subject.samples = hits
            .into_iter()
            .map(|record| Sample {
                record: Rc::new(record),
                columns: Rc::clone(&columns),
            })
            .collect();
        subject.leaves = kept
            .iter()
            .filter_map(|leaf| subject.leaves.get(*leaf).cloned())
            .collect();
        if subject.samples.is_empty() {
            silent.push(name);
        } else {
            looked_at.push(subject);
        }
    }
    Ok((looked_at, silent))
}

/// Where a condition was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    /// Recorded as a value.
    Column,
    /// `with` of a set's member.
    Member,
    /// `with` of a rule.
    Rule,
}

/// What came of a condition.
#[derive(Debug, Default, Clone, Copy)]
struct Outcome {
    hits: u64,
    of_them_true: u64,
}

/// All conditions, and what came of them.
#[derive(Default)]
struct Results {
    /// By event, form and number.
    outcomes: BTreeMap<(String, Form, usize), Outcome>,
    disagreements: Vec<String>,
    changed: usize,
    hits: BTreeMap<String, usize>,
}

impl Results {
    fn compare(
        &mut self,
        key: (String, Form, usize),
        condition: &Expr,
        sample: &Sample,
        kernel: bool,
        text: &str,
    ) {
        const SHOWN: usize = 20;
        let expected = eval(condition, sample).bool();
        let outcome = self.outcomes.entry(key).or_default();
        outcome.hits += 1;
        outcome.of_them_true += u64::from(expected);
        if expected != kernel && self.disagreements.len() < SHOWN {
            let mut found = Vec::new();
            condition.loads(&mut found);
            let values: BTreeMap<String, _> = found
                .into_iter()
                .map(|(load, _)| name_of(load))
                .map(|name| (name.clone(), sample.value(&name)))
                .collect();
            self.disagreements.push(format!(
                "{}: the kernel says {kernel}, the evaluator {expected}: {text}\n    {values:?}",
                sample.record.event
            ));
        }
    }
}

/// The conditions of one event, by form.
struct Conditions {
    /// Those that are recorded, in the packs' order.
    columns: Vec<Vec<String>>,
    members: Vec<String>,
    rules: Vec<String>,
}

/// Conditions that one record holds.
const COLUMNS: usize = 120;

fn conditions(
    schema: &KernelSchema,
    subject: &Subject,
    count: usize,
    most_rules: usize,
    random: &mut Random,
) -> Conditions {
    let mut generator = Generator {
        random,
        schema,
        event: &subject.event,
        leaves: &subject.leaves,
        samples: &subject.samples,
    };
    let mut all: Vec<String> = Vec::with_capacity(count);
    // A try that gives nothing is cheap; that none does would be a mistake, and is found by the count at the end.
    for _ in 0..count * 40 {
        if all.len() == count {
            break;
        }
        all.extend(generator.condition());
    }
    let members = all.split_off(all.len().saturating_sub(SETS));
    let rules = all.split_off(all.len() - (all.len() / RULES).min(most_rules));
    let columns = all.chunks(COLUMNS).map(<[String]>::to_vec).collect();
    Conditions {
        columns,
        members,
        rules,
    }
}

/// A pack whose records hold the worth of conditions; the first has the rules too.
fn pack_of_columns(subjects: &[(Subject, Conditions)], pack: usize) -> String {
    let mut text = String::from("buffer main { size = 16MiB }\nset flag {\n}\n");
    for (set, subjects) in subjects.chunks(EVENTS_OF_SET).enumerate() {
        let _ = writeln!(text, "start with s{set}\nset s{set} {{");
        for (subject, conditions) in subjects {
            let mut columns = String::new();
            for (number, condition) in conditions.columns.get(pack).into_iter().flatten().enumerate() {
                let _ = write!(columns, "({condition}) as c{number},\n    ");
            }
            text.push_str(&subject.member(&columns));
        }
        text.push_str("}\n");
    }
    for (place, (subject, conditions)) in subjects.iter().enumerate().filter(|_| pack == 0) {
        for (number, condition) in conditions.rules.iter().enumerate() {
            let _ = writeln!(
                text,
                "rule r{place}_{number} {{\n  when {} with {}\n  then enable flag\n  limit 65535 per 1h\n}}",
                subject.event.full_name(),
                subject.gated(condition)
            );
        }
    }
    text
}

/// A pack with a set that records every hit, and sets that record those that a condition holds for.
fn pack_of_members(subjects: &[(Subject, Conditions)]) -> String {
    let mut text = String::from("start with s, w0, w1, w2\nbuffer main { size = 16MiB }\nset s {\n");
    for (subject, _) in subjects {
        text.push_str(&subject.member(""));
    }
    text.push_str("}\n");
    for set in 0..SETS {
        let _ = writeln!(text, "set w{set} {{");
        for (subject, conditions) in subjects {
            if let Some(condition) = conditions.members.get(set) {
                let _ = writeln!(
                    text,
                    "  {} with {} record hit.cpu as w{set}",
                    subject.event.full_name(),
                    subject.gated(condition)
                );
            }
        }
        text.push_str("}\n");
    }
    text
}

/// The hits of each event that all values were recorded of and that did not change meanwhile.
fn samples(
    subjects: &[(Subject, Conditions)],
    records: Vec<Record>,
    results: &mut Results,
) -> Vec<Vec<Sample>> {
    let places: HashMap<String, usize> = subjects
        .iter()
        .zip(0..)
        .map(|((subject, _), place)| (subject.event.full_name(), place))
        .collect();
    let columns: Vec<_> = subjects
        .iter()
        .map(|(subject, _)| columns_of(&subject.leaves))
        .collect();
    let mut samples = vec![Vec::new(); subjects.len()];
    for record in records {
        let Some(&place) = places.get(&*record.event) else {
            continue;
        };
        let (Some((subject, _)), Some(columns), Some(of_event)) =
            (subjects.get(place), columns.get(place), samples.get_mut(place))
        else {
            continue;
        };
        // A rule's record of all fields is no record of ours.
        if record.cell("l0").is_none() {
            continue;
        }
        if !is_usable(&record, subject) {
            results.changed += 1;
            continue;
        }
        *results.hits.entry(subject.event.full_name()).or_default() += 1;
        of_event.push(Sample {
            record: Rc::new(record),
            columns: Rc::clone(columns),
        });
    }
    samples
}

fn compare_columns(
    subjects: &[(Subject, Conditions)],
    pack: usize,
    plan: &Plan,
    records: Vec<Record>,
    results: &mut Results,
) {
    // Which rules fired at which hit.
    let fired: HashSet<(u32, u64, u64)> = records
        .iter()
        .filter(|record| &*record.event == "lkst:fired")
        .filter_map(|record| Some((record.cpu, record.time, record.int("rule")?)))
        .collect();
    let samples = samples(subjects, records, results);
    for ((subject, conditions), samples) in subjects.iter().zip(samples) {
        let name = subject.event.full_name();
        let Some(wish) = plan.events.iter().find(|wish| wish.event.full_name() == name) else {
            continue;
        };
        let columns = wish.members.first().and_then(|member| member.columns.as_ref());
        for column in columns.into_iter().flatten() {
            let number = column
                .name
                .strip_prefix('c')
                .and_then(|n| n.parse::<usize>().ok());
            let Some(number) = number else { continue };
            let text = conditions
                .columns
                .get(pack)
                .and_then(|of_pack| of_pack.get(number))
                .map_or("", String::as_str);
            for sample in &samples {
                if let Some(kernel) = sample.record.int(&column.name) {
                    let key = (name.clone(), Form::Column, pack * COLUMNS + number);
                    results.compare(key, &column.value, sample, kernel != 0, text);
                }
            }
        }
        for trigger in &wish.triggers {
            let (Some(rule), Some(with)) = (plan.rules.get(trigger.rule), &trigger.with) else {
                continue;
            };
            let number = rule.name.rsplit('_').next().and_then(|n| n.parse::<usize>().ok());
            let text = number.and_then(|number| conditions.rules.get(number));
            for sample in &samples {
                let hit = (sample.record.cpu, sample.record.time, trigger.rule as u64);
                let key = (name.clone(), Form::Rule, trigger.rule);
                results.compare(
                    key,
                    with,
                    sample,
                    fired.contains(&hit),
                    text.map_or("", String::as_str),
                );
            }
        }
    }
}

fn compare_members(
    subjects: &[(Subject, Conditions)],
    plan: &Plan,
    records: Vec<Record>,
    results: &mut Results,
) {
    let samples = samples(subjects, records, results);
    for ((subject, conditions), samples) in subjects.iter().zip(samples) {
        let name = subject.event.full_name();
        let wish = plan.events.iter().find(|wish| wish.event.full_name() == name);
        for member in wish.into_iter().flat_map(|wish| &wish.members) {
            let set = plan.sets.get(member.set).map_or("", |set| set.name.as_str());
            let number = set.strip_prefix('w').and_then(|n| n.parse::<usize>().ok());
            let (Some(number), Some(with)) = (number, &member.with) else {
                continue;
            };
            let text = conditions.members.get(number).map_or("", String::as_str);
            for sample in &samples {
                let kernel = sample.record.cell(set).is_some();
                let key = (name.clone(), Form::Member, number);
                results.compare(key, with, sample, kernel, text);
            }
        }
    }
}

fn setting(name: &str, default: u64) -> anyhow::Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

#[test]
fn the_kernel_and_the_evaluator_agree() -> anyhow::Result<()> {
    let test = "the_kernel_and_the_evaluator_agree";
    let (Some(schema), true) = (kernel_schema(test)?, kernel_takes_programs(test)?) else {
        return Ok(());
    };
    let began = Instant::now();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = setting("LKST_SEED", now.as_nanos() as u64)?;
    let count = setting("LKST_CONDITIONS", 2_000)? as usize;
    println!("LKST_SEED={seed} LKST_CONDITIONS={count}");
    let mut random = Random(seed);
    let machine = Machine::of(&schema)?;
    let (subjects, silent) = subjects(&schema, &machine, &mut random)?;
    println!(
        "{:?}: {} events happen, not {silent:?}",
        began.elapsed(),
        subjects.len()
    );
    anyhow::ensure!(subjects.len() >= 20, "too few events happen");
    // Some more than are wanted, for what none of the later hits are of.
    let most_rules = MOST_RULES / subjects.len();
    let of_each = (count + count / 6).div_ceil(subjects.len());
    let subjects: Vec<(Subject, Conditions)> = subjects
        .into_iter()
        .map(|subject| {
            let conditions = conditions(&schema, &subject, of_each, most_rules, &mut random);
            (subject, conditions)
        })
        .collect();
    println!("{:?}: {of_each} conditions for each", began.elapsed());
    let mut results = Results::default();
    // All system calls have one program together: they are spread over the loads, so that none gets too large.
    let loads = count.div_ceil(CONDITIONS_OF_LOAD).max(2);
    let mut groups: Vec<Vec<(Subject, Conditions)>> = (0..loads).map(|_| Vec::new()).collect();
    for (place, subject) in subjects.into_iter().enumerate() {
        if let Some(group) = groups.get_mut(place % loads) {
            group.push(subject);
        }
    }
    for group in groups {
        let packs = group.iter().map(|(_, c)| c.columns.len()).max().unwrap_or(0);
        let mut plans = Vec::new();
        for pack in 0..packs {
            plans.push(plan(
                &format!("columns{pack}"),
                &pack_of_columns(&group, pack),
                &schema,
            )?);
        }
        plans.push(plan("members", &pack_of_members(&group), &schema)?);
        let compiled = began.elapsed();
        let recorded = trace(&machine, &plans, Duration::from_millis(1000))?;
        println!("{compiled:?}: compiled; {:?}: traced", began.elapsed());
        for (pack, (plan, records)) in plans.iter().zip(recorded).enumerate() {
            if pack < packs {
                compare_columns(&group, pack, plan, records, &mut results);
            } else {
                compare_members(&group, plan, records, &mut results);
            }
        }
    }
    let tried = results.outcomes.values();
    let both = tried
        .clone()
        .filter(|o| o.of_them_true > 0 && o.of_them_true < o.hits)
        .count();
    let never = tried.clone().filter(|o| o.of_them_true == 0).count();
    let comparisons: u64 = tried.clone().map(|o| o.hits).sum();
    let of_form = |form| results.outcomes.keys().filter(|key| key.1 == form).count();
    println!(
        "{:?}: {} conditions ({} columns, {} members, {} rules) at {} hits of {} events, {comparisons} comparisons; {both} \
         were true at some and false at others, {never} never true; {} hits changed meanwhile",
        began.elapsed(),
        results.outcomes.len(),
        of_form(Form::Column),
        of_form(Form::Member),
        of_form(Form::Rule),
        results.hits.values().sum::<usize>(),
        results.hits.len(),
        results.changed,
    );
    println!("{:?}", results.hits);
    assert!(
        results.disagreements.is_empty(),
        "{}",
        results.disagreements.join("\n")
    );
    assert!(
        results.outcomes.len() >= count,
        "only {} were tried",
        results.outcomes.len()
    );
    assert!(
        both * 6 >= results.outcomes.len(),
        "only {both} were not always the same"
    );
    Ok(())
}
