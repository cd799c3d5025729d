//! The reference evaluator: what a typed expression is worth at one hit.
//!
//! In: a [`plan::Expr`](crate::plan::Expr) and a [`Hit`], whoever made it: a test of a pack, a recorded trace, a random
//! one. Out: a [`Value`]. The programs in the kernel are compared with it hit for hit, so each operator's meaning is
//! here in one place, and constant folding uses the very same functions.
//!
//! INVARIANT: total. No expression, typed or not, and no hit makes it panic; a value of the wrong kind counts as 0,
//! false or unreadable text.

use crate::ast::{BinaryOp, CompareOp};
use crate::plan::{Expr, Load, Node, TaskValue};
use crate::schema::Type;

/// Text is cut after so many bytes.
pub const LONGEST_TEXT: usize = 255;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// An integer or a duration, extended to 64 bits by its type's sign.
    Int(u64),
    /// Text; `None` where it could not be read.
    Text(Option<Vec<u8>>),
    /// True or false.
    Bool(bool),
}

impl Value {
    /// As 64 bits: a truth is 1 or 0, text is 0.
    #[must_use]
    pub fn int(&self) -> u64 {
        match self {
            Value::Int(value) => *value,
            Value::Bool(value) => u64::from(*value),
            Value::Text(_) => 0,
        }
    }

    /// As a truth: any integer but 0 is true, text is false.
    #[must_use]
    pub fn bool(&self) -> bool {
        self.int() != 0
    }

    fn text(self) -> Option<Vec<u8>> {
        match self {
            Value::Text(text) => text,
            Value::Int(_) | Value::Bool(_) => None,
        }
    }
}

/// One hit of an event, as far as an expression can ask.
pub trait Hit {
    /// A field by its name, an element of an array as `args[2]`, an argument's path as `args.prev.pid`. Integers are
    /// extended by the field's sign. `None` counts as 0, false or unreadable text.
    fn field(&self, name: &str) -> Option<Value>;

    /// A value of the task that the event ran in.
    fn task(&self, what: &TaskValue) -> Option<Value>;

    /// The CPU.
    fn cpu(&self) -> u32;

    /// Nanoseconds since boot.
    fn time(&self) -> u64;

    /// The text behind a pointer, `None` where it cannot be read.
    fn text_at(&self, pointer: u64, user: bool) -> Option<Vec<u8>>;
}

/// What the expression is worth at this hit.
#[must_use]
pub fn eval(expr: &Expr, hit: &dyn Hit) -> Value {
    let int = |e: &Expr| eval(e, hit).int();
    let truth = |e: &Expr| eval(e, hit).bool();
    let text = |e: &Expr| eval(e, hit).text();
    match &expr.node {
        Node::Int(value) => Value::Int(*value),
        Node::Text(bytes) => Value::Text(Some(bytes.clone())),
        Node::Bool(value) => Value::Bool(*value),
        Node::Load(load) => loaded(load, expr.ty, hit),
        Node::Negate(of) => Value::Int(int(of).wrapping_neg()),
        Node::Complement(of) => Value::Int(!int(of)),
        Node::Binary {
            op,
            signed,
            left,
            right,
        } => Value::Int(arithmetic(*op, *signed, int(left), int(right))),
        Node::Compare {
            op,
            signed,
            left,
            right,
        } => Value::Bool(compare(*op, *signed, int(left), int(right))),
        Node::TextEqual { left, right, negated } => Value::Bool(match (text(left), text(right)) {
            (Some(left), Some(right)) => (left == right) != *negated,
            _ => false,
        }),
        Node::InInts { value, list, negated } => {
            Value::Bool(list.binary_search(&int(value)).is_ok() != *negated)
        }
        Node::InTexts { value, list, negated } => {
            Value::Bool(text(value).is_some_and(|text| list.contains(&text) != *negated))
        }
        Node::InRange {
            value,
            low,
            high,
            signed,
            negated,
        } => {
            let value = int(value);
            let inside = compare(CompareOp::LessEqual, *signed, int(low), value)
                && compare(CompareOp::LessEqual, *signed, value, int(high));
            Value::Bool(inside != *negated)
        }
        Node::Like {
            value,
            open_start,
            body,
            open_end,
            negated,
        } => {
            Value::Bool(text(value).is_some_and(|text| like(&text, *open_start, body, *open_end) != *negated))
        }
        Node::Str { pointer, user } => Value::Text(
            hit.text_at(int(pointer), *user)
                .map(|text| cut(text, LONGEST_TEXT)),
        ),
        Node::Not(of) => Value::Bool(!truth(of)),
        Node::And(left, right) => Value::Bool(truth(left) && truth(right)),
        Node::Or(left, right) => Value::Bool(truth(left) || truth(right)),
    }
}

