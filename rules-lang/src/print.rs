//! [`crate::ast`] → rule text, in the one canonical form.
//!
//! In: a tree. Out: text that parses to the same tree, places aside, with no more parentheses than that needs. Comments
//! are not in the tree, so they are not in the text.

mod expr;

use std::fmt::{self, Display, Formatter, Write as _};

use crate::ast::{
    Action, ActionKind, Buffer, Column, Columns, End, EventSource, Expectation, Expr, File, Item, Limit,
    Member, Moment, NotifyPiece, Param, Pattern, Rule, Set, SpanItem, Stack, Step, Test, Trigger, Window,
};
use crate::parse::literal::{duration_text, size_text};
use crate::source::{Name, Spanned};
use expr::{At, Level};

/// The canonical text of a file.
#[must_use]
pub fn print(file: &File) -> String {
    let mut out = String::new();
    // Writing into a `String` does not fail.
    let _ = write!(out, "{}", Printed(file));
    out
}

/// The canonical text of an expression.
#[must_use]
pub fn print_expression(expr: &Expr) -> String {
    At(expr, Level::OR).to_string()
}

/// Something in its canonical form.
struct Printed<T>(T);

impl Display for Printed<&File> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut gap = |f: &mut Formatter<'_>| {
            if std::mem::take(&mut first) {
                Ok(())
            } else {
                f.write_char('\n')
            }
        };
        if let Some(language) = &self.0.language {
            gap(f)?;
            writeln!(f, "language {}", language.value)?;
        }
        for item in &self.0.items {
            gap(f)?;
            match item {
                Item::Param(param) => writeln!(f, "{}", Printed(param))?,
                Item::Set(set) => write!(f, "{}", Printed(set))?,
                Item::Span(span) => write!(f, "{}", Printed(span))?,
                Item::Buffer(buffer) => write!(f, "{}", Printed(buffer))?,
                Item::Budget(budget) => writeln!(f, "budget {} %", Percent(budget.ppm.value))?,
                Item::Start(start) => writeln!(f, "start with {}", Names(&start.sets))?,
                Item::Rule(rule) => write!(f, "{}", Printed(rule))?,
                Item::Test(test) => write!(f, "{}", Printed(test))?,
            }
        }
        Ok(())
    }
}

impl Display for Printed<&Param> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "param {} = {}",
            self.0.name.value,
            At(&self.0.value, Level::OR)
        )
    }
}

impl Display for Printed<&Set> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "set {}", self.0.name.value)?;
        if let Some(max) = &self.0.max_per_s {
            write!(f, " max {}/s", max.value)?;
        }
        if self.0.members.is_empty() {
            return f.write_str(" {}\n");
        }
        f.write_str(" {\n")?;
        for member in &self.0.members {
            writeln!(f, "  {}", Printed(member))?;
        }
        f.write_str("}\n")
    }
}

impl Display for Printed<&Member> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Member {
            source,
            except,
            with,
            sample,
            record,
            span: _,
        } = self.0;
        write!(f, "{}", Printed(source))?;
        for pattern in except {
            write!(f, " except {}", Printed(pattern))?;
        }
        write!(f, "{}", With(with.as_ref()))?;
        if let Some(sample) = sample {
            write!(f, " sample 1/{}", sample.value)?;
        }
        match record {
            None => Ok(()),
            Some(Columns::Nothing(_)) => f.write_str(" record nothing"),
            Some(Columns::List(columns)) => {
                f.write_str(" record ")?;
                separated(f, columns.iter().map(Printed))
            }
        }
    }
}

impl Display for Printed<&Column> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Column::Stack(stack) => write!(f, "{}", Printed(stack)),
            Column::Value { expr, name } => {
                write!(f, "{}", At(expr, Level::OR))?;
                name.iter().try_for_each(|name| write!(f, " as {}", name.value))
            }
        }
    }
}

impl Display for Printed<&Stack> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.user { "stack user" } else { "stack kernel" })
    }
}

impl Display for Printed<&EventSource> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            EventSource::Events { pattern, optional } => {
                write!(f, "{}{}", Printed(pattern), if *optional { "?" } else { "" })
            }
            EventSource::Span(name) => write!(f, "span {}", name.value),
        }
    }
}

