//! Sets: their members, for each event that they name.
//!
//! In: `set` items. Out: the plan's sets, and members with their events. Within one set an explicit member stands in
//! place of whatever globs match; several globs that match one event are several members, of which any may record it.

use std::collections::HashSet;
use std::sync::Arc;

use super::Resolver;
use super::columns::Listed;
use super::events::is_glob;
use super::expr::Typer;
use crate::ast::{self, Columns, EventSource, Pattern};
use crate::check;
use crate::diagnostic::Diagnostic;
use crate::plan::{Column, Expr, Member, Node, Set};
use crate::schema::Event;

/// What one event makes of a member.
enum Outcome {
    /// A member, and which of the written columns the event has.
    Member(Option<Expr>, Option<Listed>),
    /// Its condition is never true.
    Never,
    /// The event lacks a field that the condition names.
    NoMatch,
    /// Something is wrong, and was reported.
    Wrong,
}

impl<'a> Resolver<'a> {
    pub(super) fn sets(&mut self, starts: &HashSet<usize>) -> Vec<Set> {
        let names = self.names;
        let mut sets = Vec::with_capacity(names.sets.len());
        for (number, item) in names.sets.iter().copied().enumerate() {
            let max_per_s = item
                .max_per_s
                .as_ref()
                .and_then(|max| self.within(max, "a set's `max`", u32::MAX, "E309"));
            sets.push(Set {
                name: item.name.value.clone(),
                max_per_s,
                start: starts.contains(&number),
                timed: false,
                span: item.span,
            });
            let explicit: HashSet<(&str, &str)> = item
                .members
                .iter()
                .filter_map(|member| match &member.source {
                    EventSource::Events { pattern, .. } if !is_glob(pattern) => {
                        Some((pattern.system.as_str(), pattern.event.as_str()))
                    }
                    _ => None,
                })
                .collect();
            for member in &item.members {
                self.member(number, member, &explicit);
            }
        }
        sets
    }

    fn member(&mut self, set: usize, item: &'a ast::Member, explicit: &HashSet<(&str, &str)>) {
        if self.diagnostics.is_full() {
            return;
        }
        let (pattern, optional) = match &item.source {
            EventSource::Events { pattern, optional } => (pattern, *optional),
            EventSource::Span(name) => return self.known_span(name),
        };
        let sample = item
            .sample
            .as_ref()
            .and_then(|sample| self.within(sample, "the N of `sample 1/N`", u32::MAX, "E309"))
            .filter(|sample| *sample > 1);
        let globbed = is_glob(pattern);
        let events = if globbed {
            self.excepts(item, pattern);
            let is_out = |system: &str, event: &str| {
                explicit.contains(&(system, event))
                    || item
                        .except
                        .iter()
                        .any(|e| e.system == system && super::events::matches(&e.event, event))
            };
            if !self.events.any(pattern) && !optional {
                let warning = self.events.unmatched(pattern);
                self.diagnostics.push(warning);
            }
            self.events.matching(pattern, is_out)
        } else {
            self.excepts(item, pattern);
            match self.events.exact(pattern) {
                Some(event) => vec![event],
                None if optional => Vec::new(),
                None => {
                    let error = self.events.unknown(pattern);
                    self.diagnostics.push(error);
                    Vec::new()
                }
            }
        };
        self.members(set, item, pattern, sample, &events);
    }

    /// The member for each of its events.
    fn members(
        &mut self,
        set: usize,
        item: &'a ast::Member,
        pattern: &Pattern,
        sample: Option<u32>,
        events: &[Arc<Event>],
    ) {
        let mut had: Vec<bool> = Vec::new();
        let (mut matched, mut wrong, mut possible) = (false, false, false);
        for event in events {
            if self.is_done(pattern) {
                return;
            }
            match self.outcome(item, event, is_glob(pattern)) {
                Outcome::Member(with, listed) => {
                    (matched, possible) = (true, true);
                    if let Some(listed) = &listed {
                        had.resize(listed.had.len(), false);
                        had.iter_mut()
                            .zip(&listed.had)
                            .for_each(|(any, here)| *any |= here);
                    }
                    let own = with.as_ref().is_some_and(check::asks_for_own);
                    let member = Member {
                        set,
                        with,
                        sample,
                        columns: listed.map(|listed| listed.columns),
                        own,
                        span: item.span,
                    };
                    self.wanted(event, item.span).members.push(member);
                }
                Outcome::Never => matched = true,
                Outcome::NoMatch => {}
                Outcome::Wrong => wrong = true,
            }
        }
        let Some(first) = events.first() else { return };
        if wrong {
            return;
        }
        if !matched {
            if let Some(with) = &item.with {
                self.missing_everywhere(pattern, first, with);
            }
        } else if !possible && let Some(with) = &item.with {
            let message = "this condition is never true";
            self.diagnostics
                .push(Diagnostic::warning("W507", with.span, message));
        }
        let Some(Columns::List(list)) = &item.record else {
            return;
        };
        for (column, _) in list.iter().zip(&had).filter(|(_, had)| !**had) {
            if let ast::Column::Value { expr, .. } = column {
                self.missing_everywhere(pattern, first, expr);
            }
        }
    }

    fn outcome(&mut self, item: &'a ast::Member, event: &Arc<Event>, globbed: bool) -> Outcome {
        let mut typer = Typer::new(self.schema, self.params, Some(event));
        typer.is_glob = globbed;
        let with = item.with.as_ref().map(|with| typer.condition(with));
        if globbed && !typer.missing.is_empty() {
            return Outcome::NoMatch;
        }
        let columns: Option<Option<Listed>> = match &item.record {
            None => Some(None),
            Some(Columns::Nothing(_)) => Some(Some(Listed {
                columns: Vec::<Column>::new(),
                had: Vec::new(),
            })),
            Some(Columns::List(list)) => typer.columns(list).map(Some),
        };
        self.diagnostics.extend(typer.found);
        self.diagnostics.extend(typer.missing);
        match (with, columns) {
            (Some(None), _) | (_, None) => Outcome::Wrong,
            (
                Some(Some(Expr {
                    node: Node::Bool(false),
                    ..
                })),
                _,
            ) => Outcome::Never,
            (
                Some(Some(Expr {
                    node: Node::Bool(true),
                    ..
                }))
                | None,
                Some(columns),
            ) => Outcome::Member(None, columns),
            (Some(with), Some(columns)) => Outcome::Member(with, columns),
        }
    }

    /// `except` that takes nothing away.
    fn excepts(&mut self, item: &ast::Member, pattern: &Pattern) {
        for except in &item.except {
            let written = format!("{}:{}", except.system, except.event);
            let warning = if except.system != pattern.system {
                Some(format!(
                    "`{written}` is of another system than `{}:{}`",
                    pattern.system, pattern.event
                ))
            } else if !self.events.any(except) {
                Some(format!("no event of this kernel matches `{written}`"))
            } else {
                None
            };
            if let Some(message) = warning {
                self.diagnostics
                    .push(Diagnostic::warning("W509", except.span, message).label("takes nothing away"));
            }
        }
    }
}
