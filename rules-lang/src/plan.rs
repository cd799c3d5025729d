//! The plan: what a pack means, with every name looked up and every type checked. Types and their printed form.
//!
//! In: `resolve.rs` and `check.rs` make it. Out: the code generator lowers it, `eval.rs` interprets it,
//! `lkst explain --emit plan` prints it.
//!
//! INVARIANT: a plan stands alone. Nobody who holds one needs the schema, the syntax tree or the kernel again.
//! INVARIANT: sets, buffers and rules are numbered by their place in their vector; buffer 0 is `main`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{BinaryOp, CompareOp};
use crate::schema::{Event, Path, Place, Recipe, Type};
use crate::source::Span;

/// A whole pack.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The pack's name.
    pub pack: String,
    /// What it may cost of each CPU, in millionths; `None` where the file does not say.
    pub budget_ppm: Option<u32>,
    /// At most 40.
    pub sets: Vec<Set>,
    /// At most 8; the first is `main`.
    pub buffers: Vec<Buffer>,
    /// At most 1,024, in judging order.
    pub rules: Vec<Rule>,
    /// Every event that a set or a rule names, sorted by full name, each once.
    pub events: Vec<EventPlan>,
}

/// The columns of all fields of events, by full name, as plans share them.
pub type SharedColumns = BTreeMap<String, Arc<[Column]>>;

impl Plan {
    /// Lets events have their columns in common with those of other plans: most of what many plans hold is that. What was
    /// written where is forgotten of these columns, which nobody has written.
    pub fn share(&mut self, known: &mut SharedColumns) {
        for wish in &mut self.events {
            let plain: Arc<[Column]> = wish.all.iter().map(Column::without_span).collect();
            let shared = known
                .entry(wish.event.full_name())
                .or_insert_with(|| plain.clone());
            if *shared != plain {
                *shared = plain;
            }
            wish.all = Arc::clone(shared);
        }
    }
}

/// A set of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// `max N/s`, per CPU.
    pub max_per_s: Option<u32>,
    /// Named by `start with`.
    pub start: bool,
    /// Some rule enables it `for` a time, so that its end must be looked at on every hit.
    pub timed: bool,
    /// Where it was written.
    pub span: Span,
}

/// A buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Its name.
    pub name: String,
    /// Bytes per CPU as written, at least two pages of 4,096.
    pub size_bytes: u64,
    /// It never overwrites itself, but is written to disk all the time.
    pub stream: bool,
    /// Where it was written; the default for a `main` that nobody declared.
    pub span: Span,
}

/// A rule, without its triggers, which lie with their events.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// `while …`
    pub guard: Option<Guard>,
    /// In order; `notify` is in `message` instead.
    pub actions: Vec<Action>,
    /// How often it may fire.
    pub limit: Limit,
    /// All of its `notify` texts, one after another. Empty where it has none.
    pub message: Vec<MessagePiece>,
    /// False where none of its events is in this kernel, or its condition is never true: then it has no trigger.
    pub live: bool,
    /// Where it was written.
    pub span: Span,
}

/// A part of a rule's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessagePiece {
    /// Plain text.
    Text(String),
    /// The value with this index in [`Trigger::values`].
    Value(usize),
}

/// A condition over sets, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// A set is enabled.
    Set(usize),
    /// Not.
    Not(Box<Guard>),
    /// Both.
    And(Box<Guard>, Box<Guard>),
    /// Either.
    Or(Box<Guard>, Box<Guard>),
}

/// What a rule does to the state. Sets and buffers by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `enable S [for D]`
    Enable {
        /// The set.
        set: usize,
        /// How long.
        for_ns: Option<u64>,
    },
    /// `disable S`
    Disable {
        /// The set.
        set: usize,
    },
    /// `switch buffer B [for D]`
    Switch {
        /// The buffer.
        buffer: usize,
        /// How long.
        for_ns: Option<u64>,
    },
    /// `save [after D]`
    Save {
        /// How much later; 0 at once.
        after_ns: u64,
    },
    /// `stop`
    Stop,
}

/// How often a rule may fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `count` times in a fixed window of `window_ns` from the first firing.
    Per {
        /// 1 to 65,535.
        count: u16,
        /// Nanoseconds.
        window_ns: u64,
    },
    /// Once.
    Once,
}