impl Display for Printed<&Pattern> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.system, self.0.event)
    }
}

impl Display for Printed<&SpanItem> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "span {} {{", self.0.name.value)?;
        for (word, ends) in [("from", &self.0.from), ("to", &self.0.to)] {
            for End {
                pattern,
                optional,
                with,
                by,
                span: _,
            } in ends
            {
                let mark = if *optional { "?" } else { "" };
                writeln!(
                    f,
                    "  {word} {}{mark}{}{}",
                    Printed(pattern),
                    With(with.as_ref()),
                    By(by)
                )?;
            }
        }
        f.write_str("}\n")
    }
}

impl Display for Printed<&Buffer> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "buffer {} {{", self.0.name.value)?;
        for size in &self.0.sizes {
            write!(f, " size = {}", size_text(size.value))?;
        }
        for stream in &self.0.streams {
            write!(f, " mode = {}", if stream.value { "stream" } else { "overwrite" })?;
        }
        f.write_str(if self.0.sizes.is_empty() && self.0.streams.is_empty() {
            "}\n"
        } else {
            " }\n"
        })
    }
}

impl Display for Printed<&Rule> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "rule {} {{", self.0.name.value)?;
        for trigger in &self.0.triggers {
            writeln!(f, "  {}", Printed(trigger))?;
        }
        match &self.0.window {
            None => {}
            Some(Window::Repeated {
                times,
                in_ns,
                by,
                span: _,
            }) => {
                writeln!(f, "  repeated {} in {}{}", times.value, Time(in_ns), By(by))?;
            }
            Some(Window::Total {
                value,
                over,
                in_ns,
                by,
                span: _,
            }) => {
                let (value, over) = (At(value, Level::OR), At(over, Level::BITS));
                writeln!(f, "  total {value} over {over} in {}{}", Time(in_ns), By(by))?;
            }
        }
        if let Some(guard) = &self.0.guard {
            writeln!(f, "  while {}", At(guard, Level::OR))?;
        }
        for (at, action) in self.0.actions.iter().enumerate() {
            writeln!(
                f,
                "  {} {}",
                if at == 0 { "then" } else { "    " },
                Printed(action)
            )?;
        }
        match &self.0.limit {
            None => {}
            Some(Limit::Per {
                count,
                window_ns,
                by,
                span: _,
            }) => {
                writeln!(f, "  limit {} per {}{}", count.value, Time(window_ns), By(by))?;
            }
            Some(Limit::Once { by, span: _ }) => writeln!(f, "  once{}", By(by))?,
        }
        f.write_str("}\n")
    }
}

impl Display for Printed<&Trigger> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Trigger::Event {
                source,
                with,
                span: _,
            } => {
                write!(f, "when {}{}", Printed(source), With(with.as_ref()))
            }
            Trigger::Open {
                name,
                for_ns,
                with,
                span: _,
            } => {
                write!(
                    f,
                    "when span {} open for {}{}",
                    name.value,
                    Time(for_ns),
                    With(with.as_ref())
                )
            }
            Trigger::No {
                pattern,
                for_ns,
                span: _,
            } => {
                write!(f, "when no {} for {}", Printed(pattern), Time(for_ns))
            }
        }
    }
}

impl Display for Printed<&Action> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let lasting = |f: &mut Formatter<'_>, word: &str, time: &Option<Spanned<u64>>| {
            time.iter()
                .try_for_each(|time| write!(f, " {word} {}", Time(time)))
        };
        match &self.0.kind {
            ActionKind::Enable { sets, for_ns } => {
                write!(f, "enable {}", Names(sets))?;
                lasting(f, "for", for_ns)
            }
            ActionKind::Disable { sets } => write!(f, "disable {}", Names(sets)),
            ActionKind::Switch { buffer, for_ns } => {
                write!(f, "switch buffer {}", buffer.value)?;
                lasting(f, "for", for_ns)
            }
            ActionKind::Save { after_ns } => {
                f.write_str("save")?;
                lasting(f, "after", after_ns)
            }
            ActionKind::Notify { pieces } => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        NotifyPiece::Text(plain) => {
                            text.push_str(&plain.replace('{', "{{").replace('}', "}}"));
                        }
                        NotifyPiece::Value(value) => write!(text, "{{{}}}", At(value, Level::OR))?,
                    }
                }
                write!(f, "notify {}", Quoted(&text))
            }
            ActionKind::Count { name, by } => write!(f, "count {}{}", name.value, By(by)),
            ActionKind::Measure { name, value, by } => {
                write!(f, "measure {} = {}{}", name.value, At(value, Level::OR), By(by))
            }
            ActionKind::Stack(stack) => write!(f, "{}", Printed(stack)),
            ActionKind::Stop => f.write_str("stop"),
        }
    }
}

