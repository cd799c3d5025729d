//! Plans → the instructions of one event's program.
//!
//! In: for one event, each pack's wish (an `EventPlan`). Out: a `Code` that does, for each pack in turn, what
//! the language page calls *record, decide, act*, on one reading of the pack's state and of the clock.
//!
//! ```text
//! section of a pack:  state ─→ members: set, condition, sample, cap ─→ record.rs
//!                           └→ rules: decide.rs ─→ one holds? ─→ fire.rs: the full record, `lkst:fired`, act.rs
//! ```
//!
//! `value.rs` computes integers, `text.rs` reads text, `held.rs` compares it, `condition.rs` branches; all go through
//! `field.rs`, the only file that knows where a field lies. What firings have in common is called: `function.rs`.
//!
//! **Registers.** R6 the context; R7 the state that this hit goes by; R8 its time, 0 while the clock was not read;
//! R9 the record, or whatever a stage says; R1 to R5 and R0 hold nothing across a call of a method here unless it
//! says so. The stack's slots are named in `slot`.

mod act;
mod budget;
mod condition;
mod decide;
mod dispatch;
mod field;
mod fire;
mod function;
mod held;
mod names;
mod record;
mod reserve;
mod section;
mod share;
mod text;
mod tree;
mod value;

pub use budget::PackBudget;
pub use dispatch::{TrackerPaths, dispatcher, idle, tracker};
pub use fire::{Entry, Piece, firings};
pub use names::{NAMES_EVENT, NamesPaths, names};
pub use section::{Area, Firing, PackEnv, Section, SyscallLeaf, program, syscall_program};

use std::collections::BTreeMap;

use self::function::Function;
use crate::arena::Spot;
use crate::asm::{Alu, Asm, AsmError, Cond, Helper, Label, MapRef, Reg, Size};
use crate::features::Features;
use crate::layout::{TooLarge, control, counter};
use lkst_rules::plan::Expr;
use lkst_rules::source::Span;

/// How an event's program is attached, and where its fields are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `tp_btf`: the arguments themselves.
    Typed,
    /// `tracepoint`: the fields of the format file.
    Classic,
}

/// A program, or the part of one, that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// How it is attached.
    pub kind: Kind,
    /// Plain loads where the schema allows them; otherwise every load is a probe read.
    pub direct: bool,
    /// Number of the program in the image, for its frame.
    pub number: u16,
    /// The place of the part that follows, among those after the first.
    pub next: Option<u32>,
    /// Bytes of the frame, each CPU's.
    pub frame_bytes: u32,
}

impl Part {
    /// A small program of lkst's own, which hangs on a tracepoint without a dispatcher.
    pub(crate) fn of_lkst(direct: bool) -> Part {
        Part {
            kind: Kind::Typed,
            direct,
            number: 0,
            next: None,
            frame_bytes: 0,
        }
    }
}

/// Why a plan has no program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// From the assembler.
    #[error(transparent)]
    Asm(#[from] AsmError),
    /// A record is too large.
    #[error("a record of `{event}` would take {bytes} bytes, and at most 4,000 fit")]
    TooLarge {
        /// The event.
        event: String,
        /// What it would take.
        bytes: usize,
        /// Where it was asked for.
        span: Span,
    },
    /// The sets of a pack ask for too many different column lists of one event.
    #[error(
        "`{event}` is recorded with {lists} different lists of columns in one pack, and at most 4 are possible"
    )]
    TooManyLists {
        /// The event.
        event: String,
        /// How many.
        lists: usize,
        /// Where one of them stands.
        span: Span,
    },
    /// One rule needs what only the arguments give, another what only the format gives.
    #[error(
        "`{event}`: `{typed}` is reachable only through the event's arguments, and `{classic}` only through its format"
    )]
    TwoKinds {
        /// The event.
        event: String,
        /// A value that only a typed program has.
        typed: String,
        /// A value that only a classic program has.
        classic: String,
        /// Where one of them stands.
        span: Span,
    },
    /// An expression needs more intermediate values than the stack holds.
    #[error("the expression is too deep: split it over several members or rules")]
    TooDeep {
        /// Where it was written.
        span: Span,
    },
    /// More parts of one event's program than the kernel lets follow one another.
    #[error(
        "so many packs and buffers name `{event}` that its program would have {parts} parts, and the kernel allows 32"
    )]
    TooManyParts {
        /// The event.
        event: String,
        /// How many.
        parts: usize,
    },
    /// More kinds of record than an identifier can number.
    #[error("the pack has more than 65,535 kinds of record")]
    TooManyLayouts,
    /// The shared maps are full.
    #[error("there are more events, rules and buffers than the maps of control words hold")]
    Full,
}

