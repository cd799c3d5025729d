//! A program's sections: one for each pack that names the event, and the first of its three steps, *record*.
//!
//! In: [`Section`]s, whose layouts and counters `image.rs` has numbered. Out: a whole program.

use std::collections::BTreeMap;

use lkst_rules::plan::{Column, EventPlan, Load, Member, Node, Plan};
use lkst_rules::schema::Recipe;

use super::budget::{PackBudget, Way};
use super::fire::Entry;
use super::record::{Record, Value};
use super::{Emit, Known, LowerError, Part, area, slot};
use crate::arena::Spot;
use crate::asm::{Alu, Code, Cond, Helper, Label, Reg, Size};
use crate::features::Features;
use crate::layout::{Encoding, RecordLayout, control, counter, state};
use crate::numbers::{EventSpots, Ring, RuleSpots};

/// A pack as every section of it sees it.
#[derive(Debug)]
pub struct PackEnv<'p> {
    /// Its number in the image.
    pub index: u16,
    /// What it means.
    pub plan: &'p Plan,
    /// Where its block lies.
    pub block: Spot,
    /// Each buffer's allocation; `None` for the number of one that is gone.
    pub rings: Vec<Option<Ring>>,
    /// For each set, where its cap's cell lies among the counters.
    pub caps: Vec<Option<Spot>>,
    /// For each rule, where its words lie.
    pub rules: Vec<RuleSpots>,
    /// `lkst:switched` and `lkst:refused`, where a rule switches, and where each one's counters lie.
    pub changes: Option<[(RecordLayout, Spot); 2]>,
    /// Some `switch` has a `for`.
    pub switches_back: bool,
    /// Some rule stops the pack.
    pub stops: bool,
    /// Where the counters of `lkst:fired` lie.
    pub fired_counters: Spot,
    /// What it may cost, where that is counted.
    pub budget: Option<PackBudget>,
}

impl PackEnv<'_> {
    /// Where a rule's words lie.
    pub(super) fn rule(&self, rule: usize) -> RuleSpots {
        self.rules.get(rule).copied().unwrap_or_default()
    }
}

/// One pack's wish of one event.
#[derive(Debug)]
pub struct Section<'p> {
    /// The pack.
    pub pack: &'p PackEnv<'p>,
    /// The wish.
    pub plan: &'p EventPlan,
    /// Where the event's words lie.
    pub spots: EventSpots,
    /// The kinds of record that may come of it.
    pub records: Vec<(RecordLayout, Vec<Column>)>,
    /// For each member, the number of its list of columns.
    pub lists: Vec<usize>,
    /// Which record a combination of lists asks for: (one bit a list, index in `records`).
    pub unions: Vec<(u32, usize)>,
    /// The record with all fields, where a rule waits for the event.
    pub full: Option<usize>,
    /// For each trigger its `lkst:fired` record and the columns of it.
    pub fired: Vec<(RecordLayout, Vec<Column>)>,
    /// Where its firings are, where it has triggers.
    pub firing: Option<Firing>,
}

/// A part of the frame, for one section at a time: the system calls of a pack share one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Area {
    /// Where it lies.
    pub at: i16,
}

/// Where a section's firings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firing {
    /// What its conditions hand over.
    pub area: Area,
    /// The first piece of it.
    pub first: Entry,
}

/// A section for one system call.
#[derive(Debug)]
pub struct SyscallLeaf<'p> {
    /// The system call's number.
    pub number: u32,
    /// What is wanted of it.
    pub section: Section<'p>,
}

/// What makes the code of two records the same: where each column comes from and how it lies.
type Shape = Vec<(Encoding, Recipe)>;

/// Records of one shape share their code; this is what is still to be emitted.
type Shared<'p> = BTreeMap<String, (Label, Record<'p>)>;

