//! `in { … }`, `in … .. …`, `like`, and the names of system calls: whether a value is one of many.
//!
//! In: operands as written. Out: a typed condition, folded where all is known. What a list holds is constant; a range
//! includes both of its ends.

use super::expr::{Typer, ast_text, describe, is_constant, show};
use super::fold;
use super::operators::{Operand, compared, known_text, mismatch, with_text_help};
use crate::ast::{self, CompareOp, ExprKind};
use crate::diagnostic::Diagnostic;
use crate::eval;
use crate::nearest::nearest;
use crate::plan::{Expr, Node};
use crate::schema::Type;
use crate::source::{Span, Spanned};

/// The most literals in one `in { … }`.
const MOST_LITERALS: usize = 4096;

impl<'a> Typer<'a> {
    /// `value [not] in { … }`
    pub(super) fn in_list(
        &mut self,
        value_ast: &'a ast::Expr,
        negated: bool,
        list: &'a [ast::Expr],
        span: Span,
    ) -> Option<Expr> {
        if list.len() > MOST_LITERALS {
            let message = format!(
                "{} literals in one `in {{ … }}`, and {MOST_LITERALS} is the most",
                list.len()
            );
            self.found.push(Diagnostic::error("E304", span, message));
            return None;
        }
        if let Some(argument) = syscall_argument(value_ast) {
            return self.syscall_in(argument, negated, list, span);
        }
        let value = self.value(value_ast);
        let items: Vec<Option<Expr>> = list
            .iter()
            .map(|item| self.constant(item, Some(value_ast)))
            .collect();
        let value = value?;
        match value.ty {
            Type::Int { .. } | Type::Duration => {
                self.in_integers((value_ast, value), negated, list.iter().zip(items), span)
            }
            Type::Text { .. } => self.in_texts((value_ast, value), negated, list.iter().zip(items), span),
            ty => {
                let message = format!(
                    "`in {{ … }}` looks for integers, durations or text, not for {}",
                    describe(ty)
                );
                self.found
                    .push(Diagnostic::error("E203", value_ast.span, message));
                None
            }
        }
    }

