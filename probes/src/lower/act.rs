//! Step 3: what the fired rules want is gathered in their area of the frame, then done in one compare-and-exchange of the state
//! word.
//!
//! In: actions. Out: instructions that store ends first and the word last, in a bounded loop; every change bumps the
//! word's sequence number, one that moves only an end too: without it a stale expiry by the agent would undo it.
//! What came of a `switch` is a record of its own, in the buffer that is current afterwards.

use lkst_rules::plan::Action;

use super::function::Function;
use super::record::{Record, Value};
use super::section::{PackEnv, Section};
use super::{Emit, area, slot};
use crate::arena::Spot;
use crate::asm::{Alu, Cond, Label, Reg, Size};
use crate::layout::{RecordLayout, control, counter, state};

const CURRENT: i32 = state::CURRENT_SHIFT as i32;
const KEPT: i32 = state::KEPT_SHIFT as i32;
const SWITCHED: i32 = 1;
const REFUSED: i32 = 2;

impl Emit<'_> {
    /// Adds one rule's wishes to the area. Needs the clock, and the area in its slot.
    pub(super) fn accumulate(&mut self, pack: &PackEnv<'_>, rule: usize, actions: &[Action]) {
        let (mut enable, mut disable) = (0_u64, 0_u64);
        for action in actions {
            match action {
                Action::Enable { set, for_ns } => {
                    // Also where no program looks at the end: it says that a firing enabled the set.
                    self.move_end(pack, *set, *for_ns, (enable, disable));
                    enable |= 1 << set;
                    disable &= !(1 << set);
                }
                Action::Disable { set } => {
                    disable |= 1 << set;
                    enable &= !(1 << set);
                }
                Action::Switch { buffer, for_ns } => self.want_switch(rule, *buffer, for_ns.unwrap_or(0)),
                Action::Stop => {
                    self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
                    self.asm.constant(Reg::R2, 1 << state::STOPPED_SHIFT);
                    self.asm.store(Size::B8, Reg::R1, area::STOP, Reg::R2);
                }
                // The agent saves: the notice tells it.
                Action::Save { .. } => {}
            }
        }
        if enable | disable == 0 {
            return;
        }
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
        for (at, add, remove) in [(area::ENABLE, enable, disable), (area::DISABLE, disable, enable)] {
            self.asm.load(Size::B8, Reg::R2, Reg::R1, at);
            self.asm.constant(Reg::R3, add);
            self.asm.alu(Alu::Or, Reg::R2, Reg::R3);
            self.asm.constant(Reg::R3, !remove);
            self.asm.alu(Alu::And, Reg::R2, Reg::R3);
            self.asm.store(Size::B8, Reg::R1, at, Reg::R2);
        }
    }

    /// The first `switch` of a hit counts.
    fn want_switch(&mut self, rule: usize, buffer: usize, for_ns: u64) {
        let taken = self.asm.label();
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
        self.asm.load(Size::B8, Reg::R2, Reg::R1, area::SWITCH);
        self.asm.branch(Cond::Ne, Reg::R2, 0, taken);
        self.asm
            .store_imm(Size::B8, Reg::R1, area::SWITCH, buffer as i32 + 1);
        self.asm
            .store_imm(Size::B8, Reg::R1, area::SWITCH_RULE, rule as i32 + 1);
        self.asm.constant(Reg::R2, for_ns);
        self.asm.store(Size::B8, Reg::R1, area::SWITCH_FOR, Reg::R2);
        self.asm.bind(taken);
    }

    /// Stores the end of a set that is being enabled: `enable S` has none; `enable S for D` moves an end later, never
    /// earlier, and touches no set that has none. `own` is what this rule's earlier actions enable and disable.
    fn move_end(&mut self, pack: &PackEnv<'_>, set: usize, for_ns: Option<u64>, own: (u64, u64)) {
        self.control_word(Reg::R5, pack.block.plus(control::SET_UNTIL + 8 * set as u32));
        let Some(for_ns) = for_ns else {
            self.asm.mov(Reg::R1, -1);
            self.asm.store(Size::B8, Reg::R5, 0, Reg::R1);
            return;
        };
        let [again, exchange, done] = std::array::from_fn(|_| self.asm.label());
        self.asm.store_imm(Size::B8, Reg::R10, slot::TRIES, 4);
        self.asm.bind(again);
        // The end is read before the word: where it changed in between, the exchange fails.
        self.asm.load(Size::B8, Reg::R0, Reg::R5, 0);
        self.control_word(Reg::R3, pack.block.plus(control::STATE));
        self.asm.load(Size::B8, Reg::R2, Reg::R3, 0);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
        self.asm.load(Size::B8, Reg::R3, Reg::R1, area::DISABLE);
        self.asm.alu(Alu::Xor, Reg::R3, -1);
        self.asm.alu(Alu::And, Reg::R2, Reg::R3);
        self.asm.load(Size::B8, Reg::R3, Reg::R1, area::ENABLE);
        self.asm.alu(Alu::Or, Reg::R2, Reg::R3);
        let (enabled, disabled) = own;
        if enabled | disabled != 0 {
            self.asm.constant(Reg::R3, !disabled);
            self.asm.alu(Alu::And, Reg::R2, Reg::R3);
            self.asm.constant(Reg::R3, enabled);
            self.asm.alu(Alu::Or, Reg::R2, Reg::R3);
        }
        self.asm.constant(Reg::R4, for_ns);
        self.asm.alu(Alu::Add, Reg::R4, Reg::R8);
        self.asm.alu(Alu::Rsh, Reg::R2, set as i32);
        self.asm.alu(Alu::And, Reg::R2, 1);
        self.asm.branch(Cond::Eq, Reg::R2, 0, exchange);
        self.asm.branch(Cond::Ge, Reg::R0, Reg::R4, done);
        self.asm.bind(exchange);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.cmpxchg(Reg::R5, 0, Reg::R4);
        self.asm.branch(Cond::Eq, Reg::R0, Reg::R1, done);
        self.try_again(again);
        self.asm.bind(done);
    }

    /// Makes the change that the area holds. Falls through or jumps to `end`.
    pub(super) fn change(&mut self, section: &Section<'_>, end: Label) {
        let pack = section.pack;
        let rules = || {
            section
                .plan
                .triggers
                .iter()
                .filter_map(|t| pack.plan.rules.get(t.rule))
        };
        let changes = |a: &Action| !matches!(a, Action::Save { .. });
        if !rules().any(|rule| rule.actions.iter().any(changes)) {
            return;
        }
        let switches = rules().any(|r| r.actions.iter().any(|a| matches!(a, Action::Switch { .. })));
        self.asm.note("change of state");
        let won = self.asm.label();
        self.asm.load(Size::B8, Reg::R9, Reg::R10, slot::AREA);
        self.asm.mov(Reg::R1, Reg::R9);
        self.control_word(Reg::R2, pack.block);
        self.asm.mov(Reg::R3, Reg::R8);
        // Apart, since the verifier follows each try: a switch has ten times as many ways through one.
        self.call_function(if switches {
            Function::ChangeOrSwitch
        } else {
            Function::Change
        });
        self.asm.branch(Cond::Ne, Reg::R0, 0, won);
        for (index, trigger) in section.plan.triggers.iter().enumerate() {
            // Every rule that fired on this hit has lost its change.
            let skip = self.asm.label();
            self.asm.load(Size::B8, Reg::R1, Reg::R9, area::held_word(index));
            self.asm.alu(Alu::Rsh, Reg::R1, (index % 64) as i32);
            self.asm.alu(Alu::And, Reg::R1, 1);
            self.asm.branch(Cond::Eq, Reg::R1, 0, skip);
            self.count_shared(pack.rule(trigger.rule).counters.plus(counter::GIVEN_UP));
            self.asm.bind(skip);
        }
        self.asm.jump(end);
        self.asm.bind(won);
        self.asm.mov(Reg::R7, Reg::R0);
        if switches {
            self.outcome(section, end);
        }
    }

    /// To `again` while tries are left. Uses R1.
    pub(super) fn try_again(&mut self, again: Label) {
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::TRIES);
        self.asm.alu(Alu::Sub, Reg::R1, 1);
        self.asm.store(Size::B8, Reg::R10, slot::TRIES, Reg::R1);
        self.asm.branch(Cond::Ne, Reg::R1, 0, again);
    }

    /// R1 the area, R2 the pack's block, R3 the time. Makes the change, and returns the state that holds then, which is never
    /// 0; or goes to `failed` where other CPUs were always faster.
    pub(super) fn change_function(&mut self, switches: bool, failed: Label) {
        let [again, exchange, numbered, lost_race, won] = std::array::from_fn(|_| self.asm.label());
        let (area, block, time, tries) = (Reg::R9, Reg::R5, Reg::R8, Reg::R7);
        for (to, from) in [(area, Reg::R1), (block, Reg::R2), (time, Reg::R3)] {
            self.asm.mov(to, from);
        }
        self.asm.mov(tries, 16);
        self.asm.bind(again);
        self.asm.load(Size::B8, Reg::R0, block, control::STATE as i16);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.load(Size::B8, Reg::R2, area, area::DISABLE);
        self.asm.alu(Alu::Xor, Reg::R2, -1);
        self.asm.alu(Alu::And, Reg::R1, Reg::R2);
        for at in [area::ENABLE, area::STOP] {
            self.asm.load(Size::B8, Reg::R2, area, at);
            self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
        }
        if switches {
            self.switch(exchange, lost_race);
        }
        self.asm.bind(exchange);
        self.asm.constant(Reg::R4, 1 << state::SEQUENCE_SHIFT);
        self.asm.alu(Alu::Add, Reg::R1, Reg::R4);
        self.asm.branch(Cond::Ne, Reg::R1, 0, numbered);
        self.asm.mov(Reg::R1, Reg::R4);
        self.asm.bind(numbered);
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.cmpxchg(block, control::STATE as i16, Reg::R1);
        self.asm.branch(Cond::Eq, Reg::R0, Reg::R4, won);
        self.asm.bind(lost_race);
        self.asm.alu(Alu::Sub, tries, 1);
        self.asm.branch(Cond::Ne, tries, 0, again);
        self.asm.jump(failed);
        self.asm.bind(won);
        self.asm.mov(Reg::R0, Reg::R1);
        self.asm.exit();
    }

    /// In the function: puts the switch into R1, the word to be. R0 the word as it is. Falls through or jumps to `exchange`;
    /// to `lost_race` where another CPU has moved the end meanwhile. Uses R2 to R4 and R6.
    fn switch(&mut self, exchange: Label, lost_race: Label) {
        let [moved, free, ends, store] = std::array::from_fn(|_| self.asm.label());
        let (area, block, time) = (Reg::R9, Reg::R5, Reg::R8);
        let until = control::SWITCH_UNTIL as i16;
        self.asm.store_imm(Size::B8, area, area::OUTCOME, 0);
        self.asm.load(Size::B8, Reg::R2, area, area::SWITCH);
        self.asm.branch(Cond::Eq, Reg::R2, 0, exchange);
        self.asm.alu(Alu::Sub, Reg::R2, 1);
        self.asm.alu(Alu::And, Reg::R2, 7);
        self.asm.mov(Reg::R3, Reg::R0);
        self.asm.alu(Alu::Rsh, Reg::R3, CURRENT);
        self.asm.alu(Alu::And, Reg::R3, 7);
        self.asm.store(Size::B8, area, area::FROM, Reg::R3);
        self.asm.store(Size::B8, area, area::TO, Reg::R2);
        self.asm.branch(Cond::Ne, Reg::R2, Reg::R3, moved);

        // To the current buffer: only its end moves, and only later. By compare-and-exchange, for another CPU may be
        // moving it further; then everything is looked at anew.
        self.asm.load(Size::B8, Reg::R4, area, area::SWITCH_FOR);
        self.asm.branch(Cond::Eq, Reg::R4, 0, ends);
        self.asm.alu(Alu::Add, Reg::R4, time);
        self.asm.load(Size::B8, Reg::R2, block, until);
        self.asm.branch(Cond::Ge, Reg::R2, Reg::R4, exchange);
        self.asm.mov(Reg::R6, Reg::R0);
        self.asm.mov(Reg::R0, Reg::R2);
        self.asm.cmpxchg(block, until, Reg::R4);
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.mov(Reg::R0, Reg::R6);
        self.asm.branch(Cond::Eq, Reg::R4, Reg::R2, exchange);
        self.asm.jump(lost_race);

        self.asm.bind(moved);
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.alu(Alu::Rsh, Reg::R4, KEPT);
        self.asm.alu(Alu::Rsh, Reg::R4, Reg::R2);
        self.asm.alu(Alu::And, Reg::R4, 1);
        self.asm.branch(Cond::Eq, Reg::R4, 0, free);
        self.asm.store_imm(Size::B8, area, area::OUTCOME, REFUSED);
        self.asm.jump(exchange);
        self.asm.bind(free);
        self.asm.store_imm(Size::B8, area, area::OUTCOME, SWITCHED);
        self.leave(Reg::R3);
        self.asm.alu(Alu::Lsh, Reg::R2, CURRENT);
        self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
        self.asm.load(Size::B8, Reg::R4, area, area::SWITCH_FOR);
        self.asm.branch(Cond::Eq, Reg::R4, 0, ends);
        self.asm.alu(Alu::Add, Reg::R4, time);
        self.asm.jump(store);
        self.asm.bind(ends);
        self.asm.mov(Reg::R4, -1);
        self.asm.bind(store);
        self.asm.store(Size::B8, block, until, Reg::R4);
    }

    /// In R1, the word to be: the buffer numbered in `from` is kept, and none is current. Uses R4.
    fn leave(&mut self, from: Reg) {
        self.asm.constant(Reg::R4, 1 << KEPT);
        self.asm.alu(Alu::Lsh, Reg::R4, from);
        self.asm.alu(Alu::Or, Reg::R1, Reg::R4);
        self.asm.constant(Reg::R4, !(7 << CURRENT));
        self.asm.alu(Alu::And, Reg::R1, Reg::R4);
    }

    /// Records what came of the switch. R9 the area.
    fn outcome(&mut self, section: &Section<'_>, end: Label) {
        let pack = section.pack;
        let Some([switched, refused]) = &pack.changes else {
            return;
        };
        let was_refused = self.asm.label();
        for (from, to) in [(area::FROM, slot::FROM), (area::TO, slot::TO)] {
            self.asm.load(Size::B8, Reg::R1, Reg::R9, from);
            self.asm.store(Size::B8, Reg::R10, to, Reg::R1);
        }
        self.asm.load(Size::B8, Reg::R1, Reg::R9, area::OUTCOME);
        self.asm.branch(Cond::Eq, Reg::R1, 0, end);
        self.asm.branch(Cond::Eq, Reg::R1, REFUSED, was_refused);
        self.record_change(pack, switched);
        self.asm.jump(end);
        self.asm.bind(was_refused);
        for trigger in &section.plan.triggers {
            let skip = self.asm.label();
            self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
            self.asm.load(Size::B8, Reg::R1, Reg::R1, area::SWITCH_RULE);
            self.asm.branch(Cond::Ne, Reg::R1, trigger.rule as i32 + 1, skip);
            self.count_shared(pack.rule(trigger.rule).counters.plus(counter::REFUSED));
            self.asm.bind(skip);
        }
        self.record_change(pack, refused);
    }

    /// `from` and `to`, and a word to the agent.
    fn record_change(&mut self, pack: &PackEnv<'_>, (layout, counters): &(RecordLayout, Spot)) {
        let record = Record {
            layout: layout.clone(),
            values: vec![Value::Slot(slot::FROM), Value::Slot(slot::TO)],
            counters: *counters,
            own: true,
            shared: false,
        };
        let bytes = layout.max_bytes;
        self.record(pack, &record, |emit| emit.notice(pack.index, bytes));
    }

    /// At the end of a `switch … for`: recording returns to `main` where that is free, and the buffer left is kept.
    /// R7 becomes the state that holds now. Needs the clock and `WHO`; R9 is lost.
    pub(super) fn return_to_main(&mut self, pack: &PackEnv<'_>) {
        let [again, stay, reread, won, done] = std::array::from_fn(|_| self.asm.label());
        self.asm.mov(Reg::R1, Reg::R7);
        self.asm.alu(Alu::Rsh, Reg::R1, CURRENT);
        self.asm.alu(Alu::And, Reg::R1, 7);
        self.asm.branch(Cond::Eq, Reg::R1, 0, done);
        self.asm.store_imm(Size::B8, Reg::R10, slot::TRIES, 4);
        self.asm.bind(again);
        self.control_word(Reg::R5, pack.block.plus(control::STATE));
        self.asm.load(Size::B8, Reg::R0, Reg::R5, 0);
        self.control_word(Reg::R3, pack.block.plus(control::SWITCH_UNTIL));
        self.asm.load(Size::B8, Reg::R2, Reg::R3, 0);
        self.asm.branch(Cond::Lt, Reg::R8, Reg::R2, stay);
        self.asm.mov(Reg::R3, Reg::R0);
        self.asm.alu(Alu::Rsh, Reg::R3, CURRENT);
        self.asm.alu(Alu::And, Reg::R3, 7);
        self.asm.branch(Cond::Eq, Reg::R3, 0, reread);
        self.asm.constant(Reg::R1, 1 << KEPT);
        self.asm.branch(Cond::Set, Reg::R0, Reg::R1, stay);
        self.asm.store(Size::B8, Reg::R10, slot::FROM, Reg::R3);
        self.asm.store_imm(Size::B8, Reg::R10, slot::TO, 0);
        self.asm.mov(Reg::R1, Reg::R0);
        self.leave(Reg::R3);
        self.asm.constant(Reg::R4, 1 << state::SEQUENCE_SHIFT);
        self.asm.alu(Alu::Add, Reg::R1, Reg::R4);
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.mov(Reg::R2, Reg::R1);
        self.asm.cmpxchg(Reg::R5, 0, Reg::R1);
        self.asm.branch(Cond::Eq, Reg::R0, Reg::R4, won);
        self.try_again(again);
        self.asm.jump(done);
        self.asm.bind(reread);
        self.asm.mov(Reg::R7, Reg::R0);
        self.asm.jump(done);
        self.asm.bind(won);
        self.asm.mov(Reg::R7, Reg::R2);
        if let Some([switched, _]) = &pack.changes {
            self.record_change(pack, switched);
        }
        self.asm.jump(done);
        self.asm.bind(stay);
        self.asm.bind(done);
    }
}
