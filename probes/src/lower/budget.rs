//! What a pack costs, added up in the kernel, and its budget.
//!
//! In: a pack with a budget. Out: instructions that add the cost of each hit and each record to the pack's cell of this CPU,
//! and that let nothing be recorded once the cell has spent the budget in this second.
//!
//! The costs are constants, known when a program is made: what was measured on the host (`features::Costs`), times what lies
//! on the way. A cell's sums only ever grow. A second begins when a record is about to be made and the one before is
//! over: then the sum is noted, and what was spent is what has come since.
//!
//! Most of what a record costs is its clock. So once the budget is spent, a hit is dropped without reading it, but for
//! each 64th, which sees whether the second is over. Programs of several events share a cell and may interrupt each
//! other between a load and a store: then a few nanoseconds are not counted, and nothing else happens.

use super::record::{Record, Value};
use super::section::PackEnv;
use super::{Emit, Known, slot};
use crate::arena::Spot;
use crate::asm::{Alu, Cond, Helper, Label, MapRef, Price, Priced, Reg, Size};
use crate::layout::{RecordLayout, cost, counter};

/// A budget as the sections of its pack see it.
#[derive(Debug, Clone)]
pub struct PackBudget {
    /// Where the pack's cell lies among the counters.
    pub cell: Spot,
    /// What may be spent in a second on each CPU, in nanoseconds; more than a second has where it is not limited.
    pub per_s_ns: i64,
    /// `lkst:overload`, and where its counters lie.
    pub overload: (RecordLayout, Spot),
}

/// What a stretch of code costs whoever passes through all of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Way {
    pub(super) instructions: u64,
    pub(super) calls: u64,
}

impl Way {
    pub(super) fn add(&mut self, other: Way) {
        self.instructions += other.instructions;
        self.calls += other.calls;
    }
}

/// The record whose price `Costs::record_ns` is: `task:task_rename` with all fields, two of them texts.
const PRICED: Way = Way {
    instructions: 130,
    calls: 2,
};
/// Of so many hits that are over the budget, one looks at the clock. A power of two.
const LOOK_EVERY: i32 = 64;