    fn in_integers(
        &mut self,
        (value_ast, value): Operand<'a>,
        negated: bool,
        items: impl Iterator<Item = (&'a ast::Expr, Option<Expr>)>,
        span: Span,
    ) -> Option<Expr> {
        let mut sound = true;
        let mut found = Vec::new();
        for (item_ast, item) in items {
            let fitted = match item {
                None => None,
                Some(item) if std::mem::discriminant(&item.ty) != std::mem::discriminant(&value.ty) => {
                    self.found.push(mismatch(
                        (value_ast, value.ty),
                        (item_ast, item.ty),
                        item_ast.span,
                    ));
                    None
                }
                // A constant is compared as the number it is, so nothing has to fit.
                Some(item) if is_constant(&value) => Some(item),
                Some(item) => self.fitted(item, (value_ast, value.ty, &value.node), item_ast.span),
            };
            match fitted {
                Some(item) => found.push(item),
                None => sound = false,
            }
        }
        if !sound {
            return None;
        }
        if let Some(number) = fold::number_of(&value) {
            let inside = found.iter().any(|item| fold::number_of(item) == Some(number));
            return Some(fold::truth(inside != negated, span));
        }
        let mut list: Vec<u64> = found
            .iter()
            .filter_map(|item| match item.node {
                Node::Int(bits) => Some(bits),
                _ => None,
            })
            .collect();
        list.sort_unstable();
        list.dedup();
        Some(Expr {
            node: Node::InInts {
                value: Box::new(value),
                list,
                negated,
            },
            ty: Type::Bool,
            span,
        })
    }

    fn in_texts(
        &mut self,
        (value_ast, value): Operand<'a>,
        negated: bool,
        items: impl Iterator<Item = (&'a ast::Expr, Option<Expr>)>,
        span: Span,
    ) -> Option<Expr> {
        let mut sound = true;
        let mut list = Vec::new();
        for (item_ast, item) in items {
            match item {
                None => sound = false,
                Some(Expr {
                    node: Node::Text(text),
                    ..
                }) => {
                    let fits = is_constant(&value)
                        || self
                            .text_fits(&text, item_ast.span, (value_ast, value.ty))
                            .is_some();
                    sound &= fits;
                    list.push(text);
                }
                Some(item) => {
                    self.found.push(mismatch(
                        (value_ast, value.ty),
                        (item_ast, item.ty),
                        item_ast.span,
                    ));
                    sound = false;
                }
            }
        }
        if !sound {
            return None;
        }
        list.sort_unstable();
        list.dedup();
        if let Some(text) = known_text(&value) {
            let inside = list.iter().any(|item| item == text);
            return Some(fold::truth(inside != negated, span));
        }
        Some(Expr {
            node: Node::InTexts {
                value: Box::new(value),
                list,
                negated,
            },
            ty: Type::Bool,
            span,
        })
    }

    /// `value [not] in low .. high`, both ends included.
    pub(super) fn in_range(
        &mut self,
        value_ast: &'a ast::Expr,
        negated: bool,
        low_ast: &'a ast::Expr,
        high_ast: Option<&'a ast::Expr>,
        span: Span,
    ) -> Option<Expr> {
        let Some(high_ast) = high_ast else {
            return self.in_network(low_ast, span);
        };
        let value = self.operand(value_ast, low_ast);
        let low = self.operand(low_ast, value_ast);
        let high = self.operand(high_ast, value_ast);
        let (value, low, high) = (value?, low?, high?);
        for (end_ast, end) in [(low_ast, &low), (high_ast, &high)] {
            if std::mem::discriminant(&end.ty) != std::mem::discriminant(&value.ty) {
                self.found
                    .push(mismatch((value_ast, value.ty), (end_ast, end.ty), end_ast.span));
                return None;
            }
        }
        if !matches!(value.ty, Type::Int { .. } | Type::Duration) {
            let message = format!(
                "`in … .. …` is of integers or durations, not of {}",
                describe(value.ty)
            );
            self.found
                .push(Diagnostic::error("E203", value_ast.span, message));
            return None;
        }
        if let (Some(a), Some(b)) = (fold::number_of(&low), fold::number_of(&high)) {
            if a > b {
                let range = low_ast.span.to(high_ast.span);
                self.found.push(
                    Diagnostic::error(
                        "E209",
                        range,
                        "nothing lies in this range: its low end comes first",
                    )
                    .help(format!(
                        "write `{} .. {}`",
                        ast_text(high_ast),
                        ast_text(low_ast)
                    )),
                );
                return None;
            }
            if let Some(number) = fold::number_of(&value) {
                return Some(fold::truth((a..=b).contains(&number) != negated, span));
            }
        }
        let mut signed = false;
        if matches!(value.ty, Type::Int { .. }) {
            signed |= self.sign_of_comparison((value_ast, &value), (low_ast, &low), low_ast.span)?;
            signed |= self.sign_of_comparison((value_ast, &value), (high_ast, &high), high_ast.span)?;
        }
        let beside = |value: &Expr| (value.ty, value.node.clone());
        let (ty, node) = beside(&value);
        let low = self.fitted(low, (value_ast, ty, &node), low_ast.span)?;
        let high = self.fitted(high, (value_ast, ty, &node), high_ast.span)?;
        Some(Expr {
            node: Node::InRange {
                value: Box::new(value),
                low: Box::new(low),
                high: Box::new(high),
                signed,
                negated,
            },
            ty: Type::Bool,
            span,
        })
    }

    /// `value in ip("…")`, the only use of `in` without braces and without `..`.
    fn in_network(&mut self, network: &'a ast::Expr, span: Span) -> Option<Expr> {
        if matches!(network.kind, ExprKind::Call(..)) {
            // Every function but `ip` gives something that has no parts.
            self.value(network)?;
        }
        let text = ast_text(network);
        self.found.push(
            Diagnostic::error(
                "E214",
                span,
                format!("`in` needs a list or a range, and `{text}` is neither"),
            )
            .help(format!(
                "write `in {{ {text} }}`, `in {text} .. {text}`, or `== {text}`"
            )),
        );
        None
    }

    /// `value [not] like "…"`
    pub(super) fn like(
        &mut self,
        value_ast: &'a ast::Expr,
        negated: bool,
        pattern: &'a Spanned<String>,
        span: Span,
    ) -> Option<Expr> {
        let value = self.value(value_ast);
        let text = pattern.value.as_str();
        let (open_start, rest) = text.strip_prefix('*').map_or((false, text), |rest| (true, rest));
        let (open_end, body) = rest
            .strip_suffix('*')
            .map_or((open_start && rest.is_empty(), rest), |rest| (true, rest));
        if body.contains('*') {
            self.found.push(
                Diagnostic::error(
                    "E207",
                    pattern.span,
                    "`*` stands only at the start or at the end of a pattern",
                )
                .help("two conditions say more: `name like \"a*\" and name like \"*b\"`"),
            );
            return None;
        }
        let body = self.literal_text(body, pattern.span)?;
        let value = value?;
        if !matches!(value.ty, Type::Text { .. }) {
            let message = format!(
                "`like` needs text, and {} is {}",
                show(value_ast),
                describe(value.ty)
            );
            let error = Diagnostic::error("E203", value_ast.span, message);
            self.found.push(with_text_help(error, (value_ast, value.ty)));
            return None;
        }
        let Node::Text(body) = body.node else { return None };
        if let Some(text) = known_text(&value) {
            return Some(fold::truth(
                eval::like(text, open_start, &body, open_end) != negated,
                span,
            ));
        }
        self.text_fits(&body, pattern.span, (value_ast, value.ty))?;
        Some(Expr {
            node: Node::Like {
                value: Box::new(value),
                open_start,
                body,
                open_end,
                negated,
            },
            ty: Type::Bool,
            span,
        })
    }

    /// `syscall(id) == "openat"`
    pub(super) fn syscall_is(
        &mut self,
        op: CompareOp,
        call: &'a ast::Expr,
        argument: &'a ast::Expr,
        name: &'a ast::Expr,
        span: Span,
    ) -> Option<Expr> {
        if !matches!(op, CompareOp::Equal | CompareOp::NotEqual) {
            let message = format!(
                "a system call's name has no order: `{}` does not compare it",
                op.symbol()
            );
            self.found
                .push(Diagnostic::error("E203", span, message).label(show(call)));
            return None;
        }
        self.syscall_in(
            argument,
            op == CompareOp::NotEqual,
            std::slice::from_ref(name),
            span,
        )
    }

    /// `syscall(id) in { "read", "write" }`: a comparison of numbers, since the names are known now.
    pub(super) fn syscall_in(
        &mut self,
        argument: &'a ast::Expr,
        negated: bool,
        names: &'a [ast::Expr],
        span: Span,
    ) -> Option<Expr> {
        let value = self.integer_argument("syscall", argument);
        let numbers: Vec<Option<u64>> = names.iter().map(|name| self.syscall_number(name)).collect();
        let value = value?;
        let mut list: Vec<u64> = numbers.into_iter().collect::<Option<_>>()?;
        list.sort_unstable();
        list.dedup();
        let node = match (list.as_slice(), fold::number_of(&value)) {
            (_, Some(number)) => Node::Bool(list.iter().any(|n| i128::from(*n) == number) != negated),
            ([one], None) => {
                let constant = Expr {
                    node: Node::Int(*one),
                    ty: value.ty,
                    span,
                };
                let op = if negated {
                    CompareOp::NotEqual
                } else {
                    CompareOp::Equal
                };
                return Some(compared(op, fold::is_signed(value.ty), value, constant, span));
            }
            (_, None) => Node::InInts {
                value: Box::new(value),
                list,
                negated,
            },
        };
        Some(Expr {
            node,
            ty: Type::Bool,
            span,
        })
    }

    fn syscall_number(&mut self, name: &'a ast::Expr) -> Option<u64> {
        let value = self.constant(name, None)?;
        let Node::Text(text) = &value.node else {
            let message = format!(
                "a system call's name is text, and {} is {}",
                show(name),
                describe(value.ty)
            );
            self.found.push(
                Diagnostic::error("E201", name.span, message)
                    .help("write it in quotes: `syscall(id) == \"openat\"`"),
            );
            return None;
        };
        let text = String::from_utf8_lossy(text).into_owned();
        if let Some(number) = self.schema.syscall_number(&text) {
            return Some(u64::from(number));
        }
        let error = Diagnostic::error(
            "E113",
            name.span,
            format!("there is no system call `{text}` here"),
        );
        self.found
            .push(match nearest(&text, self.schema.syscall_names()) {
                Some(near) => error.help(format!("did you mean `\"{near}\"`?")),
                None => error,
            });
        None
    }
}

/// The `x` of `syscall(x)`.
pub(super) fn syscall_argument(expr: &ast::Expr) -> Option<&ast::Expr> {
    match &expr.kind {
        ExprKind::Call(name, arguments) if name.value == "syscall" => match arguments.as_slice() {
            [argument] => Some(argument),
            _ => None,
        },
        _ => None,
    }
}
