//! Rules: what they wait for, what they do, how often.
//!
//! In: `rule` items. Out: the plan's rules, and their triggers with the events. A rule that names one event twice waits
//! for it once, with either condition.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::columns::identifier;
use super::events::is_glob;
use super::expr::Typer;
use super::{Resolver, fold, not_yet};
use crate::ast::{self, ActionKind, EventSource, NotifyPiece, Pattern};
use crate::check;
use crate::diagnostic::Diagnostic;
use crate::plan::{Action, Column, Expr, Guard, Limit, MessagePiece, Node, Rule, Trigger};
use crate::print::print_expression;
use crate::schema::Event;

/// What a rule may do that does not say how often: ten times a second.
const DEFAULT_LIMIT: Limit = Limit::Per {
    count: 10,
    window_ns: 1_000_000_000,
};

/// Between two `notify` texts of one rule.
const BETWEEN_TEXTS: &str = "; ";

/// A value of a rule's message: its name in the record, and what was written.
type Shown<'a> = (String, &'a ast::Expr);

/// What became of a rule's triggers.
#[derive(Default)]
struct Fate {
    /// One of them may happen.
    live: bool,
    /// Something was said already, so that the rule is not found fault with as a whole.
    said: bool,
    /// One of them is there and its condition is never true.
    never: bool,
}

impl<'a> Resolver<'a> {
    pub(super) fn rules(&mut self) -> Vec<Rule> {
        let names = self.names;
        names
            .rules
            .iter()
            .copied()
            .enumerate()
            .map(|(number, item)| self.rule(number, item))
            .collect()
    }

    fn rule(&mut self, number: usize, item: &'a ast::Rule) -> Rule {
        let (message, shown) = message(item);
        let mut fate = Fate::default();
        for trigger in &item.triggers {
            match trigger {
                ast::Trigger::Event { source, with, span } => match source {
                    EventSource::Events { pattern, optional } => {
                        let wait = Wait {
                            rule: number,
                            pattern,
                            optional: *optional,
                            with: with.as_ref(),
                            span: *span,
                        };
                        self.trigger(&wait, &shown, &mut fate);
                    }
                    EventSource::Span(name) => {
                        self.known_span(name);
                        fate.said = true;
                    }
                },
                ast::Trigger::Open { name, span, .. } => {
                    self.known_span(name);
                    self.diagnostics.push(not_yet("open for", *span));
                    fate.said = true;
                }
                ast::Trigger::No { span, .. } => {
                    self.diagnostics.push(not_yet("when no … for", *span));
                    fate.said = true;
                }
            }
        }
        if !fate.live && !fate.said {
            let warning = if fate.never {
                let message = format!(
                    "rule `{}` can never fire: its condition is never true",
                    item.name.value
                );
                Diagnostic::warning("W507", item.name.span, message)
            } else {
                let message = format!(
                    "rule `{}` is off: this kernel has none of its events",
                    item.name.value
                );
                Diagnostic::warning("W503", item.name.span, message)
            };
            self.diagnostics.push(warning);
        }
        match &item.window {
            Some(ast::Window::Repeated { span, .. }) => self.diagnostics.push(not_yet("repeated", *span)),
            Some(ast::Window::Total { span, .. }) => self.diagnostics.push(not_yet("total", *span)),
            None => {}
        }
        let guard = item.guard.as_ref().and_then(|guard| self.guard(guard));
        let actions = item
            .actions
            .iter()
            .flat_map(|action| self.action(action))
            .collect();
        let limit = item
            .limit
            .as_ref()
            .and_then(|limit| self.limit(limit))
            .unwrap_or(DEFAULT_LIMIT);
        Rule {
            name: item.name.value.clone(),
            guard,
            actions,
            limit,
            message,
            live: fate.live,
            span: item.span,
        }
    }

