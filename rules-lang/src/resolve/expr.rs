//! Expressions: syntax tree → typed expression, for one event.
//!
//! In: an [`ast::Expr`] and a [`Typer`] that knows the event, the params and the kernel. Out: a [`plan::Expr`], or
//! nothing where something was wrong, which then lies in [`Typer::found`] or [`Typer::missing`].
//!
//! This file walks the tree; names are looked up in `names.rs`, functions in `call.rs`, and what an operator takes and
//! gives is in `operators.rs`.
//!
//! INVARIANT: `None` means that something was reported: whoever gets it says nothing more, so one mistake is one error.

use super::fold;
use super::params::Params;
use crate::ast::{self, BinaryOp, ExprKind, UnaryOp};
use crate::diagnostic::Diagnostic;
use crate::eval::LONGEST_TEXT;
use crate::plan::{Expr, Node};
use crate::schema::{Event, Schema, Type};
use crate::source::Span;

/// Types expressions for one event, or for none, where only constants are allowed.
pub(crate) struct Typer<'a> {
    pub(super) schema: &'a dyn Schema,
    pub(super) params: &'a Params,
    pub(super) event: Option<&'a Event>,
    /// Errors and warnings, but for those in `missing`.
    pub(crate) found: Vec<Diagnostic>,
    /// Names that this event does not have. Behind a glob that only means that the event does not match.
    pub(crate) missing: Vec<Diagnostic>,
    /// Behind a glob: nobody will read what `missing` says.
    pub(super) is_glob: bool,
    /// What stands on the other side of the operators around the expression being typed, the innermost last: a symbol
    /// is first looked up among those of the field that it is compared with.
    pub(super) beside: Vec<&'a ast::Expr>,
}

impl<'a> Typer<'a> {
    pub(crate) fn new(schema: &'a dyn Schema, params: &'a Params, event: Option<&'a Event>) -> Self {
        Typer {
            schema,
            params,
            event,
            found: Vec::new(),
            missing: Vec::new(),
            is_glob: false,
            beside: Vec::new(),
        }
    }

    /// Whether errors need no help: nobody will read them, or enough of them have some. To find the nearest of all names
    /// takes time, and a file may hold very many wrong ones.
    pub(super) fn is_brief(&self) -> bool {
        self.is_glob || self.found.len() + self.missing.len() >= super::MOST_SHOWN
    }

    /// A condition: `with EXPR`.
    pub(crate) fn condition(&mut self, expr: &'a ast::Expr) -> Option<Expr> {
        let typed = self.value(expr)?;
        if typed.ty == Type::Bool {
            return Some(typed);
        }
        let written = show(expr);
        let error = Diagnostic::error(
            "E202",
            expr.span,
            format!(
                "a condition is needed here, and {written} is {}",
                describe(typed.ty)
            ),
        );
        self.found.push(match against(typed.ty) {
            Some(zero) => error.help(format!("write `{} != {zero}`", ast_text(expr))),
            None => error.help("a condition compares: `==`, `!=`, `<`, `in`, `like`"),
        });
        None
    }

    /// Any value.
    pub(crate) fn value(&mut self, expr: &'a ast::Expr) -> Option<Expr> {
        let span = expr.span;
        match &expr.kind {
            ExprKind::Int(value) | ExprKind::Size(value) => Some(fold::integer(i128::from(*value), span)),
            ExprKind::Duration(nanoseconds) => Some(fold::duration(*nanoseconds, span)),
            ExprKind::Text(text) => self.literal_text(text, span),
            ExprKind::Bool(value) => Some(fold::truth(*value, span)),
            ExprKind::Name(_) | ExprKind::Member(..) | ExprKind::Index(..) => {
                self.path(expr).map(|found| found.value)
            }
            ExprKind::Call(name, arguments) => self.call(name, arguments, span),
            ExprKind::Unary(op, of) => self.unary(*op, of, span),
            ExprKind::Binary(..) => self.chain(expr),
            ExprKind::Compare(op, left, right) => self.comparison(*op, left, right, span),
            ExprKind::InList { value, negated, list } => self.in_list(value, *negated, list, span),
            ExprKind::InRange {
                value,
                negated,
                low,
                high,
            } => self.in_range(value, *negated, low, high.as_deref(), span),
            ExprKind::Like {
                value,
                negated,
                pattern,
            } => self.like(value, *negated, pattern, span),
            ExprKind::And(..) | ExprKind::Or(..) => self.all_or_any(expr),
        }
    }

