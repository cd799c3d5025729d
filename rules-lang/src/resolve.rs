//! Syntax trees → [`Plan`]: every name looked up, every type checked, every glob expanded.
//!
//! In: the files of a pack in judging order, the host's params, and the kernel as a [`Schema`]. Out: a plan, and all that
//! is wrong. A plan that comes with errors is only good for finding more of them.
//!
//! ```text
//! files ─names→ who is called what ─params→ constants ─sets, rules→ members and triggers of each event ─check→ plan
//!                                        └─ expr, names, operators, call: one expression for one event
//! ```
//!
//! An expression is typed once for each event that it is used at: the same words may name a field here, a symbol there
//! and nothing elsewhere.

mod call;
mod columns;
mod events;
mod expr;
mod fold;
mod membership;
mod names;
mod operators;
mod params;
mod rules;
mod sets;
mod suggest;
mod symbol;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

pub(crate) use expr::Typer;
pub(crate) use params::Params;

use crate::ast;
use crate::check;
use crate::compile::Options;
use crate::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::hot;
use crate::plan::{Buffer, EventPlan, Plan};
use crate::schema::{Event, Schema};
use crate::source::{Name, Span};
use events::Events;

/// Sets of a pack: the bits of its state word.
const MOST_SETS: usize = 40;
/// Buffers of a pack, `main` included.
const MOST_BUFFERS: usize = 8;
/// Rules of a pack.
const MOST_RULES: usize = 1024;
/// Errors that are shown, and warnings.
const MOST_SHOWN: usize = 100;
/// Members and triggers of a pack, one for each event of a glob.
const MOST_USES: usize = 1 << 16;
/// What a buffer has that does not say.
const DEFAULT_BUFFER_BYTES: u64 = 1 << 20;
/// Two pages.
const LEAST_BUFFER_BYTES: u64 = 8 << 10;
const MOST_BUFFER_BYTES: u64 = 1 << 30;

/// "Not yet": what the language has and this lkst does not run.
pub(crate) fn not_yet(what: &str, span: Span) -> Diagnostic {
    let message = format!("`{what}` is part of the language, but this lkst does not run it yet");
    Diagnostic::error("E401", span, message)
}

/// Makes the plan.
pub(crate) fn resolve(
    pack: &str,
    files: &[ast::File],
    options: &Options,
    schema: &dyn Schema,
    diagnostics: &mut Diagnostics,
) -> Plan {
    let mut sink = Sink::default();
    let names = Names::collect(files, &mut sink);
    let broken = files.iter().flat_map(|file| file.broken.iter().cloned());
    let params = params::params(&names.params, broken, &options.params, schema, &mut sink);
    let mut resolver = Resolver {
        schema,
        params: &params,
        events: Events::new(schema),
        names: &names,
        diagnostics: sink,
        wanted: BTreeMap::new(),
        uses: 0,
    };
    let starts = resolver.starts(files);
    let sets = resolver.sets(&starts);
    let buffers = resolver.buffers();
    let rules = resolver.rules();
    let budget_ppm = resolver.budget(files);
    resolver.unsupported(files);
    let mut sink = resolver.diagnostics;
    let mut plan = Plan {
        pack: pack.to_owned(),
        budget_ppm,
        sets,
        buffers,
        rules,
        events: resolver.wanted.into_values().collect(),
    };
    check::mark_timed(&mut plan);
    sink.extend(check::kinds(&plan));
    sink.extend(check::records(&plan));
    let is_wrong = diagnostics.has_errors() || sink.list.iter().any(|d| d.severity == Severity::Error);
    if !is_wrong {
        // What a broken rule would have used is not unused.
        sink.extend(check::unused(&plan, params.unused()));
        sink.extend(hot::warnings(&plan, options.record_ns));
    }
    diagnostics.list.append(&mut sink.list);
    plan
}

/// Collects diagnostics, one for each code and place: what is wrong at every event of a glob is one mistake. So many of
/// them, and no more: a file may hold a mistake in each of its lines.
#[derive(Default)]
struct Sink {
    list: Vec<Diagnostic>,
    seen: HashSet<(&'static str, Span)>,
}

impl Sink {
    fn push(&mut self, diagnostic: Diagnostic) {
        let place = diagnostic
            .labels
            .first()
            .map(|label| label.span)
            .unwrap_or_default();
        if self.is_full() || !self.seen.insert((diagnostic.code, place)) {
            return;
        }
        // A pack with many warnings is a good pack: what is over is not worth an error.
        let alike = |d: &&Diagnostic| d.severity == diagnostic.severity;
        let shown = self.list.iter().filter(alike).count();
        if shown == MOST_SHOWN && diagnostic.severity == Severity::Warning {
            return;
        }
        if shown == MOST_SHOWN {
            let message = format!("more than {MOST_SHOWN} mistakes in this pack: the rest is not shown");
            self.list.push(Diagnostic::error("E406", place, message));
            return;
        }
        self.list.push(diagnostic);
    }

