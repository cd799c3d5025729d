//! Step 2: the rules that wait for the event are judged in order, all on the state that was read.
//!
//! In: a section with triggers. Out: instructions that mark in the frame which rules fired, and, where one did, go on
//! to the full record, the `lkst:fired` records and `act.rs`.
//!
//! A limit is one word, start << 16 | count, changed by compare-and-exchange: of several CPUs racing for it exactly
//! as many win as it allows. Time differences are signed, since a hit may be older than what another CPU has stored.

use lkst_rules::plan::{Guard, Limit, Trigger};

use super::record::Record;
use super::section::{PackEnv, Section, record_of};
use super::{Emit, Known, frame, slot};
use crate::asm::{Alu, Cond, Helper, Label, MapRef, Reg, Size};
use crate::layout::{counter, notice};

/// The unit of a limit's clock: 2^10 ns.
const WINDOW_SHIFT: i32 = 10;

impl Emit<'_> {
    /// Steps 2 and 3. Falls through or jumps to `end`.
    ///
    /// What happens on a firing lies apart from the way that most hits take. That is also how the verifier can follow
    /// a thousand rules: it looks at the straight way first, and on the way back at each firing alone.
    pub(super) fn decide(&mut self, section: &Section<'_>, end: Label) {
        let triggers = &section.plan.triggers;
        let judged = self.asm.label();
        let from = self.asm.len();
        // R9 is the frame once a rule has fired.
        self.asm.mov(Reg::R9, 0);
        let holds: Vec<Label> = triggers.iter().map(|_| self.asm.label()).collect();
        let next: Vec<Label> = triggers.iter().map(|_| self.asm.label()).collect();
        for ((trigger, holds), next) in triggers.iter().zip(&holds).zip(&next) {
            self.asm.note(format!("rule {}", rule_name(section, trigger)));
            match &trigger.with {
                Some(with) => self.branch_if(with, true, *holds),
                None => self.asm.jump(*holds),
            }
            self.asm.bind(*next);
            self.paths_meet();
        }
        self.asm.jump(judged);
        let way = self.way_since(from);
        self.way.add(way);
        for (index, trigger) in triggers.iter().enumerate() {
            if let (Some(holds), Some(next)) = (holds.get(index), next.get(index)) {
                self.asm.bind(*holds);
                self.paths_meet();
                self.judge(section, index, trigger, *next);
                self.asm.jump(*next);
            }
        }
        self.asm.bind(judged);
        self.asm.branch(Cond::Eq, Reg::R9, 0, end);
        (self.clock, self.who) = (Known::Yes, Known::Yes);
        self.asm.store(Size::B8, Reg::R10, slot::FRAME, Reg::R9);
        self.evidence(section);
        self.fired(section);
        self.change(section, end);
    }

    /// Goes to each trigger that has fired, in order.
    fn fired(&mut self, section: &Section<'_>) {
        let triggers = &section.plan.triggers;
        let done = self.asm.label();
        let labels: Vec<[Label; 2]> = triggers
            .iter()
            .map(|_| [self.asm.label(), self.asm.label()])
            .collect();
        for (index, [fires, next]) in labels.iter().enumerate() {
            self.fired_in_r1(index);
            self.asm.branch(Cond::Ne, Reg::R1, 0, *fires);
            self.asm.bind(*next);
        }
        self.asm.jump(done);
        for ((index, trigger), [fires, next]) in triggers.iter().enumerate().zip(&labels) {
            self.asm.bind(*fires);
            self.asm
                .note(format!("rule {} fires", rule_name(section, trigger)));
            self.fire(section, index, trigger);
            self.asm.jump(*next);
        }
        self.asm.bind(done);
    }

    /// The condition holds: marks the trigger as fired, or goes to `next`.
    fn judge(&mut self, section: &Section<'_>, index: usize, trigger: &Trigger, next: Label) {
        let pack = section.pack;
        let Some(rule) = pack.plan.rules.get(trigger.rule) else {
            return;
        };
        if let Some(guard) = &rule.guard {
            self.branch_guard(pack, guard, false, next);
        }
        self.need_who();
        if !trigger.own {
            self.skip_own(next);
        }
        self.charge_judgement(pack);
        self.take_from_limit(pack, trigger.rule, rule.limit, next);
        let have = self.asm.label();
        self.asm.branch(Cond::Ne, Reg::R9, 0, have);
        self.frame_in_r1();
        self.asm.mov(Reg::R9, Reg::R1);
        let words = section.plan.triggers.len().div_ceil(64);
        let accumulators = [
            frame::ENABLE,
            frame::DISABLE,
            frame::SWITCH,
            frame::SWITCH_FOR,
            frame::STOP,
            frame::SWITCH_RULE,
        ];
        for at in accumulators
            .into_iter()
            .chain((0..words).map(|w| frame::FIRED + 8 * w as i16))
        {
            self.asm.store_imm(Size::B8, Reg::R9, at, 0);
        }
        self.asm.bind(have);
        let word = frame::FIRED + 8 * (index / 64) as i16;
        self.asm.load(Size::B8, Reg::R1, Reg::R9, word);
        self.asm.constant(Reg::R2, 1 << (index % 64));
        self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
        self.asm.store(Size::B8, Reg::R9, word, Reg::R1);
    }

    /// R1 = whether the trigger has fired.
    fn fired_in_r1(&mut self, index: usize) {
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::FRAME);
        self.asm
            .load(Size::B8, Reg::R1, Reg::R1, frame::FIRED + 8 * (index / 64) as i16);
        self.asm.alu(Alu::Rsh, Reg::R1, (index % 64) as i32);
        self.asm.alu(Alu::And, Reg::R1, 1);
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
        let [won, refused, given_up] = std::array::from_fn(|_| self.asm.label());
        let spots = pack.rule(rule);
        self.control_word(Reg::R5, spots.limit);
        match limit {
            Limit::Once => {
                self.asm.mov(Reg::R0, 0);
                self.asm.mov(Reg::R4, 1);
                self.asm.cmpxchg(Reg::R5, 0, Reg::R4);
                self.asm.branch(Cond::Eq, Reg::R0, 0, won);
                self.asm.jump(refused);
            }
            Limit::Per { count, window_ns } => {
                self.take_from_window(count, window_ns, [won, refused, given_up]);
            }
        }
        self.asm.bind(given_up);
        self.count_shared(spots.counters.plus(counter::GIVEN_UP));
        self.asm.jump(next);
        self.asm.bind(refused);
        self.count_shared(spots.counters.plus(counter::LIMITED));
        self.asm.jump(next);
        self.asm.bind(won);
    }

    /// R5 the limit's word.
    fn take_from_window(&mut self, count: u16, window_ns: u64, [won, refused, given_up]: [Label; 3]) {
        let [again, open, exchange] = std::array::from_fn(|_| self.asm.label());
        self.asm.store_imm(Size::B8, Reg::R10, slot::TRIES, 16);
        self.asm.bind(again);
        self.asm.load(Size::B8, Reg::R0, Reg::R5, 0);
        self.asm.mov(Reg::R2, Reg::R8);
        self.asm.alu(Alu::Rsh, Reg::R2, WINDOW_SHIFT);
        self.asm.branch(Cond::Eq, Reg::R0, 0, open);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.alu(Alu::Rsh, Reg::R1, 16);
        self.asm.mov(Reg::R3, Reg::R2);
        self.asm.alu(Alu::Sub, Reg::R3, Reg::R1);
        self.asm.alu(Alu::Lsh, Reg::R3, 16);
        self.asm.alu(Alu::Arsh, Reg::R3, 16);
        self.asm.constant(Reg::R1, (window_ns >> WINDOW_SHIFT).max(1));
        self.asm.branch(Cond::Sge, Reg::R3, Reg::R1, open);
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.alu(Alu::And, Reg::R4, 0xffff);
        self.asm.branch(Cond::Ge, Reg::R4, i32::from(count), refused);
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.alu(Alu::Add, Reg::R4, 1);
        self.asm.jump(exchange);
        self.asm.bind(open);
        self.asm.mov(Reg::R4, Reg::R2);
        self.asm.alu(Alu::Lsh, Reg::R4, 16);
        self.asm.alu(Alu::Or, Reg::R4, 1);
        self.asm.bind(exchange);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.cmpxchg(Reg::R5, 0, Reg::R4);
        self.asm.branch(Cond::Eq, Reg::R0, Reg::R1, won);
        self.try_again(again);
        self.asm.jump(given_up);
    }

    /// To `again` while tries are left. Uses R1.
    pub(super) fn try_again(&mut self, again: Label) {
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::TRIES);
        self.asm.alu(Alu::Sub, Reg::R1, 1);
        self.asm.store(Size::B8, Reg::R10, slot::TRIES, Reg::R1);
        self.asm.branch(Cond::Ne, Reg::R1, 0, again);
    }

    /// The event with all its fields, where step 1 did not record it.
    fn evidence(&mut self, section: &Section<'_>) {
        let recorded = self.asm.label();
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::RECORDED);
        self.asm.branch(Cond::Ne, Reg::R1, 0, recorded);
        if section.pack.switches_back {
            self.return_to_main(section.pack);
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

fn rule_name<'s>(section: &'s Section<'_>, trigger: &Trigger) -> &'s str {
    section
        .pack
        .plan
        .rules
        .get(trigger.rule)
        .map_or("", |rule| &rule.name)
}
