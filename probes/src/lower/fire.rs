//! Firings: what the rules do whose conditions hold, in programs of their own.
//!
//! In: what the conditions have marked in the frame (`decide.rs`). Out: firing parts, one or several for an event's
//! program, that the part which has judged the conditions goes to by a tail call, and only where something holds.
//!
//! ```text
//! hits ─→ part 1: record, conditions ─────────────────────────→ part 2 …
//!              └ something holds ─→ firing part ─→ firing part ─┘
//! ```
//!
//! So the way that most hits take is short, and the verifier, which follows every way through a program, looks at a
//! thousand rules in pieces that it can follow: a program with all of them would be too large for it.
//!
//! A limit is one word, start << 16 | count, changed by compare-and-exchange: of several CPUs racing for it exactly
//! as many win as it allows. Time differences are signed, since a hit may be older than what another CPU has stored.

use std::collections::BTreeMap;
use std::ops::Range;

use lkst_rules::plan::{Guard, Limit, Trigger};

use super::decide::rule_name;
use super::function::Function;
use super::record::Record;
use super::section::{Area, PackEnv, Section, record_of};
use super::{Emit, Known, LowerError, Part, area, frame, slot};
use crate::asm::{Alu, Code, Cond, Helper, Label, MapRef, Reg, Size};
use crate::features::Features;
use crate::layout::{counter, notice};

/// The unit of a limit's clock: 2^10 ns.
const WINDOW_SHIFT: i32 = 10;
/// Of a limit: the firing is taken from it.
const WON: i32 = 1;
/// Of a limit: there is none left.
const REFUSED: i32 = 2;

/// Some triggers of a section, whose firings are in one part.
#[derive(Debug)]
pub struct Piece<'p> {
    /// The section.
    pub section: &'p Section<'p>,
    /// Which of its triggers.
    pub range: Range<usize>,
    /// Who waits for it.
    pub entry: Entry,
    /// The section's next piece; `None` for the last one, which makes the change.
    pub next: Option<Entry>,
}

/// Where a piece is: what stands in `area::NEXT` while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its part, as the place among those after the first.
    pub part: u16,
    /// The piece's place in it: several sections, of which one hit can have only one, share an area.
    pub piece: u16,
}

impl Entry {
    /// Never 0.
    pub(super) fn word(self) -> i32 {
        i32::from(self.piece) << 16 | (i32::from(self.part) + 1)
    }
}

