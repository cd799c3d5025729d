//! The catalogue: format fields in terms of a tracepoint's arguments, as data (`catalogue.txt`).
//!
//! In: the text. Out: [`Row`]s, whose paths whoever has the kernel's types follows to a
//! [`Recipe`](lkst_rules::schema::Recipe).
//!
//! INVARIANT: a row says what the header does that the text names. The kernel's own classic value is the test of it, on
//! the kernels where that test was run and for the events that it could make happen.

use lkst_rules::schema::{Operator, PathStep};

/// The catalogue itself.
const TEXT: &str = include_str!("catalogue.txt");

/// What is known of one field of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its line in the text, from 1.
    pub line: usize,
    /// `system:name`
    pub event: String,
    /// The field.
    pub field: String,
    /// What it is; the first that fits a kernel's types holds there.
    pub alternatives: Vec<Expression>,
}

/// What a field is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// What a path leads to.
    Path(Place),
    /// `jiffies`
    Jiffies,
    /// The six arguments of a system call.
    SyscallArguments,
    /// `switch_state(preempt, prev_state, prev.exit_state)`
    SwitchState {
        /// `bool preempt`
        preempt: Place,
        /// `unsigned int prev_state`
        prev_state: Place,
        /// `prev->exit_state`
        exit_state: Place,
    },
    /// `siginfo(info.si_code, 0, 0x80)`
    Siginfo {
        /// The member.
        member: Place,
        /// The value where the pointer is `SEND_SIG_NOINFO`.
        none: i64,
        /// The value where the pointer is `SEND_SIG_PRIV`.
        private: i64,
    },
    /// `text_or(bdi.dev, bdi.dev_name, (unknown))`
    TextOr {
        /// What must not be null.
        pointer: Place,
        /// The text.
        of: Place,
        /// What there is otherwise.
        otherwise: String,
    },
    /// A number.
    Number(i64),
    /// `(a + b)`
    Binary {
        /// What is done.
        operator: Operator,
        /// The first.
        a: Box<Expression>,
        /// The second.
        b: Box<Expression>,
    },
}

/// A path as the catalogue writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From the current task, not from an argument.
    pub current: bool,
    /// The first is the argument's name, or a member of the current task. `*now` is `now[0]`.
    pub steps: Vec<PathStep>,
}

/// A line of a catalogue that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the catalogue: {message}")]
pub struct CatalogueError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// The rows of the catalogue, in its order. A test proves that the text which is built in has no error.
///
/// # Errors
/// [`CatalogueError`] of the first line that is not understood.
pub fn rows() -> Result<Vec<Row>, CatalogueError> {
    parse(TEXT)
}

/// Reads a catalogue.
///
/// # Errors
/// [`CatalogueError`] of the first line that is not understood.
pub fn parse(text: &str) -> Result<Vec<Row>, CatalogueError> {
    let mut rows: Vec<Row> = Vec::new();
    let mut events: Vec<&str> = Vec::new();
    let mut after_events = false;
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let failed = |message: String| CatalogueError {
            line: line_number,
            message,
        };
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.starts_with(' ') {
            if !after_events {
                events.clear();
            }
            after_events = true;
            events.extend(line.split_whitespace());
            if let Some(wrong) = events.iter().find(|event| !event.contains(':')) {
                return Err(failed(format!("`{wrong}` is no `system:event`")));
            }
            continue;
        }
        after_events = false;
        let Some((field, expressions)) = line.split_once('=') else {
            return Err(failed("expected `field = expression`".to_owned()));
        };
        let field = field.trim();
        if events.is_empty() {
            return Err(failed("a field without an event above it".to_owned()));
        }
        let alternatives = expressions
            .split('|')
            .map(|text| expression(text.trim()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| failed(format!("`{}` is no expression", expressions.trim())))?;
        for event in &events {
            if rows.iter().any(|row| row.event == *event && row.field == field) {
                return Err(failed(format!("a second row for `{field}` of `{event}`")));
            }
            rows.push(Row {
                line: line_number,
                event: (*event).to_owned(),
                field: field.to_owned(),
                alternatives: alternatives.clone(),
            });
        }
    }
    Ok(rows)
}

fn expression(text: &str) -> Option<Expression> {
    match text {
        "jiffies" => return Some(Expression::Jiffies),
        "syscall_arguments" => return Some(Expression::SyscallArguments),
        _ => {}
    }
    if let Some(function) = function(text) {
        return Some(function);
    }
    let mut rest = text;
    let first = sum(&mut rest)?;
    rest.trim().is_empty().then_some(first)
}

fn function(text: &str) -> Option<Expression> {
    let (function, arguments) = text.strip_suffix(')')?.split_once('(')?;
    let arguments: Vec<_> = arguments.split(',').map(str::trim).collect();
    match (function, arguments.as_slice()) {
        ("switch_state", [preempt, prev_state, exit_state]) => Some(Expression::SwitchState {
            preempt: place(preempt)?,
            prev_state: place(prev_state)?,
            exit_state: place(exit_state)?,
        }),
        ("siginfo", [member, none, private]) => Some(Expression::Siginfo {
            member: place(member)?,
            none: number(none)?,
            private: number(private)?,
        }),
        ("text_or", [pointer, of, otherwise]) => Some(Expression::TextOr {
            pointer: place(pointer)?,
            of: place(of)?,
            otherwise: (*otherwise).to_owned(),
        }),
        _ => None,
    }
}