/// The program of a tracepoint, or a part of one. `areas` are those of all its sections.
///
/// # Errors
/// See [`LowerError`].
pub fn program(
    sections: &[Section<'_>],
    areas: &[Area],
    features: &Features,
    part: Part,
) -> Result<Code, LowerError> {
    let mut emit = Emit::new(features, part);
    emit.prologue();
    emit.nothing_held(areas);
    for section in sections {
        let end = emit.asm.label();
        let charged = emit.open(section.pack, end);
        emit.steps(section, None);
        emit.asm.bind(end);
        emit.paths_meet();
        emit.overload(section.pack);
        let way = std::mem::take(&mut emit.way);
        emit.hit_costs(section.pack, charged, way);
    }
    emit.held(areas);
    finish(emit)
}

/// The program of all system calls' entries or exits: for each pack a search tree over the number.
///
/// # Errors
/// See [`LowerError`].
pub fn syscall_program(
    packs: &[Vec<SyscallLeaf<'_>>],
    areas: &[Area],
    features: &Features,
    part: Part,
) -> Result<Code, LowerError> {
    let mut emit = Emit::new(features, part);
    emit.syscalls = true;
    emit.prologue();
    emit.nothing_held(areas);
    for leaves in packs {
        let Some(first) = leaves.first() else { continue };
        let end = emit.asm.label();
        emit.load_syscall_number(64, false);
        emit.asm.mov(Reg::R9, Reg::R1);
        let charged = emit.open(first.section.pack, end);
        let mut sorted: Vec<&SyscallLeaf<'_>> = leaves.iter().collect();
        sorted.sort_by_key(|leaf| leaf.number);
        let mut shared = Shared::new();
        let before = (emit.clock, emit.who);
        emit.leaves(&sorted, end, &mut shared, before);
        for (_, (label, record)) in shared {
            emit.asm.bind(label);
            (emit.clock, emit.who) = (Known::Yes, Known::Yes);
            let pack = first.section.pack;
            let over = emit.asm.label();
            emit.within_budget(pack, over);
            if pack.switches_back {
                emit.return_to_main(pack);
            }
            emit.record(pack, &record, |_| {});
            emit.asm.jump(end);
            if pack.budget.is_some() {
                emit.asm.bind(over);
                emit.count_named(record.counters.map, counter::OVER_BUDGET);
                emit.asm.jump(end);
            }
        }
        emit.asm.bind(end);
        emit.paths_meet();
        emit.overload(first.section.pack);
        // A hit goes down the tree and through one of the leaves, of which nobody knows how frequent each one is.
        let all = std::mem::take(&mut emit.way);
        let leaves = leaves.len() as u64;
        let way = Way {
            instructions: 2 * u64::from(leaves.ilog2() + 1) + all.instructions.div_ceil(leaves),
            calls: all.calls.div_ceil(leaves),
        };
        emit.hit_costs(first.section.pack, charged, way);
    }
    emit.held(areas);
    finish(emit)
}

pub(super) fn finish(mut emit: Emit<'_>) -> Result<Code, LowerError> {
    emit.epilogue();
    emit.functions();
    if let Some(span) = emit.too_deep {
        return Err(LowerError::TooDeep { span });
    }
    let long_jumps = emit.features.long_jumps;
    Ok(emit.asm.finish(long_jumps)?)
}

impl Emit<'_> {
    /// Before the first section.
    fn nothing_held(&mut self, areas: &[Area]) {
        if !areas.is_empty() {
            self.asm.store_imm(Size::B8, Reg::R10, slot::PENDING, 0);
        }
    }

    /// After the last section: to the firings, where a condition has held.
    fn held(&mut self, areas: &[Area]) {
        if areas.is_empty() {
            return;
        }
        let exit = self.exit;
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::PENDING);
        self.asm.branch(Cond::Eq, Reg::R1, 0, exit);
        self.go_to_firings(areas);
    }

    /// R7 = the pack's state; to `end` where it has stopped. Charges the hit: see [`Emit::charge_hit`].
    fn open(&mut self, pack: &PackEnv<'_>, end: Label) -> Option<usize> {
        self.asm.note(format!("pack {}", pack.plan.pack));
        if pack.budget.is_some() {
            self.asm.store_imm(Size::B8, Reg::R10, slot::OVER, 0);
        }
        self.control_word(Reg::R1, pack.block.plus(control::STATE));
        self.asm.load(Size::B8, Reg::R7, Reg::R1, 0);
        if pack.stops {
            self.asm.constant(Reg::R1, 1 << state::STOPPED_SHIFT);
            self.asm.branch(Cond::Set, Reg::R7, Reg::R1, end);
        }
        self.charge_hit(pack)
    }

    /// A search tree over R9, the number of the system call.
    fn leaves<'p>(
        &mut self,
        leaves: &[&'p SyscallLeaf<'p>],
        end: Label,
        shared: &mut Shared<'p>,
        before: (Known, Known),
    ) {
        if let [leaf] = leaves {
            self.asm.note(leaf.section.plan.event.full_name());
            self.asm
                .branch32(Cond::Ne, Reg::R9, leaf.number.cast_signed(), end);
            (self.clock, self.who) = before;
            self.steps(&leaf.section, Some(shared));
            self.asm.jump(end);
            return;
        }
        let (low, high) = leaves.split_at(leaves.len() / 2);
        if let Some(first) = high.first() {
            let upper = self.asm.label();
            self.asm
                .branch32(Cond::Ge, Reg::R9, first.number.cast_signed(), upper);
            self.leaves(low, end, shared, before);
            self.asm.bind(upper);
            self.leaves(high, end, shared, before);
        }
    }

    /// Record, and decide as far as the conditions go: in the opposite order.
    fn steps<'p>(&mut self, section: &'p Section<'p>, shared: Option<&mut Shared<'p>>) {
        self.unreadable_counter = Some(section.spots.counters.plus(counter::UNREADABLE));
        // Conditions have no side effects: judged first, they leave it to the record to be the section's last word, which
        // several sections may share.
        if !section.plan.triggers.is_empty() {
            self.decide(section);
        }
        if !section.plan.members.is_empty() {
            self.record_step(section, shared);
        }
    }

    /// Step 1. Falls through; code that is shared goes to the end of its pack.
    fn record_step<'p>(&mut self, section: &'p Section<'p>, shared: Option<&mut Shared<'p>>) {
        let [wanted, none, over, after] = std::array::from_fn(|_| self.asm.label());
        let from = self.asm.len();
        let capped = section.plan.members.iter().any(|m| cap_of(section, m).is_some());
        let single = section.unions.len() == 1;
        if capped || !single {
            self.asm.mov(Reg::R9, 0);
        }
        let lists = section.lists.iter().max().map_or(0, |last| last + 1);
        for list in 0..lists {
            let list_done = self.asm.label();
            // Members without a cap first: a hit that one of them records takes no room from a cap.
            let of_list = || {
                section
                    .plan
                    .members
                    .iter()
                    .zip(&section.lists)
                    .filter(|(_, l)| **l == list)
            };
            let uncapped = of_list().filter(|(m, _)| cap_of(section, m).is_none());
            let with_cap = of_list().filter(|(m, _)| cap_of(section, m).is_some());
            for (member, _) in uncapped.chain(with_cap) {
                let next = self.asm.label();
                self.member(section, member, next, over);
                if single {
                    self.asm.jump(wanted);
                } else {
                    self.asm.alu(Alu::Or, Reg::R9, 1 << list);
                    self.asm.jump(list_done);
                }
                self.asm.bind(next);
                self.paths_meet();
            }
            self.asm.bind(list_done);
        }
        if !single {
            self.asm.mov(Reg::R1, Reg::R9);
            self.asm.alu(Alu::And, Reg::R1, 0xff);
            self.asm.branch(Cond::Ne, Reg::R1, 0, wanted);
        }
        self.asm.bind(none);
        let way = self.way_since(from);
        self.way.add(way);
        if capped {
            // R9 is set only where a member was over its cap, and then the CPU is known.
            self.asm.branch(Cond::Eq, Reg::R9, 0, after);
            self.need_who();
            self.count(section.spots.counters.plus(counter::CAPPED));
        }
        self.asm.jump(after);
        self.asm.bind(wanted);
        (self.clock, self.who) = (Known::Yes, Known::Yes);
        let is_shared = shared.is_some() && section.shape().is_some();
        if !is_shared {
            self.within_budget(section.pack, over);
        }
        self.records(section, single, after, shared);
        self.asm.bind(after);
        self.paths_meet();
        if section.pack.budget.is_some() {
            let counted = self.asm.label();
            self.asm.jump(counted);
            self.asm.bind(over);
            self.count(section.spots.counters.plus(counter::OVER_BUDGET));
            self.asm.bind(counted);
        }
    }

    /// Does a member want the hit? To `next` where not; otherwise falls through with the clock and `WHO` known. To
    /// `over` where it does and the pack is known to be over its budget.
    fn member(&mut self, section: &Section<'_>, member: &Member, next: Label, over: Label) {
        let pack = section.pack;
        self.asm.note(format!("set {}", set_name(pack.plan, member.set)));
        self.unless_bit(member.set, next);
        if let Some(with) = &member.with {
            self.branch_if(with, false, next);
        }
        if let Some(sample) = member.sample {
            self.asm.call(Helper::GetPrandomU32);
            self.asm.alu32(Alu::Mov, Reg::R0, Reg::R0);
            self.asm
                .constant(Reg::R1, (1_u64 << 32) / u64::from(sample.max(1)));
            self.asm.branch(Cond::Ge, Reg::R0, Reg::R1, next);
        }
        self.need_task();
        if !member.own {
            self.skip_own(next);
        }
        let is_timed = pack.plan.sets.get(member.set).is_some_and(|set| set.timed);
        if !is_timed && cap_of(section, member).is_none() {
            self.unless_marked(pack, over);
        }
        self.need_clock();
        self.unless_in_time(pack, member.set, next);
        if let Some(cell) = cap_of(section, member) {
            let max = pack
                .plan
                .sets
                .get(member.set)
                .and_then(|s| s.max_per_s)
                .unwrap_or(0);
            self.take_from_cap(cell, max, next);
        }
    }

    /// To `no` where the set's bit in R7 is clear. Uses R1.
    pub(super) fn unless_bit(&mut self, set: usize, no: Label) {
        let yes = self.asm.label();
        if set < 31 {
            self.asm.branch(Cond::Set, Reg::R7, 1 << set, yes);
        } else {
            self.asm.constant(Reg::R1, 1 << set);
            self.asm.branch(Cond::Set, Reg::R7, Reg::R1, yes);
        }
        self.asm.jump(no);
        self.asm.bind(yes);
    }

    /// To `no` where the set's time is over. Needs the clock. Uses R1.
    pub(super) fn unless_in_time(&mut self, pack: &PackEnv<'_>, set: usize, no: Label) {
        if pack.plan.sets.get(set).is_some_and(|s| s.timed) {
            self.control_word(Reg::R1, pack.block.plus(control::SET_UNTIL + 8 * set as u32));
            self.asm.load(Size::B8, Reg::R1, Reg::R1, 0);
            self.asm.branch(Cond::Ge, Reg::R8, Reg::R1, no);
        }
    }

    /// Takes one from a cap of `max` in a second; to `next` with R9 marked where there is none left.
    fn take_from_cap(&mut self, cell: Spot, max: u32, next: Label) {
        let (same_second, room, over) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.counter_in_r1(cell);
        self.asm
            .load(Size::B8, Reg::R2, Reg::R1, counter::CAP_START as i16);
        self.asm.mov(Reg::R3, Reg::R8);
        self.asm.alu(Alu::Sub, Reg::R3, Reg::R2);
        // A hit that began before the one that opened the second belongs to it.
        self.asm.branch(Cond::Slt, Reg::R3, 1_000_000_000, same_second);
        self.asm
            .store(Size::B8, Reg::R1, counter::CAP_START as i16, Reg::R8);
        self.asm
            .store_imm(Size::B8, Reg::R1, counter::CAP_COUNT as i16, 0);
        self.asm.bind(same_second);
        self.asm.mov(Reg::R2, 1);
        self.asm.fetch_add(Reg::R1, counter::CAP_COUNT as i16, Reg::R2);
        self.asm.constant(Reg::R3, u64::from(max));
        self.asm.branch(Cond::Lt, Reg::R2, Reg::R3, room);
        self.asm.bind(over);
        self.asm.alu(Alu::Or, Reg::R9, 0x100);
        self.asm.jump(next);
        self.asm.bind(room);
    }

    /// The record that the lists in R9 ask for. Falls through or jumps to `after`.
    fn records<'p>(
        &mut self,
        section: &'p Section<'p>,
        single: bool,
        after: Label,
        shared: Option<&mut Shared<'p>>,
    ) {
        if !section.plan.triggers.is_empty() {
            let nothing_held = self.asm.label();
            self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AREA);
            self.asm.branch(Cond::Eq, Reg::R1, 0, nothing_held);
            self.asm.store_imm(Size::B8, Reg::R1, area::RECORDED, 1);
            self.asm.bind(nothing_held);
        }
        if single {
            let Some(record) = section
                .unions
                .first()
                .and_then(|(_, index)| section.record(*index))
            else {
                return;
            };
            match shared.zip(shape(&record)) {
                // Whether to return to `main` is looked at in the shared code.
                Some((shared, shape)) => {
                    self.asm
                        .store_imm(Size::B8, Reg::R10, slot::ID, i32::from(record.layout.id));
                    self.control_word(Reg::R1, section.spots.word);
                    self.asm.load(Size::B8, Reg::R1, Reg::R1, 0);
                    let last = counter::STRIDE - counter::EVENT_BYTES;
                    let exit = self.exit;
                    self.asm.branch(Cond::Gt, Reg::R1, last.cast_signed(), exit);
                    self.asm.store(Size::B8, Reg::R10, slot::COUNTERS, Reg::R1);
                    let label = shared
                        .entry(format!("{} {shape:?}", record.counters.map))
                        .or_insert_with(|| {
                            (
                                self.asm.label(),
                                Record {
                                    shared: true,
                                    ..record
                                },
                            )
                        });
                    self.asm.jump(label.0);
                }
                None => {
                    if section.pack.switches_back {
                        self.return_to_main(section.pack);
                    }
                    self.record(section.pack, &record, |_| {});
                }
            }
            return;
        }
        if section.pack.switches_back {
            let temp = self.temp(lkst_rules::source::Span::default());
            self.asm.store(Size::B8, Reg::R10, temp, Reg::R9);
            self.return_to_main(section.pack);
            self.asm.load(Size::B8, Reg::R9, Reg::R10, temp);
            self.drop_temp();
        }
        self.asm.alu(Alu::And, Reg::R9, 0xff);
        let labels: Vec<Label> = section.unions.iter().map(|_| self.asm.label()).collect();
        for ((mask, _), label) in section.unions.iter().zip(&labels) {
            self.asm.branch(Cond::Eq, Reg::R9, mask.cast_signed(), *label);
        }
        self.asm.jump(after);
        // One piece of code for each kind of record, however many combinations ask for it.
        let mut emitted: BTreeMap<usize, Label> = BTreeMap::new();
        for ((_, index), label) in section.unions.iter().zip(&labels) {
            self.asm.bind(*label);
            if let Some(first) = emitted.get(index) {
                self.asm.jump(*first);
                continue;
            }
            let here = self.asm.label();
            self.asm.bind(here);
            emitted.insert(*index, here);
            if let Some(record) = section.record(*index) {
                self.record(section.pack, &record, |_| {});
            }
            self.asm.jump(after);
        }
    }
}

