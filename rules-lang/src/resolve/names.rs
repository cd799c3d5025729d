//! Names: which value of the hit, which param or which symbol is meant.
//!
//! In: a name, or a path such as `args.prev.se.vruntime` or `event.dev`. Out: a typed load or a constant.
//!
//! A bare name is, in this order: a field of the event, a param of the pack, `cpu` or `time`, a symbol (`symbol.rs`).

use super::events::forbidden;
use super::expr::{Typer, ast_text, describe};
use super::suggest::{with_known, with_list, with_near};
use crate::ast::{self, ExprKind};
use crate::diagnostic::Diagnostic;
use crate::plan::{Expr, Load, Node, TaskValue};
use crate::schema::{Event, Field, Hop, Path, PathStep, Place, Recipe, Type};
use crate::source::{Name, Span};

/// A value, and whether people read it in hexadecimal.
pub(super) struct Found {
    pub(super) value: Expr,
    pub(super) hex: bool,
}

impl Found {
    pub(super) fn plain(value: Expr) -> Self {
        Found { value, hex: false }
    }
}

/// A part of a path behind its root.
pub(super) enum Step<'a> {
    Name(&'a Name),
    Index(u64, Span),
}

impl Step<'_> {
    fn span(&self) -> Span {
        match self {
            Step::Name(name) => name.span,
            Step::Index(_, span) => *span,
        }
    }
}

impl<'a> Typer<'a> {
    /// A name or a path.
    pub(super) fn path(&mut self, expr: &'a ast::Expr) -> Option<Found> {
        let (root, root_span, steps) = match taken_apart(expr) {
            Ok(parts) => parts,
            Err(base) => {
                let message = format!("`{}` has no parts", ast_text(base));
                self.found.push(
                    Diagnostic::error("E116", base.span, message)
                        .help("only `args`, `event`, `task`, `hit` and `param` have parts"),
                );
                return None;
            }
        };
        match (root, steps.as_slice()) {
            (name, []) => self.bare(name, expr.span),
            ("args", [Step::Name(_), ..]) => self.argument(&steps, expr.span),
            ("event", [Step::Name(field), rest @ ..]) => {
                let event = self.event_or_constant("event.…", expr.span)?;
                match event.field(&field.value) {
                    Some(known) => self.field(event, known, rest, expr.span),
                    None => {
                        self.no_such_field(event, &field.value, field.span);
                        None
                    }
                }
            }
            ("task", [Step::Name(what)]) => self.task(what, expr.span).map(Found::plain),
            ("hit", [Step::Name(what)]) => self.hit(what, expr.span).map(Found::plain),
            ("param", [Step::Name(name)]) => self.param(name).map(Found::plain),
            (root, rest) => {
                if let Some(event) = self.event
                    && let Some(field) = event.field(root)
                {
                    return self.field(event, field, rest, expr.span);
                }
                self.no_such_path(root, root_span, rest);
                None
            }
        }
    }

    fn bare(&mut self, name: &str, span: Span) -> Option<Found> {
        if let Some(event) = self.event
            && let Some(field) = event.field(name)
        {
            return self.field(event, field, &[], span);
        }
        if let Some(known) = self.params.get(name) {
            return known.map(|value| Found::plain(Expr { span, ..value }));
        }
        let load = match name {
            "cpu" => Some((Load::Cpu, Type::U32)),
            "time" => Some((Load::Time, Type::Duration)),
            _ => None,
        };
        if let (Some((load, ty)), Some(_)) = (load, self.event) {
            return Some(Found::plain(loaded(load, ty, span)));
        }
        self.symbol(name, span)
    }