impl Display for Printed<&Test> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "test {} {{", Quoted(&self.0.title.value))?;
        for param in &self.0.params {
            writeln!(f, "  {}", Printed(param))?;
        }
        for Moment {
            at_ns,
            steps,
            span: _,
        } in &self.0.moments
        {
            if steps.is_empty() {
                writeln!(f, "  at {} {{}}", Time(at_ns))?;
                continue;
            }
            writeln!(f, "  at {} {{", Time(at_ns))?;
            for step in steps {
                writeln!(f, "    {}", Printed(step))?;
            }
            f.write_str("  }\n")?;
        }
        f.write_str("}\n")
    }
}

impl Display for Printed<&Step> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Step::Hit {
                pattern,
                values,
                span: _,
            } if values.is_empty() => write!(f, "{} {{}}", Printed(pattern)),
            Step::Hit {
                pattern,
                values,
                span: _,
            } => {
                write!(f, "{} {{ ", Printed(pattern))?;
                separated(f, values.iter().map(Printed))?;
                f.write_str(" }")
            }
            Step::Expect {
                negated,
                what,
                span: _,
            } => {
                write!(f, "expect {}", if *negated { "not " } else { "" })?;
                match what {
                    Expectation::Fired { rule, times } => {
                        write!(f, "fired {}", rule.value)?;
                        times
                            .iter()
                            .try_for_each(|times| write!(f, " {} times", times.value))
                    }
                    Expectation::Enabled(name) => write!(f, "enabled {}", name.value),
                    Expectation::Buffer(name) => write!(f, "buffer {}", name.value),
                    Expectation::Kept(name) => write!(f, "kept {}", name.value),
                    Expectation::Recorded(source) => write!(f, "recorded {}", Printed(source)),
                }
            }
        }
    }
}

impl Display for Printed<&(Name, Expr)> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.0.0.value, At(&self.0.1, Level::OR))
    }
}

/// `with EXPR`, with a blank before, where there is one.
struct With<'a>(Option<&'a Expr>);

impl Display for With<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|with| write!(f, " with {}", At(*with, Level::OR)))
    }
}

/// `by EXPR, …`, with a blank before, where there is one.
struct By<'a>(&'a [Expr]);

impl Display for By<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str(" by ")?;
        separated(f, self.0.iter().map(|key| At(key, Level::OR)))
    }
}

struct Names<'a>(&'a [Name]);

impl Display for Names<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        separated(f, self.0.iter().map(|name| &name.value))
    }
}

struct Time<'a>(&'a Spanned<u64>);

impl Display for Time<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&duration_text(self.0.value))
    }
}

/// Millionths as percent: 25,000 is `2.5`.
pub(crate) struct Percent(pub(crate) u64);

impl Display for Percent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = format!("{}.{:04}", self.0 / 10_000, self.0 % 10_000);
        f.write_str(digits.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A string with its quotes and escapes.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for ch in self.0.chars() {
            match ch {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '\t' => f.write_str("\\t")?,
                other => f.write_char(other)?,
            }
        }
        f.write_char('"')
    }
}

fn separated(f: &mut Formatter<'_>, parts: impl IntoIterator<Item = impl Display>) -> fmt::Result {
    for (at, part) in parts.into_iter().enumerate() {
        write!(f, "{}{part}", if at == 0 { "" } else { ", " })?;
    }
    Ok(())
}
