//! Checks of a whole pack, once all of its names are known.
//!
//! In: a [`Plan`]. Out: diagnostics about what no single item shows: values that one program cannot have together,
//! columns that differ under one name, records that are too large, things that nothing uses.

use std::collections::{HashMap, HashSet};

use crate::diagnostic::Diagnostic;
use crate::plan::{Action, Column, EventPlan, Expr, Guard, Load, Node, Plan, TaskValue};
use crate::schema::Type;
use crate::source::Span;

/// Bytes of a record's columns.
const MOST_RECORD_BYTES: usize = 4000;
/// Text of varying length, its NUL included.
const VARYING_BYTES: usize = 256;

/// Calls `see` with each value that an expression loads.
fn each_load<'p>(expr: &'p Expr, see: &mut dyn FnMut(&'p Load, Span)) {
    match &expr.node {
        Node::Load(load) => see(load, expr.span),
        Node::Int(_) | Node::Text(_) | Node::Bool(_) => {}
        Node::Negate(of) | Node::Complement(of) | Node::Not(of) => each_load(of, see),
        Node::Str { pointer, .. } => each_load(pointer, see),
        Node::InInts { value, .. } | Node::InTexts { value, .. } | Node::Like { value, .. } => {
            each_load(value, see);
        }
        Node::InRange { value, low, high, .. } => {
            each_load(value, see);
            each_load(low, see);
            each_load(high, see);
        }
        Node::Binary { left, right, .. }
        | Node::Compare { left, right, .. }
        | Node::TextEqual { left, right, .. }
        | Node::And(left, right)
        | Node::Or(left, right) => {
            each_load(left, see);
            each_load(right, see);
        }
    }
}

/// Whether a condition asks for lkst's own processes: `task.comm` is compared with "lkst".
pub(crate) fn asks_for_own(expr: &Expr) -> bool {
    const OWN: &[u8] = b"lkst";
    let is_comm = |expr: &Expr| matches!(expr.node, Node::Load(Load::Task(TaskValue::Comm(_))));
    let is_own = |expr: &Expr| matches!(&expr.node, Node::Text(text) if text == OWN);
    match &expr.node {
        Node::TextEqual {
            left,
            right,
            negated: false,
        } => (is_comm(left) && is_own(right)) || (is_own(left) && is_comm(right)),
        Node::InTexts {
            value,
            list,
            negated: false,
        } => is_comm(value) && list.iter().any(|text| text == OWN),
        Node::Not(of) => asks_for_own(of),
        Node::And(left, right) | Node::Or(left, right) => asks_for_own(left) || asks_for_own(right),
        _ => false,
    }
}

/// Sets that some rule enables for a time.
pub(crate) fn mark_timed(plan: &mut Plan) {
    for action in plan.rules.iter().flat_map(|rule| &rule.actions) {
        if let Action::Enable { set, for_ns: Some(_) } = action
            && let Some(set) = plan.sets.get_mut(*set)
        {
            set.timed = true;
        }
    }
}

/// Events of which the pack wants one value that only the event's format has and another that only the kernel's types
/// have: no one program can have both.
pub(crate) fn kinds(plan: &Plan) -> Vec<Diagnostic> {
    plan.events.iter().filter_map(kinds_of).collect()
}

/// A value as it is used: its name, where, and whether only "all fields" asks for it.
#[derive(Clone, Copy)]
struct Use<'p> {
    name: &'p str,
    span: Span,
    is_implied: bool,
}

fn kinds_of(event: &EventPlan) -> Option<Diagnostic> {
    let (mut format_only, mut types_only): (Option<Use<'_>>, Option<Use<'_>>) = (None, None);
    for (expr, is_implied) in values_of(event) {
        each_load(expr, &mut |load, span| {
            let Load::Field { name, place, recipe } = load else {
                return;
            };
            let first = match (place, recipe) {
                (Some(_), None) => &mut format_only,
                (None, Some(_)) => &mut types_only,
                _ => return,
            };
            // What was written shows the mistake better than what follows from it.
            if first.is_none_or(|first| first.is_implied && !is_implied) {
                *first = Some(Use {
                    name,
                    span,
                    is_implied,
                });
            }
        });
    }
    let (format, types) = (format_only?, types_only?);
    let message = format!(
        "`{}` cannot give both `{}` and `{}`: the first comes from the kernel's types, the second only from the event's format",
        event.event.full_name(),
        types.name,
        format.name
    );
    let error = Diagnostic::error("E402", types.span, message);
    let error = if format.span == types.span {
        error
    } else if format.is_implied {
        error.also(
            format.span,
            format!("this records all fields, and `{}` with them", format.name),
        )
    } else {
        error.also(format.span, "only in the event's format")
    };
    Some(if !format.is_implied {
        error.help(format!(
            "use only one of them; does the event have a field for what `{}` is?",
            types.name
        ))
    } else if event.triggers.is_empty() {
        error.help("`record` the columns you need, so that not all fields are recorded")
    } else {
        error
            .help("a rule records all fields of its event: in its condition use those fields alone")
            .help(format!(
                "or wait for another event, and `record {}` here in a set",
                types.name
            ))
    })
}

/// Whether a record with all fields may be asked for: by a member without `record`, or by a rule.
fn records_all(event: &EventPlan) -> bool {
    !event.triggers.is_empty() || event.members.iter().any(|member| member.columns.is_none())
}