impl<'p> Section<'p> {
    /// What the code of the section's only record depends on, where several sections may share it.
    fn shape(&'p self) -> Option<Shape> {
        let [(_, index)] = self.unions.as_slice() else {
            return None;
        };
        shape(&self.record(*index)?)
    }

    /// The record with this index.
    pub(super) fn record(&'p self, index: usize) -> Option<Record<'p>> {
        let (layout, columns) = self.records.get(index)?;
        Some(record_of(layout, columns, self.spots.counters))
    }
}

/// A record of a layout whose columns are found by name; what has no column is the constant 0.
pub(super) fn record_of<'p>(layout: &RecordLayout, columns: &'p [Column], counters: Spot) -> Record<'p> {
    let values = layout
        .columns
        .iter()
        .map(|place| match columns.iter().find(|c| c.name == place.name) {
            Some(column) => Value::Expr(&column.value),
            None => Value::Constant(0),
        })
        .collect();
    Record {
        layout: layout.clone(),
        values,
        counters,
        own: false,
        shared: false,
    }
}

/// What a record's code depends on, where it depends on nothing but plain values of fixed length.
fn shape(record: &Record<'_>) -> Option<Shape> {
    record
        .layout
        .columns
        .iter()
        .zip(&record.values)
        .map(|(column, value)| match value {
            Value::Expr(expr) if column.offset.is_some() => match &expr.node {
                Node::Load(Load::Field {
                    recipe: Some(recipe), ..
                }) => Some((column.encoding.clone(), recipe.clone())),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

fn cap_of(section: &Section<'_>, member: &Member) -> Option<Spot> {
    section.pack.caps.get(member.set).copied().flatten()
}

fn set_name(plan: &Plan, set: usize) -> &str {
    plan.sets.get(set).map_or("", |s| &s.name)
}