impl<'p> Piece<'p> {
    fn triggers(&self) -> impl Iterator<Item = (usize, &'p Trigger)> + use<'p> {
        let triggers = self.section.plan.triggers.iter().enumerate();
        triggers.skip(self.range.start).take(self.range.len())
    }
}

/// A firing part. `areas` are those of all sections that were judged by the part before it. It goes to what follows that
/// part in the end.
///
/// # Errors
/// See [`LowerError`].
pub fn firings(
    pieces: &[Piece<'_>],
    areas: &[Area],
    features: &Features,
    part: Part,
) -> Result<Code, LowerError> {
    let mut emit = Emit::new(features, part);
    emit.functions = Some(BTreeMap::new());
    emit.prologue();
    emit.asm.note("firings");
    emit.frame_in_r1();
    emit.asm.load(Size::B8, Reg::R8, Reg::R1, frame::TIME);
    emit.asm.store(Size::B8, Reg::R10, slot::FRAME, Reg::R1);
    emit.clock = Known::Yes;
    emit.need_task();
    for piece in pieces {
        emit.piece(piece);
    }
    let exit = emit.exit;
    emit.asm.bind(exit);
    emit.exit = emit.asm.label();
    emit.go_to_firings(areas);
    super::section::finish(emit)
}

impl Emit<'_> {
    /// Goes to the firing part of the first section that waits for it; falls through where none does. Uses R1 to R3.
    pub(super) fn go_to_firings(&mut self, areas: &[Area]) {
        if areas.is_empty() {
            return;
        }
        let [none, found] = std::array::from_fn(|_| self.asm.label());
        self.frame_in_r1();
        for Area { at } in areas {
            self.asm.load(Size::B8, Reg::R3, Reg::R1, at + area::NEXT);
            self.asm.branch(Cond::Ne, Reg::R3, 0, found);
        }
        self.asm.jump(none);
        self.asm.bind(found);
        // As `Entry::word` has it.
        self.asm.alu(Alu::And, Reg::R3, 0xffff);
        self.asm.alu(Alu::Sub, Reg::R3, 1);
        self.asm.mov(Reg::R1, Reg::R6);
        self.asm.map(Reg::R2, MapRef::Parts(self.number));
        self.asm.call(Helper::TailCall);
        self.asm.bind(none);
    }

    /// Steps 2 and 3 for some triggers of a section, where it is the section's turn.
    fn piece(&mut self, piece: &Piece<'_>) {
        let section = piece.section;
        let Some(firing) = section.firing else { return };
        self.unreadable_counter = Some(section.spots.counters.plus(counter::UNREADABLE));
        let [done, end] = std::array::from_fn(|_| self.asm.label());
        self.asm.note(format!(
            "pack {}: {}",
            section.pack.plan.pack,
            section.plan.event.full_name()
        ));
        self.asm.load(Size::B8, Reg::R9, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R9, i32::from(firing.area.at));
        self.asm.store(Size::B8, Reg::R10, slot::AREA, Reg::R9);
        self.asm.load(Size::B8, Reg::R1, Reg::R9, area::NEXT);
        self.asm.branch(Cond::Ne, Reg::R1, piece.entry.word(), end);
        self.asm
            .store_imm(Size::B8, Reg::R9, area::NEXT, piece.next.map_or(0, Entry::word));
        self.asm.load(Size::B8, Reg::R7, Reg::R9, area::STATE);

        for (index, trigger) in piece.triggers() {
            let [next, not] = std::array::from_fn(|_| self.asm.label());
            self.unless_held(index, next);
            self.asm.note(format!("rule {}", rule_name(section, trigger)));
            self.judge(section, trigger, not);
            self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
            self.asm.store_imm(Size::B8, Reg::R1, area::FIRED, 1);
            self.asm.jump(next);
            self.asm.bind(not);
            self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
            let word = area::held_word(index);
            self.asm.load(Size::B8, Reg::R2, Reg::R1, word);
            self.asm.constant(Reg::R3, !(1 << (index % 64)));
            self.asm.alu(Alu::And, Reg::R2, Reg::R3);
            self.asm.store(Size::B8, Reg::R1, word, Reg::R2);
            self.asm.bind(next);
        }
        self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::AREA);
        self.asm.load(Size::B8, Reg::R1, Reg::R2, area::FIRED);
        self.asm.branch(Cond::Eq, Reg::R1, 0, done);
        self.asm.load(Size::B8, Reg::R7, Reg::R2, area::NOW);
        self.evidence(section);
        self.fired(piece);
        if piece.next.is_none() {
            self.change(section, done);
        }
        self.asm.bind(done);
        if piece.next.is_none() {
            self.asm.load(Size::B8, Reg::R9, Reg::R10, slot::AREA);
            self.unmark(section.plan.triggers.len());
        }
        self.asm.bind(end);
    }

    /// Goes to each trigger of the piece that has fired, in order.
    fn fired(&mut self, piece: &Piece<'_>) {
        for (index, trigger) in piece.triggers() {
            let next = self.asm.label();
            self.unless_held(index, next);
            self.asm
                .note(format!("rule {} fires", rule_name(piece.section, trigger)));
            self.fire(piece.section, index, trigger);
            self.asm.bind(next);
        }
    }

    /// The condition of a trigger holds: falls through where its rule fires, and goes to `not` where it does not.
    fn judge(&mut self, section: &Section<'_>, trigger: &Trigger, not: Label) {
        let pack = section.pack;
        let Some(rule) = pack.plan.rules.get(trigger.rule) else {
            return;
        };
        if let Some(guard) = &rule.guard {
            self.branch_guard(pack, guard, false, not);
        }
        if !trigger.own {
            self.skip_own(not);
        }
        self.charge_judgement(pack);
        self.take_from_limit(pack, trigger.rule, rule.limit, not);
    }

    /// To `not` where the trigger's bit is clear. Uses R1.
    pub(super) fn unless_held(&mut self, index: usize, not: Label) {
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
        self.asm.load(Size::B8, Reg::R1, Reg::R1, area::held_word(index));
        self.asm.alu(Alu::Rsh, Reg::R1, (index % 64) as i32);
        self.asm.alu(Alu::And, Reg::R1, 1);
        self.asm.branch(Cond::Eq, Reg::R1, 0, not);
    }