/// Operands and operators from left to right: what belongs together otherwise is in brackets. Ends before what is no
/// operator.
fn sum(rest: &mut &str) -> Option<Expression> {
    let mut all = operand(rest)?;
    loop {
        let behind = rest.trim_start();
        let of = |operator: &Operator| Some((*operator, behind.strip_prefix(operator.symbol())?));
        let Some((operator, right)) = Operator::ALL.iter().find_map(of) else {
            return Some(all);
        };
        *rest = right;
        all = Expression::Binary {
            operator,
            a: Box::new(all),
            b: Box::new(operand(rest)?),
        };
    }
}

fn operand(rest: &mut &str) -> Option<Expression> {
    let text = rest.trim_start();
    if let Some(inner) = text.strip_prefix('(') {
        *rest = inner;
        let all = sum(rest)?;
        *rest = rest.trim_start().strip_prefix(')')?;
        return Some(all);
    }
    let ends = |c: char| !(c.is_ascii_alphanumeric() || "_.[]".contains(c));
    let start = usize::from(text.starts_with('*'));
    let end = text
        .get(start..)?
        .find(ends)
        .map_or(text.len(), |end| start + end);
    let (word, behind) = text.split_at(end);
    *rest = behind;
    match number(word) {
        Some(number) => Some(Expression::Number(number)),
        None => place(word).map(Expression::Path),
    }
}

fn place(text: &str) -> Option<Place> {
    let (text, behind) = text.strip_prefix('*').map_or((text, false), |text| (text, true));
    let mut steps = Vec::new();
    for part in text.split('.') {
        let (name, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        steps.push(PathStep::Name(name.to_owned()));
        for index in indices.split_terminator(']') {
            steps.push(PathStep::Index(index.strip_prefix('[')?.parse().ok()?));
        }
    }
    if behind {
        steps.push(PathStep::Index(0));
    }
    let current = steps.first() == Some(&PathStep::Name("current".to_owned()));
    if current {
        steps.remove(0);
    }
    (!steps.is_empty()).then_some(Place { current, steps })
}

fn number(text: &str) -> Option<i64> {
    match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use lkst_rules::schema::PathStep::{Index, Name};

    use super::*;

    fn path(current: bool, steps: &[PathStep]) -> Expression {
        Expression::Path(Place {
            current,
            steps: steps.to_vec(),
        })
    }

    #[test]
    fn the_catalogue_that_is_built_in_is_read_whole() -> Result<(), CatalogueError> {
        let rows = rows()?;
        let mut events: Vec<_> = rows.iter().map(|row| row.event.as_str()).collect();
        events.dedup();
        events.sort_unstable();
        events.dedup();
        assert!(events.len() >= 280, "{}", events.len());
        Ok(())
    }

    #[test]
    fn every_form_of_expression_is_read() {
        let name = |text: &str| Name(text.to_owned());
        assert_eq!(
            expression("prev.pid"),
            Some(path(false, &[name("prev"), name("pid")]))
        );
        assert_eq!(expression("current.comm"), Some(path(true, &[name("comm")])));
        assert_eq!(
            expression("pid.numbers[0].nr"),
            Some(path(false, &[name("pid"), name("numbers"), Index(0), name("nr")]))
        );
        assert_eq!(expression("*now"), Some(path(false, &[name("now"), Index(0)])));
        assert_eq!(expression("jiffies"), Some(Expression::Jiffies));
        assert_eq!(
            expression("syscall_arguments"),
            Some(Expression::SyscallArguments)
        );
        assert!(matches!(
            expression("siginfo(info.si_code, 0, 0x80)"),
            Some(Expression::Siginfo {
                none: 0,
                private: 0x80,
                ..
            })
        ));
        assert!(matches!(
            expression("switch_state(a, b, c.d)"),
            Some(Expression::SwitchState { .. })
        ));
        assert!(matches!(
            expression("text_or(a, b.c, (null))"),
            Some(Expression::TextOr { otherwise, .. }) if otherwise == "(null)"
        ));
        assert_eq!(expression("0x10"), Some(Expression::Number(16)));
    }

    #[test]
    fn operators_are_read_from_left_to_right_and_by_brackets() {
        let binary = |operator, a, b| Expression::Binary {
            operator,
            a: Box::new(a),
            b: Box::new(b),
        };
        let (a, b) = (
            || path(false, &[Name("a".to_owned())]),
            || path(false, &[Name("b".to_owned()), Index(0)]),
        );
        let number = Expression::Number;
        let sum = binary(Operator::Subtract, a(), b());
        assert_eq!(
            expression("a - *b << 3"),
            Some(binary(Operator::Left, sum.clone(), number(3)))
        );
        let not_zero = binary(Operator::NotEqual, b(), number(0));
        assert_eq!(
            expression("a * (b[0] != 0)"),
            Some(binary(Operator::Multiply, a(), not_zero))
        );
        for wrong in ["a +", "(a", "a)", "a b", "+ a", "a / b", "()"] {
            assert_eq!(expression(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line) in [
            ("a:b\n  x y\n", 2),
            ("\n  x = y\n", 2),
            ("ab\n", 1),
            ("a:b\n  x = f(1)\n", 2),
            ("a:b\n  x = y.\n", 2),
            ("a:b\n  x = y[z]\n", 2),
            ("a:b\n  x = current\n", 2),
            ("a:b\n  x = y\n  x = z\n", 3),
        ] {
            assert_eq!(parse(text).map_err(|error| error.line), Err(line), "{text}");
        }
    }

    #[test]
    fn events_above_share_the_fields_below() -> Result<(), CatalogueError> {
        let rows = parse("# so\na:b\na:c\n  x = y | *y\na:d\n  x = y\n")?;
        let all: Vec<_> = rows
            .iter()
            .map(|row| (row.line, row.event.as_str(), row.alternatives.len()))
            .collect();
        assert_eq!(all, [(4, "a:b", 2), (4, "a:c", 2), (6, "a:d", 1)]);
        Ok(())
    }
}
