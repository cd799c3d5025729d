//! Expressions and guards: pairs of the grammar → [`crate::ast::Expr`], [`crate::ast::Guard`].
//!
//! In: a pair that the grammar accepted. Out: its tree; `None` where something was wrong that the grammar cannot see,
//! which was then reported.
//!
//! INVARIANT: a tree is no deeper than the brackets and prefix operators of its text (which `split` bounds) and
//! [`MOST_OPERATORS`] together, so walking or dropping it needs little stack.

use pest::iterators::Pair;

use super::build::{Build, child, children};
use super::grammar::Rule;
use crate::ast::{BinaryOp, CompareOp, Expr, ExprKind, Guard, UnaryOp};
use crate::diagnostic::Diagnostic;
use crate::source::{Name, Span};

/// The most operators in one expression, but for comparisons. A chain of them is a tree as deep as it is long, and every
/// later stage walks it by recursion.
const MOST_OPERATORS: usize = 256;

impl Build<'_, '_, '_> {
    /// A whole expression.
    pub(super) fn expr(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        self.operators = 0;
        self.any(pair)
    }

    /// The expression that a clause holds: `with EXPR`.
    pub(super) fn inner_expr(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        self.expr(&child(pair, Rule::expr)?)
    }

    /// Counts operators. `None` once there are too many.
    fn operators(&mut self, more: usize, span: Span) -> Option<()> {
        let before = self.operators;
        self.operators += more;
        if self.operators <= MOST_OPERATORS {
            return Some(());
        }
        if before <= MOST_OPERATORS {
            let message =
                format!("this expression has more than {MOST_OPERATORS} operators, not counting comparisons");
            self.sink.push(
                Diagnostic::error("E014", span, message)
                    .help("write `x in { 1, 2, 3 }` for `x == 1 or x == 2 or x == 3`, or several rules"),
            );
        }
        None
    }

    fn any(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        self.chain(
            pair,
            Rule::conj,
            |build, conj| build.chain(conj, Rule::neg, Self::neg, ExprKind::And),
            ExprKind::Or,
        )
    }

    /// `a and b and c`, left to right.
    fn chain(
        &mut self,
        pair: &Pair<'_, Rule>,
        operand: Rule,
        make: impl Fn(&mut Self, &Pair<'_, Rule>) -> Option<Expr>,
        join: impl Fn(Box<Expr>, Box<Expr>) -> ExprKind,
    ) -> Option<Expr> {
        let operands: Vec<_> = children(pair, operand).collect();
        self.operators(operands.len().saturating_sub(1), self.span(pair))?;
        let mut tree: Option<Expr> = None;
        for operand in &operands {
            let right = make(self, operand)?;
            tree = Some(match tree {
                None => right,
                Some(left) => {
                    let span = left.span.to(right.span);
                    Expr {
                        kind: join(Box::new(left), Box::new(right)),
                        span,
                    }
                }
            });
        }
        tree
    }

    fn neg(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        let mut tree = self.cmp(&child(pair, Rule::cmp)?)?;
        let nots: Vec<Span> = children(pair, Rule::kw_not).map(|not| self.span(&not)).collect();
        for not in nots.into_iter().rev() {
            let span = not.to(tree.span);
            tree = Expr {
                kind: ExprKind::Unary(UnaryOp::Not, Box::new(tree)),
                span,
            };
        }
        Some(tree)
    }

    fn cmp(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        let mut sides = children(pair, Rule::bits);
        let left = self.bits(&sides.next()?)?;
        let value = Box::new(left);
        let negated = child(pair, Rule::kw_not).is_some();
        let kind = if let Some(operator) = child(pair, Rule::compare) {
            let right = self.bits(&sides.next()?)?;
            ExprKind::Compare(compare_op(operator.as_str())?, value, Box::new(right))
        } else if let Some(list) = child(pair, Rule::list) {
            let list: Option<Vec<Expr>> = children(&list, Rule::expr).map(|each| self.any(&each)).collect();
            ExprKind::InList {
                value,
                negated,
                list: list?,
            }
        } else if let Some(range) = child(pair, Rule::range) {
            let mut ends = children(&range, Rule::bits);
            let low = Box::new(self.bits(&ends.next()?)?);
            let high = match ends.next() {
                Some(high) => Some(Box::new(self.bits(&high)?)),
                None => None,
            };
            ExprKind::InRange {
                value,
                negated,
                low,
                high,
            }
        } else if let Some(pattern) = child(pair, Rule::string) {
            let pattern = self.string(&pattern);
            ExprKind::Like {
                value,
                negated,
                pattern,
            }
        } else {
            return Some(*value);
        };
        Some(Expr {
            kind,
            span: self.span(pair),
        })
    }

    /// Arithmetic, by precedence: what binds tighter than the operator that comes is joined before it is stacked.
    pub(super) fn bits(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        let mut operands: Vec<Expr> = Vec::new();
        let mut operators: Vec<BinaryOp> = Vec::new();
        for part in pair.clone().into_inner() {
            match part.as_rule() {
                Rule::unary => operands.push(self.unary(&part)?),
                Rule::bit_op => {
                    self.operators(1, self.span(pair))?;
                    let coming = binary_op(part.as_str())?;
                    while operators
                        .last()
                        .is_some_and(|last| last.level() >= coming.level())
                    {
                        join(&mut operands, operators.pop()?)?;
                    }
                    operators.push(coming);
                }
                _ => {}
            }
        }
        while let Some(operator) = operators.pop() {
            join(&mut operands, operator)?;
        }
        operands.pop()
    }

    fn unary(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        let mut tree = self.postfix(&child(pair, Rule::postfix)?)?;
        let operators: Vec<_> = children(pair, Rule::unary_op).collect();
        for operator in operators.iter().rev() {
            let kind = match operator.as_str() {
                "-" => UnaryOp::Negate,
                "~" => UnaryOp::Complement,
                _ => UnaryOp::Not,
            };
            let span = self.span(operator).to(tree.span);
            tree = Expr {
                kind: ExprKind::Unary(kind, Box::new(tree)),
                span,
            };
        }
        Some(tree)
    }

    fn postfix(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        let mut parts = pair.clone().into_inner();
        let mut tree = self.primary(&parts.next()?)?;
        for part in parts {
            self.operators(1, self.span(pair))?;
            let span = tree.span.to(self.span(&part));
            let kind = if let Some(name) = child(&part, Rule::word) {
                ExprKind::Member(Box::new(tree), self.name(&name))
            } else {
                let index = self.integer(&child(&part, Rule::int)?)?;
                ExprKind::Index(Box::new(tree), index)
            };
            tree = Expr { kind, span };
        }
        Some(tree)
    }

    fn primary(&mut self, pair: &Pair<'_, Rule>) -> Option<Expr> {
        let kind = match pair.as_rule() {
            Rule::int => ExprKind::Int(self.integer(pair)?.value),
            Rule::duration => ExprKind::Duration(self.duration(pair)?.value),
            Rule::size => ExprKind::Size(self.size(pair)?.value),
            Rule::string => ExprKind::Text(self.string(pair).value),
            Rule::kw_true => ExprKind::Bool(true),
            Rule::kw_false => ExprKind::Bool(false),
            Rule::named => {
                let name: Name = self.name(&child(pair, Rule::name)?);
                match child(pair, Rule::arguments) {
                    None => ExprKind::Name(name.value),
                    Some(list) => {
                        let list: Option<Vec<Expr>> =
                            children(&list, Rule::expr).map(|each| self.any(&each)).collect();
                        ExprKind::Call(name, list?)
                    }
                }
            }
            // The parentheses belong to the place, so that `(a) + b` is underlined from its first character.
            _ => self.any(&child(pair, Rule::expr)?)?.kind,
        };
        Some(Expr {
            kind,
            span: self.span(pair),
        })
    }

    /// A condition over sets.
    pub(super) fn guard(&mut self, pair: &Pair<'_, Rule>) -> Option<Guard> {
        self.operators = 0;
        self.any_guard(pair)
    }

    fn any_guard(&mut self, pair: &Pair<'_, Rule>) -> Option<Guard> {
        let either: Vec<_> = children(pair, Rule::guard_and).collect();
        self.operators(either.len().saturating_sub(1), self.span(pair))?;
        let mut tree: Option<Guard> = None;
        for both in &either {
            let both: Vec<_> = children(both, Rule::guard_not).collect();
            self.operators(both.len().saturating_sub(1), self.span(pair))?;
            let mut right: Option<Guard> = None;
            for part in &both {
                let part = self.guard_not(part)?;
                right = Some(match right {
                    None => part,
                    Some(left) => Guard::And(Box::new(left), Box::new(part)),
                });
            }
            let right = right?;
            tree = Some(match tree {
                None => right,
                Some(left) => Guard::Or(Box::new(left), Box::new(right)),
            });
        }
        tree
    }

    fn guard_not(&mut self, pair: &Pair<'_, Rule>) -> Option<Guard> {
        let mut tree = match child(pair, Rule::name) {
            Some(name) => Guard::Set(self.name(&name)),
            None => self.any_guard(&child(&child(pair, Rule::guard_paren)?, Rule::guard)?)?,
        };
        let nots = children(pair, Rule::kw_not).count() + children(pair, Rule::bang).count();
        for _ in 0..nots {
            tree = Guard::Not(Box::new(tree));
        }
        Some(tree)
    }
}

/// Joins the last two operands.
fn join(operands: &mut Vec<Expr>, operator: BinaryOp) -> Option<()> {
    let right = operands.pop()?;
    let left = operands.pop()?;
    let span = left.span.to(right.span);
    operands.push(Expr {
        kind: ExprKind::Binary(operator, Box::new(left), Box::new(right)),
        span,
    });
    Some(())
}

fn compare_op(written: &str) -> Option<CompareOp> {
    use CompareOp::{Equal, Greater, GreaterEqual, Less, LessEqual, NotEqual};
    [Equal, NotEqual, Less, LessEqual, Greater, GreaterEqual]
        .into_iter()
        .find(|op| op.symbol() == written)
}

fn binary_op(written: &str) -> Option<BinaryOp> {
    BinaryOp::ALL.into_iter().find(|op| op.symbol() == written)
}
