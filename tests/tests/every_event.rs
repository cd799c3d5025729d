//! Every event of this kernel, with all of its fields: a rule text becomes a program that the verifier takes and the
//! kernel attaches.
//!
//! Events that the kernel lets nobody attach to are known to the schema by name, so that `lkst check` says it; here it
//! is proved that they are those and no others.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use lkst::kernel::load::LoadError;
use lkst::kernel::schema::KernelSchema;
use lkst_rules::plan::Plan;
use lkst_rules::schema::{Event, Field, PathError, PathStep, Resolved, Schema, Type};
use lkst_tests::live::{Machine, plan};
use lkst_tests::{kernel_schema, kernel_takes_programs};

/// Events a load. Taking programs off a tracepoint waits for the kernel, and what goes together waits together.
const BATCH: usize = 60;
/// Loads at once, for the same reason.
const WORKERS: usize = 8;

/// A condition that reads the field; `None` where no condition can.
fn condition(field: &Field) -> Option<String> {
    let name = format!("event.{}", field.name);
    match field.ty {
        Type::Int { bits: 8, .. } => Some(format!("{name} != 99")),
        Type::Int { .. } => Some(format!("{name} != 12345")),
        Type::Bool => Some(format!("({name} or not {name})")),
        Type::Text { capacity: 0..5 } => Some(format!("not {name} like \"z*\"")),
        Type::Text { .. } => Some(format!("not {name} like \"*zzz*\"")),
        Type::Duration => Some(format!("{name} != 12345ns")),
        Type::Array { count: 0, .. } | Type::Sequence { .. } => None,
        Type::Array { bits: 8, .. } => Some(format!("{name}[0] != 99")),
        Type::Array { .. } => Some(format!("{name}[0] != 12345")),
    }
}

/// A member that records all fields where all of them fulfil a condition.
fn member(event: &Event) -> String {
    let readable = event
        .fields
        .iter()
        .filter(|field| field.place.is_some() || field.recipe.is_some());
    let conditions: Vec<_> = readable.filter_map(condition).collect();
    match conditions.as_slice() {
        [] => event.full_name(),
        some => format!("{} with {}", event.full_name(), some.join(" and ")),
    }
}

/// A member that records through the event's arguments: the first that is a scalar, and of each that is a pointer to a
/// structure some scalar members. `None` where there is nothing of that.
fn member_of_arguments(schema: &KernelSchema, event: &Event) -> Option<String> {
    const SAMPLES: usize = 4;
    let is_value = |path: &str| {
        let steps: Vec<_> = path
            .split('.')
            .map(|name| PathStep::Name(name.to_owned()))
            .collect();
        let found = schema.argument(event, &steps).ok();
        found.is_some_and(|found| !matches!(found.ty, Type::Sequence { .. } | Type::Array { .. }))
    };
    let mut paths: Vec<String> = Vec::new();
    paths.extend(
        event
            .arguments
            .iter()
            .map(|argument| argument.name.clone())
            .find(|name| is_value(name)),
    );
    for argument in &event.arguments {
        let members = schema.argument_members(event, &argument.name);
        let scalars = members
            .iter()
            .map(|(member, _)| format!("{}.{member}", argument.name))
            .filter(|path| is_value(path));
        let scalars: Vec<_> = scalars.collect();
        let step = scalars.len().div_ceil(SAMPLES).max(1);
        paths.extend(scalars.iter().step_by(step).cloned());
    }
    let mut columns = String::new();
    for (number, path) in paths.iter().enumerate() {
        let comma = if number > 0 { ", " } else { "" };
        write!(columns, "{comma}args.{path} as a{number}").ok()?;
    }
    (!columns.is_empty()).then(|| format!("{} record {columns}", event.full_name()))
}

fn batch(number: usize, members: &[String], schema: &dyn Schema) -> anyhow::Result<Arc<Plan>> {
    let text = format!(
        "set s {{\n  {}\n}}\nbuffer main {{ size = 8KiB }}\nstart with s\n",
        members.join("\n  ")
    );
    plan(&format!("batch{number}"), &text, schema)
}

/// Loads each of the plans, several at once. Returns the number of programs, and what went wrong: event and reason.
fn load_all(machine: &Machine, plans: &[Arc<Plan>]) -> (usize, Vec<String>) {
    let (next, programs) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut failures = Vec::new();
        while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut plan = Arc::clone(plan);
            loop {
                let failed = match machine.load(std::slice::from_ref(&plan)) {
                    Ok(loaded) => {
                        programs.fetch_add(loaded.image.programs.len(), Ordering::Relaxed);
                        break;
                    }
                    Err(error) => error,
                };
                failures.push(failed.to_string());
                // On with the others of the batch.
                let event = match &failed {
                    LoadError::Program { attach, .. } => format!("{}:{}", attach.system, attach.name),
                    LoadError::Attach { event, .. } => event.clone(),
                    _ => break,
                };
                let mut rest = Plan::clone(&plan);
                let before = rest.events.len();
                rest.events.retain(|wish| wish.event.full_name() != event);
                if rest.events.len() == before {
                    break;
                }
                plan = Arc::new(rest);
            }
        }
        failures
    };
    let failures = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let ended = workers.into_iter().map(|worker| match worker.join() {
            Ok(failures) => failures,
            Err(_) => vec!["a worker panicked".to_owned()],
        });
        ended.flatten().collect()
    });
    (programs.into_inner(), failures)
}