impl LowerError {
    /// From a layout's error.
    #[must_use]
    pub fn too_large(event: &str, span: Span, error: TooLarge) -> Self {
        LowerError::TooLarge {
            event: event.to_owned(),
            bytes: error.bytes,
            span,
        }
    }
}

/// Offsets from the frame pointer. The verifier allows 512 bytes.
pub(crate) mod slot {
    /// `u32` key of a map, and eight bytes to read into.
    pub(crate) const KEY: i16 = -8;
    /// `bpf_get_current_pid_tgid()`: the process in the upper half.
    pub(crate) const WHO: i16 = -16;
    /// This CPU, checked against the number of CPUs.
    pub(crate) const CPU: i16 = -24;
    /// Bytes of the record being made.
    pub(crate) const LENGTH: i16 = -32;
    /// Its position in the ring.
    pub(crate) const AT: i16 = -40;
    /// Its word, without the id.
    pub(crate) const WORD: i16 = -48;
    /// `busy` of the head as found.
    pub(crate) const OUTER: i16 = -56;
    /// The head.
    pub(crate) const HEAD: i16 = -64;
    /// Its id, where records of one shape share their code.
    pub(crate) const ID: i16 = -72;
    /// The area of the section at hand; before the firings, 0 where no condition holds.
    pub(crate) const AREA: i16 = -80;
    /// Tries left of a bounded loop.
    pub(crate) const TRIES: i16 = -88;
    /// The frame of this program and CPU.
    pub(crate) const FRAME: i16 = -96;
    /// The buffer left.
    pub(crate) const FROM: i16 = -104;
    /// The buffer asked for.
    pub(crate) const TO: i16 = -112;
    /// The counters of the event, where records of one shape share their code.
    pub(crate) const COUNTERS: i16 = -120;
    /// What a pack has spent in this second, where this hit is the first over its budget; 0 elsewhere.
    pub(crate) const OVER: i16 = -128;
    /// 1 where a condition of some pack's rule has held.
    pub(crate) const PENDING: i16 = -136;
    /// Lengths of texts that were read before the record was reserved, eight bytes each.
    pub(crate) const LENGTHS: i16 = -144;
    /// How many of them.
    pub(crate) const LENGTHS_MAX: usize = 15;
    /// Intermediate values, eight bytes each.
    pub(crate) const TEMPS: i16 = LENGTHS - 8 * LENGTHS_MAX as i16;
    /// How many of them.
    pub(crate) const TEMPS_MAX: usize = 19;
    /// The first byte of two short texts of 32 bytes.
    pub(crate) const TEXTS: i16 = TEMPS - 8 * TEMPS_MAX as i16 - 64;
    const _: () = assert!(TEXTS >= -512 + FUNCTION_BYTES);
    /// What the verifier counts for a function that has no slots: 512 bytes are for all that are on the way at a time.
    /// `check_max_stack_depth` of kernel/bpf/verifier.c.
    const FUNCTION_BYTES: i16 = 32;
}

