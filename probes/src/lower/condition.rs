//! Conditions: a boolean expression → a branch.
//!
//! In: an expression of type `bool`, the outcome that jumps, and where to. Out: instructions that fall through on
//! the other outcome. Of what is joined by `and` or `or` the cheapest is judged first, and the others only where it matters.

use lkst_rules::ast::CompareOp;
use lkst_rules::plan::{Expr, Load, Node};
use lkst_rules::schema::{Path, Recipe, Type};

use super::value::constant;
use super::{Emit, Kind};
use crate::asm::{Cond, Label, Reg};

/// What a helper's call is worth in instructions, about.
const HELPER: u32 = 30;

fn condition(op: CompareOp, signed: bool) -> Cond {
    match (op, signed) {
        (CompareOp::Equal, _) => Cond::Eq,
        (CompareOp::NotEqual, _) => Cond::Ne,
        (CompareOp::Less, false) => Cond::Lt,
        (CompareOp::Less, true) => Cond::Slt,
        (CompareOp::LessEqual, false) => Cond::Le,
        (CompareOp::LessEqual, true) => Cond::Sle,
        (CompareOp::Greater, false) => Cond::Gt,
        (CompareOp::Greater, true) => Cond::Sgt,
        (CompareOp::GreaterEqual, false) => Cond::Ge,
        (CompareOp::GreaterEqual, true) => Cond::Sge,
    }
}

/// What is joined by `and`, or by `or`.
pub(super) fn operands(expr: &Expr, either: bool) -> Vec<&Expr> {
    match &expr.node {
        Node::And(left, right) if !either => [operands(left, either), operands(right, either)].concat(),
        Node::Or(left, right) if either => [operands(left, either), operands(right, either)].concat(),
        _ => vec![expr],
    }
}