    /// Jumps to `target` where the guard is `truth`, on the state in R7.
    fn branch_guard(&mut self, pack: &PackEnv<'_>, guard: &Guard, truth: bool, target: Label) {
        match guard {
            Guard::Set(set) => {
                let no = self.asm.label();
                let clear = if truth { no } else { target };
                self.unless_bit(*set, clear);
                if pack.plan.sets.get(*set).is_some_and(|s| s.timed) {
                    self.need_clock();
                    self.unless_in_time(pack, *set, clear);
                }
                if truth {
                    self.asm.jump(target);
                }
                self.asm.bind(no);
                if truth {
                    self.paths_meet();
                }
            }
            Guard::Not(inner) => self.branch_guard(pack, inner, !truth, target),
            Guard::And(left, right) | Guard::Or(left, right) => {
                let either = matches!(guard, Guard::Or(..));
                if truth == either {
                    self.branch_guard(pack, left, truth, target);
                    self.branch_guard(pack, right, truth, target);
                } else {
                    let skip = self.asm.label();
                    self.branch_guard(pack, left, either, skip);
                    self.branch_guard(pack, right, truth, target);
                    self.asm.bind(skip);
                }
                self.paths_meet();
            }
        }
    }

    /// Takes one firing from the rule's limit; to `next`, counted, where there is none left. Needs the clock and
    /// `CPU`.
    fn take_from_limit(&mut self, pack: &PackEnv<'_>, rule: usize, limit: Limit, next: Label) {
        let [won, refused] = std::array::from_fn(|_| self.asm.label());
        let spots = pack.rule(rule);
        match limit {
            Limit::Once => {
                self.control_word(Reg::R5, spots.limit);
                self.asm.mov(Reg::R0, 0);
                self.asm.mov(Reg::R4, 1);
                self.asm.cmpxchg(Reg::R5, 0, Reg::R4);
                self.asm.branch(Cond::Eq, Reg::R0, 0, won);
            }
            Limit::Per { count, window_ns } => {
                self.control_word(Reg::R1, spots.limit);
                self.asm.mov(Reg::R2, i32::from(count));
                self.asm.constant(Reg::R3, (window_ns >> WINDOW_SHIFT).max(1));
                self.asm.mov(Reg::R4, Reg::R8);
                self.asm.alu(Alu::Rsh, Reg::R4, WINDOW_SHIFT);
                self.call_function(Function::Limit);
                self.asm.branch(Cond::Eq, Reg::R0, WON, won);
                self.asm.branch(Cond::Eq, Reg::R0, REFUSED, refused);
                self.count_shared(spots.counters.plus(counter::GIVEN_UP));
                self.asm.jump(next);
            }
        }
        self.asm.bind(refused);
        self.count_shared(spots.counters.plus(counter::LIMITED));
        self.asm.jump(next);
        self.asm.bind(won);
    }

    /// R1 the limit's word, R2 how many it allows in R3, R4 the time, both in units of its clock. Returns [`WON`],
    /// [`REFUSED`], or goes to `failed` where other CPUs were always faster.
    pub(super) fn limit_function(&mut self, failed: Label) {
        let [again, open, exchange, won, refused] = std::array::from_fn(|_| self.asm.label());
        let (word, count, window, now) = (Reg::R5, Reg::R6, Reg::R7, Reg::R8);
        for (to, from) in [
            (word, Reg::R1),
            (count, Reg::R2),
            (window, Reg::R3),
            (now, Reg::R4),
        ] {
            self.asm.mov(to, from);
        }
        self.asm.mov(Reg::R9, 8);
        self.asm.bind(again);
        self.asm.load(Size::B8, Reg::R0, word, 0);
        self.asm.branch(Cond::Eq, Reg::R0, 0, open);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.alu(Alu::Rsh, Reg::R1, 16);
        self.asm.mov(Reg::R3, now);
        self.asm.alu(Alu::Sub, Reg::R3, Reg::R1);
        self.asm.alu(Alu::Lsh, Reg::R3, 16);
        self.asm.alu(Alu::Arsh, Reg::R3, 16);
        self.asm.branch(Cond::Sge, Reg::R3, window, open);
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.alu(Alu::And, Reg::R4, 0xffff);
        self.asm.branch(Cond::Ge, Reg::R4, count, refused);
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.alu(Alu::Add, Reg::R4, 1);
        self.asm.jump(exchange);
        self.asm.bind(open);
        self.asm.mov(Reg::R4, now);
        self.asm.alu(Alu::Lsh, Reg::R4, 16);
        self.asm.alu(Alu::Or, Reg::R4, 1);
        self.asm.bind(exchange);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.cmpxchg(word, 0, Reg::R4);
        self.asm.branch(Cond::Eq, Reg::R0, Reg::R1, won);
        self.asm.alu(Alu::Sub, Reg::R9, 1);
        self.asm.branch(Cond::Ne, Reg::R9, 0, again);
        self.asm.jump(failed);
        self.asm.bind(refused);
        self.asm.mov(Reg::R0, REFUSED);
        self.asm.exit();
        self.asm.bind(won);
        self.asm.mov(Reg::R0, WON);
        self.asm.exit();
    }

