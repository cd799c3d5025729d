//! The syntax tree: what was written, with places, before any name is looked up. Types only.
//!
//! In: `parse.rs` makes it. Out: `resolve.rs` reads it. The tree covers the whole grammar of the language, also what
//! later stages do not compile yet, so that "not yet" is said at the exact place.
//!
//! INVARIANT: no type of the parser generator appears here.

use crate::source::{Name, Span, Spanned};

/// One parsed file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct File {
    /// `language 1`, where it is written.
    pub language: Option<Spanned<u64>>,
    /// The items in file order. Items with a syntax error are left out (and were reported).
    pub items: Vec<Item>,
    /// What the items that were left out would have been called, so that a name is not said to be unknown as well.
    pub broken: Vec<String>,
}

/// A top-level item.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a file holds few items, and a box each would be in every match"
)]
pub enum Item {
    /// `param NAME = expr`
    Param(Param),
    /// `set NAME [max N/s] { … }`
    Set(Set),
    /// `span NAME { … }`
    Span(SpanItem),
    /// `buffer NAME { … }`
    Buffer(Buffer),
    /// `budget N %`
    Budget(Budget),
    /// `start with NAME, …`
    Start(Start),
    /// `rule NAME { … }`
    Rule(Rule),
    /// `test "…" { … }`
    Test(Test),
}

/// `param NAME = expr`
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// Its name.
    pub name: Name,
    /// Its value, a constant.
    pub value: Expr,
    /// The whole item.
    pub span: Span,
}

/// `set NAME [max N/s] { member… }`
#[derive(Debug, Clone, PartialEq)]
pub struct Set {
    /// Its name.
    pub name: Name,
    /// Records a second and CPU.
    pub max_per_s: Option<Spanned<u64>>,
    /// Its members in order.
    pub members: Vec<Member>,
    /// The whole item.
    pub span: Span,
}

/// A member of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The events it names.
    pub source: EventSource,
    /// `except PATTERN`, any number.
    pub except: Vec<Pattern>,
    /// `with EXPR`
    pub with: Option<Expr>,
    /// `sample 1/N`: N.
    pub sample: Option<Spanned<u64>>,
    /// `record …`; `None` where nothing is said.
    pub record: Option<Columns>,
    /// The whole member.
    pub span: Span,
}

/// `SYSTEM:EVENT [?]` or `span NAME`
#[derive(Debug, Clone, PartialEq)]
pub enum EventSource {
    /// A pattern of tracepoints.
    Events {
        /// The pattern.
        pattern: Pattern,
        /// `?`: skip it on kernels that lack it.
        optional: bool,
    },
    /// A span by name.
    Span(Name),
}

/// `SYSTEM:EVENT`, the event with `*` perhaps.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    /// The tracepoint's system.
    pub system: String,
    /// The event's name or glob.
    pub event: String,
    /// The whole pattern.
    pub span: Span,
}

/// What `record` lists.
#[derive(Debug, Clone, PartialEq)]
pub enum Columns {
    /// `record nothing`
    Nothing(Span),
    /// `record a, b as c, stack kernel`
    List(Vec<Column>),
}

/// One column.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// An expression with a name perhaps.
    Value {
        /// What is recorded.
        expr: Expr,
        /// `as NAME`
        name: Option<Name>,
    },
    /// `stack kernel` or `stack user`
    Stack(Stack),
}

/// `stack kernel` or `stack user`
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    /// True for `user`.
    pub user: bool,
    /// The words.
    pub span: Span,
}

/// `span NAME { from … to … }`
#[derive(Debug, Clone, PartialEq)]
pub struct SpanItem {
    /// Its name.
    pub name: Name,
    /// The events that open it.
    pub from: Vec<End>,
    /// The events that close it.
    pub to: Vec<End>,
    /// The whole item.
    pub span: Span,
}

/// An end of a span.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// The event.
    pub pattern: Pattern,
    /// `?`
    pub optional: bool,
    /// `with EXPR`
    pub with: Option<Expr>,
    /// `by EXPR, …`; empty where not given.
    pub by: Vec<Expr>,
    /// The whole end.
    pub span: Span,
}

/// `buffer NAME { size = … mode = … }`
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// Its name.
    pub name: Name,
    /// `size = SIZE`, bytes, each one given.
    pub sizes: Vec<Spanned<u64>>,
    /// `mode = overwrite|stream`: true for stream, each one given.
    pub streams: Vec<Spanned<bool>>,
    /// The whole item.
    pub span: Span,
}

/// `budget N %`
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// In millionths of a CPU: 1 % is 10,000.
    pub ppm: Spanned<u64>,
    /// The whole item.
    pub span: Span,
}

/// `start with NAME, …`
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// The sets.
    pub sets: Vec<Name>,
    /// The whole item.
    pub span: Span,
}