/// Every expression that is used at an event, and whether only "all fields" asks for it.
fn values_of(event: &EventPlan) -> impl Iterator<Item = (&Expr, bool)> {
    let conditions = event.members.iter().filter_map(|member| member.with.as_ref());
    let conditions = conditions.chain(event.triggers.iter().filter_map(|trigger| trigger.with.as_ref()));
    let columns = event
        .members
        .iter()
        .filter_map(|member| member.columns.as_ref())
        .flatten();
    let columns = columns.chain(event.triggers.iter().flat_map(|trigger| &trigger.values));
    let all = event.all.iter().filter(|_| records_all(event));
    conditions
        .chain(columns.map(|column| &column.value))
        .map(|expr| (expr, false))
        .chain(all.map(|column| (&column.value, true)))
}

/// Columns of one event's record that share a name and differ, and records that are too large. A record holds the
/// columns of all members that recorded it, of whatever sets.
pub(crate) fn records(plan: &Plan) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let mut said: HashSet<Span> = HashSet::new();
    for event in &plan.events {
        let listed = || event.members.iter().filter_map(|member| member.columns.as_ref());
        if listed().next().is_none() {
            continue;
        }
        let all = event.all.iter().filter(|_| records_all(event));
        // With whether only "all fields" asks for it.
        let mut known: HashMap<&str, (&Column, bool)> =
            all.map(|column| (column.name.as_str(), (column, true))).collect();
        for column in listed().flatten() {
            let (first, is_implied) = *known.entry(&column.name).or_insert((column, false));
            let differs =
                first.value.node != column.value.node && first.value.to_string() != column.value.to_string();
            if differs && said.insert(column.value.span) {
                let message = format!(
                    "column `{}` of `{}` is two things in this pack",
                    column.name,
                    event.event.full_name()
                );
                diagnostics.push(
                    Diagnostic::error("E404", column.value.span, message)
                        .also(
                            first.value.span,
                            if is_implied { "this records all fields" } else { "it is this here" },
                        )
                        .help("sets that record one event share its record: call one of them otherwise, with `as`"),
                );
            }
        }
        for member in &event.members {
            let bytes: usize = member
                .columns
                .iter()
                .flatten()
                .map(|column| bytes_of(column.value.ty))
                .sum();
            if bytes > MOST_RECORD_BYTES && said.insert(member.span) {
                let message =
                    format!("this record may take {bytes} bytes, and {MOST_RECORD_BYTES} is the most");
                diagnostics.push(Diagnostic::error("E305", member.span, message).help(format!(
                    "text of varying length counts as {VARYING_BYTES} bytes; record less of it"
                )));
            }
        }
    }
    diagnostics
}

/// The most bytes that a value takes in a record, gaps aside.
fn bytes_of(ty: Type) -> usize {
    match ty {
        Type::Int { bits, .. } => usize::from(bits / 8),
        Type::Bool => 1,
        Type::Duration => 8,
        Type::Text { capacity } => usize::from(capacity).min(VARYING_BYTES),
        Type::Array { bits, count, .. } => usize::from(bits / 8) * usize::from(count),
        Type::Sequence { .. } => 2 + VARYING_BYTES,
    }
}

/// Sets, buffers and params that nothing names.
pub(crate) fn unused<'n>(plan: &Plan, params: impl IntoIterator<Item = (&'n str, Span)>) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let mut sets: HashSet<usize> = (0..plan.sets.len())
        .filter(|number| plan.sets.get(*number).is_some_and(|set| set.start))
        .collect();
    let mut buffers: HashSet<usize> = HashSet::from([0]);
    for rule in &plan.rules {
        for action in &rule.actions {
            match action {
                Action::Enable { set, .. } | Action::Disable { set } => drop(sets.insert(*set)),
                Action::Switch { buffer, .. } => drop(buffers.insert(*buffer)),
                Action::Save { .. } | Action::Stop => {}
            }
        }
        let mut guards: Vec<&Guard> = rule.guard.iter().collect();
        while let Some(guard) = guards.pop() {
            match guard {
                Guard::Set(set) => drop(sets.insert(*set)),
                Guard::Not(of) => guards.push(of),
                Guard::And(left, right) | Guard::Or(left, right) => guards.extend([&**left, &**right]),
            }
        }
    }
    for (_, set) in plan
        .sets
        .iter()
        .enumerate()
        .filter(|(number, _)| !sets.contains(number))
    {
        let message = format!("nothing names set `{}`", set.name);
        let help = format!(
            "`start with {}` enables it at once, `enable {}` in a rule later",
            set.name, set.name
        );
        diagnostics.push(Diagnostic::warning("W504", set.span, message).help(help));
    }
    for (_, buffer) in plan
        .buffers
        .iter()
        .enumerate()
        .filter(|(number, _)| !buffers.contains(number))
    {
        let message = format!("no rule switches to buffer `{}`", buffer.name);
        diagnostics.push(Diagnostic::warning("W505", buffer.span, message));
    }
    for (name, span) in params {
        diagnostics.push(Diagnostic::warning(
            "W506",
            span,
            format!("nothing uses param `{name}`"),
        ));
    }
    diagnostics
}