/// The scratch memory of an event's program on a CPU: what its parts tell one another, and what is too large for the
/// stack. The verifier forgets what lies there, which keeps it from following every combination of rules. A program does
/// not nest in itself on a CPU, so nobody shares it.
pub(crate) mod frame {
    /// `u64`: the hit's time, where a condition has held.
    pub(crate) const TIME: i16 = 0;
    /// `u64` each: what several rules need.
    pub(crate) const SHARED: i16 = 8;
    /// How many of them.
    pub(crate) const SHARED_MAX: usize = 4;
    /// Where texts begin.
    pub(crate) const TEXTS: i16 = 64;
    /// Bytes of a text: 256, one more to see that it is cut, rounded up.
    pub(crate) const TEXT_BYTES: i16 = 264;
    /// How many of them.
    pub(crate) const TEXTS_MAX: usize = 16;
    /// Where the areas begin, see [`super::area`].
    pub(crate) const AREAS: i16 = TEXTS + TEXTS_MAX as i16 * TEXT_BYTES;
}

/// A part of the frame: what is known of a pack's rules at this hit. Byte offsets.
pub(crate) mod area {
    /// `u64`: where the section's firings go on, see `Entry::word`; 0 where there are none.
    pub(crate) const NEXT: i16 = 0;
    /// `u64`: the state that the hit is judged by.
    pub(crate) const STATE: i16 = 8;
    /// `u64`: 1 where the hit is recorded.
    pub(crate) const RECORDED: i16 = 16;
    /// `u64`: 1 where a rule has fired.
    pub(crate) const FIRED: i16 = 24;
    /// `u64`: the sets that the firings enable.
    pub(crate) const ENABLE: i16 = 32;
    /// `u64`: the sets that they disable.
    pub(crate) const DISABLE: i16 = 40;
    /// `u64`: 0, or 1 + the buffer of the first `switch`.
    pub(crate) const SWITCH: i16 = 48;
    /// `u64`: nanoseconds of its `for`, 0 where it has none.
    pub(crate) const SWITCH_FOR: i16 = 56;
    /// `u64`: 1 << `STOPPED_SHIFT` where a firing stops the pack.
    pub(crate) const STOP: i16 = 64;
    /// `u64`: 1 + the rule that asked for the switch, whose counters it belongs to.
    pub(crate) const SWITCH_RULE: i16 = 72;
    /// `u64`: the state that its records go by: another one once recording has returned to `main`.
    pub(crate) const NOW: i16 = 80;
    /// `u64`: what came of the switch, see `act.rs`.
    pub(crate) const OUTCOME: i16 = 88;
    /// `u64`: the buffer that it left.
    pub(crate) const FROM: i16 = 96;
    /// `u64`: the buffer that it asked for.
    pub(crate) const TO: i16 = 104;
    /// `u64` each: first the triggers whose conditions hold, then those of them that fire, one bit each.
    pub(crate) const HELD: i16 = 112;

    /// The word with the bit of a trigger.
    pub(crate) fn held_word(trigger: usize) -> i16 {
        HELD + 8 * (trigger / 64) as i16
    }

    /// Bytes of an area for so many triggers.
    pub(crate) fn bytes(triggers: usize) -> u32 {
        HELD as u32 + 8 * triggers.div_ceil(64) as u32
    }

    /// What is cleared before the first trigger is marked, beside the words of `HELD`.
    pub(crate) const CLEARED: [i16; 8] = [
        RECORDED,
        FIRED,
        ENABLE,
        DISABLE,
        SWITCH,
        SWITCH_FOR,
        STOP,
        SWITCH_RULE,
    ];
}

/// Whether something was done on the way here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    No,
    Maybe,
    Yes,
}

/// The program being emitted.
pub(crate) struct Emit<'a> {
    pub(crate) asm: Asm,
    pub(crate) features: &'a Features,
    pub(crate) kind: Kind,
    pub(crate) direct: bool,
    pub(crate) number: u16,
    next: Option<u32>,
    /// A program for system calls: skip those of 32-bit programs.
    pub(crate) syscalls: bool,
    /// Ends the program.
    pub(crate) exit: Label,
    pub(crate) clock: Known,
    pub(crate) who: Known,
    /// Bytes of the frame, each CPU's.
    frame_bytes: u32,
    /// Intermediate values in use.
    temps: usize,
    /// The first expression that was too deep.
    pub(crate) too_deep: Option<Span>,
    /// Where unreadable texts are counted, if anywhere.
    pub(crate) unreadable_counter: Option<Spot>,
    /// The conditions that a hit of this section may have to pass.
    way: budget::Way,
    /// What was loaded for several rules, see `share.rs`.
    shared: Vec<Expr>,
    /// What is called, see `function.rs`; `None` in the way that most hits take, which calls nothing.
    functions: Option<BTreeMap<Function, Label>>,
}

