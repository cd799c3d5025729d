//! Items: pairs of the grammar → [`crate::ast`].
//!
//! In: a pair that the grammar accepted. Out: its tree; `None` where something was wrong that the grammar cannot see (a
//! glob where one event is meant, a text of `notify` that does not parse), which was then reported.

use pest::iterators::Pair;

use super::grammar::Rule;
use super::lexer::Input;
use super::literal;
use super::sink::{Sink, quote};
use crate::ast;
use crate::diagnostic::Diagnostic;
use crate::source::{Name, Span, Spanned};

/// What one item is.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, and most are of the large kind"
)]
pub(super) enum Item {
    /// `language N`, with N as written.
    Language(Name),
    /// Any other.
    Other(ast::Item),
}

/// Makes the tree of one item.
pub(super) struct Build<'a, 's, 'd> {
    pub(super) input: Input<'a>,
    /// Where the text that the grammar saw begins in the input.
    start: usize,
    pub(super) sink: &'s mut Sink<'d>,
    /// Operators so far in the expression that is built.
    pub(super) operators: usize,
}

/// The first part that is `rule`.
pub(super) fn child<'i>(pair: &Pair<'i, Rule>, rule: Rule) -> Option<Pair<'i, Rule>> {
    pair.clone().into_inner().find(|part| part.as_rule() == rule)
}

/// The parts that are `rule`, in order.
pub(super) fn children<'i>(
    pair: &Pair<'i, Rule>,
    rule: Rule,
) -> impl Iterator<Item = Pair<'i, Rule>> + use<'i> {
    pair.clone()
        .into_inner()
        .filter(move |part| part.as_rule() == rule)
}

impl<'a, 's, 'd> Build<'a, 's, 'd> {
    pub(super) fn new(input: Input<'a>, start: usize, sink: &'s mut Sink<'d>) -> Self {
        Build {
            input,
            start,
            sink,
            operators: 0,
        }
    }

    /// Any item.
    pub(super) fn item(&mut self, pair: &Pair<'_, Rule>) -> Option<Item> {
        let span = self.span(pair);
        Some(Item::Other(match pair.as_rule() {
            Rule::language => {
                let version = child(pair, Rule::int)?;
                return Some(Item::Language(self.name(&version)));
            }
            Rule::param => ast::Item::Param(self.param(pair)?),
            Rule::set => {
                let max = child(pair, Rule::max);
                let members: Option<_> = children(pair, Rule::member)
                    .map(|each| self.member(&each))
                    .collect();
                ast::Item::Set(ast::Set {
                    name: self.named(pair)?,
                    max_per_s: max.and_then(|max| self.integer(&child(&max, Rule::int)?)),
                    members: members?,
                    span,
                })
            }
            Rule::span => {
                let from: Option<_> = children(pair, Rule::span_from)
                    .map(|each| self.end(&each))
                    .collect();
                let to: Option<_> = children(pair, Rule::span_to)
                    .map(|each| self.end(&each))
                    .collect();
                ast::Item::Span(ast::SpanItem {
                    name: self.named(pair)?,
                    from: from?,
                    to: to?,
                    span,
                })
            }
            Rule::buffer => ast::Item::Buffer(self.buffer(pair)?),
            Rule::budget => ast::Item::Budget(ast::Budget {
                ppm: self.percent(pair)?,
                span,
            }),
            Rule::start => ast::Item::Start(ast::Start {
                sets: self.names(pair)?,
                span,
            }),
            Rule::rule_item => ast::Item::Rule(self.rule(pair)?),
            Rule::test => ast::Item::Test(self.test(pair)?),
            _ => return None,
        }))
    }

