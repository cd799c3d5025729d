//! What each operator takes, and what it gives.
//!
//! In: operands, typed. Out: a typed expression, folded where all is known.
//!
//! The rules, of which each has its own error: nothing converts by itself; arithmetic is of integers, and of durations
//! where that means something; order is of integers or of durations; an integer is only compared with one whose sign is
//! read the same way, and with a constant that it can hold.

use super::expr::{Typer, ast_text, describe, is_constant, show};
use super::fold;
use super::membership::syscall_argument;
use crate::ast::{self, BinaryOp, CompareOp, ExprKind};
use crate::diagnostic::Diagnostic;
use crate::eval::{self, LONGEST_TEXT};
use crate::plan::{Expr, Load, Node};
use crate::schema::Type;
use crate::source::Span;

/// An operand as written and as typed.
pub(super) type Operand<'a> = (&'a ast::Expr, Expr);

impl<'a> Typer<'a> {
    /// Arithmetic and bit operators.
    pub(super) fn binary(
        &mut self,
        op: BinaryOp,
        (left_ast, left): Operand<'a>,
        (right_ast, right): Operand<'a>,
        span: Span,
    ) -> Option<Expr> {
        use BinaryOp::{Add, Divide, Multiply, Subtract};
        let signed = match op {
            // A mask has no sign of its own: `flags & ~0xff` is as signed as `flags` is.
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor if is_constant(&left) != is_constant(&right) => {
                fold::is_signed(if is_constant(&left) { right.ty } else { left.ty })
            }
            _ => fold::is_signed(left.ty) || fold::is_signed(right.ty),
        };
        let ty = match (left.ty, op, right.ty) {
            (Type::Int { .. }, _, Type::Int { .. }) => Type::Int { bits: 64, signed },
            (Type::Duration, Add | Subtract, Type::Duration) => Type::Duration,
            (Type::Duration, Divide, Type::Duration) => Type::U64,
            (Type::Duration, Multiply | Divide, Type::Int { .. }) => Type::Duration,
            (Type::Int { .. }, Multiply, Type::Duration) => Type::Duration,
            _ => {
                let message = format!(
                    "`{}` does not take {} and {}",
                    op.symbol(),
                    describe(left.ty),
                    describe(right.ty)
                );
                let error = Diagnostic::error("E203", span, message).label(format!(
                    "{} is {}",
                    show(left_ast),
                    describe(left.ty)
                ));
                self.found.push(with_conversion_help(
                    error,
                    (left_ast, left.ty),
                    (right_ast, right.ty),
                ));
                return None;
            }
        };
        match (fold::number_of(&left), fold::number_of(&right)) {
            (Some(left), Some(right)) if matches!(ty, Type::Int { .. }) => {
                return Some(fold::integer(fold::arithmetic(op, left, right), span));
            }
            (Some(left), Some(right)) => {
                let bits = eval::arithmetic(op, signed, fold::bits(left), fold::bits(right));
                return Some(fold::duration(bits, span));
            }
            _ => {}
        }
        Some(Expr {
            node: Node::Binary {
                op,
                signed,
                left: Box::new(left),
                right: Box::new(right),
            },
            ty,
            span,
        })
    }

    /// `==`, `!=`, `<` and the others.
    pub(super) fn comparison(
        &mut self,
        op: CompareOp,
        left_ast: &'a ast::Expr,
        right_ast: &'a ast::Expr,
        span: Span,
    ) -> Option<Expr> {
        for (call, other) in [(left_ast, right_ast), (right_ast, left_ast)] {
            if let Some(argument) = syscall_argument(call) {
                return self.syscall_is(op, call, argument, other, span);
            }
        }
        let left = self.operand(left_ast, right_ast);
        let right = self.operand(right_ast, left_ast);
        let (left, right) = (left?, right?);
        let is_order = !matches!(op, CompareOp::Equal | CompareOp::NotEqual);
        match (left.ty, right.ty) {
            (Type::Int { .. }, Type::Int { .. }) => {
                self.integers_compared(op, (left_ast, left), (right_ast, right), span)
            }
            (Type::Duration, Type::Duration) => Some(compared(op, false, left, right, span)),
            (Type::Bool, Type::Bool) if !is_order => Some(compared(op, false, left, right, span)),
            (Type::Text { .. }, Type::Text { .. }) if !is_order => {
                self.texts_compared(op, (left_ast, left), (right_ast, right), span)
            }
            (a, b) if std::mem::discriminant(&a) == std::mem::discriminant(&b) => {
                let message = format!(
                    "`{}` does not compare {} with {}",
                    op.symbol(),
                    describe(a),
                    describe(b)
                );
                let error = Diagnostic::error("E203", span, message);
                self.found.push(if is_order {
                    error.help("`<`, `<=`, `>` and `>=` compare integers or durations")
                } else {
                    error.help("compare one element: `name[0]`")
                });
                None
            }
            (a, b) => {
                self.found.push(mismatch((left_ast, a), (right_ast, b), span));
                None
            }
        }
    }