impl<'a> Emit<'a> {
    pub(crate) fn new(features: &'a Features, part: Part) -> Self {
        let Part {
            kind,
            direct,
            number,
            next,
            frame_bytes,
        } = part;
        let mut asm = Asm::default();
        let exit = asm.label();
        Emit {
            asm,
            features,
            kind,
            direct,
            number,
            next,
            syscalls: false,
            exit,
            clock: Known::No,
            who: Known::No,
            frame_bytes,
            temps: 0,
            too_deep: None,
            unreadable_counter: None,
            way: budget::Way::default(),
            shared: Vec::new(),
            functions: None,
        }
    }

    /// What every program begins with.
    pub(crate) fn prologue(&mut self) {
        self.asm.mov(Reg::R6, Reg::R1);
        self.asm.mov(Reg::R8, 0);
        self.asm.store_imm(Size::B8, Reg::R10, slot::WHO, 0);
    }

    /// What every program ends with: the part that follows, where there is one. It begins as the first did: a tail
    /// call keeps the context and nothing else.
    pub(crate) fn epilogue(&mut self) {
        let exit = self.exit;
        self.asm.bind(exit);
        if let Some(next) = self.next {
            self.asm.note(format!("part {}", next + 2));
            self.asm.mov(Reg::R1, Reg::R6);
            self.asm.map(Reg::R2, MapRef::Parts(self.number));
            self.asm.mov(Reg::R3, next.cast_signed());
            self.asm.call(Helper::TailCall);
        }
        self.asm.mov(Reg::R0, 0);
        self.asm.exit();
    }

    /// Paths meet: what was done on some of them is no longer known.
    pub(crate) fn paths_meet(&mut self) {
        for known in [&mut self.clock, &mut self.who] {
            *known = Known::Maybe;
        }
    }

    /// R8 = the hit's time.
    pub(crate) fn need_clock(&mut self) {
        if self.clock == Known::Yes {
            return;
        }
        let have = self.asm.label();
        if self.clock == Known::Maybe {
            self.asm.branch(Cond::Ne, Reg::R8, 0, have);
        }
        self.asm.call(Helper::KtimeGetBootNs);
        self.asm.mov(Reg::R8, Reg::R0);
        self.asm.bind(have);
        self.clock = Known::Yes;
    }

    /// The slots `WHO` and `CPU` and the clock; leaves the program where the hit is a 32-bit system call.
    pub(crate) fn need_who(&mut self) {
        self.need_clock();
        self.need_task();
    }

