//! Expressions and guards → rule text, with no more parentheses than their meaning needs.
//!
//! In: a tree, and how tightly it must bind at its place. Out: its text, in parentheses where it binds more loosely.

use std::fmt::{self, Display, Formatter, Write as _};

use super::{Quoted, separated};
use crate::ast::{Expr, ExprKind, Guard, UnaryOp};
use crate::parse::literal::{duration_text, size_text};

/// How tightly something binds: the higher, the tighter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Level(u8);

impl Level {
    pub(super) const OR: Level = Level(0);
    const AND: Level = Level(1);
    const NOT: Level = Level(2);
    const COMPARE: Level = Level(3);
    /// The loosest of `| ^ & << >> + - * / %`.
    pub(super) const BITS: Level = Level(4);
    const UNARY: Level = Level(10);
    const POSTFIX: Level = Level(11);

    fn tighter(self) -> Level {
        Level(self.0 + 1)
    }
}

/// Something at a place that takes what binds at least so tightly: looser things get parentheses.
pub(super) struct At<T>(pub(super) T, pub(super) Level);

impl Display for At<&Expr> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let At(expr, least) = *self;
        let own = level(expr, least);
        if own < least {
            return write!(f, "({})", At(expr, Level::OR));
        }
        let not = |negated: &bool| if *negated { "not " } else { "" };
        match &expr.kind {
            ExprKind::Int(value) => write!(f, "{value}"),
            ExprKind::Duration(nanoseconds) => f.write_str(&duration_text(*nanoseconds)),
            ExprKind::Size(bytes) => f.write_str(&size_text(*bytes)),
            ExprKind::Text(text) => write!(f, "{}", Quoted(text)),
            ExprKind::Bool(value) => write!(f, "{value}"),
            ExprKind::Name(name) => f.write_str(name),
            ExprKind::Member(base, name) => write!(f, "{}.{}", At(&**base, Level::POSTFIX), name.value),
            ExprKind::Index(base, index) => write!(f, "{}[{}]", At(&**base, Level::POSTFIX), index.value),
            ExprKind::Call(name, arguments) => {
                write!(f, "{}(", name.value)?;
                separated(f, arguments.iter().map(|each| At(each, Level::OR)))?;
                f.write_char(')')
            }
            ExprKind::Unary(operator, operand) => {
                let sign = match operator {
                    UnaryOp::Negate => "-",
                    UnaryOp::Complement => "~",
                    UnaryOp::Not if own == Level::NOT => "not ",
                    UnaryOp::Not => "!",
                };
                write!(f, "{sign}{}", At(&**operand, own))
            }
            ExprKind::Binary(operator, left, right) => {
                let (left, right) = (At(&**left, own), At(&**right, own.tighter()));
                write!(f, "{left} {} {right}", operator.symbol())
            }
            ExprKind::Compare(operator, left, right) => {
                let (left, right) = (At(&**left, Level::BITS), At(&**right, Level::BITS));
                write!(f, "{left} {} {right}", operator.symbol())
            }
            ExprKind::InList { value, negated, list } => {
                write!(f, "{} {}in {{ ", At(&**value, Level::BITS), not(negated))?;
                separated(f, list.iter().map(|each| At(each, Level::OR)))?;
                f.write_str(" }")
            }
            ExprKind::InRange {
                value,
                negated,
                low,
                high,
            } => {
                let (value, low) = (At(&**value, Level::BITS), At(&**low, Level::BITS));
                write!(f, "{value} {}in {low}", not(negated))?;
                high.iter()
                    .try_for_each(|high| write!(f, " .. {}", At(&**high, Level::BITS)))
            }
            ExprKind::Like {
                value,
                negated,
                pattern,
            } => {
                let value = At(&**value, Level::BITS);
                write!(f, "{value} {}like {}", not(negated), Quoted(&pattern.value))
            }
            ExprKind::And(left, right) => {
                write!(f, "{} and {}", At(&**left, Level::AND), At(&**right, Level::NOT))
            }
            ExprKind::Or(left, right) => {
                write!(f, "{} or {}", At(&**left, Level::OR), At(&**right, Level::AND))
            }
        }
    }
}

/// How tightly an expression binds at a place that takes at least `least`: a negation is written `not` or `!`.
fn level(expr: &Expr, least: Level) -> Level {
    match &expr.kind {
        ExprKind::Or(..) => Level::OR,
        ExprKind::And(..) => Level::AND,
        ExprKind::Unary(UnaryOp::Not, _) if least <= Level::NOT => Level::NOT,
        ExprKind::Unary(..) => Level::UNARY,
        ExprKind::Compare(..)
        | ExprKind::InList { .. }
        | ExprKind::InRange { .. }
        | ExprKind::Like { .. } => Level::COMPARE,
        ExprKind::Binary(operator, ..) => Level(Level::BITS.0 + operator.level()),
        _ => Level::POSTFIX,
    }
}

impl Display for At<&Guard> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let At(guard, least) = *self;
        let own = match guard {
            Guard::Or(..) => Level::OR,
            Guard::And(..) => Level::AND,
            Guard::Not(_) | Guard::Set(_) => Level::NOT,
        };
        if own < least {
            return write!(f, "({})", At(guard, Level::OR));
        }
        match guard {
            Guard::Set(name) => f.write_str(&name.value),
            Guard::Not(inner) => write!(f, "not {}", At(&**inner, Level::NOT)),
            Guard::And(left, right) => {
                write!(f, "{} and {}", At(&**left, Level::AND), At(&**right, Level::NOT))
            }
            Guard::Or(left, right) => {
                write!(f, "{} or {}", At(&**left, Level::OR), At(&**right, Level::AND))
            }
        }
    }
}
