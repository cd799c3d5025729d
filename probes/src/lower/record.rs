//! Recording: reserve, fill, commit.
//!
//! In: a [`Record`]: a layout and where each column comes from. Out: instructions that write it into the pack's
//! current buffer on this CPU, count it, and fall through; a record that finds no room is counted as lost. How its place is
//! taken, and why in this order, is in `reserve.rs`.

use lkst_rules::plan::{Expr, Load, Node, TaskValue};
use lkst_rules::schema::{Place, Recipe};

use super::field::{may_be_null, size_of_bits};
use super::section::PackEnv;
use super::text::length_slot;
use super::value::constant;
use super::{Emit, Kind, slot};
use crate::arena::Spot;
use crate::asm::{Alu, Cond, Helper, Label, Reg, Size};
use crate::layout::{Encoding, RecordLayout, VARYING_MAX_BYTES, counter, head, record};

/// Where a column's value comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'p> {
    /// An expression over the hit.
    Expr(&'p Expr),
    /// A constant.
    Constant(u64),
    /// A slot of the stack.
    Slot(i16),
}

/// A record to be made.
#[derive(Debug, Clone)]
pub(crate) struct Record<'p> {
    /// Its layout.
    pub(crate) layout: RecordLayout,
    /// The values in the layout's order.
    pub(crate) values: Vec<Value<'p>>,
    /// The event's counters.
    pub(crate) counters: Spot,
    /// It is lkst's own record: programs of several events count it, and one may interrupt another.
    pub(crate) own: bool,
    /// The id lies in the slot `ID`: several events of one shape share this code.
    pub(crate) shared: bool,
}