    /// As [`Emit::need_who`], without the clock.
    pub(crate) fn need_task(&mut self) {
        if self.who == Known::Yes {
            return;
        }
        let have = self.asm.label();
        if self.who == Known::Maybe {
            self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::WHO);
            self.asm.branch(Cond::Ne, Reg::R1, 0, have);
        }
        if self.syscalls {
            self.unless_foreign(self.exit);
        }
        self.asm.call(Helper::GetCurrentPidTgid);
        self.asm.store(Size::B8, Reg::R10, slot::WHO, Reg::R0);
        self.cpu_in_r0();
        self.asm.store(Size::B8, Reg::R10, slot::CPU, Reg::R0);
        self.asm.bind(have);
        self.who = Known::Yes;
    }

    /// To `foreign` where the hit is a 32-bit system call. Registers but R6 to R9 are lost.
    pub(crate) fn unless_foreign(&mut self, foreign: Label) {
        if let Some(path) = self.features.compat_status.clone() {
            self.load_path(&path, Size::B4);
            self.asm.branch(Cond::Set, Reg::R1, 2, foreign);
        }
    }

    /// R0 = this CPU, below the number of CPUs.
    pub(crate) fn cpu_in_r0(&mut self) {
        self.asm.call(Helper::GetSmpProcessorId);
        let exit = self.exit;
        self.asm
            .branch(Cond::Ge, Reg::R0, self.features.cpus.cast_signed(), exit);
    }

    /// Jumps to `skip` where the hit is the agent's own. Needs `WHO`.
    pub(crate) fn skip_own(&mut self, skip: Label) {
        self.asm
            .map_value(Reg::R1, MapRef::Control(0), control::SELF_TGID);
        self.asm.load(Size::B4, Reg::R1, Reg::R1, 0);
        self.asm.load(Size::B4, Reg::R2, Reg::R10, slot::WHO + 4);
        self.asm.branch(Cond::Eq, Reg::R1, Reg::R2, skip);
    }

    /// `to` = the address of a control word.
    pub(crate) fn control_word(&mut self, to: Reg, spot: Spot) {
        self.asm.map_value(to, MapRef::Control(spot.map), spot.at);
    }

    /// R1 = the address of a counter of this CPU. Needs `CPU`; uses R2.
    pub(crate) fn counter_in_r1(&mut self, spot: Spot) {
        self.asm.map_value(Reg::R1, MapRef::Counters(spot.map), spot.at);
        self.this_cpu_of_r1();
    }

    /// R1 = this CPU's part of the counters at R1. Needs `CPU`; uses R2.
    fn this_cpu_of_r1(&mut self) {
        self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::CPU);
        self.asm.alu(Alu::Mul, Reg::R2, counter::STRIDE.cast_signed());
        self.asm.alu(Alu::Add, Reg::R1, Reg::R2);
    }

    /// Adds one to a counter of the event whose counters lie in `map`, where the slot `COUNTERS` says. As
    /// [`Emit::count`].
    pub(crate) fn count_named(&mut self, map: u8, counter: u32) {
        self.asm.map_value(Reg::R1, MapRef::Counters(map), counter);
        self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::COUNTERS);
        self.asm.alu(Alu::Add, Reg::R1, Reg::R2);
        self.this_cpu_of_r1();
        self.increment_r1();
    }

    /// Adds one to a counter that only this program writes on this CPU. Needs `CPU`; uses R1 and R2.
    pub(crate) fn count(&mut self, spot: Spot) {
        self.counter_in_r1(spot);
        self.increment_r1();
    }

    fn increment_r1(&mut self) {
        self.asm.load(Size::B8, Reg::R2, Reg::R1, 0);
        self.asm.alu(Alu::Add, Reg::R2, 1);
        self.asm.store(Size::B8, Reg::R1, 0, Reg::R2);
    }

    /// Adds one to a counter that programs of several events write. Needs `CPU`; uses R1 and R2.
    pub(crate) fn count_shared(&mut self, spot: Spot) {
        self.counter_in_r1(spot);
        self.asm.mov(Reg::R2, 1);
        self.asm.atomic_add(Reg::R1, 0, Reg::R2);
    }

    /// R1 = this CPU's frame. Uses R0 (on some kernels the CPU's number is a call).
    pub(crate) fn frame_in_r1(&mut self) {
        self.cpu_in_r0();
        let map = MapRef::Frame(self.number, self.frame_bytes);
        self.asm.map_value(Reg::R1, map, 0);
        self.asm.alu(Alu::Mul, Reg::R0, self.frame_bytes.cast_signed());
        self.asm.alu(Alu::Add, Reg::R1, Reg::R0);
    }

    /// A slot for an intermediate value of the expression at `span`, until [`Emit::drop_temp`].
    pub(crate) fn temp(&mut self, span: Span) -> i16 {
        if self.temps >= slot::TEMPS_MAX {
            self.too_deep.get_or_insert(span);
        }
        let at = self.temps.min(slot::TEMPS_MAX - 1);
        self.temps += 1;
        slot::TEMPS - 8 * at as i16
    }

    /// Gives the last slot back.
    pub(crate) fn drop_temp(&mut self) {
        self.temps = self.temps.saturating_sub(1);
    }
}