    fn integers_compared(
        &mut self,
        op: CompareOp,
        (left_ast, left): Operand<'a>,
        (right_ast, right): Operand<'a>,
        span: Span,
    ) -> Option<Expr> {
        if let (Some(a), Some(b)) = (fold::number_of(&left), fold::number_of(&right)) {
            return Some(fold::truth(fold::compare(op, a, b), span));
        }
        let signed = self.sign_of_comparison((left_ast, &left), (right_ast, &right), span)?;
        let (left_ty, right_ty) = (left.ty, right.ty);
        let left = self.fitted(left, (right_ast, right_ty, &right.node), left_ast.span)?;
        let right = self.fitted(right, (left_ast, left_ty, &left.node), right_ast.span)?;
        Some(compared(op, signed, left, right, span))
    }

    /// Whether two integers are compared as signed ones: if either is. An error where one is signed and the other may be
    /// too large for that. A constant's fit is another matter, see `fitted`.
    pub(super) fn sign_of_comparison(
        &mut self,
        left: (&ast::Expr, &Expr),
        right: (&ast::Expr, &Expr),
        span: Span,
    ) -> Option<bool> {
        let constant = is_constant(left.1) || is_constant(right.1);
        for ((signed_ast, signed), (wide_ast, wide)) in [(left, right), (right, left)] {
            if !constant && fold::is_signed(signed.ty) && fold::may_exceed_signed(wide) {
                let message = format!(
                    "{} is signed and {} is unsigned with 64 bits: which is larger depends on how they are read",
                    show(signed_ast),
                    show(wide_ast)
                );
                self.found.push(
                    Diagnostic::error("E204", span, message)
                        .help(format!(
                            "where it is less than 2^63, say so: `{} & 0x7fffffffffffffff`",
                            ast_text(wide_ast)
                        ))
                        .help("or compare each with a constant"),
                );
                return None;
            }
        }
        Some(fold::is_signed(left.1.ty) || fold::is_signed(right.1.ty))
    }

    /// A constant beside a value: given the value's type, or refused where the value can never equal it. Anything else
    /// passes as it is.
    pub(super) fn fitted(
        &mut self,
        constant: Expr,
        beside: (&ast::Expr, Type, &Node),
        span: Span,
    ) -> Option<Expr> {
        let (other_ast, other_ty, other_node) = beside;
        let Some(number) = fold::number_of(&constant) else {
            return Some(constant);
        };
        let Some((least, most)) = fold::range(other_ty) else {
            return Some(constant);
        };
        // What arithmetic gives is 64 bits that wrap, and a negative constant is compared with them as signed ones.
        let is_computed = !matches!(other_node, Node::Load(_));
        let fits = (least..=most).contains(&number)
            || (is_computed && (i128::from(i64::MIN)..0).contains(&number) && !fold::is_signed(other_ty));
        if fits {
            let ty = if number < 0 && is_computed {
                Type::I64
            } else {
                other_ty
            };
            return Some(fold::as_type(constant, ty));
        }
        let name = ast_text(other_ast);
        let error = Diagnostic::error(
            "E205",
            span,
            format!("`{name}` can never be {number}: it holds {least} to {most}"),
        );
        // The same bits, read as the field is.
        let reread = match other_ty {
            Type::Int { bits: width, signed }
                if number >> width <= 0 && number >= -(1_i128 << (width - 1)) =>
            {
                let low = number & ((1_i128 << width) - 1);
                Some(if signed && low >> (width - 1) == 1 {
                    low - (1_i128 << width)
                } else {
                    low
                })
            }
            _ => None,
        };
        self.found.push(match reread.filter(|reread| *reread != number) {
            Some(reread) if reread < 0 => {
                error.help(format!("with the sign that the field has, that is `{reread}`"))
            }
            Some(reread) => error.help(format!(
                "without a sign, as the field has none, that is `{reread:#x}`"
            )),
            None => error,
        });
        None
    }

