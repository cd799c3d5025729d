//! Functions: `dev`, `str`, `ns`, `us`, `ms`, `jiffies`, and what is said of those that are not run yet.
//!
//! In: a call. Out: a typed expression. `syscall` is only a side of a comparison, so `operators.rs` deals with it.

use super::expr::{Typer, describe, show};
use super::fold;
use super::not_yet;
use super::suggest::with_known;
use crate::ast::{self, BinaryOp};
use crate::diagnostic::Diagnostic;
use crate::eval;
use crate::plan::{Expr, Node};
use crate::schema::{Origin, Type};
use crate::source::{Name, Span};

const KNOWN: [&str; 9] = [
    "dev", "ip", "str", "cgroup", "syscall", "ns", "us", "ms", "jiffies",
];

/// `dev_t` of include/linux/kdev_t.h: 12 bits of major number, 20 of minor.
const MINOR_BITS: u32 = 20;
const MOST_MAJOR: i128 = (1 << 12) - 1;
const MOST_MINOR: i128 = (1 << MINOR_BITS) - 1;

impl<'a> Typer<'a> {
    /// `name(arguments)`
    pub(super) fn call(&mut self, name: &'a Name, arguments: &'a [ast::Expr], span: Span) -> Option<Expr> {
        let one = |typer: &mut Self| match arguments {
            [argument] => Some(argument),
            _ => {
                typer.count_of_arguments(name, 1, arguments.len(), span);
                None
            }
        };
        match name.value.as_str() {
            "dev" => match arguments {
                [major, minor] => self.dev(major, minor, span),
                _ => {
                    self.count_of_arguments(name, 2, arguments.len(), span);
                    None
                }
            },
            "str" => {
                let pointer = one(self)?;
                self.str(pointer, span)
            }
            "ns" => {
                let argument = one(self)?;
                self.time_of(name, argument, 1, span)
            }
            "us" => {
                let argument = one(self)?;
                self.time_of(name, argument, 1_000, span)
            }
            "ms" => {
                let argument = one(self)?;
                self.time_of(name, argument, 1_000_000, span)
            }
            "jiffies" => {
                let argument = one(self)?;
                let Some(hz) = self.schema.hz().filter(|hz| *hz > 0) else {
                    self.found.push(
                        Diagnostic::error("E114", name.span, "how long a jiffy is is not known here")
                            .help("where it is 4 ms: `ms(4 * …)`"),
                    );
                    return None;
                };
                self.time_of(name, argument, 1_000_000_000 / hz, span)
            }
            "syscall" => {
                one(self)?;
                self.found.push(
                    Diagnostic::error(
                        "E214",
                        span,
                        "a system call's name can only be compared with text",
                    )
                    .help("`syscall(id) == \"openat\"`, or `syscall(id) in { \"read\", \"write\" }`")
                    .help("to see it, record the number"),
                );
                None
            }
            "ip" | "cgroup" => {
                self.found.push(not_yet(&format!("{}(…)", name.value), span));
                None
            }
            other => {
                let error = Diagnostic::error("E106", name.span, format!("there is no function `{other}`"));
                self.found.push(with_known(error, other, KNOWN, "there are"));
                None
            }
        }
    }

    fn count_of_arguments(&mut self, name: &Name, wanted: usize, given: usize, span: Span) {
        let message = format!(
            "`{}` takes {wanted} {}, not {given}",
            name.value,
            if wanted == 1 { "value" } else { "values" }
        );
        let form = if wanted == 2 {
            "dev(MAJOR, MINOR)".to_owned()
        } else {
            format!("{}(VALUE)", name.value)
        };
        self.found
            .push(Diagnostic::error("E211", span, message).help(format!("write `{form}`")));
    }

    /// An integer that a function takes.
    pub(super) fn integer_argument(&mut self, function: &str, argument: &'a ast::Expr) -> Option<Expr> {
        let value = self.value(argument)?;
        if matches!(value.ty, Type::Int { .. }) {
            return Some(value);
        }
        let message = format!(
            "`{function}` takes an integer, and {} is {}",
            show(argument),
            describe(value.ty)
        );
        self.found.push(Diagnostic::error("E211", argument.span, message));
        None
    }

    /// `dev(8, 0)`
    fn dev(&mut self, major: &'a ast::Expr, minor: &'a ast::Expr, span: Span) -> Option<Expr> {
        let major = self.number_within("major", major, MOST_MAJOR);
        let minor = self.number_within("minor", minor, MOST_MINOR);
        Some(fold::integer((major? << MINOR_BITS) | minor?, span))
    }

    fn number_within(&mut self, what: &str, argument: &'a ast::Expr, most: i128) -> Option<i128> {
        let value = self.constant(argument, None)?;
        let number = fold::number_of(&value).filter(|_| matches!(value.ty, Type::Int { .. }));
        if let Some(number) = number.filter(|number| (0..=most).contains(number)) {
            return Some(number);
        }
        let message = format!("a {what} number is 0 to {most}, and {} is not", show(argument));
        self.found.push(Diagnostic::error("E211", argument.span, message));
        None
    }

    /// `str(filename)`
    fn str(&mut self, pointer: &'a ast::Expr, span: Span) -> Option<Expr> {
        let value = self.value(pointer)?;
        if value.ty != Type::U64 {
            let message = format!(
                "`str` reads the text that a 64-bit pointer points to, and {} is none",
                show(pointer)
            );
            let error = Diagnostic::error("E211", pointer.span, message);
            self.found.push(match value.ty {
                Type::Text { .. } => error.help(format!("it is text already: write {}", show(pointer))),
                _ => error,
            });
            return None;
        }
        // A system call's pointers are the caller's.
        let user = self
            .event
            .is_some_and(|event| event.origin != Origin::Tracepoint || event.system == "raw_syscalls");
        Some(Expr {
            node: Node::Str {
                pointer: Box::new(value),
                user,
            },
            ty: Type::TEXT,
            span,
        })
    }

    /// `ns(f)`, `us(f)`, `ms(f)`, `jiffies(f)`: an integer as a duration.
    fn time_of(&mut self, name: &'a Name, argument: &'a ast::Expr, unit_ns: u64, span: Span) -> Option<Expr> {
        let value = self.integer_argument(&name.value, argument)?;
        if let Some(number) = fold::number_of(&value) {
            let bits = eval::arithmetic(BinaryOp::Multiply, false, fold::bits(number), unit_ns);
            return Some(fold::duration(bits, span));
        }
        let unit = fold::integer(i128::from(unit_ns), span);
        Some(Expr {
            node: Node::Binary {
                op: BinaryOp::Multiply,
                signed: fold::is_signed(value.ty),
                left: Box::new(value),
                right: Box::new(unit),
            },
            ty: Type::Duration,
            span,
        })
    }
}
