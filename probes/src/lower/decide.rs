//! Step 2, as far as every hit goes: the conditions of the rules that wait for the event.
//!
//! In: a section with triggers. Out: instructions that mark in the frame whose conditions hold. Whether such a rule
//! fires, and what it does then, is in programs of their own: `fire.rs`.
//!
//! Conditions have no side effects and all are judged, so their order is ours to choose: rules that ask for equality
//! on one value are found by a search tree over it (`tree.rs`), and a thousand of them cost about what ten do.

use lkst_rules::plan::Trigger;

use super::section::{Firing, Section};
use super::{Emit, area, frame, slot};
use crate::asm::{Alu, Cond, Label, MapRef, Reg, Size};
use crate::layout::control;

impl Emit<'_> {
    /// Marks the triggers whose conditions hold; the slot `AREA` is then the section's, and 0 where none holds. Falls through.
    ///
    /// The marking lies apart from the way that most hits take.
    pub(super) fn decide(&mut self, section: &Section<'_>) {
        let Some(firing) = section.firing else { return };
        let triggers = &section.plan.triggers;
        let [judged, none] = std::array::from_fn(|_| self.asm.label());
        // R9 is not 0 once a condition has held. It begins with a 0 that the verifier does not know: so a rule that holds
        // leaves nothing behind that it would follow through all rules that come later.
        self.asm.map_value(Reg::R9, MapRef::Control(0), control::ZERO);
        self.asm.load(Size::B8, Reg::R9, Reg::R9, 0);
        let alone = self.trees(triggers, &firing);
        let from = self.asm.len();
        self.share(triggers, &alone);
        let alone: Vec<(usize, [Label; 2])> = alone
            .into_iter()
            .map(|index| (index, std::array::from_fn(|_| self.asm.label())))
            .collect();
        for (index, [holds, next]) in &alone {
            let Some(trigger) = triggers.get(*index) else {
                continue;
            };
            self.asm.note(format!("rule {}", rule_name(section, trigger)));
            match &trigger.with {
                Some(with) => self.branch_if(with, true, *holds),
                None => self.asm.jump(*holds),
            }
            self.asm.bind(*next);
        }
        self.asm.jump(judged);
        self.share_no_more();
        let way = self.way_since(from);
        self.way.add(way);
        for (index, [holds, next]) in alone {
            self.asm.bind(holds);
            self.asm.mov(Reg::R1, index as i32);
            self.mark(&firing);
            self.asm.jump(next);
        }
        self.asm.bind(judged);
        self.paths_meet();
        self.asm.store_imm(Size::B8, Reg::R10, slot::AREA, 0);
        self.asm.branch(Cond::Eq, Reg::R9, 0, none);
        self.area_in_r1(&firing);
        self.asm.mov(Reg::R9, Reg::R1);
        self.asm.store(Size::B8, Reg::R10, slot::AREA, Reg::R9);
        self.hand_over(&firing, triggers.len());
        self.asm.bind(none);
        self.paths_meet();
    }

    /// Marks the trigger whose number is in R1, a constant. R9 is not 0 then; the other registers are lost.
    ///
    /// INVARIANT: between hits no trigger is marked: the firing parts see to that.
    pub(super) fn mark(&mut self, firing: &Firing) {
        self.asm.store(Size::B8, Reg::R10, slot::KEY, Reg::R1);
        self.area_in_r1(firing);
        self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::KEY);
        self.asm.mov(Reg::R2, Reg::R3);
        self.asm.alu(Alu::Rsh, Reg::R2, 6);
        self.asm.alu(Alu::Lsh, Reg::R2, 3);
        self.asm.alu(Alu::Add, Reg::R1, Reg::R2);
        self.asm.alu(Alu::And, Reg::R3, 63);
        self.asm.mov(Reg::R2, 1);
        self.asm.alu(Alu::Lsh, Reg::R2, Reg::R3);
        self.asm.load(Size::B8, Reg::R3, Reg::R1, area::HELD);
        self.asm.alu(Alu::Or, Reg::R3, Reg::R2);
        self.asm.store(Size::B8, Reg::R1, area::HELD, Reg::R3);
        self.asm.alu(Alu::Or, Reg::R9, 1);
    }

    /// R1 = the section's area. Uses R0.
    fn area_in_r1(&mut self, firing: &Firing) {
        self.frame_in_r1();
        self.asm.alu(Alu::Add, Reg::R1, i32::from(firing.area.at));
    }

    /// Some trigger is marked: what the firing part needs beside that, into the area at R9.
    fn hand_over(&mut self, firing: &Firing, triggers: usize) {
        self.need_clock();
        let [foreign, ours] = std::array::from_fn(|_| self.asm.label());
        if self.syscalls {
            self.unless_foreign(foreign);
        }
        self.asm.mov(Reg::R1, Reg::R9);
        self.asm.alu(Alu::Sub, Reg::R1, i32::from(firing.area.at));
        self.asm.store(Size::B8, Reg::R1, frame::TIME, Reg::R8);
        for at in [area::STATE, area::NOW] {
            self.asm.store(Size::B8, Reg::R9, at, Reg::R7);
        }
        self.asm
            .store_imm(Size::B8, Reg::R9, area::NEXT, firing.first.word());
        for at in area::CLEARED {
            self.asm.store_imm(Size::B8, Reg::R9, at, 0);
        }
        self.asm.store_imm(Size::B8, Reg::R10, slot::PENDING, 1);
        if self.syscalls {
            self.asm.jump(ours);
            self.asm.bind(foreign);
            self.unmark(triggers);
            let exit = self.exit;
            self.asm.jump(exit);
            self.asm.bind(ours);
        }
    }

    /// Clears the marks in the area at R9.
    pub(super) fn unmark(&mut self, triggers: usize) {
        for word in 0..triggers.div_ceil(64) {
            self.asm
                .store_imm(Size::B8, Reg::R9, area::held_word(64 * word), 0);
        }
    }
}

pub(super) fn rule_name<'s>(section: &'s Section<'_>, trigger: &Trigger) -> &'s str {
    section
        .pack
        .plan
        .rules
        .get(trigger.rule)
        .map_or("", |rule| &rule.name)
}