    /// A constant text.
    pub(super) fn literal_text(&mut self, text: &str, span: Span) -> Option<Expr> {
        // Text ends at its first NUL, here as in the kernel.
        let bytes = text.split('\0').next().unwrap_or_default().as_bytes().to_vec();
        match u16::try_from(bytes.len() + 1) {
            Ok(capacity) if bytes.len() <= LONGEST_TEXT => Some(Expr {
                node: Node::Text(bytes),
                ty: Type::Text { capacity },
                span,
            }),
            _ => {
                let message = format!("text of {} bytes, and {LONGEST_TEXT} is the most", bytes.len());
                self.found
                    .push(Diagnostic::error("E310", span, message).help(format!(
                        "the kernel's text is cut after {LONGEST_TEXT} bytes, so nothing can equal it"
                    )));
                None
            }
        }
    }

    fn unary(&mut self, op: UnaryOp, of: &'a ast::Expr, span: Span) -> Option<Expr> {
        let typed = self.value(of)?;
        match (op, typed.ty) {
            (UnaryOp::Not, Type::Bool) => Some(fold::not(typed, span)),
            (UnaryOp::Not, ty) => {
                let error = Diagnostic::error(
                    "E202",
                    of.span,
                    format!("`not` needs a condition, and {} is {}", show(of), describe(ty)),
                );
                self.found.push(match against(ty) {
                    Some(zero) => error.help(format!("write `{} == {zero}`", ast_text(of))),
                    None => error,
                });
                None
            }
            (UnaryOp::Negate | UnaryOp::Complement, Type::Int { .. }) => Some(negated(op, typed, span)),
            (UnaryOp::Negate | UnaryOp::Complement, ty) => {
                let symbol = if op == UnaryOp::Negate { "-" } else { "~" };
                let message = format!(
                    "`{symbol}` needs an integer, and {} is {}",
                    show(of),
                    describe(ty)
                );
                self.found.push(Diagnostic::error("E203", span, message));
                None
            }
        }
    }

    /// A chain of binary operators. They group from left to right, so the left side may be as deep as the chain is
    /// long: it is walked in a loop.
    fn chain(&mut self, expr: &'a ast::Expr) -> Option<Expr> {
        let mut links: Vec<(BinaryOp, &'a ast::Expr, &'a ast::Expr, Span)> = Vec::new();
        let mut first = expr;
        while let ExprKind::Binary(op, left, right) = &first.kind {
            links.push((*op, left, right, first.span));
            first = left;
        }
        let outer = self.beside.len();
        self.beside.extend(links.iter().map(|(_, _, right, _)| *right));
        let mut value = self.value(first);
        self.beside.truncate(outer);
        for (op, left, right, span) in links.into_iter().rev() {
            self.beside.push(left);
            let right_value = self.value(right);
            self.beside.truncate(outer);
            // Both sides are looked at before either fails, so that the errors of both are seen.
            value = match (value, right_value) {
                (Some(left_value), Some(right_value)) => {
                    self.binary(op, (left, left_value), (right, right_value), span)
                }
                _ => None,
            };
        }
        value
    }