    fn param(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Param> {
        Some(ast::Param {
            name: self.named(pair)?,
            value: self.inner_expr(pair)?,
            span: self.span(pair),
        })
    }

    fn percent(&mut self, pair: &Pair<'_, Rule>) -> Option<Spanned<u64>> {
        let number = child(pair, Rule::decimal)?;
        let span = self.span(&number);
        let Some(value) = literal::ppm(number.as_str()) else {
            let message = format!("{} is not a budget", quote(number.as_str()));
            self.sink
                .push(Diagnostic::error("E009", span, message).help("a budget is at most 100 %"));
            return None;
        };
        Some(Spanned { value, span })
    }

    fn buffer(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Buffer> {
        let sizes: Option<_> = children(pair, Rule::buffer_size)
            .map(|each| self.size(&child(&each, Rule::size)?))
            .collect();
        let streams = children(pair, Rule::buffer_mode)
            .filter_map(|each| each.into_inner().last())
            .map(|mode| Spanned {
                value: mode.as_rule() == Rule::kw_stream,
                span: self.span(&mode),
            })
            .collect();
        Some(ast::Buffer {
            name: self.named(pair)?,
            sizes: sizes?,
            streams,
            span: self.span(pair),
        })
    }

    fn member(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Member> {
        let except: Option<_> = children(pair, Rule::except)
            .map(|each| self.pattern(&child(&each, Rule::pattern)?))
            .collect();
        let sample = match child(pair, Rule::sample) {
            Some(sample) => Some(self.integer(&child(&sample, Rule::int)?)?),
            None => None,
        };
        let record = match child(pair, Rule::record) {
            Some(record) => Some(self.columns(&record)?),
            None => None,
        };
        Some(ast::Member {
            source: self.source(&child(pair, Rule::source)?)?,
            except: except?,
            with: self.with(pair)?,
            sample,
            record,
            span: self.span(pair),
        })
    }

    fn columns(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Columns> {
        if let Some(nothing) = child(pair, Rule::nothing) {
            return Some(ast::Columns::Nothing(self.span(&nothing)));
        }
        let list: Option<_> = children(pair, Rule::column)
            .map(|each| match child(&each, Rule::stack) {
                Some(stack) => Some(ast::Column::Stack(self.stack(&stack))),
                None => {
                    let name = child(&each, Rule::name).map(|name| self.name(&name));
                    Some(ast::Column::Value {
                        expr: self.inner_expr(&each)?,
                        name,
                    })
                }
            })
            .collect();
        Some(ast::Columns::List(list?))
    }

    fn end(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::End> {
        let pair = &child(pair, Rule::span_end)?;
        Some(ast::End {
            pattern: self.pattern(&child(pair, Rule::pattern)?)?,
            optional: child(pair, Rule::optional).is_some(),
            with: self.with(pair)?,
            by: self.by(pair)?,
            span: self.span(pair),
        })
    }

    fn rule(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Rule> {
        let mut triggers = Vec::new();
        let mut actions = Vec::new();
        let (mut window, mut guard, mut limit) = (None, None, None);
        for part in pair.clone().into_inner() {
            match part.as_rule() {
                Rule::trigger_event | Rule::trigger_open | Rule::trigger_no => {
                    triggers.push(self.trigger(&part)?);
                }
                Rule::repeated | Rule::total => window = Some(self.window(&part)?),
                Rule::guard => guard = Some(self.guard(&part)?),
                Rule::action => {
                    let kind = self.action(&part.clone().into_inner().next()?)?;
                    actions.push(ast::Action {
                        kind,
                        span: self.span(&part),
                    });
                }
                Rule::limit | Rule::once => limit = Some(self.limit(&part)?),
                _ => {}
            }
        }
        Some(ast::Rule {
            name: self.named(pair)?,
            triggers,
            window,
            guard,
            actions,
            limit,
            span: self.span(pair),
        })
    }

    fn trigger(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Trigger> {
        let span = self.span(pair);
        Some(match pair.as_rule() {
            Rule::trigger_open => ast::Trigger::Open {
                name: self.named(pair)?,
                for_ns: self.inner_duration(pair)?,
                with: self.with(pair)?,
                span,
            },
            Rule::trigger_no => ast::Trigger::No {
                pattern: self.pattern(&child(pair, Rule::pattern)?)?,
                for_ns: self.inner_duration(pair)?,
                span,
            },
            _ => ast::Trigger::Event {
                source: self.source(&child(pair, Rule::source)?)?,
                with: self.with(pair)?,
                span,
            },
        })
    }

    fn window(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Window> {
        let span = self.span(pair);
        let in_ns = self.inner_duration(pair)?;
        Some(match pair.as_rule() {
            Rule::repeated => {
                let times = self.integer(&child(pair, Rule::int)?)?;
                ast::Window::Repeated {
                    times,
                    in_ns,
                    by: self.by(pair)?,
                    span,
                }
            }
            _ => {
                let value = self.inner_expr(pair)?;
                self.operators = 0;
                let over = self.bits(&child(pair, Rule::bits)?)?;
                ast::Window::Total {
                    value,
                    over,
                    in_ns,
                    by: self.by(pair)?,
                    span,
                }
            }
        })
    }

    fn limit(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Limit> {
        let span = self.span(pair);
        let by = self.by(pair)?;
        Some(match child(pair, Rule::int) {
            Some(count) => ast::Limit::Per {
                count: self.integer(&count)?,
                window_ns: self.inner_duration(pair)?,
                by,
                span,
            },
            None => ast::Limit::Once { by, span },
        })
    }

    fn action(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::ActionKind> {
        Some(match pair.as_rule() {
            Rule::enable => ast::ActionKind::Enable {
                sets: self.names(pair)?,
                for_ns: self.lasting(pair)?,
            },
            Rule::disable => ast::ActionKind::Disable {
                sets: self.names(pair)?,
            },
            Rule::switch => ast::ActionKind::Switch {
                buffer: self.named(pair)?,
                for_ns: self.lasting(pair)?,
            },
            Rule::save => {
                let after_ns = match child(pair, Rule::duration) {
                    Some(after) => Some(self.duration(&after)?),
                    None => None,
                };
                ast::ActionKind::Save { after_ns }
            }
            Rule::notify => ast::ActionKind::Notify {
                pieces: self.notify(&child(pair, Rule::string)?)?,
            },
            Rule::count => ast::ActionKind::Count {
                name: self.named(pair)?,
                by: self.by(pair)?,
            },
            Rule::measure => ast::ActionKind::Measure {
                name: self.named(pair)?,
                value: self.inner_expr(pair)?,
                by: self.by(pair)?,
            },
            Rule::stack => ast::ActionKind::Stack(self.stack(pair)),
            _ => ast::ActionKind::Stop,
        })
    }

    fn test(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Test> {
        let params: Option<_> = children(pair, Rule::param)
            .map(|each| self.param(&each))
            .collect();
        let moments: Option<_> = children(pair, Rule::moment)
            .map(|each| self.moment(&each))
            .collect();
        Some(ast::Test {
            title: self.string(&child(pair, Rule::string)?),
            params: params?,
            moments: moments?,
            span: self.span(pair),
        })
    }

    fn moment(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Moment> {
        let mut steps = Vec::new();
        for part in pair.clone().into_inner() {
            match part.as_rule() {
                Rule::hit => steps.push(self.hit(&part)?),
                Rule::expect => steps.push(self.expect(&part)?),
                _ => {}
            }
        }
        Some(ast::Moment {
            at_ns: self.inner_duration(pair)?,
            steps,
            span: self.span(pair),
        })
    }

    fn hit(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Step> {
        let pattern = self.one_event(&child(pair, Rule::pattern)?)?;
        let values: Option<_> = children(pair, Rule::hit_value)
            .map(|each| Some((self.name(&child(&each, Rule::dotted)?), self.inner_expr(&each)?)))
            .collect();
        Some(ast::Step::Hit {
            pattern,
            values: values?,
            span: self.span(pair),
        })
    }

    fn expect(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Step> {
        let inner = pair.clone().into_inner().last()?;
        let what = match inner.as_rule() {
            Rule::fired => {
                let times = match child(&inner, Rule::int) {
                    Some(times) => Some(self.integer(&times)?),
                    None => None,
                };
                ast::Expectation::Fired {
                    rule: self.named(&inner)?,
                    times,
                }
            }
            Rule::is_enabled => ast::Expectation::Enabled(self.named(&inner)?),
            Rule::is_current => ast::Expectation::Buffer(self.named(&inner)?),
            Rule::is_kept => ast::Expectation::Kept(self.named(&inner)?),
            _ => ast::Expectation::Recorded(self.source(&child(&inner, Rule::source)?)?),
        };
        let negated = child(pair, Rule::kw_not).is_some();
        Some(ast::Step::Expect {
            negated,
            what,
            span: self.span(pair),
        })
    }

    // ---- clauses that several items share ----

    fn source(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::EventSource> {
        if let Some(span) = child(pair, Rule::span_name) {
            return Some(ast::EventSource::Span(self.named(&span)?));
        }
        let events = child(pair, Rule::events)?;
        Some(ast::EventSource::Events {
            pattern: self.pattern(&child(&events, Rule::pattern)?)?,
            optional: child(&events, Rule::optional).is_some(),
        })
    }

    fn pattern(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Pattern> {
        let (system, event) = pair.as_str().split_once(':')?;
        let span = self.span(pair);
        if system.contains('*') {
            let message = format!("the system in {} must be one name", quote(pair.as_str()));
            self.sink.push(
                Diagnostic::error("E027", span, message)
                    .help("`*` stands for events, as in `block:*`; name each system on its own"),
            );
            return None;
        }
        Some(ast::Pattern {
            system: system.to_owned(),
            event: event.to_owned(),
            span,
        })
    }

    fn one_event(&mut self, pair: &Pair<'_, Rule>) -> Option<ast::Pattern> {
        let pattern = self.pattern(pair)?;
        if pattern.event.contains('*') {
            let message = format!("a hit is of one event, not of {}", quote(pair.as_str()));
            self.sink
                .push(Diagnostic::error("E027", pattern.span, message).help("name the event that happens"));
            return None;
        }
        Some(pattern)
    }

    /// `with EXPR`, if it is there. The outer `None` is an error.
    #[expect(
        clippy::option_option,
        reason = "absent and wrong are two things, and wrong ends the item with `?`"
    )]
    fn with(&mut self, pair: &Pair<'_, Rule>) -> Option<Option<ast::Expr>> {
        match child(pair, Rule::with) {
            Some(with) => self.inner_expr(&with).map(Some),
            None => Some(None),
        }
    }

    /// `by EXPR, …`; empty where it is not there.
    fn by(&mut self, pair: &Pair<'_, Rule>) -> Option<Vec<ast::Expr>> {
        match child(pair, Rule::by) {
            Some(by) => children(&by, Rule::expr).map(|each| self.expr(&each)).collect(),
            None => Some(Vec::new()),
        }
    }

    /// `for DURATION`, if it is there. The outer `None` is an error.
    #[expect(
        clippy::option_option,
        reason = "absent and wrong are two things, and wrong ends the item with `?`"
    )]
    fn lasting(&mut self, pair: &Pair<'_, Rule>) -> Option<Option<Spanned<u64>>> {
        match child(pair, Rule::lasting) {
            Some(lasting) => self.inner_duration(&lasting).map(Some),
            None => Some(None),
        }
    }

    fn stack(&self, pair: &Pair<'_, Rule>) -> ast::Stack {
        ast::Stack {
            user: child(pair, Rule::kw_user).is_some(),
            span: self.span(pair),
        }
    }

    fn names(&self, pair: &Pair<'_, Rule>) -> Option<Vec<Name>> {
        let names = child(pair, Rule::names)?;
        Some(
            children(&names, Rule::name)
                .map(|name| self.name(&name))
                .collect(),
        )
    }

    /// The name that an item or clause holds.
    fn named(&self, pair: &Pair<'_, Rule>) -> Option<Name> {
        child(pair, Rule::name).map(|name| self.name(&name))
    }

    // ---- words and literals ----

    pub(super) fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        let place = pair.as_span();
        self.input
            .span(self.start + place.start(), self.start + place.end())
    }

    /// What is written, with its place.
    pub(super) fn name(&self, pair: &Pair<'_, Rule>) -> Name {
        Spanned {
            value: pair.as_str().to_owned(),
            span: self.span(pair),
        }
    }

    fn inner_duration(&mut self, pair: &Pair<'_, Rule>) -> Option<Spanned<u64>> {
        self.duration(&child(pair, Rule::duration)?)
    }

    pub(super) fn integer(&self, pair: &Pair<'_, Rule>) -> Option<Spanned<u64>> {
        Some(Spanned {
            value: literal::integer(pair.as_str())?,
            span: self.span(pair),
        })
    }

    pub(super) fn duration(&self, pair: &Pair<'_, Rule>) -> Option<Spanned<u64>> {
        Some(Spanned {
            value: literal::duration(pair.as_str())?,
            span: self.span(pair),
        })
    }

    pub(super) fn size(&self, pair: &Pair<'_, Rule>) -> Option<Spanned<u64>> {
        Some(Spanned {
            value: literal::size(pair.as_str())?,
            span: self.span(pair),
        })
    }

    pub(super) fn string(&self, pair: &Pair<'_, Rule>) -> Spanned<String> {
        let (value, _) = self.unescape(pair);
        Spanned {
            value,
            span: self.span(pair),
        }
    }

    pub(super) fn unescape(&self, pair: &Pair<'_, Rule>) -> (String, Vec<u32>) {
        let written = pair.as_str();
        let inner = written.get(1..written.len().saturating_sub(1)).unwrap_or("");
        let first = self.start + pair.as_span().start() + 1;
        literal::unescape(inner, |at| self.input.offset(first + at))
    }
}