    fn trigger(&mut self, wait: &Wait<'a>, shown: &[Shown<'a>], fate: &mut Fate) {
        if self.diagnostics.is_full() {
            fate.said = true;
            return;
        }
        let pattern = wait.pattern;
        let globbed = is_glob(pattern);
        let events = if globbed {
            if !wait.optional && !self.events.any(pattern) {
                let warning = self.events.unmatched(pattern);
                self.diagnostics.push(warning);
                fate.said = true;
            }
            self.events.matching(pattern, |_, _| false)
        } else {
            match self.events.exact(pattern) {
                Some(event) => vec![event],
                None if wait.optional => Vec::new(),
                None => {
                    let error = self.events.unknown(pattern);
                    self.diagnostics.push(error);
                    fate.said = true;
                    Vec::new()
                }
            }
        };
        let mut matched = false;
        for event in &events {
            if self.is_done(pattern) {
                fate.said = true;
                return;
            }
            matched |= self.trigger_at(wait, event, globbed, shown, fate);
        }
        if let (false, Some(first), Some(with)) = (matched, events.first(), wait.with) {
            self.missing_everywhere(pattern, first, with);
            fate.said = true;
        }
    }

    /// The trigger for one event. False where the event is not meant after all.
    fn trigger_at(
        &mut self,
        wait: &Wait<'a>,
        event: &Arc<Event>,
        globbed: bool,
        shown: &[Shown<'a>],
        fate: &mut Fate,
    ) -> bool {
        let mut typer = Typer::new(self.schema, self.params, Some(event));
        typer.is_glob = globbed;
        let with = wait.with.map(|with| typer.condition(with));
        if globbed && !typer.missing.is_empty() {
            return false;
        }
        // A message has all of its values at every event, or it could not be told.
        typer.is_glob = false;
        let values: Vec<Option<Column>> = shown
            .iter()
            .map(|(name, expr)| typer.column_value(name.clone(), expr))
            .collect();
        let values: Option<Vec<Column>> = values.into_iter().collect();
        self.diagnostics.extend(typer.found);
        self.diagnostics.extend(typer.missing);
        let (Some(values), Some(with)) = (values, with.map_or(Some(None), |with| with.map(Some))) else {
            fate.said = true;
            return true;
        };
        let with = match with {
            Some(Expr {
                node: Node::Bool(false),
                ..
            }) => {
                fate.never = true;
                return true;
            }
            Some(Expr {
                node: Node::Bool(true),
                ..
            }) => None,
            with => with,
        };
        fate.live = true;
        let own = with.as_ref().is_some_and(check::asks_for_own);
        let triggers = &mut self.wanted(event, wait.span).triggers;
        match triggers.last_mut().filter(|last| last.rule == wait.rule) {
            Some(last) => {
                last.own |= own;
                last.with = match (last.with.take(), with) {
                    (Some(first), Some(second)) => fold::all_or_any(false, vec![first, second]),
                    // One of them asks nothing.
                    _ => None,
                };
            }
            None => triggers.push(Trigger {
                rule: wait.rule,
                with,
                values,
                own,
                span: wait.span,
            }),
        }
        true
    }

    fn guard(&mut self, guard: &ast::Guard) -> Option<Guard> {
        Some(match guard {
            ast::Guard::Set(name) => Guard::Set(self.set(name)?),
            ast::Guard::Not(of) => Guard::Not(Box::new(self.guard(of)?)),
            ast::Guard::And(left, right) | ast::Guard::Or(left, right) => {
                let (left, right) = (self.guard(left), self.guard(right));
                let (left, right) = (Box::new(left?), Box::new(right?));
                match guard {
                    ast::Guard::And(..) => Guard::And(left, right),
                    _ => Guard::Or(left, right),
                }
            }
        })
    }

    fn action(&mut self, action: &ast::Action) -> Vec<Action> {
        match &action.kind {
            ActionKind::Enable { sets, for_ns } => {
                let for_ns = for_ns.as_ref().and_then(|for_ns| self.some_time(for_ns));
                let sets = sets.iter().filter_map(|name| self.set(name));
                sets.map(|set| Action::Enable { set, for_ns }).collect()
            }
            ActionKind::Disable { sets } => {
                let sets = sets.iter().filter_map(|name| self.set(name));
                sets.map(|set| Action::Disable { set }).collect()
            }
            ActionKind::Switch { buffer, for_ns } => {
                let for_ns = for_ns.as_ref().and_then(|for_ns| self.some_time(for_ns));
                let buffer = self.buffer(buffer);
                buffer
                    .map(|buffer| Action::Switch { buffer, for_ns })
                    .into_iter()
                    .collect()
            }
            ActionKind::Save { after_ns } => {
                let after_ns = after_ns
                    .as_ref()
                    .and_then(|after_ns| self.some_time(after_ns))
                    .unwrap_or(0);
                vec![Action::Save { after_ns }]
            }
            ActionKind::Stop => vec![Action::Stop],
            // In the rule's message.
            ActionKind::Notify { .. } => Vec::new(),
            ActionKind::Count { .. } => self.action_not_yet("count", action),
            ActionKind::Measure { .. } => self.action_not_yet("measure", action),
            ActionKind::Stack(_) => self.action_not_yet("stack", action),
        }
    }

    fn action_not_yet(&mut self, what: &str, action: &ast::Action) -> Vec<Action> {
        self.diagnostics.push(not_yet(what, action.span));
        Vec::new()
    }

    fn limit(&mut self, limit: &ast::Limit) -> Option<Limit> {
        let by = match limit {
            ast::Limit::Per { by, .. } | ast::Limit::Once { by, .. } => by,
        };
        if let (Some(first), Some(last)) = (by.first(), by.last()) {
            self.diagnostics.push(not_yet("by", first.span.to(last.span)));
        }
        match limit {
            ast::Limit::Once { .. } => Some(Limit::Once),
            ast::Limit::Per { count, window_ns, .. } => {
                let count = self.within(count, "the number of a `limit`", u32::from(u16::MAX), "E306");
                let window_ns = self.some_time(window_ns);
                let count = u16::try_from(count?).ok()?;
                Some(Limit::Per {
                    count,
                    window_ns: window_ns?,
                })
            }
        }
    }
}

