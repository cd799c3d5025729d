//! Random conditions that mean something for one event, as the rule language writes them.
//!
//! In: the values that an event has ([`Leaf`]), some of its hits, and a seed. Out: texts, of which those that do not
//! compile are thrown away. Constants are taken from what the same expression was worth at a hit that was seen, and
//! from beside it, so that conditions are neither always true nor always false.

use lkst_rules::compile_condition;
use lkst_rules::eval::{Value, eval};
use lkst_rules::plan::{Expr, Node};
use lkst_rules::schema::{Event, Schema, Type};

use crate::Sample;

/// A generator of numbers: `SplitMix64`. The same seed gives the same numbers for ever.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`; 0 where that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn of<'t, T: ?Sized>(&mut self, among: &[&'t T]) -> Option<&'t T> {
        among.get(self.below(among.len())).copied()
    }
}

/// A value of the event that a condition may use.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Leaf {
    /// As a rule writes it.
    pub(crate) text: String,
    /// Its type.
    pub(crate) ty: Type,
}

/// Makes conditions for one event.
pub(crate) struct Generator<'g> {
    pub(crate) random: &'g mut Random,
    pub(crate) schema: &'g dyn Schema,
    pub(crate) event: &'g Event,
    pub(crate) leaves: &'g [Leaf],
    pub(crate) samples: &'g [Sample],
}

const BINARY: [&str; 15] = [
    "+", "-", "*", "/", "%", "<<", ">>", "&", "|", "^", "/", "%", ">>", "&", "-",
];
const COMPARE: [&str; 6] = ["==", "!=", "<", "<=", ">", ">="];
const WORDS: [&str; 10] = [
    "",
    "a",
    "sh",
    "workload",
    "swapper/0",
    "kworker/0:1",
    "/proc/self/stat",
    "/etc/hostname",
    "exactly twenty bytes",
    "e",
];