impl Emit<'_> {
    /// What was emitted from `from` on. Calls that the kernel makes a few
    /// instructions of are not counted, nor is the clock's: only hits that are recorded read it.
    pub(super) fn way_since(&self, from: usize) -> Way {
        let free = [
            Helper::KtimeGetBootNs,
            Helper::GetSmpProcessorId,
            Helper::MapLookupElem,
        ];
        Way {
            instructions: (self.asm.len() - from) as u64,
            calls: self.asm.calls_since(from, &free),
        }
    }

    /// Adds a hit to the pack's cell. What it costs is not known yet: the place to put it with [`Emit::hit_costs`].
    /// Uses R0 to R2.
    pub(super) fn charge_hit(&mut self, pack: &PackEnv<'_>) -> Option<usize> {
        let budget = pack.budget.as_ref()?;
        self.asm.note("cost of the hit");
        self.cpu_in_r0();
        self.asm
            .map_value(Reg::R1, MapRef::Counters(budget.cell.map), budget.cell.at);
        self.asm.alu(Alu::Mul, Reg::R0, counter::STRIDE.cast_signed());
        self.asm.alu(Alu::Add, Reg::R1, Reg::R0);
        self.asm.load(Size::B8, Reg::R2, Reg::R1, cost::HITS);
        self.asm.alu(Alu::Add, Reg::R2, 1);
        self.asm.store(Size::B8, Reg::R1, cost::HITS, Reg::R2);
        self.asm.load(Size::B8, Reg::R2, Reg::R1, cost::OF_HITS_NS);
        let place = self.asm.len();
        self.asm.alu(Alu::Add, Reg::R2, 0);
        self.asm.store(Size::B8, Reg::R1, cost::OF_HITS_NS, Reg::R2);
        Some(place)
    }

    /// What a hit of the section costs; where it was charged, at `place`, that is filled in.
    pub(super) fn hit_costs(&mut self, pack: &PackEnv<'_>, place: Option<usize>, way: Way) {
        let costs = &self.features.costs;
        let hit_ns = match self.syscalls {
            true => costs.syscall_hit_ns,
            false => costs.hit_ns,
        };
        let ns = u64::from(hit_ns)
            + way.instructions * u64::from(costs.instruction_ps) / 1000
            + way.calls * u64::from(costs.helper_ns);
        self.price(pack, Priced::Hit, ns);
        if let Some(place) = place {
            self.asm
                .set_immediate(place, i32::try_from(ns).unwrap_or(i32::MAX));
        }
    }

    fn price(&mut self, pack: &PackEnv<'_>, of: Priced, ns: u64) {
        let price = Price {
            pack: pack.index,
            of,
            ns: u32::try_from(ns).unwrap_or(u32::MAX),
        };
        self.asm.price(price);
    }

    /// What a record costs that is made by the code from `from` on; where costs are counted, it is added to the pack's
    /// cell. Needs `CPU`; uses R1 and R2.
    pub(super) fn charge_record(&mut self, pack: &PackEnv<'_>, record: &Record<'_>, from: usize) {
        let costs = &self.features.costs;
        let way = self.way_since(from);
        let mut ns = u64::from(costs.record_ns)
            + way.instructions.saturating_sub(PRICED.instructions) * u64::from(costs.instruction_ps) / 1000
            + way.calls.saturating_sub(PRICED.calls) * u64::from(costs.helper_ns);
        if record.own {
            ns += 8 * u64::from(costs.helper_ns);
        }
        self.price(pack, Priced::Record(record.layout.name.clone()), ns);
        let Some(budget) = &pack.budget else { return };
        // What a firing costs no budget holds back, so it counts as the hits do.
        let word = match record.own {
            true => cost::OF_HITS_NS,
            false => cost::OF_RECORDS_NS,
        };
        self.charge(budget, word, ns);
    }

    /// Adds a rule whose condition holds to the pack's cell. Needs `CPU`; uses R1 and R2.
    pub(super) fn charge_judgement(&mut self, pack: &PackEnv<'_>) {
        if let Some(budget) = &pack.budget {
            self.charge(budget, cost::OF_HITS_NS, self.features.costs.judge_ns.into());
        }
    }

    fn charge(&mut self, budget: &PackBudget, word: i16, ns: u64) {
        self.counter_in_r1(budget.cell);
        self.asm.load(Size::B8, Reg::R2, Reg::R1, word);
        self.asm
            .alu(Alu::Add, Reg::R2, i32::try_from(ns).unwrap_or(i32::MAX));
        self.asm.store(Size::B8, Reg::R1, word, Reg::R2);
    }

    /// To `over` where the pack was over its budget when somebody last looked at the clock, and it is not this hit's
    /// turn to look. Needs `CPU`; uses R1 and R2.
    pub(super) fn unless_marked(&mut self, pack: &PackEnv<'_>, over: Label) {
        let Some(budget) = &pack.budget else { return };
        let look = self.asm.label();
        self.counter_in_r1(budget.cell);
        self.asm.load(Size::B8, Reg::R2, Reg::R1, cost::IS_OVER);
        self.asm.branch(Cond::Eq, Reg::R2, 0, look);
        self.asm.load(Size::B8, Reg::R2, Reg::R1, cost::HITS);
        self.asm.alu(Alu::And, Reg::R2, LOOK_EVERY - 1);
        self.asm.branch(Cond::Ne, Reg::R2, 0, over);
        self.asm.bind(look);
    }

    /// To `over` where the pack has spent its budget on this CPU in this second. Needs the clock and `CPU`; uses R1 to
    /// R4.
    pub(super) fn within_budget(&mut self, pack: &PackEnv<'_>, over: Label) {
        let Some(budget) = &pack.budget else { return };
        let [same_second, room] = std::array::from_fn(|_| self.asm.label());
        self.counter_in_r1(budget.cell);
        self.asm.load(Size::B8, Reg::R2, Reg::R1, cost::OF_HITS_NS);
        self.asm.load(Size::B8, Reg::R3, Reg::R1, cost::OF_RECORDS_NS);
        self.asm.alu(Alu::Add, Reg::R2, Reg::R3);
        self.asm.load(Size::B8, Reg::R4, Reg::R1, cost::START);
        self.asm.mov(Reg::R3, Reg::R8);
        self.asm.alu(Alu::Sub, Reg::R3, Reg::R4);
        self.asm.branch(Cond::Slt, Reg::R3, 1_000_000_000, same_second);
        self.asm.store(Size::B8, Reg::R1, cost::START, Reg::R8);
        self.asm.store(Size::B8, Reg::R1, cost::BASE_NS, Reg::R2);
        self.asm.store_imm(Size::B8, Reg::R1, cost::IS_OVER, 0);
        self.asm.bind(same_second);
        self.asm.load(Size::B8, Reg::R3, Reg::R1, cost::BASE_NS);
        self.asm.alu(Alu::Sub, Reg::R2, Reg::R3);
        self.asm.constant(Reg::R3, budget.per_s_ns.cast_unsigned());
        self.asm.branch(Cond::Slt, Reg::R2, Reg::R3, room);
        self.asm.load(Size::B8, Reg::R3, Reg::R1, cost::IS_OVER);
        self.asm.branch(Cond::Ne, Reg::R3, 0, over);
        self.asm.store_imm(Size::B8, Reg::R1, cost::IS_OVER, 1);
        self.asm.store(Size::B8, Reg::R10, slot::OVER, Reg::R2);
        self.asm.jump(over);
        self.asm.bind(room);
    }

    /// At the end of a pack's section: the mark of a hit that was the first over the budget.
    pub(super) fn overload(&mut self, pack: &PackEnv<'_>) {
        let Some(budget) = &pack.budget else { return };
        let none = self.asm.label();
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::OVER);
        self.asm.branch(Cond::Eq, Reg::R1, 0, none);
        // Who has found that out had read both.
        (self.clock, self.who) = (Known::Yes, Known::Yes);
        let (layout, counters) = &budget.overload;
        let record = Record {
            layout: layout.clone(),
            values: vec![
                Value::Slot(slot::OVER),
                Value::Constant(budget.per_s_ns.cast_unsigned()),
            ],
            counters: *counters,
            own: true,
            shared: false,
        };
        self.record(pack, &record, |_| {});
        self.asm.bind(none);
        self.paths_meet();
    }
}