    /// Whether nothing more is shown.
    fn is_full(&self) -> bool {
        let error = |d: &&Diagnostic| d.severity == Severity::Error;
        self.list.iter().filter(error).count() > MOST_SHOWN
    }

    fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        diagnostics
            .into_iter()
            .for_each(|diagnostic| self.push(diagnostic));
    }
}

/// Who is called what in a pack. Of two of one name the first has it.
struct Names<'a> {
    params: Vec<&'a ast::Param>,
    sets: Vec<&'a ast::Set>,
    buffers: Vec<&'a ast::Buffer>,
    rules: Vec<&'a ast::Rule>,
    set_numbers: HashMap<&'a str, usize>,
    buffer_numbers: HashMap<&'a str, usize>,
    spans: HashMap<&'a str, Span>,
    /// Names of items with a syntax error: of those nothing more is said.
    broken: HashSet<&'a str>,
}

impl<'a> Names<'a> {
    fn collect(files: &'a [ast::File], diagnostics: &mut Sink) -> Self {
        let mut names = Names {
            params: Vec::new(),
            sets: Vec::new(),
            buffers: Vec::new(),
            rules: Vec::new(),
            set_numbers: HashMap::new(),
            // `main` is always there, and always the first.
            buffer_numbers: HashMap::from([("main", 0)]),
            spans: HashMap::new(),
            broken: files
                .iter()
                .flat_map(|file| &file.broken)
                .map(String::as_str)
                .collect(),
        };
        let mut taken: HashMap<(&'static str, &'a str), Span> = HashMap::new();
        for item in files.iter().flat_map(|file| &file.items) {
            let (kind, name) = match item {
                ast::Item::Param(param) => ("param", &param.name),
                ast::Item::Set(set) => ("set", &set.name),
                ast::Item::Span(span) => ("span", &span.name),
                ast::Item::Buffer(buffer) => ("buffer", &buffer.name),
                ast::Item::Rule(rule) => ("rule", &rule.name),
                ast::Item::Budget(_) | ast::Item::Start(_) | ast::Item::Test(_) => continue,
            };
            if let Some(first) = taken.get(&(kind, name.value.as_str())) {
                diagnostics.push(
                    Diagnostic::error(
                        "E107",
                        name.span,
                        format!("{kind} `{}` is defined twice", name.value),
                    )
                    .also(*first, "it is defined here")
                    .help("all files of a pack share their names"),
                );
                continue;
            }
            taken.insert((kind, &name.value), name.span);
            names.add(item);
        }
        names.limit(diagnostics);
        names
    }

    fn add(&mut self, item: &'a ast::Item) {
        match item {
            ast::Item::Param(param) => self.params.push(param),
            ast::Item::Set(set) => {
                self.set_numbers.insert(&set.name.value, self.sets.len());
                self.sets.push(set);
            }
            ast::Item::Buffer(buffer) => {
                let next = self.buffer_numbers.len();
                self.buffer_numbers.entry(&buffer.name.value).or_insert(next);
                self.buffers.push(buffer);
            }
            ast::Item::Rule(rule) => self.rules.push(rule),
            ast::Item::Span(span) => {
                self.spans.insert(&span.name.value, span.name.span);
            }
            ast::Item::Budget(_) | ast::Item::Start(_) | ast::Item::Test(_) => {}
        }
    }

    /// Too many of a kind: said at the first that is too much.
    fn limit(&self, diagnostics: &mut Sink) {
        let mut check = |code, kind: &str, count: usize, most: usize, first: Option<Span>| {
            if let Some(span) = first {
                let message = format!("the pack has {count} {kind}; {most} is the most");
                diagnostics.push(Diagnostic::error(code, span, message).help("split it into several packs"));
            }
        };
        let set = self.sets.get(MOST_SETS).map(|set| set.name.span);
        check("E301", "sets", self.sets.len(), MOST_SETS, set);
        let over = |buffer: &&&ast::Buffer| {
            self.buffer_numbers.get(buffer.name.value.as_str()) == Some(&MOST_BUFFERS)
        };
        let buffer = self.buffers.iter().find(over).map(|buffer| buffer.name.span);
        check(
            "E302",
            "buffers with `main`",
            self.buffer_numbers.len(),
            MOST_BUFFERS,
            buffer,
        );
        let rule = self.rules.get(MOST_RULES).map(|rule| rule.name.span);
        check("E303", "rules", self.rules.len(), MOST_RULES, rule);
    }
}

