//! What a rule may name: events, their fields and arguments, types and symbols.
//!
//! In: whoever knows a kernel implements [`Schema`] (the agent does, from tracefs and BTF; tests do, from fixtures).
//! Out: `resolve.rs` asks it, and copies what it needs into the plan, so that a plan stands alone.
//!
//! The types here are the contract between the three crates: where a value lies ([`Place`] in a classic tracepoint's
//! context, [`Recipe`] through the kernel's own types) is decided by the schema, carried by the plan, and turned into
//! instructions by the code generator. The language itself never looks inside.

use std::sync::Arc;

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// An integer of 8, 16, 32 or 64 bits.
    Int {
        /// Its width.
        bits: u8,
        /// Two's complement.
        signed: bool,
    },
    /// True or false.
    Bool,
    /// Text that ends at its first NUL or after `capacity` bytes.
    Text {
        /// Bytes at most, the NUL (where there is one) included: 16 for a `comm`, 256 where the length varies.
        capacity: u16,
    },
    /// A time in nanoseconds, unsigned 64 bits.
    Duration,
    /// An array of integers of a fixed length.
    Array {
        /// Width of an element.
        bits: u8,
        /// Sign of an element.
        signed: bool,
        /// Number of elements.
        count: u16,
    },
    /// Integers in a number that varies from hit to hit (`__data_loc` arrays that are not text).
    Sequence {
        /// Width of an element.
        bits: u8,
        /// Sign of an element.
        signed: bool,
    },
}

impl Type {
    /// The unsigned 64-bit integer.
    pub const U64: Type = Type::Int {
        bits: 64,
        signed: false,
    };
    /// The signed 64-bit integer.
    pub const I64: Type = Type::Int {
        bits: 64,
        signed: true,
    };
    /// The unsigned 32-bit integer.
    pub const U32: Type = Type::Int {
        bits: 32,
        signed: false,
    };
    /// The signed 32-bit integer.
    pub const I32: Type = Type::Int {
        bits: 32,
        signed: true,
    };
    /// Text whose length varies: at most 255 bytes and a NUL.
    pub const TEXT: Type = Type::Text { capacity: 256 };
    /// A task's name: `TASK_COMM_LEN`, include/linux/sched.h.
    pub const COMM: Type = Type::Text { capacity: 16 };
}

/// Names and values of an enumeration or of a print format's table.
pub type Symbols = Arc<[(String, i64)]>;

/// A kernel event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The tracepoint's system, as in tracefs.
    pub system: String,
    /// The event's name, as in tracefs.
    pub name: String,
    /// How its hits reach us.
    pub origin: Origin,
    /// The format's fields in the format's order, without the `common_` ones.
    pub fields: Vec<Field>,
    /// The tracepoint's arguments in order; empty where BTF does not know it and for syscall events.
    pub arguments: Vec<Argument>,
    /// True where the event commonly happens in an interrupt, so that the current task is a bystander.
    pub in_interrupt: bool,
}

impl Event {
    /// `system:name`
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}:{}", self.system, self.name)
    }

    /// The field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }
}

/// How an event's hits reach us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A tracepoint of its own.
    Tracepoint,
    /// `raw_syscalls:sys_enter` with this number.
    SyscallEnter(u32),
    /// `raw_syscalls:sys_exit` with this number.
    SyscallExit(u32),
}

/// A field of an event's format.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name in the format file.
    pub name: String,
    /// Its type in C, as declared.
    pub declared: String,
    /// Its type.
    pub ty: Type,
    /// A pointer or another value that people read in hexadecimal.
    pub hex: bool,
    /// Where a classic program finds it. `None` for syscall events, which are always typed.
    pub place: Option<Place>,
    /// How a typed program finds it. `None` where the catalogue does not know it.
    pub recipe: Option<Recipe>,
    /// The table of the event's own print format for this field.
    pub symbols: Symbols,
    /// The enumerators of the field's own enum.
    pub enumerators: Symbols,
}

/// An argument of a tracepoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its type in C.
    pub declared: String,
}

