//! Integers: a typed expression → R1, as 64 bits.
//!
//! In: an expression of an integer, boolean or duration type. Out: R1. R0 to R5 are lost.
//!
//! INVARIANT: the result equals `lkst_rules::eval` on the same hit, bit for bit.

use lkst_rules::ast::BinaryOp;
use lkst_rules::plan::{Expr, Node};

use super::Emit;
use crate::asm::{Alu, Cond, Reg, Size};

/// The constant, where the expression is one.
pub(crate) fn constant(expr: &Expr) -> Option<u64> {
    match expr.node {
        Node::Int(value) => Some(value),
        Node::Bool(value) => Some(u64::from(value)),
        _ => None,
    }
}

impl Emit<'_> {
    /// R1 = the expression.
    pub(crate) fn value(&mut self, expr: &Expr) {
        match &expr.node {
            Node::Int(value) => self.asm.constant(Reg::R1, *value),
            Node::Bool(value) => self.asm.mov(Reg::R1, i32::from(*value)),
            Node::Load(load) => self.load(load, expr.ty, false),
            Node::Negate(inner) => {
                self.value(inner);
                self.asm.neg(Reg::R1);
            }
            Node::Complement(inner) => {
                self.value(inner);
                self.asm.alu(Alu::Xor, Reg::R1, -1);
            }
            Node::Binary {
                op,
                signed,
                left,
                right,
            } => self.binary(*op, *signed, left, right),
            _ => {
                let (no, end) = (self.asm.label(), self.asm.label());
                self.branch_if(expr, false, no);
                self.asm.mov(Reg::R1, 1);
                self.asm.jump(end);
                self.asm.bind(no);
                self.asm.mov(Reg::R1, 0);
                self.asm.bind(end);
            }
        }
    }

    /// R1 = the left side, R2 = the right side.
    pub(crate) fn pair(&mut self, left: &Expr, right: &Expr) {
        if let Some(value) = constant(right) {
            self.value(left);
            self.asm.constant(Reg::R2, value);
            return;
        }
        self.value(left);
        let temp = self.temp(left.span);
        self.asm.store(Size::B8, Reg::R10, temp, Reg::R1);
        self.value(right);
        self.asm.mov(Reg::R2, Reg::R1);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, temp);
        self.drop_temp();
    }

    fn binary(&mut self, op: BinaryOp, signed: bool, left: &Expr, right: &Expr) {
        let alu = match op {
            BinaryOp::Or => Alu::Or,
            BinaryOp::Xor => Alu::Xor,
            BinaryOp::And => Alu::And,
            BinaryOp::Add => Alu::Add,
            BinaryOp::Subtract => Alu::Sub,
            BinaryOp::Multiply => Alu::Mul,
            BinaryOp::ShiftLeft => Alu::Lsh,
            BinaryOp::ShiftRight if signed => Alu::Arsh,
            BinaryOp::ShiftRight => Alu::Rsh,
            BinaryOp::Divide | BinaryOp::Remainder => {
                return self.divide(op == BinaryOp::Remainder, signed, left, right);
            }
        };
        let shift = matches!(op, BinaryOp::ShiftLeft | BinaryOp::ShiftRight);
        if let Some(value) = constant(right) {
            // The verifier refuses a constant shift of 64 or more; the language takes the low six bits.
            let value = if shift { value & 63 } else { value };
            if let Ok(imm) = i32::try_from(value.cast_signed()) {
                self.value(left);
                self.asm.alu(alu, Reg::R1, imm);
                return;
            }
        }
        self.pair(left, right);
        if shift {
            self.asm.alu(Alu::And, Reg::R2, 63);
        }
        self.asm.alu(alu, Reg::R1, Reg::R2);
    }

    /// Unsigned as the instruction has it: `x / 0` is 0 and `x % 0` is `x`. Signed by magnitudes, since the signed
    /// instruction came only with Linux 6.6; a remainder has the sign of its left side.
    fn divide(&mut self, remainder: bool, signed: bool, left: &Expr, right: &Expr) {
        self.pair(left, right);
        let op = if remainder { Alu::Mod } else { Alu::Div };
        if !signed {
            self.asm.alu(op, Reg::R1, Reg::R2);
            return;
        }
        let (left_positive, right_positive, done) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.mov(Reg::R3, 0);
        self.asm.branch(Cond::Sge, Reg::R1, 0, left_positive);
        self.asm.neg(Reg::R1);
        self.asm.mov(Reg::R3, 1);
        self.asm.bind(left_positive);
        self.asm.branch(Cond::Sge, Reg::R2, 0, right_positive);
        self.asm.neg(Reg::R2);
        if !remainder {
            self.asm.alu(Alu::Xor, Reg::R3, 1);
        }
        self.asm.bind(right_positive);
        self.asm.alu(op, Reg::R1, Reg::R2);
        self.asm.branch(Cond::Eq, Reg::R3, 0, done);
        self.asm.neg(Reg::R1);
        self.asm.bind(done);
    }
}
