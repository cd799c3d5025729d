//! Params: the pack's constants, with the host's values in place of the file's.
//!
//! In: the `param` items in the pack's order, and what the host says. Out: [`Params`], which answers by name.
//!
//! A param may be made of those before it. A host's value is a constant of the rule language, of the same type.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use super::Sink;
use super::expr::{Typer, describe, is_constant};
use super::suggest::with_near;
use crate::ast;
use crate::diagnostic::{Diagnostic, Diagnostics};

use crate::parse::parse_expression;
use crate::plan::Expr;
use crate::schema::Schema;
use crate::source::Span;

/// The params that are known so far.
#[derive(Default)]
pub(crate) struct Params {
    known: HashMap<String, Param>,
    /// Those that come further down the pack, and where.
    later: HashMap<String, Span>,
}

struct Param {
    /// `None`: it is wrong, and that was said.
    value: Option<Expr>,
    span: Span,
    is_used: Cell<bool>,
}

impl Params {
    /// `None`: there is none of that name. `Some(None)`: its value is wrong, which was reported.
    pub(super) fn get(&self, name: &str) -> Option<Option<Expr>> {
        self.known.get(name).map(|param| {
            param.is_used.set(true);
            param.value.clone()
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        // In order, so that of two names that are equally near always the same is suggested.
        let mut names: Vec<&str> = self.known.keys().map(String::as_str).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// What nothing has asked for.
    pub(super) fn unused(&self) -> Vec<(&str, Span)> {
        let unused = self.known.iter().filter(|(_, param)| !param.is_used.get());
        unused.map(|(name, param)| (name.as_str(), param.span)).collect()
    }

    /// Where a param is defined that comes further down.
    pub(super) fn defined_later(&self, name: &str) -> Option<Span> {
        self.later.get(name).copied()
    }

    /// A name of which something was said already, so that its uses are not wrong as well.
    pub(super) fn poison(&mut self, name: &str) {
        self.known.entry(name.to_owned()).or_insert(Param {
            value: None,
            span: Span::default(),
            is_used: Cell::new(true),
        });
    }
}

/// Computes the params.
pub(super) fn params(
    items: &[&ast::Param],
    poisoned: impl IntoIterator<Item = String>,
    host: &BTreeMap<String, String>,
    schema: &dyn Schema,
    diagnostics: &mut Sink,
) -> Params {
    let mut params = Params::default();
    for name in poisoned {
        params.poison(&name);
    }
    for item in items {
        params
            .later
            .entry(item.name.value.clone())
            .or_insert(item.name.span);
    }
    for item in items {
        let name = &item.name.value;
        if params.known.contains_key(name) {
            continue;
        }
        if diagnostics.is_full() {
            params.poison(name);
            continue;
        }
        let mut value = constant(&item.value, &params, schema, diagnostics);
        if let Some(text) = host.get(name) {
            value = from_host(item, value.as_ref(), text, schema, diagnostics);
        }
        let param = Param {
            value,
            span: item.name.span,
            is_used: Cell::new(false),
        };
        params.later.remove(name);
        params.known.insert(name.clone(), param);
    }
    for name in host.keys().filter(|name| !params.known.contains_key(*name)) {
        let mut error = Diagnostic::error(
            "E109",
            Span::default(),
            format!("the host sets param `{name}`, which this pack does not have"),
        );
        // Nothing in the pack's text is the place.
        error.labels.clear();
        diagnostics.push(with_near(error, name, params.names()));
    }
    params
}

fn constant(expr: &ast::Expr, params: &Params, schema: &dyn Schema, diagnostics: &mut Sink) -> Option<Expr> {
    let mut typer = Typer::new(schema, params, None);
    let value = typer.constant(expr, None);
    diagnostics.extend(typer.found);
    value
}

/// The host's value, if it is one that can stand in the file's place.
fn from_host(
    item: &ast::Param,
    value: Option<&Expr>,
    text: &str,
    schema: &dyn Schema,
    diagnostics: &mut Sink,
) -> Option<Expr> {
    let name = &item.name.value;
    let span = item.name.span;
    let mut wrong = Diagnostics::default();
    let tree = parse_expression(0, text, &mut wrong);
    let none = Params::default();
    let mut typer = Typer::new(schema, &none, None);
    let host = tree
        .as_ref()
        .and_then(|tree| typer.value(tree))
        .filter(is_constant);
    let shown: String = text.chars().take(60).collect();
    let Some(host) = host else {
        let message = format!("the host's value for param `{name}` is not a constant: `{shown}`");
        let mut error = Diagnostic::error("E213", span, message);
        if let Some(first) = wrong.list.first().or(typer.found.first()) {
            error = error.help(first.message.clone());
        }
        diagnostics.push(error.help("write it as in a rule file: `250ms`, `0x10`, `\"text\"`; a shell wants quotes around text with its quotes"));
        return None;
    };
    let value = value?;
    if std::mem::discriminant(&host.ty) != std::mem::discriminant(&value.ty) {
        let message = format!(
            "the host's value for param `{name}` is {}, and the file's is {}: `{shown}`",
            describe(host.ty),
            describe(value.ty)
        );
        diagnostics.push(Diagnostic::error("E213", span, message));
        return None;
    }
    Some(Expr { span, ..host })
}