/// All that a pack wants of one event.
#[derive(Debug, Clone, PartialEq)]
pub struct EventPlan {
    /// The event.
    pub event: Arc<Event>,
    /// The members of sets that name it, in file order. Several of one set, where several globs match or several
    /// explicit members name it: it is recorded if any of them holds.
    pub members: Vec<Member>,
    /// The rules that wait for it, in judging order, each once.
    pub triggers: Vec<Trigger>,
    /// The columns of a record with all fields, in the format's order.
    pub all: Arc<[Column]>,
}

/// One member of a set for one event.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The set.
    pub set: usize,
    /// `with …`
    pub with: Option<Expr>,
    /// `sample 1/N`: N, at least 2.
    pub sample: Option<u32>,
    /// What it records; `None` is all fields.
    pub columns: Option<Vec<Column>>,
    /// True where the condition asks for lkst's own processes, which are skipped otherwise.
    pub own: bool,
    /// Where it was written.
    pub span: Span,
}

/// A rule's wait for one event.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// The rule.
    pub rule: usize,
    /// `with …`
    pub with: Option<Expr>,
    /// The values of the rule's message for this event.
    pub values: Vec<Column>,
    /// As [`Member::own`].
    pub own: bool,
    /// Where it was written.
    pub span: Span,
}

/// A named value of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name in the record; unique within the record.
    pub name: String,
    /// What it is. Its type is any but `Type::Bool` (a condition is recorded as an unsigned byte).
    pub value: Expr,
    /// Shown in hexadecimal.
    pub hex: bool,
}

impl Column {
    /// The same, with its place forgotten: two columns that mean the same are then equal.
    #[must_use]
    pub fn without_span(&self) -> Column {
        Column {
            value: self.value.without_spans(),
            ..self.clone()
        }
    }
}

/// A typed expression. Integers are 64 bits wide when computed, extended by their type's sign.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    /// Which expression.
    pub node: Node,
    /// Its type.
    pub ty: Type,
    /// Where it was written, for listings.
    pub span: Span,
}

/// The kinds of typed expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// A constant, sign-extended to 64 bits where its type is signed.
    Int(u64),
    /// A constant text without its NUL.
    Text(Vec<u8>),
    /// A constant truth.
    Bool(bool),
    /// A value of the hit.
    Load(Load),
    /// `-x` and `~x`, 64 bits, wrapping.
    Negate(Box<Expr>),
    /// `~x`
    Complement(Box<Expr>),
    /// 64 bits, wrapping; `/ % >>` are signed if `signed`; `x / 0` is 0, `x % 0` is `x`; a shift takes the low six
    /// bits of its right side.
    Binary {
        /// The operator.
        op: BinaryOp,
        /// Signed division, remainder and shift.
        signed: bool,
        /// Left.
        left: Box<Expr>,
        /// Right.
        right: Box<Expr>,
    },
    /// Integers, durations or booleans (only `==`, `!=`).
    Compare {
        /// The operator.
        op: CompareOp,
        /// Signed comparison.
        signed: bool,
        /// Left.
        left: Box<Expr>,
        /// Right.
        right: Box<Expr>,
    },
    /// Two texts are equal up to their first NUL. False where one is unreadable. (`!=` is false then too: see
    /// `negated`.)
    TextEqual {
        /// Left.
        left: Box<Expr>,
        /// Right.
        right: Box<Expr>,
        /// `!=`
        negated: bool,
    },
    /// An integer is one of these, sorted and without doubles.
    InInts {
        /// What is looked for.
        value: Box<Expr>,
        /// Where, each extended as `value` is.
        list: Vec<u64>,
        /// `not in`
        negated: bool,
    },
    /// A text is one of these.
    InTexts {
        /// What is looked for.
        value: Box<Expr>,
        /// Where, without NULs.
        list: Vec<Vec<u8>>,
        /// `not in`; false where `value` is unreadable.
        negated: bool,
    },
    /// `low <= value <= high`.
    InRange {
        /// What is looked for.
        value: Box<Expr>,
        /// The low end, included.
        low: Box<Expr>,
        /// The high end, included.
        high: Box<Expr>,
        /// Signed comparisons.
        signed: bool,
        /// `not in`
        negated: bool,
    },
    /// A text holds `body`, at its start unless `open_start`, at its end unless `open_end`.
    Like {
        /// The text.
        value: Box<Expr>,
        /// `*` at the start.
        open_start: bool,
        /// The bytes between.
        body: Vec<u8>,
        /// `*` at the end.
        open_end: bool,
        /// `not like`; false where `value` is unreadable.
        negated: bool,
    },
    /// The text behind an address.
    Str {
        /// The address.
        pointer: Box<Expr>,
        /// User memory.
        user: bool,
    },
    /// Logical.
    Not(Box<Expr>),
    /// Logical, the right side only if the left is true.
    And(Box<Expr>, Box<Expr>),
    /// Logical, the right side only if the left is false.
    Or(Box<Expr>, Box<Expr>),
}