/// `rule NAME { … }`
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: Name,
    /// One or more triggers. The grammar allows several only of the plain kind.
    pub triggers: Vec<Trigger>,
    /// `repeated` or `total`.
    pub window: Option<Window>,
    /// `while …`
    pub guard: Option<Guard>,
    /// What it does, in order.
    pub actions: Vec<Action>,
    /// `limit …` or `once`.
    pub limit: Option<Limit>,
    /// The whole item.
    pub span: Span,
}

/// What a rule waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Trigger {
    /// `when SOURCE [with EXPR]`
    Event {
        /// The event or span.
        source: EventSource,
        /// The condition.
        with: Option<Expr>,
        /// The whole trigger.
        span: Span,
    },
    /// `when span NAME open for DURATION [with EXPR]`
    Open {
        /// The span's name.
        name: Name,
        /// Nanoseconds.
        for_ns: Spanned<u64>,
        /// The condition.
        with: Option<Expr>,
        /// The whole trigger.
        span: Span,
    },
    /// `when no PATTERN for DURATION`
    No {
        /// The event that is missed.
        pattern: Pattern,
        /// Nanoseconds.
        for_ns: Spanned<u64>,
        /// The whole trigger.
        span: Span,
    },
}

/// `repeated` or `total`.
#[derive(Debug, Clone, PartialEq)]
pub enum Window {
    /// `repeated N in DURATION [by …]`
    Repeated {
        /// How often.
        times: Spanned<u64>,
        /// Nanoseconds.
        in_ns: Spanned<u64>,
        /// The keys.
        by: Vec<Expr>,
        /// The whole window.
        span: Span,
    },
    /// `total EXPR over EXPR in DURATION [by …]`
    Total {
        /// What is added up.
        value: Expr,
        /// The bound.
        over: Expr,
        /// Nanoseconds.
        in_ns: Spanned<u64>,
        /// The keys.
        by: Vec<Expr>,
        /// The whole window.
        span: Span,
    },
}

/// A condition over the pack's own sets.
#[derive(Debug, Clone, PartialEq)]
pub enum Guard {
    /// A set is enabled.
    Set(Name),
    /// Not.
    Not(Box<Guard>),
    /// Both.
    And(Box<Guard>, Box<Guard>),
    /// Either.
    Or(Box<Guard>, Box<Guard>),
}

/// `limit N per D [by …]` or `once [by …]`
#[derive(Debug, Clone, PartialEq)]
pub enum Limit {
    /// At most so many firings in a window.
    Per {
        /// How many.
        count: Spanned<u64>,
        /// Nanoseconds.
        window_ns: Spanned<u64>,
        /// The keys.
        by: Vec<Expr>,
        /// The whole clause.
        span: Span,
    },
    /// Once.
    Once {
        /// The keys.
        by: Vec<Expr>,
        /// The whole clause.
        span: Span,
    },
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// Which action.
    pub kind: ActionKind,
    /// The whole action.
    pub span: Span,
}

/// The kinds of action.
#[derive(Debug, Clone, PartialEq)]
pub enum ActionKind {
    /// `enable A, B [for D]`
    Enable {
        /// The sets.
        sets: Vec<Name>,
        /// Nanoseconds.
        for_ns: Option<Spanned<u64>>,
    },
    /// `disable A, B`
    Disable {
        /// The sets.
        sets: Vec<Name>,
    },
    /// `switch buffer B [for D]`
    Switch {
        /// The buffer.
        buffer: Name,
        /// Nanoseconds.
        for_ns: Option<Spanned<u64>>,
    },
    /// `save [after D]`
    Save {
        /// Nanoseconds.
        after_ns: Option<Spanned<u64>>,
    },
    /// `notify "…"`
    Notify {
        /// The text in pieces.
        pieces: Vec<NotifyPiece>,
    },
    /// `count NAME [by …]`
    Count {
        /// Its name.
        name: Name,
        /// The keys.
        by: Vec<Expr>,
    },
    /// `measure NAME = EXPR [by …]`
    Measure {
        /// Its name.
        name: Name,
        /// What is measured.
        value: Expr,
        /// The keys.
        by: Vec<Expr>,
    },
    /// `stack kernel` or `stack user`
    Stack(Stack),
    /// `stop`
    Stop,
}

/// A part of a `notify` text.
#[derive(Debug, Clone, PartialEq)]
pub enum NotifyPiece {
    /// Plain text.
    Text(String),
    /// `{expr}`, parsed, with places inside the string.
    Value(Expr),
}

/// `test "…" { … }`
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// What it is called.
    pub title: Spanned<String>,
    /// Params it overrides.
    pub params: Vec<Param>,
    /// Its moments.
    pub moments: Vec<Moment>,
    /// The whole item.
    pub span: Span,
}

/// `at D { … }`
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// Nanoseconds since the test's start.
    pub at_ns: Spanned<u64>,
    /// What happens and what is expected, in order.
    pub steps: Vec<Step>,
    /// The whole moment.
    pub span: Span,
}