impl Emit<'_> {
    /// Jumps to `target` where the expression is `truth`; falls through otherwise.
    pub(crate) fn branch_if(&mut self, expr: &Expr, truth: bool, target: Label) {
        let before = (self.clock, self.who);
        self.branch_if_inner(expr, truth, target);
        // A clock read inside a condition was read on some paths only.
        if (self.clock, self.who) != before {
            self.paths_meet();
        }
    }

    fn branch_if_inner(&mut self, expr: &Expr, truth: bool, target: Label) {
        match &expr.node {
            Node::Bool(value) => {
                if *value == truth {
                    self.asm.jump(target);
                }
            }
            Node::Not(inner) => self.branch_if(inner, !truth, target),
            Node::And(..) | Node::Or(..) => self.several(expr, truth, target),
            Node::Compare {
                op,
                signed,
                left,
                right,
            } => {
                self.compare(*op, *signed, left, right, truth, target);
            }
            Node::InInts { value, list, negated } => {
                self.in_ints(value, list, truth != *negated, target);
            }
            Node::InRange {
                value,
                low,
                high,
                signed,
                negated,
            } => {
                let outside = self.asm.label();
                let (below, above) = if *signed {
                    (Cond::Slt, Cond::Sgt)
                } else {
                    (Cond::Lt, Cond::Gt)
                };
                let jump_inside = truth != *negated;
                let miss = if jump_inside { outside } else { target };
                self.pair(value, low);
                self.asm.branch(below, Reg::R1, Reg::R2, miss);
                // The value is computed again where `high` is not a constant; conditions have no side effects.
                match constant(high) {
                    Some(high) => self.asm.constant(Reg::R2, high),
                    None => self.pair(value, high),
                }
                self.asm.branch(above, Reg::R1, Reg::R2, miss);
                if jump_inside {
                    self.asm.jump(target);
                }
                self.asm.bind(outside);
            }
            Node::TextEqual { .. } | Node::InTexts { .. } | Node::Like { .. } => {
                self.text_condition(expr, truth, target);
            }
            _ => {
                self.value(expr);
                let cond = if truth { Cond::Ne } else { Cond::Eq };
                self.asm.branch(cond, Reg::R1, 0, target);
            }
        }
    }

    /// Operands of `and`, or of `or`, the cheapest first: none has side effects, so their order is ours to choose.
    fn several(&mut self, expr: &Expr, truth: bool, target: Label) {
        let either = matches!(expr.node, Node::Or(..));
        let all = self.in_order(expr);
        let Some((last, first)) = all.split_last() else {
            return;
        };
        if truth == either {
            for operand in &all {
                self.branch_if(operand, truth, target);
            }
        } else {
            let skip = self.asm.label();
            for operand in first {
                self.branch_if(operand, either, skip);
            }
            self.branch_if(last, truth, target);
            self.asm.bind(skip);
        }
    }

    /// The operands of `and`, or of `or`, as they are judged.
    pub(super) fn in_order<'e>(&self, expr: &'e Expr) -> Vec<&'e Expr> {
        let mut all = operands(expr, matches!(expr.node, Node::Or(..)));
        all.sort_by_key(|operand| self.price_of(operand));
        all
    }

    /// Whether a value takes a helper's call, or more, to load.
    pub(super) fn calls_to_load(&self, expr: &Expr) -> bool {
        self.price_of(expr) >= HELPER
    }

    /// About how many instructions an expression takes, a helper's call for some 30 of them.
    pub(super) fn price_of(&self, expr: &Expr) -> u32 {
        let own = match &expr.node {
            Node::Str { .. } => 3 * HELPER,
            Node::Load(_) if matches!(expr.ty, Type::Text { .. }) => match self.plain_array(expr) {
                Some(_) => 4,
                None => 2 * HELPER,
            },
            Node::Load(Load::Task(_) | Load::Time) => HELPER,
            // Which kind of program calls is in the current task.
            Node::Load(Load::Field {
                recipe: Some(Recipe::AnySyscallArgument(_)),
                ..
            }) if self.kind == Kind::Typed => HELPER,
            Node::Load(Load::Field {
                recipe: Some(recipe), ..
            }) if self.kind == Kind::Typed => recipe
                .paths()
                .into_iter()
                .map(|path| self.price_of_path(path))
                .sum(),
            Node::Like { open_start: true, .. } => 8 * HELPER,
            Node::InInts { list, .. } => list.len().checked_ilog2().unwrap_or(0) + 1,
            _ => 1,
        };
        let children: u32 = expr
            .children()
            .into_iter()
            .map(|child| self.price_of(child))
            .sum();
        own + children
    }

    fn price_of_path(&self, path: &Path) -> u32 {
        let plain = path.hops.iter().filter(|hop| self.direct && hop.direct).count();
        let read = path.hops.len() - plain;
        1 + 2 * plain as u32 + HELPER * read as u32
    }

    fn compare(
        &mut self,
        op: CompareOp,
        signed: bool,
        left: &Expr,
        right: &Expr,
        truth: bool,
        target: Label,
    ) {
        let mut cond = condition(op, signed);
        if !truth {
            cond = cond.inverse().unwrap_or(cond);
        }
        // A 32-bit field against a constant of its own range: no extension, a 32-bit comparison.
        if let (
            Node::Load(load),
            Type::Int {
                bits: 32,
                signed: field_signed,
            },
        ) = (&left.node, left.ty)
            && let Some(value) = constant(right)
        {
            let fits = if field_signed {
                i32::try_from(value.cast_signed()).is_ok()
            } else {
                u32::try_from(value).is_ok()
            };
            if fits && (field_signed == signed || matches!(cond, Cond::Eq | Cond::Ne)) {
                self.load(load, left.ty, true);
                self.asm.branch32(cond, Reg::R1, value as u32 as i32, target);
                return;
            }
        }
        match constant(right).map(|value| i32::try_from(value.cast_signed())) {
            Some(Ok(imm)) => {
                self.value(left);
                self.asm.branch(cond, Reg::R1, imm, target);
            }
            _ => {
                self.pair(left, right);
                self.asm.branch(cond, Reg::R1, Reg::R2, target);
            }
        }
    }

    fn in_ints(&mut self, value: &Expr, list: &[u64], truth: bool, target: Label) {
        let mut list = list.to_vec();
        list.sort_unstable();
        self.value(value);
        let no = self.asm.label();
        let (hit, miss) = if truth { (target, no) } else { (no, target) };
        let targets: Vec<(u64, Label)> = list.into_iter().map(|value| (value, hit)).collect();
        self.search(&targets, miss);
        self.asm.bind(no);
    }

    /// A search tree of immediates: goes where R1 is found among the targets (ascending as unsigned), otherwise to
    /// `miss`. Keeps R1, uses R2.
    pub(super) fn search(&mut self, targets: &[(u64, Label)], miss: Label) {
        if targets.len() <= 4 {
            for (value, hit) in targets {
                self.branch_constant(Cond::Eq, *value, *hit);
            }
            self.asm.jump(miss);
            return;
        }
        let (low, high) = targets.split_at(targets.len() / 2);
        let upper = self.asm.label();
        if let Some((first, _)) = high.first() {
            self.branch_constant(Cond::Ge, *first, upper);
        }
        self.search(low, miss);
        self.asm.bind(upper);
        self.search(high, miss);
    }

    /// Compares R1 with a constant of any size.
    fn branch_constant(&mut self, cond: Cond, value: u64, target: Label) {
        match i32::try_from(value.cast_signed()) {
            Ok(imm) => self.asm.branch(cond, Reg::R1, imm, target),
            Err(_) => {
                self.asm.constant(Reg::R2, value);
                self.asm.branch(cond, Reg::R1, Reg::R2, target);
            }
        }
    }
}