/// Everything that turns items into parts of a plan.
struct Resolver<'a> {
    schema: &'a dyn Schema,
    params: &'a Params,
    events: Events<'a>,
    names: &'a Names<'a>,
    diagnostics: Sink,
    /// By full name.
    wanted: BTreeMap<String, EventPlan>,
    /// How often an event was named.
    uses: usize,
}

impl<'a> Resolver<'a> {
    /// The sets that `start with` names.
    fn starts(&mut self, files: &'a [ast::File]) -> HashSet<usize> {
        let mut starts = HashSet::new();
        for item in files.iter().flat_map(|file| &file.items) {
            if let ast::Item::Start(start) = item {
                starts.extend(start.sets.iter().filter_map(|name| self.set(name)));
            }
        }
        starts
    }

    /// The number of the set of that name.
    fn set(&mut self, name: &Name) -> Option<usize> {
        let number = self.names.set_numbers.get(name.value.as_str()).copied();
        if number.is_none() && !self.diagnostics.is_full() && !self.names.broken.contains(name.value.as_str())
        {
            let error = Diagnostic::error(
                "E104",
                name.span,
                format!("there is no set `{}` in this pack", name.value),
            );
            let known = self.names.sets.iter().map(|set| set.name.value.as_str());
            self.diagnostics
                .push(suggest::with_known(error, &name.value, known, "its sets are"));
        }
        number
    }

    /// The number of the buffer of that name.
    fn buffer(&mut self, name: &Name) -> Option<usize> {
        let number = self.names.buffer_numbers.get(name.value.as_str()).copied();
        if number.is_none() && !self.diagnostics.is_full() && !self.names.broken.contains(name.value.as_str())
        {
            let error = Diagnostic::error(
                "E105",
                name.span,
                format!("there is no buffer `{}` in this pack", name.value),
            );
            let declared = self.names.buffers.iter().map(|buffer| buffer.name.value.as_str());
            let known = std::iter::once("main").chain(declared.filter(|name| *name != "main"));
            self.diagnostics
                .push(suggest::with_known(error, &name.value, known, "its buffers are"));
        }
        number
    }

    /// A span that something names: unknown, or declared, and then "not yet" was said there.
    fn known_span(&mut self, name: &Name) {
        let known = &self.names.spans;
        if self.diagnostics.is_full() {
            return;
        }
        if !known.contains_key(name.value.as_str()) && !self.names.broken.contains(name.value.as_str()) {
            let error = Diagnostic::error(
                "E110",
                name.span,
                format!("there is no span `{}` in this pack", name.value),
            );
            let mut spans: Vec<&str> = known.keys().copied().collect();
            spans.sort_unstable();
            self.diagnostics
                .push(suggest::with_known(error, &name.value, spans, "its spans are"));
        }
    }

    fn buffers(&mut self) -> Vec<Buffer> {
        let mut buffers = vec![Buffer {
            name: "main".to_owned(),
            size_bytes: DEFAULT_BUFFER_BYTES,
            stream: false,
            span: Span::default(),
        }];
        for item in &self.names.buffers {
            let size_bytes = self.buffer_size(item);
            let buffer = Buffer {
                name: item.name.value.clone(),
                size_bytes,
                stream: item.streams.first().is_some_and(|stream| stream.value),
                span: item.span,
            };
            match buffers.first_mut() {
                Some(main) if buffer.name == "main" => *main = buffer,
                _ => buffers.push(buffer),
            }
        }
        buffers
    }

    fn buffer_size(&mut self, item: &ast::Buffer) -> u64 {
        let twice = item
            .sizes
            .get(1)
            .map(|second| ("size", second.span))
            .or_else(|| item.streams.get(1).map(|second| ("mode", second.span)));
        if let Some((what, span)) = twice {
            let message = format!("buffer `{}` says `{what}` twice", item.name.value);
            self.diagnostics.push(Diagnostic::error("E405", span, message));
        }
        let Some(size) = item.sizes.first() else {
            return DEFAULT_BUFFER_BYTES;
        };
        if !(LEAST_BUFFER_BYTES..=MOST_BUFFER_BYTES).contains(&size.value) {
            let message = format!(
                "a buffer has 8KiB to 1GiB on each CPU, and this has {} bytes",
                size.value
            );
            self.diagnostics
                .push(Diagnostic::error("E308", size.span, message));
            return DEFAULT_BUFFER_BYTES;
        }
        size.value
    }

