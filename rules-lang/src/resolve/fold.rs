//! Constants: what they are worth, what a type can hold, and operators whose operands are all known.
//!
//! In: typed expressions. Out: the same, or one constant in their place.
//!
//! A constant integer is a number, not bits: -5 and 18446744073709551611 are two constants. It is worth from -2^63 to
//! 2^64-1; what an operator takes beyond wraps, to a signed value where an operand is negative. What its bits become
//! beside a field is settled by `operators.rs`.
//!
//! INVARIANT: folding agrees with [`eval`]: it calls its functions, or computes the exact result that those have in
//! 64 bits.

use crate::ast::{BinaryOp, CompareOp};
use crate::eval;
use crate::plan::{Expr, Node};
use crate::schema::Type;
use crate::source::Span;

/// The number that a constant integer or duration is worth.
pub(super) fn number_of(expr: &Expr) -> Option<i128> {
    match (&expr.node, expr.ty) {
        (Node::Int(bits), ty) => Some(number(*bits, is_signed(ty))),
        _ => None,
    }
}

/// The number that these 64 bits stand for.
pub(super) fn number(bits: u64, signed: bool) -> i128 {
    if signed {
        i128::from(bits.cast_signed())
    } else {
        i128::from(bits)
    }
}

/// The low 64 bits of a number.
pub(super) fn bits(number: i128) -> u64 {
    let low = number & i128::from(u64::MAX);
    u64::try_from(low).unwrap_or(0)
}

/// A constant integer: unsigned unless it is negative, so that it makes nothing signed that is not.
pub(super) fn integer(number: i128, span: Span) -> Expr {
    let ty = if number < 0 { Type::I64 } else { Type::U64 };
    Expr {
        node: Node::Int(bits(number)),
        ty,
        span,
    }
}

/// A constant truth.
pub(super) fn truth(value: bool, span: Span) -> Expr {
    Expr {
        node: Node::Bool(value),
        ty: Type::Bool,
        span,
    }
}

/// A constant duration.
pub(super) fn duration(nanoseconds: u64, span: Span) -> Expr {
    Expr {
        node: Node::Int(nanoseconds),
        ty: Type::Duration,
        span,
    }
}

/// Whether an integer of that type is signed.
pub(super) fn is_signed(ty: Type) -> bool {
    matches!(ty, Type::Int { signed: true, .. })
}

/// The least and the greatest value of an integer type.
pub(super) fn range(ty: Type) -> Option<(i128, i128)> {
    match ty {
        Type::Int { bits, signed: true } => Some((-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1)),
        Type::Int { bits, signed: false } => Some((0, (1_i128 << bits) - 1)),
        _ => None,
    }
}

/// A constant with its type made that of the value beside it, once its fit has been tested: the bits are the same.
pub(super) fn as_type(constant: Expr, ty: Type) -> Expr {
    match constant.node {
        Node::Int(_) => Expr { ty, ..constant },
        _ => constant,
    }
}

/// `left op right` of two constant integers.
pub(super) fn arithmetic(op: BinaryOp, left: i128, right: i128) -> i128 {
    let signed = left < 0 || right < 0;
    let exact = match op {
        BinaryOp::Add => Some(left + right),
        BinaryOp::Subtract => Some(left - right),
        // Neither is more than 64 bits and a sign, so the product may be a bit too long for 128.
        BinaryOp::Multiply => left.checked_mul(right),
        _ => None,
    };
    match exact {
        Some(exact) if (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&exact) => exact,
        _ => number(eval::arithmetic(op, signed, bits(left), bits(right)), signed),
    }
}

/// `left op right` of two numbers.
pub(super) fn compare(op: CompareOp, left: i128, right: i128) -> bool {
    match op {
        CompareOp::Equal => left == right,
        CompareOp::NotEqual => left != right,
        CompareOp::Less => left < right,
        CompareOp::LessEqual => left <= right,
        CompareOp::Greater => left > right,
        CompareOp::GreaterEqual => left >= right,
    }
}