/// Where a field lies in the context of a classic tracepoint program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The value itself, at this byte.
    At(u16),
    /// A `__data_loc` word at this byte: length << 16 | offset from the start of the context.
    DataLoc(u16),
    /// A `__rel_loc` word at this byte: length << 16 | offset from the end of the word.
    RelLoc(u16),
}

/// How a typed program computes a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Recipe {
    /// A walk through pointers.
    Path(Path),
    /// The number of the system call.
    SyscallNumber,
    /// An argument of the system call, 0 to 5, cut to the field's type.
    SyscallArgument(u8),
    /// An argument of the system call, 0 to 5, by the registers in which the program at hand passes them: a 64-bit or a
    /// 32-bit one.
    AnySyscallArgument(u8),
    /// All six of them.
    AnySyscallArguments,
    /// What the system call returned.
    SyscallReturn,
    /// `jiffies`, truncated to the field's type.
    Jiffies,
    /// `__trace_sched_switch_state` of include/trace/events/sched.h.
    SwitchState {
        /// `bool preempt`
        preempt: Path,
        /// `unsigned int prev_state`
        prev_state: Path,
        /// `prev->exit_state`
        exit_state: Path,
    },
    /// `TP_STORE_SIGINFO` of include/trace/events/signal.h: a member of the siginfo behind a pointer that may also
    /// be 0 (`SEND_SIG_NOINFO`) or 1 (`SEND_SIG_PRIV`), each with a value of its own.
    Siginfo {
        /// The member, one hop behind the pointer.
        member: Path,
        /// The value for 0.
        none: i64,
        /// The value for 1.
        private: i64,
    },
    /// Text at the end of a path, and a constant one where a pointer is null: `bdi_dev_name()`, or what the kernel
    /// formats where there is no text.
    TextOr {
        /// The pointer.
        pointer: Path,
        /// The text.
        of: Path,
        /// The other one, of at most 15 bytes.
        otherwise: Arc<str>,
    },
    /// A constant.
    Constant(i64),
    /// A value at a width of its own: what C does when an integer is used in an expression or assigned to another type.
    As {
        /// The value.
        of: Box<Recipe>,
        /// Its width.
        bits: u8,
        /// Its sign.
        signed: bool,
    },
    /// Two values in one, in 64 bits.
    Binary {
        /// What is done.
        operator: Operator,
        /// The first.
        a: Box<Recipe>,
        /// The second.
        b: Box<Recipe>,
    },
}

impl Recipe {
    /// The paths that are walked for it.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Recipe::Path(path) | Recipe::Siginfo { member: path, .. } => vec![path],
            Recipe::SyscallNumber
            | Recipe::SyscallArgument(_)
            | Recipe::AnySyscallArgument(_)
            | Recipe::AnySyscallArguments
            | Recipe::SyscallReturn
            | Recipe::Jiffies
            | Recipe::Constant(_) => Vec::new(),
            Recipe::SwitchState {
                preempt,
                prev_state,
                exit_state,
            } => vec![preempt, prev_state, exit_state],
            Recipe::TextOr { pointer, of, .. } => vec![pointer, of],
            Recipe::As { of, .. } => of.paths(),
            Recipe::Binary { a, b, .. } => [a.paths(), b.paths()].concat(),
        }
    }
}

/// What is done with two integers of 64 bits. Everything wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `a + b`
    Add,
    /// `a - b`
    Subtract,
    /// `a * b`
    Multiply,
    /// `a & b`
    And,
    /// `a << b`
    Left,
    /// `a >> b` of unsigned integers.
    Right,
    /// `a != b`: 1 or 0.
    NotEqual,
}

impl Operator {
    /// As C writes it.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Operator::Add => "+",
            Operator::Subtract => "-",
            Operator::Multiply => "*",
            Operator::And => "&",
            Operator::Left => "<<",
            Operator::Right => ">>",
            Operator::NotEqual => "!=",
        }
    }

    /// All of them.
    pub const ALL: [Operator; 7] = [
        Operator::Add,
        Operator::Subtract,
        Operator::Multiply,
        Operator::And,
        Operator::Left,
        Operator::Right,
        Operator::NotEqual,
    ];
}

