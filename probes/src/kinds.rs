//! How each event is attached: by its arguments' types or by its format, chosen over all packs, never by the user.
//!
//! In: plans, and how events are attached already. Out: the [`Attach`] of every event.

use std::collections::BTreeMap;
use std::sync::Arc;

use lkst_rules::plan::{EventPlan, Load, Plan, TaskValue};
use lkst_rules::schema::{Event, Origin};
use lkst_rules::source::Span;

use crate::image::{Attach, BuildError};
use crate::lower::LowerError;
use crate::numbers::Numbers;

/// The kind of every tracepoint, chosen over all packs.
///
/// # Errors
/// Where the rules ask for both kinds of one event.
pub(crate) fn attaches(
    plans: &[Arc<Plan>],
    numbers: &Numbers,
) -> Result<BTreeMap<(String, String), bool>, BuildError> {
    struct Use {
        typed_only: Option<String>,
        classic_only: Option<String>,
        typed_possible: bool,
    }
    let mut uses: BTreeMap<(String, String), Use> = BTreeMap::new();
    for (index, plan) in plans.iter().enumerate() {
        for wish in &plan.events {
            if wish.event.origin != Origin::Tracepoint {
                continue;
            }
            let key = (wish.event.system.clone(), wish.event.name.clone());
            let entry = uses.entry(key).or_insert(Use {
                typed_only: None,
                classic_only: None,
                typed_possible: !wish.event.arguments.is_empty(),
            });
            let mut span = Span::default();
            for (load, place) in loads(wish) {
                if let Load::Field {
                    name,
                    place: classic,
                    recipe,
                } = load
                {
                    let only = match (classic, recipe) {
                        (None, Some(_)) => &mut entry.typed_only,
                        (Some(_), None) => &mut entry.classic_only,
                        _ => continue,
                    };
                    if only.is_none() {
                        *only = Some(name.clone());
                        span = place;
                    }
                }
            }
            if let (Some(typed), Some(classic)) = (&entry.typed_only, &entry.classic_only) {
                let error = LowerError::TwoKinds {
                    event: wish.event.full_name(),
                    typed: typed.clone(),
                    classic: classic.clone(),
                    span,
                };
                return Err(BuildError { pack: index, error });
            }
        }
    }
    Ok(uses
        .into_iter()
        .map(|(key, u)| {
            let chosen = u.typed_only.is_some() || u.classic_only.is_none() && u.typed_possible;
            // Where it changes, two dispatchers see the hits under way at that moment, each with its own look at the
            // generation, and both may record one: so a kind stays while it can.
            let kept = match numbers.kind_of(&key.0, &key.1) {
                Some(true) if u.classic_only.is_none() => true,
                Some(false) if u.typed_only.is_none() => false,
                _ => chosen,
            };
            (key, kept)
        })
        .collect())
}

/// Every value that a pack reads of an event.
fn loads(wish: &EventPlan) -> Vec<(&Load, Span)> {
    let mut found = Vec::new();
    let all = !wish.triggers.is_empty() || wish.members.iter().any(|m| m.columns.is_none());
    let of_all = wish.all.iter().filter(|_| all).map(|c| &c.value);
    let of_members = wish
        .members
        .iter()
        .flat_map(|m| m.with.iter().chain(m.columns.iter().flatten().map(|c| &c.value)));
    let of_triggers = wish
        .triggers
        .iter()
        .flat_map(|t| t.with.iter().chain(t.values.iter().map(|c| &c.value)));
    for expr in of_all.chain(of_members).chain(of_triggers) {
        expr.loads(&mut found);
    }
    found
}

/// How an event is attached, by what [`attaches`] chose.
pub(crate) fn attach_of(event: &Event, kinds: &BTreeMap<(String, String), bool>) -> Attach {
    let raw = |name: &str| Attach {
        system: "raw_syscalls".into(),
        name: name.into(),
        typed: true,
        calls: true,
    };
    match event.origin {
        Origin::SyscallEnter(_) => raw("sys_enter"),
        Origin::SyscallExit(_) => raw("sys_exit"),
        Origin::Tracepoint => {
            let key = (event.system.clone(), event.name.clone());
            let typed = kinds.get(&key).copied().unwrap_or(false);
            Attach {
                system: key.0,
                name: key.1,
                typed,
                calls: false,
            }
        }
    }
}

/// Whether some condition asks for `task.traced`.
pub(crate) fn follows_command(plan: &Plan) -> bool {
    plan.events.iter().any(|wish| {
        loads(wish)
            .iter()
            .any(|(load, _)| matches!(load, Load::Task(TaskValue::Traced)))
    })
}