    /// A field, or an element of one.
    fn field(&mut self, event: &'a Event, field: &'a Field, rest: &[Step<'a>], span: Span) -> Option<Found> {
        let name = &field.name;
        if self.schema.forbids((&event.system, &event.name), Some(name)) {
            self.found
                .push(forbidden(&format!("{}.{name}", event.full_name()), span));
            return None;
        }
        let load = match rest {
            [] => Load::Field {
                name: name.clone(),
                place: field.place,
                recipe: field.recipe.clone(),
            },
            [Step::Index(index, at)] => return self.element(field, *index, *at, span),
            [first, ..] => {
                let message = format!(
                    "`{name}` is a field of `{}`, and a field has no parts",
                    event.full_name()
                );
                let error = Diagnostic::error("E116", first.span(), message);
                self.found.push(match event.arguments.first() {
                    Some(argument) => error.help(format!(
                        "a path through the kernel's types begins at an argument: `args.{}`",
                        argument.name
                    )),
                    None => error,
                });
                return None;
            }
        };
        if field.place.is_none() && field.recipe.is_none() {
            self.unreadable(name, &field.declared, span);
            return None;
        }
        Some(Found {
            value: loaded(load, field.ty, span),
            hex: field.hex,
        })
    }

    fn unreadable(&mut self, name: &str, declared: &str, span: Span) {
        let message = format!("`{name}` cannot be read: its type is `{declared}`");
        self.found.push(Diagnostic::error("E114", span, message));
    }

    /// `args[2]` of a field that is an array.
    fn element(&mut self, field: &Field, index: u64, index_span: Span, span: Span) -> Option<Found> {
        let name = &field.name;
        let Type::Array { bits, signed, count } = field.ty else {
            let message = format!("`{name}` is {}, and has no element {index}", describe(field.ty));
            let error = Diagnostic::error("E210", index_span, message);
            self.found.push(match field.ty {
                Type::Sequence { .. } => error.help("it can only be recorded as a whole"),
                _ => error.help(format!("write `{name}`")),
            });
            return None;
        };
        let index = match u16::try_from(index) {
            Ok(index) if index < count => index,
            _ => {
                let message =
                    format!("`{name}` has {count} elements, and the first is 0: there is no element {index}");
                self.found.push(Diagnostic::error("E210", index_span, message));
                return None;
            }
        };
        let bytes = index.saturating_mul(u16::from(bits / 8));
        let place = match field.place {
            Some(Place::At(offset)) => offset.checked_add(bytes).map(Place::At),
            _ => None,
        };
        let recipe = match &field.recipe {
            Some(Recipe::Path(path)) => further(path, bytes).map(Recipe::Path),
            Some(Recipe::AnySyscallArguments) => u8::try_from(index).ok().map(Recipe::AnySyscallArgument),
            _ => None,
        };
        if place.is_none() && recipe.is_none() {
            self.unreadable(&format!("{name}[{index}]"), &field.declared, span);
            return None;
        }
        let load = Load::Field {
            name: format!("{name}[{index}]"),
            place,
            recipe,
        };
        Some(Found {
            value: loaded(load, Type::Int { bits, signed }, span),
            hex: field.hex,
        })
    }

    /// `args.prev.se.vruntime`
    fn argument(&mut self, steps: &[Step<'a>], span: Span) -> Option<Found> {
        let event = self.event_or_constant("args.…", span)?;
        let path = path_steps(steps);
        let written = format!("args{}", path.iter().map(step_text).collect::<String>());
        if self.schema.forbids((&event.system, &event.name), Some(&written)) {
            self.found
                .push(forbidden(&format!("{}.{written}", event.full_name()), span));
            return None;
        }
        match self.schema.argument(event, &path) {
            Ok(found) => {
                let load = Load::Field {
                    name: written,
                    place: None,
                    recipe: Some(found.recipe),
                };
                Some(Found {
                    value: loaded(load, found.ty, span),
                    hex: found.hex,
                })
            }
            Err(wrong) => {
                let at = steps.get(wrong.step).map_or(span, Step::span);
                let mut error = Diagnostic::error("E111", at, wrong.message);
                if let Some(PathStep::Name(name)) = path.get(wrong.step) {
                    error = with_known(
                        error,
                        name,
                        wrong.known.iter().map(String::as_str),
                        "known here are",
                    );
                }
                if event.arguments.is_empty() {
                    error = with_list(error, "", fields_of(event), "its fields are");
                }
                self.missing.push(error);
                None
            }
        }
    }

    /// `task.pid`
    fn task(&mut self, what: &Name, span: Span) -> Option<Expr> {
        const KNOWN: [&str; 7] = ["pid", "tid", "comm", "uid", "gid", "ppid", "traced"];
        let event = self.event_or_constant("task.…", span)?;
        let (value, ty) = match what.value.as_str() {
            "pid" => (TaskValue::Pid, Type::U32),
            "tid" => (TaskValue::Tid, Type::U32),
            "uid" => (TaskValue::Uid, Type::U32),
            "gid" => (TaskValue::Gid, Type::U32),
            "traced" => (TaskValue::Traced, Type::Bool),
            "comm" => (TaskValue::Comm(self.task_path(&["comm"], what)?.0), Type::COMM),
            "ppid" => {
                let (path, ty) = self.task_path(&["real_parent", "tgid"], what)?;
                (TaskValue::Ppid(path), ty)
            }
            other => {
                let error = Diagnostic::error("E112", what.span, format!("`task` has no `{other}`"));
                self.found.push(with_known(error, other, KNOWN, "it has"));
                return None;
            }
        };
        if event.in_interrupt {
            let message = format!(
                "`{}` happens in interrupts: `task` is whoever was interrupted",
                event.full_name()
            );
            self.found.push(Diagnostic::warning("W508", span, message));
        }
        Some(loaded(Load::Task(value), ty, span))
    }

    fn task_path(&mut self, members: &[&str], what: &Name) -> Option<(Path, Type)> {
        match self.schema.task_member(members) {
            Some(crate::schema::Resolved {
                recipe: Recipe::Path(path),
                ty,
                ..
            }) => Some((path, ty)),
            _ => {
                let message = format!("this kernel does not say where `task.{}` is", what.value);
                self.found.push(Diagnostic::error("E114", what.span, message));
                None
            }
        }
    }

    /// `hit.cpu`
    fn hit(&mut self, what: &Name, span: Span) -> Option<Expr> {
        let event = self.event_or_constant("hit.…", span)?;
        match what.value.as_str() {
            "cpu" => Some(loaded(Load::Cpu, Type::U32, span)),
            "time" => Some(loaded(Load::Time, Type::Duration, span)),
            "event" => Some(loaded(Load::EventName(event.full_name()), Type::TEXT, span)),
            other => {
                let error = Diagnostic::error("E112", what.span, format!("`hit` has no `{other}`"));
                self.found
                    .push(with_known(error, other, ["cpu", "time", "event"], "it has"));
                None
            }
        }
    }

    /// `param.slow`
    fn param(&mut self, name: &Name) -> Option<Expr> {
        match self.params.get(&name.value) {
            Some(value) => value.map(|value| Expr {
                span: name.span,
                ..value
            }),
            None => {
                let error =
                    Diagnostic::error("E109", name.span, format!("there is no param `{}`", name.value));
                self.found
                    .push(with_near(error, &name.value, self.params.names()));
                None
            }
        }
    }

    /// The event, or an error where only constants are allowed.
    fn event_or_constant(&mut self, what: &str, span: Span) -> Option<&'a Event> {
        if self.event.is_none() {
            let message = format!("`{what}` is a value of a hit, and a constant is needed here");
            self.found.push(Diagnostic::error("E208", span, message));
        }
        self.event
    }

    fn no_such_field(&mut self, event: &Event, name: &str, span: Span) {
        if self.is_brief() {
            self.missing.push(Diagnostic::error("E102", span, String::new()));
            return;
        }
        let error = Diagnostic::error(
            "E102",
            span,
            format!("`{}` has no field `{name}`", event.full_name()),
        );
        self.missing
            .push(with_known(error, name, fields_of(event), "its fields are"));
    }

    fn no_such_path(&mut self, root: &str, span: Span, rest: &[Step<'_>]) {
        if self.is_brief() {
            self.missing.push(Diagnostic::error("E116", span, String::new()));
            return;
        }
        let message = match root {
            "from" => "`from` belongs to spans, and this is an event".to_owned(),
            "task" | "hit" | "param" | "event" => {
                format!("`{root}` has no such parts: it is written `{root}.NAME`")
            }
            _ => format!("`{root}` is not a field, and has no parts"),
        };
        let mut error = Diagnostic::error("E116", span, message);
        let is_argument = self
            .event
            .is_some_and(|e| e.arguments.iter().any(|a| a.name == root));
        if is_argument && matches!(rest.first(), Some(Step::Name(_))) {
            error = error.help(format!("`{root}` is an argument: write `args.{root}`"));
        } else if let Some(event) = self.event {
            let mut known = vec!["args", "event", "task", "hit", "param"];
            known.extend(fields_of(event));
            error = with_near(error, root, known);
        }
        self.missing.push(error);
    }
}

pub(super) fn fields_of(event: &Event) -> impl Iterator<Item = &str> {
    event.fields.iter().map(|field| field.name.as_str())
}

/// The root's name and place, and the steps behind it; or the expression that has no name at its root.
pub(super) fn taken_apart(expr: &ast::Expr) -> Result<(&str, Span, Vec<Step<'_>>), &ast::Expr> {
    let mut steps = Vec::new();
    let mut base = expr;
    loop {
        match &base.kind {
            ExprKind::Member(of, name) => {
                steps.push(Step::Name(name));
                base = of;
            }
            ExprKind::Index(of, index) => {
                steps.push(Step::Index(index.value, index.span));
                base = of;
            }
            ExprKind::Name(root) => {
                steps.reverse();
                return Ok((root, base.span, steps));
            }
            _ => return Err(base),
        }
    }
}

pub(super) fn path_steps(steps: &[Step<'_>]) -> Vec<PathStep> {
    let step = |step: &Step<'_>| match step {
        Step::Name(name) => PathStep::Name(name.value.clone()),
        Step::Index(index, _) => PathStep::Index(*index),
    };
    steps.iter().map(step).collect()
}

fn step_text(step: &PathStep) -> String {
    match step {
        PathStep::Name(name) => format!(".{name}"),
        PathStep::Index(index) => format!("[{index}]"),
    }
}

/// The same path, ending so many bytes further on.
fn further(path: &Path, bytes: u16) -> Option<Path> {
    let (last, before) = path.hops.split_last()?;
    let offset = last.offset.checked_add(u32::from(bytes))?;
    let mut hops = before.to_vec();
    hops.push(Hop { offset, ..*last });
    Some(Path { hops, ..path.clone() })
}

pub(super) fn loaded(load: Load, ty: Type, span: Span) -> Expr {
    Expr {
        node: Node::Load(load),
        ty,
        span,
    }
}
