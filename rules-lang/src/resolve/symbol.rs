//! Symbols: the kernel's names for numbers.
//!
//! In: a name that is neither a field nor a param. Out: a constant, or what is wrong with the name.
//!
//! A symbol is looked up, in this order: in the print format of the field it is compared with, in that field's enum, in
//! the kernel's user API, among error numbers, among signals, in all enums of the kernel. The first step that knows it
//! decides; two different values at one step are an error. The field it is compared with is the nearest one on the other
//! side of an operator: in `flags & O_DIRECT != 0` that is `flags`.

use super::expr::{Typer, ast_text};
use super::fold;
use super::names::{Found, Step, fields_of, path_steps, taken_apart};
use super::suggest::{with_list, with_near};
use crate::ast::{self, ExprKind};
use crate::diagnostic::Diagnostic;
use crate::nearest::nearest;
use crate::schema::Symbols;
use crate::source::Span;
use crate::symbols;

/// Where a value is from, and the value.
type Values = Vec<(String, i64)>;

impl Typer<'_> {
    /// A constant of the kernel.
    pub(super) fn symbol(&mut self, name: &str, span: Span) -> Option<Found> {
        for (step, values) in self.symbol_steps(name) {
            let Some((first_owner, first)) = values.first() else {
                continue;
            };
            if let Some((owner, other)) = values.iter().find(|(_, value)| value != first) {
                let message = format!("`{name}` has two values {step}: {first} and {other}");
                let error = Diagnostic::error("E108", span, message);
                self.found.push(if first_owner == owner {
                    error.help("write the number that is meant")
                } else {
                    error.help(format!(
                        "`{first_owner}` says {first}, `{owner}` says {other}; write the number that is meant"
                    ))
                });
                return None;
            }
            return Some(Found::plain(fold::integer(i128::from(*first), span)));
        }
        self.unknown_name(name, span);
        None
    }

    /// The steps of a look-up, each with where it looks and what it finds: (where the value is from, the value).
    fn symbol_steps(&self, name: &str) -> Vec<(&'static str, Values)> {
        let of = |symbols: &Symbols, owner: &str| {
            let same = symbols.iter().filter(|(known, _)| known == name);
            same.map(|(_, value)| (owner.to_owned(), *value))
                .collect::<Values>()
        };
        let mut steps = Vec::new();
        for other in self.beside.iter().rev() {
            if let Some((owner, symbols, enumerators)) = self.symbols_of(other) {
                steps.push(("in its field's print format", of(&symbols, &owner)));
                steps.push(("in its field's enum", of(&enumerators, &owner)));
            }
        }
        let one = |value: Option<i64>| value.map(|value| (name.to_owned(), value)).into_iter().collect();
        steps.push((
            "in the user API",
            one(symbols::lookup(self.schema.architecture(), name)),
        ));
        steps.push(("as an error", one(symbols::errno(name))));
        steps.push(("as a signal", one(symbols::signal(name))));
        if steps.iter().all(|(_, values)| values.is_empty()) {
            // The last step searches all of the kernel's types.
            steps.push(("in the kernel's enums", self.schema.enumerator(name)));
        }
        steps
    }

    /// The symbols of the first field that an expression names.
    fn symbols_of(&self, expr: &ast::Expr) -> Option<(String, Symbols, Symbols)> {
        let event = self.event?;
        let mut rest = vec![expr];
        while let Some(expr) = rest.pop() {
            match &expr.kind {
                ExprKind::Name(_) | ExprKind::Member(..) | ExprKind::Index(..) => {
                    let Ok((root, _, steps)) = taken_apart(expr) else {
                        continue;
                    };
                    let field = match (root, steps.as_slice()) {
                        ("args", [Step::Name(_), ..]) => {
                            let Ok(found) = self.schema.argument(event, &path_steps(&steps)) else {
                                continue;
                            };
                            return Some((ast_text(expr), Symbols::default(), found.enumerators));
                        }
                        ("event", [Step::Name(field), ..]) => event.field(&field.value),
                        (root, _) => event.field(root),
                    };
                    if let Some(field) = field {
                        return Some((
                            field.name.clone(),
                            field.symbols.clone(),
                            field.enumerators.clone(),
                        ));
                    }
                }
                ExprKind::Unary(_, of) => rest.push(of),
                ExprKind::Binary(_, left, right) | ExprKind::Compare(_, left, right) => {
                    rest.push(right);
                    rest.push(left);
                }
                ExprKind::Call(_, arguments) => rest.extend(arguments.iter().rev()),
                _ => {}
            }
        }
        None
    }

    fn unknown_name(&mut self, name: &str, span: Span) {
        if self.is_brief() {
            self.missing.push(Diagnostic::error("E103", span, String::new()));
            return;
        }
        if let Some(defined) = self.params.defined_later(name) {
            self.found.push(
                Diagnostic::error(
                    "E115",
                    span,
                    format!("param `{name}` is used before it is defined"),
                )
                .also(defined, "defined here")
                .help("a param may be made of those above it"),
            );
            return;
        }
        let Some(event) = self.event else {
            let error = Diagnostic::error(
                "E103",
                span,
                format!("`{name}` is neither a param nor a symbol of the kernel"),
            );
            let mut known: Vec<&str> = self.params.names().collect();
            known.extend(symbols::names().map(|name| -> &str { name }));
            self.found.push(with_near(error, name, known));
            return;
        };
        let full_name = event.full_name();
        if name == "duration" {
            let message = format!("`duration` belongs to spans, and `{full_name}` is an event");
            self.missing.push(
                Diagnostic::error("E116", span, message)
                    .help("a span is declared with `span NAME { from … to … }`"),
            );
            return;
        }
        let message = format!("`{name}` is neither a field of `{full_name}` nor a symbol of the kernel");
        let mut error = Diagnostic::error("E103", span, message);
        if matches!(name, "task" | "event" | "args" | "hit" | "param") {
            error = error.help(format!("`{name}` stands before a dot: `{name}.…`"));
        }
        if matches!(name, "pid" | "tid" | "comm" | "uid" | "gid" | "ppid") {
            error = error.help(format!("of the task that the event ran in it is `task.{name}`"));
        }
        let symbols: Vec<String> = self
            .beside
            .iter()
            .rev()
            .filter_map(|other| self.symbols_of(other))
            .flat_map(|(_, symbols, enumerators)| {
                symbols
                    .iter()
                    .chain(enumerators.iter())
                    .map(|(name, _)| name.clone())
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut known: Vec<&str> = fields_of(event).collect();
        known.extend(self.params.names());
        known.extend(["cpu", "time"]);
        known.extend(symbols.iter().map(String::as_str));
        known.extend(symbols::names().map(|name| -> &str { name }));
        let near = nearest(name, known);
        if let Some(near) = near {
            error = error.help(format!("did you mean `{near}`?"));
        }
        self.missing
            .push(with_list(error, name, fields_of(event), "its fields are"));
    }
}