impl Generator<'_> {
    /// A condition that compiles and is not constant; `None` where this try gave none.
    pub(crate) fn condition(&mut self) -> Option<String> {
        let text = self.logical(3)?;
        let compiled = compile_condition(&text, self.event, self.schema).ok()?;
        (!matches!(compiled.node, Node::Bool(_))).then_some(text)
    }

    fn logical(&mut self, depth: usize) -> Option<String> {
        if depth == 0 || !self.random.one_in(3) {
            return self.comparison();
        }
        let below = depth - 1;
        Some(match self.random.below(7) {
            0 | 1 => format!("not ({})", self.logical(below)?),
            2 | 3 => format!("({} and {})", self.logical(below)?, self.logical(below)?),
            4 | 5 => format!("({} or {})", self.logical(below)?, self.logical(below)?),
            _ => {
                let op = self.random.of(&["==", "!="])?;
                format!("(({}) {op} ({}))", self.logical(below)?, self.logical(below)?)
            }
        })
    }

    fn comparison(&mut self) -> Option<String> {
        let texts = self
            .leaves
            .iter()
            .any(|leaf| matches!(leaf.ty, Type::Text { .. }));
        if texts && self.random.one_in(3) {
            return self.about_text();
        }
        match self.random.below(10) {
            0 => self.about_time(),
            1 => self.about_truth(),
            _ => self.about_integers(),
        }
    }

    fn leaf(&mut self, fits: impl Fn(Type) -> bool) -> Option<Leaf> {
        let fitting: Vec<&Leaf> = self.leaves.iter().filter(|leaf| fits(leaf.ty)).collect();
        self.random.of(&fitting).cloned()
    }

    fn integer(&mut self, depth: usize) -> Option<String> {
        if depth == 0 || self.random.one_in(2) {
            if self.random.one_in(6) {
                return Some(self.constant());
            }
            return self
                .leaf(|ty| matches!(ty, Type::Int { .. }))
                .map(|leaf| leaf.text);
        }
        if self.random.one_in(5) {
            let op = self.random.of(&["-", "~"])?;
            return Some(format!("{op}({})", self.integer(depth - 1)?));
        }
        let op = self.random.of(&BINARY)?;
        let left = self.integer(depth - 1)?;
        let right = match op {
            "<<" | ">>" if !self.random.one_in(3) => self.random.below(70).to_string(),
            _ => self.integer(depth - 1)?,
        };
        Some(format!("({left} {op} {right})"))
    }

    /// A number of any size, often a small one or one at an end of a type.
    fn constant(&mut self) -> String {
        let bits = self.random.below(65) as u32;
        let random = self.random.next();
        let number = random.checked_shr(64 - bits).unwrap_or(0);
        match self.random.below(8) {
            0 => "0".to_owned(),
            1 => "(-1)".to_owned(),
            2 => format!("(-{})", number >> 1),
            3 => format!("{:#x}", (1_u64 << (bits % 64)).wrapping_sub(1)),
            4 => self.random.below(10).to_string(),
            _ => number.to_string(),
        }
    }

    /// The expression's left side, compiled, out of `left != 0` or the like.
    fn compiled(&self, text: &str) -> Option<Expr> {
        match compile_condition(text, self.event, self.schema).ok()?.node {
            Node::Compare { left, .. } => Some(*left),
            Node::TextEqual { left, .. } => Some(*left),
            _ => None,
        }
    }

    /// What an expression was worth at some hit.
    fn worth(&mut self, expr: &Expr) -> Option<Value> {
        let sample = self.samples.get(self.random.below(self.samples.len()))?;
        Some(eval(expr, sample))
    }

    /// A number near to what the expression was worth, as its type writes it.
    fn near(&mut self, expr: &Expr) -> Option<String> {
        let number = self.worth(expr)?.int();
        let number = match self.random.below(8) {
            0 => number.wrapping_add(1),
            1 => number.wrapping_sub(1),
            2 => return Some(self.constant()),
            _ => number,
        };
        Some(match expr.ty {
            Type::Duration => format!("{number}ns"),
            Type::Int { signed: true, .. } if number.cast_signed() < 0 => {
                format!("(-{})", number.cast_signed().unsigned_abs())
            }
            _ => number.to_string(),
        })
    }

    fn about_integers(&mut self) -> Option<String> {
        if self.event.system == "raw_syscalls" && self.random.one_in(6) {
            return Some(
                self.random
                    .of(&[
                        "syscall(id) == \"openat\"",
                        "syscall(id) != \"read\"",
                        "syscall(id) in { \"close\", \"prctl\", \"write\" }",
                        "syscall(id) not in { \"read\", \"write\", \"openat\", \"futex\", \"mmap\", \"kill\" }",
                    ])?
                    .to_owned(),
            );
        }
        let left = self.integer(3)?;
        let compiled = self.compiled(&format!("({left}) != 0"))?;
        match self.random.below(8) {
            // With a constant, on either side.
            0..3 => {
                let (op, near) = (self.random.of(&COMPARE)?, self.near(&compiled)?);
                Some(match self.random.one_in(6) {
                    true => format!("{near} {op} {left}"),
                    false => format!("{left} {op} {near}"),
                })
            }
            3 | 4 => {
                let (op, mut right) = (self.random.of(&COMPARE)?, self.integer(2)?);
                if self.random.one_in(2) {
                    right = format!("({right} & 0x7fffffffffffffff)");
                }
                Some(format!("{left} {op} {right}"))
            }
            5 => {
                let not = self.random.of(&["", "not "])?;
                let (one, other) = (self.near(&compiled)?, self.near(&compiled)?);
                let high = match self.random.one_in(4) {
                    true => self.integer(1)?,
                    false => other,
                };
                Some(format!("{left} {not}in {one} .. {high}"))
            }
            _ => {
                let not = self.random.of(&["", "not "])?;
                let most = match self.random.below(4) {
                    0 => 3,
                    1 => 300,
                    _ => 20,
                };
                let mut list = vec![self.near(&compiled)?];
                for _ in 0..self.random.below(most) {
                    list.push(self.near(&compiled)?);
                }
                Some(format!("{left} {not}in {{ {} }}", list.join(", ")))
            }
        }
    }

    fn about_time(&mut self) -> Option<String> {
        let of = |generator: &mut Self| {
            let function = generator.random.of(&["ns", "us", "ms", "ns"])?;
            Some(match generator.random.one_in(3) {
                true => "hit.time".to_owned(),
                false => format!("{function}({})", generator.integer(1)?),
            })
        };
        let one = of(self)?;
        let left = match self.random.below(6) {
            0 => format!("({one} + {})", of(self)?),
            1 => format!("({one} - {})", of(self)?),
            2 => format!("({one} / {})", self.integer(1)?),
            3 => format!("({one} * {})", self.integer(0)?),
            4 => {
                let ratio = format!("({one} / {})", of(self)?);
                let compiled = self.compiled(&format!("{ratio} != 0"))?;
                let (op, near) = (self.random.of(&COMPARE)?, self.near(&compiled)?);
                return Some(format!("{ratio} {op} {near}"));
            }
            _ => one,
        };
        let compiled = self.compiled(&format!("{left} != 0ns"))?;
        let number = self.worth(&compiled)?.int();
        let number = number.wrapping_add(self.random.below(3) as u64).wrapping_sub(1);
        let op = self.random.of(&COMPARE)?;
        Some(match self.random.one_in(4) {
            true => format!("{left} in {}ns .. {number}ns", number / 2),
            false => format!("{left} {op} {number}ns"),
        })
    }

    fn about_truth(&mut self) -> Option<String> {
        let leaf = self.leaf(|ty| ty == Type::Bool)?;
        let op = self
            .random
            .of(&["", " == true", " != true", " == false", " != false"])?;
        Some(format!("{}{op}", leaf.text))
    }

    fn about_text(&mut self) -> Option<String> {
        let left = self.leaf(|ty| matches!(ty, Type::Text { .. }))?.text;
        let compiled = self.compiled(&format!("{left} != \"\""))?;
        let not = self.random.of(&["", "not "])?;
        Some(match self.random.below(9) {
            0..2 => format!(
                "{left} {} {}",
                self.random.of(&["==", "!="])?,
                quoted(&self.word(&compiled)?)?
            ),
            2 => {
                let right = self.leaf(|ty| matches!(ty, Type::Text { .. }))?.text;
                format!("{left} {} {right}", self.random.of(&["==", "!="])?)
            }
            3 | 4 => {
                let mut list = Vec::new();
                for _ in 0..=self.random.below(7) {
                    list.push(quoted(&self.word(&compiled)?)?);
                }
                format!("{left} {not}in {{ {} }}", list.join(", "))
            }
            form => {
                let word = self.word(&compiled)?;
                let from = self.random.below(word.len() + 1);
                let length = self.random.below(word.len() - from + 1);
                let part = match form {
                    5 => format!("{}*", word.get(..from)?),
                    6 => format!("*{}", word.get(from..)?),
                    7 => format!("*{}*", word.get(from..from + length)?),
                    _ => word,
                };
                format!("{left} {not}like {}", quoted(&part)?)
            }
        })
    }

    /// A text that the value had, or nearly had, or one that others have.
    fn word(&mut self, expr: &Expr) -> Option<String> {
        let known = match self.worth(expr)? {
            Value::Text(Some(text)) => String::from_utf8(text).ok()?,
            _ => String::new(),
        };
        Some(match self.random.below(8) {
            0 => (*self.random.of(&WORDS)?).to_owned(),
            1 => known.get(..self.random.below(known.len()))?.to_owned(),
            2 => format!("{known}x"),
            3 if !known.is_empty() => {
                let at = self.random.below(known.len());
                format!("{}~{}", known.get(..at)?, known.get(at + 1..)?)
            }
            _ => known,
        })
    }
}

/// A literal of the language; `None` where it cannot be written.
fn quoted(text: &str) -> Option<String> {
    let plain = text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
    plain.then(|| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}