    fn texts_compared(
        &mut self,
        op: CompareOp,
        (left_ast, left): Operand<'a>,
        (right_ast, right): Operand<'a>,
        span: Span,
    ) -> Option<Expr> {
        let negated = op == CompareOp::NotEqual;
        match (known_text(&left), known_text(&right)) {
            (Some(a), Some(b)) => return Some(fold::truth((a == b) != negated, span)),
            (Some(text), None) => self.text_fits(text, left_ast.span, (right_ast, right.ty))?,
            (None, Some(text)) => self.text_fits(text, right_ast.span, (left_ast, left.ty))?,
            (None, None) => {}
        }
        Some(Expr {
            node: Node::TextEqual {
                left: Box::new(left),
                right: Box::new(right),
                negated,
            },
            ty: Type::Bool,
            span,
        })
    }

    /// Whether a text field has room for that constant and its NUL.
    pub(super) fn text_fits(
        &mut self,
        text: &[u8],
        span: Span,
        (field, ty): (&ast::Expr, Type),
    ) -> Option<()> {
        let Type::Text { capacity } = ty else {
            return Some(());
        };
        let most = usize::from(capacity).saturating_sub(1).min(LONGEST_TEXT);
        if text.len() <= most {
            return Some(());
        }
        let message = format!(
            "{} holds at most {most} bytes, and this text has {}",
            show(field),
            text.len()
        );
        let kept = String::from_utf8_lossy(text.get(..most).unwrap_or_default()).into_owned();
        self.found.push(
            Diagnostic::error("E206", span, message)
                .help(format!("the kernel cuts what is longer: `{kept:?}`")),
        );
        None
    }
}

/// A comparison of two values, folded where both are known.
pub(super) fn compared(op: CompareOp, signed: bool, left: Expr, right: Expr, span: Span) -> Expr {
    let node = match (&left.node, &right.node) {
        (Node::Int(a), Node::Int(b)) => Node::Bool(eval::compare(op, signed, *a, *b)),
        (Node::Bool(a), Node::Bool(b)) => Node::Bool((a == b) == (op == CompareOp::Equal)),
        _ => Node::Compare {
            op,
            signed,
            left: Box::new(left),
            right: Box::new(right),
        },
    };
    Expr {
        node,
        ty: Type::Bool,
        span,
    }
}

/// A text that is known now: a constant, or the name of the event.
pub(super) fn known_text(expr: &Expr) -> Option<&[u8]> {
    match &expr.node {
        Node::Text(text) => Some(text),
        Node::Load(Load::EventName(name)) => Some(name.as_bytes()),
        _ => None,
    }
}

/// Two values of different types are compared.
pub(super) fn mismatch(left: (&ast::Expr, Type), right: (&ast::Expr, Type), span: Span) -> Diagnostic {
    let message = format!(
        "{} is {}, and {} is {}",
        show(left.0),
        describe(left.1),
        show(right.0),
        describe(right.1)
    );
    with_conversion_help(Diagnostic::error("E201", span, message), left, right)
}

/// How to write it instead, where there is a way.
fn with_conversion_help(
    error: Diagnostic,
    left: (&ast::Expr, Type),
    right: (&ast::Expr, Type),
) -> Diagnostic {
    for (one, other) in [(left, right), (right, left)] {
        match (one.1, other.1) {
            (Type::Int { .. }, Type::Duration) if matches!(one.0.kind, ExprKind::Int(_)) => {
                return error.help(format!(
                    "a duration has a unit: `{0}ns`, `{0}us`, `{0}ms`",
                    ast_text(one.0)
                ));
            }
            (Type::Int { .. }, Type::Duration) => {
                return error.help(format!(
                    "say what the integer counts: `ns({0})`, `us({0})`, `ms({0})`",
                    ast_text(one.0)
                ));
            }
            (Type::Int { .. }, Type::Text { .. }) => return with_text_help(error, one),
            (Type::Bool, Type::Int { .. }) => {
                let text = ast_text(one.0);
                return error.help(format!("a condition stands alone: `{text}`, or `not {text}`"));
            }
            (Type::Array { .. }, _) => {
                return error.help(format!("take one element: `{}[0]`", ast_text(one.0)));
            }
            _ => {}
        }
    }
    error
}

/// An integer where text is wanted is most often a pointer to text.
pub(super) fn with_text_help(error: Diagnostic, (expr, ty): (&ast::Expr, Type)) -> Diagnostic {
    match (ty, &expr.kind) {
        (_, ExprKind::Int(_)) => error,
        (
            Type::Int {
                bits: 64,
                signed: false,
            },
            _,
        ) => error.help(format!(
            "where it points to text, read that: `str({})`",
            ast_text(expr)
        )),
        _ => error,
    }
}