    /// The event with all its fields, where it is not recorded yet.
    fn evidence(&mut self, section: &Section<'_>) {
        let recorded = self.asm.label();
        self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::AREA);
        self.asm.load(Size::B8, Reg::R1, Reg::R2, area::RECORDED);
        self.asm.branch(Cond::Ne, Reg::R1, 0, recorded);
        self.asm.store_imm(Size::B8, Reg::R2, area::RECORDED, 1);
        if section.pack.switches_back {
            self.return_to_main(section.pack);
            self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::AREA);
            self.asm.store(Size::B8, Reg::R2, area::NOW, Reg::R7);
        }
        if let Some(record) = section.full.and_then(|index| section.record(index)) {
            self.record(section.pack, &record, |_| {});
        }
        self.asm.bind(recorded);
    }

    /// One rule has fired: its record, the word to the agent, and what it wants changed.
    fn fire(&mut self, section: &Section<'_>, index: usize, trigger: &Trigger) {
        let pack = section.pack;
        self.count_shared(pack.rule(trigger.rule).counters.plus(counter::FIRED));
        if let Some((layout, columns)) = section.fired.get(index) {
            let record = Record {
                own: true,
                ..record_of(layout, columns, pack.fired_counters)
            };
            let bytes = layout.max_bytes;
            self.record(pack, &record, |emit| emit.notice(pack.index, bytes));
        }
        if let Some(rule) = pack.plan.rules.get(trigger.rule) {
            self.accumulate(pack, trigger.rule, &rule.actions);
        }
    }

    /// Sends the record at R9, of at most `bytes`, to the agent. Where its ring is full the record in the pages is
    /// all there is.
    pub(super) fn notice(&mut self, pack: u16, bytes: u16) {
        let full = self.asm.label();
        self.asm.map(Reg::R1, MapRef::Notices);
        self.asm
            .mov(Reg::R2, i32::from(notice::RECORD) + i32::from(bytes));
        self.asm.mov(Reg::R3, 0);
        self.asm.call(Helper::RingbufReserve);
        self.asm.branch(Cond::Eq, Reg::R0, 0, full);
        self.asm
            .store_imm(Size::B4, Reg::R0, notice::PACK, i32::from(pack));
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::CPU);
        self.asm.store(Size::B4, Reg::R0, notice::CPU, Reg::R1);
        self.asm.mov(Reg::R3, Reg::R9);
        self.asm.mov(Reg::R9, Reg::R0);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.alu(Alu::Add, Reg::R1, i32::from(notice::RECORD));
        self.asm.mov(Reg::R2, i32::from(bytes));
        self.asm.call(Helper::ProbeReadKernel);
        self.asm.mov(Reg::R1, Reg::R9);
        self.asm.mov(Reg::R2, 0);
        self.asm.call(Helper::RingbufSubmit);
        self.asm.bind(full);
    }
}

impl Emit<'_> {
    /// Sends a notice without a record: a stream of this pack and CPU has filled another quarter. Where their ring is
    /// full the reader is awake anyway. Needs `CPU`; all scratch registers are lost.
    pub(super) fn wake_reader(&mut self, pack: u16) {
        let at = slot::KEY;
        self.asm
            .store_imm(Size::B4, Reg::R10, at + notice::PACK, i32::from(pack));
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::CPU);
        self.asm.store(Size::B4, Reg::R10, at + notice::CPU, Reg::R1);
        self.asm.map(Reg::R1, MapRef::Notices);
        self.asm.mov(Reg::R2, Reg::R10);
        self.asm.alu(Alu::Add, Reg::R2, i32::from(at));
        self.asm.mov(Reg::R3, i32::from(notice::RECORD));
        self.asm.mov(Reg::R4, 0);
        self.asm.call(Helper::RingbufOutput);
    }
}