fn loaded(load: &Load, ty: Type, hit: &dyn Hit) -> Value {
    let value = match load {
        Load::Field { name, .. } => hit.field(name),
        Load::Task(what) => hit.task(what),
        Load::Cpu => Some(Value::Int(u64::from(hit.cpu()))),
        Load::Time => Some(Value::Int(hit.time())),
        Load::EventName(name) => Some(Value::Text(Some(name.clone().into_bytes()))),
    };
    match (ty, value) {
        (Type::Text { capacity }, Some(Value::Text(Some(text)))) => {
            Value::Text(Some(cut(text, usize::from(capacity).min(LONGEST_TEXT))))
        }
        (Type::Text { .. }, _) => Value::Text(None),
        (_, Some(value)) => value,
        (Type::Bool, None) => Value::Bool(false),
        (_, None) => Value::Int(0),
    }
}

/// Text ends at its first NUL, and after `most` bytes.
fn cut(mut text: Vec<u8>, most: usize) -> Vec<u8> {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    text.truncate(end.min(most));
    text
}

/// `left op right` in 64 bits, wrapping. `x / 0` is 0, `x % 0` is `x`, a shift takes the low six bits of `right`.
#[must_use]
pub fn arithmetic(op: BinaryOp, signed: bool, left: u64, right: u64) -> u64 {
    match op {
        BinaryOp::Or => left | right,
        BinaryOp::Xor => left ^ right,
        BinaryOp::And => left & right,
        BinaryOp::ShiftLeft => left.wrapping_shl(low_bits(right)),
        BinaryOp::ShiftRight if signed => left.cast_signed().wrapping_shr(low_bits(right)).cast_unsigned(),
        BinaryOp::ShiftRight => left.wrapping_shr(low_bits(right)),
        BinaryOp::Add => left.wrapping_add(right),
        BinaryOp::Subtract => left.wrapping_sub(right),
        BinaryOp::Multiply => left.wrapping_mul(right),
        BinaryOp::Divide if right == 0 => 0,
        BinaryOp::Divide if signed => left
            .cast_signed()
            .wrapping_div(right.cast_signed())
            .cast_unsigned(),
        BinaryOp::Divide => left / right,
        BinaryOp::Remainder if right == 0 => left,
        BinaryOp::Remainder if signed => left
            .cast_signed()
            .wrapping_rem(right.cast_signed())
            .cast_unsigned(),
        BinaryOp::Remainder => left % right,
    }
}

/// `left op right` of two 64-bit integers.
#[must_use]
pub fn compare(op: CompareOp, signed: bool, left: u64, right: u64) -> bool {
    let order = if signed {
        left.cast_signed().cmp(&right.cast_signed())
    } else {
        left.cmp(&right)
    };
    match op {
        CompareOp::Equal => order.is_eq(),
        CompareOp::NotEqual => order.is_ne(),
        CompareOp::Less => order.is_lt(),
        CompareOp::LessEqual => order.is_le(),
        CompareOp::Greater => order.is_gt(),
        CompareOp::GreaterEqual => order.is_ge(),
    }
}

/// Whether `text` holds `body`, at its start unless `open_start`, at its end unless `open_end`.
#[must_use]
pub fn like(text: &[u8], open_start: bool, body: &[u8], open_end: bool) -> bool {
    match (open_start, open_end) {
        (false, false) => text == body,
        (false, true) => text.starts_with(body),
        (true, false) => text.ends_with(body),
        (true, true) => body.is_empty() || text.windows(body.len()).any(|part| part == body),
    }
}

fn low_bits(shift: u64) -> u32 {
    u32::from(shift.to_le_bytes()[0] & 63)
}