    /// `a and b and c`, or with `or`.
    fn all_or_any(&mut self, expr: &'a ast::Expr) -> Option<Expr> {
        let all = matches!(expr.kind, ExprKind::And(..));
        let mut terms = Vec::new();
        let mut rest = expr;
        loop {
            match &rest.kind {
                ExprKind::And(left, right) if all => {
                    terms.push(&**right);
                    rest = left;
                }
                ExprKind::Or(left, right) if !all => {
                    terms.push(&**right);
                    rest = left;
                }
                _ => break,
            }
        }
        terms.push(rest);
        let count = terms.len();
        let typed: Vec<Expr> = terms
            .into_iter()
            .rev()
            .filter_map(|term| self.condition(term))
            .collect();
        if typed.len() < count {
            return None;
        }
        fold::all_or_any(all, typed)
    }

    /// Types one side of an operator, with the other side known to it.
    pub(super) fn operand(&mut self, of: &'a ast::Expr, other: &'a ast::Expr) -> Option<Expr> {
        let outer = self.beside.len();
        self.beside.push(other);
        let value = self.value(of);
        self.beside.truncate(outer);
        value
    }

    /// A constant, such as an item of a list or a param's value.
    pub(super) fn constant(&mut self, expr: &'a ast::Expr, beside: Option<&'a ast::Expr>) -> Option<Expr> {
        let value = match beside {
            Some(other) => self.operand(expr, other),
            None => self.value(expr),
        }?;
        if is_constant(&value) {
            return Some(value);
        }
        let message = format!("{} is not a constant", show(expr));
        self.found.push(
            Diagnostic::error("E208", expr.span, message)
                .help("a constant is a literal, a param, a symbol, or made of them by operators"),
        );
        None
    }
}

fn negated(op: UnaryOp, of: Expr, span: Span) -> Expr {
    if let Some(number) = fold::number_of(&of) {
        let zero_minus = |number| fold::arithmetic(BinaryOp::Subtract, 0, number);
        // In two's complement `~x` is `-x - 1`.
        let number = match op {
            UnaryOp::Complement => fold::arithmetic(BinaryOp::Subtract, zero_minus(number), 1),
            UnaryOp::Negate | UnaryOp::Not => zero_minus(number),
        };
        return fold::integer(number, span);
    }
    // A negated unsigned value is meant to be less than zero.
    let signed = op == UnaryOp::Negate || fold::is_signed(of.ty);
    let node = match op {
        UnaryOp::Complement => Node::Complement(Box::new(of)),
        UnaryOp::Negate | UnaryOp::Not => Node::Negate(Box::new(of)),
    };
    Expr {
        node,
        ty: Type::Int { bits: 64, signed },
        span,
    }
}

/// Whether its value is known.
pub(super) fn is_constant(expr: &Expr) -> bool {
    matches!(expr.node, Node::Int(_) | Node::Text(_) | Node::Bool(_))
}

/// The expression in its canonical form.
pub(super) fn ast_text(expr: &ast::Expr) -> String {
    const LONGEST: usize = 60;
    let text = crate::print::print_expression(expr);
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// The expression in backticks.
pub(super) fn show(expr: &ast::Expr) -> String {
    format!("`{}`", ast_text(expr))
}

/// A type in words.
pub(super) fn describe(ty: Type) -> String {
    match ty {
        Type::Int { .. } => "an integer".to_owned(),
        Type::Bool => "a condition".to_owned(),
        Type::Text { .. } => "text".to_owned(),
        Type::Duration => "a duration".to_owned(),
        Type::Array { count, .. } => format!("an array of {count} integers"),
        Type::Sequence { .. } => "an array whose length varies".to_owned(),
    }
}

/// What a value of that type may be compared with to make a condition.
fn against(ty: Type) -> Option<&'static str> {
    match ty {
        Type::Int { .. } => Some("0"),
        Type::Duration => Some("0ns"),
        Type::Text { .. } => Some("\"\""),
        Type::Bool | Type::Array { .. } | Type::Sequence { .. } => None,
    }
}
