//! Columns: what a record holds, and what `notify` shows.
//!
//! In: `record …` or the values of a text, for one event. Out: named, typed columns, the names unique in the record.

use std::collections::HashMap;

use super::expr::{Typer, ast_text};
use super::not_yet;
use crate::ast::{self, ExprKind};
use crate::diagnostic::Diagnostic;
use crate::plan::{Column, Expr, Load};
use crate::print::print_expression;
use crate::schema::{Event, Type};
use crate::source::Span;

/// A condition is recorded as a byte.
const TRUTH: Type = Type::Int {
    bits: 8,
    signed: false,
};

/// The columns that are there, and for each that was written whether this event has it.
pub(super) struct Listed {
    pub(super) columns: Vec<Column>,
    pub(super) had: Vec<bool>,
}

impl<'a> Typer<'a> {
    /// The columns of `record`. Behind a glob those that the event does not have are left out. `None`: one is wrong.
    pub(super) fn columns(&mut self, list: &'a [ast::Column]) -> Option<Listed> {
        let mut listed = Listed {
            columns: Vec::new(),
            had: Vec::with_capacity(list.len()),
        };
        // What was written under each name.
        let mut written: HashMap<String, (Span, String)> = HashMap::new();
        let mut sound = true;
        let mut nameless = 0;
        for column in list {
            let (expr, given) = match column {
                ast::Column::Value { expr, name } => (expr, name.as_ref()),
                ast::Column::Stack(stack) => {
                    self.found.push(not_yet("stack", stack.span));
                    sound = false;
                    continue;
                }
            };
            let name = match (given, identifier(expr)) {
                (Some(given), _) => given.value.clone(),
                (None, Some(name)) => name,
                (None, None) => {
                    nameless += 1;
                    format!("value{nameless}")
                }
            };
            let missing_before = self.missing.len();
            let value = self.column_value(name, expr);
            listed.had.push(value.is_some());
            let Some(value) = value else {
                if self.is_glob && self.missing.len() > missing_before {
                    self.missing.truncate(missing_before);
                } else {
                    sound = false;
                }
                continue;
            };
            let text = print_expression(expr);
            match written.get(&value.name) {
                None => {
                    written.insert(value.name.clone(), (expr.span, text));
                    listed.columns.push(value);
                }
                Some((_, first)) if *first == text => {}
                Some((first, _)) => {
                    let message = format!("two columns of this record are called `{}`", value.name);
                    self.found.push(
                        Diagnostic::error("E403", expr.span, message)
                            .also(*first, "the first is this")
                            .help(format!(
                                "call one of them otherwise: `{} as NAME`",
                                ast_text(expr)
                            )),
                    );
                    sound = false;
                }
            }
        }
        sound.then_some(listed)
    }

    /// The value of one column.
    pub(super) fn column_value(&mut self, name: String, expr: &'a ast::Expr) -> Option<Column> {
        let (value, hex) = match &expr.kind {
            ExprKind::Name(_) | ExprKind::Member(..) | ExprKind::Index(..) => {
                self.path(expr).map(|found| (found.value, found.hex))
            }
            _ => self.value(expr).map(|value| (value, false)),
        }?;
        Some(Column {
            name,
            value: recordable(value),
            hex,
        })
    }
}

fn recordable(value: Expr) -> Expr {
    match value.ty {
        Type::Bool => Expr { ty: TRUTH, ..value },
        _ => value,
    }
}

/// The columns of a record with all fields. Fields that cannot be read are left out.
pub(super) fn all(event: &Event, span: Span) -> Vec<Column> {
    let readable = event
        .fields
        .iter()
        .filter(|f| f.place.is_some() || f.recipe.is_some());
    readable
        .map(|field| Column {
            name: field.name.clone(),
            value: recordable(super::names::loaded(
                Load::Field {
                    name: field.name.clone(),
                    place: field.place,
                    recipe: field.recipe.clone(),
                },
                field.ty,
                span,
            )),
            hex: field.hex,
        })
        .collect()
}

/// The name that a column has by itself: a field's own, a path with its dots as `_`, a function before its argument.
pub(super) fn identifier(expr: &ast::Expr) -> Option<String> {
    match &expr.kind {
        ExprKind::Name(name) => Some(name.clone()),
        // `event.` only says that a field is meant.
        ExprKind::Member(base, name) if matches!(&base.kind, ExprKind::Name(root) if root == "event") => {
            Some(name.value.clone())
        }
        ExprKind::Member(base, name) => Some(format!("{}_{}", identifier(base)?, name.value)),
        ExprKind::Index(base, index) => Some(format!("{}_{}", identifier(base)?, index.value)),
        ExprKind::Call(function, arguments) => match arguments.as_slice() {
            [argument] => Some(format!("{}_{}", function.value, identifier(argument)?)),
            _ => None,
        },
        _ => None,
    }
}