/// True where an unsigned value may be 2^63 or more, so that no signed comparison of it makes sense. Arithmetic that
/// leaves the uppermost bit clear is known: masks, shifts to the right, quotients.
pub(super) fn may_exceed_signed(expr: &Expr) -> bool {
    let at_least = |expr: &Expr, least: i128| number_of(expr).is_some_and(|number| number >= least);
    if let Node::Int(bits) = expr.node {
        // A mask such as `~0xff` keeps the uppermost bit, whatever its sign.
        return bits.cast_signed() < 0;
    }
    if !matches!(
        expr.ty,
        Type::Int {
            bits: 64,
            signed: false
        }
    ) {
        return false;
    }
    match &expr.node {
        Node::Binary { op, left, right, .. } => match op {
            BinaryOp::And => may_exceed_signed(left) && may_exceed_signed(right),
            BinaryOp::ShiftRight if matches!(right.node, Node::Int(amount) if amount & 63 != 0) => false,
            BinaryOp::Divide if at_least(right, 2) => false,
            _ => may_exceed_signed(left) || may_exceed_signed(right),
        },
        Node::Negate(of) | Node::Complement(of) => may_exceed_signed(of),
        _ => true,
    }
}

/// `not x`, without a second `not`.
pub(super) fn not(of: Expr, span: Span) -> Expr {
    let node = match of.node {
        Node::Bool(value) => Node::Bool(!value),
        Node::Not(inner) => inner.node,
        node => Node::Not(Box::new(Expr { node, ..of })),
    };
    Expr {
        node,
        ty: Type::Bool,
        span,
    }
}

/// `and` or `or` of many, as a tree whose depth is the logarithm of their number: chains of a thousand are written by
/// programs, and who walks a plan recurses. The order of evaluation is that of the list.
pub(super) fn all_or_any(all: bool, mut terms: Vec<Expr>) -> Option<Expr> {
    // From the first constant that decides on, the rest is never looked at; constants that decide nothing vanish.
    if let Some(decides) = terms.iter().position(|t| t.node == Node::Bool(!all)) {
        terms.truncate(decides + 1);
        // What is before it has no effect either, unless it were to decide first, the same way.
        terms.drain(..decides);
        return terms.pop();
    }
    let last = terms.last().cloned();
    terms.retain(|t| t.node != Node::Bool(all));
    balanced(all, terms).or(last)
}

fn balanced(all: bool, mut terms: Vec<Expr>) -> Option<Expr> {
    if terms.len() < 2 {
        return terms.pop();
    }
    let right = terms.split_off(terms.len() / 2);
    let left = Box::new(balanced(all, terms)?);
    let right = Box::new(balanced(all, right)?);
    let span = left.span.to(right.span);
    let node = if all {
        Node::And(left, right)
    } else {
        Node::Or(left, right)
    };
    Some(Expr {
        node,
        ty: Type::Bool,
        span,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_numbers() {
        assert_eq!(arithmetic(BinaryOp::Subtract, 1, 2), -1);
        assert_eq!(arithmetic(BinaryOp::Add, i128::from(u64::MAX), 1), 0);
        assert_eq!(arithmetic(BinaryOp::Divide, -7, 2), -3);
        assert_eq!(arithmetic(BinaryOp::Divide, 7, 0), 0);
        assert_eq!(arithmetic(BinaryOp::Remainder, 7, 0), 7);
        assert_eq!(arithmetic(BinaryOp::ShiftRight, -8, 1), -4);
        assert_eq!(arithmetic(BinaryOp::ShiftLeft, 1, 63), 1 << 63);
        assert_eq!(
            arithmetic(BinaryOp::Multiply, i128::from(u64::MAX), i128::from(u64::MAX)),
            1
        );
        assert_eq!(
            arithmetic(BinaryOp::Multiply, i128::from(i64::MIN), i128::from(u64::MAX)),
            i128::from(i64::MIN)
        );
    }

    #[test]
    fn a_chain_becomes_a_shallow_tree() {
        fn depth(expr: &Expr) -> usize {
            match &expr.node {
                Node::And(a, b) | Node::Or(a, b) => 1 + depth(a).max(depth(b)),
                _ => 0,
            }
        }
        let term = Expr {
            node: Node::Load(crate::plan::Load::Cpu),
            ty: Type::Bool,
            span: Span::default(),
        };
        let tree = all_or_any(false, vec![term; 1000]);
        assert_eq!(tree.as_ref().map(depth), Some(10));
        assert_eq!(
            all_or_any(true, vec![truth(true, Span::default())]).map(|e| e.node),
            Some(Node::Bool(true))
        );
    }

    proptest::proptest! {
        #[test]
        fn folding_agrees_with_evaluation(a: u64, b: u64, a_signed: bool, b_signed: bool, at in 0..10_usize) {
            let op = BinaryOp::ALL[at];
            let (left, right) = (number(a, a_signed), number(b, b_signed));
            let signed = left < 0 || right < 0;
            proptest::prop_assert_eq!(bits(arithmetic(op, left, right)), eval::arithmetic(op, signed, a, b));
        }
    }
}
