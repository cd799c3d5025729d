//! Patterns of events: which events of this kernel are meant.
//!
//! In: `SYSTEM:EVENT`, the event with `*` perhaps. Out: the events, or what is wrong.

use std::sync::Arc;

use crate::ast::Pattern;
use crate::diagnostic::Diagnostic;
use crate::nearest::nearest;
use crate::schema::{Event, Schema};
use crate::source::Span;

/// The kernel's events, looked up by name and by glob.
pub(super) struct Events<'a> {
    schema: &'a dyn Schema,
    /// Sorted.
    names: Vec<(&'a str, &'a str)>,
}

impl<'a> Events<'a> {
    pub(super) fn new(schema: &'a dyn Schema) -> Self {
        let mut names = schema.events();
        // By contract they are sorted; finding a system by bisection depends on it.
        names.sort_unstable();
        Events { schema, names }
    }

    /// The event of exactly that name, if programs can be attached to it.
    pub(super) fn exact(&self, pattern: &Pattern) -> Option<Arc<Event>> {
        if self
            .schema
            .unattachable(&pattern.system, &pattern.event)
            .is_some()
        {
            return None;
        }
        self.schema.event(&pattern.system, &pattern.event)
    }

    /// The events that a glob matches, but for those that `is_out` and those that no program can be attached to: who
    /// writes a glob wants what there is.
    pub(super) fn matching(&self, pattern: &Pattern, is_out: impl Fn(&str, &str) -> bool) -> Vec<Arc<Event>> {
        self.of_system(&pattern.system)
            .iter()
            .filter(|(system, event)| matches(&pattern.event, event) && !is_out(system, event))
            .filter(|(system, event)| self.schema.unattachable(system, event).is_none())
            .filter_map(|(system, event)| self.schema.event(system, event))
            .collect()
    }

    /// Whether a pattern matches any event.
    pub(super) fn any(&self, pattern: &Pattern) -> bool {
        self.of_system(&pattern.system)
            .iter()
            .any(|(_, event)| matches(&pattern.event, event))
    }

    fn of_system(&self, system: &str) -> &[(&'a str, &'a str)] {
        let start = self.names.partition_point(|(known, _)| *known < system);
        let end = self.names.partition_point(|(known, _)| *known <= system);
        self.names.get(start..end).unwrap_or_default()
    }

    /// The error for an event that this kernel does not have, or that no program can be attached to.
    pub(super) fn unknown(&self, pattern: &Pattern) -> Diagnostic {
        let written = format!("{}:{}", pattern.system, pattern.event);
        if self.schema.forbids((&pattern.system, &pattern.event), None) {
            return forbidden(&written, pattern.span);
        }
        if let Some(reason) = self.schema.unattachable(&pattern.system, &pattern.event) {
            return Diagnostic::error(
                "E117",
                pattern.span,
                format!("the kernel lets no program attach to `{written}`"),
            )
            .help(reason);
        }
        let error = Diagnostic::error(
            "E101",
            pattern.span,
            format!("this kernel has no event `{written}`"),
        );
        let error = match self.suggestion(pattern) {
            Some(name) => error.help(format!("did you mean `{name}`?")),
            None => error,
        };
        error.help(format!("where only some kernels have it, write `{written}?`"))
    }

    /// The warning for a glob that matches nothing.
    pub(super) fn unmatched(&self, pattern: &Pattern) -> Diagnostic {
        let message = format!(
            "no event of this kernel matches `{}:{}`",
            pattern.system, pattern.event
        );
        let warning = Diagnostic::warning("W501", pattern.span, message);
        if self.of_system(&pattern.system).is_empty() {
            let systems = self.names.iter().map(|(system, _)| *system);
            return match nearest(&pattern.system, systems) {
                Some(near) => warning.help(format!(
                    "there is no system `{}`: did you mean `{near}`?",
                    pattern.system
                )),
                None => warning.help(format!("there is no system `{}`", pattern.system)),
            };
        }
        warning
    }

    fn suggestion(&self, pattern: &Pattern) -> Option<String> {
        let elsewhere = self.names.iter().find(|(_, event)| *event == pattern.event);
        if let Some((system, event)) = elsewhere {
            return Some(format!("{system}:{event}"));
        }
        let within = self.of_system(&pattern.system);
        if let Some(near) = nearest(&pattern.event, within.iter().map(|(_, event)| *event)) {
            return Some(format!("{}:{near}", pattern.system));
        }
        let near = nearest(&pattern.event, self.names.iter().map(|(_, event)| *event))?;
        let (system, event) = self.names.iter().find(|(_, event)| *event == near)?;
        Some(format!("{system}:{event}"))
    }
}

/// Whether a pattern is a glob.
pub(super) fn is_glob(pattern: &Pattern) -> bool {
    pattern.event.contains('*')
}

/// Whether `text` is `glob`, in which each `*` stands for any number of characters.
pub(super) fn matches(glob: &str, text: &str) -> bool {
    let mut parts = glob.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        // No `*` at all.
        return rest.is_empty();
    };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The error for what the host forbids.
pub(super) fn forbidden(what: &str, span: Span) -> Diagnostic {
    let message = format!("`{what}` is never captured on this host");
    let error = Diagnostic::error("E118", span, message);
    error.help("`never_capture` in lkst.toml says so; leave it out")
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn globs() {
        for (glob, text) in [
            ("*", ""),
            ("*", "x"),
            ("a*", "a"),
            ("a*c", "abc"),
            ("*b*", "abc"),
            ("a*b*c", "aXbYbZc"),
            ("ab", "ab"),
        ] {
            assert!(matches(glob, text), "{glob} {text}");
        }
        for (glob, text) in [
            ("a*", "ba"),
            ("a*a", "a"),
            ("ab", "abc"),
            ("*b", "bc"),
            ("a*b*c", "acb"),
            ("", "a"),
        ] {
            assert!(!matches(glob, text), "{glob} {text}");
        }
    }
}