/// A walk from an argument or from the current task to a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Path {
    /// Where it begins.
    pub base: Base,
    /// At each hop but the last a pointer is loaded from `pointer + offset`; the value lies at the last. No hops: the
    /// argument itself is the value.
    pub hops: Vec<Hop>,
    /// For a bit field: which bits of the loaded value.
    pub bits: Option<BitField>,
    /// The value loaded last is a pointer to NUL-terminated text, and the text is meant.
    pub text_behind: bool,
}

/// Where a path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Base {
    /// The tracepoint's argument, counted from 0.
    Argument(u8),
    /// The current `task_struct`.
    CurrentTask,
}

/// One step of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hop {
    /// Bytes from the pointer.
    pub offset: u32,
    /// True where the verifier takes a plain load (a scalar or pointer at its own size inside a struct that BTF
    /// names); false where only `bpf_probe_read_kernel` may look.
    pub direct: bool,
}

/// Bits of a loaded integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BitField {
    /// The lowest bit.
    pub shift: u8,
    /// How many bits.
    pub width: u8,
}

/// What `args.…` or `task.…` leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Its type.
    pub ty: Type,
    /// Its type in C.
    pub declared: String,
    /// A pointer: shown in hexadecimal.
    pub hex: bool,
    /// How to get there.
    pub recipe: Recipe,
    /// The enumerators, where it is an enum.
    pub enumerators: Symbols,
}

/// A step of `args.a.b[3]` as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathStep {
    /// `.name`; the first step is the argument's name.
    Name(String),
    /// `[n]`
    Index(u64),
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathError {
    /// Which step, counted from 0.
    pub step: usize,
    /// What is wrong, in words that a user of C structures knows.
    pub message: String,
    /// The names that the step could have had.
    pub known: Vec<String>,
}

/// A kernel, as far as rules can name it.
pub trait Schema {
    /// All events as (system, name), sorted.
    fn events(&self) -> Vec<(&str, &str)>;

    /// One event.
    fn event(&self, system: &str, name: &str) -> Option<Arc<Event>>;

    /// Why no program can be attached to an event that the kernel has; `None` where one can.
    fn unattachable(&self, system: &str, name: &str) -> Option<&str> {
        let _ = (system, name);
        None
    }

    /// Whether the host forbids that an event, or a field of it (`filename`, `args.prev.comm`), is ever captured. A
    /// forbidden event is also not attachable, and a forbidden field has neither place nor recipe.
    fn forbids(&self, event: (&str, &str), field: Option<&str>) -> bool {
        let _ = (event, field);
        false
    }

    /// Follows `args.…` of an event. `steps[0]` names the argument.
    ///
    /// # Errors
    /// A [`PathError`] that says at which step it ends, and why.
    fn argument(&self, event: &Event, steps: &[PathStep]) -> Result<Resolved, PathError>;

    /// The current task's `comm`, `tgid` of its parent and the like, by the member's path in `task_struct`, such as
    /// `["real_parent", "tgid"]`. `None` where this kernel has no such member.
    fn task_member(&self, path: &[&str]) -> Option<Resolved>;

    /// Every kernel enumerator of that name: (its enum, its value). Equal values of several enums are all listed.
    fn enumerator(&self, name: &str) -> Vec<(String, i64)>;

    /// The number of a system call by its name (`openat`) on this architecture.
    fn syscall_number(&self, name: &str) -> Option<u32>;

    /// The names of the system calls, for suggestions.
    fn syscall_names(&self) -> Vec<&str>;

    /// Timer ticks a second (`CONFIG_HZ`), where it is known: what `jiffies()` needs.
    fn hz(&self) -> Option<u64> {
        None
    }

    /// The architecture whose user API the names are of, as in `std::env::consts::ARCH`.
    fn architecture(&self) -> &str {
        std::env::consts::ARCH
    }
}