impl Emit<'_> {
    /// Writes a record. Needs the clock and `WHO`. On success `then` is emitted with R9 = the committed record; R9 is
    /// lost afterwards.
    pub(crate) fn record(&mut self, pack: &PackEnv<'_>, record: &Record<'_>, then: impl FnOnce(&mut Self)) {
        self.asm.note(format!("record {}", record.layout.name));
        let from = self.asm.len();
        let [lost, done, fill] = std::array::from_fn(|_| self.asm.label());
        self.prepare(record);
        let length = self.length(record);
        self.reserve(pack, record.layout.max_bytes, length, fill, lost);
        self.asm.bind(fill);
        self.asm.store(Size::B8, Reg::R9, record::TIME as i16, Reg::R8);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::WHO);
        self.asm.store(Size::B4, Reg::R9, record::TID as i16, Reg::R1);
        self.asm.alu(Alu::Rsh, Reg::R1, 32);
        self.asm.store(Size::B4, Reg::R9, record::PID as i16, Reg::R1);
        self.fill(record);
        self.commit(record);
        self.charge_record(pack, record, from);
        then(self);
        self.asm.jump(done);
        self.asm.bind(lost);
        self.count_record(record, counter::LOST);
        self.asm.bind(done);
    }

    fn count_record(&mut self, record: &Record<'_>, which: u32) {
        match (record.shared, record.own) {
            (true, _) => self.count_named(record.counters.map, which),
            (false, true) => self.count_shared(record.counters.plus(which)),
            (false, false) => self.count(record.counters.plus(which)),
        }
    }

    /// Reads what varies in length, so that the record can be reserved at the length it needs.
    fn prepare(&mut self, record: &Record<'_>) {
        let varying = record
            .layout
            .columns
            .iter()
            .zip(&record.values)
            .filter(|(c, _)| c.offset.is_none());
        for (index, (column, value)) in varying.enumerate() {
            let Value::Expr(expr) = value else { continue };
            match column.encoding {
                Encoding::Sequence { .. } => self.prepare_sequence(expr, index),
                _ => self.prepare_text(expr, index),
            }
        }
    }

    /// The length slot = the bytes of a `__data_loc` array, cut to 256.
    fn prepare_sequence(&mut self, expr: &Expr, index: usize) {
        let fits = self.asm.label();
        match place_of(expr, self.kind) {
            Some(Place::DataLoc(offset) | Place::RelLoc(offset)) => {
                self.asm.load(Size::B4, Reg::R1, Reg::R6, offset.cast_signed());
                self.asm.alu(Alu::Rsh, Reg::R1, 16);
                self.asm.branch(Cond::Le, Reg::R1, VARYING_MAX_BYTES as i32, fits);
            }
            _ => self.asm.mov(Reg::R1, 0),
        }
        self.asm.mov(
            Reg::R1,
            if place_of(expr, self.kind).is_some() {
                VARYING_MAX_BYTES as i32
            } else {
                0
            },
        );
        self.asm.bind(fits);
        self.asm.store(Size::B8, Reg::R10, length_slot(index), Reg::R1);
    }

    /// The record's length: `Some` where it is constant, otherwise in the slot `LENGTH`.
    fn length(&mut self, record: &Record<'_>) -> Option<i32> {
        let varying = record.layout.columns.iter().filter(|c| c.offset.is_none());
        let fixed = i32::from(record.layout.fixed_bytes);
        let round = record::ALIGN as i32 - 1;
        let mut any = false;
        for (index, column) in varying.enumerate() {
            let count = if matches!(column.encoding, Encoding::Sequence { .. }) {
                2
            } else {
                0
            };
            self.asm.load(Size::B8, Reg::R2, Reg::R10, length_slot(index));
            if any {
                self.asm.alu(Alu::Add, Reg::R1, Reg::R2);
            } else {
                self.asm.mov(Reg::R1, Reg::R2);
            }
            if count > 0 {
                self.asm.alu(Alu::Add, Reg::R1, count);
            }
            any = true;
        }
        if !any {
            return Some((fixed + round) & !round);
        }
        self.asm.alu(Alu::Add, Reg::R1, fixed + round);
        self.asm.alu(Alu::And, Reg::R1, !round);
        self.asm.store(Size::B8, Reg::R10, slot::LENGTH, Reg::R1);
        None
    }

    /// The varying columns first: their texts wait in this program's frame, where a condition among the fixed columns
    /// may read texts of its own.
    fn fill(&mut self, record: &Record<'_>) {
        let columns = || record.layout.columns.iter().zip(&record.values);
        let varying = columns().filter(|(column, _)| column.offset.is_none());
        for (index, (column, value)) in varying.enumerate() {
            if index == 0 {
                self.asm.mov(Reg::R1, Reg::R9);
                self.asm
                    .alu(Alu::Add, Reg::R1, i32::from(record.layout.fixed_bytes));
                self.asm.store(Size::B8, Reg::R10, slot::AT, Reg::R1);
            }
            if let Value::Expr(expr) = value {
                self.fill_varying(&column.encoding, expr, index);
            }
        }
        for (column, value) in columns() {
            let Some(offset) = column.offset else { continue };
            let offset = offset.cast_signed();
            match (&column.encoding, value) {
                (Encoding::Int { bits, .. }, value) => {
                    self.fill_int(size_of_bits(*bits), value, offset);
                }
                (Encoding::Enum(_), value) => self.fill_int(Size::B4, value, offset),
                (encoding, Value::Expr(expr)) => {
                    let bytes = encoding.fixed().map_or(0, |(_, bytes)| bytes);
                    self.fill_bytes(expr, bytes, offset);
                }
                _ => {}
            }
        }
    }

    fn fill_int(&mut self, size: Size, value: &Value<'_>, offset: i16) {
        match value {
            Value::Constant(value) => self.asm.constant(Reg::R1, *value),
            Value::Slot(at) => self.asm.load(Size::B8, Reg::R1, Reg::R10, *at),
            Value::Expr(expr) => match (&expr.node, constant(expr)) {
                (_, Some(value)) if i32::try_from(value.cast_signed()).is_ok() => {
                    self.asm.store_imm(size, Reg::R9, offset, value as u32 as i32);
                    return;
                }
                // What is stored is as wide as what is loaded, so its sign does not matter.
                (Node::Load(load), _) => self.load(load, expr.ty, true),
                _ => self.value(expr),
            },
        }
        self.asm.store(size, Reg::R9, offset, Reg::R1);
    }

    /// A fixed array: word by word where plain loads reach it, by a probe read elsewhere.
    fn fill_bytes(&mut self, expr: &Expr, bytes: usize, offset: i16) {
        if let Some(Place::At(from)) = place_of(expr, self.kind)
            && bytes <= 64
        {
            let mut at = 0;
            while at < bytes {
                let place = usize::from(from) + at;
                let width = [8, 4, 2, 1]
                    .into_iter()
                    .find(|w| *w <= bytes - at && place.is_multiple_of(*w))
                    .unwrap_or(1);
                let size = Size::of_bytes(width).unwrap_or(Size::B1);
                self.asm.load(size, Reg::R1, Reg::R6, place as i16);
                self.asm.store(size, Reg::R9, offset + at as i16, Reg::R1);
                at += width;
            }
            return;
        }
        if let (
            Node::Load(Load::Field {
                recipe: Some(Recipe::AnySyscallArguments),
                ..
            }),
            Kind::Typed,
        ) = (&expr.node, self.kind)
        {
            return self.store_syscall_arguments(offset);
        }
        let (null, done) = (self.asm.label(), self.asm.label());
        if let Some((path, from)) = self.plain_array(expr)
            && bytes <= 64
            && bytes.is_multiple_of(8)
        {
            self.walk(path, null);
            for at in (0..bytes as i16).step_by(8) {
                self.asm.load(Size::B8, Reg::R2, Reg::R1, from + at);
                self.asm.store(Size::B8, Reg::R9, offset + at, Reg::R2);
            }
            if may_be_null(path) {
                self.asm.jump(done);
                self.zeros(null, bytes, offset);
                self.asm.bind(done);
            }
            return;
        }
        match (&expr.node, place_of(expr, self.kind)) {
            (_, Some(place)) => self.place_address(place),
            (
                Node::Load(Load::Field {
                    recipe: Some(recipe), ..
                }),
                _,
            ) => self.address_of_recipe(recipe, null),
            (Node::Load(Load::Task(TaskValue::Comm(path))), _) => self.address_of_path(path, null),
            _ => self.asm.jump(null),
        }
        self.asm.mov(Reg::R1, Reg::R9);
        self.asm.alu(Alu::Add, Reg::R1, i32::from(offset));
        self.asm.mov(Reg::R2, bytes as i32);
        // Where it fails the kernel fills the destination with zeros.
        self.asm.call(Helper::ProbeReadKernel);
        self.asm.jump(done);
        self.zeros(null, bytes, offset);
        self.asm.bind(done);
    }

    /// At `null`: so many zeros in the record.
    fn zeros(&mut self, null: Label, bytes: usize, offset: i16) {
        self.asm.bind(null);
        let mut at = 0;
        while at < bytes {
            let place = offset as usize + at;
            let width = [8, 4, 2, 1]
                .into_iter()
                .find(|w| *w <= bytes - at && place.is_multiple_of(*w))
                .unwrap_or(1);
            let size = Size::of_bytes(width).unwrap_or(Size::B1);
            self.asm.store_imm(size, Reg::R9, place as i16, 0);
            at += width;
        }
    }

    /// A varying column at the cursor, which lies in the slot `AT`.
    fn fill_varying(&mut self, encoding: &Encoding, expr: &Expr, index: usize) {
        if let Encoding::Sequence { bits, .. } = encoding {
            self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AT);
            self.asm.load(Size::B8, Reg::R2, Reg::R10, length_slot(index));
            self.asm
                .alu(Alu::Rsh, Reg::R2, (bits / 8).trailing_zeros().cast_signed());
            self.asm.store(Size::B2, Reg::R1, 0, Reg::R2);
            self.asm.alu(Alu::Add, Reg::R1, 2);
            self.asm.store(Size::B8, Reg::R10, slot::AT, Reg::R1);
            match place_of(expr, self.kind) {
                Some(place) => self.place_address(place),
                None => self.asm.mov(Reg::R3, 0),
            }
        } else {
            self.prepared_text_in_r3(index);
        }
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AT);
        self.asm.load(Size::B8, Reg::R2, Reg::R10, length_slot(index));
        self.asm.call(Helper::ProbeReadKernel);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AT);
        self.asm.load(Size::B8, Reg::R2, Reg::R10, length_slot(index));
        self.asm.alu(Alu::Add, Reg::R1, Reg::R2);
        self.asm.store(Size::B8, Reg::R10, slot::AT, Reg::R1);
    }

    fn commit(&mut self, record: &Record<'_>) {
        self.asm.note("commit");
        let nested = self.asm.label();
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::WORD);
        if record.shared {
            self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::ID);
            self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
        } else {
            self.asm.alu(Alu::Or, Reg::R1, i32::from(record.layout.id));
        }
        self.asm.store(Size::B8, Reg::R9, record::ID as i16, Reg::R1);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::OUTER);
        self.asm.branch(Cond::Ne, Reg::R1, 0, nested);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::HEAD);
        self.asm.store_imm(Size::B8, Reg::R1, head::BUSY as i16, 0);
        self.asm.bind(nested);
        self.count_record(record, counter::RECORDED);
    }
}

/// Where a field lies in a classic program's context.
fn place_of(expr: &Expr, kind: Kind) -> Option<Place> {
    match (&expr.node, kind) {
        (Node::Load(Load::Field { place, .. }), Kind::Classic) => *place,
        _ => None,
    }
}