#[test]
fn every_event_with_all_fields_is_attached() -> anyhow::Result<()> {
    let test = "every_event_with_all_fields_is_attached";
    let (Some(schema), true) = (kernel_schema(test)?, kernel_takes_programs(test)?) else {
        return Ok(());
    };
    let machine = Machine::of(&schema)?;
    let began = Instant::now();
    let mut members = Vec::new();
    let (mut all, mut fields) = (0, 0);
    let mut unattachable = BTreeSet::new();
    for (system, name) in schema.events() {
        all += 1;
        if schema.unattachable(system, name).is_some() {
            unattachable.insert((system, name));
            continue;
        }
        let event = schema
            .event(system, name)
            .ok_or_else(|| anyhow::anyhow!("{system}:{name} cannot be read"))?;
        fields += event.fields.len();
        members.push(member(&event));
    }
    let plans: Vec<_> = members
        .chunks(BATCH)
        .enumerate()
        .map(|(number, members)| batch(number, members, &schema))
        .collect::<anyhow::Result<_>>()?;
    let events: usize = plans.iter().map(|plan| plan.events.len()).sum();
    let compiled = began.elapsed();
    let (programs, failures) = load_all(&machine, &plans);
    println!(
        "{all} events, {events} of them with {fields} fields in {programs} programs: compiled in {compiled:?}, all in \
         {:?}; {} are unattachable: {unattachable:?}",
        began.elapsed(),
        unattachable.len()
    );
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(events + unattachable.len(), all);
    assert!(events > 500, "{events}");
    Ok(())
}

/// This kernel, with what is said to be unattachable like any other event.
struct Daring<'s>(&'s KernelSchema);

impl Schema for Daring<'_> {
    fn events(&self) -> Vec<(&str, &str)> {
        self.0.events()
    }

    fn event(&self, system: &str, name: &str) -> Option<Arc<Event>> {
        self.0.event(system, name)
    }

    fn argument(&self, event: &Event, steps: &[PathStep]) -> Result<Resolved, PathError> {
        self.0.argument(event, steps)
    }

    fn task_member(&self, path: &[&str]) -> Option<Resolved> {
        self.0.task_member(path)
    }

    fn enumerator(&self, name: &str) -> Vec<(String, i64)> {
        self.0.enumerator(name)
    }

    fn syscall_number(&self, name: &str) -> Option<u32> {
        self.0.syscall_number(name)
    }

    fn syscall_names(&self) -> Vec<&str> {
        self.0.syscall_names()
    }
}

#[test]
fn what_is_called_unattachable_is_so() -> anyhow::Result<()> {
    let test = "what_is_called_unattachable_is_so";
    let (Some(schema), true) = (kernel_schema(test)?, kernel_takes_programs(test)?) else {
        return Ok(());
    };
    let machine = Machine::of(&schema)?;
    for (system, name) in schema.events() {
        if schema.unattachable(system, name).is_none() {
            continue;
        }
        let member = format!("{system}:{name}");
        let daring = batch(0, std::slice::from_ref(&member), &Daring(&schema))?;
        let result = machine.load(&[daring]);
        assert!(
            matches!(result, Err(LoadError::Attach { .. })),
            "{member}: {:?}",
            result.err()
        );
        // And whoever names it is told so, while a glob passes over it.
        let told = batch(0, std::slice::from_ref(&member), &schema);
        let told = told.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told.contains("E117") && told.contains(&member), "{told}");
        let glob = batch(0, &[format!("{system}:*")], &schema)?;
        assert!(glob.events.iter().all(|wish| wish.event.full_name() != member));
        println!(
            "{member}: {}",
            result.err().map_or_else(String::new, |e| e.to_string())
        );
    }
    Ok(())
}

#[test]
fn every_event_gives_its_arguments() -> anyhow::Result<()> {
    let test = "every_event_gives_its_arguments";
    let (Some(schema), true) = (kernel_schema(test)?, kernel_takes_programs(test)?) else {
        return Ok(());
    };
    let machine = Machine::of(&schema)?;
    let began = Instant::now();
    let mut members = Vec::new();
    for (system, name) in schema.events() {
        let event = schema
            .event(system, name)
            .filter(|_| schema.unattachable(system, name).is_none());
        members.extend(event.and_then(|event| member_of_arguments(&schema, &event)));
    }
    let plans: Vec<_> = members
        .chunks(BATCH)
        .enumerate()
        .map(|(number, members)| batch(number, members, &schema))
        .collect::<anyhow::Result<_>>()?;
    let columns = members
        .iter()
        .map(|member| member.matches("args.").count())
        .sum::<usize>();
    let (programs, failures) = load_all(&machine, &plans);
    println!(
        "{columns} paths of {} events in {programs} programs: {:?}",
        members.len(),
        began.elapsed()
    );
    assert_eq!(failures, Vec::<String>::new());
    assert!(members.len() > 500, "{}", members.len());
    Ok(())
}