/// A step of a test.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// `SYSTEM:EVENT { a = 1, task.pid = 2 }`
    Hit {
        /// The event; no glob.
        pattern: Pattern,
        /// Dotted names and values.
        values: Vec<(Name, Expr)>,
        /// The whole step.
        span: Span,
    },
    /// `expect [not] …`
    Expect {
        /// `not` was written.
        negated: bool,
        /// What is expected.
        what: Expectation,
        /// The whole step.
        span: Span,
    },
}

/// What a test expects.
#[derive(Debug, Clone, PartialEq)]
pub enum Expectation {
    /// `fired RULE [N times]`
    Fired {
        /// The rule.
        rule: Name,
        /// `N times`
        times: Option<Spanned<u64>>,
    },
    /// `enabled SET`
    Enabled(Name),
    /// `buffer BUFFER`
    Buffer(Name),
    /// `kept BUFFER`
    Kept(Name),
    /// `recorded SOURCE`
    Recorded(EventSource),
}

/// An expression and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    /// Which expression.
    pub kind: ExprKind,
    /// The whole expression.
    pub span: Span,
}

/// The kinds of expression.
#[derive(Debug, Clone, PartialEq)]
pub enum ExprKind {
    /// `42`
    Int(u64),
    /// `100ms`, in nanoseconds.
    Duration(u64),
    /// `4MiB`, in bytes.
    Size(u64),
    /// `"…"`, unescaped.
    Text(String),
    /// `true`, `false`
    Bool(bool),
    /// A name.
    Name(String),
    /// `base.name`
    Member(Box<Expr>, Name),
    /// `base[3]`
    Index(Box<Expr>, Spanned<u64>),
    /// `name(args…)`
    Call(Name, Vec<Expr>),
    /// A prefix operator.
    Unary(UnaryOp, Box<Expr>),
    /// Arithmetic and bit operators.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// A comparison.
    Compare(CompareOp, Box<Expr>, Box<Expr>),
    /// `a [not] in { … }`
    InList {
        /// The left side.
        value: Box<Expr>,
        /// `not` was written.
        negated: bool,
        /// The literals.
        list: Vec<Expr>,
    },
    /// `a [not] in lo .. hi` (both ends included), or `a in network`, where `hi` is `None`.
    InRange {
        /// The left side.
        value: Box<Expr>,
        /// `not` was written.
        negated: bool,
        /// The low end.
        low: Box<Expr>,
        /// The high end.
        high: Option<Box<Expr>>,
    },
    /// `a [not] like "…"`
    Like {
        /// The left side.
        value: Box<Expr>,
        /// `not` was written.
        negated: bool,
        /// The pattern, unescaped.
        pattern: Spanned<String>,
    },
    /// `a and b`
    And(Box<Expr>, Box<Expr>),
    /// `a or b`
    Or(Box<Expr>, Box<Expr>),
}

/// Prefix operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnaryOp {
    /// `-`
    Negate,
    /// `~`
    Complement,
    /// `!` and `not`
    Not,
}

/// Arithmetic and bit operators, loosest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is its own symbol, see `symbol`")]
pub enum BinaryOp {
    Or,
    Xor,
    And,
    ShiftLeft,
    ShiftRight,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl BinaryOp {
    /// Each of them, the loosest first.
    pub const ALL: [BinaryOp; 10] = [
        BinaryOp::Or,
        BinaryOp::Xor,
        BinaryOp::And,
        BinaryOp::ShiftLeft,
        BinaryOp::ShiftRight,
        BinaryOp::Add,
        BinaryOp::Subtract,
        BinaryOp::Multiply,
        BinaryOp::Divide,
        BinaryOp::Remainder,
    ];

    /// How tightly it binds: the higher, the tighter. Equal levels group from left to right.
    #[must_use]
    pub fn level(self) -> u8 {
        match self {
            BinaryOp::Or => 0,
            BinaryOp::Xor => 1,
            BinaryOp::And => 2,
            BinaryOp::ShiftLeft | BinaryOp::ShiftRight => 3,
            BinaryOp::Add | BinaryOp::Subtract => 4,
            BinaryOp::Multiply | BinaryOp::Divide | BinaryOp::Remainder => 5,
        }
    }

    /// As it is written.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Or => "|",
            BinaryOp::Xor => "^",
            BinaryOp::And => "&",
            BinaryOp::ShiftLeft => "<<",
            BinaryOp::ShiftRight => ">>",
            BinaryOp::Add => "+",
            BinaryOp::Subtract => "-",
            BinaryOp::Multiply => "*",
            BinaryOp::Divide => "/",
            BinaryOp::Remainder => "%",
        }
    }
}

/// Comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is its own symbol, see `symbol`")]
pub enum CompareOp {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl CompareOp {
    /// As it is written.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            CompareOp::Equal => "==",
            CompareOp::NotEqual => "!=",
            CompareOp::Less => "<",
            CompareOp::LessEqual => "<=",
            CompareOp::Greater => ">",
            CompareOp::GreaterEqual => ">=",
        }
    }
}