/// A value of the hit.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// A field or an argument's path. At least one of `place` and `recipe` is there; which of them is used is the
    /// choice of whoever knows what all packs want of the event.
    Field {
        /// The field's name, or `args.…` as written.
        name: String,
        /// For classic programs. An element of an array has its own place.
        place: Option<Place>,
        /// For typed programs.
        recipe: Option<Recipe>,
    },
    /// The current task.
    Task(TaskValue),
    /// This CPU's number.
    Cpu,
    /// Nanoseconds since boot, the one clock value of the hit.
    Time,
    /// The event's full name: a constant for each event.
    EventName(String),
}

/// A value of the current task.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskValue {
    /// The process.
    Pid,
    /// The thread.
    Tid,
    /// The real user.
    Uid,
    /// The real group.
    Gid,
    /// The parent process, by this path from the current task.
    Ppid(Path),
    /// The task's name, by this path from the current task.
    Comm(Path),
    /// The COMMAND of `lkst run`, or what it started.
    Traced,
}

impl Expr {
    /// The expressions it is made of.
    #[must_use]
    pub fn children(&self) -> Vec<&Expr> {
        match &self.node {
            Node::Int(_) | Node::Text(_) | Node::Bool(_) | Node::Load(_) => Vec::new(),
            Node::Negate(x) | Node::Complement(x) | Node::Not(x) => vec![x],
            Node::InInts { value, .. } | Node::InTexts { value, .. } | Node::Like { value, .. } => {
                vec![value]
            }
            Node::Str { pointer, .. } => vec![pointer],
            Node::Binary { left, right, .. }
            | Node::Compare { left, right, .. }
            | Node::TextEqual { left, right, .. }
            | Node::And(left, right)
            | Node::Or(left, right) => vec![left, right],
            Node::InRange { value, low, high, .. } => vec![value, low, high],
        }
    }

    fn children_mut(&mut self) -> Vec<&mut Expr> {
        match &mut self.node {
            Node::Int(_) | Node::Text(_) | Node::Bool(_) | Node::Load(_) => Vec::new(),
            Node::Negate(x) | Node::Complement(x) | Node::Not(x) => vec![x],
            Node::InInts { value, .. } | Node::InTexts { value, .. } | Node::Like { value, .. } => {
                vec![value]
            }
            Node::Str { pointer, .. } => vec![pointer],
            Node::Binary { left, right, .. }
            | Node::Compare { left, right, .. }
            | Node::TextEqual { left, right, .. }
            | Node::And(left, right)
            | Node::Or(left, right) => vec![left, right],
            Node::InRange { value, low, high, .. } => vec![value, low, high],
        }
    }

    /// Every value of the hit that it reads, its own loads first.
    pub fn loads<'e>(&'e self, found: &mut Vec<(&'e Load, Span)>) {
        if let Node::Load(load) = &self.node {
            found.push((load, self.span));
        }
        for child in self.children() {
            child.loads(found);
        }
    }

    /// Itself with every place forgotten, so that two that mean the same are equal.
    #[must_use]
    pub fn without_spans(&self) -> Expr {
        let mut expr = self.clone();
        expr.forget_spans();
        expr
    }

    fn forget_spans(&mut self) {
        self.span = Span::default();
        for child in self.children_mut() {
            child.forget_spans();
        }
    }
}