/// One `when` of a rule.
struct Wait<'a> {
    rule: usize,
    pattern: &'a Pattern,
    optional: bool,
    with: Option<&'a ast::Expr>,
    span: crate::source::Span,
}

/// The rule's texts as one, and the values that they show, each once.
fn message(item: &ast::Rule) -> (Vec<MessagePiece>, Vec<Shown<'_>>) {
    let mut pieces = Vec::new();
    let mut shown = Values::default();
    let texts = item.actions.iter().filter_map(|action| match &action.kind {
        ActionKind::Notify { pieces } => Some(pieces),
        _ => None,
    });
    for (at, text) in texts.enumerate() {
        if at > 0 {
            pieces.push(MessagePiece::Text(BETWEEN_TEXTS.to_owned()));
        }
        pieces.extend(text.iter().map(|piece| match piece {
            NotifyPiece::Text(text) => MessagePiece::Text(text.clone()),
            NotifyPiece::Value(expr) => MessagePiece::Value(shown.index_of(expr)),
        }));
    }
    (pieces, shown.list)
}

/// The values of a message, in order, each once and each with a name of its own.
#[derive(Default)]
struct Values<'a> {
    list: Vec<Shown<'a>>,
    /// By what was written.
    known: HashMap<String, usize>,
    names: HashSet<String>,
}

impl<'a> Values<'a> {
    /// The index of a value, which is added unless it is there.
    fn index_of(&mut self, expr: &'a ast::Expr) -> usize {
        let next = self.list.len();
        match self.known.entry(print_expression(expr)) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(vacant) => vacant.insert(next),
        };
        // A name that is taken, or none, becomes one that no path is written as.
        let name = identifier(expr)
            .filter(|name| !self.names.contains(name))
            .or_else(|| {
                (next + 1..)
                    .map(|n| format!("value{n}"))
                    .find(|name| !self.names.contains(name))
            })
            .unwrap_or_default();
        self.names.insert(name.clone());
        self.list.push((name, expr));
        next
    }
}
