//! `lkst events [GLOB]`: the kernel's events, one a line.
//!
//! In: the schema, a glob over `system:name`. Out: the names, sorted, with their kind where that is asked for (it costs
//! reading every format that matches).

use std::io::Write;

use lkst_rules::schema::{Event, Origin, Schema};
use serde::Serialize;

use crate::kernel::schema::KernelSchema;

/// How lkst gets at an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// By the tracepoint's own arguments.
    Typed,
    /// By what the kernel formats for every tracer.
    Classic,
}

impl EventKind {
    /// The kind of an event whose fields are used and nothing else: typed where every field has a recipe.
    #[must_use]
    pub fn of(event: &Event) -> EventKind {
        let typed = event.fields.iter().all(|field| field.recipe.is_some());
        // A tracepoint that BTF does not know has no arguments that a program could read, fields or not.
        if typed && (event.origin != Origin::Tracepoint || !event.fields.is_empty()) {
            EventKind::Typed
        } else {
            EventKind::Classic
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Typed => "typed",
            EventKind::Classic => "classic",
        }
    }
}

/// How much is said of each event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Its name.
    Names,
    /// Its name and kind.
    Long,
    /// An object for machines: `{"system", "name", "kind", "fields": […]}`, one a line.
    Json,
}

#[derive(Serialize)]
struct Line<'e> {
    system: &'e str,
    name: &'e str,
    kind: EventKind,
    in_interrupt: bool,
    fields: Vec<&'e str>,
}

/// Writes the events that match. A glob without `:` is matched against the event's name and against its system.
///
/// # Errors
/// Where nothing matches, or `out` cannot be written.
pub fn run(
    schema: &KernelSchema,
    pattern: Option<&str>,
    detail: Detail,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut found = false;
    for (system, name) in schema.events() {
        if !pattern.is_none_or(|pattern| matches(pattern, system, name)) {
            continue;
        }
        found = true;
        if detail == Detail::Names {
            writeln!(out, "{system}:{name}")?;
            continue;
        }
        let Some(event) = schema.event(system, name) else {
            continue;
        };
        let kind = EventKind::of(&event);
        if detail == Detail::Long {
            writeln!(out, "{:<48} {}", event.full_name(), kind.name())?;
            continue;
        }
        let fields = event.fields.iter().map(|field| field.name.as_str()).collect();
        let line = Line {
            system,
            name,
            kind,
            in_interrupt: event.in_interrupt,
            fields,
        };
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
    }
    match pattern {
        Some(pattern) if !found => anyhow::bail!("no event matches `{pattern}`"),
        _ => Ok(()),
    }
}

fn matches(pattern: &str, system: &str, name: &str) -> bool {
    match pattern.split_once(':') {
        Some((of, event)) => glob(of, system) && glob(event, name),
        None => glob(pattern, name) || glob(pattern, system),
    }
}

/// `*` stands for any text, everything else for itself.
#[must_use]
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part).and_then(|at| rest.get(at + part.len()..)) {
            Some(behind) => rest = behind,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::{glob, matches};

    #[test]
    fn globs_match_as_in_rules() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*a", "a", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1c", false),
            ("*b*", "abc", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
        assert!(matches("sched", "sched", "sched_switch"));
        assert!(matches("sched_sw*", "sched", "sched_switch"));
        assert!(matches("sched:*", "sched", "sched_switch"));
        assert!(!matches("irq:*", "sched", "sched_switch"));
    }
}
