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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Span;
    use proptest::prelude::*;

    /// A hit of which every integer is the same.
    struct Same(u64);

    impl Hit for Same {
        fn field(&self, name: &str) -> Option<Value> {
            match name {
                "unreadable" => Some(Value::Text(None)),
                "text" => Some(Value::Text(Some(b"abc\0def".to_vec()))),
                "missing" => None,
                _ => Some(Value::Int(self.0)),
            }
        }

        fn task(&self, _: &TaskValue) -> Option<Value> {
            None
        }

        fn cpu(&self) -> u32 {
            3
        }

        fn time(&self) -> u64 {
            self.0
        }

        fn text_at(&self, pointer: u64, user: bool) -> Option<Vec<u8>> {
            (pointer != 0 && user).then(|| vec![b'x'; 300])
        }
    }

    fn expr(node: Node, ty: Type) -> Expr {
        Expr {
            node,
            ty,
            span: Span::default(),
        }
    }

    fn boxed(node: Node, ty: Type) -> Box<Expr> {
        Box::new(expr(node, ty))
    }

    fn field(name: &str, ty: Type) -> Box<Expr> {
        let load = Load::Field {
            name: name.to_owned(),
            place: None,
            recipe: None,
        };
        boxed(Node::Load(load), ty)
    }

    fn holds(node: Node) -> bool {
        eval(&expr(node, Type::Bool), &Same(7)).bool()
    }

    #[test]
    fn comparisons_with_unreadable_text_are_false_both_ways() {
        let text = || boxed(Node::Text(b"abc".to_vec()), Type::TEXT);
        for name in ["unreadable", "missing"] {
            for negated in [false, true] {
                let value = field(name, Type::TEXT);
                assert!(!holds(Node::Like {
                    value,
                    open_start: true,
                    body: Vec::new(),
                    open_end: true,
                    negated
                }));
                let value = field(name, Type::TEXT);
                assert!(!holds(Node::InTexts {
                    value,
                    list: vec![b"abc".to_vec()],
                    negated
                }));
                let left = field(name, Type::TEXT);
                assert!(!holds(Node::TextEqual {
                    left,
                    right: text(),
                    negated
                }));
            }
            // The logical `not` is of the condition, not of the comparison.
            let left = field(name, Type::TEXT);
            assert!(holds(Node::Not(boxed(
                Node::TextEqual {
                    left,
                    right: text(),
                    negated: false
                },
                Type::Bool
            ))));
        }
        let left = field("text", Type::TEXT);
        assert!(holds(Node::TextEqual {
            left,
            right: text(),
            negated: false
        }));
    }

    #[test]
    fn text_is_cut() {
        let long = expr(
            Node::Str {
                pointer: field("p", Type::U64),
                user: true,
            },
            Type::TEXT,
        );
        assert_eq!(eval(&long, &Same(1)), Value::Text(Some(vec![b'x'; 255])));
        assert_eq!(eval(&long, &Same(0)), Value::Text(None));
        let short = field("text", Type::Text { capacity: 2 });
        assert_eq!(eval(&short, &Same(0)), Value::Text(Some(b"ab".to_vec())));
    }

    #[test]
    fn division_follows_the_language() {
        let signed =
            |op, a: i64, b: i64| arithmetic(op, true, a.cast_unsigned(), b.cast_unsigned()).cast_signed();
        assert_eq!(signed(BinaryOp::Divide, -7, 2), -3);
        assert_eq!(signed(BinaryOp::Remainder, -7, 2), -1);
        assert_eq!(signed(BinaryOp::Divide, i64::MIN, -1), i64::MIN);
        assert_eq!(signed(BinaryOp::Remainder, i64::MIN, -1), 0);
        assert_eq!(signed(BinaryOp::Divide, -7, 0), 0);
        assert_eq!(signed(BinaryOp::Remainder, -7, 0), -7);
        assert_eq!(signed(BinaryOp::ShiftRight, -8, 65), -4);
        assert_eq!(arithmetic(BinaryOp::Divide, false, u64::MAX, 2), u64::MAX / 2);
    }

    #[test]
    fn patterns() {
        let is = |pattern: (bool, &str, bool), text: &str| {
            like(text.as_bytes(), pattern.0, pattern.1.as_bytes(), pattern.2)
        };
        assert!(is((false, "ab", true), "abc") && !is((false, "bc", true), "abc"));
        assert!(is((true, "bc", false), "abc") && !is((true, "ab", false), "abc"));
        assert!(is((true, "b", true), "abc") && !is((true, "d", true), "abc"));
        assert!(
            is((true, "", true), "")
                && is((false, "abc", false), "abc")
                && !is((false, "abc", false), "abcd")
        );
    }

    /// Any expression, whatever its types: evaluation must not care.
    fn any_expr() -> impl Strategy<Value = Expr> {
        let ty = prop_oneof![
            Just(Type::U64),
            Just(Type::I32),
            Just(Type::Bool),
            Just(Type::TEXT),
            Just(Type::Duration)
        ];
        let name = prop_oneof!["unreadable", "text", "missing", "int"];
        let leaf = prop_oneof![
            any::<u64>().prop_map(Node::Int),
            any::<Vec<u8>>().prop_map(Node::Text),
            any::<bool>().prop_map(Node::Bool),
            name.prop_map(|name| Node::Load(Load::Field {
                name,
                place: None,
                recipe: None
            })),
            Just(Node::Load(Load::Time)),
        ];
        let leaf = (leaf, ty.clone()).prop_map(|(node, ty)| expr(node, ty));
        leaf.prop_recursive(5, 64, 3, move |inner| {
            let one = || inner.clone().prop_map(Box::new);
            let op = prop::sample::select(BinaryOp::ALL.to_vec());
            let node = prop_oneof![
                one().prop_map(Node::Not),
                one().prop_map(Node::Negate),
                one().prop_map(Node::Complement),
                (one(), any::<bool>()).prop_map(|(pointer, user)| Node::Str { pointer, user }),
                (op, any::<bool>(), one(), one()).prop_map(|(op, signed, left, right)| Node::Binary {
                    op,
                    signed,
                    left,
                    right
                }),
                (any::<bool>(), one(), one()).prop_map(|(signed, left, right)| Node::Compare {
                    op: CompareOp::Less,
                    signed,
                    left,
                    right
                }),
                (any::<bool>(), one(), one()).prop_map(|(negated, left, right)| Node::TextEqual {
                    left,
                    right,
                    negated
                }),
                (any::<bool>(), one(), any::<Vec<u64>>()).prop_map(|(negated, value, list)| Node::InInts {
                    value,
                    list,
                    negated
                }),
                (one(), one(), one(), any::<bool>()).prop_map(|(value, low, high, signed)| Node::InRange {
                    value,
                    low,
                    high,
                    signed,
                    negated: false
                }),
                (one(), any::<Vec<u8>>(), any::<bool>()).prop_map(|(value, body, open)| Node::Like {
                    value,
                    open_start: open,
                    body,
                    open_end: !open,
                    negated: open
                }),
                (one(), one()).prop_map(|(left, right)| Node::And(left, right)),
                (one(), one()).prop_map(|(left, right)| Node::Or(left, right)),
            ];
            (node, ty.clone()).prop_map(|(node, ty)| expr(node, ty))
        })
    }

    proptest! {
        #[test]
        fn evaluation_is_total(expr in any_expr(), value: u64) {
            let _ = eval(&expr, &Same(value));
            // Printing is, too.
            let _ = expr.to_string();
        }

        #[test]
        fn a_range_is_two_comparisons(value: u64, low: u64, high: u64, signed: bool) {
            let int = |value| boxed(Node::Int(value), Type::U64);
            let inside = |negated| holds(Node::InRange { value: int(value), low: int(low), high: int(high), signed, negated });
            let both = compare(CompareOp::GreaterEqual, signed, value, low) && compare(CompareOp::LessEqual, signed, value, high);
            prop_assert_eq!(inside(false), both);
            prop_assert_eq!(inside(true), !both);
        }

        #[test]
        fn quotient_and_remainder_agree(a: u64, b: u64, signed: bool) {
            let quotient = arithmetic(BinaryOp::Divide, signed, a, b);
            let remainder = arithmetic(BinaryOp::Remainder, signed, a, b);
            prop_assert_eq!(quotient.wrapping_mul(b).wrapping_add(remainder), a);
        }
    }
}