    /// What the pack may cost, in millionths of each CPU.
    fn budget(&mut self, files: &[ast::File]) -> Option<u32> {
        let mut budgets = files
            .iter()
            .flat_map(|file| &file.items)
            .filter_map(|item| match item {
                ast::Item::Budget(budget) => Some(budget),
                _ => None,
            });
        let first = budgets.next()?;
        for another in budgets {
            self.diagnostics.push(
                Diagnostic::error("E405", another.span, "the pack has two budgets")
                    .also(first.span, "the first is here")
                    .help("a budget is of the whole pack: leave one"),
            );
        }
        if first.ppm.value == 0 {
            self.diagnostics.push(
                Diagnostic::error(
                    "E307",
                    first.ppm.span,
                    "with a budget of zero nothing is ever recorded",
                )
                .help("leave the pack out, or give it a little: `budget 0.1%`"),
            );
        }
        u32::try_from(first.ppm.value).ok()
    }

    /// Items of kinds that are not run yet, said at each.
    fn unsupported(&mut self, files: &[ast::File]) {
        for item in files.iter().flat_map(|file| &file.items) {
            match item {
                ast::Item::Span(span) => self.diagnostics.push(not_yet("span", span.name.span)),
                ast::Item::Test(test) => self.diagnostics.push(
                    not_yet("test", test.title.span)
                        .help("tests have their own files, `NAME.test.lkst`, which are not loaded"),
                ),
                _ => {}
            }
        }
    }

    /// What the pack wants of that event, so far.
    fn wanted(&mut self, event: &Arc<Event>, span: Span) -> &mut EventPlan {
        self.wanted.entry(event.full_name()).or_insert_with(|| EventPlan {
            all: columns::all(event, span).into(),
            event: Arc::clone(event),
            members: Vec::new(),
            triggers: Vec::new(),
        })
    }

    /// Whether there is no point in going on: enough is said, or the pack names too many events.
    fn is_done(&mut self, pattern: &ast::Pattern) -> bool {
        if self.uses == MOST_USES {
            let message =
                format!("the pack names events more than {MOST_USES} times, each event of a glob counted");
            self.diagnostics.push(
                Diagnostic::error("E311", pattern.span, message)
                    .help("name the events that are meant, or split the pack"),
            );
        }
        self.uses = self.uses.saturating_add(1);
        self.uses > MOST_USES || self.diagnostics.is_full()
    }

    /// A duration that must not be zero.
    fn some_time(&mut self, duration: &crate::source::Spanned<u64>) -> Option<u64> {
        if duration.value == 0 {
            self.diagnostics.push(Diagnostic::error(
                "E307",
                duration.span,
                "a duration of zero means nothing here",
            ));
            return None;
        }
        Some(duration.value)
    }

    /// A number within 1 and `most`.
    fn within(
        &mut self,
        number: &crate::source::Spanned<u64>,
        what: &str,
        most: u32,
        code: &'static str,
    ) -> Option<u32> {
        match u32::try_from(number.value) {
            Ok(value) if (1..=most).contains(&value) => Some(value),
            _ => {
                let message = format!("{what} is 1 to {most}, and not {}", number.value);
                self.diagnostics
                    .push(Diagnostic::error(code, number.span, message));
                None
            }
        }
    }

    /// The warning that none of a glob's events has what is asked of it: what is missing in the first of them, said well.
    fn missing_everywhere(&mut self, pattern: &ast::Pattern, event: &Event, expr: &'a ast::Expr) {
        let mut typer = Typer::new(self.schema, self.params, Some(event));
        typer.value(expr);
        let Some(missing) = typer.missing.into_iter().next() else {
            return;
        };
        let place = missing.labels.first().map_or(expr.span, |label| label.span);
        let written = format!("{}:{}", pattern.system, pattern.event);
        let mut warning = Diagnostic::warning(
            "W502",
            place,
            format!("no event that `{written}` matches has this"),
        )
        .also(pattern.span, "of these")
        .help(missing.message);
        warning.help.extend(missing.help);
        self.diagnostics.push(warning);
    }
}
